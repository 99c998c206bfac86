package audit

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Note is what will be an entry once it is known what became of a call. A nil Note takes everything and keeps nothing.
type Note struct {
	mu      sync.Mutex // guards what follows
	entry   Entry
	kept    bool
	skipped bool
}

type noteKey struct{}

// Begin gives a context that carries a note of who calls what.
func Begin(ctx context.Context, actor, role, address, method string) (context.Context, *Note) {
	n := &Note{entry: Entry{Actor: clip(actor), Role: clip(role), Address: clip(address), Method: clip(method)}}
	return context.WithValue(ctx, noteKey{}, n), n
}

// From gives the context's note; nil: nobody asked for what is done.
func From(ctx context.Context) *Note {
	n, _ := ctx.Value(noteKey{}).(*Note)
	return n
}

// Describe says with what the call was made.
func Describe(ctx context.Context, format string, args ...any) {
	From(ctx).set(func(n *Note) { n.entry.What = clip(fmt.Sprintf(format, args...)) })
}

// Name says who calls, where no certificate told.
func Name(ctx context.Context, actor, role string) {
	From(ctx).set(func(n *Note) { n.entry.Actor, n.entry.Role = clip(actor), clip(role) })
}

// Skip says that the call changes nothing, whatever becomes of it.
func Skip(ctx context.Context) { From(ctx).set(func(n *Note) { n.skipped = true }) }

// Conclude says what became of a call that changed nothing.
func Conclude(ctx context.Context, outcome string) {
	From(ctx).set(func(n *Note) { n.entry.Outcome = clip(outcome) })
}

func (n *Note) set(change func(*Note)) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	change(n)
}

// Entry gives the entry of a call that is done now, for the write that does it; false: there is none, or it has been kept.
// A call that writes twice is one entry, with the first.
func (n *Note) Entry(now time.Time) (Entry, bool) {
	if n == nil {
		return Entry{}, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.entry
	e.Time, e.Outcome = now.UTC(), Done
	return e, !n.kept
}

// Described says whether it was told with what the call was made.
func (n *Note) Described() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.entry.What != ""
}

// Keep says that the entry is in the trail.
func (n *Note) Keep() { n.set(func(n *Note) { n.kept = true }) }

// Refused gives the entry of a call that is over and is not in the trail; false: it is, or need not be. reason is why it
// was refused; empty where the call itself said so with [Conclude].
func (n *Note) Refused(now time.Time, reason string) (Entry, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.entry
	e.Time = now.UTC()
	switch {
	case reason != "":
		e.Outcome = clip(reason)
	case e.Outcome == "":
		e.Outcome = Done
	}
	return e, !n.kept && !n.skipped
}
