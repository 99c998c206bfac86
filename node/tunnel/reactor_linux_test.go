package tunnel

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pyserve/pyserve/node/socket"
)

// newReactorSet is a set that is closed with the test.
func newReactorSet(t testing.TB) *Set {
	s := NewSet(Options{})
	t.Cleanup(func() { closeAtOnce(s) })
	return s
}

// pairOf is the only tunnel of s.
func pairOf(t testing.TB, s *Set) *pair {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.live {
		if p, ok := l.(*pair); ok && len(s.live) == 1 {
			return p
		}
	}
	t.Fatalf("%d tunnels, want one, of a reactor's", len(s.live))
	return nil
}

// locked looks at p while nothing moves.
func locked[T any](p *pair, look func() T) T {
	p.reactor.mu.Lock()
	defer p.reactor.mu.Unlock()
	return look()
}

// countedConn is a backend's connection as package upstream has it.
type countedConn struct {
	net.Conn
	counts atomic.Int32
}

func (c *countedConn) Plain() *net.TCPConn { return c.Conn.(*net.TCPConn) }

func (c *countedConn) Detach() io.Closer {
	c.Conn.Close()
	return closer(func() { c.counts.Add(-1) })
}

type closer func()

func (c closer) Close() error {
	c()
	return nil
}

// plainConn is counted, but cannot be parted from its count.
type plainConn struct{ net.Conn }

func (c plainConn) Plain() *net.TCPConn { return c.Conn.(*net.TCPConn) }

func TestSocketsOfTheKernelArePaired(t *testing.T) {
	as := map[string]func(net.Conn) net.Conn{
		"net.TCPConn": func(c net.Conn) net.Conn { return c },
		"socket.Conn": func(c net.Conn) net.Conn { return socket.New(c.(*net.TCPConn)) },
		"counted":     func(c net.Conn) net.Conn { return &countedConn{Conn: c} },
		"not parted":  func(c net.Conn) net.Conn { return plainConn{c} },
		"hidden":      func(c net.Conn) net.Conn { return struct{ net.Conn }{c} },
	}
	for name, wrap := range as {
		t.Run(name, func(t *testing.T) {
			s := newReactorSet(t)
			client, near := tcpPair(t)
			backend, far := tcpPair(t)
			join(t, s, client, backend, near, wrap(far), nil)
			paired := anyTunnel(s, func(l live) bool { _, is := l.(*pair); return is })
			if want := name != "not parted" && name != "hidden"; paired != want {
				t.Errorf("paired: %v, want %v", paired, want)
			}
		})
	}
}

func TestAConnectionCountsUntilTheTunnelEnds(t *testing.T) {
	s := newReactorSet(t)
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	counted := &countedConn{Conn: far}
	counted.counts.Store(1)
	j := join(t, s, client, backend, near, counted, nil)
	echo(t, client, backend, []byte("hello"), []byte("there"))
	if n := counted.counts.Load(); n != 1 {
		t.Errorf("while it lives it counts %d times", n)
	}
	client.Close()
	backend.Close()
	if err := <-j.done; err != nil {
		t.Error(err)
	}
	if n := counted.counts.Load(); n != 0 {
		t.Errorf("at its end it counts %d times", n)
	}
}

func TestAReactorIsMadeByThePairsThatComeAndSharesThem(t *testing.T) {
	s := newReactorSet(t)
	want := min(runtime.GOMAXPROCS(0), maxReactors)
	for i := range 2 * want {
		if made := len(s.reactors.all); made != min(i, want) {
			t.Errorf("%d reactors for %d pairs", made, i)
		}
		webSocket(t, s)
	}
	for i, r := range s.reactors.all {
		if len(r.slots) != 2 {
			t.Errorf("reactor %d has %d pairs, want 2", i, len(r.slots))
		}
	}
}

func descriptors(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNoDescriptorIsLeft(t *testing.T) {
	before := descriptors(t)
	s := NewSet(Options{})
	var peers []net.Conn
	for i := range 50 {
		j := webSocket(t, s)
		if i%3 == 0 {
			j.client.Close()
			j.backend.Close()
		}
		peers = append(peers, j.client, j.backend)
	}
	closeAtOnce(s)
	for _, c := range peers {
		c.Close()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	client.Close()
	backend.Close()
	if err := s.Start(Tunnel{Client: near, Backend: far}); !errors.Is(err, ErrClosed) {
		t.Errorf("start after close: %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors after a start that was refused, before %d", after, before)
	}
}

// TestASlotThatIsUsedAgainHearsNothingOfTheFormerPair: an event that was on its way is not the new pair's.
func TestASlotThatIsUsedAgainHearsNothingOfTheFormerPair(t *testing.T) {
	s := newReactorSet(t)
	s.reactors.limit = 1
	first := webSocket(t, s)
	old := pairOf(t, s)
	stale := locked(old, func() event { return old.event(toBackend) })
	first.client.Close()
	first.backend.Close()
	<-first.done
	waitFor(t, func() bool { return s.Len() == 0 })

	second := webSocket(t, s)
	p := pairOf(t, s)
	fresh := locked(p, func() event { return p.event(toBackend) })
	if p.reactor != old.reactor || stale.side != fresh.side || stale.generation == fresh.generation {
		t.Fatalf("events %+v and %+v, want the same slot in another generation", stale, fresh)
	}
	if found := locked(p, func() *pair { found, _ := p.reactor.find(stale); return found }); found != nil {
		t.Error("a stale event finds a pair")
	}
	// As if it came in the middle of the batch.
	p.reactor.mu.Lock()
	p.reactor.again = append(p.reactor.again, stale)
	p.reactor.mu.Unlock()
	echo(t, second.client, second.backend, frame(0x82, true, 128), frame(0x82, false, 128))
}

func TestAPairIsSmall(t *testing.T) {
	s := newReactorSet(t)
	webSocket(t, s)
	if size := unsafe.Sizeof(pair{}); size > 288 {
		t.Errorf("a pair takes %d bytes", size)
	}
	p := pairOf(t, s)
	locked(p, func() int {
		for d := range p.halves {
			if p.halves[d].held != nil {
				t.Errorf("%s holds a buffer", direction(d).from())
			}
		}
		return 0
	})
}

// TestAPeerThatDoesNotReadHoldsTheOtherUp: what it has not taken is one buffer, however much is to come, and nothing is lost.
func TestAPeerThatDoesNotReadHoldsTheOtherUp(t *testing.T) {
	for d := range direction(2) {
		t.Run("from the "+d.from(), func(t *testing.T) {
			s := newReactorSet(t)
			client, near := tcpPair(t)
			backend, far := tcpPair(t)
			j := join(t, s, client, backend, near, far, nil)
			src, dst := client, backend
			if d == toClient {
				src, dst = dst, src
			}
			message := make([]byte, 64<<20) // more than the sockets on the way hold
			io.ReadFull(stream(1), message)
			sent := make(chan error, 1)
			go func() {
				_, err := src.Write(message)
				sent <- errors.Join(err, src.(*net.TCPConn).CloseWrite())
			}()
			p := pairOf(t, s)
			held := func() bool { return locked(p, func() bool { return p.halves[d].held != nil }) }
			waitFor(t, held)
			// The other direction goes on meanwhile.
			dst.Write([]byte("still here"))
			want(t, src, "the one that is held up", []byte("still here"))
			if locked(p, func() bool { return len(*p.halves[d].held) > longSize }) {
				t.Error("more than a buffer is held")
			}
			dst.(*net.TCPConn).CloseWrite()
			got, err := io.ReadAll(dst)
			if err != nil || !bytes.Equal(got, message) {
				t.Fatalf("got %d bytes, %v, want the %d that were sent", len(got), err, len(message))
			}
			if err := errors.Join(<-sent, <-j.done); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestACloseWaitsForAPeerThatIsSlow: the rest of the frame goes first, and what the side sends after that is
// thrown away.
func TestACloseWaitsForAPeerThatIsSlow(t *testing.T) {
	s := newReactorSet(t)
	j := webSocket(t, s)
	message := frame(0x82, true, 32<<20)
	sent := make(chan error, 1)
	go func() {
		_, err := j.client.Write(append(bytes.Clone(message), frame(0x88, true, 2)...))
		sent <- err
	}()
	p := pairOf(t, s)
	waitFor(t, func() bool { return locked(p, func() bool { return p.halves[toBackend].held != nil }) })
	s.Retain(nobody)
	want(t, j.client, "client", serverClose)
	want(t, j.backend, "backend", message)
	wantClose(t, j.backend)
	j.backend.Write(frame(0x88, false, 2))
	wantEnded(t, j)
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// TestASlowCallbackHoldsNobodyUp: but Close waits for it.
func TestASlowCallbackHoldsNobodyUp(t *testing.T) {
	s := NewSet(Options{})
	s.reactors.limit = 1
	release, told := make(chan struct{}), make(chan struct{})
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	if err := s.Start(Tunnel{Client: near, Backend: far, Ended: func(Summary) { close(told); <-release }}); err != nil {
		t.Fatal(err)
	}
	client.Close()
	backend.Close()
	<-told
	once := echoed(t, s)
	once()
	closed := make(chan int)
	go func() { closed <- closeAtOnce(s) }()
	waitFor(t, func() bool { return s.Len() == 1 })
	select {
	case <-closed:
		t.Error("Close has not waited")
	default:
	}
	close(release)
	if ended := <-closed; ended > 2 {
		t.Errorf("%d ended", ended)
	}
}

// TestAResetOfASideThatHadEndedEndsTheTunnel: nobody reads from it any more, and nobody has to write to it to find out.
func TestAResetOfASideThatHadEndedEndsTheTunnel(t *testing.T) {
	s := newReactorSet(t)
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	j := join(t, s, client, backend, near, far, nil)
	client.(*net.TCPConn).CloseWrite()
	wantEnd(t, backend)
	client.(*net.TCPConn).SetLinger(0)
	client.Close()
	if err := <-j.done; !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("ended with %v", err)
	}
}

// TestUrgentDataStopsNothing: a read ends where such a byte is, although there is more.
func TestUrgentDataStopsNothing(t *testing.T) {
	s := newReactorSet(t)
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	join(t, s, client, backend, near, far, nil)
	raw, err := client.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []struct {
		text  string
		flags int
	}{{"before", 0}, {"!", unix.MSG_OOB}, {"after", 0}} {
		if err := raw.Control(func(fd uintptr) { err = unix.Send(int(fd), []byte(part.text), part.flags) }); err != nil {
			t.Fatal(err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	want(t, backend, "backend", []byte("beforeafter"))
}

// at has p's reactor look as if so much time had passed since p was asked to leave.
func (p *pair) at(since time.Duration) {
	p.reactor.look(locked(p, func() time.Duration { return p.asked }) + since)
}

func TestLimitsOfAPairThatLeaves(t *testing.T) {
	t.Run("no answer", func(t *testing.T) {
		s := newReactorSet(t)
		j := webSocket(t, s)
		p := pairOf(t, s)
		s.Retain(nobody)
		want(t, j.client, "client", serverClose)
		wantClose(t, j.backend)
		p.at(finishTime + answerTime - 1)
		if locked(p, func() bool { return p.ended }) {
			t.Error("ended early")
		}
		p.at(finishTime + answerTime)
		wantEnded(t, j)
	})
	t.Run("a frame that never ends", func(t *testing.T) {
		s := newReactorSet(t)
		j := webSocket(t, s)
		p := pairOf(t, s)
		half := frame(0x82, true, 1000)[:500]
		j.client.Write(half)
		want(t, j.backend, "backend", half)
		s.Retain(nobody)
		want(t, j.client, "client", serverClose)
		p.at(finishTime - 1)
		if locked(p, func() bool { return p.ended }) {
			t.Error("ended early")
		}
		p.at(finishTime)
		wantEnd(t, j.backend)
		wantEnded(t, j)
	})
	t.Run("peers that close by themselves", func(t *testing.T) {
		s := newReactorSet(t)
		j := webSocket(t, s)
		p := pairOf(t, s)
		j.client.Write(frame(0x88, true, 2))
		want(t, j.backend, "backend", frame(0x88, true, 2))
		waitFor(t, func() bool { return clientHasClosed(p) })
		s.Retain(nobody)
		waitFor(t, func() bool { return isLeaving(p) })
		p.at(finishTime + answerTime - 1)
		if locked(p, func() bool { return p.ended }) {
			t.Error("ended early")
		}
		p.at(finishTime + answerTime)
		wantEnded(t, j)
		wantEnd(t, j.client)
	})
	t.Run("a client that goes in a frame", func(t *testing.T) {
		s := newReactorSet(t)
		j := webSocket(t, s)
		half := frame(0x82, true, 1000)[:500]
		j.client.Write(half)
		want(t, j.backend, "backend", half)
		began := time.Now()
		s.Retain(nobody)
		want(t, j.client, "client", serverClose)
		j.client.Close()
		wantEnded(t, j)
		if took := time.Since(began); took >= finishTime+answerTime {
			t.Errorf("ended after %v", took)
		}
	})
}

func TestIdleOfAPairCountsBothDirections(t *testing.T) {
	s := newReactorSet(t)
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	j := join(t, s, client, backend, near, far, nil)
	p := pairOf(t, s)
	now := locked(p, func() time.Duration { return p.active })
	look := func(after time.Duration) (ended bool) {
		p.reactor.look(now + after)
		return locked(p, func() bool { return p.ended })
	}
	// The reactor looks at the true time meanwhile, which counts as little as it moves on.
	for i := range 3 {
		src, dst := client, backend
		if i == 1 {
			src, dst = dst, src
		}
		src.Write([]byte("x"))
		want(t, dst, "other side", []byte("x"))
		locked(p, func() bool { p.moved = true; return true }) // unless a tick of the true time has seen it
		if look(time.Duration(i+1) * 40 * time.Minute) {
			t.Fatal("ended although it was busy")
		}
	}
	if look(3*time.Hour - time.Second) {
		t.Error("ended early")
	}
	if !look(3 * time.Hour) {
		t.Error("goes on")
	}
	if err := <-j.done; !errors.Is(err, ErrIdle) {
		t.Errorf("ended with %v", err)
	}
	wantEnd(t, client)
	wantEnd(t, backend)
}

// TestATickEndsWhatIsIdle is the reactor's own clock at work.
func TestATickEndsWhatIsIdle(t *testing.T) {
	s := newReactorSet(t)
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	const idle = 100 * time.Millisecond
	began := time.Now()
	j := joinAs(t, s, Tunnel{Client: near, Backend: far, Idle: idle}, client, backend)
	if err := <-j.done; !errors.Is(err, ErrIdle) {
		t.Errorf("ended with %v", err)
	}
	if took := time.Since(began); took < idle {
		t.Errorf("ended after %v", took)
	}
}

// driven is a set whose only reactor moves when the test has it move, a few bytes at a time.
func driven(t *testing.T) (*Set, *reactor) {
	t.Helper()
	r, err := openReactor()
	if err != nil {
		t.Fatal(err)
	}
	close(r.done) // nobody runs it
	r.buffer = r.buffer[:16]
	s := newReactorSet(t)
	s.reactors.limit, s.reactors.all = 1, []*reactor{r}
	return s, r
}

// unread waits until so many bytes can be read from fd.
func unread(t *testing.T, fd int32, n int) {
	t.Helper()
	waitFor(t, func() bool {
		have, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		return err == nil && have >= n
	})
}

func TestASideThatIsBusyHasOneTurnInARound(t *testing.T) {
	s, r := driven(t)
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	join(t, s, client, backend, near, far, nil)
	p := pairOf(t, s)
	message := []byte("0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz")
	client.Write(message)
	unread(t, p.halves[toBackend].fd, len(message))
	for range 3 { // as if more came each time
		locked(p, func() bool { p.happened(toBackend, unix.EPOLLIN); return true })
	}
	if n := locked(p, func() int { return len(r.again) }); n != 1 {
		t.Errorf("it has %d turns", n)
	}
	if n := p.halves[toBackend].bytes.Load(); n != 16 {
		t.Errorf("it has had %d bytes, want one read", n)
	}
	locked(p, func() bool { p.advance(toBackend); return true }) // as when it is to leave
	if n := locked(p, func() int { return len(r.again) }); n != 1 {
		t.Errorf("it has %d turns", n)
	}
	for r.round() {
	}
	want(t, backend, "backend", message)
}

// TestManyThatAreBusyDoNotHoldARoundUp: what has just come is looked for between the turns of those that always have more.
func TestManyThatAreBusyDoNotHoldARoundUp(t *testing.T) {
	s, r := driven(t)
	message := make([]byte, 1000*len(r.buffer))
	for range maxEvents {
		client, near := tcpPair(t)
		backend, far := tcpPair(t)
		join(t, s, client, backend, near, far, nil)
		client.Write(message)
		backend.Write(message)
	}
	for l := range s.live {
		for d := range l.(*pair).halves {
			unread(t, l.(*pair).halves[d].fd, len(message))
		}
	}
	moved := func() uint64 {
		sum := s.Totals()
		return (sum.ToBackend.Bytes + sum.ToClient.Bytes) / uint64(len(r.buffer))
	}
	waitFor(t, func() bool {
		r.round()
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.again)+len(r.due)-r.turns == 2*maxEvents
	})
	for range 4 {
		before := moved()
		r.round()
		if n := moved() - before; n >= 2*maxEvents {
			t.Errorf("%d reads in a round", n)
		}
	}
	for l := range s.live { // every one has had its turns
		if now := l.totals(); now.ToBackend.Bytes < 2*16 || now.ToClient.Bytes < 2*16 {
			t.Errorf("one has passed on %v", now)
		}
	}
}

// TestAResetOfASideThatIsHeldUpEndsTheTunnel: it is not read from while the other side does not take what it has sent, and that
// may never be.
func TestAResetOfASideThatIsHeldUpEndsTheTunnel(t *testing.T) {
	for d := range direction(2) {
		t.Run("from the "+d.from(), func(t *testing.T) {
			s := newReactorSet(t)
			client, near := tcpPair(t)
			backend, far := tcpPair(t)
			j := join(t, s, client, backend, near, far, nil)
			p := pairOf(t, s)
			src := client
			if d == toClient {
				src = backend
			}
			var sending sync.WaitGroup
			sending.Go(func() { src.Write(make([]byte, 64<<20)) })
			waitFor(t, func() bool { return locked(p, func() bool { return p.halves[d].held != nil }) })
			src.(*net.TCPConn).SetLinger(0)
			src.Close()
			sending.Wait()
			waitFor(t, func() bool {
				p.reactor.look(time.Since(p.reactor.began)) // as often as it takes
				return locked(p, func() bool { return p.ended })
			})
			if err := <-j.done; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// TestASocketThatWasNotTakenIsNotWatched: the connections go on, moved by goroutines, and the kernel would tell of them still.
func TestASocketThatWasNotTakenIsNotWatched(t *testing.T) {
	_, r := driven(t)
	client, near := tcpPair(t)
	defer near.Close()
	defer client.Close()
	fd, err := duplicate(near.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	plain, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{reactor: r}
	p.halves[toBackend].fd, p.halves[toClient].fd = fd, int32(plain)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.settle(p); !errors.Is(err, syscall.EPERM) {
		t.Fatalf("a file was taken: %v", err)
	}
	client.Write([]byte("x"))
	if _, err := near.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if n := r.poll.Take(r.events[:]); n != 0 {
		t.Errorf("the kernel tells of %d", n)
	}
}

func TestAReactorThatHasStoppedTakesNoPair(t *testing.T) {
	s := NewSet(Options{})
	r := s.reactors.pick()
	closeAtOnce(s)
	p := &pair{reactor: r}
	for d := range p.halves {
		_, end := tcpPair(t)
		defer end.Close()
		var err error
		if p.halves[d].fd, err = duplicate(end.(*net.TCPConn)); err != nil {
			t.Fatal(err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.settle(p); err == nil {
		t.Error("it takes a pair")
	}
}

// leaveDescriptors has the process no more than n descriptors to be had, until the test ends or back is called.
func leaveDescriptors(t *testing.T, n int) (back func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	back = sync.OnceFunc(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(back)
	free := make([]int, n+1) // the kernel gives the lowest that are free
	for i := range free {
		var err error
		if free[i], err = unix.Dup(0); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(free[i])
	}
	scarce := unix.Rlimit{Cur: uint64(free[n]), Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &scarce); err != nil {
		t.Fatal(err)
	}
	return back
}

// TestWithoutDescriptorsGoroutinesMoveTheBytes: a pair takes two, and a reactor one.
func TestWithoutDescriptorsGoroutinesMoveTheBytes(t *testing.T) {
	for name, c := range map[string]struct {
		reactor bool
		left    int
	}{
		"for a reactor": {false, 0}, "for the client's side": {true, 0}, "for the backend's side": {true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newReactorSet(t)
			if s.reactors.limit = 1; c.reactor {
				s.reactors.pick()
			}
			client, near := tcpPair(t)
			backend, far := tcpPair(t)
			before := descriptors(t)
			back := leaveDescriptors(t, c.left)
			j := join(t, s, client, backend, near, far, nil)
			back()
			if anyTunnel(s, func(l live) bool { _, is := l.(*pair); return is }) {
				t.Error("there were descriptors")
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors, before %d", after, before)
			}
			echo(t, client, backend, []byte("hello"), []byte("there"))
			client.Close()
			backend.Close()
			if err := <-j.done; err != nil {
				t.Error(err)
			}
		})
	}
}

// BenchmarkIdlePair reports the memory of a pair that says nothing, all of its set's and its reactors' included.
func BenchmarkIdlePair(b *testing.B) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	n := min(10_000, int(limit.Cur-100)/4) // two sockets, and the peers' ends of both
	for b.Loop() {
		empty := inUse()
		peers, ends := make([]net.Conn, 2*n), make([]net.Conn, 2*n)
		for i := range peers {
			peers[i], ends[i] = tcpPair(b)
		}
		half := (inUse() - empty) / 2 // what package net takes for one end each
		s := NewSet(Options{})
		for i := 0; i < len(ends); i += 2 {
			if err := s.Start(Tunnel{Client: ends[i], Backend: ends[i+1], WebSocket: true}); err != nil {
				b.Fatal(err)
			}
		}
		clear(ends)
		b.ReportMetric(float64(inUse()-empty-half)/float64(n), "B/pair")
		b.ReportMetric(float64(n), "pairs")
		closeAtOnce(s)
		for _, c := range peers {
			c.Close()
		}
	}
}

func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
