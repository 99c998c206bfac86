package node

import (
	"bufio"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
)

const (
	askWebSocket = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	grantWebSocket = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)

// keeper is a backend that grants every upgrade and keeps the connection: an idle one costs it a net.Conn and no more.
type keeper struct {
	listener net.Listener
	done     chan struct{}

	mu   sync.Mutex // guards kept
	kept []net.Conn
}

func newKeeper(b *testing.B) *keeper {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	k := &keeper{listener: l, done: make(chan struct{})}
	go k.serve()
	b.Cleanup(func() {
		l.Close()
		<-k.done
		k.hangUp()
	})
	return k
}

func (k *keeper) hangUp() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.kept {
		c.Close()
	}
	k.kept = nil
}

func (k *keeper) serve() {
	defer close(k.done)
	for {
		c, err := k.listener.Accept()
		if err != nil {
			return
		}
		k.mu.Lock()
		k.kept = append(k.kept, c)
		k.mu.Unlock()
		if _, err := nodetest.ReadHead(bufio.NewReader(c)); err == nil {
			io.WriteString(c, grantWebSocket)
		}
	}
}

// open upgrades n connections to address, and has each say something once.
func open(b *testing.B, address string, n int) []net.Conn {
	conns := make([]net.Conn, n)
	var err error
	for i := range conns {
		if conns[i], err = net.Dial("tcp", address); err != nil {
			b.Fatal(err)
		}
		io.WriteString(conns[i], askWebSocket)
		head, err := nodetest.ReadHead(bufio.NewReaderSize(conns[i], 16))
		if err != nil || !strings.Contains(head, " 101 ") {
			b.Fatalf("%q %v", head, err)
		}
		conns[i].Write([]byte{0x89, 0x80, 0, 0, 0, 0}) // a ping
	}
	return conns
}

// inUse is the memory that holds something, stacks included, once the garbage is gone.
func inUse() float64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

// BenchmarkIdleWebSocket reports what a WebSocket that says nothing costs a node, without what the two ends of the
// benchmark's own cost, and how many goroutines it has.
func BenchmarkIdleWebSocket(b *testing.B) {
	const n = 2000
	k := newKeeper(b)
	node, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer stop(node, time.Millisecond)
	build := nodetest.NewBuild().Route("/ws", uint32(k.listener.Addr().(*net.TCPAddr).Port))
	g, err := node.Prepare(release(1), build.Bundle(b))
	if err != nil {
		b.Fatal(err)
	}
	node.Apply(g)
	for b.Loop() {
		empty := inUse()
		direct := open(b, k.listener.Addr().String(), n)
		ends := inUse() - empty
		goroutines := runtime.NumGoroutine()
		proxied := open(b, node.ListenAddress(), n)
		nodetest.Eventually(b, "all are tunnels", func() bool { return node.tunnels.Len() == n })
		total := inUse() - empty - ends
		b.ReportMetric((total-ends)/n/1024, "KB/websocket")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/n, "goroutines/websocket")
		for _, c := range append(direct, proxied...) {
			c.Close()
		}
		k.hangUp()
		nodetest.Eventually(b, "all have ended", func() bool { return node.tunnels.Len() == 0 })
	}
}

// BenchmarkIdleKeepAlive reports the same for a client's connection that was used once and is kept.
func BenchmarkIdleKeepAlive(b *testing.B) {
	const n = 2000
	node, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer stop(node, time.Millisecond)
	build := nodetest.NewBuild().Route("/", saying(b, "x"))
	g, err := node.Prepare(release(1), build.Bundle(b))
	if err != nil {
		b.Fatal(err)
	}
	node.Apply(g)
	for b.Loop() {
		empty := inUse()
		conns := make([]net.Conn, n)
		for i := range conns {
			if conns[i], err = net.Dial("tcp", node.ListenAddress()); err != nil {
				b.Fatal(err)
			}
			io.WriteString(conns[i], "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			in := bufio.NewReaderSize(conns[i], 16)
			if head, err := nodetest.ReadHead(in); err != nil || !strings.Contains(head, " 200 ") {
				b.Fatalf("%q %v", head, err)
			}
			in.Discard(1)
		}
		b.ReportMetric((inUse()-empty)/n/1024, "KB/connection-with-its-client")
		for _, c := range conns {
			c.Close()
		}
	}
}
