//go:build unix

package upstream

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/certtest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// connected is a connection to a backend, and its other end. A byte was sent and read, so that over TLS the server's tickets
// are no longer unread.
func connected(t testing.TB, secured bool) (c *Conn, peer net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	spec := specOf(t, l.Addr().String())
	if secured {
		authority := certtest.New(t)
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS}})
		spec.TLS = &resourcev1.BackendTls{CaPem: authority.PEM}
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		peer, err := l.Accept()
		if err == nil {
			_, err = peer.Write([]byte("x"))
		}
		if err != nil {
			t.Error(err)
		}
		accepted <- peer
	}()
	c = open(t, acquire(t, newRegistry(t, Options{}), spec))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	peer = <-accepted
	t.Cleanup(func() { c.Close(); peer.Close() })
	return c, peer
}

// awaitBytes returns once the kernel has something of the peer's, which stays there.
func awaitBytes(t *testing.T, c *Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	err := c.kernel.raw.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	})
	c.SetReadDeadline(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
}

// awaitDeath asks until the answer is no: the end of a connection travels on its own time.
func awaitDeath(t *testing.T, c *Conn, after string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); c.Alive(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("a connection counts as alive after %s", after)
		}
	}
}

func eachWay(t *testing.T, test func(t *testing.T, c *Conn, peer net.Conn)) {
	for name, secured := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			c, peer := connected(t, secured)
			test(t, c, peer)
		})
	}
}

func TestSilentConnectionIsAlive(t *testing.T) {
	eachWay(t, func(t *testing.T, c *Conn, peer net.Conn) {
		c.SetReadDeadline(time.Unix(1, 0)) // has no say in it
		for range 3 {
			if !c.Alive() {
				t.Error("an open and silent connection is not alive")
			}
		}
		c.SetReadDeadline(time.Time{})
		if _, err := peer.Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("reading after it was asked about: %v", err)
		}
	})
}

func TestConnectionClosedByThePeerIsNotAlive(t *testing.T) {
	eachWay(t, func(t *testing.T, c *Conn, peer net.Conn) {
		peer.Close()
		awaitDeath(t, c, "the peer's close")
	})
}

func TestConnectionResetByThePeerIsNotAlive(t *testing.T) {
	eachWay(t, func(t *testing.T, c *Conn, peer net.Conn) {
		below := peer
		if secured, ok := peer.(*tls.Conn); ok {
			below = secured.NetConn()
		}
		below.(*net.TCPConn).SetLinger(0)
		below.Close()
		awaitDeath(t, c, "the peer's reset")
	})
}

func TestConnectionClosedHereIsNotAlive(t *testing.T) {
	eachWay(t, func(t *testing.T, c *Conn, _ net.Conn) {
		c.Close()
		if c.Alive() {
			t.Error("a closed connection counts as alive")
		}
	})
}

func TestWhatComesUnaskedEndsAPlainConnection(t *testing.T) {
	c, peer := connected(t, false)
	if _, err := peer.Write([]byte("HTTP/1.1 408 Request Timeout\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	awaitBytes(t, c)
	if c.Alive() {
		t.Error("a connection with unread bytes counts as alive: they would be the next request's answer")
	}
}

func TestUnreadBytesEndAConnectionOverTLSToo(t *testing.T) {
	c, peer := connected(t, true)
	if !c.Alive() {
		t.Error("a connection that is silent after its tickets were read is alive")
	}
	if _, err := peer.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	awaitBytes(t, c)
	if c.Alive() {
		t.Error("what came unasked would be read as the next answer")
	}
}

func TestAliveAllocatesNothing(t *testing.T) {
	eachWay(t, func(t *testing.T, c *Conn, _ net.Conn) {
		if n := testing.AllocsPerRun(100, func() { c.Alive() }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

func BenchmarkAlive(b *testing.B) {
	c, _ := connected(b, false)
	b.ReportAllocs()
	for b.Loop() {
		if !c.Alive() {
			b.Fatal("not alive")
		}
	}
}

// TestADetachedConnectionCountsUntilItsEnd: closed here it may be, to the peer nothing has happened.
func TestADetachedConnectionCountsUntilItsEnd(t *testing.T) {
	c, peer := connected(t, false)
	own, err := c.Plain().File() // a duplicate
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	open := c.Backend().Counters().Open
	counted := c.Detach()
	if err := c.Close(); err != nil {
		t.Errorf("close of a detached connection: %v", err)
	}
	c.Keep()
	if c.Backend().Take() != nil {
		t.Error("a detached connection was kept")
	}
	if _, err := own.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if n, err := peer.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Errorf("the peer reads %d bytes, %v", n, err)
	}
	if now := c.Backend().Counters().Open; now != open {
		t.Errorf("%d are open, before %d", now, open)
	}
	if got := c.Backend().InFlight(); got != 1 {
		t.Errorf("%d in flight, want 1", got)
	}
	for range 2 {
		counted.Close()
		if now := c.Backend().Counters().Open; now != open-1 {
			t.Errorf("%d are open at the end, before %d", now, open)
		}
	}
}
