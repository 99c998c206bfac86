package upstream

import (
	"math"
	"sync"
	"sync/atomic"
)

// conns are a backend's connections from Open: how many there are, and those that are idle, ordered by when they were kept.
// Take and Keep work at the newest end; the oldest end is where they grow too old and where too many are cut down. The
// oldest goes rather than the one that returns: it is the one that the backend will close first.
type conns struct {
	capacity int           // of idle ones
	now      *atomic.Int64 // the registry's clock

	// mu guards everything below and the fields of Conn that say so. No other lock is taken under it, and nothing closed:
	// that is a system call for each, and over TLS a write that may wait.
	mu             sync.Mutex
	newest, oldest *Conn
	epoch          uint64 // moves on when the addresses change
	ended          bool   // the backend was released: nothing is kept any more
	open, idle     int    // idle ones are open
	opened, reused uint64

	// busy are those in use, and those that are being opened, read without the lock by who picks. It lies in the line of
	// memory that whoever holds the lock has just written, so that keeping it costs next to nothing.
	busy atomic.Int64
}

// opening counts a connection from before it is there: a backend that lets connects hang would else look idle.
func (s *conns) opening() { s.busy.Add(1) }

// unopened counts out one that did not come about.
func (s *conns) unopened() { s.busy.Add(-1) }

func (s *conns) currentEpoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// add counts a connection that was opened, after opening.
func (s *conns) add() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	s.open++
}

// remove counts c out, idle or not. False: it was out already.
func (s *conns) remove(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.closed {
		return false
	}
	c.closed = true
	s.open--
	if c.idle {
		s.unlink(c)
	}
	s.busy.Add(-1)
	return true
}

// handOver is remove for a connection that counts on, until forget. False: it was out already.
func (s *conns) handOver(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.closed {
		return false
	}
	c.closed = true
	return true
}

// forget counts out a connection that was handed over.
func (s *conns) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	s.busy.Add(-1)
}

func (s *conns) take() *Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.newest
	if c == nil {
		return nil
	}
	s.unlink(c)
	s.reused++
	return c
}

// keep makes c the newest idle connection, and returns the one that is to be closed for it, which may be c itself.
func (s *conns) keep(c *Conn) (surplus *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.closed || c.idle:
		return nil
	case s.ended || c.epoch != s.epoch:
		return c
	case s.idle == s.capacity:
		surplus = s.oldest
		s.unlink(surplus)
	}
	// Read under the lock, so that the times are in the order of the connections.
	c.since, c.reused = s.now.Load(), true
	s.link(c)
	return surplus
}

// link is called with mu held, as is unlink.
func (s *conns) link(c *Conn) {
	c.older, c.idle = s.newest, true
	if s.newest != nil {
		s.newest.newer = c
	} else {
		s.oldest = c
	}
	s.newest = c
	s.idle++
	s.busy.Add(-1)
}

func (s *conns) unlink(c *Conn) {
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		s.newest = c.older
	}
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		s.oldest = c.newer
	}
	c.older, c.newer, c.idle = nil, nil, false
	s.idle--
	s.busy.Add(1)
}

// expire closes the connections that have been idle since limit or longer.
func (s *conns) expire(limit int64) {
	s.mu.Lock()
	old := s.detach(limit)
	s.mu.Unlock()
	closeAll(old)
}

// renew closes the idle connections, and lets no other that was opened before be kept.
func (s *conns) renew() {
	s.mu.Lock()
	s.epoch++
	old := s.detach(math.MaxInt64)
	s.mu.Unlock()
	closeAll(old)
}

// end closes the idle connections, and lets none be kept ever after.
func (s *conns) end() {
	s.mu.Lock()
	s.ended = true
	old := s.detach(math.MaxInt64)
	s.mu.Unlock()
	closeAll(old)
}

// detach is called with mu held, and gives what has been idle since limit or longer to be closed without it.
func (s *conns) detach(limit int64) []*Conn {
	var old []*Conn
	for s.oldest != nil && s.oldest.since <= limit {
		old = append(old, s.oldest)
		s.unlink(s.oldest)
	}
	return old
}

func closeAll(old []*Conn) {
	for _, c := range old {
		c.Close()
	}
}

// count fills in what is known of the connections.
func (s *conns) count(c *Counters) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Opened, c.Reused, c.Open, c.Idle = s.opened, s.reused, s.open, s.idle
}
