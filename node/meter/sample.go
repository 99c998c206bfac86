package meter

import (
	"cmp"
	"slices"
)

// Counts are what a route, or all of them together, have counted. They never fall.
type Counts struct {
	Requests uint64
	// Errors are the requests with a status of 500 or more and those without an answer, Refused those of 400 to 499.
	Errors, Refused uint64
	// Received and Sent are bytes of bodies, from clients and to them.
	Received, Sent uint64
	// Buckets say how many requests took how long: see Bounds. One more bucket takes what is longer.
	Buckets []uint64
}

// RouteCounts are those of one route.
type RouteCounts struct {
	Route string
	Counts
}

// Bounds are the upper ends of Counts.Buckets, in seconds.
func Bounds() []float64 { return slices.Clone(boundsInSeconds[:]) }

// Sample gives the counts of all routes together, and those of the most routes with the most requests, the busiest first.
// Routes that were forgotten are in neither. used is how many there are that have counted anything.
func (s *Set) Sample(most int) (all Counts, busiest []RouteCounts, used int) {
	all.Buckets = make([]uint64, len(bounds)+1)
	for _, r := range s.used() {
		t := r.totals()
		c := t.counts()
		all.add(c)
		used++
		busiest = append(busiest, RouteCounts{r.name, c})
		if len(busiest) >= 2*max(most, 1) {
			busiest = keepBusiest(busiest, most)
		}
	}
	return all, keepBusiest(busiest, most), used
}

func keepBusiest(routes []RouteCounts, most int) []RouteCounts {
	slices.SortFunc(routes, func(a, b RouteCounts) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.Route, b.Route))
	})
	return routes[:min(len(routes), most)]
}

func (t *totals) counts() Counts {
	c := Counts{Received: t.received, Sent: t.sent, Buckets: slices.Clone(t.buckets[:])}
	for i, n := range t.requests {
		c.Requests += n
		switch codeClasses[i] {
		case "none", "5xx":
			c.Errors += n
		case "4xx":
			c.Refused += n
		}
	}
	return c
}

func (c *Counts) add(more Counts) {
	c.Requests += more.Requests
	c.Errors += more.Errors
	c.Refused += more.Refused
	c.Received += more.Received
	c.Sent += more.Sent
	for i, n := range more.Buckets {
		c.Buckets[i] += n
	}
}
