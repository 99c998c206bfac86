package upstream

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// poolOf makes a pool of backends 10.0.0.0, 10.0.0.1, … with the given weights.
func poolOf(t testing.TB, weights ...uint32) (*Pool, []*Backend) {
	t.Helper()
	r := newRegistry(t, Options{})
	var members []Member
	var backends []*Backend
	for i, w := range weights {
		b := acquire(t, r, Spec{Host: fmt.Sprint("10.0.0.", i), Port: 1})
		backends = append(backends, b)
		members = append(members, Member{Backend: b, Weight: w})
	}
	p := NewPool(members, PoolOptions{})
	t.Cleanup(p.Close)
	return p, backends
}

// share picks n times and counts.
func share(p *Pool, backends []*Backend, n int) []int {
	counts := make([]int, len(backends))
	for range n {
		if i := slices.Index(backends, p.Pick(0, nil)); i >= 0 {
			counts[i]++
		}
	}
	return counts
}

func TestPoolPicksByWeight(t *testing.T) {
	p, backends := poolOf(t, 3, 1, 0)
	if got := share(p, backends, 400); !slices.Equal(got, []int{300, 100, 0}) {
		t.Errorf("shares %v, want 300, 100, 0", got)
	}
}

func TestUnhealthyBackendLeavesRotationAndReturns(t *testing.T) {
	p, backends := poolOf(t, 1, 1, 1)
	backends[0].SetVerdict(Verdict{State: Healthy})
	backends[1].SetVerdict(Verdict{State: Unhealthy})
	if got := share(p, backends, 300); !slices.Equal(got, []int{150, 0, 150}) {
		t.Errorf("shares %v with one down, want 150, 0, 150", got)
	}
	backends[1].SetVerdict(Verdict{State: Healthy})
	if got := share(p, backends, 300); !slices.Equal(got, []int{100, 100, 100}) {
		t.Errorf("shares %v with all back, want 100 each", got)
	}
}

func TestNothingLeftIsNil(t *testing.T) {
	p, backends := poolOf(t, 1, 1)
	if b := p.Pick(0, backends); b != nil {
		t.Errorf("picked %s, which was tried", b.Address())
	}
	for _, b := range backends {
		b.SetVerdict(Verdict{State: Unhealthy})
	}
	if b := p.Pick(0, nil); b != nil {
		t.Errorf("picked %s, which is unhealthy", b.Address())
	}
	empty, _ := poolOf(t)
	if empty.Pick(0, nil) != nil {
		t.Error("an empty pool picked something")
	}
}

func TestHeavyTriedBackendDoesNotHideTheLightOne(t *testing.T) {
	p, backends := poolOf(t, 1000, 1, 1)
	tried := backends[:1]
	counts := make(map[*Backend]int)
	for range 100 {
		counts[p.Pick(0, tried)]++
	}
	if counts[nil] != 0 || counts[backends[0]] != 0 || counts[backends[1]] < 20 || counts[backends[2]] < 20 {
		t.Errorf("second picks: %d, %d, none %d", counts[backends[1]], counts[backends[2]], counts[nil])
	}
}

func TestRebuildGoesOnInTurn(t *testing.T) {
	p, backends := poolOf(t, 1, 1, 1)
	counts := make(map[*Backend]int)
	for i := range 300 {
		counts[p.Pick(0, nil)]++
		backends[2].SetVerdict(Verdict{State: []State{Unhealthy, Healthy}[i%2]})
	}
	if counts[backends[0]] > 200 || counts[backends[1]] < 50 {
		t.Errorf("a flapping backend sent %d requests to the first, %d to the second", counts[backends[0]], counts[backends[1]])
	}
}

func TestClosedPoolFollowsNoVerdict(t *testing.T) {
	p, backends := poolOf(t, 1)
	p.Close()
	backends[0].SetVerdict(Verdict{State: Unhealthy})
	if p.Pick(0, nil) != backends[0] {
		t.Error("a closed pool still rebuilds")
	}
	if len(backends[0].pools) != 0 {
		t.Error("the backend still knows the pool")
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	p, backends := poolOf(t, 2, 1, 1)
	tried := backends[:1]
	if n := testing.AllocsPerRun(100, func() { p.Pick(0, nil); p.Pick(0, tried) }); n != 0 {
		t.Errorf("%v allocations for two picks", n)
	}
}

func TestVerdictsMayChangeWhileRequestsPick(t *testing.T) {
	p, backends := poolOf(t, 1, 2, 3)
	var wg sync.WaitGroup
	for _, b := range backends[1:] {
		wg.Go(func() {
			for i := range 200 {
				b.SetVerdict(Verdict{State: []State{Unhealthy, Healthy}[i%2]})
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for range 2000 {
				if p.Pick(0, nil) == nil {
					t.Error("nothing was picked although one is always up")
					return
				}
			}
		})
	}
	wg.Wait()
	if got := share(p, backends, 600); !slices.Equal(got, []int{100, 200, 300}) {
		t.Errorf("shares %v after the last verdicts, want 100, 200, 300", got)
	}
}

// Whatever the verdicts and whatever was tried: never a backend that must not be picked, and nil only when all are such.
func TestPickIsRightForAllVerdicts(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		weights := rapid.SliceOfN(rapid.Uint32Range(0, 5), 0, 8).Draw(rt, "weights")
		p, backends := poolOf(t, weights...)
		var tried []*Backend
		left := 0
		for i, b := range backends {
			state := rapid.SampledFrom([]State{Unknown, Healthy, Unhealthy}).Draw(rt, "state")
			b.SetVerdict(Verdict{State: state})
			was := rapid.Bool().Draw(rt, "tried")
			if was {
				tried = append(tried, b)
			}
			if !was && state != Unhealthy && weights[i] > 0 {
				left++
			}
		}
		for range 10 {
			b := p.Pick(0, tried)
			if (b == nil) != (left == 0) {
				rt.Fatalf("picked %v with %d left to pick", b, left)
			}
			if b == nil {
				continue
			}
			if weights[slices.Index(backends, b)] == 0 || b.Verdict().State == Unhealthy || slices.Contains(tried, b) {
				rt.Fatalf("picked %s, which must not be", b.Address())
			}
		}
	})
}

func BenchmarkPick(b *testing.B) {
	p, _ := poolOf(b, 3, 2, 1)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p.Pick(0, nil)
		}
	})
}
