package main

import (
	"context"
	"time"
)

// reconnects are restarts of control.
type reconnects struct {
	Nodes  int              `json:"nodes"`
	Routes int              `json:"routes"`
	Rounds []reconnectRound `json:"rounds"`
}

// reconnectRound is one restart. Times begin when the new process was started.
type reconnectRound struct {
	Ready     time.Duration `json:"ready"`
	Connected time.Duration `json:"connected"` // the last node was welcomed
	Converged time.Duration `json:"converged"` // control says that all serve what is active
	CPU       time.Duration `json:"cpu"`       // control's, until then
	Peak      int64         `json:"peak"`      // control's memory, some seconds later
	// Control's, in each of those seconds, in which nodes said nothing but their Status.
	Rest time.Duration `json:"rest"`
}

// reconnectRoutes is how many routes the fleet serves that comes back.
const reconnectRoutes = 10_000

// settledTime follows a return, so that the peak of memory is behind it.
const settledTime = 5 * time.Second

// away is how long control is gone: long enough for the pauses of nodes to have grown.
const away = 2 * time.Second

// restarts is how often a control is restarted at most.
const restarts = 5

// measureReconnects kills a control whose fleet is connected, and starts it again.
func (b *bench) measureReconnects(ctx context.Context, r *report) error {
	c, err := b.startCluster(ctx, "reconnect")
	if err != nil {
		return err
	}
	defer c.close()
	result := &reconnects{Nodes: b.options.nodes[len(b.options.nodes)-1], Routes: min(reconnectRoutes, b.options.routes[len(b.options.routes)-1])}
	if err := c.grow(ctx, result.Nodes); err != nil {
		return err
	}
	if err := c.settle(ctx, document(result.Routes, 8000, "10.1.2.3", 8000)); err != nil {
		return err
	}
	for range min(b.options.rounds, restarts) {
		round, err := c.restart(ctx)
		if err != nil {
			return err
		}
		result.Rounds = append(result.Rounds, round)
		note("%d nodes came back: %+v", result.Nodes, round)
	}
	r.Reconnects = result
	return c.fleet.complaint()
}

func (c *cluster) restart(ctx context.Context) (round reconnectRound, err error) {
	c.control.kill()
	if err := pause(ctx, away); err != nil {
		return round, err
	}
	began := time.Now()
	if err := c.start(ctx); err != nil {
		return round, err
	}
	round.Ready = time.Since(began)
	if err := c.fleet.awaitConnected(ctx); err != nil {
		return round, err
	}
	round.Connected = time.Since(began)
	if err := c.converge(ctx); err != nil {
		return round, err
	}
	round.Converged = time.Since(began)
	if round.CPU, err = c.control.cpu(); err != nil {
		return round, err
	}
	if err := pause(ctx, settledTime); err != nil {
		return round, err
	}
	after, err := c.control.cpu()
	if err != nil {
		return round, err
	}
	round.Rest = time.Duration(float64(after-round.CPU) / settledTime.Seconds())
	round.Peak, err = c.control.peak()
	return round, err
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
