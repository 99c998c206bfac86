package config

import (
	"net"
	"slices"
	"strconv"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// MaxRoutes is how many routes a document may have.
	MaxRoutes = 100_000
	// MaxBackends is how many backends all routes of a document may have together.
	MaxBackends = 500_000
	// maxNameBytes is how long the names of all routes may be together; only aliases can get there.
	maxNameBytes = 32 << 20
	// maxResourceBytes is how large all resources may be together, which must fit into a bundle. Only aliases, and
	// files that many routes name, can get there.
	maxResourceBytes = 128 << 20
)

// routeGroup is one route: the entries that have its name, put together.
type routeGroup struct {
	name                    string
	first                   *entry
	order                   uint32
	stripPath, preserveHost option[bool]
	check                   option[*resourcev1.HealthCheck]
	timeouts                option[Timeouts]
	tls                     option[*resourcev1.BackendTls]
	policies
	split    option[[]part]
	backends []backend
}

// routeSet puts entries together into routes, in the order of the document.
type routeSet struct {
	r      *reader
	groups []*routeGroup
	byName map[string]*routeGroup
	// claims holds, for each rule and host, the route that is for it. The empty host is a route without hosts.
	claims map[claim]*routeGroup
	// alike counts, for each path and host, the routes with conditions.
	alike               map[claim]int
	regexes             uint32
	backends, nameBytes int
	full                bool
}

type claim struct {
	rule, host string
}

func newRouteSet(r *reader) *routeSet {
	return &routeSet{r: r, byName: make(map[string]*routeGroup), claims: make(map[claim]*routeGroup), alike: make(map[claim]int)}
}

// add takes an entry in: as a route of its own, or as more backends of one that is there already.
func (s *routeSet) add(e *entry) {
	if s.full {
		return
	}
	name := e.name()
	if group, ok := s.byName[name]; ok {
		group.join(s.r, e)
		s.bound(e, len(e.backends.value), 0)
		return
	}
	if !s.claim(e) || !s.bound(e, len(e.backends.value), len(name)) {
		return
	}
	group := &routeGroup{
		name: name, first: e, stripPath: e.stripPath, preserveHost: e.preserveHost,
		check: e.check, timeouts: e.timeouts, tls: e.tls, policies: e.policies, split: e.split, backends: e.backends.value,
	}
	if e.match.value == "regex" {
		s.regexes++
		group.order = s.regexes
	}
	s.groups = append(s.groups, group)
	s.byName[name] = group
	rule := e.rule()
	for _, host := range e.claimedHosts() {
		s.claims[claim{rule, host}] = group
	}
}

// claimedHosts are the hosts that an entry is for; the empty one stands for all.
func (e *entry) claimedHosts() []string {
	if len(e.hosts.value) == 0 {
		return []string{""}
	}
	return e.hosts.value
}

// claim refuses an entry that is for a host and path that another route is for, but not for the same hosts altogether:
// which of the two a request meant could only be told by their order, which means nothing.
func (s *routeSet) claim(e *entry) bool {
	rule := e.rule()
	for _, host := range e.claimedHosts() {
		if other, ok := s.claims[claim{rule, host}]; ok {
			s.r.errorf(e.hosts.at, "%s has a route for %s already, on line %d: write the same hosts in both, or take it out of one",
				quote(host), rule, other.first.at.line)
			return false
		}
	}
	return e.conditions().Count() == 0 || s.few(e)
}

// few counts a route with conditions in.
func (s *routeSet) few(e *entry) bool {
	for _, host := range e.claimedHosts() {
		at := claim{e.place(""), host}
		if s.alike[at]++; s.alike[at] > maxAlike {
			s.r.errorf(e.at, "more than %d routes are for %s with conditions, which are compared one after the other: write fewer, or other paths or hosts",
				maxAlike, e.place(""))
			return false
		}
	}
	return true
}

// bound counts, and reports once where a limit is passed. Nothing more is taken in then.
func (s *routeSet) bound(e *entry, backends, nameBytes int) bool {
	s.backends += backends
	s.nameBytes += nameBytes
	switch {
	case nameBytes > 0 && len(s.groups) == MaxRoutes:
		s.r.errorf(e.at, "a document has at most %d routes: this is one more", MaxRoutes)
	case s.backends > MaxBackends:
		s.r.errorf(e.at, "a document has at most %d backends: here are more", MaxBackends)
	case s.nameBytes > maxNameBytes:
		s.r.errorf(e.at, "the paths and hosts up to here are longer than %d MiB together: write less with aliases", maxNameBytes>>20)
	default:
		return true
	}
	s.full = true
	return false
}

// join takes the backends of another entry in. What both say of the route must be the same.
func (g *routeGroup) join(r *reader, e *entry) {
	if g.split.isSet() || e.split.isSet() {
		r.errorf(e.at, "is for the same route as the entry on line %d, and a split stands in one entry alone: write all parts there", g.first.at.line)
		return
	}
	g.backends = append(g.backends, e.backends.value...)
	same := func(a, b bool) bool { return a == b }
	agree(r, &g.stripPath, e.stripPath, same)
	agree(r, &g.preserveHost, e.preserveHost, same)
	agree(r, &g.check, e.check, func(a, b *resourcev1.HealthCheck) bool { return proto.Equal(a, b) })
	agree(r, &g.timeouts, e.timeouts, func(a, b Timeouts) bool { return a == b })
	agree(r, &g.tls, e.tls, func(a, b *resourcev1.BackendTls) bool { return proto.Equal(a, b) })
	g.policies.join(r, &e.policies)
	if own := g.answer(); own.isSet() && len(g.backends) > 0 {
		r.errorf(own, "an entry of the same route has a backend: leave one of them out")
	}
}

// answer is where the route says what the proxy answers itself; not set: it has backends.
func (g *routeGroup) answer() place {
	if g.redirect.isSet() {
		return g.redirect.at
	}
	return g.respond.at
}

// agree lets an option of a later entry stand for the whole route, or reports that it differs.
func agree[V any](r *reader, have *option[V], other option[V], same func(a, b V) bool) {
	switch {
	case !other.isSet():
	case !have.isSet():
		*have = other
	case !same(have.value, other.value):
		r.errorf(other.at, "is different on line %d, in another entry of the same route: write the same in both, or leave one out", have.at.line)
	}
}

// resources makes the routes and pools.
func (s *routeSet) resources(out *Resources) {
	check := defaultHealthCheck() // one for all who say nothing: resources are not changed
	size := 0
	s.sharedCookies()
	for _, g := range s.groups {
		route := g.route()
		parts, pools := g.pools(s.r, check)
		if parts != nil {
			route.Pool, route.Split = "", parts
		}
		out.Routes[g.name] = route
		size += proto.Size(route)
		for name, pool := range pools {
			out.Pools[name] = pool
			size += proto.Size(pool)
		}
		if g.tls.isSet() && !slices.ContainsFunc(g.backends, func(b backend) bool { return b.ssl.value }) && !g.answer().isSet() {
			s.r.warnf(g.tls.at, "is not used: no backend of this route has ssl: true")
		}
		if size > maxResourceBytes {
			s.r.errorf(g.first.at, "the resources up to here have more than %d MiB together: write less with aliases, and smaller files", maxResourceBytes>>20)
			return
		}
	}
}

func (g *routeGroup) route() *resourcev1.Route {
	match := g.first.pathMatch()
	route := &resourcev1.Route{
		Path:         g.first.path.or("/"),
		Match:        match,
		Hosts:        g.first.hosts.value,
		Methods:      g.first.methods.value,
		Headers:      g.first.headers.value,
		Query:        g.first.query.value,
		StripPath:    g.stripPath.or(match != resourcev1.PathMatch_PATH_MATCH_REGEX),
		PreserveHost: g.preserveHost.value,
		Pool:         g.name,
		Order:        g.order,
		Timeouts:     g.timeouts.or(defaultTimeouts).resource(),
	}
	route.ForwardPath = g.first.forwardPath
	g.intoRoute(route)
	return route
}

func (g *routeGroup) pool(r *reader, defaultCheck *resourcev1.HealthCheck) *resourcev1.Pool {
	if g.answer().isSet() {
		return &resourcev1.Pool{} // so that whoever looks for a route's backends finds that there are none
	}
	pool := &resourcev1.Pool{HealthCheck: g.check.or(defaultCheck), Backends: g.uniqueBackends(r)}
	g.intoPool(pool)
	if pool.SlowStart != nil && pool.LoadBalancing.GetHashOn() != resourcev1.HashOn_HASH_ON_UNSPECIFIED {
		r.warnf(g.slowStart.at, "is not used with %s: a growing share would give clients another backend", enumText(pool.LoadBalancing.Policy.Descriptor(), pool.LoadBalancing.Policy.Number()))
		pool.SlowStart = nil
	}
	weights, tls := uint32(0), false
	for _, b := range pool.Backends {
		weights += b.Weight
		tls = tls || b.Tls
	}
	switch {
	case weights > 0:
	case g.split.isSet():
		r.warnf(g.backends[0].at, "every backend of this part has weight 0: the other parts get its requests")
	default:
		r.warnf(g.first.at, "every backend has weight 0: every request will be answered 503")
	}
	if tls {
		pool.Tls = g.tls.or(&resourcev1.BackendTls{})
	}
	return pool
}

// uniqueBackends gives the backends in the order of the document. One that stands twice is one, with the weight of both,
// as it would behave if it were two.
func (g *routeGroup) uniqueBackends(r *reader) []*resourcev1.Backend {
	if len(g.backends) == 1 {
		return []*resourcev1.Backend{g.backends[0].resource()}
	}
	type place struct{ index, line int }
	seen := make(map[string]place, len(g.backends))
	var out []*resourcev1.Backend
	for i := range g.backends {
		b := &g.backends[i]
		one := b.resource()
		name := backendAddress(one)
		if first, ok := seen[name]; ok {
			b.again(r, out[first.index], one, first.line)
			continue
		}
		seen[name] = place{len(out), int(b.at.line)}
		out = append(out, one)
	}
	return out
}

func (b *backend) resource() *resourcev1.Backend {
	return &resourcev1.Backend{Host: b.host.or("localhost"), Port: b.port.or(80), Weight: b.weight.or(1), Tls: b.ssl.value}
}

// backendAddress gives "host:port", with brackets around IPv6.
func backendAddress(b *resourcev1.Backend) string {
	return net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
}

// again adds a backend to the one that it is already. It cannot be spoken to both with and without TLS.
func (b *backend) again(r *reader, have, more *resourcev1.Backend, first int) {
	switch sum := have.Weight + more.Weight; {
	case have.Tls != more.Tls:
		r.errorf(b.at, "%s stands in this route on line %d too, once with ssl and once without: keep one of them", backendAddress(have), first)
	case sum > maxWeight:
		r.errorf(b.at, "%s stands in this route on line %d too, and the weights come to more than %d: keep one of them", backendAddress(have), first, maxWeight)
	default:
		have.Weight = sum
		r.warnf(b.at, "%s stands in this route on line %d too: it is one backend, of weight %d", backendAddress(have), first, sum)
	}
}
