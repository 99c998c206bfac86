package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pyserve/pyserve/control/rollout"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// session is one node's stream. All fields but the first group are guarded by the fleet's mu.
type session struct {
	name   string
	stream Stream
	wake   chan struct{} // capacity 1
	ctx    context.Context
	end    context.CancelCauseFunc

	node     Node // what status shows
	applied  *fleetv1.Release
	offer    *offer
	refused  *refusal
	full     bool // the last delta did not fit: send the whole
	leaving  bool
	backends map[BackendKey]*fleetv1.BackendStatus
}

// offer is the one bundle that is out at a node.
type offer struct {
	nonce    uint64
	target   *Target
	state    rollout.State
	refusals []*fleetv1.Refusal
	commit   bool // Commit was sent
}

// refusal is the last bundle that a node refused, so that it is not offered in a circle.
type refusal struct {
	target   *Target
	refusals []*fleetv1.Refusal
	retry    time.Time
}

// Errors that end a session; each is for the node's log as well.
var (
	ErrReplaced = errors.New("the node opened a newer stream")
	errHello    = errors.New("the first message of a stream must be Hello")
)

// Serve runs one node's stream until it ends. name is what the node's certificate says. left tells that the node
// said it would leave, which its caller may want to keep.
func (f *Fleet) Serve(name string, stream Stream) (left bool, err error) {
	first, err := stream.Recv()
	if err != nil {
		return false, fmt.Errorf("receive Hello: %w", err)
	}
	hello := first.GetHello()
	if hello == nil {
		return false, errHello
	}
	s, err := f.begin(name, hello, stream)
	if err != nil {
		return false, err
	}
	f.options.Logger.Info("node connected", "node", name, "revision", hello.GetApplied().GetRevision(), "version", hello.GetVersion())
	// Both goroutines end when the stream's context does, which is when this function has returned: the group is
	// waited for in Close, not here.
	f.group.Go(func() { s.end(f.send(s)) })
	f.group.Go(func() { s.end(f.receive(s)) })
	<-s.ctx.Done()
	cause := context.Cause(s.ctx)
	left = f.finish(s)
	f.options.Logger.Info("node disconnected", "node", name, "left", left, "reason", cause)
	return left, cause
}

func (f *Fleet) begin(name string, hello *fleetv1.Hello, stream Stream) (*session, error) {
	ctx, end := context.WithCancelCause(stream.Context())
	s := &session{
		name: name, stream: stream, ctx: ctx, end: end,
		wake:     make(chan struct{}, 1),
		applied:  hello.GetApplied(),
		backends: map[BackendKey]*fleetv1.BackendStatus{},
		node:     Node{Name: name, Connected: true, Since: f.options.Now(), Version: hello.GetVersion()},
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.closed:
		end(ErrClosed)
		return nil, ErrClosed
	default:
	}
	if old := f.sessions[name]; old != nil {
		old.end(ErrReplaced)
	}
	f.sessions[name] = s
	delete(f.gone, name)
	s.wakeUp()
	f.notify()
	return s, nil
}

func (f *Fleet) finish(s *session) (left bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sessions[s.name] != s {
		return false // replaced: the newer session speaks for the node
	}
	delete(f.sessions, s.name)
	last := f.view(s)
	last.Connected, last.Left, last.Since = false, s.leaving, f.options.Now()
	f.gone[s.name] = last
	f.notify()
	return s.leaving
}

func (s *session) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// send is the one goroutine that writes to the stream.
func (f *Fleet) send(s *session) error {
	welcome := &fleetv1.ToNode{Message: &fleetv1.ToNode_Welcome{Welcome: f.options.Welcome()}}
	if err := s.stream.Send(welcome); err != nil {
		return err
	}
	retry := time.NewTicker(f.options.RetryRefused)
	defer retry.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-s.wake:
		case <-retry.C:
		}
		for {
			act := f.next(s)
			if act == nil {
				break
			}
			if err := act(); err != nil {
				return err
			}
		}
	}
}

// next decides what a session's sender does now; nil: nothing.
func (f *Fleet) next(s *session) func() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	want := f.wanted(s)
	if s.offer != nil && s.offer.target != want {
		nonce, open := s.offer.nonce, s.offer.state == rollout.Offered || s.offer.state == rollout.Prepared
		s.offer = nil
		if open {
			return s.abort(nonce)
		}
	}
	if want == nil {
		return nil
	}
	if s.offer == nil {
		if sameRelease(s.applied, want.Release) || s.refused.still(want, f.options.Now()) {
			return nil
		}
		return f.open(s, want)
	}
	if s.offer.state == rollout.Prepared && want == f.target && !s.offer.commit {
		s.offer.commit = true
		return s.commit(s.offer.nonce)
	}
	return nil
}

// still says whether the node refused t so lately that it is not to be asked again.
func (r *refusal) still(t *Target, now time.Time) bool {
	return r != nil && r.target == t && now.Before(r.retry)
}

// open begins an offer. The caller holds mu.
func (f *Fleet) open(s *session, want *Target) func() error {
	f.nonce++
	o := &offer{nonce: f.nonce, target: want}
	s.offer, s.refused = o, nil
	base := f.base(s.applied)
	if s.full {
		base = nil
	}
	return func() error { return f.sendOffer(s, o, base) }
}

func (s *session) commit(nonce uint64) func() error {
	return func() error {
		return s.stream.Send(&fleetv1.ToNode{Message: &fleetv1.ToNode_Commit{Commit: &fleetv1.Commit{Nonce: nonce}}})
	}
}

func (s *session) abort(nonce uint64) func() error {
	return func() error {
		return s.stream.Send(&fleetv1.ToNode{Message: &fleetv1.ToNode_Abort{Abort: &fleetv1.Abort{Nonce: nonce}}})
	}
}

// receive takes in what the node says.
func (f *Fleet) receive(s *session) error {
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.observe(s, m)
		f.notify()
		f.mu.Unlock()
		s.wakeUp()
	}
}

// observe takes in one message. Answers whose nonce is not the outstanding one are about something that is over. The
// caller holds mu.
func (f *Fleet) observe(s *session, m *fleetv1.FromNode) {
	switch m := m.GetMessage().(type) {
	case *fleetv1.FromNode_Prepared:
		if o := s.offer; o != nil && o.nonce == m.Prepared.GetNonce() && o.state == rollout.Offered {
			o.state = rollout.Prepared
			if refusals := m.Prepared.GetRefusals(); len(refusals) > 0 {
				f.refuse(s, refusals)
			}
		}
	case *fleetv1.FromNode_Committed:
		if o := s.offer; o != nil && o.nonce == m.Committed.GetNonce() && o.commit {
			f.committed(s, m.Committed.GetApplied())
		}
	case *fleetv1.FromNode_NeedFull:
		if o := s.offer; o != nil && o.nonce == m.NeedFull.GetNonce() {
			f.options.Logger.Info("node needs the whole bundle", "node", s.name, "reason", m.NeedFull.GetReason())
			if s.full { // it had the whole already
				f.refuse(s, []*fleetv1.Refusal{{Reason: "cannot read the whole bundle: " + m.NeedFull.GetReason()}})
				return
			}
			s.full, s.offer = true, nil
		}
	case *fleetv1.FromNode_Status:
		s.status(m.Status)
	case *fleetv1.FromNode_Leaving:
		s.leaving = true
	}
}

func (f *Fleet) refuse(s *session, refusals []*fleetv1.Refusal) {
	s.offer.state, s.offer.refusals = rollout.Refused, refusals
	s.refused = &refusal{target: s.offer.target, refusals: refusals, retry: f.options.Now().Add(f.options.RetryRefused)}
	f.options.Logger.Warn("node refuses a bundle", "node", s.name,
		"revision", s.offer.target.Release.GetRevision(), "reason", describeRefusals(refusals))
	if f.proposed != s.offer.target {
		s.offer = nil // the target: offered again after a while
	}
}

func (f *Fleet) committed(s *session, applied *fleetv1.Release) {
	if !sameRelease(applied, s.offer.target.Release) {
		f.refuse(s, []*fleetv1.Refusal{{Reason: "says that it serves another bundle than the one it was told to commit"}})
		return
	}
	s.applied, s.full, s.refused, s.offer = applied, false, nil, nil
}

// status takes in what the node says of itself every second.
func (s *session) status(m *fleetv1.Status) {
	if m.GetApplied() != nil {
		s.applied = m.GetApplied()
	}
	s.node.Listen, s.node.Gossip = m.GetListen(), m.GetGossipAddress()
	s.node.Draining, s.node.Refusals = m.GetDraining(), m.GetRefusals()
	if m.GetBackendsFull() {
		clear(s.backends)
	}
	for _, b := range m.GetBackends() {
		if len(s.backends) >= maxBackends {
			return
		}
		s.backends[BackendKey{b.GetRoute(), b.GetAddress()}] = b
	}
}

// maxBackends bounds what one node can make control remember.
const maxBackends = 500_000
