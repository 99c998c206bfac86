package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/control/journal"
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
	bootID   string
	arrived  uint64    // orders streams of one node
	controls []string  // what the node was told of the controls
	heard    time.Time // when the last message came
	backends map[BackendKey]*fleetv1.BackendStatus
	told     []byte   // which authority issues certificates
	keys     [][]byte // of gossip, that the node was told
	// backendBytes is what backends hold.
	backendBytes int
	questions    map[uint64]*question // by id
	refusal      string               // what the journal was told that it refuses
	allowance    allowance
}

// offer is the one bundle that is out at a node.
type offer struct {
	nonce    uint64
	target   *Target
	state    rollout.State
	refusals []*fleetv1.Refusal
	whole    bool // sent without a base
	commit   bool // Commit was sent
}

// refusal is the last bundle that a node refused, so that it is not offered in a circle.
type refusal struct {
	target   *Target
	refusals []*fleetv1.Refusal
	retry    time.Time
}

// Errors that end a stream; each is for the node's log as well.
var (
	// ErrClosed ends every stream when control stops.
	ErrClosed = errors.New("control is stopping")
	// ErrReplaced ends a stream when its node opens another.
	ErrReplaced = errors.New("the node opened a newer stream")
	// ErrTwice ends the stream of a second process that has the identity of one that is connected.
	ErrTwice = errors.New("another process with this node's identity is connected; was its data directory copied? Enrol each node by itself")
	// ErrHello ends a stream that does not begin as it must.
	ErrHello = errors.New("a stream begins with Hello")
	// ErrStalled ends the stream of a node that reads nothing.
	ErrStalled = errors.New("the node took no message for too long")
)

const (
	// helloTime is how long a node may take to say Hello.
	helloTime = 10 * time.Second
	// aliveTime is how long after its last message a node counts as alive: it sends a Status every second.
	aliveTime = 5 * time.Second
)

// Serve runs one node's stream until it ends; where the node closed it, that is no error. name is what the node's
// certificate says. left tells that the node said it would leave, which its caller may want to keep.
func (f *Fleet) Serve(name string, stream Stream) (left bool, err error) {
	hello, err := f.greet(stream)
	if err != nil {
		return false, err
	}
	s, err := f.begin(name, hello, stream)
	if err != nil {
		return false, err
	}
	f.options.Logger.Info("node connected", "node", name, "revision", hello.GetApplied().GetRevision(),
		"on_disk", hello.GetStored().GetRevision(), "version", s.node.Version)
	<-s.ctx.Done()
	err = context.Cause(s.ctx)
	left = f.finish(s, err)
	f.options.Logger.Info("node disconnected", "node", name, "left", left, "reason", err)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return left, err
}

// greet waits for Hello, and no longer for a node that does not say it.
func (f *Fleet) greet(stream Stream) (*fleetv1.Hello, error) {
	type received struct {
		m   *fleetv1.FromNode
		err error
	}
	first := make(chan received, 1)
	if !f.start(func() {
		m, err := stream.Recv()
		first <- received{m, err}
	}) {
		return nil, ErrClosed
	}
	timer := time.NewTimer(helloTime)
	defer timer.Stop()
	select {
	case got := <-first:
		if got.err != nil {
			return nil, fmt.Errorf("receive Hello: %w", got.err)
		}
		if got.m.GetHello() == nil {
			return nil, ErrHello
		}
		return got.m.GetHello(), nil
	case <-timer.C:
		return nil, fmt.Errorf("%w, and none came in %s", ErrHello, helloTime)
	case <-f.closed:
		return nil, ErrClosed
	}
}

// begin registers the session and starts its goroutines. Both end when the stream's context does, which is when Serve
// has returned: Close waits for them, Serve cannot.
func (f *Fleet) begin(name string, hello *fleetv1.Hello, stream Stream) (*session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.isClosed() || f.leaving {
		return nil, ErrClosed
	}
	ctx, end := context.WithCancelCause(stream.Context())
	s := &session{
		name: name, stream: stream, ctx: ctx, end: end,
		wake:     make(chan struct{}, 1),
		applied:  release(hello.GetApplied()),
		backends: map[BackendKey]*fleetv1.BackendStatus{}, questions: map[uint64]*question{},
		bootID: clip(hello.GetBootId()),
		heard:  f.options.Now(),
		node:   Node{Name: name, Connected: true, Since: f.options.Now(), Version: clip(hello.GetVersion())},
	}
	if old := f.sessions[name]; old != nil {
		// The same process may have lost its connection; another one may be a restart, whose predecessor is silent.
		if old.bootID != s.bootID && !f.silent(old) {
			end(ErrTwice)
			return nil, ErrTwice
		}
		old.end(ErrReplaced)
	}
	f.arrivals++
	s.arrived = f.arrivals
	f.sessions[name] = s
	delete(f.gone, name)
	f.options.Journal.Add(journal.NodeConnected, name, arrival(s))
	f.settleLocal(s)
	f.group.Go(func() { s.end(f.send(s)) })
	f.group.Go(func() { s.end(f.receive(s)) })
	s.wakeUp()
	f.notify()
	return s, nil
}

func (f *Fleet) finish(s *session, reason error) (left bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sessions[s.name] != s {
		return false // replaced: the newer session speaks for the node
	}
	delete(f.sessions, s.name)
	last := f.view(s)
	last.Connected, last.Left, last.Since = false, s.leaving, f.options.Now()
	f.gone[s.name] = last
	if s.leaving {
		f.options.Journal.Add(journal.NodeLeft, s.name, "it stopped on purpose")
	} else {
		f.options.Journal.Add(journal.NodeDisconnected, s.name, "its stream is gone: "+reason.Error())
	}
	f.notify()
	return s.leaving
}

// silent says whether a session's node says nothing any more: its machine may be gone, and its connection not yet. The
// caller holds mu.
func (f *Fleet) silent(s *session) bool { return f.options.Now().Sub(s.heard) >= aliveTime }

func (s *session) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// transmit sends one message, and ends the stream of a node that does not take it: Send itself waits for ever.
func (f *Fleet) transmit(s *session, m *fleetv1.ToNode) error {
	stalled := time.AfterFunc(f.options.Stalled, func() { s.end(ErrStalled) })
	defer stalled.Stop()
	return s.stream.Send(m)
}

// send is the one goroutine that writes to the stream.
func (f *Fleet) send(s *session) error {
	welcome := &fleetv1.ToNode{Message: &fleetv1.ToNode_Welcome{Welcome: f.options.Welcome()}}
	s.controls, s.keys = welcome.GetWelcome().GetControls(), welcome.GetWelcome().GetGossipKeys()
	if err := f.transmit(s, welcome); err != nil {
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
				act = f.ask(s)
			}
			if act == nil {
				break
			}
			if err := act(); err != nil {
				return err
			}
		}
	}
}

// next decides what a session's sender does now; nil: nothing. A node that serves what is newer than the target has it
// from a control that this one follows and has not caught up with: it is not taken back.
func (f *Fleet) next(s *session) func() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.leaving {
		return f.redirect(s)
	}
	if tell := f.tellAuthority(s); tell != nil {
		return tell
	}
	if tell := f.tellKeys(s); tell != nil {
		return tell
	}
	if f.controls != nil && !slices.Equal(f.controls, s.controls) {
		s.controls = f.controls
		return f.tellControls(s, s.controls)
	}
	want := f.wanted(s)
	if s.offer != nil && s.offer.commit {
		return nil // what it serves in a moment is what the next delta is against
	}
	if s.offer != nil && s.offer.target != want {
		nonce, open := s.offer.nonce, s.offer.state == rollout.Offered || s.offer.state == rollout.Prepared
		s.offer = nil
		if open {
			return f.abort(s, nonce)
		}
	}
	if want == nil {
		return nil
	}
	if s.offer == nil {
		if sameRelease(s.applied, want.Release) || want == f.target && newer(s.applied, want.Release) || s.refused.still(want, f.options.Now()) {
			return nil
		}
		return f.open(s, want)
	}
	if s.offer.state == rollout.Prepared && want == f.target {
		s.offer.commit = true
		return f.commit(s, s.offer.nonce)
	}
	return nil
}

// redirect is the last that a session sends: what comes behind it in the stream is its end. The caller holds mu.
func (f *Fleet) redirect(s *session) func() error {
	m := &fleetv1.ToNode{Message: &fleetv1.ToNode_Redirect{Redirect: &fleetv1.Redirect{Spread: durationpb.New(f.spread)}}}
	return func() error {
		if err := f.transmit(s, m); err != nil {
			return err
		}
		return ErrClosed
	}
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
	o.whole = base == nil
	return func() error { return f.sendOffer(s, o, base) }
}

func (f *Fleet) tellControls(s *session, endpoints []string) func() error {
	return func() error {
		return f.transmit(s, &fleetv1.ToNode{Message: &fleetv1.ToNode_Controls{Controls: &fleetv1.Controls{Endpoints: endpoints}}})
	}
}

func (f *Fleet) commit(s *session, nonce uint64) func() error {
	return func() error {
		return f.transmit(s, &fleetv1.ToNode{Message: &fleetv1.ToNode_Commit{Commit: &fleetv1.Commit{Nonce: nonce}}})
	}
}

func (f *Fleet) abort(s *session, nonce uint64) func() error {
	return func() error {
		return f.transmit(s, &fleetv1.ToNode{Message: &fleetv1.ToNode_Abort{Abort: &fleetv1.Abort{Nonce: nonce}}})
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
		s.heard = f.options.Now()
		news, tell := f.observe(s, m)
		if news { // otherwise there is nothing for the sender either: a Status each second wakes nobody
			f.notify()
			s.wakeUp()
		}
		f.mu.Unlock()
		if tell != nil {
			tell() // a log that blocks must not block the fleet
		}
	}
}

// observe takes in one message, says whether watchers are to hear of it, and what is to be logged; nil: nothing.
// Answers whose nonce is not the outstanding one are about something that is over. The caller holds mu.
func (f *Fleet) observe(s *session, m *fleetv1.FromNode) (news bool, tell func()) {
	switch m := m.GetMessage().(type) {
	case *fleetv1.FromNode_Prepared:
		if o := s.offer; o != nil && o.nonce == m.Prepared.GetNonce() && o.state == rollout.Offered {
			o.state = rollout.Prepared
			if refusals := m.Prepared.GetRefusals(); len(refusals) > 0 {
				return true, f.refuse(s, refusals)
			}
			return true, nil
		}
	case *fleetv1.FromNode_Committed:
		if o := s.offer; o != nil && o.nonce == m.Committed.GetNonce() && o.commit {
			return true, f.committed(s, release(m.Committed.GetApplied()))
		}
	case *fleetv1.FromNode_NeedFull:
		if o := s.offer; o != nil && o.nonce == m.NeedFull.GetNonce() && o.state == rollout.Offered {
			return true, f.needFull(s, clip(m.NeedFull.GetReason()))
		}
	case *fleetv1.FromNode_Status:
		notes := s.node.Notes
		turns := s.turns(m.Status)
		news = s.status(m.Status)
		f.tellTurns(s, turns)
		return news, f.tellNotes(s, notes, s.node.Notes)
	case *fleetv1.FromNode_Answer:
		s.answered(m.Answer)
	case *fleetv1.FromNode_Leaving:
		s.leaving = true
		return true, nil
	}
	return false, nil
}

func (f *Fleet) refuse(s *session, refusals []*fleetv1.Refusal) (tell func()) {
	refusals = bounded(refusals)
	target := s.offer.target
	s.offer.state, s.offer.refusals = rollout.Refused, refusals
	s.refused = &refusal{target: target, refusals: refusals, retry: f.options.Now().Add(f.options.RetryRefused)}
	if f.proposed != target {
		s.offer = nil // the target: offered again after a while
	}
	f.tellRefusal(s, target, refusals)
	return func() {
		f.options.Logger.Warn("node refuses a bundle", "node", s.name,
			"revision", target.Release.GetRevision(), "reason", describeRefusals(refusals))
	}
}

func (f *Fleet) committed(s *session, applied *fleetv1.Release) (tell func()) {
	if !sameRelease(applied, s.offer.target.Release) {
		return f.refuse(s, []*fleetv1.Refusal{{Reason: "says that it serves another bundle than the one it was told to commit"}})
	}
	s.applied, s.full, s.refused, s.offer, s.refusal = applied, false, nil, nil, ""
	return nil
}

// needFull has the bundle sent whole. A node that had it whole already would ask for ever.
func (f *Fleet) needFull(s *session, reason string) (tell func()) {
	if s.offer.whole {
		return f.refuse(s, []*fleetv1.Refusal{{Reason: "cannot read the whole bundle: " + reason}})
	}
	s.full, s.offer = true, nil
	f.tell(s, journal.NodeNeedsFull, s.name, reason)
	return func() { f.options.Logger.Info("node needs the whole bundle", "node", s.name, "reason", reason) }
}

// What one node can make control remember; of a node that says more, the rest is not kept.
const (
	maxBackends     = 500_000
	maxBackendBytes = 64 << 20
	maxRefusals     = 100
	maxNotes        = 10
	maxText         = 1 << 10
)

// status takes in what the node says of itself every second, and says whether it is news.
func (s *session) status(m *fleetv1.Status) (news bool) {
	before, applied := s.node, s.applied
	if r := release(m.GetApplied()); r != nil {
		s.applied = r
	}
	s.node.Listen, s.node.Gossip = clip(m.GetListen()), clip(m.GetGossipAddress())
	s.node.Authority = nil
	if hash := m.GetAuthority(); len(hash) <= sha256.Size {
		s.node.Authority = hash
	}
	s.node.Draining, s.node.Refusals = m.GetDraining(), bounded(m.GetRefusals())
	s.node.Notes, s.node.GossipKeys = clipped(m.GetNotes()), keysDigest(m.GetGossipKeys())
	if m.GetBackendsFull() {
		clear(s.backends)
		s.backendBytes = 0
	}
	for _, b := range m.GetBackends() {
		s.remember(b)
	}
	return !proto.Equal(applied, s.applied) || before.Listen != s.node.Listen || before.Gossip != s.node.Gossip || !bytes.Equal(before.Authority, s.node.Authority) ||
		!bytes.Equal(before.GossipKeys, s.node.GossipKeys) ||
		before.Draining != s.node.Draining || describeRefusals(before.Refusals) != describeRefusals(s.node.Refusals) || !slices.Equal(before.Notes, s.node.Notes)
}

// tellNotes logs those that are new; nil: none is.
func (f *Fleet) tellNotes(s *session, before, now []string) (tell func()) {
	fresh := slices.DeleteFunc(slices.Clone(now), func(note string) bool { return slices.Contains(before, note) })
	if len(fresh) == 0 {
		return nil
	}
	for _, note := range fresh {
		f.tell(s, journal.NodeInTrouble, s.name, note)
	}
	return func() {
		for _, note := range fresh {
			f.options.Logger.Warn("node is in trouble", "node", s.name, "note", note)
		}
	}
}

func (s *session) remember(b *fleetv1.BackendStatus) {
	key := BackendKey{b.GetRoute(), b.GetAddress()}
	b.Reason = clip(b.GetReason())
	old, known := s.backends[key]
	size := s.backendBytes + proto.Size(b) - proto.Size(old)
	if !known && len(s.backends) >= maxBackends || size > maxBackendBytes {
		return
	}
	s.backends[key], s.backendBytes = b, size
}

// release gives a release that a node tells of, or nil for one that is none of ours. What is kept of a node is told on to the
// control that leads, and a message that it does not take would end the stream that all nodes here are told of by.
func release(r *fleetv1.Release) *fleetv1.Release {
	if proto.Size(r) > maxText {
		return nil
	}
	return r
}

func bounded(refusals []*fleetv1.Refusal) []*fleetv1.Refusal {
	refusals = refusals[:min(len(refusals), maxRefusals)]
	for _, r := range refusals {
		r.Field, r.Reason = clip(r.GetField()), clip(r.GetReason())
	}
	return refusals
}

func clipped(notes []string) []string {
	notes = notes[:min(len(notes), maxNotes)]
	for i := range notes {
		notes[i] = clip(notes[i])
	}
	return notes
}

// clip bounds a text that a node made.
func clip(text string) string {
	if len(text) <= maxText {
		return text
	}
	return strings.ToValidUTF8(text[:maxText], "") + "…"
}
