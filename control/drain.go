package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/journal"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// ErrDrains says that a drain would leave too few nodes; the error says which are gone already.
var ErrDrains = errors.New("--force drains it all the same")

// ErrUnwilling says that a node did not do what it was asked for.
var ErrUnwilling = errors.New("did not do it")

const (
	// drainShare is how many of the connected nodes may drain at a time, as a divisor: one in four, and always one. What
	// leaves a node comes to the others at once.
	drainShare = 4
	// drainWord is how long word of a drain may be on its way: a node says so with its next Status.
	drainWord = 5 * time.Second
	// drainLook is how often a node that drains is asked how far it is.
	drainLook = time.Second
	// drainEnd is what closing the last tunnels in order takes.
	drainEnd = 6 * time.Second
	// drainAnswer is how long it may take to say so.
	drainAnswer = 10 * time.Second
	// maxDrain bounds the deadline of a drain.
	maxDrain = 24 * time.Hour
)

// drains are those that were begun here and that status cannot know of yet. The zero value has none.
type drains struct {
	mu    sync.Mutex // held from looking who drains to having one more
	begun map[string]time.Time

	end time.Duration // for tests; 0: drainEnd
}

// Drain has a node send its clients elsewhere: see node.Drain. At most one in four connected nodes drains at a time, those
// that stop by themselves counted, and never the last that serves, unless it is forced; the others are waited for as long
// as the request's patience. tell is called with what happens, in the calling goroutine; its error ends the call, not the
// drain. It fails with [ErrDrains] or as [fleet.Fleet.Ask] does.
func (c *Control) Drain(ctx context.Context, m *operatorv1.DrainRequest, tell func(*operatorv1.DrainEvent) error) error {
	over := m.GetDeadline().AsDuration()
	if over < 0 || over > maxDrain {
		return fmt.Errorf("%w: the deadline %s of a drain is not between 0 and %s", ErrInvalid, over, maxDrain)
	}
	load, err := c.beginDrain(ctx, m, tell)
	if err != nil {
		return err
	}
	c.journal.Add(journal.NodeDraining, m.GetNode(), fmt.Sprintf("%d WebSockets and other tunnels are ended over %s", load.GetTunnels(), over))
	if m.GetDetach() {
		return tell(drainEvent(load, true))
	}
	return c.followDrain(ctx, m.GetNode(), load, over, tell)
}

// beginDrain waits until there is room, and asks the node.
func (c *Control) beginDrain(ctx context.Context, m *operatorv1.DrainRequest, tell func(*operatorv1.DrainEvent) error) (*fleetv1.Load, error) {
	patience, cancel := context.WithTimeout(ctx, m.GetPatience().AsDuration())
	defer cancel()
	changed, stop := c.fleet.Watch()
	defer stop()
	tick := time.NewTicker(drainLook) // what was only begun is forgotten in time
	defer tick.Stop()
	var told []string
	for {
		load, others, err := c.tryDrain(ctx, m)
		if err != nil || others == nil {
			return load, err
		}
		if !slices.Equal(told, others) {
			told = others
			if err := tell(&operatorv1.DrainEvent{WaitingFor: others}); err != nil {
				return nil, err
			}
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-patience.Done():
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, fmt.Errorf("node %s is not drained: %s, and with this many nodes no more do at a time: %w", m.GetNode(), drainAlready(others), ErrDrains)
		}
	}
}

// drainAlready names nodes, and says what ends it: that they have no clients left does not.
func drainAlready(nodes []string) string {
	if len(nodes) == 1 {
		return nodes[0] + " drains already, until it is restarted or undrained"
	}
	return strings.Join(nodes, ", ") + " drain already, until they are restarted or undrained"
}

// tryDrain asks the node if there is room; others are those that take it.
func (c *Control) tryDrain(ctx context.Context, m *operatorv1.DrainRequest) (load *fleetv1.Load, others []string, err error) {
	c.drains.mu.Lock()
	defer c.drains.mu.Unlock()
	if !m.GetForce() {
		if others, err = c.roomToDrain(m.GetNode()); err != nil || others != nil {
			return nil, others, err
		}
	}
	load, err = c.askDrain(ctx, m.GetNode(), &fleetv1.Drain{What: fleetv1.Drain_WHAT_BEGIN, Over: m.GetDeadline()})
	if err == nil {
		if c.drains.begun == nil {
			c.drains.begun = map[string]time.Time{}
		}
		c.drains.begun[m.GetNode()] = c.options.Now()
	}
	return load, nil, err
}

// roomToDrain gives the nodes that drain already where they are as many as may, and an error where the node is not there or
// nobody else serves.
// The caller holds drains.mu.
func (c *Control) roomToDrain(name string) (others []string, err error) {
	connected, serving, there := 0, 0, false
	for _, n := range c.fleet.Nodes() {
		if !n.Connected {
			continue
		}
		connected++
		begun, known := c.drains.begun[n.Name]
		if known && c.options.Now().Sub(begun) > drainWord {
			delete(c.drains.begun, n.Name)
			known = false
		}
		switch {
		case n.Name == name && n.Draining:
			return nil, nil // it only gets another deadline
		case n.Name == name:
			there = true
		case n.Draining || known:
			others = append(others, n.Name)
		case n.Applied != nil:
			serving++
		}
	}
	switch {
	case !there:
		return nil, c.orStranger(name, fmt.Errorf("node %s %w", name, fleet.ErrNotConnected))
	case serving == 0:
		return nil, fmt.Errorf("node %s is not drained: no other node serves, so that its clients could not go anywhere: %w", name, ErrDrains)
	case len(others) < max(1, connected/drainShare):
		return nil, nil
	}
	return others, nil
}

// followDrain tells how far the node is until nothing is left or its time is over.
func (c *Control) followDrain(ctx context.Context, name string, load *fleetv1.Load, over time.Duration, tell func(*operatorv1.DrainEvent) error) error {
	end := time.NewTimer(over + cmp.Or(c.drains.end, drainEnd))
	defer end.Stop()
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	for {
		if load.GetRequests() == 0 && load.GetTunnels() == 0 {
			return tell(drainEvent(load, true))
		}
		if err := tell(drainEvent(load, false)); err != nil {
			return err
		}
		last := false
		select {
		case <-tick.C:
		case <-end.C:
			last = true
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		now, err := c.askDrain(ctx, name, &fleetv1.Drain{What: fleetv1.Drain_WHAT_ASK})
		if err != nil {
			return fmt.Errorf("%s had %d requests and %d WebSockets left when it was last asked: %w", name, load.GetRequests(), load.GetTunnels(), err)
		}
		load = now
		if last {
			return tell(drainEvent(load, true))
		}
	}
}

func drainEvent(load *fleetv1.Load, done bool) *operatorv1.DrainEvent {
	return &operatorv1.DrainEvent{Requests: load.GetRequests(), Tunnels: load.GetTunnels(), NoRoom: load.GetNoRoom(), Done: done}
}

// Undrain has a node take clients again. It fails as [fleet.Fleet.Ask] does.
func (c *Control) Undrain(ctx context.Context, name string) error {
	c.drains.mu.Lock()
	defer c.drains.mu.Unlock()
	if _, err := c.askDrain(ctx, name, &fleetv1.Drain{What: fleetv1.Drain_WHAT_END}); err != nil {
		return err
	}
	delete(c.drains.begun, name)
	c.journal.Add(journal.NodeUndrained, name, "")
	return nil
}

func (c *Control) askDrain(ctx context.Context, name string, m *fleetv1.Drain) (*fleetv1.Load, error) {
	ctx, cancel := context.WithTimeout(ctx, drainAnswer)
	defer cancel()
	answer, err := c.fleet.Ask(ctx, name, &fleetv1.Question{Drain: m})
	switch {
	case err != nil:
		return nil, c.orStranger(name, err)
	case answer.GetLoad() == nil:
		// A node of an older version takes it for a question about a request.
		return nil, fmt.Errorf("node %s %w: %s", name, ErrUnwilling, answer.GetReason())
	}
	return answer.GetLoad(), nil
}
