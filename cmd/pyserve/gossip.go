package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyserve/pyserve/cluster"
	"github.com/pyserve/pyserve/node/agent"
	"github.com/pyserve/pyserve/node/peer"
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

// peerMetrics report what nodes get from one another while control is away.
type peerMetrics struct {
	agent         *agent.Agent
	server        *peer.Server
	fetched, busy *prometheus.Desc
}

func newPeerMetrics(a *agent.Agent, s *peer.Server) *peerMetrics {
	return &peerMetrics{
		agent: a, server: s,
		fetched: prometheus.NewDesc("pyserve_peer_fetches_total", "What came of asking other nodes for a newer configuration.", []string{"result"}, nil),
		busy:    prometheus.NewDesc("pyserve_peer_refused_total", "Connections and calls of other nodes that there was no room for.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (p *peerMetrics) Describe(out chan<- *prometheus.Desc) {
	out <- p.fetched
	out <- p.busy
}

// Collect implements prometheus.Collector.
func (p *peerMetrics) Collect(out chan<- prometheus.Metric) {
	for result, n := range p.agent.FromPeers() {
		out <- prometheus.MustNewConstMetric(p.fetched, prometheus.CounterValue, float64(n), result)
	}
	out <- prometheus.MustNewConstMetric(p.busy, prometheus.CounterValue, float64(p.server.Busy()))
}
