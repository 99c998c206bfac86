package fleet

import (
	"cmp"
	"maps"
	"slices"
	"time"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// Node is what the fleet knows of a node, at one moment.
type Node struct {
	Name      string
	Connected bool
	// Left: it said that it would not be back by itself.
	Left bool
	// Lost is the control that it was connected to and that is gone itself; empty: it went by itself.
	Lost string
	// Since is when it connected or, without a connection, when the stream ended.
	Since   time.Time
	Version string
	// Applied is what it last said that it serves; nil: nothing, or never heard of.
	Applied *fleetv1.Release
	// Listen and Gossip are its bound addresses; empty: not said yet.
	Listen, Gossip string
	Draining       bool
	// Authority is the hash of the authority that issued its certificate; nil: not said yet.
	Authority []byte
	// GossipKeys is the digest of the keys of gossip that it uses, as [keyring.Ring] makes it; nil: not said.
	GossipKeys []byte
	// Refused is the revision that it refused last and has not served since; 0: none.
	Refused uint64
	// Rejected: what it refused is what the fleet should serve, not a proposal that was withdrawn.
	Rejected bool
	// Refusals is why; also without Refused, where the node itself reports what stands in its way.
	Refusals []*fleetv1.Refusal
	// Notes are what else the node wants to be known, one sentence each.
	Notes []string
}

// Reason is Refusals as one line.
func (n Node) Reason() string { return describeRefusals(n.Refusals) }

// Serves says whether the node serves exactly this release.
func (n Node) Serves(r *fleetv1.Release) bool { return sameRelease(n.Applied, r) }

// Ahead says whether the node serves what came after this release; it is not taken back to it.
func (n Node) Ahead(r *fleetv1.Release) bool { return n.Applied != nil && newer(n.Applied, r) }

// view is a session as a Node. The caller holds mu.
func (f *Fleet) view(s *session) Node {
	n := s.node
	n.Applied = s.applied
	if r := s.refused; r != nil {
		n.Refused, n.Rejected = r.target.Release.GetRevision(), r.target == f.target
		n.Refusals = r.refusals
	}
	return n
}

// Nodes gives every node that is connected or was since the start, here or at a follower, sorted by name.
func (f *Fleet) Nodes() []Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	nodes := slices.Collect(maps.Values(f.merged()))
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return nodes
}

// Node gives a node that is connected or was since the start, here or at a follower.
func (f *Fleet) Node(name string) (Node, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.merged()[name]
	return n, ok
}

// Connected says whether the node has a stream, here or at a follower.
func (f *Fleet) Connected(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, elsewhere := f.elsewhere(name, 0)
	return f.sessions[name] != nil || elsewhere != nil
}

// Forget drops what is known of a node that has no stream.
func (f *Fleet) Forget(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.gone, name)
	f.notify()
}

// BackendKey names a backend as status shows it.
type BackendKey struct{ Route, Address string }

// Verdict is what one node says of a backend.
type Verdict struct {
	Node   string
	Status *fleetv1.BackendStatus
}

// Verdicts gives what the nodes that are connected here say of each backend, by node name.
func (f *Fleet) Verdicts() map[BackendKey][]Verdict {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[BackendKey][]Verdict{}
	for _, name := range slices.Sorted(maps.Keys(f.sessions)) {
		for key, status := range f.sessions[name].backends {
			out[key] = append(out[key], Verdict{name, status})
		}
	}
	return out
}
