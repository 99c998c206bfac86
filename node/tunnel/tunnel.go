// Package tunnel joins two connections after an upgrade: what one side sends reaches the other as it came, until both
// have ended. It owns the joined connections and their end; it knows nothing of HTTP, of who the two sides are, or of
// what the bytes mean (a WebSocket is not told that it is being closed, it is just closed).
//
// Order of calls: NewSet, then Join from as many goroutines as there are tunnels, then Close once, which ends them and
// waits for them.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrClosed is returned by Join where the set takes no more tunnels.
var ErrClosed = errors.New("tunnel: set is closed")

// ErrIdle is returned by Join where no byte went either way for the idle timeout.
var ErrIdle = errors.New("tunnel: idle for too long")

// errCut ends a tunnel that Close did not wait for any longer.
var errCut = errors.New("tunnel: cut by drain")

const (
	// defaultIdle is timeouts.websocket_idle of the document's default.
	defaultIdle = time.Hour
	// waitSize is what a direction holds while nothing is sent, busySize while it is: most tunnels are idle most of the
	// time, and the few that carry much want few system calls.
	waitSize = 2 << 10
	busySize = 32 << 10
)

// Set is the live tunnels. Its methods may be called concurrently.
type Set struct {
	idle  time.Duration
	large sync.Pool
	cuts  sync.WaitGroup // a TLS peer that does not read holds its own cut up, and no other

	// mu guards what follows. No other lock is taken under it.
	mu     sync.Mutex
	live   map[*link]struct{}
	closed bool
	empty  chan struct{} // closed once closed is set and live is empty
}

// NewSet makes an empty set whose tunnels end when no byte went either way for idle; 0: one hour.
func NewSet(idle time.Duration) *Set {
	if idle == 0 {
		idle = defaultIdle
	}
	s := &Set{idle: idle, live: make(map[*link]struct{}), empty: make(chan struct{})}
	s.large.New = func() any { b := make([]byte, busySize); return &b }
	return s
}

// Len is how many tunnels live.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

// Join passes on the bytes of both connections until both have ended, then closes them; it owns them from the call on.
// fromFirst and fromSecond are what was already read from either and belongs to the other; nil: nothing. The end of one
// direction is passed on as such (a FIN, or TLS's close_notify) and the other direction goes on, as protocols that half-close
// expect; where a connection cannot express that, it ends both. An error on either side ends both at once.
//
// It returns how many bytes each side had passed on, and an error unless both ended in order: the first that happened.
func (s *Set) Join(first, second net.Conn, fromFirst, fromSecond []byte) (firstBytes, secondBytes int64, err error) {
	l := &link{first: first, second: second, large: &s.large}
	if !s.add(l) {
		l.cut(ErrClosed)
		return 0, 0, ErrClosed
	}
	defer s.remove(l)
	l.touch()
	l.watch(s.idle)
	var back sync.WaitGroup
	back.Go(func() { secondBytes = l.carry(first, second, fromSecond) })
	firstBytes = l.carry(second, first, fromFirst)
	back.Wait()
	l.cut(nil)
	return firstBytes, secondBytes, l.cause()
}

func (s *Set) add(l *link) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.live[l] = struct{}{}
	return true
}

func (s *Set) remove(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, l)
	if s.closed && len(s.live) == 0 {
		close(s.empty)
	}
}

// Close takes no more tunnels, lets the live ones end by themselves for the first half of the time that ctx leaves, and
// cuts the rest evenly over the second half, so that their clients do not all come back in the same instant. Without a
// deadline it waits until ctx is cancelled. What is left when ctx ends is cut at once. It returns when all tunnels have
// ended, with the number of those that were cut.
func (s *Set) Close(ctx context.Context) int {
	if !s.refuseMore() {
		<-s.empty
		return 0
	}
	cut := 0
	if deadline, ok := ctx.Deadline(); ok {
		cut += s.pace(ctx, deadline)
	} else {
		s.wait(ctx, nil)
	}
	cut += s.cutSome(s.Len())
	<-s.empty
	s.cuts.Wait()
	return cut
}

// refuseMore marks the set closed and reports whether this call was the first to do so.
func (s *Set) refuseMore() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.closed = true
	if len(s.live) == 0 {
		close(s.empty)
	}
	return true
}

// pace waits for half of the time and then cuts the live tunnels one by one until deadline; it returns early when none is
// left or ctx ends.
func (s *Set) pace(ctx context.Context, deadline time.Time) int {
	half := time.NewTimer(time.Until(deadline) / 2)
	defer half.Stop()
	if !s.wait(ctx, half.C) {
		return 0
	}
	n := s.Len()
	if n == 0 {
		return 0
	}
	// At least a millisecond each turn: beyond that rate, several go in one turn.
	left := time.Until(deadline)
	turns := min(n, max(1, int(left/time.Millisecond)))
	tick := time.NewTicker(max(left/time.Duration(turns+1), time.Microsecond))
	defer tick.Stop()
	cut := 0
	for turn := range turns {
		if !s.wait(ctx, tick.C) {
			break
		}
		cut += s.cutSome(n*(turn+1)/turns - cut)
	}
	return cut
}

// wait reports whether at fired before all tunnels had ended and before ctx ended.
func (s *Set) wait(ctx context.Context, at <-chan time.Time) bool {
	select {
	case <-s.empty:
		return false
	case <-ctx.Done():
		return false
	case <-at:
		return true
	}
}

// cutSome cuts up to n live tunnels that were not cut yet.
func (s *Set) cutSome(n int) int {
	s.mu.Lock()
	chosen := make([]*link, 0, max(n, 0))
	for l := range s.live {
		if len(chosen) >= n {
			break
		}
		if !l.marked {
			l.marked = true
			chosen = append(chosen, l)
		}
	}
	s.mu.Unlock()
	for _, l := range chosen {
		s.cuts.Go(func() { l.cut(errCut) })
	}
	return len(chosen)
}

// link is one live tunnel.
type link struct {
	first, second net.Conn
	large         *sync.Pool
	active        atomic.Int64 // when a byte last went either way, Unix nanoseconds
	marked        bool         // chosen to be cut; guarded by the set's mu

	// mu guards the end of the link.
	mu    sync.Mutex
	ended bool
	err   error
	timer *time.Timer
}

func (l *link) touch() { l.active.Store(time.Now().UnixNano()) }

// watch cuts the link once it was idle for d. One timer for both directions that looks when it fires, instead of a
// deadline moved at every read: a busy tunnel pays one store for each.
func (l *link) watch(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = time.AfterFunc(d, func() {
		idle := time.Since(time.Unix(0, l.active.Load()))
		if idle >= d {
			l.cut(ErrIdle)
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.ended {
			l.timer.Reset(d - idle)
		}
	})
}

// cut ends both directions; err is kept if it is the first reason.
func (l *link) cut(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.ended, l.err = true, err
	if l.timer != nil {
		l.timer.Stop()
	}
	// Close of a TLS connection writes a close_notify and may wait for a peer that does not read, for as long as crypto/tls
	// lets it (five seconds): the two sides go at the same time.
	var both sync.WaitGroup
	both.Go(func() { l.first.Close() })
	l.second.Close()
	both.Wait()
}

func (l *link) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// carry passes on early and then what src sends until it ends, then ends dst's receiving side. It returns the number of bytes passed.
func (l *link) carry(dst, src net.Conn, early []byte) int64 {
	n, err := l.copy(dst, src, early)
	if err != nil {
		l.cut(err)
		return n
	}
	half, ok := dst.(interface{ CloseWrite() error })
	if !ok {
		// Ending the whole connection is the only way left to tell its peer that nothing more will come.
		l.cut(nil)
		return n
	}
	if err := half.CloseWrite(); err != nil {
		l.cut(fmt.Errorf("end writes to %s: %w", dst.RemoteAddr(), err))
	}
	return n
}

func (l *link) copy(dst, src net.Conn, early []byte) (passed int64, err error) {
	if len(early) > 0 {
		n, err := dst.Write(early)
		passed += int64(n)
		if err != nil {
			return passed, fmt.Errorf("write to %s: %w", dst.RemoteAddr(), err)
		}
	}
	small := make([]byte, waitSize)
	for {
		n, full, err := l.pass(dst, src, small)
		passed += int64(n)
		if full && err == nil {
			var more int64
			more, err = l.burst(dst, src)
			passed += more
		}
		if errors.Is(err, io.EOF) {
			return passed, nil
		}
		if err != nil {
			return passed, err
		}
	}
}

// burst passes on with a large buffer for as long as each read fills it.
func (l *link) burst(dst, src net.Conn) (passed int64, err error) {
	buf := l.large.Get().(*[]byte)
	defer l.large.Put(buf)
	for {
		n, full, err := l.pass(dst, src, *buf)
		passed += int64(n)
		if !full || err != nil {
			return passed, err
		}
	}
}

// pass moves what one read gives. full says that the buffer was filled, so there is probably more.
func (l *link) pass(dst, src net.Conn, buf []byte) (n int, full bool, err error) {
	read, err := src.Read(buf)
	if read > 0 {
		l.touch()
		written, werr := dst.Write(buf[:read])
		if werr != nil {
			return written, false, fmt.Errorf("write to %s: %w", dst.RemoteAddr(), werr)
		}
		l.touch()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read from %s: %w", src.RemoteAddr(), err)
	}
	return read, read == len(buf), err
}
