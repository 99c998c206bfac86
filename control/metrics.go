package control

import "github.com/prometheus/client_golang/prometheus"

// collector reads the status anew for every scrape, so that nothing is counted twice or forgotten.
type collector struct {
	control   *Control
	revision  *prometheus.Desc
	converged *prometheus.Desc
	nodes     *prometheus.Desc
}

// Collector gives the metrics of a control that was started.
func (c *Control) Collector() prometheus.Collector {
	return &collector{
		control:   c,
		revision:  prometheus.NewDesc("pyserve_control_revision", "The active revision; 0 before the first apply.", nil, nil),
		converged: prometheus.NewDesc("pyserve_control_converged", "1 when every node serves the active revision.", nil, nil),
		nodes:     prometheus.NewDesc("pyserve_control_nodes", "Nodes by state.", []string{"state"}, nil),
	}
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.revision
	ch <- c.converged
	ch <- c.nodes
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	status := c.control.Status()
	converged := 0.0
	if status.GetConverged() {
		converged = 1
	}
	ch <- prometheus.MustNewConstMetric(c.revision, prometheus.GaugeValue, float64(status.GetRevision()))
	ch <- prometheus.MustNewConstMetric(c.converged, prometheus.GaugeValue, converged)
	states := map[string]float64{"joining": 0, "ready": 0, "draining": 0, "rejected": 0, "disconnected": 0, "left": 0}
	for _, node := range status.GetNodes() {
		states[node.GetState()]++
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(c.nodes, prometheus.GaugeValue, n, state)
	}
}
