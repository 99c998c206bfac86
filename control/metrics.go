package control

import "github.com/prometheus/client_golang/prometheus"

// collector reads the status anew for every scrape, so that nothing is counted twice or forgotten.
type collector struct {
	control   *Control
	leads     *prometheus.Desc
	writable  *prometheus.Desc
	controls  *prometheus.Desc
	revision  *prometheus.Desc
	converged *prometheus.Desc
	nodes     *prometheus.Desc
}

// Collector gives the metrics of a control that was started.
func (c *Control) Collector() prometheus.Collector {
	return &collector{
		control:   c,
		leads:     prometheus.NewDesc("pyserve_control_leads", "1 where this control leads.", nil, nil),
		writable:  prometheus.NewDesc("pyserve_control_disk_writable", "1 where this control's disk takes writes, as far as is known.", nil, nil),
		controls:  prometheus.NewDesc("pyserve_control_controls", "How many controls the cluster has.", nil, nil),
		revision:  prometheus.NewDesc("pyserve_control_revision", "The active revision; 0 before the first apply.", nil, nil),
		converged: prometheus.NewDesc("pyserve_control_converged", "1 when every node serves the active revision. The control that leads alone tells it.", nil, nil),
		nodes:     prometheus.NewDesc("pyserve_control_nodes", "Nodes by state. The control that leads alone tells it.", []string{"state"}, nil),
	}
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.leads
	ch <- c.writable
	ch <- c.controls
	ch <- c.revision
	ch <- c.converged
	ch <- c.nodes
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	partial := c.control.Partial()
	leads := 1.0
	if !c.control.Leads() {
		leads = 0
	}
	ch <- prometheus.MustNewConstMetric(c.leads, prometheus.GaugeValue, leads)
	writable := 1.0
	if c.control.Trouble() != "" {
		writable = 0
	}
	ch <- prometheus.MustNewConstMetric(c.writable, prometheus.GaugeValue, writable)
	ch <- prometheus.MustNewConstMetric(c.controls, prometheus.GaugeValue, float64(len(c.control.others())+1))
	status := c.control.Status()
	converged := 0.0
	if status.GetConverged() {
		converged = 1
	}
	ch <- prometheus.MustNewConstMetric(c.revision, prometheus.GaugeValue, float64(status.GetRevision()))
	if partial {
		return // the leader's are the ones that count, and a sum over all controls must not be wrong
	}
	ch <- prometheus.MustNewConstMetric(c.converged, prometheus.GaugeValue, converged)
	states := map[string]float64{"joining": 0, "ready": 0, "draining": 0, "rejected": 0, "disconnected": 0, "left": 0}
	for _, node := range status.GetNodes() {
		states[node.GetState()]++
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(c.nodes, prometheus.GaugeValue, n, state)
	}
}
