package forward

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/meter"
	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/route"
	"github.com/pyserve/pyserve/node/tunnel"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a route with its backends, in the order of their turns.
type site struct {
	route    *resourcev1.Route
	backends []upstream.Spec
	picks    upstream.PoolOptions
}

// to is a site that strips path and forwards to ports of the loopback.
func to(path string, ports ...uint32) site {
	s := site{route: &resourcev1.Route{Path: path, Match: resourcev1.PathMatch_PATH_MATCH_PREFIX, StripPath: true}}
	for _, port := range ports {
		s.backends = append(s.backends, upstream.Spec{Host: "127.0.0.1", Port: port})
	}
	return s
}

// answersWithin is s with a limit for the heads of answers.
func answersWithin(within time.Duration, s site) site {
	s.route.Timeouts = &resourcev1.Timeouts{ResponseHeader: durationpb.New(within)}
	return s
}

// whole is a site for "/".
func whole(ports ...uint32) site { return to("/", ports...) }

// proxy is a front behind a real socket.
type proxy struct {
	address  string
	table    *Table
	tunnels  *tunnel.Set
	registry *prometheus.Registry
	proxy    *Proxy
	front    *Front
	backends []*upstream.Backend // in the order of the sites
}

func (p *proxy) Pin() (*Table, func()) { return p.table, func() {} }

func (p *proxy) url(path string) string { return "http://" + p.address + path }

// exchange sends raw and returns the whole answer.
func (p *proxy) exchange(t testing.TB, raw string) string {
	t.Helper()
	return nodetest.Exchange(t, p.address, raw)
}

type settings struct {
	trusted []string
	tls     *tls.Config
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	client  netip.Addr // as a proxy in front announces it
	stale   func() bool
	asleep  func(*net.TCPConn) // what goes before each wake; nil: nothing
	options Options            // but for what start sets itself
}

func start(t testing.TB, sites ...site) *proxy {
	t.Helper()
	return startWith(t, settings{}, sites...)
}

func startWith(t testing.TB, s settings, sites ...site) *proxy {
	t.Helper()
	p := &proxy{tunnels: tunnel.NewSet(tunnel.Options{}), registry: prometheus.NewRegistry()}
	p.table, p.backends = newTable(t, s, sites)
	metrics, err := meter.NewSet(meter.Options{Classes: Classes(), RejectReasons: RejectReasons()})
	if err == nil {
		err = metrics.Register(p.registry)
	}
	if err != nil {
		t.Fatal(err)
	}
	o := s.options
	o.Source, o.Tunnels, o.Meter = p, p.tunnels, metrics
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if p.proxy, err = New(o); err != nil {
		t.Fatal(err)
	}
	p.front = p.proxy.NewFront()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { p.accept(l, s, &serving) })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		p.tunnels.Close(ctx)
		l.Close()
		p.front.Drain(ctx)
		serving.Wait()
	})
	p.address = l.Addr().String()
	return p
}

// accept stands in for package listener.
func (p *proxy) accept(l net.Listener, s settings, serving *sync.WaitGroup) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		serving.Go(func() {
			tcp := nc.(*net.TCPConn)
			if s.tls == nil {
				p.serve(tcp, s)
				return
			}
			secured := tls.Server(nc, s.tls)
			if err := secured.Handshake(); err != nil {
				nc.Close()
				return
			}
			if secured.ConnectionState().NegotiatedProtocol == "h2" {
				p.front.ServeHTTP2(secured, s.client, nil)
				return
			}
			p.front.Serve(secured, tcp, s.client, s.stale)
		})
	}
}

func (p *proxy) serve(tcp *net.TCPConn, s settings) {
	wake := p.front.Serve(tcp, tcp, s.client, s.stale)
	for sleeps := wake != nil; sleeps; sleeps = wake() {
		if s.asleep != nil {
			s.asleep(tcp)
		}
	}
}

func newTable(t testing.TB, s settings, sites []site) (*Table, []*upstream.Backend) {
	t.Helper()
	registry := upstream.NewRegistry(upstream.Options{DialContext: s.dial})
	t.Cleanup(registry.Close)
	var rules []route.Rule[*Route]
	var all []*upstream.Backend
	for _, one := range sites {
		var members []upstream.Member
		for _, spec := range one.backends {
			b, err := registry.Acquire(spec)
			if err != nil {
				t.Fatal(err)
			}
			members = append(members, upstream.Member{Backend: b, Weight: 1})
			all = append(all, b)
		}
		compiled, err := NewRoute(one.route.Path, one.route, upstream.NewPool(members, one.picks))
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, route.Rule[*Route]{
			Path: one.route.Path, Match: one.route.Match, Hosts: one.route.Hosts, Order: one.route.Order, Value: compiled,
		})
	}
	routes, err := route.Compile(rules, nil)
	if err != nil {
		t.Fatal(err)
	}
	table := &Table{Routes: routes}
	for _, network := range s.trusted {
		table.Trusted = append(table.Trusted, netip.MustParsePrefix(network))
	}
	return table, all
}

// testWriter sends logs to the test's.
type testWriter struct{ testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if w.Context().Err() == nil { // the test may have ended, and its log with it
		w.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// backend is an HTTP server of the test.
func backend(t testing.TB, serve http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(serve)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func portOf(s *httptest.Server) uint32 {
	return uint32(s.Listener.Addr().(*net.TCPAddr).Port)
}

// closedPort is one that refuses connections.
func closedPort(t testing.TB) uint32 {
	t.Helper()
	b := nodetest.NewRawBackend(t, func(net.Conn) {})
	b.Close()
	return b.Port()
}

// client is an HTTP client of the test's own, that follows nothing and undoes nothing.
func client(t testing.TB, config *tls.Config) *http.Client {
	t.Helper()
	transport := &http.Transport{DisableCompression: true, TLSClientConfig: config, ForceAttemptHTTP2: config != nil}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport:     transport,
		Timeout:       time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get is a GET through the proxy, read to its end.
func get(t testing.TB, c *http.Client, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return do(t, c, req)
}

func do(t testing.TB, c *http.Client, req *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// lines are the lines of a head, without the empty one.
func lines(head string) []string {
	return strings.Split(strings.TrimSuffix(head, "\r\n\r\n"), "\r\n")
}

// fields are the values of a field in a raw head.
func fields(head, name string) []string {
	var out []string
	for _, line := range lines(head) {
		if key, value, ok := strings.Cut(line, ": "); ok && strings.EqualFold(key, name) {
			out = append(out, value)
		}
	}
	return out
}

// once answers one request per connection: head read, answer written, connection closed.
func once(answer string) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := nodetest.ReadHead(bufio.NewReader(c)); err == nil {
			io.WriteString(c, answer)
		}
	}
}

func itoa(port uint32) string { return strconv.Itoa(int(port)) }
