package upstream

import (
	"container/list"
	"slices"
	"sync"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// breaker bounds what is under way with a pool: requests over all, and what is with each backend. Pools without bounds have none.
type breaker struct {
	own        bounds
	number     uint64 // of those that go on with the same load, in the order of their making
	maxPending int
	timeout    time.Duration
	*load

	// mu of the load guards what follows.
	waiting list.List // of *Waiter
	sated   sated
}

// bounds are how much may be under way; 0: any number.
type bounds struct {
	requests, connections int
}

// load is what is under way. It outlives pools: the next one of the same name goes on with it.
type load struct {
	// mu guards what follows. Nothing that waits is done under it.
	mu          sync.Mutex
	made        uint64
	newest      uint64 // the number of the breaker whose bounds count
	bounds      bounds
	requests    int
	connections map[string]int // by address, where there are any: another interval of its check makes a backend no other server
	left        uint64         // moves on with each place that is given back
	last        *Backend       // where the last of them was
	queues      []*Pool        // those that somebody waits for, in any order
	pending     int
	arrivals    uint64
	refused     uint64
	expired     uint64
}

// sated is that all takers were full when so many places had been given back.
type sated struct {
	takers *takers
	left   uint64
}

// newBreaker goes on from what is under way with before, which may be nil.
func newBreaker(c *resourcev1.CircuitBreaker, before *Pool) *breaker {
	if c.GetMaxConnections() == 0 && c.GetMaxRequests() == 0 {
		return nil
	}
	b := &breaker{
		own:        bounds{requests: int(c.GetMaxRequests()), connections: int(c.GetMaxConnections())},
		maxPending: int(c.GetMaxPending()), timeout: c.GetPendingTimeout().AsDuration(),
	}
	if before != nil && before.breaker != nil {
		b.load = before.breaker.load
	} else {
		b.load = &load{connections: make(map[string]int)}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.made++
	b.number = b.made
	return b
}

// enter locks the load for a request. With the first one of a pool its bounds take the place of those before, for who waits for
// an older one as well: requests must not fail because an apply gave them more room.
func (b *breaker) enter() {
	b.mu.Lock()
	if b.number > b.newest {
		b.newest, b.bounds = b.number, b.own
		b.left += 2 // who was full may not be
		b.admit()
	}
}

// Bounded says whether the pool has a circuit breaker: Enter has to be used then, and not Pick.
func (p *Pool) Bounded() bool { return p.breaker != nil }

// Place is a request's place in a pool that has a circuit breaker, and with a backend of it. The zero value is none. It holds
// nothing of the pool: a tunnel keeps it for days.
type Place struct {
	load    *load
	backend *Backend
}

// Backend is the one that the place is with; nil: it is none.
func (p Place) Backend() *Backend { return p.backend }

// Enter is Pick with a place for the request. beside is one that the request has already: within the same pool, only one with
// another backend is needed. It never waits: full is that there are backends, but no place. Every place is to be given back by
// Leave.
func (p *Pool) Enter(hash uint64, tried []*Backend, beside Place) (place Place, full bool) {
	b := p.breaker
	b.enter()
	defer b.mu.Unlock()
	if beside.load != b.load && b.waiting.Len() > 0 {
		return Place{}, p.Takes() // those that came before have the first choice
	}
	return p.place(hash, tried, beside)
}

// EnterAt is Enter for a request that has its backend, a member. It takes nothing from those that wait: where requests are not too
// many, what they wait for is a backend with room, and this one they cannot have.
func (p *Pool) EnterAt(at *Backend) (place Place, full bool) {
	b := p.breaker
	b.enter()
	defer b.mu.Unlock()
	if b.crowded() || b.full(at) {
		return Place{}, true
	}
	return b.take(at, Place{}), false
}

// Refuse counts a request that is not let in, and that cannot wait.
func (p *Pool) Refuse() {
	b := p.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused++
}

// place is called with mu held, as is what follows.
func (p *Pool) place(hash uint64, tried []*Backend, beside Place) (place Place, full bool) {
	b := p.breaker
	if beside.load != b.load && b.crowded() {
		return Place{}, p.Takes()
	}
	if at := p.withRoom(hash, tried); at != nil {
		return b.take(at, beside), false
	}
	return Place{}, slices.ContainsFunc(p.takers.Load().backends, func(at *Backend) bool { return !slices.Contains(tried, at) })
}

// withRoom is the pick among those that have room. That all are full is kept in mind until a place is given back, and who has been
// left then is the only one with room: to look at a thousand backends for each request would cost most when there is most to do.
func (p *Pool) withRoom(hash uint64, tried []*Backend) *Backend {
	b, t := p.breaker, p.takers.Load()
	if b.sated.takers == t {
		switch since := b.left - b.sated.left; {
		case since == 0:
			return nil
		case since == 1 && slices.Contains(t.backends, b.last):
			if b.full(b.last) {
				b.sated.left = b.left
				return nil
			}
			if slices.Contains(tried, b.last) {
				return nil
			}
			return b.last
		}
	}
	picked := p.pick(hash, tried, b)
	if picked == nil && len(tried) == 0 {
		b.sated = sated{t, b.left}
	}
	return picked
}

func (b *breaker) take(at *Backend, beside Place) Place {
	if beside.load != b.load {
		b.requests++
	}
	b.connections[at.address]++
	return Place{b.load, at}
}

// crowded says whether as many requests are under way as may be.
func (l *load) crowded() bool { return l.bounds.requests > 0 && l.requests >= l.bounds.requests }

// full says whether as many are with one backend as may be.
func (l *load) full(at *Backend) bool {
	return l.bounds.connections > 0 && l.connections[at.address] >= l.bounds.connections
}

// Leave gives the place back. but is one that the request keeps, zero for none. On a zero place it does nothing.
func (p Place) Leave(but Place) {
	if p.load == nil || p == but {
		return
	}
	l := p.load
	l.mu.Lock()
	defer l.mu.Unlock()
	if l != but.load {
		l.requests--
	}
	if l.connections[p.backend.address]--; l.connections[p.backend.address] == 0 {
		delete(l.connections, p.backend.address)
	}
	l.left++
	l.last = p.backend
	l.admit()
}

// Occupancy is what is under way with a pool and what its bounds have done, since its route has some.
type Occupancy struct {
	// Requests that have a place, upgraded connections among them, and requests that wait for one.
	Requests, Pending int
	// Requests that were not let in because there was no place, and those that have waited for one in vain.
	Refused, Expired uint64
}

// Occupancy of a pool that is Bounded.
func (p *Pool) Occupancy() Occupancy {
	l := p.breaker.load
	l.mu.Lock()
	defer l.mu.Unlock()
	return Occupancy{Requests: l.requests, Pending: l.pending, Refused: l.refused, Expired: l.expired}
}
