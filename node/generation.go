package node

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/node/forward"
	"github.com/pyserve/pyserve/node/health"
	"github.com/pyserve/pyserve/node/listener"
	"github.com/pyserve/pyserve/node/route"
	"github.com/pyserve/pyserve/node/upstream"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// The fields that refusals name.
const (
	fieldHost    = "server.host"
	fieldPort    = "server.port"
	fieldTrusted = "server.trusted_proxies"
	fieldRoutes  = "server.reverse_proxy"
	fieldCert    = "ssl.cert_file"
	fieldKey     = "ssl.key_file"
	flagListen   = "--listen"
)

// bindTimeout is for looking up the name of a host to listen on.
const bindTimeout = 5 * time.Second

// Generation is a bundle compiled, and live once it was applied. It is not changed after it was built.
type Generation struct {
	node    *Node
	release *fleetv1.Release
	table   *forward.Table
	routes  map[string]*forward.Route
	tls     *tls.Config // nil: plain HTTP
	address string      // as configured
	// The listener outlives the generation where the next one has the same address.
	listener *listener.Listener
	bound    bool // the listener was bound for this generation

	pools    map[string]*upstream.Pool
	acquired []*upstream.Backend

	// refs are the node's own hold, until the generation is swapped out or given up, and one for each request under way.
	refs  atomic.Int64
	unpin func()
}

// hold takes a reference, unless the last one is gone already.
func (g *Generation) hold() bool {
	for {
		refs := g.refs.Load()
		if refs == 0 {
			return false
		}
		if g.refs.CompareAndSwap(refs, refs+1) {
			return true
		}
	}
}

// drop gives a reference back. With the last one, the backends are released: in a goroutine, for that waits for probes and
// a request should not.
func (g *Generation) drop() {
	if g.refs.Add(-1) > 0 {
		return
	}
	go func() {
		defer g.node.generations.Done()
		g.releaseBackends()
		g.node.forgetRoutes(g)
	}()
}

// giveUp ends a generation that was not applied.
func (g *Generation) giveUp() {
	if g.bound {
		if err := g.listener.Close(); err != nil {
			g.node.logger.Warn("giving up a listener failed", "error", err)
		}
	}
	g.drop()
}

func (g *Generation) releaseBackends() {
	for _, p := range g.pools {
		p.Close()
	}
	for _, b := range g.acquired {
		b.Release()
	}
}

// forgetRoutes drops the metrics of routes that went with g.
func (n *Node) forgetRoutes(g *Generation) {
	n.mu.Lock() // a generation that is applied at this moment may bring a route back
	defer n.mu.Unlock()
	live := n.live.Load()
	for name := range g.routes {
		if live == nil || live.routes[name] == nil {
			n.meter.Forget(name)
		}
	}
}

// keepsTunnel says whether a tunnel, a forward.Lane, still has its place: the generation has a route of its name (which
// stands for hosts, match and path), and among that route's backends, weight 0 included, is one with the same address that
// is spoken to in the same way. What else has changed does not matter: path stripping and Host are over once a tunnel
// stands, and how a backend is probed says nothing about a connection that lives.
func (g *Generation) keepsTunnel(owner any) bool {
	lane, ok := owner.(forward.Lane)
	if !ok {
		return true // not of this node's making
	}
	r := g.routes[lane.Route]
	return r != nil && slices.ContainsFunc(r.Pool().Members(), func(m upstream.Member) bool {
		return m.Backend == lane.Backend || m.Backend.Address() == lane.Backend.Address() &&
			sameTLS(m.Backend.Spec().TLS, lane.Backend.Spec().TLS)
	})
}

// sameTLS compares how two backends are spoken to; nil, without TLS, is unlike any TLS.
func sameTLS(a, b *resourcev1.BackendTls) bool {
	return (a == nil) == (b == nil) && proto.Equal(a, b)
}

// compiler builds a generation and collects what stands in its way.
type compiler struct {
	*Node
	r        *config.Resources
	g        *Generation
	refusals Refusals
}

// compile is called with mu held. The error is Refusals; then everything that was built is gone again.
func (n *Node) compile(release *fleetv1.Release, r *config.Resources) (*Generation, error) {
	g := &Generation{
		node: n, release: release, table: &forward.Table{},
		routes: make(map[string]*forward.Route, len(r.Routes)), pools: make(map[string]*upstream.Pool, len(r.Pools)),
	}
	g.unpin = g.drop
	g.refs.Store(1)
	n.generations.Add(1)
	c := &compiler{Node: n, r: r, g: g}
	c.guarded()
	if len(c.refusals) > 0 {
		g.giveUp()
		return nil, c.refusals
	}
	return g, nil
}

// guarded makes a panic a refusal: a bundle that trips over a defect must not take the live generation with it.
func (c *compiler) guarded() {
	defer func() {
		if p := recover(); p != nil {
			c.logger.Error("compiling a bundle panicked", "panic", p, "stack", string(debug.Stack()))
			c.refusals.addf("", "a defect in this node's compiler: %v", p)
		}
	}()
	c.trusted()
	c.certificate()
	for _, name := range slices.Sorted(maps.Keys(c.r.Pools)) {
		c.pool(name, c.r.Pools[name])
	}
	c.routing()
	if len(c.refusals) == 0 {
		c.listening() // last: it is the one thing that others can see
	}
}

func (c *compiler) trusted() {
	for _, text := range c.r.Listener.GetTrustedProxies() {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			c.refusals.addf(fieldTrusted, "%q is not a network in CIDR form", text)
			continue
		}
		if network.Addr().Is4In6() && network.Bits() >= 96 {
			network = netip.PrefixFrom(network.Addr().Unmap(), network.Bits()-96)
		}
		c.g.table.Trusted = append(c.g.table.Trusted, network.Masked())
	}
}

func (c *compiler) certificate() {
	name := c.r.Listener.GetCertificate()
	if name == "" {
		return
	}
	certificate, ok := c.r.Certificates[name]
	if !ok {
		c.refusals.addf(fieldCert, "the bundle has no certificate %q", name)
		return
	}
	pair, err := tls.X509KeyPair(certificate.GetChainPem(), certificate.GetKeyPem())
	if err != nil {
		reason := strings.TrimPrefix(err.Error(), "tls: ")
		field := fieldCert
		if strings.Contains(reason, "key") {
			field = fieldKey
		}
		c.refusals.addf(field, "%s", reason)
		return
	}
	if end := pair.Leaf.NotAfter; time.Now().After(end) {
		c.logger.Warn("the certificate has expired", "expired", end)
	}
	c.g.tls = &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{pair},
	}
}

func (c *compiler) pool(name string, p *resourcev1.Pool) {
	if err := health.Supports(p.GetHealthCheck()); err != nil {
		c.refusals.addf(fieldRoutes, "pool %s, health_check: %v", name, err)
		c.g.pools[name] = upstream.NewPool(nil) // or its routes would be refused as well
		return
	}
	members := make([]upstream.Member, 0, len(p.GetBackends()))
	for _, b := range p.GetBackends() {
		spec := upstream.Spec{Host: b.GetHost(), Port: b.GetPort(), Check: p.GetHealthCheck()}
		if b.GetTls() {
			if spec.TLS = p.GetTls(); spec.TLS == nil {
				spec.TLS = &resourcev1.BackendTls{}
			}
		}
		backend, err := c.registry.Acquire(spec)
		if err != nil {
			c.refusals.addf(fieldRoutes, "pool %s, backend %s:%d: %v", name, b.GetHost(), b.GetPort(), err)
			continue
		}
		c.g.acquired = append(c.g.acquired, backend)
		members = append(members, upstream.Member{Backend: backend, Weight: b.GetWeight()})
	}
	c.g.pools[name] = upstream.NewPool(members)
}

func (c *compiler) routing() {
	rules := make([]route.Rule[*forward.Route], 0, len(c.r.Routes))
	for _, name := range slices.Sorted(maps.Keys(c.r.Routes)) {
		r := c.r.Routes[name]
		pool, ok := c.g.pools[r.GetPool()]
		if !ok {
			c.refusals.addf(fieldRoutes, "route %s: the bundle has no pool %q", name, r.GetPool())
			continue
		}
		value, err := forward.NewRoute(name, r, pool)
		if err != nil {
			c.refusals.addf(fieldRoutes, "route %s: strip_path: %v", name, err)
			continue
		}
		c.g.routes[name] = value
		rules = append(rules, route.Rule[*forward.Route]{
			Path: r.GetPath(), Match: r.GetMatch(), Hosts: r.GetHosts(), Order: r.GetOrder(), Value: value,
		})
	}
	table, err := route.Compile(rules)
	var refused *route.RuleError
	switch {
	case errors.As(err, &refused):
		c.refusals.addf(fieldRoutes, "route %s: %s: %s", rules[refused.Index].Value.Name(), refused.Field, refused.Reason)
	case err != nil:
		c.refusals.addf(fieldRoutes, "%v", err)
	}
	c.g.table.Routes = table
}

// listening binds the address, unless the live generation listens on it already: then the socket stays, and with it every
// connection.
func (c *compiler) listening() {
	c.g.address = c.listen
	if c.g.address == "" {
		if c.r.Listener == nil {
			c.refusals.addf("server", "the bundle has no listener")
			return
		}
		c.g.address = net.JoinHostPort(c.r.Listener.GetHost(), strconv.FormatUint(uint64(c.r.Listener.GetPort()), 10))
	}
	var beside *listener.Listener
	if live := c.live.Load(); live != nil {
		if live.address == c.g.address {
			c.g.listener = live.listener
			return
		}
		beside = live.listener
	}
	ctx, cancel := context.WithTimeout(context.Background(), bindTimeout)
	defer cancel()
	bound, err := listener.Bind(ctx, c.g.address, listener.Options{
		Front: c.proxy.NewFront(), TLS: c.liveTLS, SendAway: c.Draining, Logger: c.logger, Beside: beside,
	})
	if err != nil {
		c.refusals.addf(c.bindField(err), "cannot listen on %s: %s", c.g.address, listener.Reason(err))
		return
	}
	c.g.listener, c.g.bound = bound, true
}

// bindField is what a person would change to make the address available.
func (c *compiler) bindField(err error) string {
	var lookup *net.DNSError
	switch {
	case c.listen != "":
		return flagListen
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.As(err, &lookup):
		return fieldHost
	}
	return fieldPort
}

// liveTLS is asked for each connection, so that one store switches routes and certificate.
func (n *Node) liveTLS() *tls.Config {
	if g := n.live.Load(); g != nil {
		return g.tls
	}
	return nil
}
