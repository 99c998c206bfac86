package upstream

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"time"
)

var (
	// ErrFull is why a request was not let in: there was no place, and none to wait for one either.
	ErrFull = errors.New("circuit breaker: no place for the request")
	// ErrPendingTimeout is the end of a wait for a place.
	ErrPendingTimeout = errors.New("circuit breaker: no place for the request in time")
)

// Waiter is a request that waits for a place. It has to be waited for.
type Waiter struct {
	pool   *Pool
	hash   uint64
	number uint64        // in the order of their coming
	at     *list.Element // guarded by mu of the load; nil: it has got its place
	place  chan Place    // capacity 1
}

// Queue is for a request that has no place yet and found the pool full: it is let in behind those that wait already. The error is
// ErrFull, and nothing was spent on it.
func (p *Pool) Queue(hash uint64) (*Waiter, error) {
	b := p.breaker
	b.enter()
	defer b.mu.Unlock()
	if b.pending >= b.maxPending {
		b.refused++
		return nil, ErrFull
	}
	b.pending++
	b.arrivals++
	w := &Waiter{pool: p, hash: hash, number: b.arrivals, place: make(chan Place, 1)}
	w.at = b.waiting.PushBack(w)
	if b.waiting.Len() == 1 {
		b.queues = append(b.queues, p)
		b.admit() // a place may have become free since the request asked for one
	}
	return w, nil
}

// Wait waits for the place, as long as the pool's bounds say and ctx goes on. A zero place without an error: there is no backend
// any more. The error is ErrPendingTimeout or that of ctx.
func (w *Waiter) Wait(ctx context.Context) (Place, error) {
	timeout := time.NewTimer(w.pool.breaker.timeout)
	defer timeout.Stop()
	select {
	case place := <-w.place:
		if err := ctx.Err(); err != nil { // both had come
			place.Leave(Place{})
			return Place{}, err
		}
		return place, nil
	case <-timeout.C:
		return w.expire()
	case <-ctx.Done():
		w.quit()
		return Place{}, ctx.Err()
	}
}

// expire ends a wait that has been too long, unless the place has come in the last moment.
func (w *Waiter) expire() (Place, error) {
	l := w.pool.breaker.load
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.at == nil {
		return <-w.place, nil
	}
	l.expired++
	l.unqueue(w)
	return Place{}, ErrPendingTimeout
}

// quit ends a wait. Whoever comes after it had as little room, unless the place has come in the last moment.
func (w *Waiter) quit() {
	l := w.pool.breaker.load
	l.mu.Lock()
	came := w.at == nil
	if !came {
		l.unqueue(w)
	}
	l.mu.Unlock()
	if came {
		(<-w.place).Leave(Place{})
	}
}

// admit gives places to those who wait, in the order of their coming. It is called with mu held whenever there may be more room, so
// that nobody who waits could have a place that is free. Each generation's pool has other backends: that there is no room for who
// waits for one keeps up nobody of another.
func (l *load) admit() {
	for full := 0; full < len(l.queues); {
		next := full // of the pools behind those that were found to be full, the one whose first waiter came first
		for i := range l.queues[full:] {
			if l.queues[full+i].first().number < l.queues[next].first().number {
				next = full + i
			}
		}
		w := l.queues[next].first()
		place, none := w.pool.place(w.hash, nil, Place{})
		if none {
			l.queues[full], l.queues[next] = l.queues[next], l.queues[full]
			full++
			continue
		}
		l.unqueue(w)
		w.place <- place
	}
}

// readmit is admit for who does not hold mu.
func (l *load) readmit() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.admit()
}

// first is who has waited for the pool longest. There is somebody.
func (p *Pool) first() *Waiter { return p.breaker.waiting.Front().Value.(*Waiter) }

// unqueue takes w out of its queue, with mu held.
func (l *load) unqueue(w *Waiter) {
	waiting := &w.pool.breaker.waiting
	waiting.Remove(w.at)
	w.at = nil
	l.pending--
	if waiting.Len() == 0 {
		l.queues = slices.DeleteFunc(l.queues, func(p *Pool) bool { return p == w.pool })
	}
}
