package main

import (
	"context"
	"fmt"
	"time"
)

// applies is what was measured of a change of one route.
type applies struct {
	Nodes  int           `json:"nodes"`
	Routes int           `json:"routes"`
	Rounds []applyRound  `json:"rounds"`
	CPU    time.Duration `json:"cpu"` // control's, for each apply
	// What the document has, in bytes.
	Document int `json:"document_bytes"`
}

// applyRound is one apply.
type applyRound struct {
	phases
	// When the first node served it, and the last, since the apply was called.
	First     time.Duration `json:"first"`
	Committed time.Duration `json:"committed"`
	// What all nodes were sent.
	Bytes int64 `json:"bytes"`
}

// measureApplies changes one route again and again, with fleets and documents of every size.
func (b *bench) measureApplies(ctx context.Context, r *report) error {
	c, err := b.startCluster(ctx, "apply")
	if err != nil {
		return err
	}
	defer c.close()
	change := 0
	for _, nodes := range b.options.nodes {
		if err := c.grow(ctx, nodes); err != nil {
			return err
		}
		for _, routes := range b.options.routes {
			a, err := c.measureApplies(ctx, nodes, routes, &change)
			if err != nil {
				return fmt.Errorf("%d nodes, %d routes: %w", nodes, routes, err)
			}
			r.Applies = append(r.Applies, a)
		}
	}
	peak, err := c.control.peak()
	r.ApplyPeak = peak
	return err
}

// warmUp is how many applies come before those that are measured.
const warmUp = 2

func (c *cluster) measureApplies(ctx context.Context, nodes, routes int, change *int) (applies, error) {
	a := applies{Nodes: nodes, Routes: routes}
	next := func() []byte {
		*change++
		return document(routes, 10_000+*change%50_000, "10.1.2.3", 8000)
	}
	if err := c.settle(ctx, next()); err != nil {
		return a, err
	}
	for range warmUp {
		if _, err := c.applyOnce(ctx, next()); err != nil {
			return a, err
		}
	}
	before, err := c.control.cpu()
	if err != nil {
		return a, err
	}
	for range c.bench.options.rounds {
		d := next()
		a.Document = len(d)
		round, err := c.applyOnce(ctx, d)
		if err != nil {
			return a, err
		}
		a.Rounds = append(a.Rounds, round)
	}
	after, err := c.control.cpu()
	a.CPU = (after - before) / time.Duration(len(a.Rounds))
	note("%s", a)
	return a, err
}

// applyOnce applies a document that all connected nodes are to serve.
func (c *cluster) applyOnce(ctx context.Context, document []byte) (applyRound, error) {
	f := c.fleet
	f.forget()
	bytes, began := f.received.bytes.Load(), time.Now()
	p, _, err := c.operator.apply(ctx, document, began)
	if err != nil {
		return applyRound{}, err
	}
	round := applyRound{
		phases: p, Bytes: f.received.bytes.Load() - bytes,
		First: time.Unix(0, f.first.Load()).Sub(began), Committed: time.Unix(0, f.last.Load()).Sub(began),
	}
	return round, c.allServe()
}

// allServe is an error where a node does not serve the same as the first, or was sent something that did not prove true.
func (c *cluster) allServe() error {
	want, _ := c.fleet.nodes[0].serving()
	for _, n := range c.fleet.nodes {
		if have, _ := n.serving(); have.GetRevision() != want.GetRevision() {
			return fmt.Errorf("the apply has returned, and %s serves revision %d, %s revision %d",
				n.name, have.GetRevision(), c.fleet.nodes[0].name, want.GetRevision())
		}
	}
	return c.fleet.complaint()
}
