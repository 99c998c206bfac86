package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// near checks counts against weights: within five times what chance brings about.
func near(t *testing.T, what string, counts []int, weights []uint32) {
	t.Helper()
	var picks, sum float64
	for i, c := range counts {
		picks += float64(c)
		sum += float64(weights[i])
	}
	for i, c := range counts {
		p := float64(weights[i]) / sum
		if off := math.Abs(float64(c) - picks*p); off > 5*math.Sqrt(picks*p*(1-p))+1e-9 {
			t.Errorf("%s: %d came up %d times of %.0f, its share is %.0f", what, i, c, picks, picks*p)
		}
	}
}

func TestRandomPicksAreByWeight(t *testing.T) {
	for _, weights := range [][]uint32{{1}, {0, 5, 0}, {1, 1, 1}, {3, 1}, {1000, 1, 1}, {0, 1, 2, 3, 4, 5, 6, 7}, {1000, 999, 1, 500}} {
		random := rand.New(rand.NewPCG(1, 2))
		w, counts := NewWeighted(weights), make([]int, len(weights))
		for range 200_000 {
			counts[w.Pick(random.Uint64())]++
		}
		near(t, fmt.Sprint(weights), counts, weights)
	}
}

func TestNothingToPickAtRandomIsMinusOne(t *testing.T) {
	for _, weights := range [][]uint32{nil, {0}, {0, 0}} {
		if got := NewWeighted(weights).Pick(7); got != -1 {
			t.Errorf("weights %v: picked %d, want -1", weights, got)
		}
	}
}

func TestTwoAreDifferentAndTheFirstIsByWeight(t *testing.T) {
	weights := []uint32{4, 1, 3, 2}
	random := rand.New(rand.NewPCG(3, 4))
	w, counts := NewWeighted(weights), make([]int, len(weights))
	for range 200_000 {
		first, second := w.Two(random.Uint64(), random.Uint64())
		if first == second {
			t.Fatalf("both are %d", first)
		}
		counts[first]++
	}
	near(t, "the first", counts, weights)
	if first, second := NewWeighted([]uint32{0, 7}).Two(1, 2); first != 1 || second != 1 {
		t.Errorf("of one alone: %d and %d", first, second)
	}
}

func TestLighterGoesByWeight(t *testing.T) {
	for _, c := range []struct {
		a       float64
		weightA uint32
		b       float64
		weightB uint32
		want    bool
	}{
		{0, 1, 0, 1, false}, {1, 1, 2, 1, true}, {2, 1, 1, 1, false}, {3, 4, 1, 1, true}, {4, 4, 1, 1, false}, {5, 4, 1, 1, false},
	} {
		if got := Lighter(c.a, c.weightA, c.b, c.weightB); got != c.want {
			t.Errorf("%v of weight %d lighter than %v of weight %d: %v", c.a, c.weightA, c.b, c.weightB, got)
		}
	}
}

func BenchmarkTwo(b *testing.B) {
	weights := make([]uint32, 100)
	for i := range weights {
		weights[i] = uint32(i + 1)
	}
	w := NewWeighted(weights)
	for b.Loop() {
		w.Two(rand.Uint64(), rand.Uint64())
	}
}
