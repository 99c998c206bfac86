package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/nodetest"
)

const announcement = "PROXY TCP4 192.0.2.1 192.0.2.2 4660 443\r\n"

// announcedBy takes headers from networks.
func announcedBy(networks ...string) *Proxies {
	var all []netip.Prefix
	for _, n := range networks {
		all = append(all, netip.MustParsePrefix(n))
	}
	return &Proxies{Networks: func() []netip.Prefix { return all }}
}

func wantCounts(t *testing.T, p *Proxies, read, refused uint64) {
	t.Helper()
	nodetest.Eventually(t, "the headers are counted", func() bool {
		r, f := p.Counts()
		return r == read && f == refused
	})
}

func TestAProxySaysWhoseAConnectionIs(t *testing.T) {
	for name, header := range map[string]string{
		"a text":   announcement,
		"bytes":    "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x12\x34\x01\xbb",
		"no one":   "PROXY UNKNOWN\r\n",
		"by LOCAL": "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			f := &front{clients: make(chan netip.Addr, 1)}
			p := announcedBy("10.0.0.0/8", "127.0.0.0/8")
			l := started(t, Options{Front: f, Proxies: p})
			if answer := nodetest.Exchange(t, l.Address(), header+request); !strings.Contains(answer, " 200 OK") {
				t.Errorf("%q", answer)
			}
			want := netip.Addr{}
			if header == announcement || strings.Contains(header, "\x21\x11") {
				want = netip.MustParseAddr("192.0.2.1")
			}
			if got := <-f.clients; got != want {
				t.Errorf("the client is %v, want %v", got, want)
			}
			wantCounts(t, p, 1, 0)
		})
	}
}

func TestAHeaderStandsBeforeTLS(t *testing.T) {
	authority := certtest.New(t)
	f := &front{clients: make(chan netip.Addr, 1)}
	l := started(t, Options{Front: f, TLS: always(serverConfig(t, authority)), Proxies: announcedBy("127.0.0.1/32")})
	c := nodetest.Dial(t, l.Address())
	io.WriteString(c, announcement)
	secured := tls.Client(c, &tls.Config{RootCAs: authority.Pool(), ServerName: "127.0.0.1"})
	io.WriteString(secured, request)
	if answer, err := io.ReadAll(secured); err != nil || !strings.Contains(string(answer), " 200 OK") {
		t.Errorf("%q, %v", answer, err)
	}
	if got := <-f.clients; got.String() != "192.0.2.1" {
		t.Errorf("the client is %v", got)
	}
}

func TestAProxyWithoutAHeaderIsNotServed(t *testing.T) {
	p := announcedBy("127.0.0.0/8")
	l := started(t, Options{Proxies: p})
	for _, raw := range []string{request, "PROXY TCP4 nonsense\r\n" + request, "PROXY TCP4 192.0"} {
		c := nodetest.Dial(t, l.Address())
		io.WriteString(c, raw)
		c.(*net.TCPConn).CloseWrite()
		if answer, err := io.ReadAll(c); len(answer) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: %q, %v", raw, answer, err)
		}
	}
	wantCounts(t, p, 0, 3)
	c := nodetest.Dial(t, l.Address()) // as probes do
	c.(*net.TCPConn).CloseWrite()
	if answer, err := io.ReadAll(c); len(answer) > 0 || err != nil {
		t.Errorf("%q, %v", answer, err)
	}
	wantCounts(t, p, 0, 3)
}

func TestWhoIsNoProxyNeedsNoHeader(t *testing.T) {
	f := &front{clients: make(chan netip.Addr, 1)}
	p := announcedBy("192.0.2.0/24")
	l := started(t, Options{Front: f, Proxies: p})
	if answer := get(t, l); !strings.Contains(answer, " 200 OK") {
		t.Errorf("%q", answer)
	}
	if got := <-f.clients; got.IsValid() {
		t.Errorf("the client is %v", got)
	}
	wantCounts(t, p, 0, 0)
}

func TestHeadersAreWantedFromTheNextConnectionOn(t *testing.T) {
	var on atomic.Bool
	networks := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	l := started(t, Options{Proxies: &Proxies{Networks: func() []netip.Prefix {
		if on.Load() {
			return networks
		}
		return nil
	}}})
	ask := asker(t, nodetest.Dial(t, l.Address()))
	ask()
	on.Store(true)
	ask() // the connection goes on
	if answer := nodetest.Exchange(t, l.Address(), announcement+request); !strings.Contains(answer, " 200 OK") {
		t.Errorf("%q", answer)
	}
	on.Store(false)
	if answer := get(t, l); !strings.Contains(answer, " 200 OK") {
		t.Errorf("%q", answer)
	}
}

func TestAHeaderThatDoesNotComeIsNotWaitedForLong(t *testing.T) {
	p := announcedBy("127.0.0.0/8")
	l := started(t, Options{Proxies: p, HandshakeTimeout: 20 * time.Millisecond})
	c := nodetest.Dial(t, l.Address())
	io.WriteString(c, "PROXY ")
	if answer, err := io.ReadAll(c); len(answer) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%q, %v", answer, err)
	}
	wantCounts(t, p, 0, 1)
}

func TestTheDeadlineOfAHeaderIsLifted(t *testing.T) {
	deadline := 2 * time.Second
	l := started(t, Options{Proxies: announcedBy("127.0.0.0/8"), HandshakeTimeout: deadline, Front: &front{
		http1: func(conn net.Conn, _ *net.TCPConn, _ func() bool) bool {
			past := time.NewTimer(deadline) // longer than since the header was waited for
			defer past.Stop()
			<-past.C
			io.Copy(conn, io.LimitReader(conn, 4))
			return false
		},
	}})
	c := nodetest.Dial(t, l.Address())
	io.WriteString(c, announcement+"echo")
	if got, err := io.ReadAll(c); err != nil || string(got) != "echo" {
		t.Errorf("%q %v", got, err)
	}
}

func TestAHeaderIsNotWaitedForWhenTheDrainIsOver(t *testing.T) {
	log, p := &record{}, announcedBy("127.0.0.0/8")
	l := bound(t, Options{Proxies: p, HandshakeTimeout: time.Hour, Logger: log.logger()})
	l.Start()
	nodetest.Dial(t, l.Address())
	nodetest.Eventually(t, "the header is waited for", func() bool { return underWay(l) == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l.Drain(ctx) // returns
	if _, refused := p.Counts(); refused > 0 || len(log.lines("must begin with")) > 0 {
		t.Errorf("the proxy is blamed: %d refused, %q", refused, log.lines("must begin with"))
	}
}

func TestAProbeThatResetsItsConnectionIsNoNews(t *testing.T) {
	log, p := &record{}, announcedBy("127.0.0.0/8")
	l := bound(t, Options{Proxies: p, Logger: log.logger()})
	l.Start()
	c := nodetest.Dial(t, l.Address())
	nodetest.Eventually(t, "the header is waited for", func() bool { return underWay(l) == 1 })
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	if err := l.Drain(t.Context()); err != nil { // which waits for it
		t.Error(err)
	}
	if _, refused := p.Counts(); refused > 0 || len(log.lines("must begin with")) > 0 {
		t.Errorf("the proxy is blamed: %d refused, %q", refused, log.lines("must begin with"))
	}
}
