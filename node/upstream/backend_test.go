package upstream

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/pyserve/pyserve/node/certtest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// specOf is the plain backend that listens at address.
func specOf(t testing.TB, address string) Spec {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return Spec{Host: host, Port: uint32(n)}
}

// serve starts an HTTP backend.
func serve(t testing.TB, handler http.HandlerFunc) (*httptest.Server, Spec) {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s, specOf(t, s.Listener.Addr().String())
}

// serveTLS starts an HTTPS backend that would speak HTTP/2 if asked.
func serveTLS(t testing.TB, config *tls.Config, handler http.HandlerFunc) Spec {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.TLS = config
	s.EnableHTTP2 = true
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	return specOf(t, s.Listener.Addr().String())
}

// script is a backend that answers each connection by hand.
func script(t testing.TB, answer func(n int, c net.Conn)) Spec {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			answer(n, c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return specOf(t, l.Addr().String())
}

// refused is a backend on whose port nobody listens.
func refused(t testing.TB) Spec {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return specOf(t, l.Addr().String())
}

func request(t testing.TB, method, target string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// roundTrip wants an answer, and returns its body too.
func roundTrip(t testing.TB, b *Backend, req *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := b.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestRequestGoesToTheBackendWhateverItsURLSays(t *testing.T) {
	_, spec := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host, " ", r.RequestURI) })
	b := acquire(t, newRegistry(t, Options{}), spec)
	req := request(t, "GET", "https://client.example/a?b=c", nil)
	req.Host = "kept.example"
	if _, body := roundTrip(t, b, req); body != "kept.example /a?b=c" {
		t.Errorf("the backend saw %q", body)
	}
	if req.URL.String() != "https://client.example/a?b=c" || req.Host != "kept.example" {
		t.Errorf("the caller's request was changed to %s, Host %s", req.URL, req.Host)
	}
	if got := b.Counters(); got != (Counters{Requests: 1}) {
		t.Errorf("counters %+v, want one request", got)
	}
}

func TestBodyAndTrailersPassBothWays(t *testing.T) {
	_, spec := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Sum")
		io.Copy(w, r.Body)
		w.Header().Set("Sum", r.Trailer.Get("Sum"))
	})
	b := acquire(t, newRegistry(t, Options{}), spec)
	req := request(t, "POST", "http://x/", io.MultiReader(strings.NewReader("hello"))) // of unknown length
	req.Trailer = http.Header{"Sum": {"5"}}
	resp, body := roundTrip(t, b, req)
	if body != "hello" || resp.Trailer.Get("Sum") != "5" {
		t.Errorf("got %q, trailers %v", body, resp.Trailer)
	}
}

func TestCompressedAnswerIsNotTouched(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write([]byte("hello"))
	z.Close()
	_, spec := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Accept-Encoding"); got != "" {
			t.Errorf("Accept-Encoding %q was added", got)
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.Write(packed.Bytes())
	})
	resp, body := roundTrip(t, acquire(t, newRegistry(t, Options{}), spec), request(t, "GET", "http://x/", nil))
	if body != packed.String() || resp.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("the answer was changed: %v, %d bytes", resp.Header, len(body))
	}
}

func TestRedirectIsAnAnswerLikeAnyOther(t *testing.T) {
	_, spec := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) })
	resp, _ := roundTrip(t, acquire(t, newRegistry(t, Options{}), spec), request(t, "GET", "http://x/", nil))
	if resp.StatusCode != http.StatusFound {
		t.Errorf("status %d, want 302", resp.StatusCode)
	}
}

// trackConns counts the backend's connections as they are made and as they end.
func trackConns(s *httptest.Server) (opened *atomic.Int32, ended chan struct{}) {
	opened, ended = new(atomic.Int32), make(chan struct{}, 100)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			opened.Add(1)
		case http.StateClosed:
			ended <- struct{}{}
		}
	}
	return opened, ended
}

func TestConnectionIsKeptUntilTheLastRelease(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	opened, ended := trackConns(s)
	s.Start()
	defer s.Close()
	r := newRegistry(t, Options{})
	spec := specOf(t, s.Listener.Addr().String())
	first := acquire(t, r, spec)
	for range 3 {
		roundTrip(t, first, request(t, "GET", "http://x/", nil))
	}
	// The next generation goes on with the connection of the one before.
	second := acquire(t, r, spec)
	first.Release()
	roundTrip(t, second, request(t, "GET", "http://x/", nil))
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections for requests one after the other, want 1", n)
	}
	second.Release()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the idle connection is open after the last release")
	}
}

func TestAnswerUnderWayOutlivesTheLastRelease(t *testing.T) {
	more := make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "first ")
		w.(http.Flusher).Flush()
		<-more
		fmt.Fprint(w, "last")
	}))
	_, ended := trackConns(s)
	s.Start()
	defer s.Close()
	b := acquire(t, newRegistry(t, Options{}), specOf(t, s.Listener.Addr().String()))
	resp, err := b.RoundTrip(request(t, "GET", "http://x/", nil))
	if err != nil {
		t.Fatal(err)
	}
	b.Release()
	close(more)
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(body) != "first last" {
		t.Errorf("read %q, %v", body, err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the connection went back among the idle ones of a backend that is gone")
	}
}

// An idle connection that the backend closes just as a request is written to it is no failure of that request.
func TestRequestOnAConnectionThatJustClosedIsSentAgain(t *testing.T) {
	spec := script(t, func(n int, c net.Conn) {
		in := bufio.NewReader(c)
		if _, err := http.ReadRequest(in); err != nil {
			return
		}
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", n)
		if n == 1 {
			http.ReadRequest(in) // takes the second request and closes without an answer
		}
	})
	b := acquire(t, newRegistry(t, Options{}), spec)
	for want := range 2 {
		if _, body := roundTrip(t, b, request(t, "GET", "http://x/", nil)); body != fmt.Sprint(want+1) {
			t.Errorf("answered by connection %s, want %d", body, want+1)
		}
	}
	if got := b.Counters(); got.Failures != 0 {
		t.Errorf("%d failures were counted", got.Failures)
	}
}

func TestHeadOverTheLimitIsAnError(t *testing.T) {
	_, spec := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Big", strings.Repeat("x", 70<<10)) })
	b := acquire(t, newRegistry(t, Options{}), spec)
	if resp, err := b.RoundTrip(request(t, "GET", "http://x/", nil)); err == nil {
		resp.Body.Close()
		t.Error("a head of 70 KiB passed")
	}
}

func TestRefusedConnectionIsADialErrorAndAFailure(t *testing.T) {
	b := acquire(t, newRegistry(t, Options{}), refused(t))
	_, err := b.RoundTrip(request(t, "POST", "http://x/", strings.NewReader("body")))
	var dial *DialError
	if !errors.As(err, &dial) || dial.Address != b.Address() || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want a DialError for a refused connection", err)
	}
	if got := b.Counters(); got != (Counters{Requests: 1, Failures: 1}) {
		t.Errorf("counters %+v", got)
	}
}

func TestSilentBackendTimesOut(t *testing.T) {
	over := make(chan struct{})
	_, spec := serve(t, func(http.ResponseWriter, *http.Request) { <-over })
	defer close(over)
	b := acquire(t, newRegistry(t, Options{ResponseHeaderTimeout: 20 * time.Millisecond}), spec)
	_, err := b.RoundTrip(request(t, "GET", "http://x/", nil))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("got %v, want a timeout", err)
	}
	if b.Counters().Failures != 1 {
		t.Error("the timeout was not counted as a failure")
	}
}

func TestClientsCancelIsNotTheBackendsFailure(t *testing.T) {
	arrived, over := make(chan struct{}), make(chan struct{})
	_, spec := serve(t, func(http.ResponseWriter, *http.Request) { close(arrived); <-over })
	defer close(over)
	b := acquire(t, newRegistry(t, Options{}), spec)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	_, err := b.RoundTrip(request(t, "GET", "http://x/", nil).WithContext(ctx))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want a cancelled context", err)
	}
	if got := b.Counters(); got != (Counters{Requests: 1}) {
		t.Errorf("counters %+v, want no failure", got)
	}
}

func TestDeadlineOfTheRequestIsTheBackendsFailure(t *testing.T) {
	over := make(chan struct{})
	_, spec := serve(t, func(http.ResponseWriter, *http.Request) { <-over })
	defer close(over)
	b := acquire(t, newRegistry(t, Options{}), spec)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := b.RoundTrip(request(t, "GET", "http://x/", nil).WithContext(ctx)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	if b.Counters().Failures != 1 {
		t.Error("the deadline was not counted as a failure")
	}
}

func TestUploadThatTheClientBreaksOffIsNotTheBackendsFailure(t *testing.T) {
	_, spec := serve(t, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	b := acquire(t, newRegistry(t, Options{}), spec)
	gone := errors.New("client has gone")
	_, err := b.RoundTrip(request(t, "POST", "http://x/", io.MultiReader(strings.NewReader("some"), iotest.ErrReader(gone))))
	var body *BodyError
	if !errors.As(err, &body) || !errors.Is(err, gone) {
		t.Errorf("got %v, want a BodyError", err)
	}
	if got := b.Counters(); got != (Counters{Requests: 1}) {
		t.Errorf("counters %+v, want no failure", got)
	}
}

func TestBackendThatBreaksOffAnUploadHasFailed(t *testing.T) {
	spec := script(t, func(_ int, c net.Conn) { bufio.NewReader(c).ReadString('\n') })
	b := acquire(t, newRegistry(t, Options{}), spec)
	endless := io.NopCloser(iotest.OneByteReader(neverEnding('x')))
	_, err := b.RoundTrip(request(t, "POST", "http://x/", endless))
	var body *BodyError
	if err == nil || errors.As(err, &body) {
		t.Errorf("got %v, want the backend's error", err)
	}
	if b.Counters().Failures != 1 {
		t.Error("no failure was counted")
	}
}

type neverEnding byte

func (n neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(n)
	}
	return len(p), nil
}

func TestDialEndsWithItsContext(t *testing.T) {
	b := acquire(t, newRegistry(t, Options{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}), Spec{Host: "a", Port: 1})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Dial(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the cancelled context", err)
	}
}

func TestIPv6BackendIsReached(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) })}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	defer func() { s.Close(); <-done }()
	b := acquire(t, newRegistry(t, Options{}), specOf(t, l.Addr().String()))
	if _, body := roundTrip(t, b, request(t, "GET", "http://x/", nil)); body != "x" {
		t.Errorf("the backend saw Host %q", body)
	}
}

func TestTLSBackendIsVerified(t *testing.T) {
	authority, stranger := certtest.New(t), certtest.New(t)
	pair := authority.Issue(t, "127.0.0.1", "backend.example")
	spec := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{pair.TLS}}, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Proto, " ", r.TLS.ServerName)
	})
	for name, c := range map[string]struct {
		tls  *resourcev1.BackendTls
		want string // the answer; empty: refused
		err  any
	}{
		"by address, no SNI":    {tls: &resourcev1.BackendTls{CaPem: authority.PEM}, want: "HTTP/1.1 "},
		"by server name":        {tls: &resourcev1.BackendTls{CaPem: authority.PEM, ServerName: "backend.example"}, want: "HTTP/1.1 backend.example"},
		"another name":          {tls: &resourcev1.BackendTls{CaPem: authority.PEM, ServerName: "other.example"}, err: new(x509.HostnameError)},
		"another authority":     {tls: &resourcev1.BackendTls{CaPem: stranger.PEM}, err: new(x509.UnknownAuthorityError)},
		"the system's":          {tls: &resourcev1.BackendTls{}, err: new(x509.UnknownAuthorityError)},
		"verification left out": {tls: &resourcev1.BackendTls{InsecureSkipVerify: true}, want: "HTTP/1.1 "},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec
			s.TLS = c.tls
			b := acquire(t, newRegistry(t, Options{}), s)
			if c.want != "" {
				if _, body := roundTrip(t, b, request(t, "GET", "http://x/", nil)); body != c.want {
					t.Errorf("the backend saw %q, want %q", body, c.want)
				}
				return
			}
			_, byRequest := b.RoundTrip(request(t, "GET", "http://x/", nil))
			_, byDial := b.Dial(t.Context())
			for _, err := range []error{byRequest, byDial} {
				var dial *DialError
				if !errors.As(err, &dial) || !errors.As(err, c.err) {
					t.Errorf("got %v, want a DialError with %T", err, c.err)
				}
			}
		})
	}
}

func TestClientCertificateIsShown(t *testing.T) {
	authority := certtest.New(t)
	server, client := authority.Issue(t, "127.0.0.1"), authority.Issue(t, "proxy.example")
	spec := serveTLS(t, &tls.Config{
		Certificates: []tls.Certificate{server.TLS},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    authority.Pool(),
	}, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.TLS.PeerCertificates[0].DNSNames[0]) })
	spec.TLS = &resourcev1.BackendTls{CaPem: authority.PEM, ChainPem: client.ChainPEM, KeyPem: client.KeyPEM}
	b := acquire(t, newRegistry(t, Options{}), spec)
	if _, body := roundTrip(t, b, request(t, "GET", "http://x/", nil)); body != "proxy.example" {
		t.Errorf("the backend saw the certificate of %q", body)
	}
}

func TestTLSSessionIsResumed(t *testing.T) {
	authority := certtest.New(t)
	pair := authority.Issue(t, "127.0.0.1")
	spec := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{pair.TLS}}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		fmt.Fprint(w, r.TLS.DidResume)
	})
	spec.TLS = &resourcev1.BackendTls{CaPem: authority.PEM}
	b := acquire(t, newRegistry(t, Options{}), spec)
	for _, want := range []string{"false", "true"} {
		if _, body := roundTrip(t, b, request(t, "GET", "http://x/", nil)); body != want {
			t.Errorf("resumed: %s, want %s", body, want)
		}
	}
}

func TestDialIsReadyToBeSpokenOn(t *testing.T) {
	authority := certtest.New(t)
	pair := authority.Issue(t, "127.0.0.1")
	secure := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{pair.TLS}}, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	secure.TLS = &resourcev1.BackendTls{CaPem: authority.PEM}
	_, plain := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	for name, spec := range map[string]Spec{"plain": plain, "TLS": secure} {
		t.Run(name, func(t *testing.T) {
			conn, err := acquire(t, newRegistry(t, Options{}), spec).Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if body, _ := io.ReadAll(resp.Body); string(body) != "hello" {
				t.Errorf("read %q", body)
			}
		})
	}
}

func TestDialHTTP2OffersThatAlone(t *testing.T) {
	authority := certtest.New(t)
	offers := make(chan []string, 1)
	spec := serveTLS(t, &tls.Config{
		Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			offers <- hello.SupportedProtos
			return nil, nil
		},
	}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		fmt.Fprint(w, r.TLS.DidResume)
	})
	spec.TLS = &resourcev1.BackendTls{CaPem: authority.PEM}
	b := acquire(t, newRegistry(t, Options{}), spec)
	traffic := func(resumed string) {
		t.Helper()
		if _, body := roundTrip(t, b, request(t, "GET", "http://x/", nil)); body != resumed {
			t.Errorf("resumed: %s, want %s", body, resumed)
		}
		if got := <-offers; !slices.Equal(got, []string{"http/1.1"}) {
			t.Errorf("traffic offers %q", got)
		}
	}
	traffic("false")
	conn, err := b.DialHTTP2(t.Context())
	if got := <-offers; !slices.Equal(got, []string{"h2"}) {
		t.Errorf("it offers %q", got)
	}
	if err == nil {
		conn.Close()
	}
	traffic("true") // the ticket of traffic is still there
}

func BenchmarkRoundTrip(b *testing.B) {
	_, spec := serve(b, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok")) })
	backend := acquire(b, newRegistry(b, Options{}), spec)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := backend.RoundTrip(request(b, "GET", "http://x/", nil))
			if err != nil {
				b.Error(err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}
