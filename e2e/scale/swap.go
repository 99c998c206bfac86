package main

import (
	"context"
	"errors"
	"time"
)

// swaps are bundles that a real node took while requests went through it.
type swaps struct {
	Routes int         `json:"routes"`
	Rounds []swapRound `json:"rounds"`
	// All requests that were under way at these times.
	Quiet latencies  `json:"quiet"` // nothing was applied
	Whole duringSwap `json:"whole"`
	One   duringSwap `json:"one_route"`
}

// swapRound is one apply.
type swapRound struct {
	// The bundle is new as a whole; otherwise one route of it is.
	Whole bool      `json:"whole"`
	Began time.Time `json:"began"`
	phases
	NodeCPU time.Duration `json:"node_cpu"`
}

// duringSwap are requests by what happened meanwhile.
type duringSwap struct {
	Reading   latencies `json:"reading"`   // control read the document
	Preparing latencies `json:"preparing"` // the bundle was sent, and the node prepared it
	Swapping  latencies `json:"swapping"`  // from then until swapTail after the swap
}

const (
	// quietTime is measured before every apply.
	quietTime = 2 * time.Second
	// swapTail is how long after the swap a request still counts to it: the old generation goes meanwhile.
	swapTail = time.Second
	// swapRounds is how often a whole bundle is sent at most.
	swapRounds = 8
)

// measureSwaps sends a large bundle to one real node that forwards a steady load.
func (b *bench) measureSwaps(ctx context.Context, r *report) error {
	// Where there are few cores, control must not take them from the node: it mostly is on another machine.
	c, err := b.startClusterBy(ctx, "swap", "nice", "-n", "19")
	if err != nil {
		return err
	}
	defer c.close()
	backend, err := b.startBackend()
	if err != nil {
		return err
	}
	defer backend.close()
	n, err := c.startRealNode(ctx, "real")
	if err != nil {
		return err
	}
	defer n.process.kill()
	small := document(1, backend.port, "127.0.0.1", backend.port)
	if _, _, err := c.operator.apply(ctx, small, time.Now()); err != nil {
		return err
	}
	if err := n.process.ready(ctx, n.admin); err != nil {
		return err
	}
	s := &swaps{Routes: b.options.routes[len(b.options.routes)-1]}
	load := startLoad("http://" + n.listen + "/service/000000")
	for i := range min(b.options.rounds, swapRounds) {
		if err = s.round(ctx, c, n, small, backend.port, i); err != nil {
			break
		}
	}
	samples, failure := load.stop()
	if err := errors.Join(err, failure); err != nil {
		return err
	}
	s.sort(samples)
	r.Swaps = s
	return nil
}

// round goes from one route to all of them, changes one, and goes back, which is not measured.
func (s *swaps) round(ctx context.Context, c *cluster, n *realNode, small []byte, port, i int) error {
	for change, what := range []string{"the whole bundle", "one route of it"} {
		if err := pause(ctx, quietTime); err != nil {
			return err
		}
		before, err := n.process.cpu()
		if err != nil {
			return err
		}
		round := swapRound{Whole: change == 0, Began: time.Now()}
		document := document(s.Routes, 33_000+2*i+change, "127.0.0.1", port)
		if round.phases, _, err = c.operator.apply(ctx, document, round.Began); err != nil {
			return err
		}
		if err := pause(ctx, swapTail); err != nil {
			return err
		}
		after, err := n.process.cpu()
		if err != nil {
			return err
		}
		round.NodeCPU = after - before
		s.Rounds = append(s.Rounds, round)
		note("%s of %d routes: %+v", what, s.Routes, round.phases)
	}
	_, _, err := c.operator.apply(ctx, small, time.Now())
	return err
}

// sort says of every request what happened while it was under way. One that saw two things counts to both.
func (s *swaps) sort(samples []sample) {
	for _, r := range s.Rounds {
		d := &s.One
		if r.Whole {
			d = &s.Whole
		}
		at := func(since time.Duration) time.Time { return r.Began.Add(since) }
		s.Quiet.add(samples, at(-quietTime), r.Began)
		d.Reading.add(samples, r.Began, at(r.Offered))
		d.Preparing.add(samples, at(r.Offered), at(r.Prepared))
		d.Swapping.add(samples, at(r.Prepared), at(r.Returned+swapTail))
	}
}
