package bundle

import (
	"errors"
	"fmt"
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
		switch order := compareAt(base, i, target, j); {
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
func compareAt(base *Bundle, i int, target *Bundle, j int) int {
	switch {
	case i == len(base.resources):
		return 1
	case j == len(target.resources):
		return -1
	}
	return base.resources[i].Key.compare(target.resources[j].Key)
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
	held := make(map[Key]Resource, len(base.resources)+len(d.Upserted))
	for _, r := range base.resources {
		held[r.Key] = r
	}
	for _, key := range d.Removed {
		if _, ok := held[key]; !ok {
			return nil, fmt.Errorf("the delta removes %s %.200q, which its base does not hold", key.Kind, key.Name)
		}
		delete(held, key)
	}
	for _, r := range d.Upserted {
		held[r.Key] = r
	}
	out := make([]Resource, 0, len(held))
	for _, r := range held {
		out = append(out, r)
	}
	return New(out)
}
