package upstream

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/node/balance"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// The policies, roundRobin being the one of a pool that says nothing.
const (
	roundRobin   = resourcev1.BalancingPolicy_BALANCING_POLICY_UNSPECIFIED
	leastRequest = resourcev1.BalancingPolicy_BALANCING_POLICY_LEAST_REQUEST
	random       = resourcev1.BalancingPolicy_BALANCING_POLICY_RANDOM
	p2cEWMA      = resourcev1.BalancingPolicy_BALANCING_POLICY_P2C_EWMA
	ringHash     = resourcev1.BalancingPolicy_BALANCING_POLICY_RING_HASH
	maglev       = resourcev1.BalancingPolicy_BALANCING_POLICY_MAGLEV
)

// takers are the members that take traffic, and what the policy picks by.
type takers struct {
	backends []*Backend
	order    *balance.RoundRobin // with round robin
	shares   *balance.Weighted   // with random, least_request and p2c_ewma, and where some are cold
	weights  []uint32            // with the last two
	up       []*Backend          // with hashes, by place in the pool: nil is one that takes no traffic
	cold     *cold               // nil: all have their whole share
	ejected  map[*Backend]bool   // those that passive health passes over
	avoided  bool                // backends has those that are to be avoided: there is nobody else
	open     bool                // verdicts do not count
	detours  atomic.Uint64       // picks that the policy could not serve
}

// arrange makes what the policy picks by.
func (p *Pool) arrange(t *takers, weights []uint32) {
	switch p.policy {
	case random:
		t.shares = balance.NewWeighted(weights)
	case leastRequest, p2cEWMA:
		t.shares, t.weights = balance.NewWeighted(weights), weights
	case ringHash, maglev:
		t.up = make([]*Backend, len(p.members))
		rest := t.backends // in the order of the members
		for i, m := range p.members {
			if len(rest) > 0 && rest[0] == m.Backend {
				t.up[i], rest = m.Backend, rest[1:]
			}
		}
		return // another share for some would be another backend for the clients of all
	default:
		t.order = balance.NewRoundRobin(weights)
		if previous := p.takers.Load(); previous != nil {
			t.order.Follow(previous.order)
		}
	}
	if p.options.SlowStart > 0 {
		if t.cold = coldOf(t.backends, p.options.SlowStart); t.cold != nil && t.shares == nil {
			t.shares = balance.NewWeighted(weights)
		}
	}
}

const (
	// rehashes is how often a hash whose backend cannot take it is hashed again before a place is looked for.
	rehashes = 32
	// coldDraws is how often another backend is drawn where one is too cold, and fullDraws where one is full.
	coldDraws = 4
	fullDraws = 4
)

// Pick is the backend for the next request, one that takes traffic and is not in tried, the backends on which this request has
// failed already. hash stands for what the requests of one client have in common, where the pool picks by that; elsewhere it is
// not looked at. Nil: there is none. It allocates nothing and takes no lock.
func (p *Pool) Pick(hash uint64, tried []*Backend) *Backend { return p.pick(hash, tried, nil) }

// pick is Pick among the backends that have room; bounds, whose lock is held then, says which. Nil: all have.
func (p *Pool) pick(hash uint64, tried []*Backend, bounds *breaker) *Backend {
	t := p.takers.Load()
	if len(t.backends) == 0 {
		return nil
	}
	draws := len(tried) + 1
	if t.up != nil {
		draws += rehashes
	}
	var luck float64
	cold := t.cold.untilWarm()
	if cold != nil {
		draws, luck = draws+coldDraws, fraction(p.options.Random())
	}
	if bounds != nil {
		draws += fullDraws
	}
	for n := range draws {
		b := p.draw(t, hash, n)
		if b != nil && !slices.Contains(tried, b) && (bounds == nil || !bounds.full(b)) && (cold == nil || cold.admits(b, luck)) {
			return b
		}
	}
	return p.detour(t, hash, tried, bounds, cold, luck)
}

// detour is for when a heavy backend that failed, or is cold or full, comes up again and again before its turn is over: whoever is
// left, then, from a place that moves, lest all of a dead backend's requests fall on its neighbour. With hashes it must not move.
// Where all that are left are cold, they share by weight.
func (p *Pool) detour(t *takers, hash uint64, tried []*Backend, bounds *breaker, cold *cold, luck float64) *Backend {
	start, n := hash, uint64(len(t.backends))
	if t.up == nil {
		start = t.detours.Add(1)
	}
	var spare *Backend
	for i := range n {
		b := t.backends[(start%n+i)%n]
		switch {
		case slices.Contains(tried, b), bounds != nil && bounds.full(b):
		case cold == nil || cold.admits(b, luck):
			return b
		case spare == nil:
			spare = b
		}
	}
	if spare != nil && len(tried) == 0 {
		for range fullDraws {
			if b := t.backends[t.shares.Pick(p.options.Random())]; bounds == nil || !bounds.full(b) {
				return b
			}
		}
	}
	return spare
}

// draw is the policy's n-th choice; nil: that takes no traffic.
func (p *Pool) draw(t *takers, hash uint64, n int) *Backend {
	switch p.policy {
	case random:
		return t.backends[t.shares.Pick(p.options.Random())]
	case leastRequest:
		return t.lessBusy(t.shares.Two(p.options.Random(), p.options.Random()))
	case p2cEWMA:
		return t.quicker(t.shares.Two(p.options.Random(), p.options.Random()))
	case ringHash, maglev:
		return t.up[p.table().At(balance.Rehash(hash, n))]
	}
	return t.backends[t.order.Next()]
}

// lessBusy is, of two takers, the first, which was picked by weight, unless the second has so few requests under way for its weight
// that it would not have more with this one. Two that are picked at random do nearly as well as looking at all of them
// (Mitzenmacher, 2001), and the nodes, each of which knows its own requests alone, do not all fall upon the one that is idle.
//
// It is not enough for the second to have fewer at the moment: one of weight 1 beside one of weight 1000 is idle mostly, as its
// share wants it.
func (t *takers) lessBusy(i, j int) *Backend {
	a, b := t.backends[i], t.backends[j]
	if balance.Lighter(float64(a.InFlight()), t.weights[i], float64(b.InFlight()+1), t.weights[j]) {
		return a
	}
	return b
}

// quicker is, of two takers, the one that is likelier to answer soon.
func (t *takers) quicker(i, j int) *Backend {
	a, b := t.backends[i], t.backends[j]
	better := b.expected() < a.expected()
	if t.weights[i] != t.weights[j] {
		better = t.worthwhile(i, j)
	}
	if better {
		return b
	}
	return a
}

// worthwhile says of two takers of different weights whether the second is to take the place of the first, which was picked by
// weight: where with this request less would wait for it, for its weight, than waits for the first now, or where it is twice as quick
// and not busier for its weight. To compare times for weights alone, what comes one by one would all be the heaviest's.
func (t *takers) worthwhile(i, j int) bool {
	a, b := t.backends[i], t.backends[j]
	forA, forB := float64(a.InFlight()), float64(b.InFlight()+1)
	tookA, tookB := a.expected()/(forA+1), b.expected()/forB
	return balance.Lighter(tookB*forB, t.weights[j], tookA*forA, t.weights[i]) ||
		2*tookB < tookA && !balance.Lighter(forA+1, t.weights[i], forB, t.weights[j])
}

// Measures says whether the pool picks by what Took is told.
func (p *Pool) Measures() bool { return p.policy == p2cEWMA }

// failureCost is what a failed attempt counts as at least: one that refuses at once must not look like the quickest of all.
const failureCost = time.Second

// Took takes in how long b has taken to the head of an answer; failed is that it did not come to one. It is for pools that
// measure.
func (p *Pool) Took(b *Backend, took time.Duration, failed bool) {
	if failed {
		took = max(took, failureCost)
	}
	b.latency.Observe(time.Since(b.registry.sweeper.begin), took)
}

// expected is what one more request is expected to wait, in seconds. The clock is the registry's, which is a second late at most:
// enough for what is forgotten over ten.
func (b *Backend) expected() float64 {
	return b.latency.Cost(time.Duration(b.conns.now.Load()), b.InFlight())
}
