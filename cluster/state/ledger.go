package state

import (
	"slices"
	"time"
)

// maxHeard is how many messages of one origin are remembered, the latest: more than any has in force at one time.
const maxHeard = 2048

// Ledger remembers which messages of each origin were heard, so that each is news once however often it comes, and when the
// latest was. It is not safe for concurrent use.
type Ledger struct {
	origins map[Origin]*heard
}

// heard are the messages of one origin.
type heard struct {
	sequences []uint64 // in order
	floor     uint64   // the highest that is remembered no more
	at        time.Time
}

// NewLedger makes an empty ledger.
func NewLedger() *Ledger { return &Ledger{origins: make(map[Origin]*heard)} }

// IsNews tells whether a message of the origin was not noted yet. One that is older than all that are remembered counts as
// noted.
func (l *Ledger) IsNews(o Origin, sequence uint64) bool {
	h := l.origins[o]
	if h == nil {
		return true
	}
	_, known := slices.BinarySearch(h.sequences, sequence)
	return !known && sequence > h.floor
}

// Note remembers a message that was proved to be the origin's. Of too many the oldest is forgotten.
func (l *Ledger) Note(o Origin, sequence uint64, now time.Time) {
	h := l.origins[o]
	if h == nil {
		h = &heard{}
		l.origins[o] = h
	}
	at, known := slices.BinarySearch(h.sequences, sequence)
	if known {
		return
	}
	h.sequences = slices.Insert(h.sequences, at, sequence)
	if at == len(h.sequences)-1 {
		h.at = now
	}
	if len(h.sequences) > maxHeard {
		h.floor = h.sequences[0]
		h.sequences = slices.Delete(h.sequences, 0, 1)
	}
}

// Age is how old a message of the origin is at least: what it has said since was said later, by its own clock. 0: nothing later
// was heard. Who passes messages on cannot make them younger than that.
func (l *Ledger) Age(o Origin, sequence uint64, now time.Time) time.Duration {
	h := l.origins[o]
	if h == nil {
		return 0
	}
	latest := h.sequences[len(h.sequences)-1]
	if sequence > latest {
		return 0
	}
	between := time.Duration(min(latest-sequence, uint64(maxAge.Microseconds()))) * time.Microsecond
	return min(between+now.Sub(h.at), maxAge)
}

// Forget drops all that is remembered of an origin.
func (l *Ledger) Forget(o Origin) { delete(l.origins, o) }

// Len counts what is remembered.
func (l *Ledger) Len() (n int) {
	for _, h := range l.origins {
		n += len(h.sequences)
	}
	return n
}
