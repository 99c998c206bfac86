package forward

import (
	"errors"
	"net/netip"
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
	stripPath    bool
	preserveHost bool

	counted sync.Once
	counts  *routeCounts
}

// NewRoute makes a route of what its resource says about requests, other than which ones match. The pool stays the
// caller's. The error is about strip_path.
func NewRoute(name string, r *resourcev1.Route, pool *upstream.Pool) (*Route, error) {
	if r.GetStripPath() && r.GetMatch() == resourcev1.PathMatch_PATH_MATCH_REGEX {
		return nil, errors.New("a regular expression cannot be stripped from a path")
	}
	return &Route{
		name: name, pool: pool, stripPath: r.GetStripPath(), preserveHost: r.GetPreserveHost(),
		prefix: strings.TrimSuffix(r.GetPath(), "/"),
	}, nil
}

// Name is the route's name.
func (r *Route) Name() string { return r.name }

// Pool is the route's pool.
func (r *Route) Pool() *upstream.Pool { return r.pool }
