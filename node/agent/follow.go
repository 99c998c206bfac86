package agent

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node/peer"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// Peer is another node and what it says that it serves, which is a hint and no more.
type Peer struct {
	Name string
	// Address is host:port of its gossip.
	Address         string
	Epoch, Revision uint64
}

const (
	// awayTime is how long no control may have been there before peers are asked: most restarts of a control are shorter.
	// A node that serves nothing waits less, since it has nothing to lose.
	awayTime      = 5 * time.Second
	emptyAwayTime = time.Second
	// followInterval is between two looks at the peers, and followJitter spreads what the members of a fleet do when all see
	// the same news.
	followInterval = 500 * time.Millisecond
	followJitter   = 300 * time.Millisecond
	// askedAtOnce is how many peers are asked.
	askedAtOnce = 3
	// distrustTime is how long a peer is not asked that gave something wrong; each further time doubles it, up to
	// longDistrust. What it claims in gossip meanwhile makes no difference.
	distrustTime = time.Minute
	longDistrust = time.Hour
	// refusedTime is how long a release that the node could not serve is not fetched again.
	refusedTime = 30 * time.Second
)

// Why a peer's release is not taken. What control signed long ago is signed for ever, so a signature is not all.
var (
	errOlder      = errors.New("the peer serves nothing newer")
	errOtherEpoch = errors.New("the peer serves a release of another epoch, which only control brings")
	errRefused    = errors.New("this node could not serve the peer's release a moment ago")
)

// peerCounts count what came of asking peers, by result.
type peerCounts struct {
	mu     sync.Mutex // guards counts
	counts map[string]uint64
}

func (p *peerCounts) add(result string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.counts == nil {
		p.counts = make(map[string]uint64)
	}
	p.counts[result]++
}

// FromPeers counts what came of asking peers, since the start: "served", "refused" (this node could not serve it), and per
// peer "unanswered", "unsigned", "older", "other_epoch" and "damaged". It may be called from any goroutine.
func (a *Agent) FromPeers() map[string]uint64 {
	out := map[string]uint64{"served": 0, "refused": 0, "unanswered": 0, "unsigned": 0, "older": 0, "other_epoch": 0, "damaged": 0}
	a.peers.mu.Lock()
	defer a.peers.mu.Unlock()
	maps.Copy(out, a.peers.counts)
	return out
}

// PeerIdentity is who the node is to its peers. It may be called from any goroutine.
func (a *Agent) PeerIdentity() peer.Identity {
	id := a.identity.Load()
	return peer.Identity{ClusterID: id.ClusterID, Certificate: id.pair, Authorities: id.pool, ReleaseKey: id.ReleaseKey}
}

// follower asks peers while control is away. It belongs to one goroutine, so that a bundle is fetched once however many
// peers have it.
type follower struct {
	agent *Agent
	pause backoff
	next  time.Time // not before it
	// distrusted are peers that gave something wrong.
	distrusted map[string]distrust
	refused    *fleetv1.Release // what could not be served
	again      time.Time        // when it may be tried again
}

// distrust is of one peer: until when it lasts, and for how long it was meant.
type distrust struct {
	until time.Time
	lasts time.Duration
}

// more is the distrust of a peer that gave something wrong again. After an hour without it begins anew.
func (d distrust) more(now time.Time) distrust {
	lasts := distrustTime
	if now.Before(d.until.Add(longDistrust)) {
		lasts = min(max(2*d.lasts, distrustTime), longDistrust)
	}
	return distrust{until: now.Add(lasts), lasts: lasts}
}

// follow takes what peers serve while control is away, until ctx ends.
func (a *Agent) follow(ctx context.Context) {
	f := &follower{agent: a, distrusted: make(map[string]distrust)}
	ticker := time.NewTicker(followInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			f.look(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// isAway says whether control has been away for long enough.
func (a *Agent) isAway() bool {
	wait := awayTime
	if a.applied == nil {
		wait = emptyAwayTime
	}
	return !a.gone.IsZero() && a.options.Now().Sub(a.gone) >= wait
}

// look asks some of the peers that say that they serve something newer.
func (f *follower) look(ctx context.Context) {
	a := f.agent
	now := a.options.Now()
	a.mu.Lock()
	away := a.isAway()
	a.mu.Unlock()
	if !away || now.Before(f.next) {
		return
	}
	nodes := f.newer(now)
	if len(nodes) == 0 {
		return
	}
	if pauseFor(ctx, rand.N(followJitter)) != nil {
		return
	}
	if f.fetch(ctx, nodes) {
		f.pause.reset()
		return
	}
	f.next = a.options.Now().Add(f.pause.next())
}

func pauseFor(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// newer picks some peers at random that say that they serve what this node would take.
func (f *follower) newer(now time.Time) (nodes []peer.Node) {
	for _, p := range f.agent.options.Peers() {
		claimed := &fleetv1.Release{Epoch: p.Epoch, Revision: p.Revision}
		if now.Before(f.distrusted[p.Name].until) || p.Revision == 0 || f.agent.acceptable(claimed) != nil {
			continue
		}
		nodes = append(nodes, peer.Node{Name: p.Name, Address: p.Address})
	}
	rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	return nodes[:min(len(nodes), askedAtOnce)]
}

// acceptable says why a release is not taken from a peer, or nil: what is served is followed by later revisions of its own
// epoch alone. Another epoch is the end of what was applied since a backup, and that is for an operator to bring about.
// A node that serves nothing takes any that is not behind what it once had.
func (a *Agent) acceptable(release *fleetv1.Release) error {
	return a.driving(func() error { return a.acceptableNow(release) })
}

// acceptableNow is called with mu held.
func (a *Agent) acceptableNow(release *fleetv1.Release) error {
	served := a.options.Node.Applied()
	switch {
	case release.GetEpoch() < a.memory.epoch, served != nil && release.GetEpoch() != served.GetEpoch():
		return errOtherEpoch
	case served != nil && release.GetRevision() <= served.GetRevision():
		return errOlder
	}
	return nil
}

// fetch gets the newest release of those peers and serves it. It says whether it did.
func (f *follower) fetch(ctx context.Context, nodes []peer.Node) bool {
	a := f.agent
	var base *bundle.Bundle
	if h := a.held.Load(); h != nil {
		base = h.bundle
	}
	fetched, err := peer.Fetch(ctx, peer.FetchOptions{
		Identity: a.PeerIdentity(), Nodes: nodes, Base: base, Accept: f.accept, Failed: f.failed, Now: a.options.Now,
	})
	if err != nil {
		return false // each peer's reason was told
	}
	return f.take(fetched)
}

func (f *follower) accept(release *fleetv1.Release) error {
	if f.refused != nil && sameRelease(release, f.refused) && f.agent.options.Now().Before(f.again) {
		return errRefused
	}
	return f.agent.acceptable(release)
}

// failed counts and tells what was wrong with a peer.
func (f *follower) failed(node peer.Node, err error) {
	a := f.agent
	result := "unanswered"
	switch {
	case errors.Is(err, bundle.ErrSignature):
		result = "unsigned"
	case errors.Is(err, errOlder):
		result = "older"
	case errors.Is(err, errOtherEpoch):
		result = "other_epoch"
	case errors.Is(err, peer.ErrDamaged), errors.Is(err, bundle.ErrManifest):
		result = "damaged"
	case errors.Is(err, errRefused):
		return
	}
	a.peers.add(result)
	if result == "unanswered" {
		a.options.Logger.Debug("a peer did not give its configuration", "peer", node.Name, "address", node.Address, "reason", err)
		return
	}
	d := f.distrusted[node.Name].more(a.options.Now())
	f.distrusted[node.Name] = d
	a.options.Logger.Warn("what a peer gave is not taken; it is not asked for a while", "peer", node.Name, "address", node.Address, "reason", err, "for", d.lasts)
}

// take serves what was fetched, unless control is back or the node serves as much by now.
func (f *follower) take(fetched *peer.Fetched) bool {
	a := f.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.isAway() || a.acceptableNow(fetched.Release) != nil {
		return false
	}
	ready, refusals := a.ready(fetched.Release, fetched.Bundle)
	if refusals != nil {
		a.peers.add("refused")
		f.refused, f.again = fetched.Release, a.options.Now().Add(refusedTime)
		a.tellRefusals(fetched.Release, "cannot serve the bundle of a peer", refusals)
		return false
	}
	a.refusals = nil
	if !a.serve(ready) {
		return false // the node drains
	}
	a.giver = fetched.From
	a.peers.add("served")
	a.options.Logger.Info("the revision is from a peer: no control is there", "revision", fetched.Release.GetRevision(), "peer", fetched.From,
		"resources", fetched.Bodies, "bytes", fetched.Bytes)
	return true
}
