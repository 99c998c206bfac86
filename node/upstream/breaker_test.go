package upstream

import (
	"context"
	"errors"
	"fmt"
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
	if _, err := p.Await(t.Context(), 0); !errors.Is(err, ErrFull) {
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
				place, err := p.Await(t.Context(), 0)
				if err != nil {
					t.Errorf("waiter %d: %v", i, err)
				}
				turns <- i
				place.Leave(Place{})
			})
			synctest.Wait()
		}
		if _, err := p.Await(t.Context(), 0); !errors.Is(err, ErrFull) {
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
				_, err := p.Await(ctx, 0)
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
					if place, err := p.Await(ctx, 0); err == nil {
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
				place, err := p.Await(t.Context(), 0)
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

// The pool of the next generation counts on, by its own bounds; who waits by the old ones stays in the queue and keeps nobody up.
func TestTheNextPoolGoesOnWithWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, backends := poolOf(t, 1)
		old := bounded(t, limits(0, 1, 1), roundRobin, backends)
		held := mustEnter(t, old, 0)
		done := make(chan Place, 1)
		var waiting sync.WaitGroup
		waiting.Go(func() {
			place, err := old.Await(t.Context(), 0)
			if err != nil {
				t.Error(err)
			}
			done <- place
		})
		synctest.Wait()
		next := bounded(t, limits(0, 2, 1), roundRobin, backends)
		next.Inherit(old)
		second := mustEnter(t, next, 0)
		wantFull(t, next)
		held.Leave(Place{})
		synctest.Wait()
		wantOccupancy(t, next, Occupancy{Requests: 1, Pending: 1}) // by the old bounds there is no place
		second.Leave(Place{})
		(<-done).Leave(Place{})
		waiting.Wait()
		wantOccupancy(t, next, Occupancy{})
		next.Inherit(bounded(t, nil, roundRobin, backends)) // which bounded nothing
		mustEnter(t, next, 0)
	})
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
					if place, err = p.Await(t.Context(), 0); err != nil {
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
