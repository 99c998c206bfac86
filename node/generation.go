package node

import (
	"context"
	"crypto/tls"
	"errors"
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
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node/forward"
	"github.com/pyserve/pyserve/node/listener"
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
	bundle  *bundle.Bundle
	table   *forward.Table
	// Pools and routes in the bundle's order, those of the generation before among them where nothing about them changed.
	pools  []*pool
	routes []*forward.Route
	// Those of the routes that have a rate limit, and a circuit breaker.
	limited, bounded []*forward.Route
	// Those of the pools that have outlier detection, by name. Nil: none has.
	guarded map[string]*pool
	// The certificate's name, and what is made of it; empty and nil: plain HTTP. Tickets of sessions are good for as long
	// as the generations that come have the same.
	certificate string
	tls         *tls.Config
	address     string // as configured
	// Those whose connections begin with a PROXY protocol header.
	proxies []netip.Prefix
	// The listener outlives the generation where the next one has the same address.
	listener *listener.Listener
	bound    bool // the listener was bound for this generation

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
	var pace bundle.Pace
	for _, p := range g.pools {
		pace.Step()
		p.release()
	}
}

// section is what the generation has of a kind; nil: nothing.
func (g *Generation) section(kind config.Kind) bundle.Section {
	if g == nil {
		return bundle.Section{}
	}
	return g.bundle.Section(kind)
}

// decode reads the resource of a kind and name. False: there is none, or it cannot be read.
func (g *Generation) decode(kind config.Kind, name string, into proto.Message) bool {
	section := g.section(kind)
	at, ok := section.Find(name)
	return ok && section.At(at).Decode(into) == nil
}

// route is that of a name; nil: there is none.
func (g *Generation) route(name string) *forward.Route {
	if at, ok := g.section(config.KindRoute).Find(name); ok {
		return g.routes[at]
	}
	return nil
}

// pool is that of a name; nil: there is none.
func (g *Generation) pool(name string) *pool {
	if at, ok := g.section(config.KindPool).Find(name); ok {
		return g.pools[at]
	}
	return nil
}

// forgetRoutes drops the metrics of routes that went with g.
func (n *Node) forgetRoutes(g *Generation) {
	n.mu.Lock() // a generation that is applied at this moment may bring a route back
	defer n.mu.Unlock()
	for name := range g.section(config.KindRoute).Without(n.live.Load().section(config.KindRoute)) {
		n.meter.Forget(name)
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
	r := g.route(lane.Route)
	if r == nil {
		return false
	}
	for _, p := range r.EachPool {
		if slices.ContainsFunc(p.Members(), func(m upstream.Member) bool {
			return m.Backend == lane.Backend || m.Backend.Address() == lane.Backend.Address() &&
				sameTLS(m.Backend.Spec().TLS, lane.Backend.Spec().TLS)
		}) {
			return true
		}
	}
	return false
}

// sameTLS compares how two backends are spoken to; nil, without TLS, is unlike any TLS.
func sameTLS(a, b *resourcev1.BackendTls) bool {
	return (a == nil) == (b == nil) && proto.Equal(a, b)
}

// compiler builds a generation and collects what stands in its way.
type compiler struct {
	*Node
	before   *Generation // the live one; nil: there is none
	listener *resourcev1.Listener
	g        *Generation
	refusals Refusals
	scratch  scratch
	pace     bundle.Pace
}

// compile is called with mu held. The error is Refusals; then everything that was built is gone again.
func (n *Node) compile(release *fleetv1.Release, b *bundle.Bundle) (*Generation, error) {
	g := &Generation{node: n, release: release, bundle: b, table: &forward.Table{}}
	g.unpin = g.drop
	g.refs.Store(1)
	n.generations.Add(1)
	c := &compiler{Node: n, before: n.live.Load(), g: g}
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
	if err := c.readListener(); err != nil {
		c.refusals.addf("", "%v", err)
		return
	}
	c.trusted()
	c.certificate()
	c.routing(c.pooling())
	if len(c.refusals) == 0 {
		c.listening() // last: it is the one thing that others can see
	}
}

// readListener looks at the bundle as a whole, too.
func (c *compiler) readListener() error {
	if err := c.g.bundle.Known(); err != nil {
		return err
	}
	section := c.g.section(config.KindListener)
	if section.Len() == 0 {
		return nil
	}
	c.listener = &resourcev1.Listener{}
	return section.At(0).Decode(c.listener)
}

func (c *compiler) trusted() {
	for _, text := range c.listener.GetTrustedProxies() {
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
	if c.listener.GetProxyProtocol() {
		c.g.proxies = c.g.table.Trusted
	}
}

func (c *compiler) certificate() {
	name := c.listener.GetCertificate()
	if name == "" {
		return
	}
	section := c.g.section(config.KindCertificate)
	at, ok := section.Find(name)
	if !ok {
		c.refusals.addf(fieldCert, "the bundle has no certificate %q", name)
		return
	}
	c.g.certificate = name
	if c.sameCertificate(section, at) {
		c.g.tls = c.before.tls
	} else if c.g.tls = c.tlsOf(section.At(at)); c.g.tls == nil {
		return
	}
	if end := c.g.tls.Certificates[0].Leaf.NotAfter; time.Now().After(end) {
		c.logger.Warn("the certificate has expired", "expired", end)
	}
}

// sameCertificate says whether the live generation serves the certificate that is at a place of section.
func (c *compiler) sameCertificate(section bundle.Section, at int) bool {
	return c.before != nil && c.before.certificate == section.At(at).Name &&
		section.Unchanged(c.before.section(config.KindCertificate))[at] >= 0
}

// tlsOf returns nil where it refuses the certificate.
func (c *compiler) tlsOf(resource bundle.Resource) *tls.Config {
	certificate := &resourcev1.Certificate{}
	if err := resource.Decode(certificate); err != nil {
		c.refusals.addf("", "%v", err)
		return nil
	}
	pair, err := tls.X509KeyPair(certificate.GetChainPem(), certificate.GetKeyPem())
	if err != nil {
		reason := strings.TrimPrefix(err.Error(), "tls: ")
		field := fieldCert
		if strings.Contains(reason, "key") {
			field = fieldKey
		}
		c.refusals.addf(field, "%s", reason)
		return nil
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{pair},
	}
}

// listening binds the address, unless the live generation listens on it already: then the socket stays, and with it every
// connection.
func (c *compiler) listening() {
	c.g.address = c.listen
	if c.g.address == "" {
		if c.listener == nil {
			c.refusals.addf("server", "the bundle has no listener")
			return
		}
		c.g.address = net.JoinHostPort(c.listener.GetHost(), strconv.FormatUint(uint64(c.listener.GetPort()), 10))
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
		Front: c.proxy.NewFront(), TLS: c.liveTLS, SendAway: c.Draining, Proxies: c.announcers, Logger: c.logger, Beside: beside,
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

// liveProxies is asked for each connection, as liveTLS is.
func (n *Node) liveProxies() []netip.Prefix {
	if g := n.live.Load(); g != nil {
		return g.proxies
	}
	return nil
}
