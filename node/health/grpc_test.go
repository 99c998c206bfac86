package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func grpcCheck(path string) *resourcev1.HealthCheck {
	return &resourcev1.HealthCheck{
		Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_GRPC, Path: path, Timeout: durationpb.New(5 * time.Second),
	}
}

// counted counts the connections that a listener has accepted, and can cut those that are open.
type counted struct {
	net.Listener
	accepted atomic.Int32

	mu   sync.Mutex
	open []net.Conn
}

func (l *counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.accepted.Add(1)
		l.mu.Lock()
		l.open = append(l.open, c)
		l.mu.Unlock()
	}
	return c, err
}

func (l *counted) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.open {
		c.Close()
	}
	l.open = nil
}

// serveGRPC serves at an address until the test ends; h nil: without the health service.
func serveGRPC(t *testing.T, h healthv1.HealthServer, options ...grpc.ServerOption) *counted {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &counted{Listener: inner}
	s := grpc.NewServer(options...)
	if h != nil {
		healthv1.RegisterHealthServer(s, h)
	}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l
}

// answers is a health service that says what it is told to.
type answers struct {
	healthv1.UnimplementedHealthServer
	check func(ctx context.Context) (healthv1.HealthCheckResponse_ServingStatus, error)
}

func (a answers) Check(ctx context.Context, _ *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	s, err := a.check(ctx)
	return &healthv1.HealthCheckResponse{Status: s}, err
}

// targetOf is a target that is closed with the test.
func targetOf(t *testing.T, address net.Addr, c *resourcev1.HealthCheck) *target {
	t.Helper()
	r := upstream.NewRegistry(upstream.Options{})
	t.Cleanup(r.Close)
	b, err := r.Acquire(upstream.Spec{Host: "127.0.0.1", Port: uint32(address.(*net.TCPAddr).Port), Check: c})
	if err != nil {
		t.Fatal(err)
	}
	target := newTarget(b)
	t.Cleanup(target.close)
	return target
}

func TestGRPCProbeJudgesByServingStatus(t *testing.T) {
	service := grpchealth.NewServer() // "" is SERVING
	service.SetServingStatus("shop.Cart", healthv1.HealthCheckResponse_NOT_SERVING)
	service.SetServingStatus("shop.Till", healthv1.HealthCheckResponse_UNKNOWN)
	service.SetServingStatus("shop.Door", healthv1.HealthCheckResponse_SERVICE_UNKNOWN)
	service.SetServingStatus("shop.Shelf", healthv1.HealthCheckResponse_SERVING)
	address := serveGRPC(t, service).Addr().String()
	for path, want := range map[string]string{
		"":             "",
		"/":            "",
		"/shop.Shelf":  "",
		"/shop.Cart":   "gRPC health of shop.Cart is NOT_SERVING",
		"/shop.Till":   "gRPC health of shop.Till is UNKNOWN",
		"/shop.Door":   "gRPC health of shop.Door is SERVICE_UNKNOWN",
		"/shop.Cellar": "gRPC health of shop.Cellar is not known to the server",
	} {
		if got := try(t, address, grpcCheck(path), nil); got != want {
			t.Errorf("path %q: %q, want %q", path, got, want)
		}
	}
	service.Shutdown()
	if got := try(t, address, grpcCheck(""), nil); got != "gRPC health is NOT_SERVING" {
		t.Errorf("shut down: %q", got)
	}
}

func TestGRPCProbeOfOddServers(t *testing.T) {
	refuses := func(code codes.Code, message string) string {
		return serveGRPC(t, answers{check: func(context.Context) (healthv1.HealthCheckResponse_ServingStatus, error) {
			return 0, status.Error(code, message)
		}}).Addr().String()
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	two := httptest.NewUnstartedServer(http.NotFoundHandler())
	two.Config.Protocols = new(http.Protocols)
	two.Config.Protocols.SetUnencryptedHTTP2(true)
	two.Start()
	defer two.Close()
	cases := map[string]struct{ address, want string }{
		"no health service":   {serveGRPC(t, nil).Addr().String(), "no gRPC health service: unknown service grpc.health.v1.Health"},
		"no permission":       {refuses(codes.PermissionDenied, "who are you?"), "gRPC status PermissionDenied: who are you?"},
		"unavailable":         {refuses(codes.Unavailable, "warming up"), "gRPC status Unavailable: warming up"},
		"odd words":           {refuses(codes.Internal, "a\x1bb"), "gRPC status Internal: a b"},
		"nobody":              {closed.Addr().String(), "connection refused"},
		"HTTP/1":              {web.Listener.Addr().String(), "the backend does not speak HTTP/2"},
		"hangs up":            {listen(t, func(c net.Conn) { c.(*net.TCPConn).CloseWrite(); io.Copy(io.Discard, c) }), "connection closed without an answer"},
		"another protocol":    {listen(t, func(c net.Conn) { fmt.Fprint(c, "SSH-2.0-OpenSSH_9.6\r\n"); bufio.NewReader(c).ReadString(0) }), "the backend does not speak HTTP/2"},
		"HTTP/2 without gRPC": {two.Listener.Addr().String(), "no gRPC health service: "},
	}
	closed.Close() // last: the servers above might have been given its port
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := try(t, c.address, grpcCheck(""), nil)
			if got != c.want && !(strings.HasSuffix(c.want, ": ") && strings.HasPrefix(got, c.want)) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestSilentGRPCBackendTimesOut(t *testing.T) {
	over := make(chan struct{})
	defer close(over)
	never := serveGRPC(t, answers{check: func(ctx context.Context) (healthv1.HealthCheckResponse_ServingStatus, error) {
		<-ctx.Done()
		return 0, status.FromContextError(ctx.Err()).Err()
	}}).Addr().String()
	for name, address := range map[string]string{"answers never": never, "is silent": listen(t, func(net.Conn) { <-over })} {
		c := grpcCheck("")
		c.Timeout = durationpb.New(50 * time.Millisecond)
		if got := try(t, address, c, nil); got != "timeout after 50ms" {
			t.Errorf("a backend that %s: %q", name, got)
		}
	}
}

// A gRPC server takes nothing but "h2" by ALPN, which traffic does not offer.
func TestGRPCProbeOverTLS(t *testing.T) {
	authority, stranger := certtest.New(t), certtest.New(t)
	pair := authority.Issue(t, "127.0.0.1")
	asked := make(chan string, 1)
	service := answers{check: func(ctx context.Context) (healthv1.HealthCheckResponse_ServingStatus, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		asked <- strings.Join(md.Get(":authority"), "") + " " + strings.Join(md.Get("user-agent"), "")
		return healthv1.HealthCheckResponse_SERVING, nil
	}}
	address := serveGRPC(t, service, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair.TLS}}))).Addr().String()
	if got := try(t, address, grpcCheck(""), &resourcev1.BackendTls{CaPem: authority.PEM}); got != "" {
		t.Fatalf("%q", got)
	}
	if seen := <-asked; !strings.HasPrefix(seen, address+" "+userAgent) {
		t.Errorf("the server saw %q", seen)
	}
	if got := try(t, address, grpcCheck(""), &resourcev1.BackendTls{CaPem: stranger.PEM}); got != "certificate signed by unknown authority" {
		t.Errorf("%q", got)
	}
	if got := try(t, address, grpcCheck(""), nil); got == "" {
		t.Error("a probe without TLS is healthy")
	}
	one := httptest.NewUnstartedServer(http.NotFoundHandler())
	one.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS}, NextProtos: []string{"http/1.1"}}
	one.StartTLS()
	defer one.Close()
	if got := try(t, one.Listener.Addr().String(), grpcCheck(""), &resourcev1.BackendTls{CaPem: authority.PEM}); got != "tls: no application protocol" {
		t.Errorf("a server of HTTP/1 alone: %q", got)
	}
}

func TestGRPCProbeTellsTheScheme(t *testing.T) {
	authority := certtest.New(t)
	secure := &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS}, NextProtos: []string{"h2"}}
	seen := make(chan string, 1)
	plain := listen(t, func(c net.Conn) { seen <- schemeOf(c) })
	overTLS := listen(t, func(c net.Conn) {
		secured := tls.Server(c, secure)
		defer secured.Close()
		seen <- schemeOf(secured)
	})
	try(t, plain, grpcCheck(""), nil)
	if got := <-seen; got != "http" {
		t.Errorf("in plain text: %q", got)
	}
	try(t, overTLS, grpcCheck(""), &resourcev1.BackendTls{CaPem: authority.PEM})
	if got := <-seen; got != "https" {
		t.Errorf("over TLS: %q", got)
	}
}

// schemeOf reads up to the first request of HTTP/2.
func schemeOf(c net.Conn) string {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return err.Error()
	}
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.WriteSettings()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return err.Error()
		}
		if head, ok := frame.(*http2.MetaHeadersFrame); ok {
			return head.PseudoValue("scheme")
		}
	}
}

func TestGRPCProbesShareAConnection(t *testing.T) {
	service := grpchealth.NewServer()
	l := serveGRPC(t, service)
	target := targetOf(t, l.Addr(), grpcCheck(""))
	probe := func(want string) {
		t.Helper()
		if got, _ := target.try(t.Context()); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	probe("")
	service.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	probe("gRPC health is NOT_SERVING")
	service.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
	probe("")
	if n := l.accepted.Load(); n != 1 {
		t.Errorf("%d connections for three probes, want one", n)
	}
}

func TestGRPCConnectionThatEndedIsReplacedWithinTheProbe(t *testing.T) {
	l := serveGRPC(t, grpchealth.NewServer())
	target := targetOf(t, l.Addr(), grpcCheck(""))
	for round := range int32(3) {
		if got, _ := target.try(t.Context()); got != "" {
			t.Fatalf("round %d: %q", round, got)
		}
		if n := l.accepted.Load(); n != round+1 {
			t.Fatalf("round %d: %d connections", round, n)
		}
		l.cut()
	}
}

func TestOldGRPCConnectionIsReplaced(t *testing.T) {
	l := serveGRPC(t, grpchealth.NewServer())
	b := targetOf(t, l.Addr(), grpcCheck("")).backend
	g := newGRPCProbe(b, b.Spec().Check)
	defer g.close()
	for range 2 {
		if err := g.probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.opened = g.opened.Add(-maxKept)
	}
	if n := l.accepted.Load(); n != 2 {
		t.Errorf("%d connections, want two", n)
	}
}

// gRPC's own client would pause for a second and more after a refusal.
func TestGRPCBackendThatReturnsIsSeenAtOnce(t *testing.T) {
	l := serveGRPC(t, grpchealth.NewServer())
	target := targetOf(t, l.Addr(), grpcCheck(""))
	if got, _ := target.try(t.Context()); got != "" {
		t.Fatal(got)
	}
	l.Close()
	l.cut()
	for range 20 {
		if got, _ := target.try(t.Context()); got != "connection refused" {
			t.Fatalf("%q", got)
		}
	}
	again, err := net.Listen("tcp", l.Addr().String())
	if err != nil {
		t.Skipf("the port was taken by another: %v", err)
	}
	s := grpc.NewServer()
	healthv1.RegisterHealthServer(s, grpchealth.NewServer())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(again) }()
	defer func() { s.Stop(); <-done }()
	if got, _ := target.try(t.Context()); got != "" {
		t.Errorf("the first probe after the return: %q", got)
	}
}

func TestUnwatchEndsAGRPCProbeUnderWay(t *testing.T) {
	asked := make(chan struct{}, 1)
	gone := make(chan error, 1)
	l := serveGRPC(t, answers{check: func(ctx context.Context) (healthv1.HealthCheckResponse_ServingStatus, error) {
		asked <- struct{}{}
		<-ctx.Done()
		gone <- ctx.Err()
		return 0, ctx.Err()
	}})
	p := NewProber(Options{Random: func(time.Duration) time.Duration { return 0 }})
	defer p.Close()
	r := upstream.NewRegistry(upstream.Options{Added: p.Watch, Removed: p.Unwatch})
	defer r.Close()
	c := grpcCheck("")
	c.Timeout = durationpb.New(time.Hour)
	b, err := r.Acquire(upstream.Spec{Host: "127.0.0.1", Port: uint32(l.Addr().(*net.TCPAddr).Port), Check: c})
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	b.Release()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the call ended with %v", err)
	}
	if v := b.Verdict(); v.State != upstream.Unknown {
		t.Errorf("%v %q", v.State, v.Reason)
	}
}

// ends tells of each connection that has ended at the server.
type ends chan struct{}

func (ends) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (ends) HandleRPC(context.Context, stats.RPCStats)                         {}
func (ends) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (e ends) HandleConn(_ context.Context, s stats.ConnStats) {
	if _, ended := s.(*stats.ConnEnd); ended {
		e <- struct{}{}
	}
}

func TestUnwatchEndsTheKeptGRPCConnection(t *testing.T) {
	ended, healthy := make(ends, 1), make(chan struct{}, 1)
	l := serveGRPC(t, grpchealth.NewServer(), grpc.StatsHandler(ended))
	p := NewProber(Options{Random: func(time.Duration) time.Duration { return 0 }})
	defer p.Close()
	r := upstream.NewRegistry(upstream.Options{Added: p.Watch, Removed: p.Unwatch, Changed: func(*upstream.Backend) { healthy <- struct{}{} }})
	defer r.Close()
	b, err := r.Acquire(upstream.Spec{Host: "127.0.0.1", Port: uint32(l.Addr().(*net.TCPAddr).Port), Check: grpcCheck("")})
	if err != nil {
		t.Fatal(err)
	}
	<-healthy
	select {
	case <-ended:
		t.Fatal("the connection was not kept")
	default:
	}
	b.Release()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the connection is open although nobody probes")
	}
}
