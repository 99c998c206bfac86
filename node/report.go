package node

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/node/upstream"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// Applied is what the node serves; nil: nothing. It must not be changed.
func (n *Node) Applied() *fleetv1.Release {
	if g := n.live.Load(); g != nil {
		return g.release
	}
	return nil
}

// ListenAddress is the bound address of the live generation's listener; empty while nothing is served.
func (n *Node) ListenAddress() string {
	if g := n.live.Load(); g != nil {
		return g.listener.Address()
	}
	return ""
}

// Ready says that the node serves a generation and does not drain.
func (n *Node) Ready() bool { return n.live.Load() != nil && !n.Draining() }

// Draining says that clients are to go elsewhere: Drain was called and not taken back, or Stop.
func (n *Node) Draining() bool { return n.stopping.Load() || n.retired.Load() }

// Changed is signalled after what is served, a backend's state or draining has changed. It holds one signal: who reads it
// looks at everything.
func (n *Node) Changed() <-chan struct{} { return n.changed }

func (n *Node) signal() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// verdictChanged is the registry's hook; who changed the verdict has logged it.
func (n *Node) verdictChanged(*upstream.Backend) { n.signal() }

// Backends is the verdict on every backend of every live route, sorted by route and address.
func (n *Node) Backends() []*fleetv1.BackendStatus {
	g := n.live.Load()
	if g == nil {
		return nil
	}
	var all []*fleetv1.BackendStatus
	for _, r := range g.routes {
		all = append(all, statuses(r.Name(), r.Pool().Members())...)
	}
	return all
}

// statuses are those of one route. A backend that is listed twice is one.
func statuses(route string, members []upstream.Member) []*fleetv1.BackendStatus {
	weights := make(map[*upstream.Backend]uint64, len(members))
	for _, m := range members {
		weights[m.Backend] += uint64(m.Weight)
	}
	backends := slices.SortedFunc(maps.Keys(weights), func(a, b *upstream.Backend) int {
		if order := slices.Compare([]byte(a.Address()), []byte(b.Address())); order != 0 {
			return order
		}
		return boolOrder(a.Spec().TLS != nil, b.Spec().TLS != nil)
	})
	out := make([]*fleetv1.BackendStatus, 0, len(backends))
	for _, b := range backends {
		v := b.Verdict()
		s := &fleetv1.BackendStatus{Route: route, Address: b.Address(), State: stateOf(v.State), Reason: v.Reason}
		if weights[b] == 0 {
			s.State = fleetv1.BackendState_BACKEND_STATE_DRAINING
		}
		if !v.Since.IsZero() {
			s.Since = timestamppb.New(v.Since)
		}
		out = append(out, s)
	}
	return out
}

func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func stateOf(s upstream.State) fleetv1.BackendState {
	switch s {
	case upstream.Unknown:
		return fleetv1.BackendState_BACKEND_STATE_UNKNOWN
	case upstream.Healthy:
		return fleetv1.BackendState_BACKEND_STATE_HEALTHY
	case upstream.Unhealthy:
		return fleetv1.BackendState_BACKEND_STATE_UNHEALTHY
	}
	return fleetv1.BackendState_BACKEND_STATE_UNSPECIFIED
}
