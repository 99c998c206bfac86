package upstream

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyserve/pyserve/node/balance"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// seeded gives random numbers that are the same every time.
func seeded() func() uint64 {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(1, 2))
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return r.Uint64()
	}
}

// pickingBy makes a pool of backends 10.0.0.0, 10.0.0.1, … that picks by a policy.
func pickingBy(t testing.TB, policy resourcev1.BalancingPolicy, o PoolOptions, weights ...uint32) (*Pool, []*Backend) {
	t.Helper()
	_, backends := poolOf(t, weights...)
	var members []Member
	for i, b := range backends {
		members = append(members, Member{Backend: b, Weight: weights[i]})
	}
	o.Balancing, o.Random = &resourcev1.LoadBalancing{Policy: policy}, seeded()
	p := NewPool(members, o)
	t.Cleanup(p.Close)
	return p, backends
}

var allPolicies = []resourcev1.BalancingPolicy{roundRobin, leastRequest, random, p2cEWMA, ringHash, maglev}

// clients are the hashes of so many.
func clients(n int) []uint64 {
	all := make([]uint64, n)
	for i := range all {
		all[i] = balance.Hash(fmt.Append(nil, "client ", i))
	}
	return all
}

// shares picks once for each of n clients.
func shares(p *Pool, backends []*Backend, n int, tried ...*Backend) []int {
	counts := make([]int, len(backends))
	for _, h := range clients(n) {
		if i := slices.Index(backends, p.Pick(h, tried)); i >= 0 {
			counts[i]++
		}
	}
	return counts
}

func TestEveryPolicyPicksByWeightAndNeverWeightZero(t *testing.T) {
	for _, policy := range allPolicies {
		p, backends := pickingBy(t, policy, PoolOptions{}, 3, 1, 0, 2)
		const n = 60_000
		for i, got := range shares(p, backends, n) {
			want := float64(n) * []float64{3, 1, 0, 2}[i] / 6
			within := 0.03 * want
			switch policy {
			case ringHash:
				within = 0.25 * want
			case p2cEWMA, leastRequest:
				within = 0.05 * want // nothing is under way: the first of two counts
			}
			if math.Abs(float64(got)-want) > within {
				t.Errorf("%v: backend %d was picked %d times of %d, want %.0f", policy, i, got, n, want)
			}
		}
	}
}

func TestNoPolicyPicksWhatIsDownOrTried(t *testing.T) {
	for _, policy := range allPolicies {
		p, backends := pickingBy(t, policy, PoolOptions{}, 1, 100, 1, 1)
		backends[1].SetVerdict(Verdict{State: Unhealthy})
		if got := shares(p, backends, 1000, backends[2]); got[1] != 0 || got[2] != 0 || got[0] == 0 || got[0]+got[3] != 1000 {
			t.Errorf("%v: shares %v with one down and one tried", policy, got)
		}
		if b := p.Pick(7, []*Backend{backends[0], backends[2], backends[3]}); b != nil {
			t.Errorf("%v: picked %s where all were tried", policy, b.Address())
		}
		for _, b := range backends {
			b.SetVerdict(Verdict{State: Unhealthy})
		}
		if b := p.Pick(7, nil); b != nil {
			t.Errorf("%v: picked %s where all are down", policy, b.Address())
		}
	}
}

func TestNoPolicyAllocates(t *testing.T) {
	for _, policy := range allPolicies {
		p, backends := pickingBy(t, policy, PoolOptions{}, 2, 1, 1)
		tried := backends[:1]
		if n := testing.AllocsPerRun(100, func() { p.Pick(7, nil); p.Pick(7, tried) }); n != 0 {
			t.Errorf("%v: %v allocations for two picks", policy, n)
		}
	}
}

func TestOnlyClientsOfTheBackendThatFailsMove(t *testing.T) {
	for _, policy := range []resourcev1.BalancingPolicy{ringHash, maglev} {
		p, backends := pickingBy(t, policy, PoolOptions{}, 1, 2, 3, 4)
		before := make(map[uint64]*Backend)
		for _, h := range clients(10_000) {
			before[h] = p.Pick(h, nil)
		}
		backends[2].SetVerdict(Verdict{State: Unhealthy})
		for h, b := range before {
			switch now := p.Pick(h, nil); {
			case b != backends[2] && now != b:
				t.Fatalf("%v: a client of %s moved to %s", policy, b.Address(), now.Address())
			case now == backends[2]:
				t.Fatalf("%v: a client is left with the backend that is down", policy)
			}
		}
		backends[2].SetVerdict(Verdict{State: Healthy})
		for h, b := range before {
			if p.Pick(h, nil) != b {
				t.Fatalf("%v: a client did not come back to %s", policy, b.Address())
			}
		}
	}
}

func TestAClientHasTheSameBackendOnEveryNode(t *testing.T) {
	for _, policy := range []resourcev1.BalancingPolicy{ringHash, maglev} {
		one, _ := pickingBy(t, policy, PoolOptions{}, 1, 2, 3)
		other, backends := pickingBy(t, policy, PoolOptions{}, 1, 2, 3)
		slices.Reverse(other.members)
		again := NewPool(other.members, other.options)
		t.Cleanup(again.Close)
		backends[1].SetVerdict(Verdict{State: Unhealthy})
		one.members[1].Backend.SetVerdict(Verdict{State: Unhealthy})
		for _, h := range clients(1000) {
			if a, b := one.Pick(h, nil), again.Pick(h, nil); a.Address() != b.Address() {
				t.Fatalf("%v: %s on one node, %s on another", policy, a.Address(), b.Address())
			}
		}
	}
}

func TestLeastRequestGoesWhereFewerAreUnderWay(t *testing.T) {
	p, backends := pickingBy(t, leastRequest, PoolOptions{}, 2, 1)
	backends[0].conns.busy.Store(4)
	backends[1].conns.busy.Store(1)
	if got := share(p, backends, 200); got[1] != 200 {
		t.Errorf("4 under way for weight 2, 1 for weight 1: shares %v", got)
	}
	backends[1].conns.busy.Store(3)
	if got := share(p, backends, 200); got[0] != 200 {
		t.Errorf("4 under way for weight 2, 3 for weight 1: shares %v", got)
	}
}

// TestLeastRequestSparesTheSlow plays requests through: each backend ends one at its own pace.
func TestLeastRequestSparesTheSlow(t *testing.T) {
	p, backends := pickingBy(t, leastRequest, PoolOptions{}, 1, 1, 1, 1)
	pace := []int{8, 1, 1, 1} // ticks for a request
	var served [4]int
	var ends [4][]int
	for tick := range 40_000 {
		for i, b := range backends {
			for len(ends[i]) > 0 && ends[i][0] <= tick {
				ends[i] = ends[i][1:]
				b.conns.busy.Add(-1)
			}
		}
		b := p.Pick(0, nil)
		i := slices.Index(backends, b)
		served[i]++
		b.conns.busy.Add(1)
		from := tick
		if n := len(ends[i]); n > 0 {
			from = ends[i][n-1]
		}
		ends[i] = append(ends[i], from+pace[i])
	}
	t.Logf("one of four is eight times as slow: %v", served)
	if served[0] > 40_000/6 || len(ends[0]) > 4 {
		t.Errorf("the slow one got %d requests of 40,000, %d wait", served[0], len(ends[0]))
	}
}

func TestP2CGoesWhereAnswersAreQuick(t *testing.T) {
	p, backends := pickingBy(t, p2cEWMA, PoolOptions{}, 1, 1)
	p.Took(backends[0], 100*time.Millisecond, false)
	p.Took(backends[1], 10*time.Millisecond, false)
	if got := share(p, backends, 100); got[1] != 100 {
		t.Errorf("100 ms and 10 ms: shares %v", got)
	}
	backends[1].conns.busy.Store(30)
	if got := share(p, backends, 100); got[0] != 100 {
		t.Errorf("100 ms with none under way, 10 ms with 30: shares %v", got)
	}
}

func TestP2CDoesNotTakeAQuickRefusalForAQuickAnswer(t *testing.T) {
	p, backends := pickingBy(t, p2cEWMA, PoolOptions{}, 1, 1)
	p.Took(backends[0], time.Millisecond, true)
	p.Took(backends[1], 100*time.Millisecond, false)
	if got := share(p, backends, 100); got[1] != 100 {
		t.Errorf("shares %v", got)
	}
}

func TestP2CTriesASlowBackendAgainInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, backends := pickingBy(t, p2cEWMA, PoolOptions{}, 1, 1)
		p.Took(backends[0], 100*time.Millisecond, false)
		for range 60 {
			p.Took(backends[1], 10*time.Millisecond, false)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if p.Pick(0, nil) != backends[0] {
			t.Error("after a minute without a request, the slow backend is not asked again")
		}
	})
}

func TestSlowStartGrowsEvenly(t *testing.T) {
	for _, policy := range []resourcev1.BalancingPolicy{roundRobin, leastRequest, random, p2cEWMA} {
		synctest.Test(t, func(t *testing.T) {
			p, backends := pickingBy(t, policy, PoolOptions{SlowStart: 40 * time.Second}, 1, 1, 1, 1)
			if got := share(p, backends, 4000); got[0] < 900 {
				t.Errorf("%v: backends that nothing has happened to start slowly: %v", policy, got)
			}
			backends[0].SetVerdict(Verdict{State: Unhealthy})
			backends[0].SetVerdict(Verdict{State: Healthy})
			for quarter := range 5 {
				got := share(p, backends, 4000)
				want := 250 * quarter
				if off := got[0] - want; off < -100 || off > 100 || quarter == 0 && got[0] != 0 {
					t.Errorf("%v: after %d quarters: shares %v, want %d for the first", policy, quarter, got, want)
				}
				time.Sleep(10 * time.Second)
			}
			synctest.Wait()
		})
	}
}

func TestAllThatStartSlowlyShareEverything(t *testing.T) {
	p, backends := pickingBy(t, roundRobin, PoolOptions{SlowStart: time.Hour}, 1, 1)
	for _, b := range backends {
		b.SetVerdict(Verdict{State: Unhealthy})
		b.SetVerdict(Verdict{State: Healthy})
	}
	if got := share(p, backends, 1000); got[0] < 400 || got[0]+got[1] != 1000 {
		t.Errorf("shares %v", got)
	}
}

func TestABackendThatComesLaterStartsSlowly(t *testing.T) {
	r := newRegistry(t, Options{})
	first := acquire(t, r, Spec{Host: "10.0.0.1", Port: 1})
	r.Serving()
	second := acquire(t, r, Spec{Host: "10.0.0.2", Port: 1})
	p := NewPool([]Member{{first, 1}, {second, 1}}, PoolOptions{SlowStart: time.Hour})
	defer p.Close()
	if got := share(p, []*Backend{first, second}, 1000); got[0] < 900 {
		t.Errorf("shares %v, want nearly all for the one that was there", got)
	}
}

func TestTakesBackIsForWhoeverAnswers(t *testing.T) {
	p, backends := poolOf(t, 1, 0, 1)
	backends[2].SetVerdict(Verdict{State: Unhealthy})
	if !p.TakesBack(backends[0]) || !p.TakesBack(backends[1]) || p.TakesBack(backends[2]) {
		t.Error("want the healthy ones, of weight 0 too, and no other")
	}
	backends[2].SetVerdict(Verdict{State: Healthy})
	backends[0].Avoid(true)
	if p.TakesBack(backends[0]) {
		t.Error("one that this node cannot reach")
	}
}

func TestUnknownPoliciesAreRefused(t *testing.T) {
	if err := Supports(&resourcev1.LoadBalancing{Policy: 99}); err == nil {
		t.Error("no error")
	}
	for _, policy := range allPolicies {
		if err := Supports(&resourcev1.LoadBalancing{Policy: policy}); err != nil {
			t.Error(err)
		}
	}
	if err := Supports(nil); err != nil {
		t.Error(err)
	}
}

func BenchmarkPickBy(b *testing.B) {
	for _, policy := range allPolicies {
		b.Run(fmt.Sprint(policy), func(b *testing.B) {
			p, _ := pickingBy(b, policy, PoolOptions{}, 3, 1, 2, 1)
			p.options.Random = rand.Uint64
			b.ReportAllocs()
			for b.Loop() {
				p.Pick(12345, nil)
			}
		})
	}
}

func TestCanariesOfEveryPolicyGetTheirShareWhileFewRequestsAreUnderWay(t *testing.T) {
	for _, policy := range []resourcev1.BalancingPolicy{roundRobin, random, leastRequest, p2cEWMA} {
		for _, atOnce := range []int{1, 10} {
			p, backends := pickingBy(t, policy, PoolOptions{}, 99, 1)
			const n = 40_000
			light := 0
			var busy []*Backend
			for range n {
				if len(busy) == atOnce {
					busy[0].conns.busy.Add(-1)
					p.Took(busy[0], 10*time.Millisecond, false)
					busy = busy[1:]
				}
				b := p.Pick(0, nil)
				b.conns.busy.Add(1)
				busy = append(busy, b)
				if b == backends[1] {
					light++
				}
			}
			if light < n/200 || light > n/50 {
				t.Errorf("%v: %d at once: weight 1 of 100 got %d requests of %d", policy, atOnce, light, n)
			}
		}
	}
}

func TestP2CLeavesAHeavyBackendThatIsSlow(t *testing.T) {
	p, backends := pickingBy(t, p2cEWMA, PoolOptions{}, 3, 2)
	p.Took(backends[0], 100*time.Millisecond, false)
	p.Took(backends[1], 10*time.Millisecond, false)
	backends[0].conns.busy.Store(1)
	if got := share(p, backends, 100); got[1] != 100 {
		t.Errorf("100 ms for weight 3 with one under way, 10 ms for weight 2: shares %v", got)
	}
	backends[1].conns.busy.Store(30)
	if got := share(p, backends, 100); got[0] != 100 {
		t.Errorf("and 30 under way there: shares %v", got)
	}
}

func TestAllThatStartSlowlyShareByWeight(t *testing.T) {
	for _, policy := range []resourcev1.BalancingPolicy{roundRobin, random, leastRequest, p2cEWMA} {
		p, backends := pickingBy(t, policy, PoolOptions{SlowStart: time.Hour}, 3, 1)
		for _, b := range backends {
			b.SetVerdict(Verdict{State: Unhealthy})
			b.SetVerdict(Verdict{State: Healthy})
		}
		if got := share(p, backends, 4000); got[0] < 2800 || got[0] > 3200 {
			t.Errorf("%v: shares %v of weights 3 and 1", policy, got)
		}
	}
}

// Where a pool asks those that it would rather not, since there is nobody else, their clients are no worse off with them.
func TestClientsStayWhereThePoolHasNobodyElse(t *testing.T) {
	p, backends := poolOf(t, 1, 1, 0)
	for _, b := range backends {
		b.Avoid(true)
	}
	for i, b := range backends {
		if !p.TakesBack(b) {
			t.Errorf("all are avoided: backend %d does not take its clients", i)
		}
	}
	backends[0].Avoid(false)
	if !p.TakesBack(backends[0]) || p.TakesBack(backends[1]) {
		t.Error("one is not avoided: want that one, and no other")
	}
}

func TestTheTableOfASmallPoolIsLaidOutByItsFirstRequest(t *testing.T) {
	for _, policy := range []resourcev1.BalancingPolicy{ringHash, maglev} {
		_, backends := poolOf(t, 1, 1)
		members := []Member{{backends[0], 1}, {backends[1], 1}}
		allocated := func(f func()) uint64 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			f()
			runtime.ReadMemStats(&after)
			return after.TotalAlloc - before.TotalAlloc
		}
		var pools [16]*Pool
		made := allocated(func() {
			for i := range pools {
				pools[i] = NewPool(members, PoolOptions{Balancing: &resourcev1.LoadBalancing{Policy: policy}})
			}
		})
		asked := allocated(func() {
			for _, p := range pools {
				if p.Pick(7, nil) == nil {
					t.Error("nothing was picked")
				}
			}
		})
		for _, p := range pools {
			p.Close()
		}
		if made > 16*4<<10 || asked < 16*4<<10 {
			t.Errorf("%v: %d bytes for %d pools, %d for their first requests", policy, made, len(pools), asked)
		}
	}
}

func TestASlowStartThatIsOverCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drawn := 0
		_, backends := poolOf(t, 1, 1)
		p := NewPool([]Member{{backends[0], 1}, {backends[1], 1}}, PoolOptions{SlowStart: time.Minute, Random: func() uint64 {
			drawn++
			return 0
		}})
		defer p.Close()
		backends[0].SetVerdict(Verdict{State: Unhealthy})
		backends[0].SetVerdict(Verdict{State: Healthy})
		p.Pick(0, nil)
		if drawn == 0 {
			t.Error("nothing was drawn while a backend starts slowly")
		}
		time.Sleep(time.Minute)
		p.Pick(0, nil)
		drawn = 0
		for range 10 {
			p.Pick(0, nil)
		}
		if drawn > 0 {
			t.Errorf("%d random numbers for ten requests", drawn)
		}
	})
}
