package config

import (
	"slices"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Browsers cut a cookie's life at 400 days.
const (
	leastStickyTTL, mostStickyTTL = time.Second, 400 * 24 * time.Hour
	defaultStickyCookie           = "pyserve_backend"
)

var stickySection = section[resourcev1.Sticky]{
	form: "a mapping such as {cookie: pyserve_backend, ttl: 1h}",
	keys: []key[resourcev1.Sticky]{
		{name: "cookie", form: "name of a cookie", initial: defaultStickyCookie, about: "the cookie that a client is given with its first answer",
			read: func(r *reader, v value, s *resourcev1.Sticky) {
				if name, ok := r.token(v, "a name such as "+defaultStickyCookie); ok {
					s.Cookie = name
				}
			}},
		{name: "ttl", form: "time, 1s to 9600h", about: "how long the client keeps it, from the answer that gave it on; without it until its session ends, which for a browser is when it is closed",
			read: func(r *reader, v value, s *resourcev1.Sticky) {
				r.durationInto(v, leastStickyTTL, mostStickyTTL, &s.Ttl)
			}},
	},
}

func (r *reader) sticky(v value) (*resourcev1.Sticky, bool) {
	before := r.errorCount()
	s := &resourcev1.Sticky{Cookie: defaultStickyCookie}
	return s, stickySection.read(r, v, s) && r.errorCount() == before
}

// jar is where a client keeps a cookie apart from others of its name. The empty host stands for all.
type jar struct{ cookie, host string }

// sharedCookies warns of sticky routes that share a cookie and not their backends: a client of both would be given another backend, and
// another cookie, each time it goes from one to the other. Hosts are compared as they are written, so it may miss some.
func (s *routeSet) sharedCookies() {
	first := make(map[jar]*routeGroup)
	sets := make(map[*routeGroup][]string) // one route may be compared with very many
	addresses := func(g *routeGroup) []string {
		if sets[g] == nil {
			sets[g] = g.addresses()
		}
		return sets[g]
	}
	for _, g := range s.groups {
		if !g.sticky.isSet() || g.answer().isSet() {
			continue
		}
		cookie := g.sticky.value.GetCookie()
		if other := g.sharer(first, cookie); other != nil && !slices.Equal(addresses(g), addresses(other)) {
			s.r.warnf(g.sticky.at, "the route on line %d gives clients the cookie %s too, and has other backends: a client of both would lose its place whenever it goes from one to the other. Write another cookie for each",
				other.first.at.line, quote(cookie))
		}
	}
}

// someHost is where the first route with a cookie is, whatever its hosts. No host has such a name.
const someHost = "/"

// sharer is a route before g that shares clients with it, by what is in first; nil: none does. It enters g.
func (g *routeGroup) sharer(first map[jar]*routeGroup, cookie string) (other *routeGroup) {
	hosts := g.first.claimedHosts()
	sharing := append([]string{""}, hosts...)
	if hosts[0] == "" {
		sharing = []string{someHost}
	}
	for _, host := range sharing {
		if other == nil {
			other = first[jar{cookie, host}]
		}
	}
	for _, host := range append([]string{someHost}, hosts...) {
		if at := (jar{cookie, host}); first[at] == nil {
			first[at] = g
		}
	}
	return other
}

// addresses are those of the route's backends, sorted.
func (g *routeGroup) addresses() []string {
	all := make([]string, 0, len(g.backends))
	for i := range g.backends {
		all = append(all, backendAddress(g.backends[i].resource()))
	}
	slices.Sort(all)
	return slices.Compact(all)
}
