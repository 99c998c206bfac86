package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// balancer is a small round-robin load balancer, as clients behind one see the fleet: it asks every node's /readyz ten times
// a second, picks among those that are ready, and tries the next one where a connection is refused. Nothing that was sent is
// ever sent again.
type balancer struct {
	targets []*target
	turn    atomic.Uint64
	stopped chan struct{}
	group   sync.WaitGroup

	requests, closes, refused atomic.Int64

	mu       sync.Mutex // guards what follows
	failures []string
}

type target struct {
	d     *daemon
	ready atomic.Bool
	left  atomic.Int64 // how often it stopped being ready
}

func newBalancer(t *testing.T, nodes []*daemon) *balancer {
	t.Helper()
	b := &balancer{stopped: make(chan struct{})}
	for _, n := range nodes {
		at := &target{d: n}
		at.look()
		b.targets = append(b.targets, at)
	}
	for _, at := range b.targets {
		b.group.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					at.look()
				case <-b.stopped:
					return
				}
			}
		})
	}
	var once sync.Once
	t.Cleanup(func() { once.Do(b.stop) })
	return b
}

func (b *balancer) stop() {
	select {
	case <-b.stopped:
	default:
		close(b.stopped)
	}
	b.group.Wait()
}

func (t *target) look() {
	ready := probe(t.d.admin, "/readyz") == http.StatusOK
	if t.ready.Swap(ready) && !ready {
		t.left.Add(1)
	}
}

// dial connects to the next node that is ready, or to the one after it. Nil: the test ends.
func (b *balancer) dial() (net.Conn, *target) {
	for {
		for range b.targets {
			at := b.targets[int(b.turn.Add(1))%len(b.targets)]
			if !at.ready.Load() {
				continue
			}
			conn, err := net.DialTimeout("tcp", at.d.listen, patience)
			if err == nil {
				return conn, at
			}
			b.refused.Add(1)
			at.ready.Store(false)
			at.left.Add(1)
		}
		select {
		case <-b.stopped:
			return nil, nil
		case <-time.After(10 * time.Millisecond): // no node is ready; the next look may find one
		}
	}
}

func (b *balancer) over() bool {
	select {
	case <-b.stopped:
		return true
	default:
		return false
	}
}

func (b *balancer) fail(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.failures) < 10 {
		b.failures = append(b.failures, fmt.Sprintf(format, args...))
	}
}

func (b *balancer) complaints() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.failures...)
}

// browse sends requests over kept connections, some on each, until the end.
func (b *balancer) browse() {
	for !b.over() {
		conn, at := b.dial()
		if conn == nil {
			return
		}
		b.visit(conn, at)
		conn.Close()
	}
}

// visit uses a connection for a while, as long as its node is ready and wants it.
func (b *balancer) visit(conn net.Conn, at *target) {
	reader, left := bufio.NewReader(conn), at.left.Load()
	for range 50 {
		if b.over() || at.left.Load() != left {
			return
		}
		conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") // an error shows when the answer is read
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			b.fail("a request to %s: %v", at.d.name, err)
			return
		}
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK {
			b.fail("a request to %s: %s, %v", at.d.name, response.Status, err)
		}
		b.requests.Add(1)
		if err != nil || response.Close {
			return
		}
	}
}

// chat holds a WebSocket that says something now and then, and opens another one when it was closed in order.
func (b *balancer) chat() {
	for !b.over() {
		conn, at := b.dial()
		if conn == nil {
			return
		}
		dialer := websocket.Dialer{HandshakeTimeout: patience, NetDial: func(string, string) (net.Conn, error) { return conn, nil }}
		socket, _, err := dialer.Dial("ws://x/ws", nil)
		if err != nil {
			conn.Close()
			b.fail("a WebSocket handshake with %s: %v", at.d.name, err)
			continue
		}
		err = b.talk(socket)
		socket.Close()
		switch {
		case err == nil:
			return
		case websocket.IsCloseError(err, websocket.CloseGoingAway):
			b.closes.Add(1)
		default:
			b.fail("a WebSocket at %s ended with %v", at.d.name, err)
		}
	}
}

// talk returns nil when the test is over.
func (b *balancer) talk(socket *websocket.Conn) error {
	pause := time.NewTicker(20 * time.Millisecond)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-b.stopped:
			return nil
		}
		socket.SetReadDeadline(time.Now().Add(patience))
		socket.WriteMessage(websocket.TextMessage, []byte("hello")) // an error shows when the answer is read
		if _, _, err := socket.ReadMessage(); err != nil {
			return err
		}
	}
}

func TestRollingRestartLosesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3", "n4", "n5")
	backend := newBackend(t, "b1")
	c.mustApply(fmt.Sprintf("server:\n  reverse_proxy:\n    - {path: /, host: 127.0.0.1, port: %d}\n", backend.port))
	c.converged()
	for _, n := range c.nodes {
		c.ready(n)
	}
	b := newBalancer(t, c.nodes)
	for range 4 {
		b.group.Go(b.browse)
	}
	for range 10 {
		b.group.Go(b.chat)
	}
	for i, n := range c.nodes {
		before := b.requests.Load()
		eventually(t, "the load goes on", func() string {
			if b.requests.Load() < before+100 {
				return fmt.Sprintf("%d requests; failures: %v", b.requests.Load(), b.complaints())
			}
			return ""
		})
		if i == 0 {
			c.ctl("top", "--interval", "200ms").must(t, 0, "n5", "ROUTE", "/")
		}
		if i > 0 { // the first is told by SIGTERM alone, and gives its WebSockets half a minute
			c.ctl("drain", n.name, "--deadline", "1s").must(t, 0, n.name+": drained")
			c.statusShows(n.name+" drains, and that is in order", func(s status) bool { return s.Converged && s.row(n.name).State == "draining" })
		}
		n.signal(t, syscall.SIGTERM)
		if code := n.wait(t); code != 0 {
			t.Errorf("%s ended with %d:\n%s", n.name, code, tail(n.stderr.String()))
		}
		c.start(n)
		c.ready(n)
	}
	c.converged()
	b.stop()
	if failures := b.complaints(); failures != nil {
		t.Errorf("of %d requests and %d WebSockets that were closed, these failed: %v", b.requests.Load(), b.closes.Load(), failures)
	}
	if b.closes.Load() == 0 {
		t.Error("no WebSocket was closed: the test has shown nothing about them")
	}
	t.Logf("%d requests, %d WebSockets closed with 1001, %d connections refused", b.requests.Load(), b.closes.Load(), b.refused.Load())
}

func TestDrainAndUndrain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	backend := newBackend(t, "b1")
	c.mustApply(fmt.Sprintf("server:\n  reverse_proxy:\n    - {path: /, host: 127.0.0.1, port: %d}\n", backend.port))
	n1 := c.node("n1")
	c.ready(n1)
	socket := dialWebSocket(t, "ws://"+n1.listen+"/ws", nil)
	c.ctl("drain", "n1", "--deadline", "0s", "-o", "json").must(t, 0, `"node": "n1"`)
	if _, _, err := socket.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the WebSocket ended with %v, want 1001", err)
	}
	if code := probe(n1.admin, "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz says %d", code)
	}
	if code := probe(n1.listen, "/"); code != http.StatusOK {
		t.Errorf("who still comes gets %d", code)
	}
	c.ctl("drain", "n2", "--timeout", "1s").wants(t, 1, "no other node serves")
	c.mustApply(fmt.Sprintf("server:\n  reverse_proxy:\n    - {path: /, host: 127.0.0.1, port: %d, strip_path: false}\n", backend.port))
	c.ctl("drain", "n9").wants(t, 2, "node n9 is not connected, and none of that name is enrolled")
	c.ctl("undrain", "n1").must(t, 0, "takes clients again")
	c.ready(n1)
	c.ctl("events").must(t, 0, "node-draining", "node-undrained")
	c.ctl("audit").must(t, 0, "Drain", "Undrain")
	again := dialWebSocket(t, "ws://"+n1.listen+"/ws", nil)
	if err := again.WriteMessage(websocket.TextMessage, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, message, err := again.ReadMessage(); err != nil || string(message) != "hello" {
		t.Errorf("a WebSocket after the undrain: %q, %v", message, err)
	}
}
