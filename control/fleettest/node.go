package fleettest

import (
	"crypto/sha256"
	"slices"
	"sync"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// Node does what an agent does, with nothing behind it: it takes bundles in, prepares them, serves them. Set its hooks
// before Connect. What it serves outlives its connections.
type Node struct {
	Name string
	// Refuse gives the reasons why a release cannot be served; nil: it can, always. SetRefuse changes it later.
	Refuse func(*fleetv1.Release) []*fleetv1.Refusal
	// Mute keeps the node from answering offers; MuteCommits, from confirming commits.
	Mute, MuteCommits bool
	// Lie has it confirm another release than the one it was told to commit.
	Lie bool
	// Answer answers a question, whose id is set afterwards; nil: it is not answered.
	Answer func(*fleetv1.Question) *fleetv1.Answer
	// Keys, where set, gets the keys of gossip that control tells of, and says whether the node uses them; it tells control then.
	Keys func(keys [][]byte) bool

	conn *Conn
	done chan struct{}

	mu      sync.Mutex // guards what follows
	applied *fleetv1.Release
	bundle  *bundle.Bundle
	log     []string
}

// Connect opens a stream and serves it until it is over, or Close.
func (n *Node) Connect(serve func(Stream) error) {
	n.conn, n.done = Open(serve), make(chan struct{})
	go func() {
		defer close(n.done)
		n.run()
	}()
}

// Close breaks the connection and waits for everything.
func (n *Node) Close() error {
	n.conn.Break()
	return n.Wait()
}

// Wait waits until the stream is over and gives what the handler returned.
func (n *Node) Wait() error {
	<-n.done
	return n.conn.Wait()
}

// Say sends a message of the test's own.
func (n *Node) Say(m *fleetv1.FromNode) bool { return n.conn.Say(m) }

// Leave says good-bye and closes the stream.
func (n *Node) Leave() error {
	n.conn.Say(Leaving())
	n.conn.CloseSend()
	return n.Wait()
}

// Applied is what the node serves; nil: nothing.
func (n *Node) Applied() *fleetv1.Release {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.applied
}

// Log is what control said, a word for each: "whole", "delta", "commit", "abort".
func (n *Node) Log() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.log...)
}

func (n *Node) note(word string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.log = append(n.log, word)
}

// incoming is an offer that is coming in, or awaits its commit.
type incoming struct {
	head   *fleetv1.Offer
	delta  bundle.Delta
	bundle *bundle.Bundle
}

func (n *Node) run() {
	if !n.conn.Say(Hello(n.Name, n.Applied())) {
		return
	}
	var in *incoming
	for m := n.conn.Hear(); m != nil; m = n.conn.Hear() {
		switch m := m.GetMessage().(type) {
		case *fleetv1.ToNode_Welcome:
			n.keys(m.Welcome.GetGossipKeys())
		case *fleetv1.ToNode_GossipKeys:
			n.keys(m.GossipKeys.GetKeys())
		case *fleetv1.ToNode_Offer:
			in = n.offered(m.Offer)
		case *fleetv1.ToNode_OfferPart:
			if in != nil && in.head.GetNonce() == m.OfferPart.GetNonce() {
				n.part(in, m.OfferPart)
			}
		case *fleetv1.ToNode_Commit:
			n.note("commit")
			if in != nil && in.bundle != nil && in.head.GetNonce() == m.Commit.GetNonce() {
				n.commit(in)
				in = nil
			}
		case *fleetv1.ToNode_Question:
			if n.Answer != nil {
				a := n.Answer(m.Question)
				a.Id = m.Question.GetId()
				n.conn.Say(&fleetv1.FromNode{Message: &fleetv1.FromNode_Answer{Answer: a}})
			}
		case *fleetv1.ToNode_Abort:
			n.note("abort")
			in = nil
		}
	}
}

func (n *Node) keys(keys [][]byte) {
	if n.Keys != nil && n.Keys(keys) {
		digest := sha256.Sum256(slices.Concat(keys...))
		n.conn.Say(Status(&fleetv1.Status{GossipKeys: digest[:]}))
	}
}

func (n *Node) offered(m *fleetv1.Offer) *incoming {
	in := &incoming{head: m}
	if base, err := bundle.ParseDigest(m.GetBaseDigest()); err == nil {
		in.delta.Base = base
		n.note("delta")
	} else {
		n.note("whole")
	}
	return in
}

func (n *Node) part(in *incoming, m *fleetv1.OfferPart) {
	Take(&in.delta, m)
	if !m.GetLast() {
		return
	}
	nonce := in.head.GetNonce()
	b, err := in.delta.Apply(n.bundle)
	if err != nil {
		n.conn.Say(NeedFull(nonce, err.Error()))
		return
	}
	if n.Mute {
		return
	}
	if refusals := n.refusals(in.head.GetRelease()); len(refusals) > 0 {
		n.conn.Say(Prepared(nonce, refusals...))
		return
	}
	in.bundle = b
	n.conn.Say(Prepared(nonce))
}

// SetRefuse sets Refuse while the node is connected.
func (n *Node) SetRefuse(refuse func(*fleetv1.Release) []*fleetv1.Refusal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.Refuse = refuse
}

func (n *Node) refusals(release *fleetv1.Release) []*fleetv1.Refusal {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.Refuse == nil {
		return nil
	}
	return n.Refuse(release)
}

func (n *Node) commit(in *incoming) {
	if n.MuteCommits {
		return
	}
	release := in.head.GetRelease()
	if n.Lie {
		n.conn.Say(Committed(in.head.GetNonce(), &fleetv1.Release{Revision: release.GetRevision() + 1, Digest: release.GetDigest()}))
		return
	}
	n.mu.Lock()
	n.applied, n.bundle = release, in.bundle
	n.mu.Unlock()
	n.conn.Say(Committed(in.head.GetNonce(), release))
}

// Take adds a part to a delta.
func Take(delta *bundle.Delta, m *fleetv1.OfferPart) {
	for _, r := range m.GetRemoved() {
		delta.Removed = append(delta.Removed, bundle.Key{Kind: config.Kind(r.GetKind()), Name: r.GetName()})
	}
	for _, r := range m.GetUpserted() {
		key := bundle.Key{Kind: config.Kind(r.GetKind()), Name: r.GetName()}
		delta.Upserted = append(delta.Upserted, bundle.Resource{Key: key, Body: r.GetBody()})
	}
}
