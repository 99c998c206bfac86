package node

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/meter"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// maxSampled is how many routes a sample names.
const maxSampled = 1000

// Sample gives what the node has counted since its start, with up to so many routes, the busiest ones.
func (n *Node) Sample(routes int) *fleetv1.Sample {
	all, busiest, used := n.meter.Sample(min(routes, maxSampled))
	open, total := n.meter.Connections()
	m := &fleetv1.Sample{
		At: durationpb.New(time.Since(n.made)), Load: n.Load(), Connections: open, ConnectionsTotal: total,
		All: counts(all), RouteCount: uint32(used), Bounds: meter.Bounds(),
	}
	for _, r := range busiest {
		m.Routes = append(m.Routes, &fleetv1.RouteCounts{Route: text(r.Route), Counts: counts(r.Counts)})
	}
	return m
}

func counts(c meter.Counts) *fleetv1.Counts {
	return &fleetv1.Counts{
		Requests: c.Requests, Errors: c.Errors, Refused: c.Refused, Received: c.Received, Sent: c.Sent, Buckets: c.Buckets,
	}
}
