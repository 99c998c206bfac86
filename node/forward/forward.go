package forward

import (
	"errors"
	"log/slog"
	"math"
	"net/netip"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/node/accesslog"
	"github.com/pyserve/pyserve/node/meter"
	"github.com/pyserve/pyserve/node/route"
	"github.com/pyserve/pyserve/node/tunnel"
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

// Tunnels takes over after an upgrade.
type Tunnels interface {
	// Start joins the two connections and returns; they are closed if it fails. The tunnel's owner is a Lane.
	Start(tunnel.Tunnel) error
}

// Lane is what a tunnel lives by: it has to end when the route of that name is gone, or does not lead to that backend any
// more.
type Lane struct {
	Route   string
	Backend *upstream.Backend
}

// Route is a route ready for requests. It is shared by all of them and changed by none.
type Route struct {
	name         string
	pool         *upstream.Pool
	path         string // as its rule has it
	match        resourcev1.PathMatch
	conditions   string
	prefix       string
	stripPath    bool
	preserveHost bool
	timeouts     config.Timeouts
	hashing      *hashing // nil: requests are not hashed
	sticky       *sticky  // nil: clients are not kept
	retries      *retries // nil: see secondChance

	// What follows is nil or 0 where the route does not use it.
	expression                  *regexp.Regexp // where a template names a group of it
	requestEdits, responseEdits *fieldEdits
	host                        template // the Host to send
	answer                      *answer  // instead of a backend's
	forwardPath                 template // instead of the path
	maxBody                     int64
	rate                        *rate
	split                       *split

	counted sync.Once
	counts  *meter.Route
}

// NewRoute makes a route of what its resource says about requests, other than which ones match. The pool stays the
// caller's; of a split it is that of any part, which Split has to follow. The error names the key that it is about.
func NewRoute(name string, r *resourcev1.Route, pool *upstream.Pool) (*Route, error) {
	if r.GetStripPath() && r.GetMatch() == resourcev1.PathMatch_PATH_MATCH_REGEX {
		return nil, errors.New("strip_path: a regular expression cannot be stripped from a path")
	}
	prefix := r.GetPath()
	if len(prefix) > 0 && prefix[len(prefix)-1] == '/' {
		prefix = prefix[:len(prefix)-1]
	}
	made := &Route{
		name: name, pool: pool, path: r.GetPath(), match: r.GetMatch(), stripPath: r.GetStripPath(), preserveHost: r.GetPreserveHost(), prefix: prefix,
		conditions: config.ConditionsOf(r).String(), timeouts: config.TimeoutsOf(r), hashing: hashingOf(pool.Balancing()), sticky: newSticky(r.GetSticky(), pool),
		retries: retriesOf(r.GetRetries()),
		maxBody: int64(min(r.GetMaxBodyBytes(), math.MaxInt64)),
	}
	if r.GetRateLimit() != nil {
		var err error
		if made.rate, err = newRate(name, r.GetRateLimit()); err != nil {
			return nil, err
		}
	}
	if err := made.rewriting(r); err != nil {
		return nil, err
	}
	return made, nil
}

// Inherit makes r go on with what before, the route of that name until now, has counted: for its rate where that is the same, and for
// the budget of its retries. Nil: there was none. It is to be called before r has a request.
func (r *Route) Inherit(before *Route) {
	if before == nil {
		return
	}
	r.split.inherit(before.split)
	if r.rate != nil && before.rate != nil && proto.Equal(r.rate.resource, before.rate.resource) {
		r.rate = before.rate
	}
	if r.retries != nil && before.retries != nil {
		r.retries.budget = before.retries.budget
	}
}

// Name is the route's name.
func (r *Route) Name() string { return r.name }

// Rule is the path that the route is for, and how it is compared.
func (r *Route) Rule() (path string, match resourcev1.PathMatch) { return r.path, r.match }

// Conditions is what else is asked of requests, as it stands in the route's name; empty: nothing.
func (r *Route) Conditions() string { return r.conditions }

// Balancing is how backends are picked from each of the route's pools; nil: in turn.
func (r *Route) Balancing() *resourcev1.LoadBalancing { return r.pool.Balancing() }

// StickyCookie is the name of the cookie that keeps clients with their backends; empty: none does.
func (r *Route) StickyCookie() string {
	if r.sticky == nil {
		return ""
	}
	return r.sticky.cookie
}

// noRoute labels requests that no route took; the names of routes begin otherwise.
const noRoute = "none"

// Options of a Proxy.
type Options struct {
	// Where the live table comes from. Required.
	Source Source
	// Where upgraded connections live. Required.
	Tunnels Tunnels
	// Required.
	Meter *meter.Set
	// Nil: requests are not logged.
	AccessLog *accesslog.Log
	// Nil: nothing is logged.
	Logger *slog.Logger
	// How long a client may take for the head of a request. 0: 10 s.
	HeadTimeout time.Duration
	// How long a client's connection is kept without a request. 0: 90 s.
	IdleTimeout time.Duration
}

// Proxy forwards requests; it is what the fronts of a node share. Its methods may be called concurrently.
type Proxy struct {
	source      Source
	tunnels     Tunnels
	meter       *meter.Set
	accessLog   *accesslog.Log
	logger      *slog.Logger
	headTimeout time.Duration
	idleTimeout time.Duration
	unrouted    *meter.Route
	notices     notices
	exchanges   sync.Pool
	secrets     atomic.Pointer[secrets] // of sticky cookies
	stickies    [stickyKinds]atomic.Uint64
}

const (
	defaultHeadTimeout = 10 * time.Second
	defaultIdleTimeout = 90 * time.Second
)

// New makes a Proxy. The error names the option that is missing.
func New(o Options) (*Proxy, error) {
	switch {
	case o.Source == nil:
		return nil, errors.New("forward: Options.Source is missing")
	case o.Tunnels == nil:
		return nil, errors.New("forward: Options.Tunnels is missing")
	case o.Meter == nil:
		return nil, errors.New("forward: Options.Meter is missing")
	}
	p := &Proxy{
		source: o.Source, tunnels: o.Tunnels, meter: o.Meter, accessLog: o.AccessLog, logger: o.Logger,
		headTimeout: o.HeadTimeout, idleTimeout: o.IdleTimeout, unrouted: o.Meter.Route(noRoute),
	}
	if p.logger == nil {
		p.logger = slog.New(slog.DiscardHandler)
	}
	p.notices.logger = p.logger
	if p.headTimeout <= 0 {
		p.headTimeout = defaultHeadTimeout
	}
	if p.idleTimeout <= 0 {
		p.idleTimeout = defaultIdleTimeout
	}
	p.secrets.Store(ownSecrets())
	p.exchanges.New = func() any { return newExchange() }
	return p, nil
}
