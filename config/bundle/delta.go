package bundle

import (
	"errors"
	"fmt"
	"slices"
)

// ErrBase says that a delta was made against another bundle than the one it was applied to: ask for the whole.
var ErrBase = errors.New("the delta is against another bundle")

// Delta leads from a base to a target. With a zero Base it is the whole target.
type Delta struct {
	Base     Digest
	Removed  []Key
	Upserted []Resource
}

// Between gives the delta from base to target; a nil base gives the whole target.
func Between(base, target *Bundle) Delta {
	if base == nil {
		return Delta{Upserted: target.resources}
	}
	d := Delta{Base: base.digest}
	i, j := 0, 0
	for i < len(base.resources) || j < len(target.resources) {
		switch order := base.compareAt(i, target, j); {
		case order < 0:
			d.Removed = append(d.Removed, base.resources[i].Key)
			i++
		case order > 0:
			d.Upserted = append(d.Upserted, target.resources[j])
			j++
		default:
			if base.sums[i] != target.sums[j] {
				d.Upserted = append(d.Upserted, target.resources[j])
			}
			i, j = i+1, j+1
		}
	}
	return d
}

// compareAt compares the keys at i and j; a bundle that is read to its end sorts last.
func (b *Bundle) compareAt(i int, other *Bundle, j int) int {
	switch {
	case i == len(b.resources):
		return 1
	case j == len(other.resources):
		return -1
	}
	return b.resources[i].Key.compare(other.resources[j].Key)
}

// Apply gives the target. It fails with [ErrBase] where base is not what the delta was made against, and whenever
// the delta is not one that [Between] makes. Whether the result is the wanted one, only its digest says.
func (d Delta) Apply(base *Bundle) (*Bundle, error) {
	if d.Base == (Digest{}) {
		if len(d.Removed) > 0 {
			return nil, fmt.Errorf("a whole bundle removes nothing, this one removes %d resources", len(d.Removed))
		}
		return New(d.Upserted)
	}
	if base == nil || base.digest != d.Base {
		return nil, fmt.Errorf("%w: %s", ErrBase, d.Base.Short())
	}
	brought, err := New(d.Upserted)
	if err != nil {
		return nil, err
	}
	removed := slices.Clone(d.Removed)
	slices.SortFunc(removed, Key.compare)
	return base.merge(brought, removed)
}

// Sharing gives the same bundle as b, but what base holds as well is in memory once, with base. Who keeps several bundles
// that have much in common keeps little more than one.
func (b *Bundle) Sharing(base *Bundle) *Bundle {
	shared := &Bundle{resources: slices.Clone(b.resources), sums: b.sums, digest: b.digest}
	j := 0
	var pace Pace
	for i := range shared.resources {
		pace.Step()
		for base.compareAt(j, b, i) < 0 {
			j++
		}
		if base.compareAt(j, b, i) == 0 && base.sums[j] == b.sums[i] {
			shared.resources[i] = base.resources[j]
		}
	}
	return shared
}

// Follow gives the bundle at the end of a way of deltas that begins at base, at the cost of one delta however many there
// are. Whether the result is the wanted one, only its digest says.
func Follow(base *Bundle, way []Delta) (*Bundle, error) {
	last := make(map[Key]*Resource) // nil: removed
	for _, d := range way {
		for _, key := range d.Removed {
			last[key] = nil
		}
		for i := range d.Upserted {
			last[d.Upserted[i].Key] = &d.Upserted[i]
		}
	}
	all := Delta{Base: base.digest}
	for key, r := range last {
		if r != nil {
			all.Upserted = append(all.Upserted, *r)
		} else if base.holds(key) {
			all.Removed = append(all.Removed, key)
		}
	}
	return all.Apply(base)
}

func (b *Bundle) holds(key Key) bool {
	_, ok := slices.BinarySearchFunc(b.resources, key, func(r Resource, key Key) int { return r.Key.compare(key) })
	return ok
}

// merge gives the bundle with what is brought and without what is removed, which is sorted. What stays keeps the sums that
// it has: its bodies are not hashed again.
func (b *Bundle) merge(brought *Bundle, removed []Key) (*Bundle, error) {
	most := len(b.resources) + len(brought.resources)
	m := &Bundle{resources: make([]Resource, 0, most), sums: make([]sum, 0, most)}
	take := func(from *Bundle, at int) {
		m.resources, m.sums = append(m.resources, from.resources[at]), append(m.sums, from.sums[at])
	}
	i, j := 0, 0
	var pace Pace
	for i < len(b.resources) || j < len(brought.resources) {
		pace.Step()
		order := b.compareAt(i, brought, j)
		if order >= 0 {
			take(brought, j)
			j++
		}
		if order > 0 {
			continue
		}
		gone := len(removed) > 0 && removed[0] == b.resources[i].Key
		if gone {
			removed = removed[1:]
		}
		if order < 0 && !gone {
			take(b, i)
		}
		i++
	}
	if len(removed) > 0 {
		return nil, fmt.Errorf("the delta removes %s %.200q, which its base does not hold", removed[0].Kind, removed[0].Name)
	}
	if err := m.complete(); err != nil {
		return nil, err
	}
	return m, nil
}
