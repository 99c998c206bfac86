// Package rollout decides how one new bundle goes to the fleet: every connected node prepares it first; only when all
// of them could is it committed; one refusal stops it while nobody has changed.
//
// It is a pure machine: it holds no connection, reads no clock and starts no goroutine. Its driver tells it what was
// seen of each node ([Rollout.Observe]), that a phase's time is up ([Rollout.Expire]), and does what
// [Rollout.Next] says. A Rollout is not safe for concurrent use.
package rollout

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// State is how far one node is with the bundle.
type State uint8

// The states of a node, in the order in which it passes them; the last four end its part in the rollout.
const (
	// Offered: the bundle is on its way or being prepared.
	Offered State = iota
	// Prepared: the node could serve it.
	Prepared
	// Committed: the node serves it.
	Committed
	// Refused: the node could not serve it.
	Refused
	// Away: the node's stream is gone; it takes the newest bundle when it returns.
	Away
	// TimedOut: the node did not answer in its phase's time.
	TimedOut
)

// Step is what the driver is to do next.
type Step uint8

const (
	// Wait for more to be seen.
	Wait Step = iota
	// Commit: every node that is still there has prepared. Store the revision, then let the nodes serve it and call
	// [Rollout.BeginCommit].
	Commit
	// Abort: a node refused or was too slow, or all went away. Nobody has changed; let all drop what they prepared.
	Abort
	// Finished: every node has committed, or is out of the rollout.
	Finished
)

// Rollout is one bundle's way to the nodes that were connected when it began.
type Rollout struct {
	nodes      map[string]*node
	committing bool
}

type node struct {
	state State
	note  string
}

// New begins a rollout to the named nodes. With none, Next says Commit at once.
func New(names []string) *Rollout {
	r := &Rollout{nodes: make(map[string]*node, len(names))}
	for _, name := range names {
		r.nodes[name] = &node{}
	}
	return r
}

// Observe takes in what was seen of a node and says whether that is news. Nodes that are not part of the rollout, and
// states that a node has passed already, are no news.
func (r *Rollout) Observe(name string, state State, note string) bool {
	n, ok := r.nodes[name]
	if !ok || n.state == state || !r.follows(n.state, state) {
		return false
	}
	n.state, n.note = state, note
	return true
}

// follows says whether a node in one state can be seen in the other next. A node that was away may return and commit;
// one that refused or was late in the prepare phase has ended the rollout already.
func (r *Rollout) follows(from, to State) bool {
	switch from {
	case Offered:
		return true
	case Prepared:
		return to != Offered
	case Away, TimedOut:
		return r.committing && to == Committed
	default:
		return false
	}
}

// Next says what to do now.
func (r *Rollout) Next() Step {
	if r.committing {
		return r.nextCommitting()
	}
	waiting := false
	for _, n := range r.nodes {
		switch n.state {
		case Refused, TimedOut:
			return Abort
		case Offered:
			waiting = true
		}
	}
	switch {
	case waiting:
		return Wait
	case r.allWentAway():
		return Abort
	}
	return Commit
}

// allWentAway says that nobody is left of those who were asked: the bundle itself may be what took them down, and no
// one has said that it can be served.
func (r *Rollout) allWentAway() bool {
	return len(r.nodes) > 0 && len(r.In(Away)) == len(r.nodes)
}

func (r *Rollout) nextCommitting() Step {
	for _, n := range r.nodes {
		if n.state == Offered || n.state == Prepared {
			return Wait
		}
	}
	return Finished
}

// BeginCommit enters the second phase, after the revision was stored.
func (r *Rollout) BeginCommit() { r.committing = true }

// Expire ends a phase's time: whoever has not done its part is TimedOut. It names them, sorted.
func (r *Rollout) Expire() []string {
	var late []string
	for name, n := range r.nodes {
		if n.state == Offered || n.state == Prepared && r.committing {
			n.state, n.note = TimedOut, r.lateNote()
			late = append(late, name)
		}
	}
	slices.Sort(late)
	return late
}

func (r *Rollout) lateNote() string {
	if r.committing {
		return "did not confirm in time that it serves the revision"
	}
	return "did not say in time whether it can serve the revision"
}

// State gives a node's state and note.
func (r *Rollout) State(name string) (State, string) {
	n, ok := r.nodes[name]
	if !ok {
		return Away, ""
	}
	return n.state, n.note
}

// Names gives the nodes of the rollout, sorted.
func (r *Rollout) Names() []string { return slices.Sorted(maps.Keys(r.nodes)) }

// In gives the names of the nodes in a state, sorted.
func (r *Rollout) In(state State) []string {
	var names []string
	for _, name := range r.Names() {
		if r.nodes[name].state == state {
			names = append(names, name)
		}
	}
	return names
}

// Complete says whether every node that is still connected serves the bundle.
func (r *Rollout) Complete() bool {
	return len(r.In(Refused)) == 0 && len(r.In(TimedOut)) == 0 && len(r.In(Offered)) == 0 && len(r.In(Prepared)) == 0
}

// Reason is one sentence on why the rollout stopped or is incomplete, naming nodes; empty where there is none.
func (r *Rollout) Reason() string {
	if !r.committing && r.allWentAway() {
		return "every node went away while it prepared the revision, which may be what took them down"
	}
	var parts []string
	for _, state := range []State{Refused, TimedOut} {
		for _, name := range r.In(state) {
			if len(parts) == 3 {
				return strings.Join(parts, "; ") + "; and more"
			}
			parts = append(parts, fmt.Sprintf("node %s %s", name, describe(state, r.nodes[name].note)))
		}
	}
	return strings.Join(parts, "; ")
}

func describe(state State, note string) string {
	if state == Refused {
		return "refuses it: " + note
	}
	return note
}
