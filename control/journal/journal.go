// Package journal keeps the last things that happened in the cluster, for people who want to see or follow them. It is
// bounded and lies in memory alone: what must not be lost is in the store's history, and a control that starts begins
// anew.
//
// It knows nothing of nodes or revisions beyond the words that it is given, does no I/O and starts no goroutine.
package journal

import (
	"strings"
	"sync"
	"time"
)

// Kind says what sort of thing happened.
type Kind string

// The kinds there are, and what their events are about.
const (
	ControlStarted     Kind = "control-started"      // a control
	ControlConnected   Kind = "control-connected"    // a control that follows the one that tells
	ControlGone        Kind = "control-gone"         // a control whose stream is gone
	NodeEnrolled       Kind = "node-enrolled"        // a node
	NodeConnected      Kind = "node-connected"       // a node
	NodeDisconnected   Kind = "node-disconnected"    // a node whose stream is gone
	NodeLeft           Kind = "node-left"            // a node that said good-bye
	NodeRefused        Kind = "node-refused"         // a node that cannot serve a revision
	NodeNeedsFull      Kind = "node-needs-full"      // a node that a delta did not fit
	NodeInTrouble      Kind = "node-in-trouble"      // a node that reports something of itself that needs somebody
	NodeDraining       Kind = "node-draining"        // a node whose clients are sent elsewhere
	NodeUndrained      Kind = "node-undrained"       // a node that takes them again
	RevisionApplied    Kind = "revision-applied"     // a revision
	RevisionRolledBack Kind = "revision-rolled-back" // the revision that a rollback made
	RevisionRestored   Kind = "revision-restored"    // the revision that another epoch begins with
	RevisionRefused    Kind = "revision-refused"     // a revision that did not come to be
	RevisionIncomplete Kind = "revision-incomplete"  // a revision that not every connected node served in time
	BackendDown        Kind = "backend-down"         // a backend, by the word of one node
	BackendUp          Kind = "backend-up"           // a backend, by the word of one node
)

// Event is one thing that happened.
type Event struct {
	// Sequence counts the events of one journal from 1, without a gap.
	Sequence uint64
	Time     time.Time
	Kind     Kind
	// Subject is what the event is about: a node's name, "revision 7", a backend's address.
	Subject string
	// Message says more, for people.
	Message string
}

// maxText bounds subject and message each, in bytes: some quote what nodes say.
const maxText = 1 << 10

// Journal is safe for concurrent use. A nil one keeps nothing.
type Journal struct {
	now func() time.Time

	mu      sync.Mutex // guards what follows; held for memory work only
	ring    []Event    // the event of sequence n stands at (n-1) % len
	last    uint64
	changed chan struct{} // closed by the next Add; nil: nobody waits
}

// New makes a journal of the last events, of which there are at most size, at least 1. now is the clock.
func New(size int, now func() time.Time) *Journal {
	return &Journal{now: now, ring: make([]Event, max(size, 1))}
}

// Add writes an event down, over the oldest one where there is no more room.
func (j *Journal) Add(kind Kind, subject, message string) {
	if j == nil {
		return
	}
	at := j.now()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	j.ring[(j.last-1)%uint64(len(j.ring))] = Event{j.last, at, kind, clip(subject), clip(message)}
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// clip makes a text one that a message can carry.
func clip(text string) string {
	if len(text) > maxText {
		text = text[:maxText] + "…"
	}
	return strings.ToValidUTF8(text, "")
}

// Recent gives the newest events, at most limit of them, the oldest first, and the sequence number of the last; 0: there
// is none. A limit of 0 gives all that are kept.
func (j *Journal) Recent(limit int) (events []Event, last uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.kept()
	if limit > 0 {
		n = min(n, uint64(limit))
	}
	return j.since(j.last - n), j.last
}

// After gives the events after a sequence number, the oldest first, and how many of them are not kept any more.
func (j *Journal) After(sequence uint64) (events []Event, missed uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if sequence >= j.last {
		return nil, 0
	}
	if first := j.last - j.kept(); sequence < first {
		sequence, missed = first, first-sequence
	}
	return j.since(sequence), missed
}

// Changed gives a channel that is closed by the next Add. Who asks for it before reading misses nothing.
func (j *Journal) Changed() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.changed == nil {
		j.changed = make(chan struct{})
	}
	return j.changed
}

// kept is how many events there are. The caller holds mu.
func (j *Journal) kept() uint64 { return min(j.last, uint64(len(j.ring))) }

// since copies the events after a sequence number, all of which are kept. The caller holds mu.
func (j *Journal) since(sequence uint64) []Event {
	events := make([]Event, 0, j.last-sequence)
	for n := sequence; n < j.last; n++ {
		events = append(events, j.ring[n%uint64(len(j.ring))])
	}
	return events
}
