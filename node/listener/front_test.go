package listener

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
)

// front is an engine in small: it keeps the contract of Front, but that idle connections get no second.
type front struct {
	// Speaks on a connection of HTTP/1; nil: answer. What it returns says whether the connection was handed over.
	http1 func(conn net.Conn, tcp *net.TCPConn, stale func() bool) (handedOver bool)
	// Speaks on one of HTTP/2; nil: the connection is closed.
	http2 func(conn *tls.Conn)

	// Gets whose each connection is said to be; nil: nobody wants to know.
	clients chan netip.Addr

	mu      sync.Mutex // guards what follows
	conns   map[net.Conn]struct{}
	leaving bool
	over    bool
	drains  int
	away    int
	changed chan struct{} // replaced and closed with each change
}

func (f *front) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	if f.changed != nil {
		close(f.changed)
	}
	f.changed = make(chan struct{})
}

func (f *front) enter(conn net.Conn) {
	f.change(func() {
		if f.conns == nil {
			f.conns = make(map[net.Conn]struct{})
		}
		f.conns[conn] = struct{}{}
		if f.over {
			conn.Close()
		}
	})
}

func (f *front) exit(conn net.Conn) { f.change(func() { delete(f.conns, conn) }) }

func (f *front) Serve(conn net.Conn, tcp *net.TCPConn, client netip.Addr, stale func() bool) func() bool {
	f.enter(conn)
	defer f.exit(conn)
	if f.clients != nil {
		f.clients <- client
	}
	if f.http1 == nil {
		f.answer(conn, stale)
	} else if f.http1(conn, tcp, stale) {
		return nil
	}
	conn.Close()
	return nil
}

func (f *front) ServeHTTP2(conn *tls.Conn, _ netip.Addr, _ func() bool) {
	f.enter(conn)
	defer f.exit(conn)
	if f.http2 != nil {
		f.http2(conn)
	}
	conn.Close()
}

// answer says the protocol that was spoken, until the connection is to close.
func (f *front) answer(conn net.Conn, stale func() bool) {
	in := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		last := r.Close || stale() || f.isLeaving()
		said := ""
		if last {
			said = "Connection: close\r\n"
		}
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s", len(r.Proto), said, r.Proto)
		if last {
			return
		}
	}
}

func (f *front) isLeaving() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leaving
}

func (f *front) GoAway() { f.change(func() { f.away++ }) }
func (f *front) Leave()  { f.change(func() { f.leaving = true }) }

func (f *front) Drain(ctx context.Context) error {
	f.change(func() { f.leaving, f.drains = true, f.drains+1 })
	for {
		f.mu.Lock()
		left, changed := len(f.conns), f.changed
		f.mu.Unlock()
		if left == 0 && ctx.Err() == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return f.cut(ctx)
		}
	}
}

func (f *front) cut(ctx context.Context) (err error) {
	f.change(func() {
		f.over = true
		for conn := range f.conns {
			conn.Close()
			err = ctx.Err()
		}
	})
	return err
}

// connections is how many the front speaks on.
func (f *front) connections() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.conns)
}

// drained is how often Drain was called.
func (f *front) drained() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.drains
}

func bound(t testing.TB, o Options) *Listener {
	t.Helper()
	if o.Front == nil {
		o.Front = &front{}
	}
	l, err := Bind(t.Context(), "127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// started drains at the end of the test, cutting what the test has left.
func started(t testing.TB, o Options) *Listener {
	t.Helper()
	l := bound(t, o)
	l.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		l.Drain(ctx)
	})
	return l
}

func drain(t testing.TB, l *Listener) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := l.Drain(ctx); err != nil {
		t.Error(err)
	}
}

// draining is a drain under way; what comes from it is its end.
func draining(t testing.TB, l *Listener, ctx context.Context) <-chan error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- l.Drain(ctx) }()
	nodetest.Eventually(t, "no more connections are taken", func() bool {
		c, err := net.Dial("tcp", l.Address())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	return ended
}

const request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

func get(t *testing.T, l *Listener) string {
	t.Helper()
	return nodetest.Exchange(t, l.Address(), request)
}
