package upstream

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/node/balance"
	"github.com/pyserve/pyserve/node/socket"
)

// Backend is one server: who it is, what is thought of its health, and the connections to it. Its methods may be called
// concurrently. Backends are compared by pointer.
type Backend struct {
	registry  *Registry
	id        identity
	spec      Spec
	address   string
	authority string
	tls       *tls.Config // nil: plain
	name      *name       // nil: the host is an IP address

	refs int // guarded by Registry.mu

	conns conns

	requests, failures, connectFailures atomic.Uint64

	verdict atomic.Pointer[Verdict]
	avoided atomic.Bool
	latency balance.Latency
	began   atomic.Pointer[time.Time] // since when it takes traffic; nil: for ever, as far as slow starts go

	// mu guards pools, and makes one of setting verdict or avoided and finding out whom it concerns. A pool's lock is never taken
	// under it.
	mu    sync.Mutex
	pools map[*Pool]struct{}
}

func newBackend(r *Registry, id identity, s Spec) *Backend {
	b := &Backend{registry: r, id: id, spec: s, address: id.address, pools: make(map[*Pool]struct{})}
	defaultPort := ":80"
	if s.TLS != nil {
		defaultPort = ":443"
	}
	b.authority = strings.TrimSuffix(b.address, defaultPort)
	b.conns.capacity, b.conns.now = r.options.MaxIdleConns, &r.sweeper.now
	b.verdict.Store(&Verdict{Since: time.Now()})
	if _, err := netip.ParseAddr(s.Host); err != nil {
		b.name = &name{
			host: s.Host, port: strconv.FormatUint(uint64(s.Port), 10), resolver: r.options.Resolver, slots: r.lookups,
			random: r.options.Random, logger: r.options.Logger.With("backend", b.address), changed: b.conns.renew,
		}
	}
	return b
}

// Release gives back one reference. The last one removes the backend from the registry, ends the lookups of its name, for
// which it waits, and closes its idle connections; requests that are under way still end.
func (b *Backend) Release() { b.registry.release(b) }

// Address is the backend's host:port, an IPv6 address in brackets.
func (b *Backend) Address() string { return b.address }

// Authority is what names the backend in a Host header: host:port without the port where it is the scheme's own, 80 or,
// over TLS, 443 (RFC 9110 section 4.2.3).
func (b *Backend) Authority() string { return b.authority }

// Spec is what the backend was acquired by, its host in canonical form.
func (b *Backend) Spec() Spec { return b.spec }

// Counters are read one by one; under load they may be a request apart.
func (b *Backend) Counters() Counters {
	c := Counters{Failures: b.failures.Load(), Requests: b.requests.Load(), ConnectFailures: b.connectFailures.Load()}
	b.conns.count(&c)
	return c
}

// InFlight is how many connections from Open and Take are in use at this moment or being opened: one for each request that is
// under way, and one for each tunnel, for as long as it lives. It takes no lock.
func (b *Backend) InFlight() int { return int(b.conns.busy.Load()) }

// CountRequest counts a request that begins to be sent over connections from Open or Take.
func (b *Backend) CountRequest() { b.requests.Add(1) }

// CountFailure counts the end without an answer of a request that CountRequest has counted. The client's own doing is not to
// be counted.
func (b *Backend) CountFailure() { b.failures.Add(1) }

// Verdict is the newest one. A backend begins as Unknown.
func (b *Backend) Verdict() Verdict { return *b.verdict.Load() }

// takes says whether the backend takes traffic.
func (b *Backend) takes() bool { return b.verdict.Load().State != Unhealthy }

// SetVerdict replaces the verdict. When it returns, every pool that the backend is in picks by it, and Options.Changed has
// been called if there was a change. Since is the caller's to keep when only the reason changes.
func (b *Backend) SetVerdict(v Verdict) {
	b.mu.Lock()
	old := b.verdict.Swap(&v)
	var concerned []*Pool
	if (old.State != Unhealthy) != (v.State != Unhealthy) {
		concerned = b.joined()
	}
	if old.State == Unhealthy && v.State != Unhealthy && !b.askedAnyway() {
		now := time.Now()
		b.began.Store(&now)
	}
	b.mu.Unlock()
	for _, p := range concerned {
		p.rebuild()
	}
	if old.State != v.State || old.Reason != v.Reason {
		b.registry.options.Changed(b)
	}
}

func (b *Backend) join(p *Pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pools[p] = struct{}{}
}

func (b *Backend) leave(p *Pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.pools, p)
}

// Dial opens a connection of its own, over TLS with the handshake done and the certificate verified where the backend is
// spoken to so. It ends with ctx. If ctx has a deadline, earlier or later, it takes the place of Options.ConnectTimeout. The
// caller closes the connection. The error is a *DialError.
//
// A host name is not looked up: its addresses are those of the last answer, each as often the first to be tried as the
// others, and all of them are tried until one connects. Only while no lookup has ended yet, Dial waits for that.
func (b *Backend) Dial(ctx context.Context) (net.Conn, error) { return b.dial(ctx, b.tls) }

// DialHTTP2 is Dial for who will speak HTTP/2: where the backend is spoken to over TLS, that alone is offered by ALPN. Whether
// the backend took the offer is not looked at, since a server that knows nothing of ALPN may speak it all the same.
func (b *Backend) DialHTTP2(ctx context.Context) (net.Conn, error) {
	config := b.tls
	if config != nil {
		config = config.Clone()
		config.NextProtos = []string{"h2"}
		config.ClientSessionCache = nil // it has room for one, and that is the ticket of traffic
	}
	return b.dial(ctx, config)
}

// dial opens a connection, over TLS unless config is nil.
func (b *Backend) dial(ctx context.Context, config *tls.Config) (net.Conn, error) {
	if _, given := ctx.Deadline(); !given {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, b.registry.options.ConnectTimeout)
		defer cancel()
	}
	conn, err := b.connect(ctx)
	if err != nil {
		return nil, &DialError{Address: b.address, Err: err}
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		conn = socket.New(tcp)
	}
	if config == nil {
		return conn, nil
	}
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, &DialError{Address: b.address, Err: err}
	}
	return secured, nil
}

// connect opens the connection below TLS.
func (b *Backend) connect(ctx context.Context) (net.Conn, error) {
	dial := b.registry.options.DialContext
	if b.name == nil {
		return dial(ctx, "tcp", b.address)
	}
	addresses, err := b.name.addresses(ctx)
	if err != nil {
		return nil, err
	}
	return dialAny(ctx, dial, addresses, b.name.turn.Add(1))
}
