package state

import (
	"cmp"
	"slices"
	"time"
)

// Roster is the list of members as it came to be: those that take part, and for a while those that no longer do, which
// the gossip layer itself forgets within a minute. It is not safe for concurrent use.
type Roster struct {
	keep    time.Duration
	limit   int
	members map[Origin]Member
}

// Change is one difference that a Merge made. Before is the zero Liveness for a member not listed before;
// Member.State is the zero Liveness for one that is listed no more; the two are equal where only the facts or the
// address changed.
type Change struct {
	Member Member
	Before Liveness
}

// NewRoster makes an empty roster. Members that are gone stay in it for keep, at most limit of them, the newest.
func NewRoster(keep time.Duration, limit int) *Roster {
	return &Roster{keep: keep, limit: limit, members: make(map[Origin]Member)}
}

// Merge takes everything that the gossip layer knows at now (Since is ignored) and returns what changed, ordered by
// name. A member that took part and is not among seen is dead: gossip forgets only those. Facts of a lower sequence than
// those that are known are old ones that somebody told again: they are passed over, and stale counts them.
func (r *Roster) Merge(seen []Member, now time.Time) (changes []Change, stale int) {
	present := make(map[Origin]bool, len(seen))
	for _, m := range seen {
		present[Origin{m.Role, m.Name}] = true
		if old := r.members[Origin{m.Role, m.Name}]; m.Sequence < old.Sequence {
			stale++
			m.Facts, m.KeyMark, m.Sequence = old.Facts, old.KeyMark, old.Sequence
		}
		changes = r.put(changes, m, now)
	}
	for key, m := range r.members {
		if !present[key] && !m.State.Gone() {
			m.State = Dead
			changes = r.put(changes, m, now)
		}
	}
	changes = r.forget(changes, now)
	slices.SortFunc(changes, func(a, b Change) int { return compare(a.Member, b.Member) })
	return changes, stale
}

func (r *Roster) put(changes []Change, m Member, now time.Time) []Change {
	key := Origin{m.Role, m.Name}
	old, known := r.members[key]
	m.Since = now
	if known && old.State == m.State {
		m.Since = old.Since
	}
	if known && old == m {
		return changes
	}
	r.members[key] = m
	return append(changes, Change{Member: m, Before: old.State})
}

// forget drops who has been gone for long, and the longest gone of too many.
func (r *Roster) forget(changes []Change, now time.Time) []Change {
	var gone []Member
	for _, m := range r.members {
		if m.State.Gone() {
			gone = append(gone, m)
		}
	}
	slices.SortFunc(gone, func(a, b Member) int {
		return cmp.Or(b.Since.Compare(a.Since), compare(a, b))
	})
	for i, m := range gone {
		if i < r.limit && now.Sub(m.Since) < r.keep {
			continue
		}
		delete(r.members, Origin{m.Role, m.Name})
		before := m.State
		m.State = 0
		changes = append(changes, Change{Member: m, Before: before})
	}
	return changes
}

// Members gives a copy of the list, ordered by name and then by role.
func (r *Roster) Members() []Member {
	members := make([]Member, 0, len(r.members))
	for _, m := range r.members {
		members = append(members, m)
	}
	slices.SortFunc(members, compare)
	return members
}
