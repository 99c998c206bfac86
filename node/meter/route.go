package meter

import (
	"sync/atomic"
	"time"
)

// codeClasses are the values of the label code_class; the first stands for requests that were cut without an answer, and for
// a status beyond 599, which no class is defined for (RFC 9110 section 15).
var codeClasses = [...]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

// CodeClass is the label's value for the first digit of a status, from 0 for none to 5.
func CodeClass(digit int) string { return codeClasses[digit] }

// bounds are the upper ends of the histogram's buckets, each within its bucket. One more bucket takes what is longer.
var bounds = [...]time.Duration{
	1 * time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	1 * time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, 60 * time.Second,
}

// Route counts the requests of one route. Its methods may be called concurrently, and after Forget. They allocate once for
// each shard that the route is counted on, and never after that.
type Route struct {
	name    string
	classes uint8 // how many have a name; the next number is that of the others
	mask    uint8 // shards - 1
	// Made with the first request: of 100,000 routes most have none for a long time, and cost 32 bytes and a place in the map.
	// Used on two shards, one costs 288 + 2 * 320 bytes more.
	cells atomic.Pointer[cells]
}

// cells are a route's, by shard; nil: the route has not been used on that shard. What happens seldom, or while the route is in
// trouble anyhow, is counted once for all shards.
type cells struct {
	shards        [maxShards]atomic.Pointer[cell]
	retriesDenied atomic.Uint64
}

// cell is what one route counts on one shard. Its size is a multiple of a cache line and a size class of Go's allocator,
// which places objects without pointers at multiples of their size from the beginning of a page: two cells share no line.
type cell struct {
	requests [len(codeClasses)]atomic.Uint64
	buckets  [len(bounds) + 1]atomic.Uint64
	// The time of all requests, the whole milliseconds apart: nanoseconds alone wrap around after two days of 100,000 requests
	// that are held at a time, as long polls are.
	milliseconds, nanoseconds atomic.Uint64
	received, sent            atomic.Uint64 // bytes
	retries                   atomic.Uint64
	failures                  [maxClasses + 1]atomic.Uint64
}

// Ended counts a request by the status that was sent, 0 for none, with the time that it took and the bytes of bodies that
// came from its client and went to him. Negative times and bytes count as 0, since counters never fall.
func (r *Route) Ended(shard uint32, status int, took time.Duration, received, sent int64) {
	c := r.cell(shard)
	c.requests[codeClass(status)].Add(1)
	c.took(max(took, 0))
	// A locked add is most of what counting costs, and most requests have no body.
	if received > 0 {
		c.received.Add(uint64(received))
	}
	if sent > 0 {
		c.sent.Add(uint64(sent))
	}
}

// Retried counts each time that a request was sent again.
func (r *Route) Retried(shard uint32) { r.cell(shard).retries.Add(1) }

// RetryDenied counts a request that was not sent again since the route's retries have used up their share.
func (r *Route) RetryDenied(shard uint32) { r.made(shard).retriesDenied.Add(1) }

// Failed counts a request that was not forwarded to its end, by the number of its class in Options; one that Options has no
// name for is "unknown".
func (r *Route) Failed(shard uint32, class int) {
	r.cell(shard).failures[named(class, int(r.classes))].Add(1)
}

func codeClass(status int) int {
	i := status / 100
	if uint(i) >= uint(len(codeClasses)) {
		return 0
	}
	return i
}

func (c *cell) took(d time.Duration) {
	c.buckets[bucket(d)].Add(1)
	if d >= time.Millisecond {
		c.milliseconds.Add(uint64(d / time.Millisecond))
		d %= time.Millisecond
	}
	c.nanoseconds.Add(uint64(d))
}

// bucket searches from the shortest on: most requests are short, and the processor learns where the search ends.
func bucket(d time.Duration) int {
	for i, bound := range &bounds {
		if d <= bound {
			return i
		}
	}
	return len(bounds)
}

// cell is that of a shard; any number is one.
func (r *Route) cell(shard uint32) *cell {
	i := shard & uint32(r.mask) % maxShards
	if all := r.cells.Load(); all != nil {
		if c := all.shards[i].Load(); c != nil {
			return c
		}
	}
	return r.makeCell(i)
}

// made are the cells, with that of a shard.
func (r *Route) made(shard uint32) *cells {
	r.cell(shard)
	return r.cells.Load()
}

// makeCell makes what is not there yet. Who comes second takes what the first has made.
func (r *Route) makeCell(i uint32) *cell {
	if r.cells.Load() == nil {
		r.cells.CompareAndSwap(nil, new(cells))
	}
	place := &r.cells.Load().shards[i]
	place.CompareAndSwap(nil, new(cell))
	return place.Load()
}
