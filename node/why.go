package node

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/node/health"
	"github.com/pyserve/pyserve/node/upstream"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// maxEvidence is how many backends of one address, and how many routes of each, an answer names.
const maxEvidence = 100

// Why is what the verdicts on the live backends of an address, host:port, rest on: one for each way of checking it and of
// speaking to it.
func (n *Node) Why(address string) *fleetv1.Verdicts {
	out := &fleetv1.Verdicts{}
	live := n.live.Load()
	if live == nil {
		return out
	}
	routes := make(map[*upstream.Backend][]string)
	for _, r := range live.routes {
		for _, p := range r.EachPool {
			for _, m := range p.Members() {
				if b := m.Backend; strings.EqualFold(b.Address(), address) && !slices.Contains(routes[b], r.Name()) {
					routes[b] = append(routes[b], r.Name())
				}
			}
		}
	}
	backends := slices.SortedFunc(maps.Keys(routes), func(a, b *upstream.Backend) int {
		return cmp.Or(slices.Compare(routes[a], routes[b]), cmp.Compare(describe(a), describe(b)))
	})
	now := time.Now()
	for _, b := range backends[:min(len(backends), maxEvidence)] {
		e := evidence(n.prober.Evidence(b), now)
		e.Status.Address, e.Check = b.Address(), text(describe(b))
		e.Routes = slices.Sorted(slices.Values(routes[b]))[:min(len(routes[b]), maxEvidence)]
		out.Evidence = append(out.Evidence, e)
	}
	return out
}

func evidence(e health.Evidence, now time.Time) *fleetv1.Evidence {
	m := &fleetv1.Evidence{
		Status: verdictStatus(e.Verdict), DecidedBy: e.Source.String(), Members: uint32(e.Members), Probers: e.Probers, Role: e.Role,
		Refused: text(e.Refused),
	}
	if e.Own.State != upstream.Unknown {
		m.Own = verdictStatus(e.Own)
	}
	if e.Refused != "" {
		m.RefusedSince = timestamppb.New(e.RefusedSince)
	}
	for _, v := range e.Votes {
		m.Votes = append(m.Votes, &fleetv1.Vote{
			Node: text(v.Origin), State: v.State.String(), Reason: text(v.Reason), Since: timestamppb.New(v.Since),
			Age: durationpb.New(now.Sub(v.Heard)), Counted: v.Counted,
		})
	}
	return m
}

func verdictStatus(v upstream.Verdict) *fleetv1.BackendStatus {
	s := &fleetv1.BackendStatus{State: stateOf(v.State), Reason: text(v.Reason)}
	if !v.Since.IsZero() {
		s.Since = timestamppb.New(v.Since)
	}
	return s
}

// describe says how a backend is probed, and over what: what tells those of one address apart.
func describe(b *upstream.Backend) string {
	c := b.Spec().Check
	over := ""
	if b.Spec().TLS != nil {
		over = " over TLS"
	}
	switch c.GetType() {
	case resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_UNSPECIFIED, resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_NONE:
		return "not probed" + over
	}
	return fmt.Sprintf("%s%s every %s; %d failures or %d successes in a row count", health.Kind(c), over, c.GetInterval().AsDuration(),
		max(1, c.GetUnhealthyThreshold()), max(1, c.GetHealthyThreshold()))
}
