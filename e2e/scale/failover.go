package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// failovers are changes of the control that leads, of three.
type failovers struct {
	Nodes int `json:"nodes"`
	// From kill -9 of the leader, and from its SIGTERM, until another has accepted a write: prepared by every node, and
	// stored by most of the controls.
	Killed []time.Duration `json:"killed"`
	Handed []time.Duration `json:"handed"`
	// Written counts the writes that were accepted: those, and as many that were under way when the leader went, and were
	// made again with the same request id. Of them, Lost are not in the history, and Twice are in it more than once.
	Written int `json:"written"`
	Lost    int `json:"lost"`
	Twice   int `json:"twice"`
}

// write is what is applied. The message is its own; a write that is made again has the same id.
type write struct {
	text    []byte
	message string
	id      [16]byte
}

func newWrite(message string, middle int) write {
	w := write{text: document(failoverRoutes, middle, "10.1.2.3", 8000), message: message}
	rand.Read(w.id[:])
	return w
}

// flightTime is how long before the leader goes a write to it begins, at most.
const flightTime = 20 * time.Millisecond

// failoverRoutes is how many routes the documents have.
const failoverRoutes = 10

// replica is one of three controls.
type replica struct {
	*cluster
	name string
}

// measureFailovers kills leaders under writes, and has others hand over.
func (b *bench) measureFailovers(ctx context.Context, r *report) error {
	first, err := b.startCluster(ctx, "failover")
	if err != nil {
		return err
	}
	controls := []*replica{{first, "c1"}}
	defer func() {
		for _, c := range controls {
			c.close()
		}
	}()
	result := &failovers{Nodes: b.options.nodes[0]}
	if err := first.grow(ctx, result.Nodes); err != nil {
		return err
	}
	for _, name := range []string{"c2", "c3"} {
		c, err := first.join(ctx, name)
		if err != nil {
			return err
		}
		controls = append(controls, &replica{c, name})
		first.fleet.addresses = append(first.fleet.addresses, c.fleet.addresses...)
	}
	if err := first.settle(ctx, document(failoverRoutes, 8000, "10.1.2.3", 8000)); err != nil {
		return err
	}
	for i := range 2 * b.options.rounds {
		killed := i%2 == 0
		took, err := failover(ctx, controls, i, killed)
		if err != nil {
			return err
		}
		if killed {
			result.Killed = append(result.Killed, took)
		} else {
			result.Handed = append(result.Handed, took)
		}
		note("another control accepted a write %s ms after the leader %s", ms(took), map[bool]string{true: "was killed", false: "was told to stop"}[killed])
	}
	leader, err := complete(ctx, controls)
	if err != nil {
		return err
	}
	r.Failovers = result
	return result.check(ctx, leader.operator, 2*b.options.rounds)
}

// check looks every accepted write up in the history.
func (f *failovers) check(ctx context.Context, o *operator, rounds int) error {
	stream, err := o.client.ListRevisions(ctx, &operatorv1.ListRevisionsRequest{})
	if err != nil {
		return err
	}
	times := map[string]int{}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, r := range m.GetRevisions() {
			times[r.GetMessage()]++
		}
	}
	for round := range rounds {
		for _, message := range []string{underWay(round), afterwards(round)} {
			f.Written++
			switch n := times[message]; {
			case n == 0:
				f.Lost++
			case n > 1:
				f.Twice++
			}
		}
	}
	return nil
}

func underWay(round int) string   { return fmt.Sprintf("round %d, under way", round) }
func afterwards(round int) string { return fmt.Sprintf("round %d, afterwards", round) }

// join starts a further control.
func (c *cluster) join(ctx context.Context, name string) (_ *cluster, err error) {
	next := &cluster{bench: c.bench, dir: c.dir}
	defer func() {
		if err != nil {
			next.close()
		}
	}()
	next.args = []string{c.bench.pyserve, "control", "--data-dir", filepath.Join(c.dir, name), "--name", name}
	var addresses []string
	for _, flag := range []string{"--listen", "--admin", "--gossip", "--raft"} {
		address, err := c.bench.ports.take()
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, address)
		next.args = append(next.args, flag, address)
	}
	next.args = append(next.args, "--join", c.fleet.addresses[0], "--token-file", filepath.Join(c.data(), "control-token"))
	next.admin, next.fleet = addresses[1], &lightFleet{addresses: addresses[:1], shelf: &shelf{}}
	if next.control, err = start(c.dir, name, next.args...); err != nil {
		return nil, err
	}
	if err := next.control.ready(ctx, next.admin); err != nil {
		return nil, err
	}
	admin, err := c.context()
	if err != nil {
		return nil, err
	}
	next.operator, err = newOperator(admin, addresses[0])
	return next, err
}

// failover ends the control that leads, measures, and has everything as before.
func failover(ctx context.Context, controls []*replica, round int, kill bool) (time.Duration, error) {
	leader, err := complete(ctx, controls)
	if err != nil {
		return 0, err
	}
	var others []*replica
	for _, c := range controls {
		if c != leader {
			others = append(others, c)
		}
	}
	flying, next := newWrite(underWay(round), 20_001+round), newWrite(afterwards(round), 8001+round)
	landed := make(chan struct{})
	go func() {
		defer close(landed)
		leader.operator.store(ctx, flying) // whatever it says: it is made again below
	}()
	defer func() { <-landed }() // its leader has ended, or its time is up
	if err := pause(ctx, mathrand.N(flightTime)); err != nil {
		return 0, err
	}
	began := time.Now()
	if kill {
		leader.control.kill()
	} else if err := leader.control.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	if err := acceptedElsewhere(ctx, others, leader.name, next); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if err := acceptedElsewhere(ctx, others, leader.name, flying); err != nil {
		return 0, err
	}
	select {
	case <-leader.control.ended:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if leader.control, err = start(leader.dir, leader.name, leader.args...); err != nil {
		return 0, err
	}
	return took, leader.control.ready(ctx, leader.admin)
}

// acceptedElsewhere makes a write, by one control after the other, until one that is not the old leader's has been
// accepted while another leads.
func acceptedElsewhere(ctx context.Context, controls []*replica, old string, w write) error {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		c := controls[attempt%len(controls)]
		led, err := c.operator.leader(ctx)
		if err != nil || led == "" || led == old {
			if err := pause(ctx, time.Millisecond); err != nil {
				return err
			}
			continue
		}
		switch err := c.operator.store(ctx, w); {
		case err == nil:
			return nil
		case errors.Is(err, errRefused):
			return err
		}
	}
	return context.Cause(ctx)
}

// complete waits until all controls are there and have caught up, and gives the one that leads.
func complete(ctx context.Context, controls []*replica) (leader *replica, err error) {
	err = poll(ctx, 20*time.Millisecond, func() (bool, error) {
		m, err := controls[0].operator.client.ListControls(ctx, &operatorv1.ListControlsRequest{})
		if err != nil {
			return false, nil // it is starting
		}
		leader = nil
		ready := 0
		for _, row := range m.GetControls() {
			if row.GetReachable() && row.GetVoter() && row.GetLag() == 0 {
				ready++
			}
			for _, c := range controls {
				if row.GetRole() == "leader" && row.GetName() == c.name {
					leader = c
				}
			}
		}
		if leader == nil || ready < len(controls) {
			return false, nil
		}
		return leader.operator.converged(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("all controls are to be there: %w", err)
	}
	return leader, nil
}

// leader names the control that leads, as the one that is asked knows it.
func (o *operator) leader(ctx context.Context) (string, error) {
	m, err := o.client.ListControls(ctx, &operatorv1.ListControlsRequest{Local: true})
	if err != nil {
		return "", err
	}
	for _, row := range m.GetControls() {
		if row.GetRole() == "leader" {
			return row.GetName(), nil
		}
	}
	return "", nil
}

// errRefused says that a write was decided, and not as it should be.
var errRefused = errors.New("the write was refused")

// store has control accept a write: every connected node could serve it, and it is stored.
func (o *operator) store(ctx context.Context, w write) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stream, err := o.client.Apply(ctx)
	if err != nil {
		return err
	}
	for _, m := range []*operatorv1.ApplyRequest{
		{Message: &operatorv1.ApplyRequest_Options{Options: &operatorv1.ApplyOptions{
			Detach: true, Timeout: durationpb.New(5 * time.Second), Message: w.message, RequestId: w.id[:],
		}}},
		{Message: &operatorv1.ApplyRequest_Part{Part: &operatorv1.FilePart{Data: w.text}}},
	} {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		event, err := stream.Recv()
		if err != nil {
			return err
		}
		if r := event.GetResult(); r != nil {
			// Applied: it was stored when it was made before, and another has followed since.
			if r.GetOutcome() != operatorv1.ApplyOutcome_APPLY_OUTCOME_DETACHED && r.GetOutcome() != operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED {
				return fmt.Errorf("%w: %s: %s", errRefused, r.GetOutcome(), r.GetReason())
			}
			return nil
		}
	}
}
