package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/fleettest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// The agent's own times: what control sees of a light node is what it sees of a real one.
const (
	statusInterval = time.Second
	shortestPause  = 250 * time.Millisecond
	otherPause     = 100 * time.Millisecond // where there is another control
	longestPause   = 5 * time.Second
)

// maxMessage is how large one message of control may be, as the agent has it.
const maxMessage = bundle.MaxBytes + 1<<20

// streamWindow is the agent's, too.
const streamWindow = 4 << 20

// lightNode is a node without a data plane. What it serves outlives its connections.
type lightNode struct {
	name   string
	number int
	fleet  *lightFleet
	tls    *tls.Config
	boot   string

	mu      sync.Mutex // guards what follows
	release *fleetv1.Release
	bundle  *bundle.Bundle
	cut     context.CancelFunc // ends the stream and the next attempts; nil: not running
	done    chan struct{}
}

// serving gives what the node serves.
func (n *lightNode) serving() (*fleetv1.Release, *bundle.Bundle) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.release, n.bundle
}

func (n *lightNode) serve(release *fleetv1.Release, b *bundle.Bundle) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.release, n.bundle = release, b
}

// connect keeps a stream to control until disconnect.
func (n *lightNode) connect() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	n.mu.Lock()
	n.cut, n.done = cancel, done
	n.mu.Unlock()
	go func() {
		defer close(done)
		n.run(ctx)
	}()
}

// disconnect ends the stream without a good-bye, and waits.
func (n *lightNode) disconnect() {
	n.mu.Lock()
	cut, done := n.cut, n.done
	n.cut = nil
	n.mu.Unlock()
	if cut != nil {
		cut()
		<-done
	}
}

// run opens streams with the agent's pauses in between: drawn from a range that doubles, and small again once control
// has answered.
func (n *lightNode) run(ctx context.Context) {
	var limit time.Duration
	addresses := n.fleet.addresses
	for attempt := n.number; ctx.Err() == nil; attempt++ { // real ones come from one list, too, each at its own time
		welcomed, err := n.converse(ctx, addresses[attempt%len(addresses)])
		if ctx.Err() != nil {
			return
		}
		n.fleet.lost(err)
		if welcomed {
			limit = 0
		}
		shortest := shortestPause
		if len(addresses) > 1 {
			shortest = otherPause
		}
		limit = min(max(2*limit, shortest), longestPause)
		wait := rand.N(limit) + 10*time.Millisecond
		var moved *redirected
		if errors.As(err, &moved) && len(addresses) > 1 {
			wait = rand.N(moved.spread + 1)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// converse opens one stream and serves it until it breaks or ctx ends. welcomed says that control answered.
func (n *lightNode) converse(ctx context.Context, address string) (welcomed bool, err error) {
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(n.tls)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithStaticStreamWindowSize(streamWindow), grpc.WithStaticConnWindowSize(streamWindow),
		grpc.WithStatsHandler(&n.fleet.received),
	)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := fleetv1.NewFleetClient(conn).Connect(ctx)
	if err != nil {
		return false, err
	}
	c := &conversation{node: n, stream: stream, messages: make(chan *fleetv1.ToNode), failed: make(chan error, 1), ctx: ctx}
	var receiving sync.WaitGroup
	receiving.Go(c.receive)
	defer receiving.Wait()
	defer cancel() // before the wait
	err = c.run()
	if c.welcomed {
		n.fleet.connected.Add(-1)
	}
	return c.welcomed, err
}

// conversation is a light node's side of a stream. run is its only sender.
type conversation struct {
	node     *lightNode
	stream   grpc.BidiStreamingClient[fleetv1.FromNode, fleetv1.ToNode]
	messages chan *fleetv1.ToNode
	failed   chan error // capacity 1
	ctx      context.Context
	welcomed bool
	offer    *offer
	ready    *prepared
}

// offer is a bundle that is coming in.
type offer struct {
	head  *fleetv1.Offer
	delta bundle.Delta
	parts digester
}

// prepared is a bundle that awaits its Commit.
type prepared struct {
	nonce   uint64
	release *fleetv1.Release
	bundle  *bundle.Bundle
}

func (c *conversation) receive() {
	for {
		m, err := c.stream.Recv()
		if err != nil {
			c.failed <- err
			return
		}
		select {
		case c.messages <- m:
		case <-c.ctx.Done():
			c.failed <- context.Cause(c.ctx)
			return
		}
	}
}

func (c *conversation) run() error {
	release, _ := c.node.serving()
	hello := fleettest.Hello(c.node.name, release)
	hello.GetHello().BootId, hello.GetHello().Stored = c.node.boot, release
	if err := c.stream.Send(hello); err != nil {
		return c.failure(err)
	}
	// Real nodes do not beat in step either.
	ticker := time.NewTicker(statusInterval + rand.N(20*time.Millisecond))
	defer ticker.Stop()
	for {
		var err error
		select {
		case m := <-c.messages:
			err = c.handle(m)
		case <-ticker.C:
			err = c.status()
		case err := <-c.failed:
			return err
		}
		if err != nil {
			return c.failure(err)
		}
	}
}

// failure gives the reason why a Send failed: gRPC tells a sender only io.EOF, and the receiver the reason.
func (c *conversation) failure(err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	for {
		select {
		case <-c.messages: // what came before the end
		case reason := <-c.failed:
			return reason
		}
	}
}

func (c *conversation) handle(m *fleetv1.ToNode) error {
	switch m := m.GetMessage().(type) {
	case *fleetv1.ToNode_Welcome:
		c.welcomed = true
		c.node.fleet.connected.Add(1)
		return c.status()
	case *fleetv1.ToNode_Offer:
		return c.offered(m.Offer)
	case *fleetv1.ToNode_OfferPart:
		if c.offer != nil && c.offer.head.GetNonce() == m.OfferPart.GetNonce() {
			return c.part(m.OfferPart)
		}
	case *fleetv1.ToNode_Commit:
		if c.ready != nil && c.ready.nonce == m.Commit.GetNonce() {
			return c.commit()
		}
	case *fleetv1.ToNode_Abort:
		c.offer, c.ready = nil, nil
	case *fleetv1.ToNode_Redirect:
		return &redirected{m.Redirect.GetSpread().AsDuration()}
	}
	return nil
}

// redirected ends a stream whose control is about to stop.
type redirected struct{ spread time.Duration }

// Error implements error.
func (*redirected) Error() string { return "control is stopping" }

func (c *conversation) offered(head *fleetv1.Offer) error {
	c.ready, c.offer = nil, &offer{head: head, parts: newDigester()}
	if raw := head.GetBaseDigest(); len(raw) > 0 {
		base, err := bundle.ParseDigest(raw)
		if err != nil {
			return fmt.Errorf("control offers against a base that is none: %w", err)
		}
		c.offer.delta.Base = base
	}
	return nil
}

// part takes a piece in, and with the last one prepares the bundle. What does not prove true is answered as the agent
// does, and counted: here it is a defect.
func (c *conversation) part(m *fleetv1.OfferPart) error {
	o := c.offer
	fleettest.Take(&o.delta, m)
	o.parts.add(m)
	if !m.GetLast() {
		return nil
	}
	c.offer = nil
	nonce, release := o.head.GetNonce(), o.head.GetRelease()
	_, base := c.node.serving()
	b, err := c.node.fleet.shelf.take(recipe{o.delta.Base, o.parts.sum(), sumOf(release)}, base, o.delta, release)
	switch {
	case err != nil && o.delta.Base != bundle.Digest{}:
		c.node.fleet.wrong(err)
		return c.stream.Send(fleettest.NeedFull(nonce, err.Error()))
	case err != nil:
		c.node.fleet.wrong(err)
		return c.stream.Send(fleettest.Prepared(nonce, fleettest.Refusal("", err.Error())))
	}
	c.ready = &prepared{nonce, release, b}
	return c.stream.Send(fleettest.Prepared(nonce))
}

// commit serves what was prepared: first what follows from it, then the confirmation, as the agent does.
func (c *conversation) commit() error {
	p := c.ready
	c.ready = nil
	c.node.serve(p.release, p.bundle)
	c.node.fleet.committed()
	if err := c.status(); err != nil {
		return err
	}
	return c.stream.Send(fleettest.Committed(p.nonce, p.release))
}

func (c *conversation) status() error {
	release, _ := c.node.serving()
	m := &fleetv1.Status{Applied: release, GossipAddress: "127.0.0.1:7946"}
	if release != nil {
		m.Listen = "127.0.0.1:8000"
	}
	return c.stream.Send(fleettest.Status(m))
}
