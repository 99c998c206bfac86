package upstream

import (
	"bufio"
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
	"testing"

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
	if got := ask(t, b, "/"); got != "x" {
		t.Errorf("the backend saw Host %q", got)
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
				if got := ask(t, b, "/"); got != c.want {
					t.Errorf("the backend saw %q, want %q", got, c.want)
				}
				return
			}
			_, byOpen := b.Open(t.Context())
			_, byDial := b.Dial(t.Context())
			for _, err := range []error{byOpen, byDial} {
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
	if got := ask(t, b, "/"); got != "proxy.example" {
		t.Errorf("the backend saw the certificate of %q", got)
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
		c := open(t, b)
		if got := get(t, c, "/"); got != want {
			t.Errorf("resumed: %s, want %s", got, want)
		}
		c.Close()
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
		c := open(t, b)
		defer c.Close()
		if got := get(t, c, "/"); got != resumed {
			t.Errorf("resumed: %s, want %s", got, resumed)
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
