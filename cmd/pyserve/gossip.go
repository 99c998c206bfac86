package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyserve/pyserve/cluster"
)

// gossipMetrics report what gossip counts, as soon as this process takes part.
type gossipMetrics struct {
	cluster          func() *cluster.Cluster // nil: not yet
	members, dropped *prometheus.Desc
}

func newGossipMetrics(of func() *cluster.Cluster) *gossipMetrics {
	return &gossipMetrics{
		cluster: of,
		members: prometheus.NewDesc("pyserve_gossip_members", "Members of the cluster that control vouched for, this one included.",
			[]string{"role", "state"}, nil),
		dropped: prometheus.NewDesc("pyserve_gossip_dropped_total", "What came by gossip and was not believed, or got lost on this side.",
			[]string{"reason"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (g *gossipMetrics) Describe(out chan<- *prometheus.Desc) {
	out <- g.members
	out <- g.dropped
}

// Collect implements prometheus.Collector.
func (g *gossipMetrics) Collect(out chan<- prometheus.Metric) {
	c := g.cluster()
	if c == nil {
		return
	}
	counts := map[[2]string]int{}
	for _, m := range c.Members() {
		counts[[2]string{m.Role.String(), m.State.String()}]++
	}
	for labels, n := range counts {
		out <- prometheus.MustNewConstMetric(g.members, prometheus.GaugeValue, float64(n), labels[0], labels[1])
	}
	for reason, n := range c.Dropped() {
		out <- prometheus.MustNewConstMetric(g.dropped, prometheus.CounterValue, float64(n), reason)
	}
}
