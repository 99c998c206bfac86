package tunnel

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pyserve/pyserve/node/socket"
)

const (
	// maxReactors is a bound for machines with many cores: each reactor moves some hundred thousand messages a second.
	maxReactors = 8
	// maxEvents is how many of the kernel's events are taken at once, and rounds how often before others have a turn.
	maxEvents, rounds = 64, 8
	// tick is how often limits are looked at. A pair that was busy since the last tick counts as busy until this one, so two
	// of them are how late a limit may come.
	tick = 500 * time.Millisecond
	// lookChunk is how many pairs are looked at before messages have a turn.
	lookChunk = 4096

	// interest is told of once for each change, and of everything from the beginning: nothing is asked for or taken back
	// while a pair lives.
	interest = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET
	// readable may be read, if only to find the end. behind has something behind the bytes that a read gives at a time: the
	// end, an error, or urgent data, at which a read stops. Without it, a read that does not fill its buffer leaves nothing.
	readable = unix.EPOLLIN | behind
	behind   = unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	writable = unix.EPOLLOUT | unix.EPOLLHUP | unix.EPOLLERR
)

// reactors are those of a set, made as pairs come, which they get in turn.
type reactors struct {
	// mu guards what follows.
	mu    sync.Mutex
	all   []*reactor
	limit int // 0: there are none, and everything is moved by goroutines
	next  int
}

func (rs *reactors) allow() { rs.limit = min(runtime.GOMAXPROCS(0), maxReactors) }

// pick is the reactor whose turn it is. Nil: there is none to be had, for want of descriptors mostly, or no more.
func (rs *reactors) pick() *reactor {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.limit == 0 {
		return nil
	}
	turn := rs.next % rs.limit
	if turn == len(rs.all) {
		r, err := newReactor()
		if err != nil {
			return nil
		}
		rs.all = append(rs.all, r)
	}
	rs.next = turn + 1
	return rs.all[turn]
}

// stop ends the reactors, which must have no pairs, and waits for them. There are none afterwards.
func (rs *reactors) stop() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.limit = 0
	for _, r := range rs.all {
		r.stop()
	}
	rs.all = nil
}

// reactor moves the bytes of many pairs with one goroutine, one epoll descriptor and one buffer.
//
// It waits in poll. turn is called with every wake-up, and once before the first. What comes after it has looked wakes it again,
// so it may go to wait when it was given less than it had room for.
type reactor struct {
	poll  *socket.Poll
	began time.Time
	done  chan struct{}

	// mu guards what follows, the pairs, their descriptors and the set of those that the kernel has. It is held while one
	// round of bytes moves, which blocks nowhere. Set.mu is taken under it, never the other way round.
	mu     sync.Mutex
	slots  []slot
	free   []uint32
	again  []event // have more to read than they had their turn for; each is there once
	due    []event // again's of before, whose turn comes
	turns  int     // of due, that are over
	over   []*pair // have ended, and are to be buried outside of the lock
	buffer []byte
	events [maxEvents]unix.EpollEvent
}

// slot is where the kernel's events find a pair: they come with its number, and with the generation, which tells those of an
// earlier pair from those of this.
type slot struct {
	pair       *pair // nil: free
	generation uint32
}

// event is the name that a side of a pair has in the kernel.
type event struct {
	side       int32 // slot*2 + direction
	generation uint32
}

// newReactor makes one that runs.
func newReactor() (*reactor, error) {
	r, err := openReactor()
	if err != nil {
		return nil, err
	}
	go r.run()
	return r, nil
}

// openReactor makes one that does nothing by itself.
func openReactor() (*reactor, error) {
	poll, err := socket.NewPoll("tunnels")
	if err != nil {
		return nil, err
	}
	if err := poll.SetDeadline(time.Now().Add(tick)); err != nil {
		poll.Close()
		return nil, err
	}
	r := &reactor{poll: poll, began: time.Now(), done: make(chan struct{}), buffer: make([]byte, longSize)}
	return r, nil
}

// stop ends the reactor and waits for it. A pair that comes too late is refused by poll.
func (r *reactor) stop() {
	r.poll.Close()
	<-r.done
}

// run ends when poll is closed.
func (r *reactor) run() {
	defer close(r.done)
	turn := r.turn
	for {
		err := r.poll.Wait(turn)
		switch {
		case err == nil:
			runtime.Gosched()
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return
		default:
			if r.poll.SetDeadline(time.Now().Add(tick)) != nil {
				return
			}
			r.look(time.Since(r.began))
		}
	}
}

// turn reports true to be called again at once, false to be when something has come.
func (r *reactor) turn(uintptr) bool {
	for range rounds {
		if !r.round() {
			return false
		}
	}
	return true
}

// round does some of what there is to do, and reports whether there may be more. However many are busy, what has just come
// waits for no more than maxEvents of them, and so does who wants the lock.
func (r *reactor) round() bool {
	r.mu.Lock()
	n := r.poll.Take(r.events[:])
	for i := range n {
		e := &r.events[i]
		if p, d := r.find(event{e.Fd, uint32(e.Pad)}); p != nil {
			p.happened(d, e.Events)
		}
	}
	r.takeTurns()
	more := n == maxEvents || r.turns < len(r.due) || len(r.again) > 0
	r.unlock()
	return more
}

// takeTurns gives a turn to some of those that have more to read.
func (r *reactor) takeTurns() {
	if r.turns == len(r.due) {
		r.due, r.again, r.turns = r.again, r.due[:0], 0
	}
	from := r.turns
	r.turns = min(from+maxEvents, len(r.due))
	for _, e := range r.due[from:r.turns] {
		if p, d := r.find(e); p != nil {
			p.halves[d].waits = false
			p.advance(d)
		}
	}
}

// unlock buries who has ended, once the lock is given back.
func (r *reactor) unlock() {
	over := r.over
	r.over = nil
	r.mu.Unlock()
	for _, p := range over {
		p.bury()
	}
}

// look is where time passes: now is since the reactor began.
func (r *reactor) look(now time.Duration) {
	for from, more := 0, true; more; from += lookChunk {
		r.mu.Lock()
		end := min(from+lookChunk, len(r.slots))
		for i := from; i < end; i++ {
			if p := r.slots[i].pair; p != nil {
				p.look(now)
			}
		}
		more = end < len(r.slots)
		r.unlock()
		if more {
			r.round()
		}
	}
}

// find is the pair of an event. Nil: it has ended meanwhile, in the same round mostly.
func (r *reactor) find(e event) (*pair, direction) {
	s := &r.slots[e.side>>1]
	if s.generation != e.generation {
		return nil, 0
	}
	return s.pair, direction(e.side & 1)
}

// settle gives p a slot and has the kernel tell of both its sides.
func (r *reactor) settle(p *pair) error {
	if n := len(r.free); n > 0 {
		p.slot, r.free = r.free[n-1], r.free[:n-1]
	} else {
		p.slot = uint32(len(r.slots))
		r.slots = append(r.slots, slot{})
	}
	r.slots[p.slot].pair = p
	for d := range p.halves {
		name := p.event(direction(d))
		e := unix.EpollEvent{Events: interest, Fd: name.side, Pad: int32(name.generation)}
		if err := r.poll.Add(int(p.halves[d].fd), e); err != nil {
			r.unsettle(p, direction(d))
			return err
		}
	}
	return nil
}

// unsettle takes back what settle had done before it came to the side that up to comes from. The connections go on without
// a reactor, so that to close the duplicates would not end the kernel's telling of them.
func (r *reactor) unsettle(p *pair, up direction) {
	for d := range up {
		r.poll.Remove(int(p.halves[d].fd)) // was added a moment ago
	}
	r.evict(p)
}

// evict closes p's descriptors, of which the kernel tells no more then, and frees the slot. Where another process is being
// started just then, it has them for a moment still, and so events may come: they are of an earlier generation.
func (r *reactor) evict(p *pair) {
	for d := range p.halves {
		unix.Close(int(p.halves[d].fd))
	}
	s := &r.slots[p.slot]
	s.pair = nil
	s.generation++
	r.free = append(r.free, p.slot)
}
