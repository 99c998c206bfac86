package upstream

import (
	"slices"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/outlier"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// down gives the first n backends a verdict.
func down(backends []*Backend, n int) {
	for i, b := range backends {
		state := Healthy
		if i < n {
			state = Unhealthy
		}
		b.SetVerdict(Verdict{State: state})
	}
}

func TestPoolFailsOpenWhereFewerThanItsShareAreHealthy(t *testing.T) {
	for _, policy := range allPolicies {
		p, backends := pickingBy(t, policy, PoolOptions{PanicPercent: 50}, 1, 1, 1, 1)
		for _, c := range []struct {
			down int
			open bool
		}{{0, false}, {2, false}, {3, true}, {4, false}, {3, true}, {1, false}} {
			down(backends, c.down)
			got := shares(p, backends, 1000)
			used := 0
			for i, n := range got {
				if n > 0 {
					used++
				}
				if n > 0 && i < c.down && !c.open {
					t.Errorf("%v: %d down, shares %v", policy, c.down, got)
				}
			}
			if p.FailsOpen() != c.open || p.Takes() == (c.down == 4) || c.open && used != 4 {
				t.Errorf("%v: %d down: fails open: %v, shares %v", policy, c.down, p.FailsOpen(), got)
			}
		}
	}
}

func TestShareThatHasToBeHealthyIsAsOptionsSay(t *testing.T) {
	for percent, opensAt := range map[uint32]int{0: 0, 1: 0, 25: 0, 26: 3, 50: 3, 51: 2, 75: 2, 76: 1, 100: 1} {
		p, backends := pickingBy(t, roundRobin, PoolOptions{PanicPercent: percent}, 1, 1, 1, 1)
		first := 0
		for n := 1; n <= 4 && first == 0; n++ {
			if down(backends, n); p.FailsOpen() {
				first = n
			}
		}
		if first != opensAt {
			t.Errorf("%d %%: opens with %d of four down, want %d", percent, first, opensAt)
		}
	}
}

func TestBackendsOfWeight0DoNotCountForFailingOpen(t *testing.T) {
	p, backends := pickingBy(t, roundRobin, PoolOptions{PanicPercent: 50}, 0, 0, 1, 1)
	down(backends, 3)
	if got := share(p, backends, 100); p.FailsOpen() || !slices.Equal(got, []int{0, 0, 0, 100}) {
		t.Errorf("fails open with one of two healthy: %v, shares %v", p.FailsOpen(), got)
	}
}

func TestPoolThatFailsOpenStillAvoidsWhatCannotBeReached(t *testing.T) {
	p, backends := pickingBy(t, roundRobin, PoolOptions{PanicPercent: 50}, 1, 1, 1)
	down(backends, 2)
	backends[0].Avoid(true)
	if got := share(p, backends, 300); !slices.Equal(got, []int{0, 150, 150}) {
		t.Errorf("shares %v", got)
	}
	if p.TakesBack(backends[0]) || !p.TakesBack(backends[1]) {
		t.Error("a client goes on with a backend that cannot be reached, or not with one whose verdict does not count")
	}
	if !backends[0].FailsOpen() {
		t.Error("the backend does not know")
	}
}

// Ejections rest on requests, not on the check that is not believed.
func TestPoolThatFailsOpenPassesOverEjectedBackends(t *testing.T) {
	p, backends := pickingBy(t, roundRobin, PoolOptions{PanicPercent: 100}, 1, 1, 1, 1)
	d := outlier.New()
	var ids []outlier.ID
	for _, b := range backends {
		ids = append(ids, b.Identity())
	}
	d.Update(outlier.Policy{Consecutive: 1, Interval: time.Minute, BaseEjection: time.Hour, MaxEjection: time.Hour, MaxEjectionPercent: 50}, ids)
	p.Guard(d, 0, func(*Backend) {})
	down(backends, 2)
	p.Observe(backends[0], outlier.Answered)
	p.Observe(backends[2], outlier.Answered)
	if got := share(p, backends, 100); !slices.Equal(got, []int{0, 50, 0, 50}) {
		t.Errorf("shares %v", got)
	}
}

// It is warm: were it passed over now, those that fail their check would get its share, and once verdicts count again few the load of
// all.
func TestBackendThatAPoolHasAskedAnywayDoesNotStartSlowly(t *testing.T) {
	for _, policy := range []resourcev1.BalancingPolicy{roundRobin, leastRequest, random, p2cEWMA} {
		p, backends := pickingBy(t, policy, PoolOptions{PanicPercent: 50, SlowStart: time.Hour}, 1, 1, 1, 1, 1)
		down(backends, 4)
		backends[0].Avoid(true)
		backends[0].SetVerdict(Verdict{State: Healthy})
		backends[0].Avoid(false)
		if got := share(p, backends, 1000); !p.FailsOpen() || got[0] > 50 {
			t.Errorf("%v: shares %v, want next to none for the first, which could not be reached", policy, got)
		}
		backends[1].SetVerdict(Verdict{State: Healthy})
		if got := share(p, backends, 1000); p.FailsOpen() || got[1] < 400 {
			t.Errorf("%v: shares %v, want half for the second, which was asked all the time", policy, got)
		}
	}
}
