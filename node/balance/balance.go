// Package balance decides which of several takes the next request: in turn (RoundRobin), at random (Weighted, whose Two are for
// who compares), or by a hash of the request (Table). It is pure: it knows weights, indices, hashes and random numbers that it is
// given, nothing of backends, health or clocks; who holds the backends builds anew when the set of takers changes.
//
// Order of calls: the maker, then picks from as many goroutines as there are requests. Follow, where one order takes
// the place of another, is called before the new one is used.
package balance

import "sync/atomic"

// maxSlots bounds the length of an order: 256 KiB of memory. Weights whose sum, without their common divisor, is longer
// are scaled down to it.
const maxSlots = 1 << 16

// slotsEach bounds the length of an order of few: the memory of a pool follows its number of backends, not the numbers
// that somebody wrote as their weights. Weights up to 1000 stay exact up to 64 backends, whatever they are.
const slotsEach = 1 << 10

// RoundRobin is a smooth weighted round robin: each index comes up in proportion to its weight, and spread evenly rather
// than in a run. The order is laid out once, so a pick costs one atomic addition.
//
// After any number of picks from a fresh order, no index is a whole pick away from its exact share.
type RoundRobin struct {
	order  []uint32
	cursor atomic.Uint64
}

// NewRoundRobin lays out the order for weights, which are not kept. A weight of 0 never comes up. The order holds each
// index exactly as many times as its weight, divided by what all weights have in common; where that would be longer than
// 65,536 slots (1,024 for each weight, if that is less) the weights are scaled, each share is then exact to one slot and
// none is lost. It takes O(slots · log len(weights)).
func NewRoundRobin(weights []uint32) *RoundRobin {
	if only, ok := onlyTaker(weights); ok { // as in most pools, of which there may be very many
		return &RoundRobin{order: []uint32{only}}
	}
	return &RoundRobin{order: spread(fit(weights))}
}

// onlyTaker is the one index with a weight, where there is one alone.
func onlyTaker(weights []uint32) (index uint32, ok bool) {
	for i, w := range weights {
		if w == 0 {
			continue
		}
		if ok {
			return 0, false
		}
		index, ok = uint32(i), true
	}
	return index, ok
}

// Next is the index that takes the next request, or -1 where no weight is above 0. It may be called concurrently.
func (r *RoundRobin) Next() int {
	switch n := uint64(len(r.order)); n {
	case 0:
		return -1
	case 1:
		return int(r.order[0])
	default:
		return int(r.order[(r.cursor.Add(1)-1)%n])
	}
}

// Follow makes r go on at the place where previous stands. Without it, every rebuilt order would begin with the same
// index, and a set that changes often would favour it. Call it before r is used by others; nil changes nothing.
func (r *RoundRobin) Follow(previous *RoundRobin) {
	if previous != nil {
		r.cursor.Store(previous.cursor.Load())
	}
}

// fit returns how many slots each weight has: the weights without their common divisor, scaled down where their sum would
// be too long an order.
func fit(weights []uint32) []uint64 {
	slots := make([]uint64, len(weights))
	var divisor, sum, takers uint64
	for _, w := range weights {
		divisor = gcd(divisor, uint64(w))
		sum += uint64(w)
		if w > 0 {
			takers++
		}
	}
	if sum == 0 {
		return slots
	}
	for i, w := range weights {
		slots[i] = uint64(w) / divisor
	}
	sum /= divisor
	if most := max(takers, min(takers*slotsEach, maxSlots)); sum > most {
		scale(slots, sum, most)
	}
	return slots
}

// scale brings slots, which add up to sum, down to about most of them. Each share is rounded by carrying the rest over to
// the next, so that the whole stays in proportion; what would round to nothing keeps one slot, because a backend with a
// small weight must not look like one that is turned off.
func scale(slots []uint64, sum, most uint64) {
	var carried uint64
	for i, s := range slots {
		if s == 0 {
			continue
		}
		// Far from overflow: s is below 2^32, and so is most unless there are that many weights.
		carried += s * most
		slots[i] = max(1, carried/sum)
		carried %= sum
	}
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// spread lays out slots evenly. The j-th turn of an index that has s of n slots belongs in the window from j·n/s to
// (j+1)·n/s, rounded outwards; serving, slot by slot, the open window that closes first meets every one of them (earliest
// deadline first is optimal for unit jobs, and the windows inside any stretch never ask for more slots than it has). An
// index that is served inside all its windows is never a whole pick ahead of or behind its share.
//
// The usual way, adding every weight to a running score at each slot, costs O(slots · weights): a second for a pool of a
// thousand, at every change of health.
func spread(slots []uint64) []uint32 {
	var n uint64
	for _, s := range slots {
		n += s
	}
	order := make([]uint32, 0, n)
	// An index waits for the slot in which its next window opens. It waits in one place at a time, so linked lists with one
	// link for each index hold them all: opens[t] is the first that waits for slot t, plus 1.
	opens, link := make([]uint32, n), make([]uint32, len(slots))
	turn := make([]uint64, len(slots))
	var open windows
	for i, s := range slots {
		if s > 0 {
			open.push(window{closes: ceil(n, s), index: uint32(i)})
		}
	}
	for t := range n {
		for waiting := opens[t]; waiting != 0; waiting = link[waiting-1] {
			i := waiting - 1
			open.push(window{closes: ceil((turn[i]+1)*n, slots[i]), opened: t, index: i})
		}
		i := open.pop().index
		order = append(order, i)
		turn[i]++
		if turn[i] < slots[i] {
			// The window may have opened already: it is served from the next slot on.
			at := max(t+1, turn[i]*n/slots[i])
			link[i], opens[at] = opens[at], i+1
		}
	}
	return order
}

func ceil(part, of uint64) uint64 { return (part + of - 1) / of }

// window is the stretch of slots in which an index has its next turn.
type window struct {
	opened, closes uint64
	index          uint32
}

// before orders windows by when they close. Of equal ones the narrower goes first: it belongs to the heavier index, whose
// next window opens sooner, so that waiting here would make it take two turns in a row. Then by index, for an order that is
// the same every time.
func (w window) before(other window) bool {
	if w.closes != other.closes {
		return w.closes < other.closes
	}
	if w.opened != other.opened {
		return w.opened > other.opened
	}
	return w.index < other.index
}

// windows is a binary heap, the one to serve next first. container/heap would box each of them.
type windows []window

func (h *windows) push(w window) {
	s := append(*h, w)
	for i := len(s) - 1; i > 0; {
		parent := (i - 1) / 2
		if s[parent].before(s[i]) {
			break
		}
		s[parent], s[i] = s[i], s[parent]
		i = parent
	}
	*h = s
}

// pop takes the first out.
func (h *windows) pop() window {
	s := *h
	first := s[0]
	last := len(s) - 1
	s[0] = s[last]
	s = s[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			break
		}
		if right := child + 1; right < last && s[right].before(s[child]) {
			child = right
		}
		if s[i].before(s[child]) {
			break
		}
		s[i], s[child] = s[child], s[i]
		i = child
	}
	*h = s
	return first
}
