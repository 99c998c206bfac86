package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// bounded makes a pool with a circuit breaker of the backends given.
func bounded(t testing.TB, c *resourcev1.CircuitBreaker, policy resourcev1.BalancingPolicy, backends []*Backend) *Pool {
	t.Helper()
	var members []Member
	for _, b := range backends {
		members = append(members, Member{Backend: b, Weight: 1})
	}
	p := NewPool(members, PoolOptions{CircuitBreaker: c, Balancing: &resourcev1.LoadBalancing{Policy: policy}, Random: seeded()})
	t.Cleanup(p.Close)
	return p
}

func limits(connections, requests, pending uint32) *resourcev1.CircuitBreaker {
	return &resourcev1.CircuitBreaker{
		MaxConnections: connections, MaxRequests: requests, MaxPending: pending, PendingTimeout: durationpb.New(time.Second),
	}
}

// await is Queue and Wait.
func await(ctx context.Context, p *Pool) (Place, error) {
	w, err := p.Queue(0)
	if err != nil {
		return Place{}, err
	}
	return w.Wait(ctx)
}

// follow is bounded for the next pool after one.
func follow(t testing.TB, before *Pool, c *resourcev1.CircuitBreaker) *Pool {
	t.Helper()
	p := NewPool(before.Members(), PoolOptions{CircuitBreaker: c, Before: before})
	t.Cleanup(p.Close)
	return p
}

// mustEnter wants a place.
func mustEnter(t *testing.T, p *Pool, hash uint64) Place {
	t.Helper()
	place, full := p.Enter(hash, nil, Place{})
	if full || place.Backend() == nil {
		t.Fatalf("no place: full %v", full)
	}
	return place
}

func wantFull(t *testing.T, p *Pool) {
	t.Helper()
	if place, full := p.Enter(7, nil, Place{}); !full || place.Backend() != nil {
		t.Fatalf("got in, to %v", place)
	}
}

func wantOccupancy(t *testing.T, p *Pool, want Occupancy) {
	t.Helper()
	if got := p.Occupancy(); got != want {
		t.Fatalf("occupancy %+v, want %+v", got, want)
	}
}

func TestBreakerBoundsEachBackend(t *testing.T) {
	for _, policy := range allPolicies {
		_, backends := poolOf(t, 1, 1, 1)
		p := bounded(t, limits(2, 0, 0), policy, backends)
		var places []Place
		with := make(map[*Backend]int)
		for i := range 6 {
			place := mustEnter(t, p, uint64(i%2)) // two clients, who would have two backends
			places = append(places, place)
			with[place.Backend()]++
		}
		for _, b := range backends {
			if with[b] != 2 {
				t.Errorf("%v: %d requests with %s, want 2", policy, with[b], b.Address())
			}
		}
		wantFull(t, p)
		gone := places[3].Backend()
		places[3].Leave(Place{})
		if next := mustEnter(t, p, 0); next.Backend() != gone {
			t.Errorf("%v: went to %s, want the one with room", policy, next.Backend().Address())
		}
	}
}

func TestBreakerBoundsAllRequestsOfAPool(t *testing.T) {
	_, backends := poolOf(t, 1, 1)
	p := bounded(t, limits(0, 3, 0), roundRobin, backends)
	places := []Place{mustEnter(t, p, 0), mustEnter(t, p, 0), mustEnter(t, p, 0)}
	wantFull(t, p)
	wantOccupancy(t, p, Occupancy{Requests: 3})
	if _, err := await(t.Context(), p); !errors.Is(err, ErrFull) {
		t.Fatalf("waited: %v", err)
	}
	for _, place := range places {
		place.Leave(Place{})
	}
	Place{}.Leave(Place{})
	wantOccupancy(t, p, Occupancy{Refused: 1})
	if n := len(p.breaker.connections); n != 0 {
		t.Errorf("%d backends are remembered with nothing under way", n)
	}
}

func TestARetryNeedsRoomWithItsBackendAlone(t *testing.T) {
	_, backends := poolOf(t, 1, 1)
	p := bounded(t, limits(1, 1, 0), roundRobin, backends)
	first := mustEnter(t, p, 0)
	second, full := p.Enter(0, []*Backend{first.Backend()}, first)
	if full || second.Backend() == nil || second.Backend() == first.Backend() {
		t.Fatalf("the retry is with %v, full %v", second, full)
	}
	wantOccupancy(t, p, Occupancy{Requests: 1})
	if place, full := p.Enter(0, []*Backend{first.Backend(), second.Backend()}, second); full || place.Backend() != nil {
		t.Errorf("a third attempt: %v, full %v, want that no backend is left", place, full)
	}
	first.Leave(second)
	wantOccupancy(t, p, Occupancy{Requests: 1})
	second.Leave(Place{})
	wantOccupancy(t, p, Occupancy{})
}

func TestARequestThatBelongsToABackendGetsInThereOrNot(t *testing.T) {
	_, backends := poolOf(t, 1, 1)
	p := bounded(t, limits(1, 0, 0), roundRobin, backends)
	place, full := p.EnterAt(backends[1])
	if full || place.Backend() != backends[1] {
		t.Fatalf("got %v, full %v", place, full)
	}
	if _, full := p.EnterAt(backends[1]); !full {
		t.Error("two are with a backend that takes one")
	}
	if other := mustEnter(t, p, 0); other.Backend() != backends[0] {
		t.Error("the other backend was not found")
	}
}

func TestWhereNoBackendIsLeftNothingIsFull(t *testing.T) {
	_, backends := poolOf(t, 1)
	p := bounded(t, limits(1, 1, 1), roundRobin, backends)
	backends[0].SetVerdict(Verdict{State: Unhealthy})
	if place, full := p.Enter(0, nil, Place{}); full || place.Backend() != nil {
		t.Errorf("got %v, full %v", place, full)
	}
}

// Requests wait in the order of their coming, nobody overtakes them, and no place is lost.
func TestWaitersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, backends := poolOf(t, 1)
		p := bounded(t, limits(1, 0, 3), roundRobin, backends)
		held := mustEnter(t, p, 0)
		turns := make(chan int)
		var waiting sync.WaitGroup
		for i := range 3 {
			waiting.Go(func() {
				place, err := await(t.Context(), p)
				if err != nil {
					t.Errorf("waiter %d: %v", i, err)
				}
				turns <- i
				place.Leave(Place{})
			})
			synctest.Wait()
		}
		if _, err := await(t.Context(), p); !errors.Is(err, ErrFull) {
			t.Errorf("a fourth waits: %v", err)
		}
		wantOccupancy(t, p, Occupancy{Requests: 1, Pending: 3, Refused: 1})
		held.Leave(Place{})
		wantFull(t, p) // the place is the first waiter's
		for want := range 3 {
			if got := <-turns; got != want {
				t.Errorf("waiter %d had the turn of %d", got, want)
			}
		}
		waiting.Wait()
		wantOccupancy(t, p, Occupancy{Refused: 1})
	})
}

func TestWaitersLeaveTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, backends := poolOf(t, 1)
		p := bounded(t, limits(1, 0, 3), roundRobin, backends)
		held := mustEnter(t, p, 0)
		gone, cancel := context.WithCancel(t.Context())
		results := make(chan error, 3)
		var waiting sync.WaitGroup
		for _, ctx := range []context.Context{gone, t.Context()} {
			waiting.Go(func() {
				_, err := await(ctx, p)
				results <- err
			})
			synctest.Wait()
		}
		cancel()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("the one who went away: %v", err)
		}
		wantOccupancy(t, p, Occupancy{Requests: 1, Pending: 1})
		begin := time.Now()
		if err := <-results; !errors.Is(err, ErrPendingTimeout) {
			t.Errorf("the one who waited too long: %v", err)
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("it waited %v", took)
		}
		wantOccupancy(t, p, Occupancy{Requests: 1, Expired: 1})
		held.Leave(Place{})
		mustEnter(t, p, 0)
		waiting.Wait()
	})
}

// The one whose turn it was goes away at that moment: the next has it.
func TestNoTurnIsLostWithItsWaiter(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			_, backends := poolOf(t, 1)
			p := bounded(t, limits(1, 0, 2), roundRobin, backends)
			held := mustEnter(t, p, 0)
			going, cancel := context.WithCancel(t.Context())
			var waiting sync.WaitGroup
			var in atomic.Int32
			for _, ctx := range []context.Context{going, t.Context()} {
				waiting.Go(func() {
					if place, err := await(ctx, p); err == nil {
						in.Add(1)
						place.Leave(Place{})
					}
				})
				synctest.Wait()
			}
			waiting.Go(cancel)
			waiting.Go(func() { held.Leave(Place{}) })
			waiting.Wait()
			if n := p.Occupancy(); n.Requests != 0 || n.Pending != 0 || n.Expired != 0 || in.Load() == 0 {
				t.Errorf("%+v at the end, %d got in", n, in.Load())
			}
		})
	}
}

func TestABackendThatComesBackTakesWhoeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, backends := poolOf(t, 1, 1)
		backends[1].SetVerdict(Verdict{State: Unhealthy})
		p := bounded(t, limits(2, 0, 5), roundRobin, backends)
		held := []Place{mustEnter(t, p, 0), mustEnter(t, p, 0)}
		with := make(chan Place, 3)
		var waiting sync.WaitGroup
		for range 3 {
			waiting.Go(func() {
				place, err := await(t.Context(), p)
				if err != nil {
					t.Error(err)
				}
				with <- place
			})
		}
		synctest.Wait()
		backends[1].SetVerdict(Verdict{State: Healthy})
		for range 2 {
			if place := <-with; place.Backend() != backends[1] {
				t.Error("not with the backend that has come back")
			}
		}
		synctest.Wait()
		wantOccupancy(t, p, Occupancy{Requests: 4, Pending: 1})
		held[0].Leave(Place{})
		if place := <-with; place.Backend() != backends[0] {
			t.Error("not with the backend that has room")
		}
		waiting.Wait()
	})
}

// The pool of the next generation counts on, and from its first request on its bounds count for who waits for the old one as well.
func TestTheNextPoolGoesOnWithWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, backends := poolOf(t, 1)
		old := bounded(t, limits(0, 1, 2), roundRobin, backends)
		held := mustEnter(t, old, 0)
		places := make(chan Place, 2)
		var waiting sync.WaitGroup
		for range 2 {
			waiting.Go(func() {
				place, err := await(t.Context(), old)
				if err != nil {
					t.Error(err)
				}
				places <- place
			})
		}
		synctest.Wait()
		next := follow(t, old, limits(0, 2, 1))
		wantOccupancy(t, next, Occupancy{Requests: 1, Pending: 2}) // nobody knows yet whether it will have a request
		wantFull(t, next)
		synctest.Wait()
		wantOccupancy(t, next, Occupancy{Requests: 2, Pending: 1})
		narrow := follow(t, next, limits(0, 1, 1))
		wantFull(t, narrow)
		(<-places).Leave(Place{})
		synctest.Wait()
		wantOccupancy(t, narrow, Occupancy{Requests: 1, Pending: 1})
		held.Leave(Place{})
		(<-places).Leave(Place{})
		waiting.Wait()
		wantOccupancy(t, next, Occupancy{})
	})
}

// Those who wait for the pools of two generations have one queue, in which nobody tries again and again while all is full.
func TestGenerationsWaitInOneOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, backends := poolOf(t, 1)
		pools := []*Pool{bounded(t, limits(0, 1, 9), roundRobin, backends)}
		pools = append(pools, follow(t, pools[0], limits(0, 1, 9)))
		held := mustEnter(t, pools[0], 0)
		turns := make(chan int)
		var waiting sync.WaitGroup
		for i := range 6 {
			waiting.Go(func() {
				place, err := await(t.Context(), pools[i%2])
				if err != nil {
					t.Errorf("waiter %d: %v", i, err)
				}
				turns <- i
				place.Leave(Place{})
			})
			synctest.Wait()
		}
		held.Leave(Place{})
		wantFull(t, pools[1])
		for want := range 6 {
			if got := <-turns; got != want {
				t.Errorf("waiter %d had the turn of %d", got, want)
			}
		}
		waiting.Wait()
		wantOccupancy(t, pools[0], Occupancy{})
	})
}

// Whoever waits for a pool whose backends are full keeps up nobody who waits for another generation's.
func TestAFullGenerationKeepsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, backends := poolOf(t, 1, 1)
		old := bounded(t, limits(1, 0, 9), roundRobin, backends[:1])
		next := NewPool([]Member{{backends[1], 1}}, PoolOptions{CircuitBreaker: limits(1, 0, 9), Before: old})
		defer next.Close()
		mustEnter(t, old, 0)
		there := mustEnter(t, next, 0)
		var waiting sync.WaitGroup
		for _, p := range []*Pool{old, next} {
			waiting.Go(func() {
				place, err := await(t.Context(), p)
				if p == next && (err != nil || place.Backend() != backends[1]) || p == old && !errors.Is(err, ErrPendingTimeout) {
					t.Errorf("%v, %v", place, err)
				}
			})
			synctest.Wait()
		}
		there.Leave(Place{})
		waiting.Wait()
	})
}

// A verdict may come while the next generation is made.
func TestAPoolIsMadeWhileItsBackendsChange(t *testing.T) {
	_, backends := poolOf(t, 1)
	p := bounded(t, limits(0, 1, 1), roundRobin, backends)
	stop := make(chan struct{})
	var changes sync.WaitGroup
	changes.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				backends[0].SetVerdict(Verdict{State: Unhealthy})
				backends[0].SetVerdict(Verdict{State: Healthy})
			}
		}
	})
	for range 100 {
		p = follow(t, p, limits(0, 1, 1))
	}
	close(stop)
	changes.Wait()
	mustEnter(t, p, 0).Leave(Place{})
	wantOccupancy(t, p, Occupancy{})
}

func TestAPoolForgetsTheOneBefore(t *testing.T) {
	_, backends := poolOf(t, 1)
	next := follow(t, bounded(t, limits(0, 1, 1), roundRobin, backends), limits(0, 1, 1))
	if next.options.Before != nil {
		t.Error("each pool keeps all before it")
	}
}

// What a backend that is left alone but for its clients has room for, nobody of those who wait could have.
func TestWhoBelongsToABackendDoesNotWaitForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, backends := poolOf(t, 1, 1)
		p := NewPool([]Member{{backends[0], 1}, {backends[1], 0}}, PoolOptions{CircuitBreaker: limits(1, 0, 1)})
		defer p.Close()
		held := mustEnter(t, p, 0)
		var waiting sync.WaitGroup
		waiting.Go(func() { await(t.Context(), p) })
		synctest.Wait()
		if place, full := p.EnterAt(backends[1]); full || place.Backend() != backends[1] {
			t.Error("a client is not let in at its own backend, which has room")
		}
		held.Leave(Place{})
		waiting.Wait()
	})
}

// The turn of someone who has gone meanwhile is the next one's, and the place of one whose time is over at that moment is its own.
func TestAPlaceThatComesInTheLastMoment(t *testing.T) {
	_, backends := poolOf(t, 1)
	p := bounded(t, limits(0, 1, 1), roundRobin, backends)
	given := func() *Waiter {
		held := mustEnter(t, p, 0)
		w, err := p.Queue(0)
		if err != nil {
			t.Fatal(err)
		}
		held.Leave(Place{})
		return w
	}
	place, err := given().expire()
	if err != nil || place.Backend() == nil {
		t.Errorf("at the end of its time: %v, %v", place, err)
	}
	place.Leave(Place{})
	given().quit()
	wantOccupancy(t, p, Occupancy{})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 {
		if place, err := given().Wait(gone); !errors.Is(err, context.Canceled) || place.Backend() != nil {
			t.Fatalf("of one who has gone: %v, %v", place, err)
		}
	}
	wantOccupancy(t, p, Occupancy{})
}

// Tunnels may hold all places of a pool whose backends have died.
func TestWhoHasNoBackendDoesNotWaitForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, backends := poolOf(t, 1)
		p := bounded(t, limits(0, 1, 1), roundRobin, backends)
		mustEnter(t, p, 0)
		var waiting sync.WaitGroup
		waiting.Go(func() {
			if place, err := await(t.Context(), p); err != nil || place.Backend() != nil {
				t.Errorf("%v, %v, want that there is no backend", place, err)
			}
		})
		synctest.Wait()
		backends[0].SetVerdict(Verdict{State: Unhealthy})
		waiting.Wait()
		if place, full := p.Enter(0, nil, Place{}); full || place.Backend() != nil {
			t.Errorf("got %v, full %v", place, full)
		}
	})
}

// What is remembered of a pool that is full is forgotten in time: it lets in as many as if it looked at every backend each time.
func TestAFullPoolKnowsWhoHasRoom(t *testing.T) {
	for _, policy := range allPolicies {
		r := rand.New(rand.NewPCG(3, 4))
		_, backends := poolOf(t, 1, 1, 1, 1, 1)
		pools := []*Pool{bounded(t, limits(2, 0, 0), policy, backends)}
		pools = append(pools, NewPool([]Member{{backends[1], 2}, {backends[4], 1}}, PoolOptions{CircuitBreaker: limits(2, 0, 0), Before: pools[0]}))
		t.Cleanup(pools[1].Close)
		var places []Place
		for range 3000 {
			p := pools[r.IntN(len(pools))]
			switch r.IntN(5) {
			case 0:
				if len(places) > 0 {
					i := r.IntN(len(places))
					places[i].Leave(Place{})
					places = slices.Delete(places, i, i+1)
				}
			case 1:
				state := Healthy
				if r.IntN(2) == 0 {
					state = Unhealthy
				}
				backends[r.IntN(3)].SetVerdict(Verdict{State: state}) // each pool has one that is left alone
			case 2: // a retry
				tried := []*Backend{backends[r.IntN(len(backends))]}
				room := roomOf(p, tried)
				if place, _ := p.Enter(r.Uint64(), tried, Place{}); (place.Backend() != nil) != room {
					t.Fatalf("%v: a retry got %v, and there is room: %v", policy, place, room)
				} else if room {
					place.Leave(Place{})
				}
			default:
				room := roomOf(p, nil)
				place, full := p.Enter(r.Uint64(), nil, Place{})
				if full == room || (place.Backend() != nil) != room {
					t.Fatalf("%v: got %v, full %v, and there is room: %v", policy, place, full, room)
				}
				if room {
					places = append(places, place)
				}
			}
		}
	}
}

// roomOf looks at every backend.
func roomOf(p *Pool, tried []*Backend) bool {
	return slices.ContainsFunc(p.Members(), func(m Member) bool {
		return m.Backend.takes() && !slices.Contains(tried, m.Backend) && !p.breaker.full(m.Backend)
	})
}

// An apply that changes how a backend is checked makes another of it, at the same address.
func TestAPlaceAtAnAddressIsOneForEachOfItsBackends(t *testing.T) {
	r := newRegistry(t, Options{})
	old := acquire(t, r, Spec{Host: "10.0.0.1", Port: 1})
	other := acquire(t, r, Spec{Host: "10.0.0.1", Port: 1, Check: &resourcev1.HealthCheck{}})
	before := bounded(t, limits(1, 0, 0), roundRobin, []*Backend{old})
	next := NewPool([]Member{{other, 1}}, PoolOptions{CircuitBreaker: limits(1, 0, 0), Before: before})
	defer next.Close()
	held := mustEnter(t, before, 0)
	wantFull(t, next)
	held.Leave(Place{})
	mustEnter(t, next, 0)
}

func TestBackendsThatStartSlowlyShareByWeightWithinBounds(t *testing.T) {
	p, backends := pickingBy(t, roundRobin, PoolOptions{SlowStart: time.Hour, CircuitBreaker: limits(100, 0, 0)}, 3, 1)
	for _, b := range backends {
		b.SetVerdict(Verdict{State: Unhealthy})
		b.SetVerdict(Verdict{State: Healthy})
	}
	got := 0
	for range 4000 {
		place := mustEnter(t, p, 0)
		if place.Backend() == backends[0] {
			got++
		}
		place.Leave(Place{})
	}
	if got < 2800 || got > 3200 {
		t.Errorf("%d of 4000 for weight 3 of 4", got)
	}
}

func TestBoundsHoldUnderLoad(t *testing.T) {
	_, backends := poolOf(t, 1, 1, 1)
	const connections, requests, clients, each = 3, 7, 40, 50
	p := bounded(t, &resourcev1.CircuitBreaker{
		MaxConnections: connections, MaxRequests: requests, MaxPending: clients, PendingTimeout: durationpb.New(time.Hour),
	}, leastRequest, backends)
	var under atomic.Int32
	with := make(map[*Backend]*atomic.Int32)
	for _, b := range backends {
		with[b] = new(atomic.Int32)
	}
	var served atomic.Int32
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for range each {
				place, full := p.Enter(0, nil, Place{})
				if full {
					var err error
					if place, err = await(t.Context(), p); err != nil {
						t.Error(err)
						return
					}
				}
				if n := under.Add(1); n > requests {
					t.Errorf("%d requests are under way", n)
				}
				n := with[place.Backend()]
				if n := n.Add(1); n > connections {
					t.Errorf("%d are with one backend", n)
				}
				served.Add(1)
				n.Add(-1)
				under.Add(-1)
				place.Leave(Place{})
			}
		})
	}
	all.Wait()
	if served.Load() != clients*each {
		t.Errorf("%d were served", served.Load())
	}
	wantOccupancy(t, p, Occupancy{})
}

func TestEnteringAllocatesNothing(t *testing.T) {
	_, backends := poolOf(t, 1, 1, 1)
	p := bounded(t, limits(5, 9, 0), roundRobin, backends)
	kept := mustEnter(t, p, 0)
	defer kept.Leave(Place{})
	if n := testing.AllocsPerRun(100, func() {
		place, _ := p.Enter(0, nil, Place{})
		place.Leave(Place{})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// In a pool that is full what is turned away and what takes the place that is left costs as little with many backends as with one.
func BenchmarkEnterWhereAllIsFull(b *testing.B) {
	for _, n := range []int{1, 1000} {
		_, backends := poolOf(b, slices.Repeat([]uint32{1}, n)...)
		p := bounded(b, limits(1, 0, 0), roundRobin, backends)
		places := make([]Place, n)
		for i := range places {
			places[i], _ = p.Enter(0, nil, Place{})
		}
		b.Run(fmt.Sprint("refused/backends=", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Enter(0, nil, Place{})
			}
		})
		b.Run(fmt.Sprint("turns/backends=", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				places[i].Leave(Place{})
				places[i], _ = p.Enter(0, nil, Place{})
				p.Enter(0, nil, Place{})
				i = (i + 1) % n
			}
		})
	}
}

func BenchmarkEnter(b *testing.B) {
	for _, n := range []int{1, 10, 1000} {
		b.Run(fmt.Sprint("backends=", n), func(b *testing.B) {
			_, backends := poolOf(b, slices.Repeat([]uint32{1}, n)...)
			p := bounded(b, limits(100, 100_000, 0), roundRobin, backends)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					place, _ := p.Enter(0, nil, Place{})
					place.Leave(Place{})
				}
			})
		})
	}
}
