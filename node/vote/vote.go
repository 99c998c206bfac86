// Package vote is the pure part of health checks that the nodes of a cluster share: which of them probe a backend, what each
// of these says of it, and what follows for all.
//
// It owns the choice of the probers (Members), what one prober says (Vote) and the form in which that travels (Encode and
// Decode), the votes that were heard (Table), and their count (Decide). A vote is one node's word; a verdict, which package
// upstream holds, is what a node goes by. It has no clock, no goroutine, no lock and no I/O: who drives it passes the time in
// and keeps calls apart.
//
// Order of calls: NewTable, Expect for each check that matters here, Merge whatever is heard, Decide on what Table.Of gives.
package vote

import (
	"bytes"
	"cmp"
	"time"
)

// Probers is how many nodes probe one backend. Quorum is how many of them have to agree.
const (
	Probers = 3
	Quorum  = Probers/2 + 1
)

// Slack is what the way through the cluster may take, beside the half of its time by which a repetition may be late.
const Slack = 2 * time.Second

// Key names a check of a backend: a digest over the address, how TLS is spoken and what is probed.
type Key [16]byte

// State is what a prober says.
type State uint8

const (
	// Undecided is no vote at all, and the outcome of a count that no state has won.
	Undecided State = iota
	// Healthy and Unhealthy are what the prober's thresholds made of its probes.
	Healthy
	Unhealthy
	// Unsure is a prober that has reason to doubt itself: it does not count.
	Unsure
)

// String is the word that people are shown.
func (s State) String() string {
	switch s {
	case Healthy:
		return "healthy"
	case Unhealthy:
		return "unhealthy"
	case Unsure:
		return "unsure"
	}
	return "undecided"
}

// Vote is what one prober says of one check. It is a plain value and may be copied.
type Vote struct {
	Key Key
	// Origin is the name of the node that says it.
	Origin string
	// Sequence grows with every vote of an origin on a check, over its restarts too. The highest counts.
	Sequence uint64
	State    State
	// Reason is for people, in a few words, at most MaxReason bytes; empty where there is nothing to explain.
	Reason string
	// Since is when the origin, by its own clock, came to State; whole milliseconds.
	Since time.Time
	// Repeat is how soon the origin will say the same again if nothing happens; whole milliseconds, above 0.
	Repeat time.Duration
	// Heard is when it was said, at the latest, by the clock of who holds the vote.
	Heard time.Time
	// Signed is the message that it came in, with the signature of its origin, for others to whom it is passed on; "": it cannot be.
	Signed string
}

// FreshUntil is when the vote ceases to count.
func (v Vote) FreshUntil() time.Time { return v.Heard.Add(v.Repeat + v.Repeat/2 + Slack) }

// newer decides between two votes of one origin on one check. It is a total order but for equal votes, so that the outcome
// does not depend on the way that they came: by sequence, which is all that honest nodes need, then by what they say. Of two
// that differ in when they were heard alone, the earlier is nearer the truth.
func newer(a, b Vote) bool {
	order := cmp.Or(
		cmp.Compare(a.Sequence, b.Sequence),
		cmp.Compare(a.State, b.State),
		cmp.Compare(a.Reason, b.Reason),
		a.Since.Compare(b.Since),
		cmp.Compare(a.Repeat, b.Repeat),
		b.Heard.Compare(a.Heard),
	)
	return order > 0
}

// sameWords says that two votes differ in their dates alone, so that nothing follows from the second.
func sameWords(a, b Vote) bool { return a.State == b.State && a.Reason == b.Reason }

func compareKeys(a, b Key) int { return bytes.Compare(a[:], b[:]) }
