package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyserve/pyserve/node/forward"
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
					r.Limiter().Tidy(forward.Clock(now))
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
		u := r.Limiter().Usage(now)
		out <- total(g.limited, u.Limited, r.Name())
		out <- total(g.limitsForgotten, u.Evicted, r.Name())
		out <- level(g.limitKeys, float64(u.Keys), r.Name())
	}
}
