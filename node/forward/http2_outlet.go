package forward

import (
	"encoding/binary"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

const (
	// holdTime is how long the head of an answer waits for the first of its body.
	holdTime = time.Millisecond
	// holdSize is how much may wait, or go out together.
	holdSize = 8 << 10
)

// outlet is a client's connection as the HTTP/2 server writes it. The server sends a head by itself, and the body, which is there
// already, a few microseconds later: twice a write, a record of TLS and a client that is woken. Outlet holds the head back until
// then, unless somebody has said that nothing follows it at once.
type outlet struct {
	net.Conn
	watch   // how long the client may leave its socket full
	front   *Front
	writing atomic.Int64 // since when a Write has been under way, Unix nanoseconds; 0: none is
	lone    atomic.Int32 // heads that nothing follows at once, and that may not have been written yet

	// mu guards what follows, and that one writes at a time.
	mu     sync.Mutex
	place  place
	held   []byte
	since  int64       // Unix nanoseconds
	timer  *time.Timer // nil: nothing was ever held
	ticks  bool        // the timer does
	failed error       // of what was held
}

// newOutlet watches nc until end.
func newOutlet(f *Front, nc net.Conn) *outlet {
	o := &outlet{Conn: nc, front: f}
	o.client = nc
	f.watch(&o.watch, f.numbers.Add(1))
	return o
}

// place is where in its frames a connection is. The zero value is before the first.
type place struct {
	head [frameHead]byte // of the frame under way, or of the last
	have int             // bytes of head
	left int             // bytes of the frame
}

// alone says that nothing follows a head at once: it is called before the head is given to the server. Where the server does not
// write it after all, another head goes out as early.
func (o *outlet) alone() { o.lone.Add(1) }

// Write is for one goroutine.
func (o *outlet) Write(p []byte) (int, error) {
	o.writing.Store(time.Now().UnixNano())
	defer o.writing.Store(0)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed != nil {
		return 0, o.failed
	}
	o.place.follow(p)
	if o.place.isOpenHead() && len(o.held)+len(p) <= holdSize && !o.takeLone() {
		o.hold(p)
		return len(p), nil
	}
	return o.release(p)
}

// send writes to the client. A deadline of its own for each write, as the server sets them, costs more than the write of a small
// answer takes.
func (o *outlet) send(p []byte) (int, error) {
	if !o.arm(&o.main, phaseBody, o.front.after(stallTimeout)) {
		return 0, os.ErrDeadlineExceeded
	}
	defer o.arm(&o.main, phaseNone, 0)
	return o.Conn.Write(p)
}

// follow goes on by what is written.
func (l *place) follow(p []byte) {
	for len(p) > 0 {
		if l.left > 0 {
			n := min(l.left, len(p))
			p, l.left = p[n:], l.left-n
			continue
		}
		n := copy(l.head[l.have:], p)
		p, l.have = p[n:], l.have+n
		if l.have == frameHead {
			l.have, l.left = 0, int(binary.BigEndian.Uint32(l.head[:])>>8)
		}
	}
}

// isOpenHead says whether the place is right behind a head that something is to follow.
func (l *place) isOpenHead() bool {
	const either = http2.FlagHeadersEndHeaders | http2.FlagHeadersEndStream
	return l.have == 0 && l.left == 0 &&
		http2.FrameType(l.head[3]) == http2.FrameHeaders && http2.Flags(l.head[4])&either == http2.FlagHeadersEndHeaders
}

// takeLone is whether the head that was written is one that goes out by itself.
func (o *outlet) takeLone() bool {
	for {
		n := o.lone.Load()
		if n == 0 {
			return false
		}
		if o.lone.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// hold has p wait, with what waits already and no longer than that. It is called with mu held, as release.
func (o *outlet) hold(p []byte) {
	if len(o.held) == 0 {
		o.since = o.writing.Load()
	}
	o.held = append(o.held, p...)
	switch {
	case o.timer == nil:
		o.timer = time.AfterFunc(holdTime, o.giveUp)
	case !o.ticks:
		o.timer.Reset(holdTime)
	}
	o.ticks = true
}

// giveUp is when nothing has followed: the client leaves no window for the body, or has reset the stream. The timer goes on where
// it was set for an earlier head: setting it anew for each would cost more than it does to be woken once in a while.
func (o *outlet) giveUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ticks = false
	if len(o.held) == 0 || o.failed != nil {
		return
	}
	if left := holdTime - time.Since(time.Unix(0, o.since)); left > 0 {
		o.timer.Reset(left)
		o.ticks = true
		return
	}
	_, o.failed = o.release(nil)
}

// release writes what was held, and p behind it.
func (o *outlet) release(p []byte) (int, error) {
	if len(o.held) == 0 {
		return o.send(p)
	}
	together := len(o.held)+len(p) <= holdSize
	if together {
		o.held = append(o.held, p...)
	}
	_, err := o.send(o.held)
	o.held = o.held[:0]
	switch {
	case err != nil:
		return 0, err // some of p may have gone out: the connection is at its end
	case together:
		return len(p), nil
	}
	return o.send(p)
}

// end has nothing written any more. It waits for what is being written.
func (o *outlet) end() {
	o.front.forget(&o.watch)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.timer != nil {
		o.timer.Stop()
	}
	if o.failed == nil {
		o.failed = net.ErrClosed
	}
}

// stalled says that the client has not read the socket for so long: not even a reset would reach it.
func (o *outlet) stalled(d time.Duration) bool {
	since := o.writing.Load()
	return since != 0 && time.Since(time.Unix(0, since)) > d
}
