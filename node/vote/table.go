package vote

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

const (
	// maxOrigins is how many votes on one check are kept: three count, a few more overlap when members come and go.
	maxOrigins = 16
	// maxStrays and keepStrays bound the votes on checks that nothing is known of here. Others may serve a revision that is
	// yet to come, and then their votes are a verdict from the first moment.
	maxStrays  = 4096
	keepStrays = time.Minute
	// keepStale is how long a vote is kept at least, to be shown to people after it has ceased to count.
	keepStale = 10 * time.Minute
)

// Table holds the newest vote of each origin on each check. Merging is commutative, associative and idempotent, within the
// table's bounds.
type Table struct {
	votes    map[Key][]Vote // by origin
	expected map[Key]bool
	strays   int // votes on checks that are not expected
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{votes: make(map[Key][]Vote), expected: make(map[Key]bool)}
}

// Expect makes room for the votes on key; those that have been heard already stay.
func (t *Table) Expect(key Key) {
	if !t.expected[key] {
		t.expected[key] = true
		t.strays -= len(t.votes[key])
	}
}

// Forget takes back Expect, and drops the votes on key.
func (t *Table) Forget(key Key) {
	if t.expected[key] {
		delete(t.expected, key)
		delete(t.votes, key)
	}
}

// Of gives the votes on key, by origin. They are not to be changed, and hold until the next Merge.
func (t *Table) Of(key Key) []Vote { return t.votes[key] }

// Len is how many votes there are.
func (t *Table) Len() int {
	n := 0
	for _, votes := range t.votes {
		n += len(votes)
	}
	return n
}

// Merge takes in votes. It returns the expected keys on which something else is said than before, in order, or on which
// something is said again that had ceased to count; and how many votes there was no room for.
func (t *Table) Merge(votes []Vote, now time.Time) (changed []Key, refused int) {
	for _, v := range votes {
		switch taken, news := t.put(v, now); {
		case !taken:
			refused++
		case news && t.expected[v.Key]:
			changed = append(changed, v.Key)
		}
	}
	slices.SortFunc(changed, compareKeys)
	return slices.Compact(changed), refused
}

// put says whether v was taken or known already, and whether something follows from it.
func (t *Table) put(v Vote, now time.Time) (taken, news bool) {
	known := t.votes[v.Key]
	at, found := find(known, v.Origin)
	if found {
		old := known[at]
		if !newer(v, old) {
			return true, false
		}
		known[at] = v
		return true, !sameWords(v, old) || !now.Before(old.FreshUntil())
	}
	if !t.expected[v.Key] {
		if t.strays >= maxStrays || now.Sub(v.Heard) >= keepStrays {
			return false, false
		}
		t.strays++
	}
	known = slices.Insert(known, at, v)
	if len(known) > maxOrigins {
		known = t.dropOldest(v.Key, known)
	}
	t.votes[v.Key] = known
	return true, true
}

func find(votes []Vote, origin string) (at int, found bool) {
	return slices.BinarySearchFunc(votes, origin, func(v Vote, origin string) int { return cmp.Compare(v.Origin, origin) })
}

// dropOldest drops the vote that was said first: of so many, most are from members that are long gone.
func (t *Table) dropOldest(key Key, votes []Vote) []Vote {
	oldest := 0
	for i, v := range votes {
		if v.Heard.Before(votes[oldest].Heard) {
			oldest = i
		}
	}
	if !t.expected[key] {
		t.strays--
	}
	return slices.Delete(votes, oldest, oldest+1)
}

// Sign notes the message in which votes that are in the table were sent.
func (t *Table) Sign(votes []Vote, signed string) {
	for _, v := range votes {
		known := t.votes[v.Key]
		if at, found := find(known, v.Origin); found && known[at].Sequence == v.Sequence {
			known[at].Signed = signed
		}
	}
}

// Tidy drops what is too old to be kept, and the messages of votes that count no longer. It is to be called every minute or so.
func (t *Table) Tidy(now time.Time) {
	for key, votes := range t.votes {
		expected, before := t.expected[key], len(votes)
		votes = slices.DeleteFunc(votes, func(v Vote) bool {
			if !expected {
				return now.Sub(v.Heard) >= keepStrays
			}
			return now.Sub(v.Heard) >= keepStale && !now.Before(v.FreshUntil())
		})
		if !expected {
			t.strays -= before - len(votes)
		}
		if len(votes) == 0 {
			delete(t.votes, key)
			continue
		}
		for i := range votes {
			if !now.Before(votes[i].FreshUntil()) {
				votes[i].Signed = ""
			}
		}
		t.votes[key] = votes
	}
}

// Told is a message in which votes came, and when it was said, at the latest.
type Told struct {
	Message string
	Heard   time.Time
}

// Messages gives those of which any vote counts still, for whoever has heard none of them: in bad a vote is unsure or unhealthy,
// which matters most where not all can be sent. Both are in the order of the messages' bytes, whatever came first.
func (t *Table) Messages(now time.Time) (bad, good []Told) {
	said := make(map[string]told)
	for _, votes := range t.votes {
		for _, v := range votes {
			if v.Signed == "" || !now.Before(v.FreshUntil()) {
				continue
			}
			isBad := v.State != Healthy
			if known, found := said[v.Signed]; !found || isBad && !known.isBad {
				said[v.Signed] = told{v.Heard, isBad}
			}
		}
	}
	for _, message := range slices.Sorted(maps.Keys(said)) {
		if m := said[message]; m.isBad {
			bad = append(bad, Told{message, m.heard})
		} else {
			good = append(good, Told{message, m.heard})
		}
	}
	return bad, good
}

// told is what there is to know of a message.
type told struct {
	heard time.Time
	isBad bool
}
