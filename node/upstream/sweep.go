package upstream

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A connection is closed for being idle up to one sweep early, which is a part of Options.IdleTimeout, sweepParts of
	// them at least, and sweepMost at most.
	sweepParts = 4
	sweepMost  = time.Second
	// sweepLeast keeps the ticker from spinning, whatever the timeout is.
	sweepLeast = time.Millisecond
)

// sweeper is the goroutine that closes connections idle for too long, one for all backends, from the first of them on. Its
// ticks are also the clock that Keep reads, since asking for the time costs more than all else that Keep does.
//
// It ticks while nothing is idle too: that is one wake-up a second as a rule, and there is no moment at which it could be
// asleep wrongly.
type sweeper struct {
	timeout, interval time.Duration
	begin             time.Time
	now               atomic.Int64 // nanoseconds from begin to the last tick
	starting, ending  sync.Once
	stopping          chan struct{}
	done              chan struct{} // closed when the goroutine has ended
}

func newSweeper(timeout time.Duration) *sweeper {
	// A whole number of sweeps makes a timeout, so that the last of them comes at its very end and not after it.
	parts := max(sweepParts, (timeout+sweepMost-1)/sweepMost)
	return &sweeper{
		begin: time.Now(), timeout: timeout, interval: max(timeout/parts, sweepLeast),
		stopping: make(chan struct{}), done: make(chan struct{}),
	}
}

// start starts the goroutine, unless it was started or stopped before. Backends appends those that there are.
func (s *sweeper) start(backends func(to []*Backend) []*Backend) {
	s.starting.Do(func() {
		s.now.Store(int64(time.Since(s.begin)))
		go s.run(backends)
	})
}

// stop ends the goroutine and waits for it.
func (s *sweeper) stop() {
	s.starting.Do(func() { close(s.done) })
	s.ending.Do(func() { close(s.stopping) })
	<-s.done
}

// run is the goroutine.
func (s *sweeper) run(backends func(to []*Backend) []*Backend) {
	defer close(s.done)
	ticker := time.NewTicker(s.interval)
	defer ticker.Stop()
	var all []*Backend
	for {
		select {
		case <-s.stopping:
			return
		case <-ticker.C:
		}
		now := time.Since(s.begin)
		s.now.Store(int64(now))
		all = backends(all[:0])
		for _, b := range all {
			b.conns.expire(int64(s.limit(now)))
		}
		clear(all) // must not hold on to those that are released
	}
}

// limit is the tick since which connections have been idle for too long. Ticks come late, each by another while, and half an
// interval makes up for that.
func (s *sweeper) limit(now time.Duration) time.Duration { return now - s.timeout + s.interval/2 }
