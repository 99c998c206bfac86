package upstream

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

// attemptDelay is the head start of an address before the next is tried beside it (RFC 8305 section 5).
const attemptDelay = 250 * time.Millisecond

// dialFunc opens a connection to host:port.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// dialAny connects to one of several addresses, of which there is at least one: to the one whose turn it is, and, whenever an
// attempt has failed or not succeeded within attemptDelay, to the next one beside it. The first connection wins. All attempts
// have ended when it returns.
func dialAny(ctx context.Context, dial dialFunc, addresses []string, turn uint64) (net.Conn, error) {
	if len(addresses) == 1 {
		return dial(ctx, "tcp", addresses[0])
	}
	r := &race{dial: dial, addresses: addresses, turn: turn, results: make(chan result), errs: make([]error, len(addresses))}
	return r.run(ctx)
}

// race is the attempts to open one connection.
type race struct {
	dial      dialFunc
	addresses []string
	turn      uint64

	started, ended int
	results        chan result
	errs           []error // by address; nil: not tried, or not ended
}

type result struct {
	address int
	conn    net.Conn
	err     error
}

func (r *race) run(parent context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancel(parent)
	defer r.drain()
	defer cancel() // before drain, and of no effect on the connection that won
	next := time.NewTimer(attemptDelay)
	defer next.Stop()
	r.start(ctx)
	for r.ended < r.started {
		select {
		case <-next.C:
		case result := <-r.results:
			r.ended++
			if result.err == nil {
				return result.conn, nil
			}
			r.errs[result.address] = result.err
		}
		if r.started < len(r.addresses) && ctx.Err() == nil {
			r.start(ctx)
			next.Reset(attemptDelay)
		}
	}
	return nil, r.failure()
}

// start begins the next attempt.
func (r *race) start(ctx context.Context) {
	i := position(len(r.addresses), r.turn, r.started)
	r.started++
	go func() {
		conn, err := r.dial(ctx, "tcp", r.addresses[i])
		r.results <- result{i, conn, err}
	}()
}

// drain waits for the attempts that lost.
func (r *race) drain() {
	for ; r.ended < r.started; r.ended++ {
		if late := <-r.results; late.conn != nil {
			late.conn.Close()
		}
	}
}

// failure is the error of the attempts together. It does not depend on whose turn it was, lest the reason of a health check
// change with every probe: the first address's, but that this machine has no way to a family says least about the backend.
func (r *race) failure() error {
	var first error
	for _, err := range r.errs {
		if err == nil {
			continue
		}
		if first == nil {
			first = err
		}
		if !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return err
		}
	}
	return first
}

// position is which of n addresses is tried as the i-th, from 0, at a turn. The first moves on with each turn, the order of
// the others with each lap, so that all the turns of a dead address do not fall on its neighbour.
func position(n int, turn uint64, i int) int {
	size := uint64(n)
	first := turn % size
	if i == 0 {
		return int(first)
	}
	return int((first + 1 + (turn/size+uint64(i)-1)%(size-1)) % size)
}
