package upstream

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

var (
	// ErrFull is why a request was not let in: there was no place, and none to wait for one either.
	ErrFull = errors.New("circuit breaker: no place for the request")
	// ErrPendingTimeout is the end of a wait for a place.
	ErrPendingTimeout = errors.New("circuit breaker: no place for the request in time")
)

// breaker bounds what is under way with a pool: requests over all, and what is with each backend. Pools without bounds have none.
type breaker struct {
	maxRequests, maxConnections int // 0: no bound
	maxPending                  int
	timeout                     time.Duration
	*load
}

// load is what is under way. It outlives pools: the next one of the same name goes on with it.
type load struct {
	// mu guards what follows, and Pool.waiting. Nothing that waits is done under it.
	mu          sync.Mutex
	requests    int
	connections map[string]int // by address, where there are any: another interval of its check makes a backend no other server
	queue       list.List      // of *waiter, in the order of their coming
	refused     uint64
	expired     uint64
}

// waiter is a request that waits for a place.
type waiter struct {
	pool *Pool
	turn chan struct{} // capacity 1: to try again
}

func newBreaker(c *resourcev1.CircuitBreaker) *breaker {
	if c.GetMaxConnections() == 0 && c.GetMaxRequests() == 0 {
		return nil
	}
	return &breaker{
		maxRequests: int(c.GetMaxRequests()), maxConnections: int(c.GetMaxConnections()),
		maxPending: int(c.GetMaxPending()), timeout: c.GetPendingTimeout().AsDuration(),
		load: &load{connections: make(map[string]int)},
	}
}

// Inherit makes the pool's circuit breaker go on from what is under way with before, the pool of that name until now. It is to be
// called before the pool has a request.
func (p *Pool) Inherit(before *Pool) {
	if p.breaker != nil && before.breaker != nil {
		p.breaker.load = before.breaker.load
	}
}

// Bounded says whether the pool has a circuit breaker: Enter has to be used then, and not Pick.
func (p *Pool) Bounded() bool { return p.breaker != nil }

// Place is a request's place in a pool that has a circuit breaker, and with a backend of it. The zero value is none.
type Place struct {
	pool    *Pool
	backend *Backend
}

// Backend is the one that the place is with; nil: it is none.
func (p Place) Backend() *Backend { return p.backend }

// Enter is Pick with a place for the request. beside is one that the request has already: within the same pool, only one with
// another backend is needed. It never waits: full is that there are backends, but no place. Every place is to be given back by
// Leave.
func (p *Pool) Enter(hash uint64, tried []*Backend, beside Place) (place Place, full bool) {
	b := p.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	place, full = p.enter(hash, tried, beside)
	return place, full
}

// EnterAt is Enter for a request that has its backend, a member.
func (p *Pool) EnterAt(at *Backend) (place Place, full bool) {
	b := p.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.waiting > 0 || b.crowded() || b.full(at) {
		return Place{}, true
	}
	return p.take(at, Place{}), false
}

// enter is called with mu held, as is what follows.
func (p *Pool) enter(hash uint64, tried []*Backend, beside Place) (place Place, full bool) {
	b := p.breaker
	if beside.pool != p && (p.waiting > 0 || b.crowded()) {
		return Place{}, true // those that came before have the first choice
	}
	picked := p.pick(hash, tried, b)
	if picked == nil {
		return Place{}, p.pick(hash, tried, nil) != nil
	}
	return p.take(picked, beside), false
}

func (p *Pool) take(at *Backend, beside Place) Place {
	if beside.pool != p {
		p.breaker.requests++
	}
	p.breaker.connections[at.address]++
	return Place{p, at}
}

// crowded says whether as many requests are under way as may be.
func (b *breaker) crowded() bool { return b.maxRequests > 0 && b.requests >= b.maxRequests }

// full says whether as many are with one backend as may be.
func (b *breaker) full(at *Backend) bool {
	return b.maxConnections > 0 && b.connections[at.address] >= b.maxConnections
}

// Leave gives the place back. but is one that the request keeps, zero for none. On a zero place it does nothing.
func (p Place) Leave(but Place) {
	if p.pool == nil || p == but {
		return
	}
	l := p.pool.breaker.load
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.pool != but.pool {
		l.requests--
	}
	if l.connections[p.backend.address]--; l.connections[p.backend.address] == 0 {
		delete(l.connections, p.backend.address)
	}
	l.wake(nil)
}

// wake has the first waiter try again, of those of other pools than one. It is called with mu held.
func (l *load) wake(than *Pool) {
	for e := l.queue.Front(); e != nil; e = e.Next() {
		w := e.Value.(*waiter)
		if w.pool == than {
			continue
		}
		select {
		case w.turn <- struct{}{}:
		default: // it is about to
		}
		return
	}
}

func (l *load) wakeFirst() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wake(nil)
}

// Await is for a request that has no place yet and found the pool full. It waits for one, behind those that wait already, as long
// as the pool's bounds say and ctx goes on. A zero place without an error: there is no backend any more. The error is ErrFull,
// ErrPendingTimeout or that of ctx.
func (p *Pool) Await(ctx context.Context, hash uint64) (Place, error) {
	w := &waiter{pool: p, turn: make(chan struct{}, 1)}
	at, err := p.join(w)
	if err != nil {
		return Place{}, err
	}
	timeout := time.NewTimer(p.breaker.timeout)
	defer timeout.Stop()
	for {
		select {
		case <-w.turn:
			if place, done := p.retry(at, hash); done {
				return place, nil
			}
		case <-timeout.C:
			p.quit(at, &p.breaker.expired)
			return Place{}, ErrPendingTimeout
		case <-ctx.Done():
			p.quit(at, nil)
			return Place{}, ctx.Err()
		}
	}
}

// join puts w into the queue. Its first try comes at once: a place may have become free since the request asked for one.
func (p *Pool) join(w *waiter) (*list.Element, error) {
	b := p.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.queue.Len() >= b.maxPending {
		b.refused++
		return nil, ErrFull
	}
	p.waiting++
	at := b.queue.PushBack(w)
	if p.waiting == 1 {
		w.turn <- struct{}{}
	}
	return at, nil
}

// retry is a waiter's turn.
func (p *Pool) retry(at *list.Element, hash uint64) (place Place, done bool) {
	b := p.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	waiting := p.waiting
	p.waiting = 0 // it is the first
	place, full := p.enter(hash, nil, Place{})
	p.waiting = waiting
	if full {
		if b.queue.Len() > p.waiting {
			b.wake(p) // who waits by the bounds of another generation may have more luck
		}
		return Place{}, false
	}
	p.unqueue(at)
	return place, true
}

// quit takes a waiter out of the queue, and counts.
func (p *Pool) quit(at *list.Element, count *uint64) {
	b := p.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	if count != nil {
		*count++
	}
	p.unqueue(at)
}

// unqueue passes the turn on: this one may have been the first, and there may be room for more than one.
func (p *Pool) unqueue(at *list.Element) {
	p.breaker.queue.Remove(at)
	p.waiting--
	p.breaker.wake(nil)
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
	return Occupancy{Requests: l.requests, Pending: l.queue.Len(), Refused: l.refused, Expired: l.expired}
}
