package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/journal"
	"github.com/pyserve/pyserve/control/rollout"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	replicav1 "github.com/pyserve/pyserve/proto/pyserve/replica/v1"
)

// Errors that end a follower's stream.
var (
	// ErrAttendance ends a stream that does not begin as it must.
	ErrAttendance = errors.New("a follower's stream begins with its attendance")
	// ErrSuperseded ends a stream when its follower opens another.
	ErrSuperseded = errors.New("the control opened a newer stream")
	// ErrDismissed ends every follower's stream when this control no longer leads.
	ErrDismissed = errors.New("this control no longer leads")
)

// maxReported bounds what one follower makes the leader remember.
const maxReported = 100_000

// FollowerStream is one follower's; generated gRPC code provides it.
type FollowerStream interface {
	Context() context.Context
	Send(*replicav1.FromLeader) error
	Recv() (*replicav1.FromFollower, error)
}

// Follower is what is known of a control that attends.
type Follower struct {
	ID string
	// Applied is the last entry of the log that it said to hold.
	Applied uint64
	// Complete says that it has told of all its nodes.
	Complete bool
	// GossipKeys is the digest of the keys of gossip that it uses and tells its nodes; nil: not said.
	GossipKeys []byte
}

// follower is the leader's side of a stream. All but the first group is guarded by the fleet's mu.
type follower struct {
	id     string
	name   string
	stream FollowerStream
	wake   chan struct{} // capacity 1
	ctx    context.Context
	end    context.CancelCauseFunc

	applied  uint64
	complete bool
	keys     []byte // the digest of those of gossip that it uses
	nodes    map[string]*remote
	sent     *Target // the proposal that was sent; nil: none is out
	nonce    uint64  // of sent
	ending   []*replicav1.EndNode
	asking   []*replicav1.Asked
	// questions are those that await their answers, by id.
	questions map[uint64]chan *replicav1.Answered
}

// remote is a node as its follower reports it.
type remote struct {
	report  *replicav1.NodeReport
	arrived uint64 // orders streams of one node by when this control heard of them
}

// ServeFollower runs one follower's stream until it ends. name is what the follower's certificate says.
func (f *Fleet) ServeFollower(name string, stream FollowerStream) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetAttendance().GetServerId() == "" {
		return ErrAttendance
	}
	ctx, end := context.WithCancelCause(stream.Context())
	fl := &follower{
		id: first.GetAttendance().GetServerId(), name: name, stream: stream, ctx: ctx, end: end,
		wake: make(chan struct{}, 1), nodes: map[string]*remote{},
		questions: map[uint64]chan *replicav1.Answered{},
	}
	if err := f.enlist(fl); err != nil {
		end(err)
		return err
	}
	f.options.Logger.Info("control attends", "control", name)
	<-ctx.Done()
	f.dismiss(fl)
	err = context.Cause(ctx)
	f.options.Logger.Info("control no longer attends", "control", name, "reason", err)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (f *Fleet) enlist(fl *follower) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.isClosed() {
		return ErrClosed
	}
	if old := f.followers[fl.id]; old != nil {
		old.end(ErrSuperseded)
		f.abandon(old)
	}
	f.followers[fl.id] = fl
	f.options.Journal.Add(journal.ControlConnected, fl.name, "it follows this control")
	f.group.Go(func() { fl.end(f.instruct(fl)) })
	f.group.Go(func() { fl.end(f.hear(fl)) })
	fl.wakeUp()
	f.notify()
	return nil
}

func (f *Fleet) dismiss(fl *follower) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.followers[fl.id] == fl {
		delete(f.followers, fl.id)
		f.abandon(fl)
		f.options.Journal.Add(journal.ControlGone, fl.name, "its stream is gone: "+context.Cause(fl.ctx).Error())
		f.notify()
	}
}

// abandon keeps the nodes of a follower whose stream has ended as nodes that are away. The caller holds mu.
func (f *Fleet) abandon(fl *follower) {
	for name, r := range fl.nodes {
		n := nodeOf(r.report)
		if n.Connected {
			n.Connected, n.Since, n.Lost = false, f.options.Now(), fl.name
		}
		if known, ok := f.gone[name]; !ok || known.Since.Before(n.Since) {
			f.gone[name] = n
		}
	}
	clear(fl.nodes)
}

// DismissFollowers ends every follower's stream, and forgets what they said: this control no longer leads.
func (f *Fleet) DismissFollowers() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, fl := range f.followers {
		fl.end(ErrDismissed)
		delete(f.followers, id)
	}
	f.notify()
}

// Followers gives the controls that attend, by id.
func (f *Fleet) Followers() []Follower {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Follower, 0, len(f.followers))
	for _, id := range slices.Sorted(maps.Keys(f.followers)) {
		fl := f.followers[id]
		out = append(out, Follower{ID: id, Applied: fl.applied, Complete: fl.complete, GossipKeys: fl.keys})
	}
	return out
}

func (fl *follower) wakeUp() {
	select {
	case fl.wake <- struct{}{}:
	default:
	}
}

// hear takes in what the follower says.
func (f *Fleet) hear(fl *follower) error {
	for {
		m, err := fl.stream.Recv()
		if err != nil {
			return err
		}
		f.mu.Lock()
		switch m := m.GetMessage().(type) {
		case *replicav1.FromFollower_Attendance:
			fl.applied = m.Attendance.GetAppliedIndex()
			fl.complete = fl.complete || m.Attendance.GetComplete()
			fl.keys = keysDigest(m.Attendance.GetGossipKeys())
		case *replicav1.FromFollower_Node:
			f.reported(fl, m.Node)
		case *replicav1.FromFollower_Answered:
			if asked := fl.questions[m.Answered.GetId()]; asked != nil {
				delete(fl.questions, m.Answered.GetId())
				asked <- m.Answered
			}
		}
		f.notify()
		f.mu.Unlock()
	}
}

// reported takes a report in. Where the node is connected to another control as well, the newer stream counts. The
// caller holds mu.
func (f *Fleet) reported(fl *follower, r *replicav1.NodeReport) {
	if f.followers[fl.id] != fl || fl.nodes[r.GetName()] == nil && len(fl.nodes) >= maxReported {
		return
	}
	if r.GetForgotten() {
		delete(fl.nodes, r.GetName())
		return
	}
	old := fl.nodes[r.GetName()]
	next := &remote{report: r}
	if old != nil {
		next.arrived = old.arrived
	}
	came := r.GetConnected() && (old == nil || !old.report.GetConnected() || old.report.GetBootId() != r.GetBootId() || !old.report.GetSince().AsTime().Equal(r.GetSince().AsTime()))
	if came {
		f.arrivals++
		next.arrived = f.arrivals
	}
	fl.nodes[r.GetName()] = next
	if fl.complete { // before, it tells what has been
		f.tellReported(fl, old, r, came)
	}
	if came {
		f.settleTwice(fl, r)
	}
}

// tellReported writes down what a follower's node did. The caller holds mu.
func (f *Fleet) tellReported(fl *follower, old *remote, r *replicav1.NodeReport, came bool) {
	name := r.GetName()
	switch {
	case came:
		f.options.Journal.Add(journal.NodeConnected, name, fmt.Sprintf("to control %s, version %s, serving revision %d", fl.name, r.GetVersion(), r.GetApplied().GetRevision()))
	case old == nil || !old.report.GetConnected():
	case !r.GetConnected() && r.GetLeft():
		f.options.Journal.Add(journal.NodeLeft, name, "it stopped on purpose")
	case !r.GetConnected():
		f.options.Journal.Add(journal.NodeDisconnected, name, "its stream to control "+fl.name+" is gone")
	case r.GetRefused() != 0 && r.GetRefused() != old.report.GetRefused():
		f.options.Journal.Add(journal.NodeRefused, name, fmt.Sprintf("revision %d: %s", r.GetRefused(), describeRefusals(r.GetRefusals())))
	}
}

// settleTwice ends one of two streams of a node, where another control, or this one, has one too: the older, where one
// process opened both or it is silent; otherwise the newer, whose identity was copied. The caller holds mu.
func (f *Fleet) settleTwice(fl *follower, r *replicav1.NodeReport) {
	name, boot := r.GetName(), r.GetBootId()
	if s := f.sessions[name]; s != nil {
		if s.bootID == boot || f.silent(s) {
			s.end(ErrReplaced)
		} else {
			fl.tellEnd(&replicav1.EndNode{Name: name, BootId: boot, Twice: true})
		}
	}
	for _, other := range f.followers {
		had := other.nodes[name]
		if other == fl || had == nil || !had.report.GetConnected() {
			continue
		}
		if had.report.GetBootId() == boot || had.report.GetSilent() {
			other.tellEnd(&replicav1.EndNode{Name: name, BootId: had.report.GetBootId()})
		} else {
			fl.tellEnd(&replicav1.EndNode{Name: name, BootId: boot, Twice: true})
		}
	}
}

// settleLocal does the same for a stream that this control took. The caller holds mu.
func (f *Fleet) settleLocal(s *session) {
	for _, fl := range f.followers {
		had := fl.nodes[s.name]
		if had == nil || !had.report.GetConnected() {
			continue
		}
		if had.report.GetBootId() == s.bootID || had.report.GetSilent() {
			fl.tellEnd(&replicav1.EndNode{Name: s.name, BootId: had.report.GetBootId()})
		} else {
			s.end(ErrTwice)
		}
	}
}

func (fl *follower) tellEnd(m *replicav1.EndNode) {
	fl.ending = append(fl.ending, m)
	fl.wakeUp()
}

// instruct is the one goroutine that writes to the follower's stream.
func (f *Fleet) instruct(fl *follower) error {
	for {
		select {
		case <-fl.ctx.Done():
			return context.Cause(fl.ctx)
		case <-fl.wake:
		}
		for {
			act := f.nextFor(fl)
			if act == nil {
				break
			}
			if err := act(); err != nil {
				return err
			}
		}
	}
}

// nextFor decides what a follower is told now; nil: nothing.
func (f *Fleet) nextFor(fl *follower) func() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(fl.ending) > 0 {
		m := fl.ending[0]
		fl.ending = fl.ending[1:]
		return func() error {
			return f.say(fl, &replicav1.FromLeader{Message: &replicav1.FromLeader_EndNode{EndNode: m}})
		}
	}
	if fl.sent == f.proposed {
		return f.askNext(fl)
	}
	if old, nonce := fl.sent, fl.nonce; old != nil {
		fl.sent, fl.nonce = nil, 0
		if old != f.target { // otherwise it was committed: the log says so
			return func() error {
				return f.say(fl, &replicav1.FromLeader{Message: &replicav1.FromLeader_Abort{Abort: &fleetv1.Abort{Nonce: nonce}}})
			}
		}
	}
	if f.proposed == nil {
		return f.askNext(fl)
	}
	fl.sent, fl.nonce = f.proposed, f.proposal
	var base *bundle.Bundle
	if f.target != nil {
		base = f.target.Bundle
	}
	t, nonce := fl.sent, fl.nonce
	return func() error { return f.proposeTo(fl, t, nonce, base) }
}

// askNext gives a question to send; nil: there is none. Proposals come first. The caller holds mu.
func (f *Fleet) askNext(fl *follower) func() error {
	if len(fl.asking) == 0 {
		return nil
	}
	m := fl.asking[0]
	fl.asking = fl.asking[1:]
	return func() error {
		return f.say(fl, &replicav1.FromLeader{Message: &replicav1.FromLeader_Asked{Asked: m}})
	}
}

// say sends one message, and ends the stream of a follower that does not take it.
func (f *Fleet) say(fl *follower, m *replicav1.FromLeader) error {
	stalled := time.AfterFunc(f.options.Stalled, func() { fl.end(ErrStalled) })
	defer stalled.Stop()
	return fl.stream.Send(m)
}

func (f *Fleet) proposeTo(fl *follower, t *Target, nonce uint64, base *bundle.Bundle) error {
	head := &fleetv1.Offer{Nonce: nonce, Release: t.Release}
	delta := bundle.Between(base, t.Bundle)
	if base != nil {
		head.BaseDigest = delta.Base[:]
	}
	if err := f.say(fl, &replicav1.FromLeader{Message: &replicav1.FromLeader_Offer{Offer: head}}); err != nil {
		return err
	}
	for part := range parts(delta) {
		if f.proposedNow() != t {
			return nil
		}
		part.Nonce = nonce
		if err := f.say(fl, &replicav1.FromLeader{Message: &replicav1.FromLeader_Part{Part: part}}); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fleet) proposedNow() *Target {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.proposed
}

// elsewhere gives a node's newest connected stream at another control, where it is newer than one that began here at
// local; 0: there is none here. The caller holds mu.
func (f *Fleet) elsewhere(name string, local uint64) (*follower, *remote) {
	var at *follower
	var found *remote
	for _, fl := range f.followers {
		if r := fl.nodes[name]; r != nil && r.report.GetConnected() && r.arrived > local {
			at, found, local = fl, r, r.arrived
		}
	}
	return at, found
}

// progressElsewhere says how far a node of another control is with t. The caller holds mu.
func (f *Fleet) progressElsewhere(r *replicav1.NodeReport, t *Target) (rollout.State, string) {
	if sameRelease(r.GetApplied(), t.Release) {
		return rollout.Committed, ""
	}
	if f.proposed != t {
		if r.GetRejected() && r.GetRefused() == t.Release.GetRevision() {
			return rollout.Refused, describeRefusals(r.GetRefusals())
		}
		return rollout.Offered, ""
	}
	if r.GetProposal() != f.proposal {
		return rollout.Offered, "" // word of it has not come back yet
	}
	switch r.GetState() {
	case replicav1.ProposalState_PROPOSAL_STATE_PREPARED:
		return rollout.Prepared, ""
	case replicav1.ProposalState_PROPOSAL_STATE_REFUSED:
		return rollout.Refused, describeRefusals(r.GetRefusals())
	case replicav1.ProposalState_PROPOSAL_STATE_UNSPECIFIED:
		return rollout.Away, "its stream was opened anew"
	}
	return rollout.Offered, ""
}

// merged gives every node that is known here or at a follower, by name: where it is connected, or else what was heard of
// it last. The caller holds mu.
func (f *Fleet) merged() map[string]Node {
	out := maps.Clone(f.gone)
	arrived := map[string]uint64{}
	for _, fl := range f.followers {
		for name, r := range fl.nodes {
			n := nodeOf(r.report)
			known, ok := out[name]
			switch {
			case !ok || n.Connected && !known.Connected:
			case n.Connected != known.Connected:
				continue
			case cmp.Or(cmp.Compare(r.arrived, arrived[name]), n.Since.Compare(known.Since)) <= 0:
				continue
			}
			out[name], arrived[name] = n, r.arrived
		}
	}
	for name, s := range f.sessions {
		if known := out[name]; !known.Connected || s.arrived > arrived[name] {
			out[name] = f.view(s)
		}
	}
	return out
}

// WhyAway says why a node has no stream.
func (f *Fleet) WhyAway(name string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.whyAway(name)
}

// whyAway says why a node has no stream. The caller holds mu.
func (f *Fleet) whyAway(name string) string {
	if n, ok := f.gone[name]; ok && n.Lost != "" {
		return fmt.Sprintf("it was connected to the control %s, which is gone", n.Lost)
	}
	return "its stream is gone"
}
