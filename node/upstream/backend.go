package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

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
	scheme    string
	tls       *tls.Config // nil: plain
	name      *name       // nil: the host is an IP address

	// Replaced when the name's addresses change: a connection that is in use at that moment must not be kept afterwards
	// either, and a transport that is left behind keeps none.
	transport atomic.Pointer[http.Transport]

	refs int // guarded by Registry.mu

	conns conns

	requests, failures, connectFailures atomic.Uint64

	verdict atomic.Pointer[Verdict]

	// mu guards pools, and makes one of setting the verdict and finding out whom it concerns. A pool's lock is never taken
	// under it.
	mu    sync.Mutex
	pools map[*Pool]struct{}
}

func newBackend(r *Registry, id identity, s Spec) *Backend {
	b := &Backend{registry: r, id: id, spec: s, address: id.address, scheme: "http", pools: make(map[*Pool]struct{})}
	defaultPort := ":80"
	if s.TLS != nil {
		b.scheme, defaultPort = "https", ":443"
	}
	b.authority = strings.TrimSuffix(b.address, defaultPort)
	b.conns.capacity, b.conns.now = r.options.MaxIdleConns, &r.sweeper.now
	b.verdict.Store(&Verdict{Since: time.Now()})
	b.transport.Store(b.newTransport(r.options))
	if _, err := netip.ParseAddr(s.Host); err != nil {
		b.name = &name{
			host: s.Host, port: strconv.FormatUint(uint64(s.Port), 10), resolver: r.options.Resolver, slots: r.lookups,
			random: r.options.Random, logger: r.options.Logger.With("backend", b.address), changed: b.reconnect,
		}
	}
	return b
}

// newTransport returns a transport for this backend alone: connections are then counted, kept and closed by backend, and
// two that share an address but not their TLS settings can never lend each other a connection.
func (b *Backend) newTransport(o Options) *http.Transport {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return b.Dial(ctx) }
	return &http.Transport{
		Proxy:          nil, // the environment is not part of the configuration
		DialContext:    dial,
		DialTLSContext: dial,
		// HTTP/1.1 only. An empty map is how net/http is told so.
		ForceAttemptHTTP2:   false,
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		DisableCompression:  true, // what the backend sends passes as it is
		MaxIdleConnsPerHost: o.MaxIdleConns,
		// A backend that is slow to say "100 Continue" gets the body all the same (RFC 9110 section 10.1.1).
		ExpectContinueTimeout:  time.Second,
		ResponseHeaderTimeout:  o.ResponseHeaderTimeout,
		IdleConnTimeout:        o.IdleTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		WriteBufferSize:        8 << 10,
		ReadBufferSize:         8 << 10,
	}
}

// reconnect makes all requests from now on use connections opened from now on. Those under way end on what they have.
func (b *Backend) reconnect() {
	b.transport.Swap(b.newTransport(b.registry.options)).CloseIdleConnections()
	b.conns.renew()
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

// CountRequest counts a request that begins to be sent over connections from Open or Take. RoundTrip counts its own.
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
		for p := range b.pools {
			concerned = append(concerned, p)
		}
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

// RoundTrip sends req to this backend over a kept or a new connection, and returns the head of the answer with the body to
// be read and closed by the caller. Scheme and host of req.URL do not matter; req itself is not changed. As long as nothing
// of an answer was received, net/http tries again on another connection if a kept one turns out to be closed and the request
// may be repeated; nothing else is retried.
//
// A *DialError means that nothing was sent, a *BodyError that the request's body failed. Nor is an error the backend's doing
// when req's context was cancelled. Other errors are the backend's.
func (b *Backend) RoundTrip(req *http.Request) (*http.Response, error) {
	b.requests.Add(1)
	out, body := b.aim(req)
	transport := b.transport.Load()
	resp, err := transport.RoundTrip(out)
	if transport != b.transport.Load() {
		transport.CloseIdleConnections() // again: by taking up a request it began to keep connections anew
	}
	if err == nil {
		return resp, nil
	}
	if body != nil {
		if cause := body.failure.Load(); cause != nil {
			return nil, &BodyError{Err: *cause}
		}
	}
	if !errors.Is(req.Context().Err(), context.Canceled) {
		b.failures.Add(1)
	}
	return nil, err
}

// aim returns req as the transport is to see it, and its body if it has one. A request that needs no change is not copied.
func (b *Backend) aim(req *http.Request) (*http.Request, *watchedBody) {
	hasBody := req.Body != nil && req.Body != http.NoBody
	if !hasBody && req.URL.Host == b.address && req.URL.Scheme == b.scheme {
		return req, nil
	}
	out := *req
	target := *req.URL
	target.Scheme, target.Host = b.scheme, b.address
	out.URL = &target
	if !hasBody {
		return &out, nil
	}
	body := &watchedBody{ReadCloser: req.Body}
	out.Body = body
	return &out, body
}

// watchedBody remembers why a request's body could not be read: net/http reports it like any other failed write.
type watchedBody struct {
	io.ReadCloser
	closed  atomic.Bool
	failure atomic.Pointer[error]
}

func (w *watchedBody) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	// The transport closes the body of a request that it gives up. What Read says then is not what ended the request.
	if err != nil && err != io.EOF && !w.closed.Load() {
		w.failure.CompareAndSwap(nil, &err)
	}
	return n, err
}

func (w *watchedBody) Close() error {
	w.closed.Store(true)
	return w.ReadCloser.Close()
}

var _ http.RoundTripper = (*Backend)(nil)
