package upstream

import "slices"

// looksDead says whether so few members are healthy that verdicts are not to count: that most servers have died at once is less
// likely than that the check is wrong or that load has them fail it, and then the rest would get the load of all. Where none is
// healthy, that is the answer: none to be asked tells clients at once, with 503.
func (p *Pool) looksDead() bool {
	able, healthy := 0, 0
	for _, m := range p.members {
		if m.Weight == 0 {
			continue
		}
		able++
		if m.Backend.takes() {
			healthy++
		}
	}
	return healthy > 0 && uint64(healthy)*100 < uint64(able)*uint64(p.options.PanicPercent)
}

// FailsOpen says whether the pool gives requests to its members whatever their verdicts, since so few are healthy.
func (p *Pool) FailsOpen() bool {
	t := p.takers.Load()
	return t != nil && t.open // nil: NewPool is under way
}

// askedAnyway says whether a pool that fails open has given the backend its turns, whatever its verdict. It is called with mu held.
func (b *Backend) askedAnyway() bool {
	for p := range b.pools {
		if t := p.takers.Load(); t != nil && t.open && slices.Contains(t.backends, b) {
			return true
		}
	}
	return false
}

// FailsOpen says whether a pool that the backend is in does.
func (b *Backend) FailsOpen() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := range b.pools {
		if p.FailsOpen() {
			return true
		}
	}
	return false
}
