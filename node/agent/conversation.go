package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// conversation is one stream's life. Its own goroutines only receive, and bound the good-bye; everything else is done by
// the caller of run.
type conversation struct {
	agent    *Agent
	address  string // of the control
	opened   string // the certificate that the connection was made with, PEM
	conn     *grpc.ClientConn
	stream   grpc.BidiStreamingClient[fleetv1.FromNode, fleetv1.ToNode]
	received chan *fleetv1.ToNode
	failed   chan error // capacity 1
	stop     chan struct{}
	cancel   context.CancelFunc // of the stream
	group    sync.WaitGroup

	offer     *offer
	prepared  *prepared
	told      map[backendKey]node.BackendStatus // what control knows of backends; nil: nothing
	authority []byte                            // told to issue certificates now; nil: nothing to do about it
	renewal   time.Time                         // not before it; zero: nothing went wrong
}

type backendKey struct{ route, address string }

// offer is a bundle that is still coming in.
type offer struct {
	head  *fleetv1.Offer
	delta bundle.Delta
	size  int
}

// prepared is a bundle that awaits Commit.
type prepared struct {
	nonce uint64 // of the offer
	candidate
}

const (
	// statusInterval is how often Status is sent when nothing changes.
	statusInterval = time.Second
	// changePause is between two looks at all backends, however often one of them changes.
	changePause = 100 * time.Millisecond
	// farewell is how long the good-bye may take.
	farewell = 2 * time.Second
	// renewalPause follows a renewal that failed.
	renewalPause = 10 * time.Minute
)

func newConversation(a *Agent, address string, conn *grpc.ClientConn, stream grpc.BidiStreamingClient[fleetv1.FromNode, fleetv1.ToNode], cancel context.CancelFunc) *conversation {
	return &conversation{
		agent: a, opened: a.identity.Load().CertificatePEM, address: address, conn: conn, stream: stream, cancel: cancel,
		received: make(chan *fleetv1.ToNode),
		failed:   make(chan error, 1),
		stop:     make(chan struct{}),
	}
}

func (c *conversation) receive() {
	for {
		m, err := c.stream.Recv()
		if err != nil {
			c.failed <- err
			return
		}
		select {
		case c.received <- m:
		case <-c.stop:
			return
		}
	}
}

// hurry ends the stream a moment after ctx, also where control takes nothing any more and a Send would wait for ever.
func (c *conversation) hurry(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-c.stop:
		return
	}
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case <-timer.C:
		c.cancel()
	case <-c.stop:
	}
}

// wait ends the stream and drops what was never committed.
func (c *conversation) wait() {
	close(c.stop)
	c.cancel()
	c.group.Wait()
	_ = c.agent.driving(func() error {
		c.drop()
		c.agent.controlIsGone()
		return nil
	})
}

// run is the stream's only sender.
func (c *conversation) run(ctx context.Context) error {
	c.group.Go(c.receive)
	c.group.Go(func() { c.hurry(ctx) })
	if err := c.agent.driving(c.hello); err != nil {
		return c.sendFailure(err)
	}
	ticker := time.NewTicker(statusInterval)
	defer ticker.Stop()
	changed := c.agent.options.Node.Changed()
	var pause <-chan time.Time
	for {
		var act func() error
		select {
		case m := <-c.received:
			act = func() error { return c.handle(ctx, m) }
		case <-ticker.C:
			act = func() error {
				c.renewWhenDue(ctx)
				c.keepWhenDue()
				c.agent.saveWhenDue()
				return c.sendStatus(false)
			}
		case <-changed:
			act = func() error { return c.sendStatus(true) }
			changed, pause = nil, time.After(changePause)
		case <-pause:
			changed, pause = c.agent.options.Node.Changed(), nil
			continue
		case err := <-c.failed:
			return err
		case <-ctx.Done():
			return c.leave()
		}
		if err := c.agent.driving(act); err != nil {
			return c.sendFailure(err)
		}
	}
}

func (c *conversation) hello() error {
	return c.stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Hello{Hello: &fleetv1.Hello{
		Name: c.agent.identity.Load().Name, BootId: c.agent.bootID, Version: c.agent.options.Version,
		Applied: c.agent.options.Node.Applied(), Stored: c.agent.memory.stored,
	}}})
}

// sendFailure gives the reason why a Send failed: gRPC tells a sender only io.EOF, and the receiver the reason.
func (c *conversation) sendFailure(err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	for {
		select {
		case <-c.received: // what came before the end
		case reason := <-c.failed:
			return reason
		}
	}
}

// leave says good-bye and waits until control has heard it, or hurry ends the stream.
func (c *conversation) leave() error {
	if err := c.stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Leaving{Leaving: &fleetv1.Leaving{}}}); err != nil {
		return err
	}
	if err := c.stream.CloseSend(); err != nil {
		return err
	}
	for {
		select {
		case <-c.received:
		case <-c.failed:
			return nil
		}
	}
}

// redirected ends a stream whose control is about to stop: the node goes to another one.
type redirected struct {
	spread *durationpb.Duration // within which; nil: not said
}

// Error implements error.
func (*redirected) Error() string { return "control is stopping" }

func (c *conversation) handle(ctx context.Context, m *fleetv1.ToNode) error {
	switch m := m.GetMessage().(type) {
	case *fleetv1.ToNode_Welcome:
		return c.welcome(ctx, m.Welcome)
	case *fleetv1.ToNode_Offer:
		c.drop()
		c.offer = &offer{head: m.Offer}
		return nil
	case *fleetv1.ToNode_OfferPart:
		return c.part(m.OfferPart)
	case *fleetv1.ToNode_Commit:
		return c.commit(m.Commit.GetNonce())
	case *fleetv1.ToNode_Question:
		return c.stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Answer{Answer: c.agent.options.Node.Answer(m.Question)}})
	case *fleetv1.ToNode_Authority:
		c.authority = m.Authority.GetSha256()
		return nil // the next tick renews
	case *fleetv1.ToNode_GossipKeys:
		return c.rekey(m.GossipKeys.GetKeys())
	case *fleetv1.ToNode_Abort:
		if nonce := m.Abort.GetNonce(); c.offer != nil && c.offer.head.GetNonce() == nonce || c.prepared != nil && c.prepared.nonce == nonce {
			c.drop()
		}
		return nil
	case *fleetv1.ToNode_Controls:
		c.controls(m.Controls.GetEndpoints())
		return nil
	case *fleetv1.ToNode_Redirect:
		return &redirected{m.Redirect.GetSpread()}
	default:
		return nil // from a newer control; what matters is asked for by features
	}
}

// welcome begins a stream's ordinary life: control answered, so the pauses start small again.
func (c *conversation) welcome(ctx context.Context, m *fleetv1.Welcome) error {
	a := c.agent
	a.pause.reset()
	a.gone = time.Time{}
	a.control.Store(&c.address)
	a.attended.Store(true)
	clear(a.troubles)
	a.options.Logger.Info("connected to control", "control", m.GetControlName(), "address", c.address)
	id := *a.identity.Load()
	known := slices.Equal(id.GossipSeeds, m.GetGossipSeeds())
	if keys := m.GetGossipKeys(); len(keys) > 0 && c.takeKeys(&id, keys) {
		known = false
	}
	id.GossipSeeds = m.GetGossipSeeds()
	if controls := addressesIn(m.GetControls()); len(controls) > 0 && !sameSet(controls, id.Controls) {
		id.Controls, known = controls, false
	}
	if fresh := m.GetVoucher(); len(fresh) > 0 && !bytes.Equal(fresh, id.Voucher) {
		id.Voucher, known = fresh, false
	}
	if renewed := c.renewed(ctx, &id); renewed || !known {
		c.keep(&id)
	}
	c.use(&id)
	return c.sendStatus(true)
}

// controls takes in which controls there are now.
func (c *conversation) controls(endpoints []string) {
	id := *c.agent.identity.Load()
	controls := addressesIn(endpoints)
	if len(controls) == 0 || sameSet(controls, id.Controls) {
		return
	}
	id.Controls = controls
	c.keep(&id)
	c.agent.identity.Store(&id)
	c.agent.options.Logger.Info("the controls are others now", "controls", controls)
}

// keep saves an identity for the next start.
func (c *conversation) keep(id *Identity) {
	err := id.save(c.agent.options.DataDir)
	if err != nil && !c.agent.unkept {
		c.agent.options.Logger.Error("cannot keep the node's identity and what control said about the cluster; the next start may miss both. Trying again", "error", err)
	}
	c.agent.unkept = err != nil
}

// keepWhenDue saves the identity that could not be saved.
func (c *conversation) keepWhenDue() {
	if c.agent.unkept {
		c.keep(c.agent.identity.Load())
	}
}

// renewWhenDue renews within a stream: one may live longer than a certificate, and with one that has ended there is no
// next stream.
func (c *conversation) renewWhenDue(ctx context.Context) {
	id := *c.agent.identity.Load()
	if !c.renewed(ctx, &id) {
		return
	}
	c.keep(&id)
	c.use(&id)
}

// renewed renews the certificate in id where that is due, and says whether it did.
func (c *conversation) renewed(ctx context.Context, id *Identity) bool {
	now := c.agent.options.Now()
	if now.Before(c.renewal) {
		return false
	}
	renewed, err := c.renew(ctx, id)
	if err != nil {
		c.renewal = now.Add(renewalPause)
		c.agent.options.Logger.Error("cannot renew the node's certificate; trying again", "in", renewalPause, "error", err)
	}
	return renewed
}

// renew replaces the certificate in id when it is time, or when another authority issues now.
func (c *conversation) renew(ctx context.Context, id *Identity) (bool, error) {
	replaced := c.authority != nil && !bytes.Equal(c.authority, id.authority())
	if c.agent.options.Now().Before(id.renewAt()) && !replaced {
		return false, nil
	}
	conn := c.conn
	if c.opened != id.CertificatePEM {
		// The stream's connection still shows a certificate that was replaced since, by an authority perhaps that is not
		// believed any more.
		var err error
		if conn, err = c.agent.dial(c.address); err != nil {
			return false, err
		}
		defer conn.Close()
	}
	fresh, err := c.agent.renew(ctx, conn, id)
	if err != nil {
		return false, err
	}
	c.authority = nil // asked for once, whoever issued it
	*id = *fresh
	return true, nil
}

// drop forgets what is coming in or awaits Commit.
func (c *conversation) drop() {
	c.offer = nil
	if c.prepared == nil {
		return
	}
	c.agent.options.Node.Discard(c.prepared.generation)
	c.prepared.staged.Discard()
	c.prepared = nil
}

// part takes one piece of a bundle in, and prepares the bundle with the last.
func (c *conversation) part(m *fleetv1.OfferPart) error {
	o := c.offer
	if o == nil || o.head.GetNonce() != m.GetNonce() {
		return nil // of an offer that a newer one has replaced
	}
	for _, r := range m.GetRemoved() {
		o.delta.Removed = append(o.delta.Removed, bundle.Key{Kind: config.Kind(r.GetKind()), Name: r.GetName()})
		o.size += len(r.GetName())
	}
	for _, r := range m.GetUpserted() {
		key := bundle.Key{Kind: config.Kind(r.GetKind()), Name: r.GetName()}
		o.delta.Upserted = append(o.delta.Upserted, bundle.Resource{Key: key, Body: r.GetBody()})
		o.size += len(r.GetName()) + len(r.GetBody())
	}
	if o.size > bundle.MaxBytes || len(o.delta.Upserted)+len(o.delta.Removed) > 2*bundle.MaxResources {
		c.offer = nil
		return c.refuse(m.GetNonce(), o.head.GetRelease(), refusal("", fmt.Errorf("the bundle is larger than %d MiB", bundle.MaxBytes>>20)))
	}
	if !m.GetLast() {
		return nil
	}
	c.offer = nil
	return c.prepare(o)
}

func (c *conversation) prepare(o *offer) error {
	nonce, release := o.head.GetNonce(), o.head.GetRelease()
	b, err := c.assemble(o)
	switch {
	case err != nil && len(o.head.GetBaseDigest()) > 0 && !errors.Is(err, bundle.ErrSignature):
		return c.stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_NeedFull{
			NeedFull: &fleetv1.NeedFull{Nonce: nonce, Reason: sendable(err.Error())},
		}})
	case err != nil: // sending it again would change nothing
		return c.refuse(nonce, release, refusal("", err))
	}
	ready, refusals := c.agent.ready(release, b)
	if refusals != nil {
		return c.refuse(nonce, release, refusals)
	}
	c.agent.refusals = nil
	c.prepared = &prepared{nonce, *ready}
	return c.answer(nonce, nil)
}

// withAdvice says what to do about a disk that is full.
func withAdvice(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w; make room there and apply again", err)
	}
	return err
}

func (c *conversation) refuse(nonce uint64, release *fleetv1.Release, refusals []*fleetv1.Refusal) error {
	c.agent.tellRefusals(release, "cannot serve the offered bundle", refusals)
	return c.answer(nonce, refusals)
}

// assemble makes the bundle of what came in and proves that it is the one that control signed.
func (c *conversation) assemble(o *offer) (*bundle.Bundle, error) {
	if raw := o.head.GetBaseDigest(); len(raw) > 0 {
		base, err := bundle.ParseDigest(raw)
		if err != nil {
			return nil, err
		}
		o.delta.Base = base
	}
	b, err := o.delta.Apply(c.agent.applied)
	if err != nil {
		return nil, err
	}
	return b, bundle.Verify(ed25519.PublicKey(c.agent.identity.Load().ReleaseKey), o.head.GetRelease(), b)
}

func (c *conversation) answer(nonce uint64, refusals []*fleetv1.Refusal) error {
	return c.stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Prepared{
		Prepared: &fleetv1.Prepared{Nonce: nonce, Refusals: refusals},
	}})
}

// commit serves what was prepared.
func (c *conversation) commit(nonce uint64) error {
	p, a := c.prepared, c.agent
	if p == nil || p.nonce != nonce {
		return nil
	}
	c.prepared = nil
	if !a.serve(&p.candidate) {
		return c.committed(nonce, a.options.Node.Applied())
	}
	a.giver = ""
	// First what follows from it, its address and backends: an apply returns with Committed, and whoever asks then is to
	// be told of now.
	if err := c.sendStatus(true); err != nil {
		return err
	}
	return c.committed(nonce, p.release)
}

func (c *conversation) committed(nonce uint64, applied *fleetv1.Release) error {
	return c.stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Committed{
		Committed: &fleetv1.Committed{Nonce: nonce, Applied: applied},
	}})
}

// sendStatus sends what the node does. Whether a backend changed is looked at only where something told so: there may be
// very many.
func (c *conversation) sendStatus(look bool) error {
	n := c.agent.options.Node
	m := &fleetv1.Status{
		Applied: n.Applied(), Listen: n.ListenAddress(), Draining: n.Draining(), Refusals: c.agent.refusals,
		Notes: c.agent.notes(), BackendsFull: c.told == nil, Authority: c.agent.identity.Load().authority(),
	}
	if !c.agent.unkept {
		m.GossipKeys = c.agent.keys
	}
	if c.agent.options.Gossip != nil {
		m.GossipAddress = c.agent.options.Gossip()
	}
	if !look && c.told != nil {
		return c.stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Status{Status: m}})
	}
	return c.sendBackends(m, n.EachBackend())
}

// statusBytes is how much of backends one Status carries, well under the 4 MiB that control takes.
const statusBytes = 1 << 20

// sendBackends sends m with the backends whose state control does not know yet, and more messages where they are many.
// When a backend has gone, all are told anew.
func (c *conversation) sendBackends(m *fleetv1.Status, backends iter.Seq[node.BackendStatus]) error {
	if c.told == nil || !c.toldAreIn(backends) {
		c.told, m.BackendsFull = make(map[backendKey]node.BackendStatus), true
	}
	size := 0
	for s := range backends {
		key := backendKey{s.Route, s.Address}
		if known, ok := c.told[key]; ok && known == s {
			continue
		}
		c.told[key] = s
		b := s.Message()
		b.Reason = sendable(b.GetReason())
		if size += proto.Size(b) + 8; size > statusBytes && len(m.GetBackends()) > 0 {
			if err := c.stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Status{Status: m}}); err != nil {
				return err
			}
			m = proto.CloneOf(m)
			m.Backends, m.BackendsFull, size = nil, false, proto.Size(b)+8
		}
		m.Backends = append(m.Backends, b)
	}
	return c.stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Status{Status: m}})
}

// toldAreIn says whether every backend that control was told of is still there.
func (c *conversation) toldAreIn(backends iter.Seq[node.BackendStatus]) bool {
	here := 0
	for s := range backends {
		if _, ok := c.told[backendKey{s.Route, s.Address}]; ok {
			here++
		}
	}
	return here == len(c.told)
}
