package node

import (
	"cmp"
	"iter"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/node/forward"
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

// BackendStatus is the verdict on a backend of a route.
type BackendStatus struct {
	Route, Address string
	State          fleetv1.BackendState
	Reason         string
	Since          time.Time
	// FailOpen: it is unhealthy, and that does not count, since so few backends of its pool are healthy.
	FailOpen bool
}

// Message is what control is told.
func (s BackendStatus) Message() *fleetv1.BackendStatus {
	m := &fleetv1.BackendStatus{Route: s.Route, Address: s.Address, State: s.State, Reason: s.Reason, FailOpen: s.FailOpen}
	if !s.Since.IsZero() {
		m.Since = timestamppb.New(s.Since)
	}
	return m
}

// EachBackend gives the verdict on every backend of every live route, sorted by route and address. It makes nothing of
// them, since it is looked through after every apply and change of health, and there may be very many.
func (n *Node) EachBackend() iter.Seq[BackendStatus] {
	return func(yield func(BackendStatus) bool) {
		g := n.live.Load()
		if g == nil {
			return
		}
		for _, r := range g.routes {
			if !eachStatus(r, yield) {
				return
			}
		}
	}
}

// Backends gives what EachBackend does as messages.
func (n *Node) Backends() []*fleetv1.BackendStatus {
	var all []*fleetv1.BackendStatus
	for s := range n.EachBackend() {
		all = append(all, s.Message())
	}
	return all
}

// eachStatus gives those of one route, a backend that is listed twice once, until yield returns false.
func eachStatus(r *forward.Route, yield func(BackendStatus) bool) bool {
	var split []BackendStatus
	for part, p := range r.EachPool {
		members := p.Members()
		if len(members) > 1 {
			members = merged(members)
		}
		for _, m := range members {
			s := statusOf(r, p, m)
			if part > 0 {
				split = append(split, s)
			} else if !yield(s) {
				return false
			}
		}
	}
	slices.SortStableFunc(split, func(a, b BackendStatus) int { return strings.Compare(a.Address, b.Address) })
	for _, s := range split {
		if !yield(s) {
			return false
		}
	}
	return true
}

func statusOf(r *forward.Route, p *upstream.Pool, m upstream.Member) BackendStatus {
	v := m.Backend.Verdict()
	s := BackendStatus{Route: r.Name(), Address: m.Backend.Address(), State: stateOf(v.State), Reason: v.Reason, Since: v.Since}
	if e, stands := p.Ejection(m.Backend); stands && v.State != upstream.Unhealthy {
		s.State, s.Reason, s.Since = fleetv1.BackendState_BACKEND_STATE_EJECTED, e.Reason, e.Since
	}
	s.FailOpen = v.State == upstream.Unhealthy && m.Weight > 0 && p.FailsOpen()
	if m.Weight == 0 {
		s.State = fleetv1.BackendState_BACKEND_STATE_DRAINING
	}
	return s
}

// merged gives each backend once, with the largest of its weights, sorted by address.
func merged(members []upstream.Member) []upstream.Member {
	members = slices.SortedFunc(slices.Values(members), func(a, b upstream.Member) int {
		return cmp.Or(strings.Compare(a.Backend.Address(), b.Backend.Address()),
			boolOrder(a.Backend.Spec().TLS != nil, b.Backend.Spec().TLS != nil), cmp.Compare(b.Weight, a.Weight))
	})
	return slices.CompactFunc(members, func(kept, m upstream.Member) bool { return kept.Backend == m.Backend })
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
