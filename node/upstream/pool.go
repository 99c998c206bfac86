package upstream

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/pyserve/pyserve/node/balance"
)

// Member is a backend with its share of a pool.
type Member struct {
	Backend *Backend
	// Relative to the other members. 0: no new requests.
	Weight uint32
}

// Pool picks one of several backends for each request, by weight, among those that take traffic. Its methods may be called
// concurrently.
type Pool struct {
	members []Member

	// What Pick reads: replaced as a whole when a verdict changes, so that requests meet no lock.
	takers atomic.Pointer[takers]

	guard atomic.Pointer[guard] // nil: no passive health

	// rebuilding makes the last of several rebuilds the one that saw all verdicts. It is taken with no other lock held.
	rebuilding sync.Mutex
}

// takers are the members that take traffic, and the order in which they do.
type takers struct {
	backends []*Backend
	order    *balance.RoundRobin
	detours  atomic.Uint64 // picks that the order could not serve
}

// NewPool makes a pool of members, which it copies. The references stay the caller's: it releases the backends after Close.
func NewPool(members []Member) *Pool {
	p := &Pool{members: slices.Clone(members)}
	// Joined first and built after: a verdict that changes in between is seen by one or the other.
	for _, m := range p.members {
		m.Backend.join(p)
	}
	p.rebuild()
	return p
}

// Close makes the pool deaf to verdicts. Requests that still hold it may go on picking.
func (p *Pool) Close() {
	for _, m := range p.members {
		m.Backend.leave(p)
	}
}

// Members are those given to NewPool. The slice is shared and must not be changed.
func (p *Pool) Members() []Member { return p.members }

// Pick is the backend for the next request: the next in turn that takes traffic and is not in tried, the backends on which
// this request has failed already. Nil: there is none. It allocates nothing and takes no lock.
func (p *Pool) Pick(tried []*Backend) *Backend {
	t := p.takers.Load()
	if len(t.backends) == 0 {
		return nil
	}
	for range len(tried) + 1 {
		if b := t.backends[t.order.Next()]; !slices.Contains(tried, b) {
			return b
		}
	}
	// A heavy backend that failed comes up again and again before its turn is over: whoever is left, then, from a place
	// that moves, lest all of a dead backend's requests fall on its neighbour.
	start, n := t.detours.Add(1), uint64(len(t.backends))
	for i := range n {
		if b := t.backends[(start+i)%n]; !slices.Contains(tried, b) {
			return b
		}
	}
	return nil
}

// First is the first backend that takes traffic, without a pick: nobody's turn is taken. Where none does it is the first
// of all; nil: the pool is empty.
func (p *Pool) First() (b *Backend, takes bool) {
	if t := p.takers.Load(); len(t.backends) > 0 {
		return t.backends[0], true
	}
	if len(p.members) > 0 {
		return p.members[0].Backend, false
	}
	return nil, false
}

// rebuild lays out the order anew from the verdicts of this moment.
func (p *Pool) rebuild() {
	p.rebuilding.Lock()
	defer p.rebuilding.Unlock()
	next := &takers{}
	weights := p.gather(next, false)
	if len(weights) == 0 {
		weights = p.gather(next, true)
	}
	next.order = balance.NewRoundRobin(weights)
	if previous := p.takers.Load(); previous != nil {
		next.order.Follow(previous.order)
	}
	p.takers.Store(next)
}

// gather puts the members into t that take traffic, those to be avoided only if told to, and gives their weights.
func (p *Pool) gather(t *takers, avoided bool) (weights []uint32) {
	ejected := p.passedOver()
	for _, m := range p.members {
		if m.Weight > 0 && m.Backend.takes() && (avoided || !m.Backend.Avoided()) && !ejected[m.Backend] {
			t.backends = append(t.backends, m.Backend)
			weights = append(weights, m.Weight)
		}
	}
	return weights
}
