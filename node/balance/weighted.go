package balance

// Weighted picks indices at random, each in proportion to its weight. A pick costs the same however many there are (Walker's
// alias method, with Vose's way to lay it out). It may be used concurrently.
type Weighted struct {
	cells []alias
}

// alias is a cell of equal width: a part of it belongs to its own index, the rest to another.
type alias struct {
	own   uint32 // of 2^32; the last one is the cell's own too where other is the index itself
	index uint32
	other uint32
}

// NewWeighted lays out the cells for weights, which are not kept. A weight of 0 never comes up.
func NewWeighted(weights []uint32) *Weighted {
	w := &Weighted{}
	var total float64
	for i, weight := range weights {
		if weight > 0 {
			w.cells = append(w.cells, alias{index: uint32(i), other: uint32(i)})
			total += float64(weight)
		}
	}
	n := float64(len(w.cells))
	rest := make([]float64, len(w.cells)) // in cells; what is left of each share
	var small, large []int
	for k, c := range w.cells {
		rest[k] = float64(weights[c.index]) * n / total
		if rest[k] < 1 {
			small = append(small, k)
		} else {
			large = append(large, k)
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		w.cells[s].own, w.cells[s].other = uint32(rest[s]*(1<<32)), w.cells[l].index
		if rest[l] -= 1 - rest[s]; rest[l] < 1 {
			large, small = large[:len(large)-1], append(small, l)
		}
	}
	// Whoever is left has a whole cell but for the rounding, and is its own other.
	return w
}

// Pick is the index for a random number, or -1 where no weight is above 0.
func (w *Weighted) Pick(random uint64) int {
	if len(w.cells) == 0 {
		return -1
	}
	c := &w.cells[below(random, len(w.cells))]
	if uint32(mix(random)) < c.own {
		return int(c.index)
	}
	return int(c.other)
}

// Two are two indices, the first picked by weight, the second by weight among the others, nearly: where the second number picks
// the same, it is whichever. They are the same only where there is one alone; then, or where there is none, see Pick.
func (w *Weighted) Two(random, another uint64) (first, second int) {
	first, second = w.Pick(random), w.Pick(another)
	if first != second || len(w.cells) < 2 {
		return first, second
	}
	k := below(mix(another+golden), len(w.cells)-1)
	if second = int(w.cells[k].index); second == first {
		second = int(w.cells[len(w.cells)-1].index)
	}
	return first, second
}

// Lighter says whether what carries a, for its weight, carries less than what carries b, for its own.
func Lighter(a float64, weightA uint32, b float64, weightB uint32) bool {
	return a*float64(weightB) < b*float64(weightA)
}
