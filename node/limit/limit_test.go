package limit

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const second = time.Second

func allowed(l *Limiter, key uint64, now time.Duration, n int) (passed int) {
	for range n {
		if _, ok := l.Allow(key, now); ok {
			passed++
		}
	}
	return passed
}

func TestABurstPassesAndThenTheRate(t *testing.T) {
	l := New(Rate{Requests: 100, Per: second, Burst: 50})
	if n := allowed(l, 1, second, 80); n != 50 {
		t.Fatalf("%d pass at once, want 50", n)
	}
	if n := allowed(l, 1, second+10*time.Millisecond-1, 1); n != 0 {
		t.Error("one passes before its time")
	}
	if n := allowed(l, 1, second+100*time.Millisecond, 80); n != 10 {
		t.Errorf("%d pass after 100 ms, want 10", n)
	}
	if n := allowed(l, 1, time.Minute, 80); n != 50 {
		t.Errorf("%d pass after a pause, want 50", n)
	}
}

func TestKeysAreKeptApart(t *testing.T) {
	l := New(Rate{Requests: 1, Per: second, Burst: 1})
	for key := range uint64(1000) {
		if _, ok := l.Allow(key+1, 0); !ok {
			t.Fatalf("key %d is limited by another", key)
		}
	}
	if u := l.Usage(0); u.Keys != 1000 {
		t.Errorf("%+v", u)
	}
}

func TestStanding(t *testing.T) {
	l := New(Rate{Requests: 10, Per: second, Burst: 3})
	for i, want := range []Standing{
		{Remaining: 2, Full: 100 * time.Millisecond},
		{Remaining: 1, Full: 200 * time.Millisecond},
		{Remaining: 0, Full: 300 * time.Millisecond, Retry: 100 * time.Millisecond},
		{Remaining: 0, Full: 300 * time.Millisecond, Retry: 100 * time.Millisecond},
	} {
		if got, passes := l.Allow(7, second); got != want || passes != (i < 3) {
			t.Errorf("request %d: %+v %v, want %+v", i+1, got, passes, want)
		}
	}
	if got, passes := l.Allow(7, second+50*time.Millisecond); passes || got.Retry != 50*time.Millisecond {
		t.Errorf("%+v %v", got, passes)
	}
}

// Over any stretch of time, no more pass than the burst and what the rate gives for its length; and who asks all the time gets
// all of that.
func TestNeitherMoreNorLessThanTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := Rate{
			Requests: rapid.Uint32Range(1, 1000).Draw(t, "requests"), Per: time.Duration(rapid.IntRange(1, 3600).Draw(t, "per")) * second,
			Burst: rapid.Uint32Range(1, 100).Draw(t, "burst"),
		}
		l, now := New(rate), time.Duration(0)
		var passed []time.Duration
		for range rapid.IntRange(1, 300).Draw(t, "asks") {
			now += time.Duration(rapid.Int64Range(0, int64(3*rate.Emission())).Draw(t, "pause"))
			standing, ok := l.Allow(5, now)
			if ok {
				passed = append(passed, now)
			} else if again, ok := l.Allow(5, now+standing.Retry-1); ok {
				t.Fatalf("told to wait %v, but less was enough: %+v", standing.Retry, again)
			}
			if standing.Remaining > 0 != (standing.Retry == 0) {
				t.Fatalf("%+v", standing)
			}
		}
		for i := range passed {
			for j := i; j < len(passed); j++ {
				if most := int64(rate.Burst) + int64((passed[j]-passed[i])/rate.Emission()); int64(j-i+1) > most {
					t.Fatalf("%d pass in %v, want at most %d", j-i+1, passed[j]-passed[i], most)
				}
			}
		}
	})
}

func TestWhoWaitsAsToldPasses(t *testing.T) {
	l, now := New(Rate{Requests: 7, Per: second, Burst: 2}), time.Duration(0)
	for range 100 {
		s, ok := l.Allow(3, now)
		if !ok {
			t.Fatalf("refused at %v", now)
		}
		now += s.Retry
	}
}

// memory is what the heap holds after a collection.
func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestMemoryOfAMillionKeysIsBoundedAndGivenBack(t *testing.T) {
	before := memory()
	l := New(Rate{Requests: 100, Per: second, Burst: 50})
	random := rand.New(rand.NewPCG(1, 2))
	for range 1_000_000 {
		l.Allow(random.Uint64(), second)
	}
	busy := l.Usage(second)
	held := memory() - before
	t.Logf("%d keys: %d bytes in tables, %d of heap (%.0f each)", busy.Keys, busy.Bytes, held, float64(held)/1e6)
	if busy.Keys < 999_000 || held > 64<<20 {
		t.Errorf("%d keys take %d bytes", busy.Keys, held)
	}
	l.Tidy(2 * second)
	if after, u := memory(), l.Usage(2*second); u.Bytes != 0 || after > before+1<<20 {
		t.Errorf("idle keys take %d bytes in tables, %d of heap", u.Bytes, after-before)
	}
	t.Logf("after they went idle: %d bytes", l.Usage(2*second).Bytes)
	runtime.KeepAlive(l)
}

// small makes l one for few keys, and says for how many.
func small(l *Limiter) int {
	l.most = 32
	return l.most * ways * shards
}

func TestKeysWithoutEndTakeNoMoreThanTheBound(t *testing.T) {
	l := New(Rate{Requests: 1, Per: time.Hour, Burst: 1})
	most := small(l)
	random := rand.New(rand.NewPCG(1, 2))
	for range 3 * most {
		l.Allow(random.Uint64(), second)
	}
	if u := l.Usage(second); u.Bytes > most*16 || u.Evicted == 0 {
		t.Errorf("%+v", u)
	}
}

// Who is over its rate is not forgotten for those that have just come.
func TestEvictionSparesWhoHasUsedTheMost(t *testing.T) {
	l := New(Rate{Requests: 1, Per: time.Second, Burst: 1000})
	const heavy = 12345
	most := small(l)
	random := rand.New(rand.NewPCG(1, 2))
	allowed(l, heavy, second, 1000)
	for range 2 * most {
		l.Allow(random.Uint64(), second)
	}
	if allowed(l, heavy, second, 1) != 0 {
		t.Error("a key that was over its rate has been forgotten")
	}
}

func TestTidyKeepsWhatIsBusy(t *testing.T) {
	l := New(Rate{Requests: 1, Per: time.Minute, Burst: 2})
	random := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		l.Allow(random.Uint64(), 0)
	}
	busy := []uint64{11, 22, 33, 44}
	for _, key := range busy {
		allowed(l, key, 59*second, 2)
	}
	before := l.Usage(61 * second)
	l.Tidy(61 * second)
	after := l.Usage(61 * second)
	if before.Keys != 4 || after.Keys != 4 || after.Bytes > 64<<10 {
		t.Errorf("%+v, then %+v", before, after)
	}
	for _, key := range busy {
		if n := allowed(l, key, 61*second, 2); n != 0 {
			t.Errorf("key %d passes %d times after Tidy", key, n)
		}
	}
}

func TestConcurrentRequestsPassNoMoreThanTheRate(t *testing.T) {
	l := New(Rate{Requests: 1, Per: time.Hour, Burst: 500})
	var wg sync.WaitGroup
	passed := make([]int, 8)
	for i := range passed {
		wg.Go(func() {
			passed[i] = allowed(l, 9, second, 200)
			l.Tidy(second)
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range passed {
		sum += n
	}
	if u := l.Usage(second); sum != 500 || u.Limited != 1100 {
		t.Errorf("%d pass, %+v", sum, u)
	}
}

func TestAllowAllocatesNothing(t *testing.T) {
	l := New(Rate{Requests: 100, Per: second, Burst: 50})
	l.Allow(1, 0)
	if n := testing.AllocsPerRun(100, func() { l.Allow(1, second) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAllow(b *testing.B) {
	for name, keys := range map[string]uint64{"one key": 1, "100,000 keys": 100_000} {
		b.Run(name, func(b *testing.B) {
			l := New(Rate{Requests: 100, Per: second, Burst: 50})
			b.ReportAllocs()
			var i uint64
			for b.Loop() {
				i++
				l.Allow((i%keys+1)*0x9e3779b97f4a7c15, time.Duration(i))
			}
		})
	}
}
