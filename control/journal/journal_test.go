package journal

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sequences(events []Event) string {
	var out []string
	for _, e := range events {
		out = append(out, fmt.Sprint(e.Sequence))
	}
	return strings.Join(out, " ")
}

func TestEventsComeInOrderWithTheirTime(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	j := New(10, func() time.Time { at = at.Add(time.Second); return at })
	j.Add(NodeConnected, "n1", "hello")
	j.Add(NodeLeft, "n2", "")
	events, last := j.Recent(0)
	want := Event{1, time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC), NodeConnected, "n1", "hello"}
	if last != 2 || len(events) != 2 || events[0] != want || events[1].Subject != "n2" {
		t.Errorf("got %+v, last %d", events, last)
	}
}

func TestOnlyTheLastEventsAreKept(t *testing.T) {
	j := New(3, time.Now)
	if events, last := j.Recent(0); len(events) != 0 || last != 0 {
		t.Errorf("of nothing: %v, %d", events, last)
	}
	if events, missed := j.After(0); events != nil || missed != 0 {
		t.Errorf("of nothing: %v, %d", events, missed)
	}
	for range 5 {
		j.Add(NodeConnected, "n", "")
	}
	for limit, want := range map[int]string{0: "3 4 5", 2: "4 5", 9: "3 4 5"} {
		if events, last := j.Recent(limit); sequences(events) != want || last != 5 {
			t.Errorf("the recent %d are %s, want %s", limit, sequences(events), want)
		}
	}
	for after, want := range map[uint64]string{0: "3 4 5, 2 missed", 1: "3 4 5, 1 missed", 2: "3 4 5, 0 missed", 4: "5, 0 missed", 5: ", 0 missed", 99: ", 0 missed"} {
		events, missed := j.After(after)
		if got := fmt.Sprintf("%s, %d missed", sequences(events), missed); got != want {
			t.Errorf("after %d: %s, want %s", after, got, want)
		}
	}
}

// Whatever a reader's pace, what it gets and what it is told to have missed is all that happened.
func TestAReaderKnowsHowManyItMissed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := New(rapid.IntRange(1, 8).Draw(t, "size"), time.Now)
		var at, added uint64
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			for range rapid.IntRange(0, 12).Draw(t, "events") {
				j.Add(NodeConnected, "n", "")
				added++
			}
			events, missed := j.After(at)
			if at+missed+uint64(len(events)) != added {
				t.Fatalf("after %d of %d: %d events and %d missed", at, added, len(events), missed)
			}
			for i, e := range events {
				if e.Sequence != at+missed+uint64(i)+1 {
					t.Fatalf("event %d has the sequence number %d", i, e.Sequence)
				}
			}
			at = added
		}
	})
}

func TestReadersAreWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := New(4, time.Now)
		var readers sync.WaitGroup
		for range 3 {
			readers.Go(func() {
				for at := uint64(0); at < 9; {
					changed := j.Changed()
					events, missed := j.After(at)
					at += missed + uint64(len(events))
					if len(events) == 0 {
						<-changed
					}
				}
			})
		}
		for range 9 {
			j.Add(BackendUp, "b", "")
			synctest.Wait()
		}
		readers.Wait()
	})
}

func TestTextsAreBounded(t *testing.T) {
	j := New(1, time.Now)
	j.Add(NodeRefused, strings.Repeat("n", maxText+1), strings.Repeat("é", maxText)+"\xff")
	events, _ := j.Recent(0)
	if e := events[0]; len(e.Subject) > maxText+len("…") || len(e.Message) > maxText+len("…") || !utf8.ValidString(e.Message) {
		t.Errorf("%d and %d bytes", len(e.Subject), len(e.Message))
	}
	var none *Journal
	none.Add(NodeLeft, "n", "") // keeps nothing
}
