package listener

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/nodetest"
)

func TestDrainTellsKeptConnections(t *testing.T) {
	l := bound(t, Options{})
	l.Start()
	ask := asker(t, nodetest.Dial(t, l.Address()))
	if strings.Contains(ask(), "Connection: close") {
		t.Error("told to close before the drain")
	}
	ended := draining(t, l, t.Context())
	if !strings.Contains(ask(), "Connection: close") {
		t.Error("not told to close")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestDrainCutsAtTheDeadlineAndWaits(t *testing.T) {
	entered, left := make(chan struct{}), false
	l := bound(t, Options{Front: &front{http1: func(conn net.Conn, _ *net.TCPConn, _ func() bool) bool {
		close(entered)
		conn.Read(make([]byte, 1))
		left = true
		return false
	}}})
	l.Start()
	nodetest.Dial(t, l.Address())
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := l.Drain(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "drain 127.0.0.1:") {
		t.Error(err)
	}
	if !left {
		t.Error("a connection's goroutine still runs")
	}
}

func TestDrainDoesNotWaitForWhatWasHandedOver(t *testing.T) {
	tunnel := make(chan net.Conn, 1)
	l := bound(t, Options{MaxConnections: 1, Front: &front{http1: func(conn net.Conn, _ *net.TCPConn, _ func() bool) bool {
		tunnel <- conn
		return true
	}}})
	l.Start()
	for range 2 { // nor do they count against the limit
		c := nodetest.Dial(t, l.Address())
		owned := <-tunnel
		defer owned.Close()
		io.WriteString(owned, "still here\n")
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			t.Errorf("%q %v", line, err)
		}
	}
	drain(t, l)
}

func TestAHandshakeUnderWayIsServedInADrain(t *testing.T) {
	authority := certtest.New(t)
	f := &front{}
	l := bound(t, Options{Front: f, TLS: always(serverConfig(t, authority))})
	l.Start()
	raw := nodetest.Dial(t, l.Address())
	nodetest.Eventually(t, "the handshake has begun", func() bool { return underWay(l) == 1 })
	ended := draining(t, l, t.Context())
	nodetest.Eventually(t, "the front saw no connection", func() bool { return f.drained() > 0 && f.connections() == 0 })
	c := tls.Client(raw, &tls.Config{RootCAs: authority.Pool(), ServerName: "127.0.0.1"})
	if head := asker(t, c)(); !strings.Contains(head, "Connection: close") {
		t.Errorf("%q", head)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The engine has returned from its drain when this connection reaches it, and it brings no request.
func TestAConnectionThatComesLateIsDrainedToo(t *testing.T) {
	authority := certtest.New(t)
	f := &front{}
	l := bound(t, Options{Front: f, TLS: always(serverConfig(t, authority))})
	l.Start()
	raw := nodetest.Dial(t, l.Address())
	nodetest.Eventually(t, "the handshake has begun", func() bool { return underWay(l) == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := draining(t, l, ctx)
	nodetest.Eventually(t, "the front was drained", func() bool { return f.drained() > 0 })
	before := f.drained()
	c := tls.Client(raw, &tls.Config{RootCAs: authority.Pool(), ServerName: "127.0.0.1"})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "the front is asked again", func() bool { return f.drained() > before && f.connections() == 1 })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := io.ReadAll(c); err != nil { // the front's Close says good-bye in TLS
		t.Error(err)
	}
}

func TestAHandshakeIsCutWhenTheDrainIsOver(t *testing.T) {
	l := bound(t, Options{TLS: always(serverConfig(t, certtest.New(t)))})
	l.Start()
	c := nodetest.Dial(t, l.Address())
	nodetest.Eventually(t, "the handshake has begun", func() bool { return underWay(l) == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	ended := draining(t, l, ctx)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
	if l.handshakes.enter(nil) {
		t.Error("another handshake may begin")
	}
}

func TestASecondDrainReturnsToo(t *testing.T) {
	l := bound(t, Options{})
	l.Start()
	drain(t, l)
	drain(t, l)
}

func underWay(l *Listener) int {
	l.handshakes.mu.Lock()
	defer l.handshakes.mu.Unlock()
	return len(l.handshakes.conns)
}
