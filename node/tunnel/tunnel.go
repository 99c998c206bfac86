// Package tunnel joins two connections after an upgrade: what one side sends reaches the other as it came, until both
// have ended. It owns the joined connections, what moves their bytes, and their end. It knows nothing of HTTP or of who the two
// sides are, and looks at the bytes only where they are WebSocket's: the heads of the frames, to count messages and to know
// where a Close frame may be put in.
//
// Two drivers move the bytes. On Linux, a tunnel whose sides are both plain TCP is a pair, which a reactor moves with many
// others: an epoll loop in one goroutine, so that a tunnel which says nothing is a few hundred bytes. Every other tunnel is a
// link of two flows, with a goroutine for each direction, the only one that reads its source and writes to its destination.
// Neither holds a buffer while nothing is said (over TLS, half a kilobyte for each direction).
//
// A tunnel that the proxy ends, at drain or because its owner is gone, is closed in order if it is a WebSocket: both sides
// are sent a Close frame 1001 where a frame has ended, and have a moment to answer. Everything else is cut.
//
// Order of calls: NewSet; Start from as many goroutines as there are tunnels; Retain whenever what they belong to changes;
// then Close once, which ends them and waits for them.
package tunnel

import (
	"cmp"
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// ErrClosed is returned by Start where the set takes no more tunnels.
var ErrClosed = errors.New("tunnel: set is closed")

// ErrIdle is the end of a tunnel in which no byte went either way for the idle timeout.
var ErrIdle = errors.New("tunnel: idle for too long")

// ErrEnded is the end of a tunnel that was ended by Close or Retain, in order or not.
var ErrEnded = errors.New("tunnel: ended by the proxy")

const (
	// defaultIdle is timeouts.websocket_idle of the document's default.
	defaultIdle = time.Hour
	// defaultSpread keeps the clients of a route that was removed from coming back all at once, and is short enough for
	// somebody who has taken a backend out to wait for.
	defaultSpread = 10 * time.Second
)

// Options of a Set. The zero value works.
type Options struct {
	// A tunnel ends when no byte went either way for so long. 0: one hour.
	Idle time.Duration
	// The time over which Retain ends the tunnels that have to go: the first at once, the others evenly. 0: 10 s.
	Spread time.Duration
}

// Tunnel is what Start joins.
type Tunnel struct {
	// Required. The set owns them from Start on.
	Client, Backend net.Conn
	// What was already read from either and belongs to the other. Nil: nothing.
	FromClient, FromBackend []byte
	// The bytes are frames of RFC 6455, from their very beginning.
	WebSocket bool
	// The tunnel ends when no byte went either way for so long. 0: Options.Idle; below 0: it never does for that.
	Idle time.Duration
	// What the tunnel lives by, as Retain's function understands it. Nil is an owner like any other.
	Owner any
	// Called once when the tunnel has ended, from a goroutine of the set; Close waits for it. Nil: nobody is told.
	Ended func(Summary)
}

// Traffic is what was passed on in one direction, Close frames of the proxy's own not counted.
type Traffic struct {
	Bytes uint64
	// WebSocket messages: data frames with FIN. 0 for other protocols.
	Messages uint64
}

func (t *Traffic) add(other Traffic) {
	t.Bytes += other.Bytes
	t.Messages += other.Messages
}

// Totals is both directions together.
type Totals struct{ ToBackend, ToClient Traffic }

// Summary is a tunnel that has ended.
type Summary struct {
	Totals
	// Nil: both sides ended in order. Otherwise the first thing that happened: ErrIdle, ErrEnded, or an error of a
	// connection.
	Err error
}

// record is what a set knows of a live tunnel, whoever moves its bytes.
type record struct {
	owner     any
	told      func(Summary)
	webSocket bool

	// Guarded by the set's mu.
	marked bool // chosen to be ended
	queued bool // Retain or Retire has it on its list
}

// live is a tunnel that has not ended: a link or a pair.
type live interface {
	about() *record
	totals() Totals
	leave()           // closes it in order, which takes up to finishTime and answerTime; does not wait
	cutOff(err error) // ends it at once; does not wait either
}

// Set is the live tunnels. Its methods may be called concurrently.
type Set struct {
	idle, spread time.Duration
	short, long  sync.Pool      // of *[]byte
	cuts         sync.WaitGroup // a TLS peer that does not read holds its own cut up, and no other
	sweeps       sync.WaitGroup // Retain's and Retire's
	settling     sync.WaitGroup
	closing      chan struct{} // closed once closed is set
	reactors     reactors

	// mu guards what follows. Those of the links are taken under it, it is taken under those of the reactors; never the
	// other way round.
	mu       sync.Mutex
	live     map[live]struct{}
	past     Totals         // of tunnels that have ended
	keep     func(any) bool // nil: every owner
	retiring chan struct{}  // closed to end the sweep of a Retire; nil: none was asked for, or it was taken back
	closed   bool           // Close was called
	settled  bool           // after that, no tunnel is taken any more
	empty    chan struct{}  // closed once settled is set and live is empty
}

// NewSet makes an empty set.
func NewSet(o Options) *Set {
	s := &Set{
		idle: o.Idle, spread: o.Spread, live: make(map[live]struct{}),
		closing: make(chan struct{}), empty: make(chan struct{}),
	}
	if s.idle <= 0 {
		s.idle = defaultIdle
	}
	if s.spread <= 0 {
		s.spread = defaultSpread
	}
	s.reactors.allow()
	s.short.New = func() any { b := make([]byte, shortSize); return &b }
	s.long.New = func() any { b := make([]byte, longSize); return &b }
	return s
}

// Len is how many tunnels live.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

// Totals is everything that was passed on so far. It never goes down.
func (s *Set) Totals() Totals {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.past
	for l := range s.live {
		now := l.totals()
		sum.ToBackend.add(now.ToBackend)
		sum.ToClient.add(now.ToClient)
	}
	return sum
}

// Start joins the connections and returns at once. The end of one direction is passed on as such (a FIN, or TLS's
// close_notify) and the other goes on, as protocols that half-close expect; where a connection cannot express that, it ends
// both. An error on either side ends both at once.
//
// The connections must have no deadlines, and nobody else may use them from then on: two TCP connections are closed at once
// but for duplicates of their sockets. The error is ErrClosed; then they are closed, and Ended is not called.
func (s *Set) Start(t Tunnel) error {
	if paired, err := s.pairUp(t); paired {
		return err
	}
	l := newLink(s, t)
	welcome, err := s.add(l)
	if err != nil {
		l.cut(err)
		return err
	}
	if idle := cmp.Or(t.Idle, s.idle); idle > 0 {
		l.watch(idle)
	}
	if !welcome {
		s.end(l)
	}
	go l.toBackend.run()
	go l.toClient.run()
	return nil
}

// add reports whether the owner is one to be kept; otherwise the tunnel began while its owner went.
func (s *Set) add(l live) (welcome bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settled {
		return false, ErrClosed
	}
	s.live[l] = struct{}{}
	about := l.about()
	about.marked = s.closed || s.keep != nil && !s.keep(about.owner)
	return !about.marked, nil
}

// remove is called once for each tunnel, behind everything else that happens to it.
func (s *Set) remove(l live) {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := l.totals()
	s.past.ToBackend.add(total.ToBackend)
	s.past.ToClient.add(total.ToClient)
	delete(s.live, l)
	if s.settled && len(s.live) == 0 {
		close(s.empty)
	}
}

// end closes a marked tunnel, in order if it is a WebSocket.
func (s *Set) end(l live) {
	if l.about().webSocket {
		l.leave()
		return
	}
	l.cutOff(ErrEnded)
}

// Retain ends, over Options.Spread, the tunnels whose owner is not one to keep, and does so with those that are started
// later, until it is called again. An owner that has come back by then saves those whose turn has not come. keep is called
// under the set's lock: it must be quick and must not call the set. Retain does not wait. It takes back a Retire.
func (s *Set) Retain(keep func(owner any) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopRetiring()
	s.retain(keep, s.spread, nil, nil)
}

// Retire ends every tunnel, evenly over the given time, and those that are started later at once, until Retain takes it
// back. It is for a process that is to be left alone and goes on; Close is for one that ends. Retire does not wait, and a
// second one sets another time for what is left.
//
// Room, if it is not nil, tells for how many tunnels there is room elsewhere at this moment. No more are ended in any five seconds,
// so that their clients find a place, and the others wait: until there is room, or for the last tenth of the time, which ends them
// all the same. It is called again and again, from another goroutine, and must be quick.
func (s *Set) Retire(over time.Duration, room func() int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopRetiring()
	s.retiring = make(chan struct{})
	s.retain(func(any) bool { return false }, over, room, s.retiring)
}

// stopRetiring takes the tunnels that a Retire has not ended yet out of its queue. It is called with mu held.
func (s *Set) stopRetiring() {
	if s.retiring == nil {
		return
	}
	close(s.retiring)
	s.retiring = nil
	for l := range s.live {
		l.about().queued = false
	}
}

// retain is called with mu held.
func (s *Set) retain(keep func(owner any) bool, over time.Duration, room func() int, stop <-chan struct{}) {
	if s.closed {
		return
	}
	s.keep = keep
	var gone []live
	for l := range s.live {
		if about := l.about(); !about.marked && !about.queued && !keep(about.owner) {
			about.queued = true
			gone = append(gone, l)
		}
	}
	if len(gone) > 0 {
		s.sweeps.Go(func() { s.sweep(gone, over, places{room: room}, stop) })
	}
}

// sweep ends the links of gone over the given time, or leaves them to Close when that begins; stop ends it.
func (s *Set) sweep(gone []live, over time.Duration, elsewhere places, stop <-chan struct{}) {
	turns := turnsOf(len(gone), over)
	tick := time.NewTicker(max(over/time.Duration(turns), time.Microsecond))
	defer tick.Stop()
	for left := turns; ; left-- {
		n := len(gone) / left
		if left > max(1, turns/10) {
			n = elsewhere.take(n, time.Now())
		}
		for _, l := range gone[:n] {
			if s.stillGone(l) {
				s.end(l)
			}
		}
		if gone = gone[n:]; left == 1 {
			return
		}
		select {
		case <-tick.C:
		case <-stop:
			return
		case <-s.closing:
			return
		}
	}
}

// newsTime is how long it takes at most until a client has come back elsewhere and the room there is told to be smaller.
const newsTime = 5 * time.Second

// places are for how many tunnels there is room elsewhere.
type places struct {
	room  func() int // nil: as many as one likes
	since time.Time
	taken int // since then
}

// take takes up to n places, as many as there are.
func (p *places) take(n int, now time.Time) int {
	if p.room == nil {
		return n
	}
	if now.Sub(p.since) >= newsTime {
		p.since, p.taken = now, 0
	}
	n = max(0, min(n, p.room()-p.taken))
	p.taken += n
	return n
}

// stillGone takes l out of the queue, and marks it if it has to end.
func (s *Set) stillGone(l live) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	about := l.about()
	about.queued = false
	if _, lives := s.live[l]; !lives || about.marked || s.keep(about.owner) {
		return false
	}
	about.marked = true
	return true
}

// turnsOf is in how many steps n tunnels are ended: at least a millisecond each, beyond that rate several go in one.
func turnsOf(n int, window time.Duration) int {
	return min(n, max(1, int(window/time.Millisecond)))
}

// Close takes no more tunnels, lets the live ones end by themselves for the first half of the time that ctx leaves, and
// ends the rest evenly over the second half, so that their clients do not all come back in the same instant. Where there
// are WebSockets, a part at the end is kept free for the last of them to be closed in order. Without a deadline it waits
// until ctx is cancelled. What is left when ctx ends is cut at once. It returns when all tunnels have ended, with the number
// of those that it ended.
func (s *Set) Close(ctx context.Context) int { return s.CloseAfter(ctx, nil) }

// CloseAfter is Close for where tunnels may still begin until last is closed: they are ended at once, in order, where Close
// would have cut their connections. It does not return before last is closed.
func (s *Set) CloseAfter(ctx context.Context, last <-chan struct{}) int {
	if !s.refuseMore() {
		<-s.empty
		s.reactors.stop()
		return 0
	}
	s.sweeps.Wait()
	if last == nil {
		s.settle()
	} else {
		s.settling.Go(func() {
			<-last
			s.settle()
		})
	}
	ended := 0
	if deadline, ok := ctx.Deadline(); ok {
		ended = s.pace(ctx, deadline)
	}
	s.wait(ctx, nil)
	ended += s.cutAll()
	<-s.empty
	s.settling.Wait()
	s.cuts.Wait()
	s.reactors.stop()
	return ended
}

// refuseMore marks the set closed and reports whether this call was the first to do so.
func (s *Set) refuseMore() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.closed = true
	close(s.closing)
	return true
}

// settle says that no tunnel comes any more.
func (s *Set) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled = true
	if len(s.live) == 0 {
		close(s.empty)
	}
}

// pace waits for half of the time and then ends the live tunnels one by one until deadline; it returns early when none is
// left or ctx ends.
func (s *Set) pace(ctx context.Context, deadline time.Time) int {
	half := time.NewTimer(time.Until(deadline) / 2)
	defer half.Stop()
	if !s.wait(ctx, half.C) {
		return 0
	}
	n, webSocket := s.unmarked()
	if n == 0 {
		return 0
	}
	window := time.Until(deadline)
	if webSocket {
		window -= min(finishTime+answerTime, window/4)
	}
	turns := turnsOf(n, window)
	tick := time.NewTicker(max(window/time.Duration(turns+1), time.Microsecond))
	defer tick.Stop()
	ended := 0
	for turn := range turns {
		if !s.wait(ctx, tick.C) {
			break
		}
		ended += s.endSome(n*(turn+1)/turns - ended)
	}
	return ended
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

// unmarked is how many live tunnels nobody has ended yet, and whether a WebSocket is among them.
func (s *Set) unmarked() (n int, webSocket bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.live {
		if about := l.about(); !about.marked {
			n++
			webSocket = webSocket || about.webSocket
		}
	}
	return n, webSocket
}

// endSome ends up to n live tunnels that were not ended yet.
func (s *Set) endSome(n int) int {
	s.mu.Lock()
	chosen := make([]live, 0, max(n, 0))
	for l := range s.live {
		if len(chosen) >= n {
			break
		}
		if about := l.about(); !about.marked {
			about.marked = true
			chosen = append(chosen, l)
		}
	}
	s.mu.Unlock()
	for _, l := range chosen {
		s.end(l)
	}
	return len(chosen)
}

// cutAll cuts every live tunnel, those that are being closed in order included, and returns how many were not.
func (s *Set) cutAll() int {
	all, fresh := s.markAll()
	for _, l := range all {
		l.cutOff(ErrEnded)
	}
	return fresh
}

// markAll marks every live tunnel, and counts those that were not yet.
func (s *Set) markAll() (all []live, fresh int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all = make([]live, 0, len(s.live))
	for l := range s.live {
		if about := l.about(); !about.marked {
			about.marked = true
			fresh++
		}
		all = append(all, l)
	}
	return all, fresh
}
