package audit

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var someTime = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func trailOf(n int) *Trail {
	t := &Trail{}
	for i := range n {
		t.Append(Entry{
			Time: someTime.Add(time.Duration(i)), Actor: fmt.Sprint("actor", i), Role: "admin", Address: "127.0.0.1:1",
			Method: "Apply", What: fmt.Sprint("revision ", i), Outcome: Done,
		})
	}
	return t
}

func TestChainIsWhole(t *testing.T) {
	for _, n := range []int{0, 1, 100} {
		anchor, entries := trailOf(n).Entries()
		if err := Verify(anchor, entries); err != nil || len(entries) != n {
			t.Errorf("%d entries, %v", len(entries), err)
		}
	}
}

func TestEveryChangeOfAnEntryIsNoticedWhereItWasMade(t *testing.T) {
	for name, change := range map[string]func(*Entry){
		"time":          func(e *Entry) { e.Time = e.Time.Add(1) },
		"actor":         func(e *Entry) { e.Actor = "eve" },
		"role":          func(e *Entry) { e.Role = "viewer" },
		"address":       func(e *Entry) { e.Address = "" },
		"method":        func(e *Entry) { e.Method = "Diff" },
		"what":          func(e *Entry) { e.What += "0" },
		"outcome":       func(e *Entry) { e.Outcome = "refused" },
		"moved letters": func(e *Entry) { e.Method, e.What = e.Method+e.What[:1], e.What[1:] },
		"hash":          func(e *Entry) { e.Hash[3] ^= 1 },
		"previous":      func(e *Entry) { e.Previous[3] ^= 1 },
		"sequence":      func(e *Entry) { e.Sequence += 7 },
	} {
		for _, at := range []int{0, 5, 9} {
			anchor, entries := trailOf(10).Entries()
			entries = slices.Clone(entries)
			change(&entries[at])
			checkBroken(t, name, Verify(anchor, entries), uint64(at+1))
		}
	}
}

func checkBroken(t *testing.T, name string, err error, at uint64) {
	t.Helper()
	var broken *BrokenError
	if !errors.As(err, &broken) || broken.Sequence != at || !strings.Contains(err.Error(), fmt.Sprint("entry ", at)) {
		t.Errorf("%s: got %v, want it broken at %d", name, err, at)
	}
}

func TestMissingMovedAndInsertedEntriesAreNoticed(t *testing.T) {
	anchor, entries := trailOf(10).Entries()
	_, others := trailOf(11).Entries()
	checkBroken(t, "left out", Verify(anchor, slices.Delete(slices.Clone(entries), 4, 5)), 5)
	checkBroken(t, "the first left out", Verify(anchor, entries[1:]), 1)
	swapped := slices.Clone(entries)
	swapped[2], swapped[3] = swapped[3], swapped[2]
	checkBroken(t, "swapped", Verify(anchor, swapped), 3)
	checkBroken(t, "put in", Verify(anchor, slices.Insert(slices.Clone(entries), 6, others[10])), 7)
	// An entry that was changed with its own hash made anew breaks the next.
	forged := slices.Clone(entries)
	forged[4].Actor = "eve"
	forged[4].Hash = forged[4].sum()
	checkBroken(t, "forged", Verify(anchor, forged), 6)
	checkBroken(t, "another anchor", Verify(Anchor{0, [32]byte{1}}, entries), 1)
}

func TestOldEntriesAreCutOffAndTheirChainIsKept(t *testing.T) {
	trail := trailOf(Kept + 25)
	anchor, entries := trail.Entries()
	if len(entries) != Kept || anchor.Sequence != 25 || entries[0].Sequence != 26 || trail.Head().Sequence != Kept+25 {
		t.Fatalf("%d entries after %d", len(entries), anchor.Sequence)
	}
	if err := Verify(anchor, entries); err != nil {
		t.Error(err)
	}
	again := Restore(anchor, entries)
	again.Append(Entry{Time: someTime, Actor: "next"})
	anchor, entries = again.Entries()
	if err := Verify(anchor, entries); err != nil || anchor.Sequence != 26 {
		t.Errorf("after %d: %v", anchor.Sequence, err)
	}
	empty := Restore(Anchor{7, [32]byte{9}}, nil)
	empty.Append(Entry{Time: someTime})
	if anchor, entries := empty.Entries(); Verify(anchor, entries) != nil || entries[0].Sequence != 8 {
		t.Error("an empty trail does not go on from its anchor")
	}
}

func TestEntryThatIsTooLongIsNotKept(t *testing.T) {
	e := Entry{What: strings.Repeat("x", maxText+1)}
	if e.Check() == nil {
		t.Error("it was taken")
	}
}

func TestNoteBecomesOneEntry(t *testing.T) {
	ctx, n := Begin(t.Context(), "alice", "editor", "10.0.0.1:5", "Apply")
	Describe(ctx, "revision %d", 3)
	e, ok := From(ctx).Entry(someTime)
	if !ok || e.Actor != "alice" || e.What != "revision 3" || e.Outcome != Done || !e.Time.Equal(someTime) {
		t.Errorf("got %+v, %t", e, ok)
	}
	n.Keep()
	if _, ok := n.Entry(someTime); ok {
		t.Error("a second write is a second entry")
	}
	if _, ok := n.Refused(someTime, "late"); ok {
		t.Error("what was done is refused as well")
	}
}

func TestNoteOfWhatWasNotDone(t *testing.T) {
	ctx, n := Begin(t.Context(), "alice", "editor", "", "Apply")
	Name(ctx, "bob", "viewer")
	if e, ok := n.Refused(someTime, "no"); !ok || e.Outcome != "no" || e.Actor != "bob" || n.Described() {
		t.Errorf("got %+v, %t", e, ok)
	}
	Conclude(ctx, "unchanged")
	if e, ok := n.Refused(someTime, ""); !ok || e.Outcome != "unchanged" {
		t.Errorf("got %+v, %t", e, ok)
	}
	Skip(ctx)
	if _, ok := n.Refused(someTime, ""); ok {
		t.Error("a dry run is kept")
	}
	long, n := Begin(t.Context(), strings.Repeat("é", maxText), "", "", "\xff")
	Describe(long, "%s", strings.Repeat("x", 10*maxText))
	if e, _ := n.Entry(someTime); e.Check() != nil || e.Method != "\uFFFD" {
		t.Errorf("got %+v", e)
	}
}

func TestWithoutANoteNothingIsKept(t *testing.T) {
	Describe(t.Context(), "x")
	Conclude(t.Context(), "x")
	From(t.Context()).Keep()
	if _, ok := From(t.Context()).Entry(someTime); ok {
		t.Error("there is an entry")
	}
}
