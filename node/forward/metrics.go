package forward

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// noRoute labels requests that no route took; the names of routes begin otherwise.
const noRoute = "none"

// codeClasses are the values of the label code_class; the first stands for requests that were cut without an answer.
var codeClasses = [...]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

var classes = [...]Class{ClassClient, ClassUpstreamBefore, ClassUpstreamAfter, ClassOurs}

// Metrics counts requests by route. The series of a route come into being with its first request, so that a configuration of
// 100,000 routes costs what is used of it. Its methods may be called concurrently.
type Metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	retries  *prometheus.CounterVec
	failures *prometheus.CounterVec
	inFlight prometheus.Gauge
}

// NewMetrics makes the metrics and registers them; a nil registerer registers them nowhere.
func NewMetrics(registerer prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pyserve_requests_total", Help: "Requests that have ended, by the class of their status.",
		}, []string{"route", "code_class"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pyserve_request_seconds", Help: "Time from a request's head to the end of its answer, or to its upgrade.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"route"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pyserve_retries_total", Help: "Requests that were sent a second time, on another backend or connection.",
		}, []string{"route"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pyserve_request_failures_total", Help: "Requests that were not forwarded to their end, by whose doing it was.",
		}, []string{"route", "class"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pyserve_requests_in_flight", Help: "Requests under way, tunnels not counted.",
		}),
	}
	if registerer == nil {
		return m, nil
	}
	for i, c := range m.collectors() {
		if err := registerer.Register(c); err != nil {
			// Not all of them: those that are refused are somebody else's, and Unregister would take his.
			for _, ours := range m.collectors()[:i] {
				registerer.Unregister(ours)
			}
			return nil, fmt.Errorf("register request metrics: %w", err)
		}
	}
	return m, nil
}

func (m *Metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.seconds, m.retries, m.failures, m.inFlight}
}

// Unregister undoes the registration by NewMetrics.
func (m *Metrics) Unregister(registerer prometheus.Registerer) {
	for _, c := range m.collectors() {
		registerer.Unregister(c)
	}
}

// Forget drops the series of a route that is no longer served. Requests that still end are not counted any more.
func (m *Metrics) Forget(route string) {
	for _, class := range codeClasses {
		m.requests.DeleteLabelValues(route, class)
	}
	m.seconds.DeleteLabelValues(route)
	m.retries.DeleteLabelValues(route)
	for _, class := range classes {
		m.failures.DeleteLabelValues(route, string(class))
	}
}

// routeCounts are one route's series, looked up once.
type routeCounts struct {
	requests [len(codeClasses)]prometheus.Counter
	seconds  prometheus.Observer
	retries  prometheus.Counter
	failures map[Class]prometheus.Counter
}

func (m *Metrics) route(name string) *routeCounts {
	c := &routeCounts{
		seconds:  m.seconds.WithLabelValues(name),
		retries:  m.retries.WithLabelValues(name),
		failures: make(map[Class]prometheus.Counter, len(classes)),
	}
	for i, class := range codeClasses {
		c.requests[i] = m.requests.WithLabelValues(name, class)
	}
	for _, class := range classes {
		c.failures[class] = m.failures.WithLabelValues(name, string(class))
	}
	return c
}

// ended counts a request by the status that was sent, 0 for none.
func (c *routeCounts) ended(status int, seconds float64) {
	i := status / 100
	if i < 0 || i >= len(codeClasses) {
		i = 0
	}
	c.requests[i].Inc()
	c.seconds.Observe(seconds)
}
