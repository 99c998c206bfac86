package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/socket"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func open(t testing.TB, b *Backend) *Conn {
	t.Helper()
	c, err := b.Open(t.Context())
	if err != nil {
		t.Fatalf("opening a connection to %s: %v", b.Address(), err)
	}
	return c
}

// get asks over c and reads the answer to its end.
func get(t testing.TB, c *Conn, path string) string {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// ask is a request of its own: over the connection kept last or a new one, which is kept afterwards.
func ask(t testing.TB, b *Backend, path string) string {
	t.Helper()
	c := b.Take()
	if c == nil {
		c = open(t, b)
	}
	answer := get(t, c, path)
	c.Keep()
	return answer
}

// piped is a backend whose connections lead nowhere, and the registry that it is in.
func piped(t testing.TB, o Options) (*Registry, *Backend) {
	t.Helper()
	o.DialContext = func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		t.Cleanup(func() { there.Close() })
		return here, nil
	}
	r := newRegistry(t, o)
	return r, acquire(t, r, Spec{Host: "10.0.0.1", Port: 80})
}

// isClosed tells a closed end of a pipe from an open one, with which nothing is done.
func isClosed(c *Conn) bool { return c.SetDeadline(time.Time{}) != nil }

func TestConnectionKeptLastIsTakenFirst(t *testing.T) {
	_, b := piped(t, Options{})
	if b.Take() != nil {
		t.Error("a connection was taken where none was kept")
	}
	conns := []*Conn{open(t, b), open(t, b), open(t, b)}
	for _, c := range conns {
		if c.Reused() || c.Backend() != b {
			t.Errorf("a new connection: reused %v, backend %v", c.Reused(), c.Backend().Address())
		}
		c.Keep()
	}
	for _, want := range slices.Backward(conns) {
		if got := b.Take(); got != want || !got.Reused() {
			t.Errorf("took %p, reused %v; want %p, which was", got, got.Reused(), want)
		}
	}
	if b.Take() != nil {
		t.Error("a connection was taken twice")
	}
}

func TestConnectionsAreCounted(t *testing.T) {
	_, b := piped(t, Options{})
	first, second := open(t, b), open(t, b)
	first.Keep()
	if got := b.Counters(); got != (Counters{Opened: 2, Open: 2, Idle: 1}) {
		t.Errorf("one in use, one idle: %+v", got)
	}
	b.Take()
	first.Keep()
	b.Take()
	if got := b.Counters(); got != (Counters{Opened: 2, Reused: 2, Open: 2}) {
		t.Errorf("taken twice: %+v", got)
	}
	first.Close()
	second.Close()
	b.CountRequest()
	b.CountRequest()
	b.CountFailure()
	if got := b.Counters(); got != (Counters{Requests: 2, Failures: 1, Opened: 2, Reused: 2}) {
		t.Errorf("all closed: %+v", got)
	}
}

func TestAConnectThatHangsIsInFlight(t *testing.T) {
	dialing, failed := make(chan struct{}), errors.New("refused")
	r := newRegistry(t, Options{DialContext: func(context.Context, string, string) (net.Conn, error) {
		dialing <- struct{}{}
		<-dialing
		return nil, failed
	}})
	b := acquire(t, r, Spec{Host: "10.0.0.1", Port: 1})
	opened := make(chan error)
	go func() {
		_, err := b.Open(context.Background())
		opened <- err
	}()
	<-dialing
	if got := b.InFlight(); got != 1 {
		t.Errorf("%d in flight while one connects, want 1", got)
	}
	dialing <- struct{}{}
	if err := <-opened; !errors.Is(err, failed) {
		t.Error(err)
	}
	if got := b.InFlight(); got != 0 {
		t.Errorf("%d in flight after it failed, want 0", got)
	}
}

func TestOldestIdleConnectionMakesRoom(t *testing.T) {
	_, b := piped(t, Options{MaxIdleConns: 2})
	conns := []*Conn{open(t, b), open(t, b), open(t, b)}
	for _, c := range conns {
		c.Keep()
	}
	if !isClosed(conns[0]) || isClosed(conns[1]) || isClosed(conns[2]) {
		t.Errorf("closed: %v, %v, %v; want the first alone", isClosed(conns[0]), isClosed(conns[1]), isClosed(conns[2]))
	}
	if got := b.Counters(); got.Idle != 2 || got.Open != 2 {
		t.Errorf("counters %+v, want two idle and nothing else", got)
	}
}

func TestClosedConnectionIsNotKept(t *testing.T) {
	_, b := piped(t, Options{})
	c := open(t, b)
	if err := c.Close(); err != nil || !isClosed(c) {
		t.Errorf("closing: %v", err)
	}
	c.Keep()
	if err := c.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	if got := b.Counters(); b.Take() != nil || got.Open != 0 || got.Idle != 0 {
		t.Errorf("a closed connection counts: %+v", got)
	}
}

func TestConnectionClosedWhileIdleIsNotTaken(t *testing.T) {
	_, b := piped(t, Options{})
	first, second, third := open(t, b), open(t, b), open(t, b)
	for _, c := range []*Conn{first, second, third} {
		c.Keep()
	}
	second.Close()
	if a, b := b.Take(), b.Take(); a != third || b != first {
		t.Errorf("took %p and %p, want %p and %p", a, b, third, first)
	}
	if got := b.Counters(); got.Open != 2 || got.Idle != 0 {
		t.Errorf("counters %+v", got)
	}
}

func TestConnectionKeptTwiceIsThereOnce(t *testing.T) {
	_, b := piped(t, Options{})
	c := open(t, b)
	c.Keep()
	c.Keep()
	if b.Take() != c || b.Take() != nil {
		t.Error("two requests would have got the same connection")
	}
}

func TestCloseEndsAReadUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, b := piped(t, Options{})
		defer r.Close()
		c := open(t, b)
		ended := make(chan error, 1)
		go func() { _, err := c.Read(make([]byte, 1)); ended <- err }()
		synctest.Wait()
		c.Close()
		if err := <-ended; err == nil {
			t.Error("the read went on")
		}
	})
}

func TestLastReleaseClosesIdleConnectionsAndKeepsNone(t *testing.T) {
	_, b := piped(t, Options{})
	idle, busy := open(t, b), open(t, b)
	idle.Keep()
	b.Release()
	if !isClosed(idle) || isClosed(busy) {
		t.Errorf("after the last release: the idle one closed %v, the busy one %v", isClosed(idle), isClosed(busy))
	}
	busy.Keep()
	late := open(t, b) // a request that began before may need another yet
	late.Keep()
	if got := b.Counters(); !isClosed(busy) || !isClosed(late) || got.Open != 0 || got.Idle != 0 {
		t.Errorf("closed: %v, %v; %+v", isClosed(busy), isClosed(late), got)
	}
}

func TestConnectionOutlivesTheGenerationThatOpenedIt(t *testing.T) {
	r, first := piped(t, Options{})
	c := open(t, first)
	second := acquire(t, r, first.Spec())
	first.Release()
	c.Keep()
	if second.Take() != c {
		t.Error("the next generation does not have the connection")
	}
	c.Close()
}

func TestChangedAddressesEndTheConnectionsToTheOld(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1"), func(t *testing.T, n *named) {
		idle, busy := open(t, n.Backend), open(t, n.Backend)
		idle.Keep()
		n.set(nil, "10.0.0.2")
		pass(40 * time.Second)
		if got := n.connections(); !maps.Equal(got, map[string]int{"10.0.0.1:80": 1}) || n.Take() != nil {
			t.Errorf("connections %v, want the busy one alone", got)
		}
		if got := get(t, busy, "/"); got != "10.0.0.1:80" {
			t.Errorf("the busy connection answers %q", got)
		}
		busy.Keep()
		fresh := open(t, n.Backend)
		fresh.Keep()
		synctest.Wait()
		if got := n.connections(); !maps.Equal(got, map[string]int{"10.0.0.2:80": 1}) || n.Take() != fresh {
			t.Errorf("connections %v, want one to the new address", got)
		}
		fresh.Close()
		synctest.Wait()
	})
}

func TestConnectionOpenedWhileTheAddressesChangeIsNotKept(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1"), func(t *testing.T, n *named) {
		dial := n.registry.options.DialContext
		n.registry.options.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			n.set(nil, "10.0.0.2")
			pass(4 * time.Second)
			n.conns.renew()
			return dial(ctx, network, address)
		}
		open(t, n.Backend).Keep()
		if n.Take() != nil {
			t.Error("a connection to an address of before was kept")
		}
		synctest.Wait()
	})
}

// The connection is kept at several moments between two ticks.
func TestIdleConnectionIsClosedAtTheEndOfItsTime(t *testing.T) {
	for _, c := range []struct{ timeout, early time.Duration }{
		{0, time.Second}, // a minute
		{time.Minute, time.Second},
		{5500 * time.Millisecond, time.Second},
		{time.Second, 250 * time.Millisecond},
	} {
		for _, after := range []time.Duration{0, 10 * time.Millisecond, 240 * time.Millisecond, 990 * time.Millisecond} {
			synctest.Test(t, func(t *testing.T) {
				r, b := piped(t, Options{IdleTimeout: c.timeout})
				defer r.Close()
				conn := open(t, b)
				pass(after)
				conn.Keep()
				begin := time.Now()
				for !isClosed(conn) && time.Since(begin) < 2*time.Minute {
					pass(5 * time.Millisecond)
				}
				timeout := b.registry.options.IdleTimeout
				if took := time.Since(begin); took > timeout || took < timeout-c.early {
					t.Errorf("kept after %v: closed after %v, want %v to %v", after, took, timeout-c.early, timeout)
				}
				if got := b.Counters(); got.Open != 0 || got.Idle != 0 {
					t.Errorf("counters %+v", got)
				}
			})
		}
	}
}

func TestOnlyConnectionsThatStayIdleGrowOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, b := piped(t, Options{IdleTimeout: 4 * time.Second})
		defer r.Close()
		steady, spare, busy := open(t, b), open(t, b), open(t, b)
		spare.Keep()
		steady.Keep()
		for range 20 {
			pass(time.Second)
			if got := b.Take(); got != steady {
				t.Fatalf("took %p, want the one in use before, %p", got, steady)
			}
			steady.Keep()
		}
		if isClosed(steady) || !isClosed(spare) || isClosed(busy) {
			t.Errorf("closed: the one in steady use %v, the spare %v, the busy %v", isClosed(steady), isClosed(spare), isClosed(busy))
		}
	})
}

func TestRegistryCloseEndsIdleConnectionsAndItsGoroutine(t *testing.T) {
	r := NewRegistry(Options{DialContext: func(context.Context, string, string) (net.Conn, error) {
		here, _ := net.Pipe()
		return here, nil
	}})
	c := open(t, acquire(t, r, Spec{Host: "10.0.0.1", Port: 80}))
	c.Keep()
	r.Close()
	r.Close()
	if !isClosed(c) {
		t.Error("an idle connection is open")
	}
	select {
	case <-r.sweeper.done:
	default:
		t.Error("Close did not wait for the goroutine")
	}
}

func TestRefusedOpenIsADialErrorAndCounted(t *testing.T) {
	b := acquire(t, newRegistry(t, Options{}), refused(t))
	_, err := b.Open(t.Context())
	var dial *DialError
	if !errors.As(err, &dial) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want a DialError for a refused connection", err)
	}
	if got := b.Counters(); got != (Counters{ConnectFailures: 1}) {
		t.Errorf("counters %+v", got)
	}
}

func TestOpenThatTheClientGaveUpIsNoFailure(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1"), func(t *testing.T, n *named) {
		n.silent["10.0.0.1:80"] = true
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := n.Open(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the cancelled context", err)
		}
		if got := n.Counters(); got != (Counters{}) {
			t.Errorf("counters %+v", got)
		}
	})
}

func TestDeadlineOfTheCallerTakesThePlaceOfTheConnectTimeout(t *testing.T) {
	for _, own := range []time.Duration{0, time.Second, 30 * time.Second} {
		inFakeTime(t, newNames("10.0.0.1"), func(t *testing.T, n *named) {
			n.silent["10.0.0.1:80"] = true
			ctx, want := t.Context(), 5*time.Second
			if own > 0 {
				bounded, cancel := context.WithTimeout(ctx, own)
				defer cancel()
				ctx, want = bounded, own
			}
			begin := time.Now()
			if _, err := n.Open(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != want {
				t.Errorf("%v after %v, want a timeout after %v", err, time.Since(begin), want)
			}
			if got := n.Counters(); got != (Counters{ConnectFailures: 1}) {
				t.Errorf("counters %+v", got)
			}
		})
	}
}

// Several at once offer the same ticket, and all but the very first must be spared the whole handshake.
func TestConnectionsOpenedAtOnceResumeTheSession(t *testing.T) {
	authority := certtest.New(t)
	pair := authority.Issue(t, "127.0.0.1")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			config := &tls.Config{Certificates: []tls.Certificate{pair.TLS}, MaxVersion: version}
			spec := serveTLS(t, config, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.TLS.DidResume) })
			spec.TLS = &resourcev1.BackendTls{CaPem: authority.PEM}
			b := acquire(t, newRegistry(t, Options{}), spec)
			first := open(t, b)
			if got := get(t, first, "/"); got != "false" {
				t.Errorf("the first connection: resumed %s", got)
			}
			first.Keep()
			for range 2 { // the second time with what the first has brought
				checkResumed(t, b, version)
			}
		})
	}
}

func checkResumed(t *testing.T, b *Backend, version uint16) {
	var wg sync.WaitGroup
	var ready sync.WaitGroup
	ready.Add(4)
	for range 4 {
		wg.Go(func() {
			c, err := b.Open(t.Context())
			ready.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			ready.Wait() // all before any answer, and the tickets that come with it
			state := c.Conn.(*tls.Conn).ConnectionState()
			if !state.DidResume || state.Version != version {
				t.Errorf("resumed %v, %s", state.DidResume, tls.VersionName(state.Version))
			}
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Error(err)
			}
			if _, err := c.Read(make([]byte, 1<<10)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// What a backend says behind its answer lies decrypted where the kernel does not know of it, and would be read as the next one.
func TestWhatWasDecryptedTooFarEndsAConnection(t *testing.T) {
	authority := certtest.New(t)
	pair := authority.Issue(t, "127.0.0.1")
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	for name, said := range map[string]string{"an answer": answer, "one more": answer + answer, "a byte more": answer + "H"} {
		t.Run(name, func(t *testing.T) {
			spec := script(t, func(_ int, c net.Conn) {
				secured, in := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair.TLS}}), make([]byte, 64)
				for {
					if _, err := secured.Read(in); err != nil {
						return
					}
					io.WriteString(secured, said) // one record
				}
			})
			spec.TLS = &resourcev1.BackendTls{CaPem: authority.PEM}
			b := acquire(t, newRegistry(t, Options{}), spec)
			c := open(t, b)
			defer c.Close()
			read := make([]byte, len(answer))
			for range 2 { // a second time: no deadline may be left from looking
				if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, read); err != nil || string(read) != answer {
					t.Fatalf("%q, %v", read, err)
				}
				c.Keep()
				if said != answer {
					if taken := b.Take(); taken != nil || b.Counters().Open != 0 {
						t.Errorf("it was kept: %v, %+v", taken, b.Counters())
					}
					return
				}
				if b.Take() != c {
					t.Fatal("it was not kept")
				}
			}
		})
	}
}

func TestPlainIsForTCPAlone(t *testing.T) {
	_, plain := serve(t, func(http.ResponseWriter, *http.Request) {})
	authority := certtest.New(t)
	pair := authority.Issue(t, "127.0.0.1")
	secure := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{pair.TLS}}, func(http.ResponseWriter, *http.Request) {})
	secure.TLS = &resourcev1.BackendTls{CaPem: authority.PEM}
	r := newRegistry(t, Options{})
	overTCP, overTLS := open(t, acquire(t, r, plain)), open(t, acquire(t, r, secure))
	defer overTCP.Close()
	defer overTLS.Close()
	_, b := piped(t, Options{})
	other := open(t, b)
	defer other.Close()
	if overTCP.Plain() == nil || overTCP.Plain() != overTCP.Conn.(*socket.Conn).TCP() || overTLS.Plain() != nil || other.Plain() != nil {
		t.Errorf("over TCP %v, over TLS %v, over a pipe %v", overTCP.Plain(), overTLS.Plain(), other.Plain())
	}
	if !other.Alive() {
		t.Error("a pipe, of which nothing can be told, counts as closed")
	}
}

// The kept connections behave as a list that grows and shrinks at one end, and is cut at the other.
func TestIdleConnectionsAreAsTheListSays(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const capacity = 3
		r, b := piped(t, Options{MaxIdleConns: capacity, IdleTimeout: time.Hour})
		defer r.Close()
		var idle, busy []*Conn
		ages := make(map[*Conn]int64)
		stale := make(map[*Conn]bool)
		pick := func() *Conn {
			if len(busy) == 0 {
				rt.Skip("nothing in use")
			}
			i := rapid.IntRange(0, len(busy)-1).Draw(rt, "which")
			c := busy[i]
			busy = slices.Delete(busy, i, i+1)
			return c
		}
		rt.Repeat(map[string]func(*rapid.T){
			"open": func(*rapid.T) { busy = append(busy, open(t, b)) },
			"take": func(rt *rapid.T) {
				got := b.Take()
				if len(idle) == 0 {
					if got != nil {
						rt.Fatal("took what is not there")
					}
					return
				}
				if want := idle[len(idle)-1]; got != want {
					rt.Fatalf("took %p, want %p", got, want)
				}
				idle, busy = idle[:len(idle)-1], append(busy, got)
			},
			"keep": func(*rapid.T) {
				c := pick()
				c.Keep()
				if stale[c] {
					return
				}
				ages[c] = b.conns.now.Load()
				if idle = append(idle, c); len(idle) > capacity {
					idle = idle[1:]
				}
			},
			"close in use": func(*rapid.T) { pick().Close() },
			"close idle": func(rt *rapid.T) {
				if len(idle) == 0 {
					rt.Skip("nothing idle")
				}
				i := rapid.IntRange(0, len(idle)-1).Draw(rt, "which idle")
				idle[i].Close()
				idle = slices.Delete(idle, i, i+1)
			},
			"tick": func(*rapid.T) { r.sweeper.now.Add(1) },
			"expire": func(*rapid.T) {
				limit := b.conns.now.Load() - 2
				b.conns.expire(limit)
				idle = slices.DeleteFunc(idle, func(c *Conn) bool { return ages[c] <= limit })
			},
			"addresses change": func(*rapid.T) {
				b.conns.renew()
				for _, c := range busy {
					stale[c] = true
				}
				idle = nil
			},
			"": func(rt *rapid.T) {
				if got := b.Counters(); got.Idle != len(idle) || got.Open != len(idle)+len(busy) {
					rt.Fatalf("%d idle of %d, want %d of %d", got.Idle, got.Open, len(idle), len(idle)+len(busy))
				}
				if got := b.InFlight(); got != len(busy) {
					rt.Fatalf("%d in flight, want %d", got, len(busy))
				}
				for _, c := range slices.Concat(idle, busy) {
					if isClosed(c) {
						rt.Fatal("a connection that is idle or in use is closed")
					}
				}
			},
		})
	})
}

func TestConnectionIsInOneHandAtATime(t *testing.T) {
	_, b := piped(t, Options{MaxIdleConns: 3, IdleTimeout: 4 * time.Millisecond})
	var held sync.Map // *Conn to *atomic.Int32
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for n := range 500 {
				c := b.Take()
				if c == nil {
					c = open(t, b)
				}
				mark, _ := held.LoadOrStore(c, new(atomic.Int32))
				if mark.(*atomic.Int32).Add(1) != 1 {
					t.Error("a connection is in two hands")
				}
				var watcher sync.WaitGroup
				if n%7 == i {
					watcher.Go(func() { c.Close() })
				}
				c.Reused()
				c.Alive()
				mark.(*atomic.Int32).Add(-1)
				c.Keep()
				watcher.Wait()
				if n%50 == 0 {
					b.conns.renew()
				}
				if got := b.Counters(); got.Idle > 3 || got.Open < got.Idle {
					t.Errorf("%d idle of %d", got.Idle, got.Open)
				}
			}
		})
	}
	wg.Wait()
	b.Release()
	if got := b.Counters(); got.Open != 0 || got.Idle != 0 {
		t.Errorf("left over: %+v", got)
	}
}

func TestTakeAndKeepAllocateNothing(t *testing.T) {
	_, b := piped(t, Options{})
	open(t, b).Keep()
	if n := testing.AllocsPerRun(100, func() { b.Take().Keep() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTakeKeep(b *testing.B) {
	_, backend := piped(b, Options{})
	open(b, backend).Keep()
	b.ReportAllocs()
	for b.Loop() {
		backend.Take().Keep()
	}
}

func BenchmarkTakeKeepParallel(b *testing.B) {
	_, backend := piped(b, Options{})
	for range 64 {
		open(b, backend).Keep()
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			backend.Take().Keep()
		}
	})
}
