package meter

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	requestsDesc = prometheus.NewDesc("pyserve_requests_total",
		"Requests that have ended, by the class of their status.", []string{"route", "code_class"}, nil)
	secondsDesc = prometheus.NewDesc("pyserve_request_seconds",
		"Time from a request's head to the end of its answer, or to its upgrade.", []string{"route"}, nil)
	bytesDesc = prometheus.NewDesc("pyserve_request_bytes_total",
		"Bytes of bodies that were received from clients and sent to them.", []string{"route", "direction"}, nil)
	retriesDesc = prometheus.NewDesc("pyserve_retries_total",
		"Times that requests were sent again, on another backend or connection.", []string{"route"}, nil)
	deniedDesc = prometheus.NewDesc("pyserve_retries_denied_total",
		"Requests that were not sent again since the route's retries had used up their budget.", []string{"route"}, nil)
	failuresDesc = prometheus.NewDesc("pyserve_request_failures_total",
		"Requests that were not forwarded to their end, by whose doing it was.", []string{"route", "class"}, nil)
	inFlightDesc = prometheus.NewDesc("pyserve_requests_in_flight",
		"Requests under way, tunnels not counted.", nil, nil)
	rejectedDesc = prometheus.NewDesc("pyserve_rejected_messages_total",
		"Messages that were refused for what they look like on the wire, by who sent them.", []string{"side", "reason"}, nil)
	connectionsDesc = prometheus.NewDesc("pyserve_client_connections",
		"Connections of clients that are open.", nil, nil)
	connectionsTotalDesc = prometheus.NewDesc("pyserve_client_connections_total",
		"Connections that clients have opened.", nil, nil)
)

// boundsInSeconds are what the buckets are called.
var boundsInSeconds = func() (seconds [len(bounds)]float64) {
	for i, b := range bounds {
		seconds[i] = b.Seconds()
	}
	return seconds
}()

// Describe is for the registry.
func (s *Set) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		requestsDesc, secondsDesc, bytesDesc, retriesDesc, deniedDesc, failuresDesc, inFlightDesc, rejectedDesc, connectionsDesc,
		connectionsTotalDesc,
	} {
		out <- d
	}
}

// Collect is for the registry. Counting goes on meanwhile: each number is one that was right at some moment of the call, so
// that none falls from one call to the next, but a request that ends meanwhile may be seen in one number and not yet in
// another.
func (s *Set) Collect(out chan<- prometheus.Metric) {
	s.collectLoads(out)
	s.collectRejected(out)
	for _, r := range s.used() {
		t := r.totals()
		s.collectRoute(out, r.name, &t)
	}
}

// used are the routes that have something to tell. The lock is not held while they do: a scrape may take long.
func (s *Set) used() []*Route {
	s.mu.Lock()
	defer s.mu.Unlock()
	var used []*Route
	for _, r := range s.routes {
		if r.cells.Load() != nil {
			used = append(used, r)
		}
	}
	return used
}

func (s *Set) collectLoads(out chan<- prometheus.Metric) {
	open, opened := s.Connections()
	out <- gauge(inFlightDesc, int64(s.UnderWay()))
	out <- gauge(connectionsDesc, int64(open))
	out <- counter(connectionsTotalDesc, opened)
}

func (s *Set) collectRejected(out chan<- prometheus.Metric) {
	for side := range s.rejected {
		for reason := range s.rejected[side] {
			if n := s.rejected[side][reason].Load(); n > 0 {
				out <- counter(rejectedDesc, n, sides[side], s.reasons[reason])
			}
		}
	}
}

func (s *Set) collectRoute(out chan<- prometheus.Metric, route string, t *totals) {
	for i, class := range codeClasses {
		out <- counter(requestsDesc, t.requests[i], route, class)
	}
	out <- t.histogram(route)
	out <- counter(bytesDesc, t.received, route, "received")
	out <- counter(bytesDesc, t.sent, route, "sent")
	out <- counter(retriesDesc, t.retries, route)
	if t.retriesDenied > 0 {
		out <- counter(deniedDesc, t.retriesDenied, route)
	}
	for i, class := range s.classes {
		if t.failures[i] > 0 || class != unknown {
			out <- counter(failuresDesc, t.failures[i], route, class)
		}
	}
}

// totals are a route's cells, added up.
type totals struct {
	requests                  [len(codeClasses)]uint64
	buckets                   [len(bounds) + 1]uint64
	milliseconds, nanoseconds uint64
	received, sent            uint64
	retries                   uint64
	failures                  [maxClasses + 1]uint64
	retriesDenied             uint64
}

func (r *Route) totals() (t totals) {
	all := r.cells.Load()
	for i := range all.shards {
		if c := all.shards[i].Load(); c != nil {
			t.add(c)
		}
	}
	t.retriesDenied = all.retriesDenied.Load()
	return t
}

func (t *totals) add(c *cell) {
	addEach(t.requests[:], c.requests[:])
	addEach(t.buckets[:], c.buckets[:])
	addEach(t.failures[:], c.failures[:])
	t.milliseconds += c.milliseconds.Load()
	t.nanoseconds += c.nanoseconds.Load()
	t.received += c.received.Load()
	t.sent += c.sent.Load()
	t.retries += c.retries.Load()
}

func addEach(sums []uint64, counts []atomic.Uint64) {
	for i := range sums {
		sums[i] += counts[i].Load()
	}
}

// histogram counts its requests by its buckets rather than by t.requests: a histogram whose count is not the sum of its
// buckets is not one.
func (t *totals) histogram(route string) prometheus.Metric {
	cumulative := make(map[float64]uint64, len(bounds))
	var count uint64
	for i, n := range t.buckets {
		count += n
		if i < len(bounds) {
			cumulative[boundsInSeconds[i]] = count
		}
	}
	seconds := float64(t.milliseconds)/1e3 + float64(t.nanoseconds)/1e9
	return prometheus.MustNewConstHistogram(secondsDesc, count, seconds, cumulative, route)
}

func counter(d *prometheus.Desc, n uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func gauge(d *prometheus.Desc, n int64) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n))
}
