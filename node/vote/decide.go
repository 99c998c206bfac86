package vote

import (
	"cmp"
	"slices"
	"time"
)

// Count is what the votes on a check amount to.
type Count struct {
	// State is Healthy or Unhealthy if a quorum says so, else Undecided.
	State State
	// Reason is that of the foremost voter who says State.
	Reason string
	// Counted are the votes that were counted, the foremost voter first; at most Probers.
	Counted []Vote
	// Until is when the first of those that count ceases to; zero: none does.
	Until time.Time
}

// Decide counts votes, which are all on one check. Those count that are fresh and sure, of members, and of these the foremost
// Probers: in quiet times the probers on duty. Where one of them is silent, who came forward in its place counts, and so does a
// prober whose duty has just moved, until the new one has spoken.
func Decide(votes []Vote, members Members, now time.Time) Count {
	type placed struct {
		vote  Vote
		place int
	}
	able := make([]placed, 0, len(votes))
	for _, v := range votes {
		if v.State != Healthy && v.State != Unhealthy || !now.Before(v.FreshUntil()) {
			continue
		}
		if place, known := members.Place(v.Key, v.Origin); known {
			able = append(able, placed{v, place})
		}
	}
	slices.SortFunc(able, func(a, b placed) int { return cmp.Compare(a.place, b.place) })
	var c Count
	for _, p := range able[:min(len(able), Probers)] {
		c.Counted = append(c.Counted, p.vote)
		if until := p.vote.FreshUntil(); c.Until.IsZero() || until.Before(c.Until) {
			c.Until = until
		}
	}
	c.State, c.Reason = winner(c.Counted)
	return c
}

func winner(votes []Vote) (State, string) {
	for _, state := range []State{Healthy, Unhealthy} {
		n, reason := 0, ""
		for _, v := range votes {
			if v.State != state {
				continue
			}
			if n++; n == 1 {
				reason = v.Reason
			}
		}
		if n >= Quorum {
			return state, reason
		}
	}
	return Undecided, ""
}
