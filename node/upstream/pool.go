package upstream

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/node/balance"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Member is a backend with its share of a pool.
type Member struct {
	Backend *Backend
	// Relative to the other members. 0: no new requests.
	Weight uint32
}

// PoolOptions say how a pool picks. The zero value is round robin.
type PoolOptions struct {
	// Nil: round robin. It is kept and must not be changed. Supports must have found nothing wrong with it.
	Balancing *resourcev1.LoadBalancing
	// Nil, or without max_connections and max_requests: nothing is bounded.
	CircuitBreaker *resourcev1.CircuitBreaker
	// The pool of the same name until now: the circuit breaker goes on from what is under way with it. Nil: from nothing.
	Before *Pool
	// Over how long a backend that begins to take traffic comes to its share. 0: at once. Pools that pick by hash know none.
	SlowStart time.Duration
	// Where fewer than so many in a hundred members are healthy, but not none, verdicts do not count. 0: they always do.
	PanicPercent uint32
	// Any 64 bits. Called concurrently. Nil: math/rand/v2.
	Random func() uint64
}

// Supports says what is wrong with l, which may be nil.
func Supports(l *resourcev1.LoadBalancing) error {
	switch l.GetPolicy() {
	case roundRobin, resourcev1.BalancingPolicy_BALANCING_POLICY_ROUND_ROBIN, leastRequest, random, p2cEWMA, ringHash, maglev:
		return nil
	}
	return fmt.Errorf("this node knows no policy %s", l.GetPolicy())
}

// Pool picks one of several backends for each request, by weight, among those that take traffic. Its methods may be called
// concurrently.
type Pool struct {
	members []Member
	options PoolOptions
	policy  resourcev1.BalancingPolicy
	table   func() *balance.Table // of members, where the policy is one that hashes; nil elsewhere

	// What Pick reads: replaced as a whole when a verdict changes, so that requests meet no lock.
	takers atomic.Pointer[takers]

	guard   atomic.Pointer[guard] // nil: no passive health
	breaker *breaker              // nil: no bounds

	// rebuilding makes the last of several rebuilds the one that saw all verdicts. It is taken with no other lock held.
	rebuilding sync.Mutex
}

// NewPool makes a pool of members, which it copies. The references stay the caller's: it releases the backends after Close.
func NewPool(members []Member, o PoolOptions) *Pool {
	p := &Pool{members: slices.Clone(members), options: o, policy: o.Balancing.GetPolicy(), breaker: newBreaker(o.CircuitBreaker, o.Before)}
	p.options.Before = nil // or no pool would ever be forgotten
	if p.options.Random == nil {
		p.options.Random = rand.Uint64
	}
	switch p.policy {
	case ringHash:
		p.lay(balance.NewRing)
	case maglev:
		p.lay(balance.NewMaglev)
	}
	// Joined first and built after: a verdict that changes in between is seen by one or the other.
	for _, m := range p.members {
		m.Backend.join(p)
	}
	p.rebuild()
	return p
}

// laidLater is how many members a pool may have for its table to be laid out by its first request: that takes less than a millisecond
// then. Of very many routes most are never asked for, and a table is 64 KiB.
const laidLater = 100

// lay makes the pool pick by a table.
func (p *Pool) lay(table func([]balance.Place) *balance.Table) {
	p.table = sync.OnceValue(func() *balance.Table { return table(p.places()) })
	if len(p.members) > laidLater {
		p.table()
	}
}

// places are the members as a table knows them. A backend is its address there: were it its identity, another interval of its
// health check would give every client another backend.
func (p *Pool) places() []balance.Place {
	places := make([]balance.Place, len(p.members))
	for i, m := range p.members {
		places[i] = balance.Place{Key: balance.Hash([]byte(m.Backend.Address())), Weight: m.Weight}
	}
	return places
}

// Close makes the pool deaf to verdicts. Requests that still hold it may go on picking.
func (p *Pool) Close() {
	for _, m := range p.members {
		m.Backend.leave(p)
	}
}

// Members are those given to NewPool. The slice is shared and must not be changed.
func (p *Pool) Members() []Member { return p.members }

// Balancing is that of PoolOptions; nil: round robin. It must not be changed.
func (p *Pool) Balancing() *resourcev1.LoadBalancing { return p.options.Balancing }

// First is the backend that Pick would give for hash where the pool picks by that, else the first that takes traffic, without a
// pick: nobody's turn is taken. Where none does it is the first of all; nil: the pool is empty.
func (p *Pool) First(hash uint64) (b *Backend, takes bool) {
	if p.table != nil {
		if b := p.Pick(hash, nil); b != nil {
			return b, true
		}
	} else if t := p.takers.Load(); len(t.backends) > 0 {
		return t.backends[0], true
	}
	if len(p.members) > 0 {
		return p.members[0].Backend, false
	}
	return nil, false
}

// Takes says whether any member takes traffic.
func (p *Pool) Takes() bool { return len(p.takers.Load().backends) > 0 }

// TakesBack says whether a client that was given b, a member, may go on with it: one of weight 0 goes on with the clients that it
// has. Where nobody is left but those that are avoided or ejected, and the pool asks them all the same, their clients stay with them.
func (p *Pool) TakesBack(b *Backend) bool {
	t := p.takers.Load()
	return (t.open || b.takes()) && (t.avoided || !b.Avoided()) && !t.ejected[b]
}

// rebuild lays out the order anew from the verdicts of this moment.
func (p *Pool) rebuild() {
	p.rebuilding.Lock()
	defer p.rebuilding.Unlock()
	next := &takers{ejected: p.passedOver(), open: p.looksDead()}
	weights := p.gather(next)
	if len(weights) == 0 {
		next.avoided = true
		weights = p.gather(next)
	}
	p.arrange(next, weights)
	p.takers.Store(next)
	if p.breaker != nil {
		p.breaker.readmit() // a backend may have come that has room
	}
}

// gather puts the members into t that take traffic, and gives their weights.
func (p *Pool) gather(t *takers) (weights []uint32) {
	for _, m := range p.members {
		if m.Weight > 0 && (t.open || m.Backend.takes()) && (t.avoided || !m.Backend.Avoided()) && !t.ejected[m.Backend] {
			t.backends = append(t.backends, m.Backend)
			weights = append(weights, m.Weight)
		}
	}
	return weights
}
