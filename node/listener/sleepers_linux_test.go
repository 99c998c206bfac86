package listener

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pyserve/pyserve/node/nodetest"
)

// dozer is an engine that sleeps after each byte but the last, which it passes on; with an end it is over.
type dozer struct {
	idler
	heard chan byte
	ended chan struct{} // roomy: a test need not wait for all
}

const lastByte = '.'

func newDozer() *dozer { return &dozer{heard: make(chan byte), ended: make(chan struct{}, 256)} }

func (d *dozer) Serve(conn net.Conn, _ *net.TCPConn, _ netip.Addr, _ func() bool) (wake func() bool) {
	return func() bool {
		b := make([]byte, 1)
		if n, _ := conn.Read(b); n == 1 {
			if d.heard <- b[0]; b[0] != lastByte {
				return true
			}
		}
		conn.Close()
		d.ended <- struct{}{}
		return false
	}
}

// asleep waits until n connections sleep.
func asleep(t *testing.T, l *Listener, n int) {
	t.Helper()
	nodetest.Eventually(t, "they sleep", func() bool { return sleeping(l) == n })
}

func sleeping(l *Listener) (n int) {
	l.sleepers.mu.Lock()
	defer l.sleepers.mu.Unlock()
	for _, a := range l.sleepers.all {
		if a.tcp != nil {
			n++
		}
	}
	return n
}

func TestAConnectionThatSleepsHasNoGoroutine(t *testing.T) {
	engine := newDozer()
	l := started(t, Options{Front: engine})
	c := nodetest.Dial(t, l.Address())
	for _, b := range []byte("abc") {
		asleep(t, l, 1)
		nodetest.Eventually(t, "its goroutine is free", func() bool { return l.resting.Load() == 1 })
		c.Write([]byte{b})
		if got := <-engine.heard; got != b {
			t.Errorf("%q, want %q", got, b)
		}
	}
	asleep(t, l, 1)
	c.Close()
	<-engine.ended
}

func TestWhatCameBeforeItSleptWakesIt(t *testing.T) {
	engine := newDozer()
	l := started(t, Options{Front: engine})
	c := nodetest.Dial(t, l.Address())
	io.WriteString(c, "ab.")
	for range 3 {
		<-engine.heard
	}
	<-engine.ended
}

func TestItsOwnCloseReadWakesASleeper(t *testing.T) {
	engine := newDozer()
	l := started(t, Options{Front: engine})
	nodetest.Dial(t, l.Address())
	asleep(t, l, 1)
	l.sleepers.mu.Lock()
	for _, a := range l.sleepers.all {
		if a.tcp != nil {
			a.tcp.CloseRead()
		}
	}
	l.sleepers.mu.Unlock()
	<-engine.ended
}

func TestManyAreWokenAtOnce(t *testing.T) {
	engine := newDozer()
	l := started(t, Options{Front: engine})
	var clients []net.Conn
	for range 3 * len(l.sleepers.events) {
		clients = append(clients, nodetest.Dial(t, l.Address()))
	}
	asleep(t, l, len(clients))
	for _, c := range clients {
		c.Write([]byte{lastByte})
	}
	for range clients {
		<-engine.heard
		<-engine.ended
	}
}

func TestWhoSleepsCountsForTheLimit(t *testing.T) {
	engine := newDozer()
	l := started(t, Options{Front: engine, MaxConnections: 1})
	first, second := nodetest.Dial(t, l.Address()), nodetest.Dial(t, l.Address())
	asleep(t, l, 1)
	io.WriteString(second, "2")
	io.WriteString(first, "1")
	if got := <-engine.heard; got != '1' {
		t.Errorf("%q was heard: there was no room for the second", got)
	}
	first.Close()
	<-engine.ended
	if got := <-engine.heard; got != '2' {
		t.Errorf("%q, want the second", got)
	}
	second.Close()
	<-engine.ended
}

func TestADrainWaitsForWhoSleeps(t *testing.T) {
	engine := newDozer()
	l := bound(t, Options{Front: engine})
	l.Start()
	c := nodetest.Dial(t, l.Address())
	asleep(t, l, 1)
	drained := draining(t, l, context.Background())
	select {
	case err := <-drained:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	c.Close()
	<-engine.ended
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

func TestWhoCannotSleepIsWokenAtOnce(t *testing.T) {
	engine := newDozer()
	l := bound(t, Options{Front: engine})
	l.sleepers.over = true
	l.Start()
	defer l.Drain(context.Background())
	c := nodetest.Dial(t, l.Address())
	for range 2 {
		io.WriteString(c, "x")
		<-engine.heard
	}
	if n := sleeping(l); n != 0 {
		t.Errorf("%d sleep", n)
	}
	c.Close()
	<-engine.ended
}

// nightmare is an engine that panics when it is woken.
type nightmare struct{ idler }

func (*nightmare) Serve(net.Conn, *net.TCPConn, netip.Addr, func() bool) func() bool {
	return func() bool { panic("out of cheese") }
}

func TestAPanicOfOneThatWasWokenIsNobodyElsesEnd(t *testing.T) {
	l := started(t, Options{Front: &nightmare{}, MaxConnections: 1})
	for range 2 { // the second finds the room of the first
		c := nodetest.Dial(t, l.Address())
		io.WriteString(c, "x")
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
}

// BenchmarkSleep is a byte that a client sends and has back, on a connection that sleeps before each and on one that waits. The
// time of all processors is told beside, the client's share included.
func BenchmarkSleep(b *testing.B) {
	for name, sleeps := range map[string]bool{"asleep": true, "awake": false} {
		b.Run(name, func(b *testing.B) {
			l := started(b, Options{Front: &echoer{sleeps: sleeps}})
			c := nodetest.Dial(b, l.Address())
			c.SetDeadline(time.Time{})
			b.ReportAllocs()
			began, n := processorTime(b), 0
			for b.Loop() {
				n++
				c.Write([]byte{'x'})
				if _, err := c.Read(make([]byte, 1)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(processorTime(b)-began)/float64(n), "cpu-ns/op")
		})
	}
}

// echoer is an engine that sends back what comes.
type echoer struct {
	idler
	sleeps bool
}

func (e *echoer) Serve(conn net.Conn, _ *net.TCPConn, _ netip.Addr, _ func() bool) func() bool {
	held := make([]byte, 1)
	return func() bool {
		for {
			if n, err := conn.Read(held); n == 0 || err != nil {
				conn.Close()
				return false
			}
			conn.Write(held)
			if e.sleeps {
				return true
			}
		}
	}
}

func processorTime(b *testing.B) time.Duration {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
