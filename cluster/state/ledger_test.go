package state

import (
	"testing"
	"time"
)

var n1 = Origin{RoleNode, "n1"}

func TestEachMessageIsNewsOnce(t *testing.T) {
	l := NewLedger()
	l.Note(n1, 5, epoch)
	for what, c := range map[string]struct {
		origin   Origin
		sequence uint64
		news     bool
	}{
		"the same": {n1, 5, false}, "an older one": {n1, 4, true}, "a newer one": {n1, 6, true},
		"another origin's": {Origin{RoleNode, "n2"}, 5, true}, "one of another role": {Origin{RoleControl, "n1"}, 5, true},
	} {
		if got := l.IsNews(c.origin, c.sequence); got != c.news {
			t.Errorf("%s: news is %v", what, got)
		}
	}
	l.Forget(n1)
	if !l.IsNews(n1, 5) {
		t.Error("a forgotten origin is remembered")
	}
}

func TestTheLedgerIsBoundedAndForgetsTheOldest(t *testing.T) {
	l := NewLedger()
	for i := range uint64(3 * maxHeard) {
		l.Note(n1, 10*i, epoch)
	}
	if l.Len() != maxHeard {
		t.Errorf("%d messages are remembered", l.Len())
	}
	last := uint64(10 * (3*maxHeard - 1))
	for sequence, news := range map[uint64]bool{0: false, 15: false, last: false, last - 5: true, last + 5: true} {
		if l.IsNews(n1, sequence) != news {
			t.Errorf("message %d of %d is news: %v", sequence, last, !news)
		}
	}
}

// Microseconds between two sequences have passed between what was said, and more since.
func TestAMessageIsAsOldAsWhatItsOriginSaidSince(t *testing.T) {
	l := NewLedger()
	second := uint64(time.Second / time.Microsecond)
	if age := l.Age(n1, 0, epoch); age != 0 {
		t.Errorf("of an origin that was never heard: %v", age)
	}
	l.Note(n1, 100*second, epoch)
	l.Note(n1, 90*second, epoch.Add(time.Second)) // came late, and says nothing of the latest
	for sequence, want := range map[uint64]time.Duration{
		101 * second: 0, 100 * second: 3 * time.Second, 95 * second: 8 * time.Second, 0: 103 * time.Second,
	} {
		if age := l.Age(n1, sequence, epoch.Add(3*time.Second)); age != want {
			t.Errorf("message %d is %v old, want %v", sequence/second, age, want)
		}
	}
	l.Note(n1, 1<<63, epoch)
	if age := l.Age(n1, 0, epoch); age != maxAge {
		t.Errorf("an age has no bound: %v", age)
	}
}
