//go:build unix

package listener

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/nodetest"
)

// idler is an engine that waits for bytes without a buffer, and closes when there are some, or the end.
type idler struct{ waiting sync.WaitGroup }

func (i *idler) Serve(conn net.Conn, tcp *net.TCPConn, _ netip.Addr, _ func() bool) func() bool {
	raw, err := tcp.SyscallConn()
	if err != nil {
		panic(err)
	}
	asked := false
	i.waiting.Done()
	raw.Read(func(uintptr) bool {
		ready := asked
		asked = true
		return ready
	})
	conn.Close()
	return nil
}

func (i *idler) ServeHTTP2(conn *tls.Conn, _ netip.Addr, _ func() bool) { conn.Close() }
func (i *idler) GoAway()                                                {}
func (i *idler) Leave()                                                 {}
func (i *idler) Drain(context.Context) error                            { return nil }

// bare is a client that costs the process a file descriptor and nothing else. close resets, so that no port is used up.
type bare struct{ to *syscall.SockaddrInet4 }

func toward(l *Listener) bare {
	return bare{&syscall.SockaddrInet4{Port: l.socket.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}}
}

func (b bare) dial(t testing.TB) (fd int) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		err = syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	}
	if err == nil {
		err = syscall.Connect(fd, b.to)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// held is what the process holds in heap and stacks after a collection; the second one empties the pools.
func held() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// idleCost is the memory of one idle connection. dial gives a client and its end.
func idleCost(t testing.TB, n int, o Options, dial func(*Listener) (end func())) uint64 {
	engine := &idler{}
	o.Front = engine
	l := started(t, o)
	ends := make([]func(), n)
	engine.waiting.Add(n)
	before := held()
	for i := range ends {
		ends[i] = dial(l)
	}
	engine.waiting.Wait()
	after := held()
	for _, end := range ends {
		end()
	}
	l.conns.Wait()
	return (after - before) / uint64(n)
}

func dialBare(t testing.TB) func(*Listener) func() {
	return func(l *Listener) func() {
		fd := toward(l).dial(t)
		return func() { syscall.Close(fd) }
	}
}

func TestAnIdleConnectionIsSmall(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector has memory of its own")
	}
	if cost := idleCost(t, 400, Options{}, dialBare(t)); cost > 6<<10 {
		t.Errorf("%d bytes for an idle connection", cost)
	}
}

func BenchmarkIdle(b *testing.B) {
	b.Run("plain", func(b *testing.B) {
		for b.Loop() {
			b.ReportMetric(float64(idleCost(b, 4000, Options{}, dialBare(b))), "B/conn")
		}
	})
	b.Run("tls", func(b *testing.B) { // the client's half is counted too, but not its goroutine: it has none
		authority := certtest.New(b)
		config := serverConfig(b, authority)
		config.NextProtos = nil
		for b.Loop() {
			b.ReportMetric(float64(idleCost(b, 1000, Options{TLS: always(config)}, func(l *Listener) func() {
				c, err := tls.Dial("tcp", l.Address(), &tls.Config{RootCAs: authority.Pool()})
				if err != nil {
					b.Fatal(err)
				}
				return func() { c.Close() }
			})), "B/conn")
		}
	})
}

// BenchmarkConnection is a connection from its dial to its end; the client is bare, so nearly all of the memory is ours.
func BenchmarkConnection(b *testing.B) {
	engine := &silent{ended: make(chan struct{})}
	client := toward(started(b, Options{Front: engine}))
	b.ReportAllocs()
	for b.Loop() {
		fd := client.dial(b)
		<-engine.ended
		syscall.Close(fd)
	}
}

// Six are net's, for an accepted socket and its addresses; the seventh is the start of the goroutine.
func TestAConnectionCostsOneAllocation(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	const ofNet = 6
	engine := &silent{ended: make(chan struct{})}
	client := toward(started(t, Options{Front: engine}))
	allocs := testing.AllocsPerRun(500, func() {
		fd := client.dial(t)
		<-engine.ended
		syscall.Close(fd)
	})
	if allocs > ofNet+1 {
		t.Errorf("%v allocations for a connection", allocs)
	}
}

// silent is an engine that closes at once.
type silent struct {
	idler
	ended chan struct{}
}

func (s *silent) Serve(conn net.Conn, _ *net.TCPConn, _ netip.Addr, _ func() bool) func() bool {
	conn.Close()
	s.ended <- struct{}{}
	return nil
}

func TestSocketsAreKeptAliveAndDoNotDelay(t *testing.T) {
	options := make(chan [2]int, 1)
	l := started(t, Options{Front: &front{http1: func(_ net.Conn, tcp *net.TCPConn, _ func() bool) bool {
		raw, err := tcp.SyscallConn()
		if err != nil {
			t.Error(err)
		}
		raw.Control(func(fd uintptr) {
			alive, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			noDelay, _ := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY)
			options <- [2]int{alive, noDelay}
		})
		return false
	}}})
	nodetest.Dial(t, l.Address())
	if got := <-options; got[0] == 0 || got[1] == 0 {
		t.Errorf("keepalive %d, nodelay %d", got[0], got[1])
	}
}
