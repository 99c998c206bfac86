package forward

import (
	"context"
	"errors"
	"net/http"

	"github.com/pyserve/pyserve/node/tunnel"
	"github.com/pyserve/pyserve/node/upstream"
)

// places are what a request has of pools with circuit breakers: with the backend that it is at, and with the one that it may be sent
// to next.
type places struct {
	held, next upstream.Place
	full       bool // there were backends, but no place, when one was picked last
}

// Bounded says whether the route has a circuit breaker, in any of its parts.
func (r *Route) Bounded() bool {
	for _, p := range r.EachPool {
		if p.Bounded() {
			return true
		}
	}
	return false
}

// pickFrom is Pick, and a place where the pool has bounds.
func (x *exchange) pickFrom(p *upstream.Pool, hash uint64, tried []*upstream.Backend) *upstream.Backend {
	if !p.Bounded() {
		x.places.full = false
		return p.Pick(hash, tried)
	}
	x.places.next, x.places.full = p.Enter(hash, tried, x.places.held)
	return x.places.next.Backend()
}

// mayAsk says whether the request can be sent to b, a member of the pool.
func (x *exchange) mayAsk(p *upstream.Pool, b *upstream.Backend) bool {
	if !p.Bounded() {
		return true
	}
	x.places.next, x.places.full = p.EnterAt(b)
	return !x.places.full
}

// takePlace goes over to the place of the next attempt. Without one, the attempt is with the same backend as the last, or nothing
// is bounded.
func (x *exchange) takePlace() {
	if x.places.next.Backend() != nil {
		x.places.held.Leave(x.places.next)
		x.places.held, x.places.next = x.places.next, upstream.Place{}
	}
}

// spare gives back the place of an attempt that is not made.
func (x *exchange) spare() {
	x.places.next.Leave(x.places.held)
	x.places.next = upstream.Place{}
}

// leave gives back what places there are.
func (x *exchange) leave() {
	if x.places.held.Backend() != nil || x.places.next.Backend() != nil {
		x.spare()
		x.places.held.Leave(upstream.Place{})
	}
	x.places = places{}
}

// await waits for a place in the pool that was full.
func (x *exchange) await() (*upstream.Backend, *failure) {
	w, err := x.pool.Queue(x.hash())
	if err != nil {
		return nil, overloaded(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	x.dialing.Store(&cancel)
	defer x.dialing.Store(nil)
	if !x.arm(&x.main, phaseAnswer, never) {
		cancel()
	}
	x.places.next, err = w.Wait(ctx)
	switch {
	case errors.Is(err, upstream.ErrPendingTimeout):
		return nil, overloaded(err)
	case err != nil:
		return nil, x.dialFailure(err)
	}
	b := x.places.next.Backend()
	if b == nil {
		return nil, noBackend()
	}
	return b, nil
}

func overloaded(err error) *failure {
	sentence := "There are too many requests under way."
	if errors.Is(err, upstream.ErrPendingTimeout) {
		sentence = "There were too many requests under way, and this one has waited in vain."
	}
	return &failure{class: ClassUpstreamBefore, status: http.StatusServiceUnavailable, sentence: sentence, err: err}
}

// leaving makes a tunnel keep the request's place until it ends.
func leaving(place upstream.Place, ended func(tunnel.Summary)) func(tunnel.Summary) {
	if place.Backend() == nil {
		return ended
	}
	return func(sum tunnel.Summary) {
		place.Leave(upstream.Place{})
		if ended != nil {
			ended(sum)
		}
	}
}
