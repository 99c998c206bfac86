package forward

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"sync"

	"github.com/pyserve/pyserve/node/route"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Table is what a generation forwards by. It is not changed once requests use it.
type Table struct {
	Routes *route.Table[*Route]
	// The networks whose X-Forwarded-* and X-Request-ID are believed; IPv4 networks as such, not mapped into IPv6.
	Trusted []netip.Prefix
}

// Source gives each request the table it lives on.
type Source interface {
	// Pin returns the live table, and what to call when the request has ended. A nil table: nothing is served. It is
	// called concurrently.
	Pin() (table *Table, unpin func())
}

// Route is a route ready for requests. It is shared by all of them and changed by none.
type Route struct {
	name         string
	pool         *upstream.Pool
	prefix       string
	pattern      *regexp.Regexp // where a regex route strips its path
	stripPath    bool
	preserveHost bool

	counted sync.Once
	counts  *routeCounts
}

// NewRoute compiles what a route resource says about its requests, other than which ones match. The pool stays the
// caller's.
func NewRoute(name string, r *resourcev1.Route, pool *upstream.Pool) (*Route, error) {
	out := &Route{
		name: name, pool: pool, stripPath: r.GetStripPath(), preserveHost: r.GetPreserveHost(),
		prefix: strings.TrimSuffix(r.GetPath(), "/"),
	}
	if r.GetMatch() == resourcev1.PathMatch_PATH_MATCH_REGEX && out.stripPath {
		pattern, err := regexp.Compile(r.GetPath())
		if err != nil {
			return nil, fmt.Errorf("compile path of route %s: %w", name, err)
		}
		out.pattern = pattern
	}
	return out, nil
}

// Name is the route's name.
func (r *Route) Name() string { return r.name }

// Pool is the route's pool.
func (r *Route) Pool() *upstream.Pool { return r.pool }
