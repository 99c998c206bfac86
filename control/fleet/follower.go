package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/rollout"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	replicav1 "github.com/pyserve/pyserve/proto/pyserve/replica/v1"
)

const (
	// attendInterval is how often a follower says that it is there.
	attendInterval = time.Second
	// askTime bounds a question of the leader, whose own patience is shorter.
	askTime = 30 * time.Second
	// reportPause is between two looks at what all nodes do, however often one of them does something.
	reportPause = 5 * time.Millisecond
)

// LeaderStream is a follower's stream to the control that leads; generated gRPC code provides it.
type LeaderStream interface {
	Send(*replicav1.FromFollower) error
	Recv() (*replicav1.FromLeader, error)
}

// Follow reports this control's nodes to the one that leads, and has them prepare what that proposes, until the stream
// breaks or ctx ends; whoever opened the stream ends it then. applied gives the last entry of the log that is held here.
func (f *Fleet) Follow(ctx context.Context, serverID string, applied func() uint64, stream LeaderStream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // questions that are still under way
	a := &attendance{ctx: ctx, answers: make(chan *replicav1.Answered), fleet: f, id: serverID, applied: applied, stream: stream, told: map[string]*replicav1.NodeReport{}}
	received, failed, stop := make(chan *replicav1.FromLeader), make(chan error, 1), make(chan struct{})
	defer close(stop)
	if !f.start(func() { a.receive(received, failed, stop) }) {
		return ErrClosed
	}
	defer a.withdraw()
	return a.run(ctx, received, failed)
}

// attendance is the follower's side of the stream, driven by one goroutine.
type attendance struct {
	ctx      context.Context
	answers  chan *replicav1.Answered
	fleet    *Fleet
	id       string
	applied  func() uint64
	stream   LeaderStream
	told     map[string]*replicav1.NodeReport // what the leader knows
	coming   *coming                          // what is still coming in, or waits for its base
	proposed *Target                          // what this control's nodes were asked to prepare
	nonce    uint64                           // of proposed
}

// coming is a proposal that is not complete, or whose base has not come yet.
type coming struct {
	head  *fleetv1.Offer
	delta bundle.Delta
	size  int
	whole bool // every part is here
}

func (a *attendance) receive(received chan<- *replicav1.FromLeader, failed chan<- error, stop <-chan struct{}) {
	for {
		m, err := a.stream.Recv()
		if err != nil {
			failed <- err
			return
		}
		select {
		case received <- m:
		case <-stop:
			return
		}
	}
}

func (a *attendance) run(ctx context.Context, received <-chan *replicav1.FromLeader, failed <-chan error) error {
	changed, unwatch := a.fleet.Watch()
	defer unwatch()
	if err := a.attend(false); err != nil {
		return err
	}
	if err := a.report(); err != nil {
		return err
	}
	if err := a.attend(true); err != nil {
		return err
	}
	ticker := time.NewTicker(attendInterval)
	defer ticker.Stop()
	watched := changed
	var pause <-chan time.Time
	for {
		var err error
		select {
		case m := <-received:
			if err = a.handle(m); err == nil {
				a.propose()
			}
		case <-watched:
			a.propose() // its base may have come
			err = a.report()
			watched, pause = nil, time.After(reportPause)
		case <-pause:
			watched, pause = changed, nil
		case <-ticker.C:
			if err = a.attend(true); err == nil {
				err = a.report() // that a node says nothing any more signals nobody
			}
		case m := <-a.answers:
			err = a.stream.Send(&replicav1.FromFollower{Message: &replicav1.FromFollower_Answered{Answered: m}})
		case err = <-failed:
		case <-a.fleet.Closed():
			return ErrClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
}

func (a *attendance) attend(complete bool) error {
	return a.stream.Send(&replicav1.FromFollower{Message: &replicav1.FromFollower_Attendance{Attendance: &replicav1.Attendance{
		ServerId: a.id, AppliedIndex: a.applied(), Complete: complete,
		GossipKeys: a.fleet.digest(),
	}}})
}

// report tells what has changed since it was told last.
func (a *attendance) report() error {
	reports := a.fleet.reports(a.proposed, a.nonce)
	known := make(map[string]bool, len(reports))
	for _, r := range reports {
		known[r.GetName()] = true
	}
	for name := range a.told {
		if !known[name] {
			reports = append(reports, &replicav1.NodeReport{Name: name, Forgotten: true})
		}
	}
	for _, r := range reports {
		if proto.Equal(a.told[r.GetName()], r) {
			continue
		}
		a.told[r.GetName()] = r
		if r.GetForgotten() {
			delete(a.told, r.GetName())
		}
		if err := a.stream.Send(&replicav1.FromFollower{Message: &replicav1.FromFollower_Node{Node: r}}); err != nil {
			return err
		}
	}
	return nil
}

func (a *attendance) handle(m *replicav1.FromLeader) error {
	switch m := m.GetMessage().(type) {
	case *replicav1.FromLeader_Offer:
		a.withdraw()
		a.coming = &coming{head: m.Offer}
	case *replicav1.FromLeader_Part:
		return a.part(m.Part)
	case *replicav1.FromLeader_Abort:
		if a.nonce == m.Abort.GetNonce() || a.coming != nil && a.coming.head.GetNonce() == m.Abort.GetNonce() {
			a.withdraw()
		}
	case *replicav1.FromLeader_EndNode:
		a.fleet.endNode(m.EndNode)
	case *replicav1.FromLeader_Asked:
		a.ask(m.Asked)
	}
	return nil
}

// ask puts the leader's question to a node, and lets run send the answer.
func (a *attendance) ask(m *replicav1.Asked) {
	a.fleet.start(func() {
		ctx, cancel := context.WithTimeout(a.ctx, askTime)
		defer cancel()
		answered := &replicav1.Answered{Id: m.GetId()}
		answer, err := a.fleet.Ask(ctx, m.GetNode(), m.GetQuestion())
		if err != nil {
			answered.Failure = err.Error()
		}
		answered.Answer = answer
		select {
		case a.answers <- answered:
		case <-a.ctx.Done():
		}
	})
}

func (a *attendance) part(m *fleetv1.OfferPart) error {
	c := a.coming
	if c == nil || c.whole || c.head.GetNonce() != m.GetNonce() {
		return nil // of a proposal that a newer one has replaced
	}
	for _, r := range m.GetRemoved() {
		c.delta.Removed = append(c.delta.Removed, bundle.Key{Kind: config.Kind(r.GetKind()), Name: r.GetName()})
		c.size += len(r.GetName())
	}
	for _, r := range m.GetUpserted() {
		key := bundle.Key{Kind: config.Kind(r.GetKind()), Name: r.GetName()}
		c.delta.Upserted = append(c.delta.Upserted, bundle.Resource{Key: key, Body: r.GetBody()})
		c.size += len(r.GetName()) + len(r.GetBody())
	}
	if c.size > bundle.MaxBytes || len(c.delta.Upserted)+len(c.delta.Removed) > 2*bundle.MaxResources {
		return fmt.Errorf("the leader proposes a bundle larger than %d MiB", bundle.MaxBytes>>20)
	}
	c.whole = m.GetLast()
	return nil
}

// propose has the nodes prepare what came in whole, once what it is a delta against has come by the log.
func (a *attendance) propose() {
	c := a.coming
	if c == nil || !c.whole {
		return
	}
	var base *bundle.Bundle
	if digest := c.head.GetBaseDigest(); len(digest) > 0 {
		parsed, err := bundle.ParseDigest(digest)
		if err != nil {
			a.coming = nil
			return
		}
		if base = a.fleet.holding(parsed); base == nil {
			return
		}
		c.delta.Base = parsed
	}
	a.coming = nil
	b, err := c.delta.Apply(base)
	if err == nil {
		if want, parseErr := bundle.ParseDigest(c.head.GetRelease().GetDigest()); parseErr != nil || b.Digest() != want {
			err = errors.New("its digest is another")
		}
	}
	if err != nil {
		a.fleet.options.Logger.Error("cannot make the bundle that the leader proposes", "revision", c.head.GetRelease().GetRevision(), "error", err)
		return // its nodes do not answer in time, and the apply ends
	}
	t := &Target{Release: c.head.GetRelease(), Bundle: b}
	if target := a.fleet.Target(); target != nil && !newer(t.Release, target.Release) {
		return // it was committed before it came
	}
	a.fleet.Propose(t)
	a.proposed, a.nonce = t, c.head.GetNonce()
}

// withdraw takes back what the nodes were asked to prepare.
func (a *attendance) withdraw() {
	if a.proposed != nil {
		a.fleet.Withdraw(a.proposed)
	}
	a.coming, a.proposed, a.nonce = nil, nil, 0
}

// holding gives the bundle of a digest, if it is one that deltas can be made against.
func (f *Fleet) holding(digest bundle.Digest) *bundle.Bundle {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.base(&fleetv1.Release{Digest: digest[:]})
}

// endNode ends the stream of a node that is connected to another control.
func (f *Fleet) endNode(m *replicav1.EndNode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocal(m.GetName(), m.GetBootId(), m.GetTwice())
}

// endLocal ends a session here. The caller holds mu.
func (f *Fleet) endLocal(name, bootID string, twice bool) {
	s := f.sessions[name]
	switch {
	case s == nil || s.bootID != bootID:
	case twice:
		s.end(ErrTwice)
	default:
		s.end(ErrReplaced)
	}
}

var proposalStates = map[rollout.State]replicav1.ProposalState{
	rollout.Offered:  replicav1.ProposalState_PROPOSAL_STATE_OFFERED,
	rollout.Prepared: replicav1.ProposalState_PROPOSAL_STATE_PREPARED,
	rollout.Refused:  replicav1.ProposalState_PROPOSAL_STATE_REFUSED,
}

// reports gives what is known of every node that is or was connected to this control.
func (f *Fleet) reports(proposed *Target, nonce uint64) []*replicav1.NodeReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]*replicav1.NodeReport, 0, len(f.sessions)+len(f.gone))
	for _, n := range f.gone {
		out = append(out, reportOf(n))
	}
	for _, s := range f.sessions {
		r := reportOf(f.view(s))
		r.BootId, r.Silent = s.bootID, f.silent(s)
		if proposed != nil && f.proposed == proposed {
			r.Proposal = nonce
			r.State = f.proposalState(s, proposed)
		}
		out = append(out, r)
	}
	return out
}

// proposalState says how far a node is with what was proposed. The caller holds mu.
func (f *Fleet) proposalState(s *session, t *Target) replicav1.ProposalState {
	switch {
	case f.invited[s.name] != s:
		return replicav1.ProposalState_PROPOSAL_STATE_UNSPECIFIED
	case s.refused != nil && s.refused.target == t:
		return replicav1.ProposalState_PROPOSAL_STATE_REFUSED
	case s.offer != nil && s.offer.target == t:
		return proposalStates[s.offer.state]
	}
	return replicav1.ProposalState_PROPOSAL_STATE_OFFERED
}

func reportOf(n Node) *replicav1.NodeReport {
	return &replicav1.NodeReport{
		Name: n.Name, Connected: n.Connected, Left: n.Left, Since: timestamppb.New(n.Since), Version: n.Version,
		Applied: n.Applied, Listen: n.Listen, Gossip: n.Gossip, Draining: n.Draining,
		Refused: n.Refused, Rejected: n.Rejected, Refusals: n.Refusals, Authority: n.Authority, Notes: n.Notes,
		GossipKeys: n.GossipKeys,
	}
}

func nodeOf(r *replicav1.NodeReport) Node {
	return Node{
		Name: r.GetName(), Connected: r.GetConnected(), Left: r.GetLeft(), Since: r.GetSince().AsTime(), Version: r.GetVersion(),
		Applied: r.GetApplied(), Listen: r.GetListen(), Gossip: r.GetGossip(), Draining: r.GetDraining(),
		Refused: r.GetRefused(), Rejected: r.GetRejected(), Refusals: r.GetRefusals(),
		Authority: r.GetAuthority(), Notes: r.GetNotes(), GossipKeys: keysDigest(r.GetGossipKeys()),
	}
}
