package balance

import (
	"cmp"
	"slices"
)

// Place is what takes a share of a table: told apart by Key, a hash of what it is and not of where it stands, so that a table
// does not depend on the order of a document.
type Place struct {
	Key    uint64
	Weight uint32 // 0: it is not in the table
}

// Table gives every hash its place, always the same. Which places can take a request at the moment, it does not know: who finds
// that one cannot goes on with Rehash. So a place that fails changes nothing for the hashes of the others, its own are spread
// over all of them, and come back when it does.
type Table struct {
	slots []uint32
	// Where slots[i] begins, on a ring; nil: all slots are equally wide, as with Maglev.
	starts []uint64
}

// At is the index of the place that has h, or -1 where no place has a weight. It may be called concurrently.
func (t *Table) At(h uint64) int {
	n := len(t.slots)
	if n == 0 {
		return -1
	}
	if t.starts == nil {
		return int(t.slots[below(h, n)])
	}
	i, _ := slices.BinarySearch(t.starts, h)
	if i == n {
		i = 0 // it is a ring
	}
	return int(t.slots[i])
}

const (
	// slotsPerPlace makes the shares of a Maglev table even: with a hundred slots for each, no two are more than about 1 %
	// apart, and few hashes move between places that stay. More would be memory, of which each pool takes some.
	slotsPerPlace = 100
	// pointsPerPlace does the same for a ring, less well: a share is 6 % off mostly (one in the root of the points), the worst of three
	// places was 15 % off, that of a hundred 21 %.
	pointsPerPlace = 256
)

// sizes are primes, so that any step goes round all slots. They are few and far between, since with another size nearly every
// hash has another place: a pool meets that when it grows beyond 163 places, and 2,621. One size for all would be a mebibyte for each
// pool of two backends, or shares that are far off where there are very many.
var sizes = [...]int{16381, 262139, 1048573}

// NewMaglev lays out a table as Maglev does (Eisenbud et al., NSDI 2016, section 3.4): the places take turns at taking the next
// slot of an order of their own. Shares are near exact, and looking up costs next to nothing. Where places come or go, a few
// hashes move between others. Shares are by weight, exact to two slots, and none is lost.
func NewMaglev(places []Place) *Table {
	order, _ := inOrder(places)
	if len(order) <= 1 {
		return trivial(order)
	}
	most := places[order[0]].Weight
	for _, i := range order {
		most = max(most, places[i].Weight)
	}
	size := sizes[len(sizes)-1]
	for _, s := range slices.Backward(sizes[:]) {
		if s >= len(order)*slotsPerPlace {
			size = s
		}
	}
	t := &Table{slots: make([]uint32, size)}
	t.fill(places, order, most)
	return t
}

// trivial is the table of at most one place, as of most pools, of which there may be very many.
func trivial(order []int) *Table {
	t := &Table{}
	for _, i := range order {
		t.slots = append(t.slots, uint32(i))
	}
	return t
}

// fill lets the places take turns, one of weight w at w of most turns.
func (t *Table) fill(places []Place, order []int, most uint32) {
	n := uint64(len(t.slots))
	taken := make([]bool, n)
	next, credit := make([]uint64, len(order)), make([]uint64, len(order))
	for k, i := range order {
		next[k] = mix(places[i].Key) % n
		credit[k] = uint64(most - places[i].Weight) // the first turn is everybody's
	}
	for left := n; ; {
		for k, i := range order {
			if credit[k] += uint64(places[i].Weight); credit[k] < uint64(most) {
				continue
			}
			credit[k] -= uint64(most)
			step := mix(places[i].Key+golden)%(n-1) + 1
			for taken[next[k]] {
				next[k] = (next[k] + step) % n
			}
			taken[next[k]], t.slots[next[k]] = true, uint32(i)
			if left--; left == 0 {
				return
			}
		}
	}
}

// NewRing lays out a ring of points, as many of each place as its weight says; a hash belongs to the next point. Where places come
// or go, no hash moves between others, as long as weights are equal. Shares are less even than with Maglev.
func NewRing(places []Place) *Table {
	order, total := inOrder(places)
	if len(order) <= 1 {
		return trivial(order)
	}
	type point struct {
		at    uint64
		place uint32
	}
	var points []point
	for _, i := range order {
		n := max(1, pointsPerPlace*uint64(places[i].Weight)*uint64(len(order))/total)
		for j := range n {
			points = append(points, point{mix(places[i].Key + (j+1)*golden), uint32(i)})
		}
	}
	slices.SortFunc(points, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(places[a.place].Key, places[b.place].Key))
	})
	t := &Table{slots: make([]uint32, len(points)), starts: make([]uint64, len(points))}
	for i, p := range points {
		t.slots[i], t.starts[i] = p.place, p.at
	}
	return t
}

// inOrder gives the indices of the places with a weight, by Key, and the sum of weights.
func inOrder(places []Place) (order []int, total uint64) {
	for i, p := range places {
		if p.Weight > 0 {
			order = append(order, i)
			total += uint64(p.Weight)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(places[a].Key, places[b].Key) })
	return order, total
}
