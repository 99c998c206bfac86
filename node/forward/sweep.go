package forward

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
)

// A phase is what a connection waits for. Its limits differ, and so does what has to be interrupted.
type phase int64

const (
	phaseNone   phase = iota // nothing that takes time
	phaseIdle                // the client's next request
	phaseAsleep              // the same, without a goroutine
	phaseHead                // the rest of a request's head
	phaseAnswer              // a connection to the backend, or the head of its answer
	phaseBody                // the answer's body, from the backend or to the client
	phaseUpload              // the request's body, from the client or to the backend
)

const (
	phaseBits = 3
	phaseMask = 1<<phaseBits - 1
	// never is a limit that does not come: a hundred years after the front began.
	never = int64(1) << 58
	// What limit.due holds instead of a time.
	expiring, expired = -2, -1
)

// cause is why the sweeper interrupted a request.
type cause uint32

const (
	causeNone       cause = iota
	causeTimeout          // a phase took too long
	causeRequest          // the whole request took too long
	causeUpload           // the request's body stood still
	causeClientGone       // the client has closed its side
	causeCut              // a drain has come to its end
	causeSleep            // nothing is over: the connection may wait without its goroutine
)

// limit is when a phase's time is up: nanoseconds of the front's clock and the phase, in one word. One goroutine arms it, the
// sweeper finds it due; whichever changes the word first has won, and the loser knows.
type limit struct{ due atomic.Int64 }

// set begins a phase where there is none, or one whose limit was reached.
func (l *limit) set(p phase, due int64) { l.due.Store(due<<phaseBits | int64(p)) }

// watch is what the sweeper sees of a connection or, over HTTP/2, a stream.
type watch struct {
	main, upload limit
	// requests counts them; that it did not change tells the sweeper that one takes long.
	requests atomic.Uint32
	cause    atomic.Uint32
	end      atomic.Int64 // when the whole request's time is up; never: no limit
	backend  atomic.Pointer[upstream.Conn]
	dialing  atomic.Pointer[context.CancelFunc]
	client   deadlines
	raw      syscall.RawConn // of the client's socket; nil: it is not asked whether the client is there
	over     context.Context // of a stream: it ends when the client goes away; nil: this is none
	parked   atomic.Bool     // in the lists of idle connections
	sleeper  *net.TCPConn    // may sleep; nil: the goroutine has to wait

	shard *shard

	// Guarded by shard.mu.
	list, place int
	lastRequest uint32
	looks       int
	frequent    bool // came back before it would have slept
}

// deadlines are how reads and writes that wait are ended: those of a connection, or of an HTTP/2 stream.
type deadlines interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// longAgo is a deadline that wakes who waits.
var longAgo = time.Unix(1, 0)

// arm begins a phase. False: the limit before had been reached, and whatever waited was interrupted.
func (w *watch) arm(l *limit, p phase, due int64) bool {
	if l.due.Swap(due<<phaseBits|int64(p)) >= 0 {
		return true
	}
	w.settle()
	l.due.Store(expired)
	return false
}

// settle waits until the sweeper has done what it began.
func (w *watch) settle() {
	w.shard.mu.Lock()
	defer w.shard.mu.Unlock() // the wait is all there is to it
}

// interrupted is why an operation failed that the sweeper may have ended; causeNone if it was not the sweeper.
func (w *watch) interrupted() cause {
	if w.main.due.Load() < 0 || w.upload.due.Load() < 0 {
		w.settle()
	}
	return cause(w.cause.Load())
}

// begin makes the watch ready for a request.
func (w *watch) begin() {
	w.requests.Add(1)
	w.cause.Store(uint32(causeNone))
	w.end.Store(never)
}

// expire is the sweeper's side of arm. seen is what it found in l.
func (w *watch) expire(l *limit, seen int64, c cause) {
	if !l.due.CompareAndSwap(seen, expiring) {
		return
	}
	w.cause.CompareAndSwap(uint32(causeNone), uint32(c))
	w.interrupt(phase(seen&phaseMask), c)
	l.due.Store(expired)
}

// interrupt wakes whoever waits in phase p. Errors mean that the connection is closed, which wakes as well.
func (w *watch) interrupt(p phase, c cause) {
	if p == phaseAsleep {
		w.sleeper.CloseRead() // which is something to read
		return
	}
	if p == phaseIdle || p == phaseHead {
		w.client.SetReadDeadline(longAgo)
		if c == causeCut {
			w.client.SetWriteDeadline(longAgo)
		}
		return
	}
	if p == phaseBody || c == causeClientGone || c == causeCut {
		w.client.SetWriteDeadline(longAgo)
	}
	if p != phaseAnswer || c == causeClientGone || c == causeCut {
		w.client.SetReadDeadline(longAgo)
	}
	if b := w.backend.Load(); b != nil {
		b.SetDeadline(longAgo)
	}
	if cancel := w.dialing.Load(); cancel != nil {
		(*cancel)()
	}
}

const (
	// sweepInterval is how exact limits are kept, and how soon a client is missed.
	sweepInterval = 50 * time.Millisecond
	// A request that was seen slowAfter times is looked at every slowSweeps only, and an idle connection every idleSweeps:
	// a hundred thousand event streams should not cost a core.
	slowAfter  = 20
	slowSweeps = 5
	idleSweeps = 20
	shardCount = 16
	// Who is idle at more than sleepLooks looks sleeps: after a second or two. Where a shard has maxAwake that are idle and do
	// not, the next does at once, unless it came back sooner than that the last time: so many that come at the same time do not
	// have a stack each, and who comes by every second has nothing to do with all this.
	sleepLooks = 2
	maxAwake   = 64
)

// The lists of a shard.
const (
	hot = iota
	slow
	idle
	asleep // or about to be
	listCount
	none = -1 // not watched any more
)

// shard is some of the watches. Connections that go from request to request stay in its hot list and never take mu.
type shard struct {
	// mu guards what follows, and the watches' fields that say so. It is held while the sweeper interrupts.
	mu    sync.Mutex
	lists [listCount][]*watch
	_     [64]byte
}

func (s *shard) add(w *watch, list int) {
	w.list, w.place = list, len(s.lists[list])
	s.lists[list] = append(s.lists[list], w)
}

func (s *shard) remove(w *watch) {
	l := s.lists[w.list]
	last := l[len(l)-1]
	l[w.place], last.place = last, w.place
	l[len(l)-1] = nil
	s.lists[w.list] = l[:len(l)-1]
}

func (s *shard) move(w *watch, list int) {
	s.remove(w)
	s.add(w, list)
}

// sweeper is the clock of a front and what hangs on it.
type sweeper struct {
	base   time.Time
	now    atomic.Int64           // since base, as of the last sweep
	date   atomic.Pointer[[]byte] // the Date field of this second
	second int64                  // of date
	shards [shardCount]shard
	rounds int

	// What an idle connection, or any, meets at the end of a drain.
	closeIdle, cutAll atomic.Bool

	look gonePoll
}

func (s *sweeper) start() {
	s.base = time.Now()
	s.tick(s.base)
}

// watch takes w under observation, until forget.
func (s *sweeper) watch(w *watch, number uint32) {
	w.shard = &s.shards[number%shardCount]
	w.end.Store(never)
	w.shard.mu.Lock()
	defer w.shard.mu.Unlock()
	w.shard.add(w, hot)
}

func (s *sweeper) forget(w *watch) {
	w.shard.mu.Lock()
	defer w.shard.mu.Unlock()
	if w.list != none {
		w.shard.remove(w)
		w.list = none
	}
}

// unpark brings back a connection that was taken for idle.
func (w *watch) unpark() {
	w.shard.mu.Lock()
	defer w.shard.mu.Unlock()
	if w.parked.Load() {
		w.parked.Store(false)
		w.frequent = w.looks <= sleepLooks
		w.shard.move(w, hot)
	}
}

// after is a limit d from now; never for 0. The clock is as old as the last sweep, so the limit comes up to two sweeps late
// rather than one early.
func (s *sweeper) after(d time.Duration) int64 {
	if d <= 0 {
		return never
	}
	return s.now.Load() + int64(d+sweepInterval)
}

// run sweeps until done is closed.
func (s *sweeper) run(done <-chan struct{}) {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case at := <-ticker.C:
			s.tick(at)
			s.sweep()
		}
	}
}

func (s *sweeper) tick(at time.Time) {
	s.now.Store(int64(at.Sub(s.base)))
	if second := at.Unix(); second != s.second {
		s.second = second
		line := []byte("Date: " + at.UTC().Format(http.TimeFormat) + "\r\n")
		s.date.Store(&line)
	}
}

func (s *sweeper) sweep() {
	s.rounds++
	hurry := s.closeIdle.Load() || s.cutAll.Load()
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.Lock()
		s.sweepList(shard, hot)
		if hurry || s.rounds%slowSweeps == 0 {
			s.sweepList(shard, slow)
		}
		if hurry || s.rounds%idleSweeps == 0 {
			s.sweepList(shard, idle)
			s.sweepList(shard, asleep)
		}
		shard.mu.Unlock()
	}
}

// sweepList goes from the end to the beginning: what moves away is replaced by what was looked at already.
func (s *sweeper) sweepList(shard *shard, list int) {
	for i := len(shard.lists[list]) - 1; i >= 0; i-- {
		w := shard.lists[list][i]
		s.inspect(w)
		s.place(shard, w)
	}
}

// inspect interrupts what has come to its limit.
func (s *sweeper) inspect(w *watch) {
	now := s.now.Load()
	if due := w.upload.due.Load(); due > 0 && now >= due>>phaseBits {
		w.expire(&w.upload, due, causeUpload)
	}
	due := w.main.due.Load()
	p := phase(due & phaseMask)
	switch {
	case due < 0:
	case s.cutAll.Load():
		w.expire(&w.main, due, causeCut)
	case (p == phaseIdle || p == phaseAsleep) && s.closeIdle.Load():
		w.expire(&w.main, due, causeTimeout)
	case p == phaseNone:
	case now >= due>>phaseBits:
		w.expire(&w.main, due, causeTimeout)
	case p >= phaseAnswer && now >= w.end.Load():
		w.expire(&w.main, due, causeRequest)
	case p >= phaseAnswer && w.looks > 0 && w.lastRequest == w.requests.Load() && s.missed(w):
		w.expire(&w.main, due, causeClientGone)
	}
}

// missed says whether the client has closed its side, or reset its stream. While a request's body is under way its reader sees
// that, and sees what was sent before.
func (s *sweeper) missed(w *watch) bool {
	if w.over != nil {
		return w.over.Err() != nil
	}
	return w.raw != nil && phase(w.upload.due.Load()&phaseMask) != phaseUpload && s.look.gone(w.raw)
}

// place decides how often w is looked at from now on.
func (s *sweeper) place(shard *shard, w *watch) {
	waits := phase(w.main.due.Load()&phaseMask) == phaseIdle
	w.looks++
	if n := w.requests.Load(); n != w.lastRequest {
		w.lastRequest, w.looks = n, 0
	}
	switch {
	case w.list == hot && waits && w.looks > 0:
		s.park(shard, w)
	case w.list == hot && w.looks > slowAfter:
		shard.move(w, slow)
	case w.list == slow && (waits || w.looks == 0):
		shard.move(w, hot)
	case w.list == idle && w.looks > sleepLooks:
		s.sleep(shard, w)
	}
}

// park moves w to the idle ones. If a request comes at this moment, either its goroutine sees that w is parked, or it is seen
// here that w is not idle any more.
func (s *sweeper) park(shard *shard, w *watch) {
	shard.move(w, idle)
	w.parked.Store(true)
	if phase(w.main.due.Load()&phaseMask) != phaseIdle {
		w.parked.Store(false)
		shard.move(w, hot)
	} else if len(shard.lists[idle]) > maxAwake && !w.frequent {
		s.sleep(shard, w)
	}
}

// sleep asks the goroutine of an idle connection to leave it. It does unless there is a request at this moment.
func (s *sweeper) sleep(shard *shard, w *watch) {
	due := w.main.due.Load()
	if w.sleeper == nil || phase(due&phaseMask) != phaseIdle {
		return
	}
	w.expire(&w.main, due, causeSleep)
	shard.move(w, asleep)
}
