package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// The pace at which a set ends its tunnels is tested to the nanosecond over pipes in fake time; here, over TCP with each
// driver, that nothing comes early and everything comes.

// overTCP is a WebSocket over TCP whose peers read and, if polite, answer the Close; at is when the client was told.
func overTCP(t *testing.T, s *Set, owner any, polite bool, at func(time.Duration)) *joined {
	start := time.Now()
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	peer := func(c net.Conn, answer []byte, size int, at func(time.Duration)) {
		got := make([]byte, size)
		if _, err := io.ReadFull(c, got); err != nil {
			return
		}
		at(time.Since(start))
		if polite {
			c.Write(answer)
		}
		io.Copy(io.Discard, c)
		c.Close()
	}
	j := joinAs(t, s, Tunnel{Client: near, Backend: far, WebSocket: true, Owner: owner}, client, backend)
	go peer(client, frame(0x88, true, 2), 4, at)
	go peer(backend, frame(0x88, false, 2), 8, func(time.Duration) {})
	return j
}

func TestADrainTellsWebSocketsOneByOne(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		t.Parallel()
		s := newSet(Options{})
		const n = 9
		told := make(chan time.Duration, n)
		start := time.Now()
		for range n {
			overTCP(t, s, nil, true, func(time.Duration) { told <- time.Since(start) })
		}
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		start = time.Now()
		if ended := s.Close(ctx); ended != n {
			t.Errorf("%d ended, want %d", ended, n)
		}
		// Two seconds to end by themselves, half a second at the end for the last to answer: 1.5 s are for telling them.
		for i := range n {
			if at, earliest := <-told, 2*time.Second+time.Duration(i+1)*150*time.Millisecond; at < earliest-time.Millisecond {
				t.Errorf("%d told after %v, want %v", i, at, earliest)
			}
		}
	})
}

func TestADrainOverTCPEndsInTime(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		t.Parallel()
		s := newSet(Options{})
		var all []*joined
		for range 20 {
			all = append(all, overTCP(t, s, nil, false, func(time.Duration) {}))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		start := time.Now()
		s.Close(ctx)
		if took := time.Since(start); took > finishTime {
			t.Errorf("closed after %v", took)
		}
		for _, j := range all {
			wantEnded(t, j)
		}
	})
}

func TestOwnersThatGoAreFollowedOverTCP(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		t.Parallel()
		s := newSet(Options{Spread: 400 * time.Millisecond})
		told := make(chan time.Duration, 4)
		var gone []*joined
		var start time.Time
		for range 4 {
			gone = append(gone, overTCP(t, s, "gone", true, func(time.Duration) { told <- time.Since(start) }))
			overTCP(t, s, "stays", true, func(time.Duration) {})
		}
		start = time.Now()
		s.Retain(func(owner any) bool { return owner == "stays" })
		for i := range 4 {
			if at, earliest := <-told, time.Duration(i)*100*time.Millisecond; at < earliest-time.Millisecond {
				t.Errorf("%d told after %v, want %v", i, at, earliest)
			}
		}
		for _, j := range gone {
			wantEnded(t, j)
		}
		waitFor(t, func() bool { return s.Len() == 4 })
		if cut := closeAtOnce(s); cut != 4 {
			t.Errorf("%d cut, want 4", cut)
		}
	})
}

func TestCloseOverTCPCutsEvenly(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		t.Parallel()
		s := newSet(Options{})
		ends := make(chan error, 9)
		times := make(chan time.Time, 9)
		for range 9 {
			client, near := tcpPair(t)
			backend, far := tcpPair(t)
			j := join(t, s, client, backend, near, far, nil)
			go func() {
				err := <-j.done
				times <- time.Now()
				ends <- err
			}()
		}
		start := time.Now() // before the limit's own clock, on which the pace depends
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if cut := s.Close(ctx); cut != 9 {
			t.Errorf("%d cut, want 9", cut)
		}
		for i := range 9 {
			if err := <-ends; !errors.Is(err, ErrEnded) {
				t.Errorf("ended with %v", err)
			}
			if at, earliest := (<-times).Sub(start), time.Second+time.Duration(i+1)*100*time.Millisecond; at < earliest-time.Millisecond {
				t.Errorf("cut %d after %v, want %v", i, at, earliest)
			}
		}
	})
}

func TestCloseOverTCPReturnsWhenTheLastEnds(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		client, near := tcpPair(t)
		backend, far := tcpPair(t)
		j := join(t, s, client, backend, near, far, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		closed := make(chan int)
		go func() { closed <- s.Close(ctx) }()
		client.Close()
		backend.Close()
		if cut := <-closed; cut != 0 || ctx.Err() != nil {
			t.Errorf("%d cut, %v", cut, ctx.Err())
		}
		if err := <-j.done; err != nil {
			t.Error(err)
		}
	})
}

func TestCloseOverTCPCutsWhenCancelled(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		client, near := tcpPair(t)
		backend, far := tcpPair(t)
		j := join(t, s, client, backend, near, far, nil)
		ctx, cancel := context.WithCancel(t.Context())
		closed := make(chan int)
		go func() { closed <- s.Close(ctx) }()
		cancel()
		if cut := <-closed; cut != 1 {
			t.Errorf("%d cut, want 1", cut)
		}
		if err := <-j.done; !errors.Is(err, ErrEnded) {
			t.Error(err)
		}
		wantEnd(t, client)
		wantEnd(t, backend)
	})
}
