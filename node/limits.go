package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyserve/pyserve/node/forward"
	"github.com/pyserve/pyserve/node/upstream"
)

// tidyInterval is how soon the memory of idle keys is given back.
const tidyInterval = 10 * time.Second

// tidyLimits is a goroutine, until the node closes.
func (n *Node) tidyLimits() {
	tick := time.NewTicker(tidyInterval)
	defer tick.Stop()
	for {
		select {
		case <-n.cutting.Done():
			return
		case now := <-tick.C:
			if g := n.live.Load(); g != nil {
				for _, r := range g.limited {
					r.TidyLimit(forward.Clock(now))
				}
			}
		}
	}
}

// collectLimits gives what rate limits hold and have done.
func (g *gauges) collectLimits(live *Generation, out chan<- prometheus.Metric) {
	if live == nil {
		return
	}
	now := forward.Clock(time.Now())
	for _, r := range live.limited {
		u := r.LimitUsage(now)
		out <- total(g.limited, u.Limited, r.Name())
		out <- total(g.limitsForgotten, u.Evicted, r.Name())
		out <- level(g.limitKeys, float64(u.Keys), r.Name())
		if s := r.Shared(); s != nil {
			_, did := s.Usage(now)
			out <- total(g.limitPassed, did.Borrowed, r.Name(), "owner")
			out <- total(g.limitPassed, did.Shared, r.Name(), "share")
			out <- total(g.limitLent, s.Used(), r.Name())
		}
	}
	out <- level(g.lendersAway, float64(g.node.lending.lenders.Away()))
}

// collectBreakers gives what circuit breakers have let in and have not, over all parts of a route.
func (g *gauges) collectBreakers(live *Generation, out chan<- prometheus.Metric) {
	if live == nil {
		return
	}
	for _, r := range live.bounded {
		var sum upstream.Occupancy
		for _, p := range r.EachPool {
			if !p.Bounded() {
				continue
			}
			o := p.Occupancy()
			sum.Requests += o.Requests
			sum.Pending += o.Pending
			sum.Refused += o.Refused
			sum.Expired += o.Expired
		}
		out <- level(g.breakerRequests, float64(sum.Requests), r.Name(), "running")
		out <- level(g.breakerRequests, float64(sum.Pending), r.Name(), "pending")
		out <- total(g.breakerRejected, sum.Refused, r.Name(), "full")
		out <- total(g.breakerRejected, sum.Expired, r.Name(), "timeout")
	}
}
