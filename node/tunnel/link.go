package tunnel

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// link is one live tunnel whose bytes are moved by goroutines.
type link struct {
	record
	set       *Set
	toBackend flow
	toClient  flow
	running   atomic.Int32            // flows
	active    atomic.Int64            // when a byte last went either way, Unix nanoseconds
	leaving   atomic.Pointer[closing] // nil: not asked to close in order

	// mu guards the end of the link, and is held until both connections are closed.
	mu    sync.Mutex
	ended atomic.Bool // written under mu
	err   error
	timer *time.Timer
}

func newLink(s *Set, t Tunnel) *link {
	l := &link{record: record{owner: t.Owner, told: t.Ended, webSocket: t.WebSocket}, set: s}
	l.toBackend.join(l, &l.toClient, t.Client, t.Backend, t.FromClient)
	l.toClient.join(l, &l.toBackend, t.Backend, t.Client, t.FromBackend)
	l.toBackend.frames.masked = true
	l.toClient.toClient = true
	l.running.Store(2)
	return l
}

func (f *flow) join(l *link, opposite *flow, src, dst net.Conn, early []byte) {
	f.link, f.opposite, f.src, f.dst, f.early = l, opposite, src, dst, early
	if f.raw = rawOf(src); f.raw != nil {
		f.ready, f.passing = f.take, f.passReady
	} else {
		f.own = make([]byte, ownSize)
	}
}

func (l *link) about() *record { return &l.record }

func (l *link) totals() Totals {
	return Totals{
		ToBackend: Traffic{Bytes: l.toBackend.bytes.Load(), Messages: l.toBackend.messages.Load()},
		ToClient:  Traffic{Bytes: l.toClient.bytes.Load(), Messages: l.toClient.messages.Load()},
	}
}

func (l *link) touch() { l.active.Store(time.Now().UnixNano()) }

// watch cuts the link once it was idle for d. One timer for both directions that looks when it fires, instead of a
// deadline moved at every read: a busy tunnel pays one store for each.
func (l *link) watch(d time.Duration) {
	l.touch()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended.Load() {
		return // it was cut meanwhile, and nobody would stop the timer
	}
	l.timer = time.AfterFunc(d, func() {
		idle := time.Since(time.Unix(0, l.active.Load()))
		if idle >= d {
			l.cut(ErrIdle)
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.ended.Load() {
			l.timer.Reset(d - idle)
		}
	})
}

// cutOff is cut without waiting for it.
func (l *link) cutOff(err error) { l.set.cuts.Go(func() { l.cut(err) }) }

// cut ends both directions; err is kept if it is the first reason. It returns when both connections are closed.
func (l *link) cut(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(err)
}

// endLocked is called with mu held.
func (l *link) endLocked(err error) {
	if l.ended.Load() {
		return
	}
	l.ended.Store(true)
	l.err = err
	if l.timer != nil {
		l.timer.Stop()
	}
	// Close of a TLS connection writes a close_notify and may wait for a peer that does not read, for as long as crypto/tls
	// lets it (five seconds): the two sides go at the same time.
	var both sync.WaitGroup
	both.Go(func() { l.toBackend.src.Close() })
	l.toClient.src.Close()
	both.Wait()
}

// flowEnded is called by each flow at its end. The last one ends the link.
func (l *link) flowEnded() {
	if l.running.Add(-1) > 0 {
		return
	}
	var cause error
	if l.leaving.Load() != nil {
		cause = ErrEnded
	}
	l.cut(cause)
	if l.told != nil {
		l.told(Summary{Totals: l.totals(), Err: l.err}) // err was written before cut had the lock, and is not written again
	}
	l.set.remove(l)
}
