package agent

import (
	"fmt"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// candidate is a bundle that the node could serve and that lies on its disk, beside what is served. Whether control's
// stream or a peer brought it makes no difference.
type candidate struct {
	release    *fleetv1.Release
	bundle     *bundle.Bundle
	generation *node.Generation
	staged     *bundle.Staged
	tries      uint64 // which one it is
}

// isOlder says that a release comes before the one that is served, in the same history. Going back is a new revision; an older
// one comes from a control that has forgotten.
func isOlder(offered, served *fleetv1.Release) bool {
	return served != nil && offered.GetEpoch() == served.GetEpoch() && offered.GetRevision() < served.GetRevision()
}

// ready makes a candidate of a bundle that control signed. Refusals are nil if it could.
func (a *Agent) ready(release *fleetv1.Release, b *bundle.Bundle) (*candidate, []*fleetv1.Refusal) {
	switch served := a.options.Node.Applied(); {
	case release.GetEpoch() < a.memory.epoch:
		return nil, refusal("", fmt.Errorf("the bundle is of epoch %d, and the node has one of epoch %d: control has lost what it stored since; pyservectl restore begins a higher epoch", release.GetEpoch(), a.memory.epoch))
	case isOlder(release, served):
		return nil, refusal("", fmt.Errorf("the node serves revision %d of the same epoch, which this control does not know: it has lost what it had stored; restore a backup, which begins another epoch",
			served.GetRevision()))
	}
	if failed := a.memory.trial.failed(); failed != nil && sameRelease(failed, release) {
		return nil, refusal("", crashError{release.GetRevision()})
	}
	generation, refusals := a.compile(release, b)
	if refusals != nil {
		return nil, refusals
	}
	tries := a.memory.trial.tries(release)
	staged, err := a.memory.directory.Stage(release, b, tries)
	if err != nil {
		a.options.Node.Discard(generation)
		return nil, refusal("--data-dir", withAdvice(err))
	}
	return &candidate{release, b, generation, staged, tries}, nil
}

// serve swaps a candidate in, and says whether it did: a node that drains meanwhile does not. The mark of its trial comes
// before the swap, so that a crash right after it counts. The bundle's place on disk comes after: a node whose disk fails
// now serves what the fleet serves, and says so.
func (a *Agent) serve(c *candidate) bool {
	stood := a.stood()
	a.memory.trial.begin(c.release, c.staged, c.tries)
	a.options.Node.Apply(c.generation)
	if a.options.Node.Applied() != c.release {
		a.memory.trial.withdraw(c.release)
		c.staged.Discard()
		return false
	}
	a.memory.epoch, a.waiting = c.release.GetEpoch(), false
	a.hold(c.release, c.bundle)
	a.save(c.staged, c.release, c.bundle, stood)
	a.options.Logger.Info("serving a new revision", "revision", c.release.GetRevision(), "digest", c.bundle.Digest().Short())
	return true
}

// holding is what the node serves, for whoever asks from another goroutine.
type holding struct {
	release *fleetv1.Release
	bundle  *bundle.Bundle
}

// hold notes what is served.
func (a *Agent) hold(release *fleetv1.Release, b *bundle.Bundle) {
	a.applied = b
	a.held.Store(&holding{release, b})
}

// Served gives what the node serves; nil: nothing. It may be called from any goroutine.
func (a *Agent) Served() (*fleetv1.Release, *bundle.Bundle) {
	h := a.held.Load()
	if h == nil {
		return nil, nil
	}
	return h.release, h.bundle
}

// Holding gives what the node serves, for its peers; nil: nothing, or a control is there, which they can ask: it knows who
// was revoked since, and the node does not. It may be called from any goroutine.
func (a *Agent) Holding() (*fleetv1.Release, *bundle.Bundle) {
	h := a.held.Load()
	if h == nil || a.attended.Load() {
		return nil, nil
	}
	return h.release, h.bundle
}
