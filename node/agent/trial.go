package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

const (
	// trialTime is how long a release has to be served before it counts as good.
	trialTime = 30 * time.Second
	// maxCrashes is how often the process may end in that time before the release is given up.
	maxCrashes = 2
)

// trial knows which release is on trial and keeps the mark of that on disk. A release begins its trial when it is swapped
// in, and goes on with it when it is served from the disk again; it ends it by being served for trialTime. A process that
// ends meanwhile, other than by being told to, is held against the release.
type trial struct {
	directory *bundle.Directory
	now       func() time.Time
	logger    *slog.Logger

	mu    sync.Mutex    // guards what follows, and the mark on disk
	mark  *bundle.Trial // as it lies on disk; nil: nothing is on trial
	since time.Time     // when this process began to serve it; zero: it does not
}

// openTrial reads the mark. One that is damaged is as good as none: it must not keep a node from serving.
func openTrial(directory *bundle.Directory, now func() time.Time, logger *slog.Logger) *trial {
	t := &trial{directory: directory, now: now, logger: logger}
	mark, err := directory.Trial()
	if err != nil {
		logger.Error("passed over the mark of a trial: crashes of the last bundle are not counted", "reason", err)
		return t
	}
	t.mark = mark
	return t
}

// failed gives the release that ended the process too often; nil: none.
func (t *trial) failed() *fleetv1.Release {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mark == nil {
		return nil
	}
	crashes := t.mark.Tries
	if !t.since.IsZero() {
		crashes-- // this one goes on
	}
	if crashes < maxCrashes {
		return nil
	}
	return t.mark.Release
}

// concerns says whether release is on trial.
func (t *trial) concerns(release *fleetv1.Release) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.isMarked(release)
}

// isMarked is called with mu held.
func (t *trial) isMarked(release *fleetv1.Release) bool {
	return t.mark != nil && sameRelease(t.mark.Release, release)
}

// tries is which one it will be when release is swapped in next.
func (t *trial) tries(release *fleetv1.Release) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isMarked(release) {
		return t.mark.Tries + 1
	}
	return 1
}

// begin is called before a release is swapped in that has not been served from this disk before.
func (t *trial) begin(release *fleetv1.Release, staged *bundle.Staged, tries uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := staged.BeginTrial(); err != nil {
		t.tellUncounted(release, err)
		return
	}
	t.mark, t.since = &bundle.Trial{Release: release, Tries: tries}, t.now()
}

// resume is called before a release is served from the disk. Only one that was on trial still is.
func (t *trial) resume(release *fleetv1.Release) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.isMarked(release) {
		return
	}
	t.since = t.now()
	t.save(t.mark.Tries + 1)
}

// save is called with mu held.
func (t *trial) save(tries uint64) {
	mark := &bundle.Trial{Release: t.mark.Release, Tries: tries}
	if err := t.directory.SaveTrial(*mark); err != nil {
		t.tellUncounted(mark.Release, err)
		return
	}
	t.mark = mark
}

func (t *trial) tellUncounted(release *fleetv1.Release, err error) {
	t.logger.Error("cannot keep count of this revision's crashes", "revision", release.GetRevision(), "error", err)
}

// watch ends the trial when its time is over, until ctx ends.
func (t *trial) watch(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			t.endWhenDue()
		case <-ctx.Done():
			t.pause()
			return
		}
	}
}

// endWhenDue ends the trial of a release that was served for long enough.
func (t *trial) endWhenDue() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since.IsZero() || t.now().Sub(t.since) < trialTime {
		return
	}
	if err := t.directory.ClearTrial(); err != nil {
		t.since = t.now() // tried again, and told again, after as long
		t.logger.Error("a revision has stood its trial, and its mark stays on disk", "revision", t.mark.Release.GetRevision(), "error", err)
		return
	}
	t.logger.Debug("a revision has stood its trial", "revision", t.mark.Release.GetRevision())
	t.mark, t.since = nil, time.Time{}
}

// pause is for a process that is told to end. What is on trial stays so and begins anew at the next start: who stops and
// starts a node wants it to try again.
func (t *trial) pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since = time.Time{}
	if t.mark != nil && t.mark.Tries > 0 {
		t.save(0)
	}
}

// withdraw takes the mark of a release back that was not swapped in after all.
func (t *trial) withdraw(release *fleetv1.Release) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.isMarked(release) {
		return
	}
	t.mark, t.since = nil, time.Time{}
	if err := t.directory.ClearTrial(); err != nil {
		t.tellUncounted(release, err)
	}
}

func sameRelease(a, b *fleetv1.Release) bool {
	return a.GetEpoch() == b.GetEpoch() && a.GetRevision() == b.GetRevision() && bytes.Equal(a.GetDigest(), b.GetDigest())
}

// crashError is why a release is passed over that ended the process too often.
type crashError struct{ revision uint64 }

func (e crashError) Error() string {
	return fmt.Sprintf("this node's process ended %d times within %s of serving revision %d, without being told to; it is refused until another revision is applied, or the node is stopped and started",
		maxCrashes, trialTime, e.revision)
}
