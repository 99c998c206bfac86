package listener

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/socket"
)

func serverConfig(t testing.TB, a *certtest.Authority) *tls.Config {
	t.Helper()
	return &tls.Config{Certificates: []tls.Certificate{a.Issue(t, "127.0.0.1").TLS}, NextProtos: []string{"h2", "http/1.1"}}
}

func always(c *tls.Config) func() *tls.Config { return func() *tls.Config { return c } }

func TestTLSIsDecidedForEachConnection(t *testing.T) {
	authority := certtest.New(t)
	config := serverConfig(t, authority)
	var now atomic.Pointer[tls.Config]
	l := started(t, Options{TLS: now.Load})
	ask := asker(t, nodetest.Dial(t, l.Address()))
	if head := ask(); strings.Contains(head, "Connection: close") {
		t.Errorf("%q", head)
	}
	now.Store(config)
	c, err := tls.Dial("tcp", l.Address(), &tls.Config{RootCAs: authority.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	askSecurely := asker(t, c)
	if head := askSecurely(); strings.Contains(head, "Connection: close") {
		t.Errorf("%q", head)
	}
	// What came before still speaks plain HTTP, and is told to come back.
	if head := ask(); !strings.Contains(head, "Connection: close") {
		t.Errorf("%q", head)
	}
	now.Store(nil)
	if answer := get(t, l); !strings.Contains(answer, "200 OK") {
		t.Errorf("%q", answer)
	}
	if head := askSecurely(); !strings.Contains(head, "Connection: close") {
		t.Errorf("%q", head)
	}
	c.Close()
}

// asker sends one request after another and gives the heads of their answers.
func asker(t *testing.T, c net.Conn) func() string {
	in := bufio.NewReader(c)
	return func() string {
		t.Helper()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		head, err := nodetest.ReadHead(in)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(in, make([]byte, len("HTTP/1.1")))
		return head
	}
}

func TestALPNChoosesTheEngine(t *testing.T) {
	authority := certtest.New(t)
	l := started(t, Options{TLS: always(serverConfig(t, authority)), Front: &front{
		http1: func(conn net.Conn, tcp *net.TCPConn, _ func() bool) bool {
			secure, ok := conn.(*tls.Conn)
			if !ok || secure.NetConn().(*socket.Conn).TCP() != tcp {
				t.Errorf("%T over %T", conn, tcp)
			}
			io.WriteString(conn, "one")
			return false
		},
		http2: func(conn *tls.Conn) { io.WriteString(conn, "two") },
	}})
	for protocol, want := range map[string]string{"h2": "two", "http/1.1": "one", "": "one"} {
		var offer []string
		if protocol != "" {
			offer = []string{protocol}
		}
		c, err := tls.Dial("tcp", l.Address(), &tls.Config{RootCAs: authority.Pool(), NextProtos: offer})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != want {
			t.Errorf("%q: %q %v, want %q", protocol, got, err, want)
		}
		c.Close()
	}
}

func TestAPlainConnectionIsItsOwnSocket(t *testing.T) {
	l := started(t, Options{Front: &front{http1: func(conn net.Conn, tcp *net.TCPConn, _ func() bool) bool {
		if conn != net.Conn(tcp) {
			t.Errorf("%T over %T", conn, tcp)
		}
		io.WriteString(conn, "plain")
		return false
	}}})
	if got, err := io.ReadAll(nodetest.Dial(t, l.Address())); err != nil || string(got) != "plain" {
		t.Errorf("%q %v", got, err)
	}
}

func TestPlainHTTPOnATLSPortIsToldSo(t *testing.T) {
	l := started(t, Options{TLS: always(serverConfig(t, certtest.New(t)))})
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		long := method + " / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 20<<10) + "\r\n\r\n"
		c := nodetest.Dial(t, l.Address())
		io.WriteString(c, long)
		answer, err := io.ReadAll(c) // an error would be the kernel's RST
		head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
		if err != nil || !strings.HasPrefix(head, "HTTP/1.1 400 Bad Request\r\n") || len(body) != 48 ||
			body != "Client sent an HTTP request to an HTTPS server.\n" {
			t.Errorf("%s: %q %v", method, answer, err)
		}
		c.Close()
	}
}

func TestAFailedHandshakeIsClosedAndNoNews(t *testing.T) {
	var log record
	l := started(t, Options{TLS: always(serverConfig(t, certtest.New(t))), Logger: log.logger()})
	c := nodetest.Dial(t, l.Address())
	io.WriteString(c, "\x00\x01\x02\x03\x04 nonsense")
	if answer, _ := io.ReadAll(c); strings.Contains(string(answer), "HTTP") {
		t.Errorf("%q", answer)
	}
	if lines := log.lines("a TLS handshake failed"); len(lines) != 1 || !strings.Contains(lines[0], "level=DEBUG") {
		t.Errorf("%q", lines)
	}
}

func TestASlowHandshakeIsCutOff(t *testing.T) {
	l := started(t, Options{TLS: always(serverConfig(t, certtest.New(t))), HandshakeTimeout: 10 * time.Millisecond})
	c := nodetest.Dial(t, l.Address())
	io.WriteString(c, "\x16\x03\x01")
	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
}

// Only a handshake has its time: what comes after is Front's to bound.
func TestTheDeadlineOfTheHandshakeIsLifted(t *testing.T) {
	authority := certtest.New(t)
	deadline := 500 * time.Millisecond
	l := started(t, Options{TLS: always(serverConfig(t, authority)), HandshakeTimeout: deadline, Front: &front{
		http1: func(conn net.Conn, _ *net.TCPConn, _ func() bool) bool {
			past := time.NewTimer(deadline) // longer than since the handshake began
			defer past.Stop()
			<-past.C
			io.Copy(conn, io.LimitReader(conn, 4))
			return false
		},
	}})
	c, err := tls.Dial("tcp", l.Address(), &tls.Config{RootCAs: authority.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "echo")
	if got, err := io.ReadAll(c); err != nil || string(got) != "echo" {
		t.Errorf("%q %v", got, err)
	}
}
