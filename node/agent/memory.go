package agent

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// memory is what the agent knows of the bundles on its disk.
type memory struct {
	directory *bundle.Directory
	trial     *trial
	stored    *fleetv1.Release // what a restart would serve; nil: nothing that can be read
	current   bool             // stored is the current one, not one that was fallen back to
	epoch     uint64           // the highest that was served, or lies on disk; never gone back from
	skipped   error            // why the current one, or both, cannot be used; nil: it can
	unsaved   *unsaved         // nil: what is served is on disk
}

// unsaved is a release that is served and could not be made the current one on disk.
type unsaved struct {
	release *fleetv1.Release
	bundle  *bundle.Bundle
	reason  error
	next    time.Time // when to try again
}

// savePause is between two attempts to save what is served.
const savePause = 30 * time.Second

// load gives the bundle to boot from: the current one, or the one before where that is damaged or has ended the process
// too often. With nothing else to serve, one that ended the process is served all the same.
func (a *Agent) load() (*fleetv1.Release, *bundle.Bundle, error) {
	m := &a.memory
	verify := func(release *fleetv1.Release, b *bundle.Bundle) error {
		return bundle.Verify(ed25519.PublicKey(a.identity.Load().ReleaseKey), release, b)
	}
	failed := m.trial.failed()
	release, b, skipped, err := m.directory.Load(func(release *fleetv1.Release, b *bundle.Bundle) error {
		if failed != nil && sameRelease(release, failed) {
			return crashError{release.GetRevision()}
		}
		return verify(release, b)
	})
	var crashed crashError
	if errors.As(err, &crashed) {
		release, b, skipped, err = m.directory.Load(verify)
	}
	if errors.Is(err, bundle.ErrEmpty) {
		return nil, nil, err
	}
	if err != nil {
		m.stored, m.current, m.skipped = nil, false, err
		return nil, nil, err
	}
	m.stored, m.current, m.skipped = release, skipped == nil, nil
	if !errors.As(skipped, &crashed) {
		m.skipped = skipped
	}
	return release, b, nil
}

// Boot lets the node serve the last known good bundle from disk. A node without one, or with one that cannot be read
// or served, is left as it is, and the log says why: control has the bundle as well.
func (a *Agent) Boot() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.boot()
}

// boot is called with mu held.
func (a *Agent) boot() {
	release, b, err := a.load()
	again := a.waiting
	a.waiting = false
	switch {
	case errors.Is(err, bundle.ErrEmpty):
		return
	case err != nil:
		a.options.Logger.Error("no bundle on disk can be used; waiting for control's", "reason", err)
		return
	}
	if a.memory.skipped != nil && !again {
		a.options.Logger.Error("passed over a bundle on disk", "reason", a.memory.skipped)
	}
	a.memory.epoch = max(a.memory.epoch, release.GetEpoch())
	prepared, refusals := a.compile(release, b)
	if refusals != nil {
		a.waiting = true
		a.tellRefusals(release, "cannot serve the last known good bundle", refusals)
		return
	}
	a.memory.trial.resume(release)
	a.options.Node.Apply(prepared)
	a.hold(release, b)
	a.refusals = nil
	a.options.Logger.Info("serving the last known good bundle", "revision", release.GetRevision(), "digest", b.Digest().Short())
	if failed := a.memory.trial.failed(); failed != nil && !sameRelease(failed, release) {
		a.tellRefusals(failed, "fell back to the revision before", refusal("", crashError{failed.GetRevision()}))
	}
}

// stood says whether the current bundle on disk is the one that is served, and has stood its trial.
func (a *Agent) stood() bool {
	m := &a.memory
	return m.current && m.unsaved == nil && sameRelease(m.stored, a.options.Node.Applied()) && !m.trial.concerns(m.stored)
}

// save makes a bundle that is served the current one on disk.
func (a *Agent) save(staged *bundle.Staged, release *fleetv1.Release, b *bundle.Bundle, stood bool) {
	m := &a.memory
	if err := staged.Commit(stood); err != nil {
		a.tellUnsaved(release, b, err)
		return
	}
	m.stored, m.current, m.skipped, m.unsaved = release, true, nil, nil
}

func (a *Agent) tellUnsaved(release *fleetv1.Release, b *bundle.Bundle, err error) {
	a.memory.unsaved = &unsaved{release, b, err, a.options.Now().Add(savePause)}
	a.options.Logger.Error("serving a revision that is not on disk: a restart without control would serve the one before",
		"revision", release.GetRevision(), "error", err)
}

// saveWhenDue tries again to save what is served.
func (a *Agent) saveWhenDue() {
	u := a.memory.unsaved
	if u == nil || a.options.Now().Before(u.next) {
		return
	}
	staged, err := a.memory.directory.Stage(u.release, u.bundle, 0)
	if err != nil {
		a.tellUnsaved(u.release, u.bundle, err)
		return
	}
	// The first attempt may have come half way: what is current on disk is not known to be good.
	if a.save(staged, u.release, u.bundle, false); a.memory.unsaved == nil {
		a.options.Logger.Info("the revision that is served is on disk now", "revision", u.release.GetRevision())
	}
}

// notes are what status shows of the node beside its state.
func (a *Agent) notes() []string {
	var notes []string
	m := &a.memory
	switch {
	case m.skipped != nil && m.stored == nil:
		notes = append(notes, fmt.Sprintf("no bundle on its disk can be used: %v", m.skipped))
	case m.skipped != nil:
		notes = append(notes, fmt.Sprintf("the newest bundle on its disk cannot be used, and it serves the one before until control sends another: %v", m.skipped))
	}
	if u := m.unsaved; u != nil {
		notes = append(notes, fmt.Sprintf("revision %d is not on its disk, and a restart without control would serve the one before: %v", u.release.GetRevision(), u.reason))
	}
	if a.giver != "" {
		notes = append(notes, fmt.Sprintf("revision %d is from peer %s: no control was there when it came", a.options.Node.Applied().GetRevision(), a.giver))
	}
	if failed := m.trial.failed(); failed != nil && sameRelease(failed, a.options.Node.Applied()) {
		notes = append(notes, fmt.Sprintf("its process ended %d times within %s of serving revision %d, without being told to; there is no older one on its disk to serve in its place",
			maxCrashes, trialTime, failed.GetRevision()))
	}
	for i := range notes {
		notes[i] = sendable(notes[i])
	}
	return notes
}
