package forward

import (
	"math/bits"
	"sync/atomic"

	"github.com/pyserve/pyserve/node/balance"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// split shares a route's requests out among pools.
type split struct {
	parts []part
	picks atomic.Uint64
}

type part struct {
	pool   *upstream.Pool
	weight uint32
	counts *PartCounts
}

// PartCounts are the requests of a part that have ended, by the first digit of their status; 0 is for those without one.
type PartCounts [6]atomic.Uint64

// Split makes the route share its requests out among the pools of its parts, in their order. It is to be called before the
// route has a request.
func (r *Route) Split(parts []*resourcev1.Part, pools []*upstream.Pool) {
	r.split = &split{parts: make([]part, len(parts))}
	if r.sticky != nil {
		r.sticky.pools = pools
	}
	for i, p := range parts {
		r.split.parts[i] = part{pool: pools[i], weight: p.GetWeight(), counts: new(PartCounts)}
	}
}

// inherit goes on with what the same parts of before have counted.
func (s *split) inherit(before *split) {
	if s == nil || before == nil {
		return
	}
	s.picks.Store(before.picks.Load())
	for i := range min(len(s.parts), len(before.parts)) {
		s.parts[i].counts = before.parts[i].counts
	}
}

// EachPool gives the route's pools until yield returns false. part is 0 for the only one; parts of a split are counted from 1.
func (r *Route) EachPool(yield func(part int, p *upstream.Pool) bool) {
	if r.split == nil {
		yield(0, r.pool)
		return
	}
	for i := range r.split.parts {
		if !yield(i+1, r.split.parts[i].pool) {
			return
		}
	}
}

// EachPart gives what was counted of each part of a split, by its number; of a route without one nothing.
func (r *Route) EachPart(yield func(number int, counts *PartCounts) bool) {
	if r.split == nil {
		return
	}
	for i, p := range r.split.parts {
		if !yield(i+1, p.counts) {
			return
		}
	}
}

// Multiples of golden modulo 2^64 lie evenly spread however many there are, so that a part with a twentieth of the weight gets
// one of about twenty requests, and not a run of them after a while. partRehash is far from what pools rehash by: the backend
// within a part must not hang on which part it is.
const (
	golden     = 0x9E3779B97F4A7C15
	partRehash = 1 << 20
)

// point is where a request lies between 0 and 2^64: by its hash, where the route has hashes, and otherwise after the one before.
func (r *Route) point(hash, turn uint64) uint64 {
	if r.hashing != nil {
		return balance.Rehash(hash, partRehash)
	}
	return turn * golden
}

// choose is the part for a point. Where none of its backends takes requests, the other parts share what it would have got, and
// keep what they have: clients of these do not move. Nil: no part has a weight.
func (s *split) choose(point uint64) *part {
	chosen := s.at(point, false)
	if chosen == nil || chosen.pool.Takes() {
		return chosen
	}
	if other := s.at(balance.Rehash(point, 1), true); other != nil {
		return other
	}
	return chosen
}

// at divides all points by the weights of the parts, or of those that take requests alone.
func (s *split) at(point uint64, taking bool) *part {
	var total uint64
	counts := func(p *part) bool { return p.weight > 0 && (!taking || p.pool.Takes()) }
	for i := range s.parts {
		if p := &s.parts[i]; counts(p) {
			total += uint64(p.weight)
		}
	}
	place, _ := bits.Mul64(point, total)
	var last *part
	for i := range s.parts {
		p := &s.parts[i]
		if !counts(p) {
			continue
		}
		if last = p; place < uint64(p.weight) {
			return p
		}
		place -= uint64(p.weight)
	}
	return last // health has changed meanwhile
}

// pick is the backend for an attempt of the request, one that is not in tried. A request stays with the part that it has begun
// with as long as that has a backend for it; nil: no part has.
func (x *exchange) pick(tried []*upstream.Backend) *upstream.Backend {
	s := x.route.split
	if s == nil {
		x.pool = x.route.pool
		return x.pickFrom(x.pool, x.hash(), tried)
	}
	hash := x.hash()
	if x.part == nil {
		if x.part = s.choose(x.route.point(hash, s.picks.Add(1))); x.part == nil {
			return nil
		}
	}
	x.pool = x.part.pool
	if b := x.pickFrom(x.pool, hash, tried); b != nil || x.places.full { // what is too much for a part is not for the others
		return b
	}
	for i := range s.parts {
		p := &s.parts[i]
		if p == x.part || p.weight == 0 {
			continue
		}
		b := x.pickFrom(p.pool, hash, tried)
		if b != nil || x.places.full && len(tried) == 0 { // who may wait does so there; a retry stays where it has been
			x.part, x.pool = p, p.pool
		}
		if b != nil || x.places.full {
			return b
		}
	}
	return nil
}

// Weights are those of the parts of a split, in their order; nil: there is none.
func (r *Route) Weights() (weights []uint32) {
	if r.split != nil {
		for _, p := range r.split.parts {
			weights = append(weights, p.weight)
		}
	}
	return weights
}

// goTo has the request go to a pool of the route, whatever its part's weight.
func (x *exchange) goTo(p *upstream.Pool) {
	x.pool = p
	if s := x.route.split; s != nil {
		for i := range s.parts {
			if s.parts[i].pool == p {
				x.part = &s.parts[i]
			}
		}
	}
}

// upcoming is what pick would give next, without a pick, and whether it takes requests; nil: there is no backend.
func (x *exchange) upcoming() (b *upstream.Backend, takes bool) {
	s := x.route.split
	if s == nil {
		return x.route.pool.First(x.hash())
	}
	hash := x.hash()
	if x.part = s.choose(x.route.point(hash, s.picks.Load()+1)); x.part == nil {
		return nil, false
	}
	return x.part.pool.First(hash)
}

// partNumber is that of the request's part, 0 for none.
func (x *exchange) partNumber() int {
	if x.part == nil {
		return 0
	}
	for i := range x.route.split.parts {
		if &x.route.split.parts[i] == x.part {
			return i + 1
		}
	}
	return 0
}

// ended counts a request by its status.
func (p *part) ended(status int) {
	class := status / 100
	if uint(class) >= uint(len(p.counts)) {
		class = 0
	}
	p.counts[class].Add(1)
}
