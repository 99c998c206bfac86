package config

import (
	"fmt"
	"iter"
	"slices"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// maxParts is how many parts a split may have.
const maxParts = 32

// part is one item of a split as written.
type part struct {
	at       place
	weight   option[uint32]
	backends option[[]backend]
}

var splitSection = section[part]{
	form: "a mapping such as {weight: 95, backends: [{host: 10.0.0.1, port: 8000}]}",
	keys: []key[part]{
		{name: "weight", form: "number, 0 to 1000", initial: "1", about: "its share of the requests, relative to the other parts; 0: it gets none",
			read: func(r *reader, v value, p *part) {
				take(&p.weight, v, func(v value) (uint32, bool) { return r.integer(v, 0, maxWeight) })
			}},
		{name: "backends", form: "list of backends", about: "those of the part; a backend belongs to one part alone",
			read: func(r *reader, v value, p *part) { take(&p.backends, v, r.backends) }},
	},
}

// split reads the parts of a route.
func (r *reader) split(v value) ([]part, bool) {
	before := r.errorCount()
	var parts []part
	r.list(v, "a list such as [{weight: 95, backends: [{host: a, port: 1}]}, {weight: 5, backends: [{host: b, port: 1}]}]", func(item value) {
		p := part{at: item.where()}
		switch {
		case isNull(item.node):
			r.errorf(item, "nothing stands here: write %s", splitSection.form)
		case len(parts) == maxParts:
			r.errorf(item, "a split has at most %d parts: write fewer", maxParts)
		case splitSection.read(r, item, &p):
			if !p.backends.isSet() && r.errorCount() == before {
				r.errorf(item, "this part has no backends: write %s", splitSection.form)
			}
			parts = append(parts, p)
		}
	})
	if r.errorCount() > before {
		return nil, false
	}
	if len(parts) == 0 {
		r.errorf(v, "no part stands here: write %s", splitSection.form)
		return nil, false
	}
	if !slices.ContainsFunc(parts, func(p part) bool { return p.weight.or(1) > 0 }) {
		r.warnf(v, "every part has weight 0: every request will be answered 503")
	}
	return parts, true
}

// takeSplit makes the entry's backends of those of its parts.
func (r *reader) takeSplit(e *entry) {
	const message = "stands beside split, which takes its place: leave it out"
	for _, at := range []place{e.host.at, e.port.at, e.ssl.at, e.backends.at} {
		if at.isSet() {
			r.errorf(at, message)
		}
	}
	e.backends.value = nil
	for i, p := range e.split.value {
		for _, b := range p.backends.value {
			b.part = i + 1
			e.backends.value = append(e.backends.value, b)
		}
	}
}

// partPool is the name of a part's pool. No route has such a name: see entry.place.
func partPool(route string, part int) string { return fmt.Sprintf("%s [part %d]", route, part) }

// pools makes the route's pools, by name, and the parts that lead to them.
func (g *routeGroup) pools(r *reader, check *resourcev1.HealthCheck) (parts []*resourcev1.Part, pools map[string]*resourcev1.Pool) {
	if !g.split.isSet() {
		return nil, map[string]*resourcev1.Pool{g.name: g.pool(r, check)}
	}
	pools = make(map[string]*resourcev1.Pool, len(g.split.value))
	whole := g.backends
	defer func() { g.backends = whole }()
	g.refuseShared(r)
	for i, p := range g.split.value {
		name := partPool(g.name, i+1)
		g.backends = slices.DeleteFunc(slices.Clone(whole), func(b backend) bool { return b.part != i+1 })
		pools[name] = g.pool(r, check)
		parts = append(parts, &resourcev1.Part{Weight: p.weight.or(1), Pool: name})
	}
	return parts, pools
}

// refuseShared keeps a backend in one part: a client that is to stay with its backend stays with its part.
func (g *routeGroup) refuseShared(r *reader) {
	first := make(map[string]*backend)
	for i := range g.backends {
		b := &g.backends[i]
		name := backendAddress(b.resource())
		switch other := first[name]; {
		case other == nil:
			first[name] = b
		case other.part != b.part:
			r.errorf(b.at, "%s stands in part %d too, on line %d: a backend belongs to one part", name, other.part, other.at.line)
		}
	}
}

// PoolsOf gives the pools of a route: one, as part 0, or those of its split, which are numbered from 1. A pool that is not
// there is nil.
func (r *Resources) PoolsOf(route *resourcev1.Route) iter.Seq2[int, *resourcev1.Pool] {
	return func(yield func(int, *resourcev1.Pool) bool) {
		if len(route.GetSplit()) == 0 {
			yield(0, r.Pools[route.GetPool()])
			return
		}
		for i, p := range route.GetSplit() {
			if !yield(i+1, r.Pools[p.GetPool()]) {
				return
			}
		}
	}
}

// BackendOf finds a backend of a route by its address: its weight, the sum where it is listed twice, and its part, 0 where
// the route is not split.
func (r *Resources) BackendOf(route *resourcev1.Route, address string) (weight, part uint32) {
	for number, pool := range r.PoolsOf(route) {
		for _, b := range pool.GetBackends() {
			if BackendAddress(b) == address {
				weight, part = weight+b.GetWeight(), uint32(number)
			}
		}
	}
	return weight, part
}

// routePools compares the pools of two routes. What is not about backends is the same for all pools of one.
func routePools(old, new *Resources, a, b *resourcev1.Route) []string {
	if len(a.GetSplit()) == 0 && len(b.GetSplit()) == 0 {
		return poolDetails(old.Pools[a.GetPool()], new.Pools[b.GetPool()])
	}
	before, after := old.partsOf(a), new.partsOf(b)
	var details []string
	for number := range maxParts + 1 {
		p, was := before[number]
		q, is := after[number]
		name, beside := "", number == 0
		if !beside {
			name = fmt.Sprintf("split: part %d ", number)
			switch {
			case was && !is:
				details = append(details, name+"removed")
				continue
			case is:
				details = append(details, detail(!was, name+"weight", p.weight, q.weight)...)
			}
		}
		for _, d := range backendDetails(p.pool.GetBackends(), q.pool.GetBackends()) {
			details = append(details, name+d)
		}
	}
	return append(details, sharedDetails(old.anyPool(a), new.anyPool(b))...)
}

type weighedPool struct {
	weight uint32
	pool   *resourcev1.Pool
}

func (r *Resources) partsOf(route *resourcev1.Route) map[int]weighedPool {
	parts := make(map[int]weighedPool)
	for number, pool := range r.PoolsOf(route) {
		p := weighedPool{pool: pool}
		if number > 0 {
			p.weight = route.GetSplit()[number-1].GetWeight()
		}
		parts[number] = p
	}
	return parts
}

// anyPool is a pool of a route that has TLS, if there is one: that tells of it, too.
func (r *Resources) anyPool(route *resourcev1.Route) (found *resourcev1.Pool) {
	for _, pool := range r.PoolsOf(route) {
		if found == nil || found.GetTls() == nil {
			found = pool
		}
	}
	return found
}
