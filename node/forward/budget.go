package forward

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// budgetWindow is over what requests and retries are compared. It is kept as two halves, of which the newer one is under way.
	budgetWindow = 10 * time.Second
	// freeRetries are allowed in each window, however few requests there are: a route that is asked once a minute has a budget
	// of nothing otherwise.
	freeRetries = 10
	// budgetCells is by how much the counting of requests is spread, lest all cores write to one line of the cache.
	budgetCells = 8
)

// budget bounds the retries of a route on this node by its requests: when every backend fails, the load on them grows by that
// share and not by as many times as there are attempts. Any number may call it concurrently. It outlives generations.
type budget struct {
	born  time.Time
	half  time.Duration
	cells [budgetCells]struct {
		halves [2]atomic.Uint64 // number of the half, and how many requests: 32 bits each
		_      [48]byte
	}

	// mu guards spent: retries are few, or most of them are refused.
	mu    sync.Mutex
	spent [2]struct{ half, retries uint32 }
}

func newBudget(now time.Time) *budget { return &budget{born: now, half: budgetWindow / 2} }

// number is that of the half that a time is in. 0 is none: it is what unused counters have.
func (b *budget) number(at time.Time) uint32 { return uint32(at.Sub(b.born)/b.half) + 1 }

// earn counts a request that began at some time, lately.
func (b *budget) earn(cell uint32, at time.Time) {
	n := b.number(at)
	place := &b.cells[cell%budgetCells].halves[n%2]
	for {
		seen := place.Load()
		if uint32(seen>>32) == n {
			place.Add(1) // were the half over at this moment, the request would count for the next but one
			return
		}
		if place.CompareAndSwap(seen, uint64(n)<<32|1) {
			return
		}
	}
}

// spend takes one retry out of what percent of the requests allows. False: there is none left.
func (b *budget) spend(percent uint32, at time.Time) bool {
	n := b.number(at)
	b.mu.Lock()
	defer b.mu.Unlock()
	retries := uint64(0)
	for _, s := range b.spent {
		if s.half == n || s.half == n-1 {
			retries += uint64(s.retries)
		}
	}
	if (retries+1)*100 > freeRetries*100+b.requests(n)*uint64(percent) {
		return false
	}
	s := &b.spent[n%2]
	if s.half != n {
		s.half, s.retries = n, 0
	}
	s.retries++
	return true
}

// requests are those of a half and the one before.
func (b *budget) requests(n uint32) (sum uint64) {
	for i := range b.cells {
		for j := range b.cells[i].halves {
			if seen := b.cells[i].halves[j].Load(); uint32(seen>>32) == n || uint32(seen>>32) == n-1 {
				sum += seen & (1<<32 - 1)
			}
		}
	}
	return sum
}
