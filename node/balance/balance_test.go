package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

func take(r *RoundRobin, n int) []int {
	picks := make([]int, n)
	for i := range picks {
		picks[i] = r.Next()
	}
	return picks
}

func TestOrderIsLaidOutSmoothly(t *testing.T) {
	for _, c := range []struct {
		weights []uint32
		want    []int
	}{
		{[]uint32{1}, []int{0, 0, 0}},
		{[]uint32{7}, []int{0, 0, 0}},
		{[]uint32{1, 1, 1}, []int{0, 1, 2, 0, 1, 2}},
		{[]uint32{500, 500}, []int{0, 1, 0, 1}},
		{[]uint32{3, 1}, []int{0, 0, 0, 1, 0, 0, 0, 1}},
		{[]uint32{1, 1, 1, 3}, []int{3, 0, 3, 1, 3, 2}},
		{[]uint32{3, 1, 1, 1}, []int{0, 1, 0, 2, 0, 3}},
		{[]uint32{0, 2, 0, 1}, []int{1, 1, 3}},
	} {
		t.Run(fmt.Sprint(c.weights), func(t *testing.T) {
			if got := take(NewRoundRobin(c.weights), len(c.want)); !slices.Equal(got, c.want) {
				t.Errorf("picks %v, want %v", got, c.want)
			}
		})
	}
}

func TestNothingToPickIsMinusOne(t *testing.T) {
	for _, weights := range [][]uint32{nil, {}, {0}, {0, 0, 0}} {
		if got := NewRoundRobin(weights).Next(); got != -1 {
			t.Errorf("weights %v: picked %d, want -1", weights, got)
		}
	}
}

// The order's promise, for whatever weights: exact over one schedule, never a whole pick off on the way.
func TestEachTakesItsShareAtEveryMoment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.Uint32Range(0, 50), 1, 20).Draw(t, "weights")
		checkShares(t, weights)
	})
}

func FuzzEachTakesItsShareAtEveryMoment(f *testing.F) {
	f.Add([]byte{1})
	f.Add([]byte{3, 1, 1, 1})
	f.Add([]byte{255, 254, 1, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		weights := make([]uint32, min(len(raw), 40))
		for i := range weights {
			weights[i] = uint32(raw[i])
		}
		checkShares(t, weights)
	})
}

type failer interface {
	Fatalf(format string, args ...any)
}

func checkShares(t failer, weights []uint32) {
	var sum, divisor uint64
	for _, w := range weights {
		sum += uint64(w)
		divisor = gcd(divisor, uint64(w))
	}
	if sum == 0 {
		return
	}
	r := NewRoundRobin(weights)
	counts := make([]uint64, len(weights))
	for picks := uint64(1); picks <= sum/divisor; picks++ {
		counts[r.Next()]++
		for i, w := range weights {
			// |count - picks·w/sum| < 1, without division.
			if off := int64(counts[i]*sum) - int64(picks*uint64(w)); off <= -int64(sum) || off >= int64(sum) {
				t.Fatalf("weights %v: after %d picks, %d was picked %d times", weights, picks, i, counts[i])
			}
		}
	}
	for i, w := range weights {
		if counts[i] != uint64(w)/divisor {
			t.Fatalf("weights %v: %d was picked %d times in one schedule, want %d", weights, i, counts[i], uint64(w)/divisor)
		}
	}
}

func TestLongOrdersAreScaled(t *testing.T) {
	thousand := make([]uint32, 1000)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range thousand {
		thousand[i] = 1 + random.Uint32N(1000)
	}
	for name, weights := range map[string][]uint32{
		"1000 backends, weights to 1000": thousand,
		"huge and tiny":                  {4294967295, 1, 4294967294, 7},
		"two primes":                     {1000003, 999983},
	} {
		t.Run(name, func(t *testing.T) {
			order := NewRoundRobin(weights).order
			takers := len(weights)
			if most := min(takers*slotsEach, maxSlots) + takers; len(order) > most {
				t.Fatalf("%d slots, want at most %d", len(order), most)
			}
			var sum float64
			for _, w := range weights {
				sum += float64(w)
			}
			counts := make([]int, takers)
			for _, i := range order {
				counts[i]++
			}
			for i, w := range weights {
				share := float64(w) / sum * float64(len(order))
				if counts[i] == 0 || float64(counts[i]) > share+2 || float64(counts[i]) < share-2 {
					t.Errorf("weight %d: %d of %d slots, its share is %.1f", w, counts[i], len(order), share)
				}
			}
		})
	}
}

func TestUpTo64BackendsWithWeightsTo1000AreExact(t *testing.T) {
	weights := make([]uint32, 64)
	for i := range weights {
		weights[i] = uint32(1000 - i)
	}
	counts := make([]uint32, len(weights))
	for _, i := range NewRoundRobin(weights).order {
		counts[i]++
	}
	if !slices.Equal(counts, weights) {
		t.Errorf("one schedule gives %v, want %v", counts, weights)
	}
}

func TestConcurrentPicksShareOneOrder(t *testing.T) {
	weights := []uint32{5, 3, 2}
	r := NewRoundRobin(weights)
	var counts [3]atomic.Uint32
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 1000 {
				counts[r.Next()].Add(1)
			}
		})
	}
	wg.Wait()
	for i, w := range weights {
		if got := counts[i].Load(); got != w*1000 {
			t.Errorf("%d was picked %d times, want %d", i, got, w*1000)
		}
	}
}

func TestFollowGoesOnWhereTheOtherStood(t *testing.T) {
	before := NewRoundRobin([]uint32{1, 1, 1})
	take(before, 4)
	after := NewRoundRobin([]uint32{1, 1, 1})
	after.Follow(before)
	after.Follow(nil)
	if got := after.Next(); got != 1 {
		t.Errorf("the fifth pick is %d, want 1", got)
	}
}

func BenchmarkNext(b *testing.B) {
	r := NewRoundRobin([]uint32{3, 2, 1})
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Next()
		}
	})
}

func BenchmarkNewRoundRobin(b *testing.B) {
	random := rand.New(rand.NewPCG(1, 2))
	equal, mixed := make([]uint32, 1000), make([]uint32, 1000)
	for i := range mixed {
		equal[i], mixed[i] = 1, 1+random.Uint32N(1000)
	}
	for name, weights := range map[string][]uint32{"three": {3, 2, 1}, "thousand-equal": equal, "thousand-mixed": mixed} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				NewRoundRobin(weights)
			}
		})
	}
}
