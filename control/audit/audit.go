// Package audit owns the audit trail: what an entry is, how each is chained to the one before, and how the chain is
// verified. It also carries, with a call's context, who is calling.
//
// It stores nothing and asks nobody: package store appends entries and keeps them, package api begins notes, and whoever
// reads the trail verifies it with [Verify]. A chain shows that an entry was changed, left out or put in; against somebody
// who can write all of it anew, only a hash that was noted elsewhere helps.
//
// The order of calls: [Begin] → [Describe] while the call is done → [Note.Entry] for what is to be kept.
package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"strings"
	"time"
)

// Kept is how many entries a trail keeps; older ones are cut off, and the last of them stays as its anchor.
const Kept = 100_000

// Entry is one line of the trail.
type Entry struct {
	// Sequence counts from 1, without gaps.
	Sequence uint64
	Time     time.Time
	// Actor is who, Role in which role, and Address from where.
	Actor, Role, Address string
	// Method is what was called, What with what, and Outcome "done" or why not.
	Method, What, Outcome string
	// Previous is the hash of the entry before, and Hash this one's.
	Previous, Hash [sha256.Size]byte
}

// Done is the outcome of what was done.
const Done = "done"

// maxText bounds each text of an entry, in bytes.
const maxText = 512

// Check says whether an entry may be kept.
func (e *Entry) Check() error {
	for name, text := range e.texts() {
		if len(text) > maxText {
			return fmt.Errorf("%s of an audit entry is longer than %d bytes", name, maxText)
		}
	}
	return nil
}

func (e *Entry) texts() map[string]string {
	return map[string]string{
		"the actor": e.Actor, "the role": e.Role, "the address": e.Address,
		"the method": e.Method, "what": e.What, "the outcome": e.Outcome,
	}
}

// sum is the entry's hash: over the one before, and every field behind its length, so that no two entries look alike.
func (e *Entry) sum() (out [sha256.Size]byte) {
	h := sha256.New()
	h.Write([]byte("pyserve audit 1\n"))
	h.Write(e.Previous[:])
	number(h, e.Sequence)
	number(h, uint64(e.Time.Unix()))
	number(h, uint64(e.Time.Nanosecond()))
	for _, text := range []string{e.Actor, e.Role, e.Address, e.Method, e.What, e.Outcome} {
		number(h, uint64(len(text)))
		h.Write([]byte(text))
	}
	h.Sum(out[:0])
	return out
}

func number(h hash.Hash, n uint64) {
	h.Write(binary.BigEndian.AppendUint64(nil, n))
}

// Anchor is what the first entry of a trail follows: the last that was cut off, or the zero value.
type Anchor struct {
	Sequence uint64
	Hash     [sha256.Size]byte
}

// Trail is a chain of entries. Entries are appended and cut off, never changed, so that what [Trail.Entries] gave stays
// good. It is not safe for concurrent use.
type Trail struct {
	anchor  Anchor
	entries []Entry
}

// Restore makes a trail of what another one held. It does not verify the chain: a trail that is broken is kept as it is,
// for whoever verifies it to see.
func Restore(anchor Anchor, entries []Entry) Trail { return Trail{anchor, entries} }

// Append adds an entry, whose sequence and hashes are set here.
func (t *Trail) Append(e Entry) {
	head := t.Head()
	e.Sequence, e.Previous = head.Sequence+1, head.Hash
	e.Hash = e.sum()
	t.entries = append(t.entries, e)
	if len(t.entries) > Kept {
		t.anchor = Anchor{t.entries[0].Sequence, t.entries[0].Hash}
		t.entries = t.entries[1:]
	}
}

// Head is the newest entry, as what the next one follows.
func (t *Trail) Head() Anchor {
	if len(t.entries) == 0 {
		return t.anchor
	}
	last := t.entries[len(t.entries)-1]
	return Anchor{last.Sequence, last.Hash}
}

// Entries gives what the trail holds, oldest first, and what the first follows. They are not to be changed.
func (t *Trail) Entries() (Anchor, []Entry) { return t.anchor, t.entries }

// BrokenError says where a chain is broken.
type BrokenError struct {
	// Sequence is the entry that does not fit.
	Sequence uint64
	Reason   string
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("the audit trail is broken at entry %d: %s", e.Sequence, e.Reason)
}

// Verify says whether entries are a whole chain that follows the anchor. It fails with a [*BrokenError].
func Verify(anchor Anchor, entries []Entry) error {
	before := anchor
	for _, e := range entries {
		switch {
		case e.Sequence != before.Sequence+1:
			return &BrokenError{before.Sequence + 1, fmt.Sprintf("it is missing, entry %d follows entry %d", e.Sequence, before.Sequence)}
		case e.Previous != before.Hash:
			return &BrokenError{e.Sequence, "it follows another entry than the one before it"}
		case e.Hash != e.sum():
			return &BrokenError{e.Sequence, "it was changed"}
		}
		before = Anchor{e.Sequence, e.Hash}
	}
	return nil
}

// clip bounds a text, and takes off what a message cannot carry.
func clip(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= maxText {
		return text
	}
	return strings.ToValidUTF8(text[:maxText-len("…")], "") + "…"
}
