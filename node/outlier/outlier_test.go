package outlier

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(d time.Duration) func() time.Time { return func() time.Time { return epoch.Add(d) } }

var usual = Policy{
	Consecutive: 3, Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxEjection: 5 * time.Minute, MaxEjectionPercent: 50,
}

func ids(n int) []ID {
	all := make([]ID, n)
	for i := range all {
		all[i][0] = byte(i + 1)
	}
	return all
}

func detector(p Policy, n int) (*Detector, []*Record) {
	d := New()
	d.Update(p, ids(n))
	records := make([]*Record, n)
	for i, id := range ids(n) {
		records[i] = d.Record(id)
	}
	return d, records
}

func stands(d *Detector, r *Record) bool {
	_, yes := d.Ejection(r)
	return yes
}

// fail lets n requests fail.
func fail(d *Detector, r *Record, n int, when time.Duration) (ejected bool) {
	for range n {
		ejected = d.Observe(r, Answered, at(when)) || ejected
	}
	return ejected
}

func TestFailuresInARowEject(t *testing.T) {
	d, r := detector(usual, 4)
	fail(d, r[0], 2, 0)
	d.Observe(r[0], Fine, nil)
	if fail(d, r[0], 2, 0) {
		t.Fatal("ejected after two failures in a row")
	}
	if !fail(d, r[0], 1, time.Second) {
		t.Fatal("not ejected after three failures in a row")
	}
	e, _ := d.Ejection(r[0])
	want := Ejection{Reason: "3 failures in a row", Since: epoch.Add(time.Second), Until: epoch.Add(31 * time.Second), Shared: true}
	if e != want || d.Next() != want.Until {
		t.Errorf("%+v, next %v", e, d.Next())
	}
}

func TestAShareOfFailuresEjects(t *testing.T) {
	p := usual
	p.Consecutive, p.FailurePercent, p.MinimumRequests = 0, 50, 10
	d, r := detector(p, 4)
	for i := range 4 {
		fail(d, r[0], 1, time.Duration(i))
		d.Observe(r[0], Fine, nil)
	}
	if stands(d, r[0]) {
		t.Fatal("ejected before enough requests have ended")
	}
	d.Observe(r[0], Fine, nil)
	if !fail(d, r[0], 1, time.Second) {
		t.Fatal("5 of 10 failed, and it is not ejected")
	}
	if e, _ := d.Ejection(r[0]); e.Reason != "5 of 10 requests failed" {
		t.Errorf("%q", e.Reason)
	}
}

func TestAShareIsThatOfOneInterval(t *testing.T) {
	p := usual
	p.Consecutive, p.FailurePercent, p.MinimumRequests = 0, 50, 10
	d, r := detector(p, 4)
	for i := range 30 {
		if fail(d, r[0], 1, time.Duration(i)*2*time.Second) {
			t.Fatalf("ejected by failures that are far apart, with the %dth", i+1)
		}
	}
}

func TestEachEjectionLastsLongerUntilTheBackendHasBehaved(t *testing.T) {
	d, r := detector(usual, 4)
	now := time.Duration(0)
	eject := func() time.Duration {
		t.Helper()
		if !fail(d, r[0], 3, now) {
			t.Fatal("not ejected")
		}
		e, _ := d.Ejection(r[0])
		return e.Until.Sub(e.Since)
	}
	for i, want := range []time.Duration{30 * time.Second, time.Minute, 90 * time.Second} {
		if got := eject(); got != want {
			t.Fatalf("ejection %d lasts %v, want %v", i+1, got, want)
		} else if d.Return(epoch.Add(now + got - 1)) {
			t.Fatal("it returned too early")
		} else if now += got; !d.Return(epoch.Add(now)) {
			t.Fatal("it did not return")
		}
	}
	now += 2 * usual.Interval // two of three are taken back
	if got := eject(); got != time.Minute {
		t.Errorf("after a good time an ejection lasts %v", got)
	}
	now += time.Minute
	d.Return(epoch.Add(now))
	for range 20 {
		if got := eject(); got > usual.MaxEjection {
			t.Fatalf("an ejection lasts %v", got)
		} else {
			now += got
		}
		d.Return(epoch.Add(now))
	}
}

func TestNoMoreAreEjectedThanThePolicyAllows(t *testing.T) {
	for _, c := range []struct{ backends, percent, want int }{{1, 50, 0}, {2, 50, 1}, {3, 50, 1}, {4, 50, 2}, {5, 10, 0}, {10, 100, 10}} {
		p := usual
		p.MaxEjectionPercent = uint32(c.percent)
		d, records := detector(p, c.backends)
		got := 0
		for _, r := range records {
			if fail(d, r, 9, 0) {
				got++
			}
		}
		if got != c.want {
			t.Errorf("%d of %d are ejected at %d %%, want %d", got, c.backends, c.percent, c.want)
		}
	}
}

func TestWhatThisNodeCannotReachIsNoNewsForOthers(t *testing.T) {
	d, r := detector(usual, 4)
	for range 3 {
		d.Observe(r[0], Unanswered, at(0))
	}
	if e, stands := d.Ejection(r[0]); !stands || e.Shared {
		t.Errorf("%+v, %v", e, stands)
	}
}

func TestTheWordOfOneNodeMakesOneFailureEnough(t *testing.T) {
	d, r := detector(usual, 4)
	if d.Hear(r[0], 1, epoch.Add(20*time.Second), epoch) || stands(d, r[0]) {
		t.Fatal("one node's word has ejected a backend elsewhere")
	}
	if d.Observe(r[0], Unanswered, at(0)) {
		t.Fatal("a failure on the way bears out nothing")
	}
	if !fail(d, r[0], 1, 10*time.Second) {
		t.Error("one failure is not enough")
	}
	if fail(d, r[1], 1, 10*time.Second) {
		t.Error("one failure is enough for a backend that nobody has spoken of")
	}
}

func TestSuspicionEnds(t *testing.T) {
	d, r := detector(usual, 4)
	d.Hear(r[0], 1, epoch.Add(20*time.Second), epoch)
	if fail(d, r[0], 1, 20*time.Second) {
		t.Error("a word counts beyond its time")
	}
}

func TestTheWordOfTwoNodesEjects(t *testing.T) {
	d, r := detector(usual, 4)
	if !d.Hear(r[0], 2, epoch.Add(20*time.Second), epoch) {
		t.Fatal("it is not ejected")
	}
	e, _ := d.Ejection(r[0])
	if e.Shared || e.Until != epoch.Add(20*time.Second) {
		t.Errorf("%+v: what was only heard must not be told again", e)
	}
	if d.Hear(r[1], 2, epoch.Add(time.Hour), epoch); d.ejected != 2 {
		t.Fatal("the second is not ejected")
	}
	if e, _ := d.Ejection(r[1]); e.Until != epoch.Add(usual.MaxEjection) {
		t.Errorf("others have a say beyond the longest ejection: %v", e.Until.Sub(epoch))
	}
	if d.Hear(r[2], 2, epoch.Add(time.Hour), epoch) {
		t.Error("others can eject more than the policy allows")
	}
	if got, want := d.Totals(), (Totals{Heard: 2, Capped: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestWhatIsKnownOfABackendOutlivesAnUpdate(t *testing.T) {
	d, r := detector(usual, 4)
	fail(d, r[0], 3, 0)
	fail(d, r[1], 2, 0)
	d.Update(usual, slices.Concat(ids(2), ids(6)[4:]))
	if !stands(d, d.Record(ids(1)[0])) {
		t.Error("an ejection is forgotten")
	}
	if !fail(d, d.Record(ids(2)[1]), 1, 0) {
		t.Error("failures are forgotten")
	}
	if d.Record(ids(3)[2]) != nil {
		t.Error("a backend that is gone is kept")
	}
}

func TestAnUpdateLetsGoOfWhatItHasNoRoomFor(t *testing.T) {
	d, r := detector(usual, 4)
	fail(d, r[0], 3, 0)
	fail(d, r[1], 3, 0)
	d.Update(usual, ids(2))
	if n := len(slices.DeleteFunc([]bool{stands(d, r[0]), stands(d, r[1])}, func(yes bool) bool { return !yes })); n != 1 {
		t.Errorf("%d of two are ejected", n)
	}
}

// Whatever happens, the number of ejections that stand is right and within the policy.
func TestEjectionsAreCountedRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, records := detector(usual, rapid.IntRange(1, 6).Draw(t, "backends"))
		now := epoch
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "seconds")) * time.Second)
			r := rapid.SampledFrom(records).Draw(t, "backend")
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				d.Observe(r, Fine, nil)
			case 1, 2:
				fail(d, r, 3, now.Sub(epoch))
			case 3:
				d.Hear(r, rapid.IntRange(0, 3).Draw(t, "nodes"), now.Add(time.Minute), now)
			case 4:
				d.Return(now)
			case 5:
				d.Update(usual, ids(len(records)))
			}
			n := 0
			for _, r := range records {
				if stands(d, r) {
					n++
				}
			}
			if n != d.ejected || n > d.most() {
				t.Fatalf("%d stand, %d are counted, %d may be", n, d.ejected, d.most())
			}
		}
	})
}

func TestAFineRequestAllocatesNothing(t *testing.T) {
	d, r := detector(usual, 4)
	if n := testing.AllocsPerRun(100, func() { d.Observe(r[0], Fine, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestABackendThatHasLeftTakesNoRoomOfOthers(t *testing.T) {
	d, r := detector(usual, 3)
	d.Update(usual, ids(2))
	if fail(d, r[2], 3, 0) || d.Hear(r[2], Quorum, epoch.Add(time.Minute), epoch) {
		t.Error("a backend that has left is ejected")
	}
	if !fail(d, r[0], 3, 0) {
		t.Error("one that is there is not ejected")
	}
}
