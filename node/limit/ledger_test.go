package limit

import (
	"math"
	"runtime"
	"testing"
	"time"
)

func TestAnOwnerLendsNoMoreThanTheLimit(t *testing.T) {
	l := NewLedger(Rate{Requests: 100, Per: time.Second, Burst: 50}, 10)
	sum, used := uint32(0), map[uint64]uint32{}
	for ms := range 10_000 { // everybody asks for everything and uses it, all the time
		for who := range uint64(20) {
			g, ok := l.Lend(who+1, Ask{Key: 1, Want: 1 << 31, Used: used[who]}, time.Duration(ms)*time.Millisecond)
			if !ok {
				t.Fatal("refused")
			}
			used[who] = g.Allowed
			sum += g.Allowed
		}
	}
	if sum > 1050 || sum < 1000 {
		t.Errorf("%d were lent in ten seconds", sum)
	}
}

func TestWhatIsNotUsedIsThereForOthers(t *testing.T) {
	l := NewLedger(Rate{Requests: 1, Per: time.Hour, Burst: 60}, 10)
	if g, _ := l.Lend(1, Ask{Key: 1, Want: 2}, 0); g.Allowed != 60 || g.Level != 0 {
		t.Errorf("one that is alone: %+v", g)
	}
	if g, _ := l.Lend(2, Ask{Key: 1, Want: 60}, 0); g.Allowed != 0 {
		t.Errorf("a second one while all is kept for the first: %+v", g)
	}
	if g, _ := l.Lend(1, Ask{Key: 1, Want: 2, Used: 2}, 0); g.Allowed > 30 {
		t.Errorf("the first one beside another: %+v", g)
	}
	if g, _ := l.Lend(2, Ask{Key: 1, Want: 60}, 0); g.Allowed < 28 || g.Level != 2*time.Hour {
		t.Errorf("the second one: %+v", g)
	}
	// The claims of both lapse.
	if g, _ := l.Lend(3, Ask{Key: 1, Want: 10}, (claimTurns+1)*Turn); g.Allowed != 58 {
		t.Errorf("a third one: %+v", g)
	}
}

func TestNobodyLocksAKeyForLong(t *testing.T) {
	const fill = 500 * time.Millisecond
	l := NewLedger(Rate{Requests: 100, Per: time.Second, Burst: 50}, 10)
	for range 100 {
		l.Lend(1, Ask{Key: 1, Used: math.MaxUint32, Level: math.MaxInt64}, 0)
		l.Lend(1, Ask{Key: 1, Level: math.MinInt64}, 0)
	}
	if g, _ := l.Lend(2, Ask{Key: 1, Want: 10}, 2*fill); g.Allowed == 0 || g.Level > 2*fill {
		t.Errorf("after the time of two bursts: %+v", g)
	}
	slow := NewLedger(Rate{Requests: 1, Per: 24 * time.Hour, Burst: 30}, 10)
	if g, _ := slow.Lend(1, Ask{Key: 1, Used: math.MaxUint32, Level: math.MaxInt64}, 0); g.Level != 60*24*time.Hour {
		t.Errorf("numbers have run over: %+v", g)
	}
}

func TestManyBorrowersOfOneKey(t *testing.T) {
	l := NewLedger(Rate{Requests: 1000, Per: time.Second, Burst: 1000}, 10)
	for turn := range 20 {
		for who := range uint64(3 * claimants) {
			l.Lend(who+1, Ask{Key: 1, Want: 100}, time.Duration(turn)*Turn)
		}
	}
	if n := len(l.loans[1].claims); n != claimants {
		t.Errorf("%d of them are told apart", n)
	}
}

func TestLedgersAndAccountsAreBounded(t *testing.T) {
	rate := Rate{Requests: 1, Per: time.Hour, Burst: 2}
	l, a := NewLedger(rate, 100), NewAccounts(rate, 6400)
	refused := 0
	for i := range uint64(20_000) {
		if _, ok := l.Lend(1, Ask{Key: i, Want: 1}, 0); !ok {
			refused++
		}
		a.Allow(i, 3, 0)
	}
	if n := l.Tidy(0); n != 100 || refused != 19_900 {
		t.Errorf("the ledger has %d keys, and has refused %d", n, refused)
	}
	if u, did := a.Usage(0); u.Keys > 6400+20_000 || u.Evicted < 20_000-6400 || did.Shared != 20_000-u.Evicted {
		t.Errorf("%+v %+v", u, did)
	}
	for _, ask := range a.Turn(3, 0, nil) {
		a.Granted(ask, Grant{}, 0)
	}
	a.Turn(3, 10*time.Hour, nil)
	a.Tidy(10 * time.Hour)
	if u, _ := a.Usage(10 * time.Hour); u.Keys != 0 || l.Tidy(10*time.Hour) != 0 {
		t.Errorf("%d keys are left", u.Keys)
	}
}

func TestMoreThanCanBeThereIsNotBelieved(t *testing.T) {
	a := NewAccounts(Rate{Requests: 1, Per: time.Hour, Burst: 3}, 100)
	if _, ok := a.Allow(1, 3, 0); !ok {
		t.Fatal("a share lets nothing through")
	}
	asks := a.Turn(3, 0, nil)
	if len(asks) != 1 || asks[0].Used != 1 || asks[0].Want == 0 {
		t.Fatalf("%+v is asked", asks)
	}
	a.Granted(asks[0], Grant{Allowed: math.MaxUint32, Level: math.MaxInt64}, 0)
	passed := 0
	for range 100 {
		if _, ok := a.Allow(1, 3, 0); ok {
			passed++
		}
	}
	if passed != 3 {
		t.Errorf("%d pass of a burst of 3", passed)
	}
	if s, ok := a.Allow(1, 3, allowedTurns*Turn); ok || s.Full > 6*time.Hour {
		t.Errorf("the owner's word is not bounded: %+v", s)
	}
}

func TestWhatWasNotToldIsToldOnce(t *testing.T) {
	a := NewAccounts(Rate{Requests: 100, Per: time.Second, Burst: 30}, 100)
	for range 6 {
		a.Allow(1, 3, 0)
	}
	asks := a.Turn(3, 0, nil)
	a.Deferred(asks[0])
	a.Allow(1, 3, 0)
	if asks = a.Turn(3, 0, nil); asks[0].Used != 7 {
		t.Errorf("%+v is asked after one that was not made", asks)
	}
	a.Failed(asks[0])
	if asks = a.Turn(3, 0, nil); len(asks) != 1 || asks[0].Used != 7 {
		t.Errorf("%+v is asked after one that has failed", asks)
	}
	if again := a.Turn(3, 0, nil); len(again) != 0 {
		t.Errorf("%+v is asked without need", again)
	}
	a.Failed(asks[0])
	if asks = a.Turn(3, 150*time.Millisecond, nil); asks[0].Used != 2 {
		t.Errorf("%+v is asked after five of seven are over", asks)
	}
}

func TestOwnersMoveWithTheirMembersAlone(t *testing.T) {
	four, three := NewLenders("n1"), NewLenders("n1")
	four.Set([]string{"n4", "n2", "n3"})
	three.Set([]string{"n1", "n2", "n3"})
	owned := map[string]int{}
	for key := range uint64(4000) {
		key = score(key, 7)
		owner := four.Owner(key)
		owned[owner]++
		if fewer := three.Owner(key); owner != "n4" && fewer != owner {
			t.Fatalf("a key of %s has another owner when n4 goes", owner)
		}
		if four.Owns(key) != (owner == "n1") {
			t.Fatalf("%s owns a key and does not own it", owner)
		}
	}
	for _, name := range []string{"n1", "n2", "n3", "n4"} {
		if owned[name] < 800 || owned[name] > 1200 {
			t.Errorf("%s owns %d of 4,000 keys", name, owned[name])
		}
	}
}

func TestWhoDoesNotAnswerIsPassedOver(t *testing.T) {
	l, key := NewLenders("n1"), uint64(0)
	if l.Set(nil) || !l.Set([]string{"n2"}) || l.Set([]string{"n1", "n2", "n2"}) {
		t.Error("it is not news who else is there")
	}
	for ; l.Owner(key) != "n2"; key++ {
	}
	if l.Owns(key) || len(l.Doubted(true)) != 1 || len(l.Doubted(true)) != 0 {
		t.Error("who is asked for the key of another has to doubt him, once")
	}
	for _, name := range []string{"n2", "n1", "stranger"} { // of itself it knows better
		l.Heard(name, false)
	}
	l.Set([]string{"n1", "n2", "n3"}) // n3 or n1 may own it now
	if l.Count() != 3 || l.Away() != 1 || l.Owner(key) == "n2" {
		t.Errorf("%d members, %d away, %s owns a key", l.Count(), l.Away(), l.Owner(key))
	}
	if names := l.Doubted(true); len(names) != 1 || names[0] != "n2" || len(l.Doubted(false)) != 0 {
		t.Errorf("%v are asked whether they are back", names)
	}
	l.Set([]string{"n2"})
	if l.Heard("n2", true); l.Owner(key) != "n2" {
		t.Error("who is back is not asked")
	}
}

// FuzzLedger: whatever is asked, by whom and when, no more is used than the rate lets through, where nobody uses more than he may.
func FuzzLedger(f *testing.F) {
	f.Add([]byte{1, 255, 0, 1, 2, 255, 3, 4, 9, 0, 200, 0})
	f.Fuzz(func(t *testing.T, moves []byte) {
		type held struct {
			allowed uint32
			at      time.Duration
		}
		rate := Rate{Requests: 100, Per: time.Second, Burst: 25}
		l, now, sum, hands := NewLedger(rate, 4), time.Duration(0), uint32(0), map[uint64]held{}
		for i := 0; i+3 < len(moves); i += 4 {
			now += time.Duration(moves[i]) * time.Millisecond
			who := uint64(moves[i+1]%24) + 1
			h, used := hands[who], uint32(0)
			if now-h.at <= allowedTurns*Turn {
				used = min(h.allowed, uint32(moves[i+2]))
			}
			sum += used
			if most := 25 + uint32(now/(10*time.Millisecond)); sum > most {
				t.Fatalf("%d are used after %s, at most %d may be", sum, now, most)
			}
			g, _ := l.Lend(who, Ask{Key: 1, Want: uint32(moves[i+2]) << (moves[i+3] % 25), Used: used, Level: time.Duration(moves[i+3]) * time.Millisecond}, now)
			hands[who] = held{g.Allowed, now}
			if moves[i+3]%7 == 0 {
				l.Lend(1, Ask{Key: uint64(moves[i+3]) + 2, Want: 1}, now)
				l.Tidy(now)
			}
		}
	})
}

// It tells what docs/config.md says of memory.
func TestMemoryOfSharedKeys(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	s := NewShared(1, Rate{Requests: 1, Per: time.Hour, Burst: 2})
	s.SetNodes(3)
	for key := range uint64(2 * sharedKeys) {
		s.Accounts.Allow(key, 3, 0)
		for who := range uint64(3) {
			s.Lend(who+1, Ask{Key: key, Want: 1, Used: 1}, 0)
		}
	}
	full := heap() - before
	s.Turn(10*time.Hour, nil)
	asks := s.Turn(20*time.Hour, nil)
	s.Tidy(10 * time.Hour)
	idle := heap() - before
	t.Logf("%d keys borrowed and lent to three: %d KiB; idle: %d KiB", sharedKeys, full>>10, idle>>10)
	if full > 64<<20 || idle > 1<<20 || len(asks) != 0 {
		t.Errorf("%d bytes are held, %d when idle, when %d keys are asked for", full, idle, len(asks))
	}
	runtime.KeepAlive(s)
}

// An owner may be so late with an answer that the next one is out before it.
func TestAnAskThatIsAnsweredLateGetsNothingOutOfNothing(t *testing.T) {
	l := NewLedger(Rate{Requests: 1000, Per: time.Second, Burst: 1}, 10)
	for turn := range 3 {
		for _, who := range []uint64{1, 2} {
			l.Lend(who, Ask{Key: 1, Want: 1000, Used: 25}, time.Second+time.Duration(turn)*Turn)
		}
	}
	before, _ := l.Lend(2, Ask{Key: 1}, time.Second+2*Turn)
	g, lent := l.Lend(1, Ask{Key: 1, Want: 1000}, 500*time.Millisecond)
	if !lent || g.Allowed > 200 {
		t.Errorf("%d are allowed, of a burst of 200", g.Allowed)
	}
	after, _ := l.Lend(2, Ask{Key: 1}, time.Second+2*Turn)
	if after.Level < before.Level {
		t.Errorf("until all is there it takes %s, after %s", after.Level, before.Level)
	}
}
