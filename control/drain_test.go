package control

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/fleettest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// drained is a node that can be drained.
type drained struct {
	fleettest.Node
	mu       sync.Mutex
	draining bool
	tunnels  uint64 // one fewer at each question
}

func drainable(t *testing.T, c *Control, names ...string) map[string]*drained {
	t.Helper()
	all := map[string]*drained{}
	for _, name := range names {
		n := &drained{Node: fleettest.Node{Name: name}}
		n.Answer = n.answer
		all[name] = n
		join(t, c, &n.Node)
	}
	return all
}

func (n *drained) answer(q *fleetv1.Question) *fleetv1.Answer {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch q.GetDrain().GetWhat() {
	case fleetv1.Drain_WHAT_BEGIN:
		n.draining = true
	case fleetv1.Drain_WHAT_END:
		n.draining = false
	case fleetv1.Drain_WHAT_ASK:
		n.tunnels = max(n.tunnels, 1) - 1
	}
	return &fleetv1.Answer{Load: &fleetv1.Load{Tunnels: n.tunnels, NoRoom: n.tunnels > 1}}
}

func (n *drained) drains() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.draining
}

func drain(c *Control, name string, change func(*operatorv1.DrainRequest)) ([]*operatorv1.DrainEvent, error) {
	m := &operatorv1.DrainRequest{Node: name, Deadline: durationpb.New(time.Minute)}
	if change != nil {
		change(m)
	}
	var events []*operatorv1.DrainEvent
	err := c.Drain(context.Background(), m, func(e *operatorv1.DrainEvent) error {
		events = append(events, e)
		return nil
	})
	return events, err
}

func TestDrainWaitsUntilNothingIsLeft(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	nodes := drainable(t, c, "n1", "n2")
	applied(t, c, document(1))
	nodes["n1"].tunnels = 2
	events, err := drain(c, "n1", nil)
	if err != nil || len(events) != 3 || events[0].GetTunnels() != 2 || !events[0].GetNoRoom() || events[1].GetTunnels() != 1 || events[1].GetNoRoom() || !events[2].GetDone() || events[2].GetTunnels() != 0 {
		t.Fatalf("got %v, %v", events, err)
	}
	if !nodes["n1"].drains() {
		t.Error("it was not told to")
	}
	if err := c.Undrain(t.Context(), "n1"); err != nil || nodes["n1"].drains() {
		t.Errorf("undrained: %v", err)
	}
	for _, force := range []bool{false, true} {
		_, err = drain(c, "n9", func(m *operatorv1.DrainRequest) { m.Force = force })
		errorIs(t, err, fleet.ErrNotConnected)
		if !strings.Contains(err.Error(), "none of that name is enrolled") {
			t.Errorf("of a node that there is not: %v", err)
		}
	}
	_, err = drain(c, "n1", func(m *operatorv1.DrainRequest) { m.Deadline = durationpb.New(-time.Second) })
	errorIs(t, err, ErrInvalid)
}

func TestDrainTellsWhatIsLeftAtTheDeadline(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	nodes := drainable(t, c, "n1", "n2")
	applied(t, c, document(1))
	c.drains.end = time.Nanosecond
	nodes["n1"].tunnels = 1000
	events, err := drain(c, "n1", func(m *operatorv1.DrainRequest) { m.Deadline = durationpb.New(0) })
	if last := events[len(events)-1]; err != nil || !last.GetDone() || last.GetTunnels() == 0 {
		t.Errorf("got %v, %v", events, err)
	}
}

func TestOneNodeInFourDrainsAndNeverTheLast(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	nodes := drainable(t, c, "n1", "n2", "n3")
	applied(t, c, document(1))
	detached := func(m *operatorv1.DrainRequest) { m.Detach = true }
	if _, err := drain(c, "n1", detached); err != nil {
		t.Fatal(err)
	}
	events, err := drain(c, "n2", detached)
	errorIs(t, err, ErrDrains)
	if len(events) != 1 || strings.Join(events[0].GetWaitingFor(), ",") != "n1" || nodes["n2"].drains() {
		t.Errorf("got %v", events)
	}
	if !strings.Contains(err.Error(), "node n2 is not drained: n1 drains already, until it is restarted or undrained") {
		t.Errorf("it says %q", err)
	}
	// It only gets another deadline.
	if _, err := drain(c, "n1", detached); err != nil {
		t.Error(err)
	}
	forced := func(m *operatorv1.DrainRequest) { m.Detach, m.Force = true, true }
	if _, err := drain(c, "n2", forced); err != nil {
		t.Error(err)
	}
	_, err = drain(c, "n3", detached)
	errorIs(t, err, ErrDrains)
	if !strings.Contains(err.Error(), "no other node serves") {
		t.Errorf("got %v", err)
	}
	// Who waits goes on when there is room.
	waits, told := make(chan error, 1), make(chan struct{}, 1)
	if err := c.Undrain(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	go func() {
		waits <- c.Drain(context.Background(), &operatorv1.DrainRequest{
			Node: "n3", Detach: true, Patience: durationpb.New(time.Minute),
		}, func(*operatorv1.DrainEvent) error {
			select {
			case told <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	<-told
	if err := c.Undrain(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	if err := <-waits; err != nil || !nodes["n3"].drains() {
		t.Errorf("got %v", err)
	}
}

func TestANodeTooOldToDrainSaysWhatItUnderstood(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	old := &fleettest.Node{Name: "n1", Answer: func(*fleetv1.Question) *fleetv1.Answer {
		return &fleetv1.Answer{Reason: "the request is empty"}
	}}
	join(t, c, old)
	_, err := drain(c, "n1", func(m *operatorv1.DrainRequest) { m.Force = true })
	if err == nil || !strings.Contains(err.Error(), "node n1 did not do it: the request is empty") {
		t.Errorf("got %v", err)
	}
}

func TestWhoNoLongerListensEndsTheCallAndNotTheDrain(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	nodes := drainable(t, c, "n1", "n2")
	applied(t, c, document(1))
	gone := errors.New("gone")
	nodes["n1"].tunnels = 5
	err := c.Drain(t.Context(), &operatorv1.DrainRequest{Node: "n1", Deadline: durationpb.New(time.Hour)}, func(*operatorv1.DrainEvent) error { return gone })
	errorIs(t, err, gone)
	if !nodes["n1"].drains() {
		t.Error("the drain was not begun")
	}
}

func TestADrainOfANodeThatGoesAwayTellsWhatWasLeft(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	nodes := drainable(t, c, "n1", "n2")
	applied(t, c, document(1))
	nodes["n1"].tunnels = 5
	err := c.Drain(t.Context(), &operatorv1.DrainRequest{Node: "n1", Deadline: durationpb.New(time.Hour)}, func(*operatorv1.DrainEvent) error {
		nodes["n1"].Close()
		eventually(t, "n1 has gone", func() bool { return !c.fleet.Connected("n1") })
		return nil
	})
	errorIs(t, err, fleet.ErrNotConnected)
	if !strings.Contains(err.Error(), "n1 had 0 requests and 5 WebSockets left") {
		t.Errorf("it says %q", err)
	}
}
