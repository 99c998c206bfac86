package route

import (
	"cmp"
	"regexp"
	"slices"
)

// slot is what a node of the tree has for one kind of match: 0 is nothing, above 0 the number of a rule, counted from 1, that
// asks nothing more of requests, and below 0 the place in crowds, counted from 1, of several rules or of one with conditions.
type slot = int32

// candidate is a rule in a place where others may be, too.
type candidate struct {
	rule int32
	asks *conditions // nil: nothing more
}

// misses hears of each rule whose host and path match but not its conditions.
type misses func(rule int32, asks *conditions, miss int)

// join puts a rule into a slot. It returns false where one with the same conditions is there.
func (t *Table[T]) join(at *slot, rule int32, asks *conditions) bool {
	if *at == 0 && asks == nil {
		*at = rule + 1
		return true
	}
	all := t.candidates(*at)
	i, taken := slices.BinarySearchFunc(all, asks, func(c candidate, asks *conditions) int { return c.asks.before(asks) })
	if taken {
		return false
	}
	all = slices.Insert(slices.Clip(all), i, candidate{rule, asks}) // clipped: another table may have it
	if *at < 0 {
		t.crowds[-*at-1] = all
		return true
	}
	t.crowds = append(t.crowds, all)
	*at = slot(-len(t.crowds))
	return true
}

// part takes a rule out of a slot. It returns false where it is not there. The crowd that is left may be a single one, or
// none.
func (t *Table[T]) part(at *slot, rule int32) bool {
	all := t.candidates(*at)
	i := slices.IndexFunc(all, func(c candidate) bool { return c.rule == rule })
	if i < 0 {
		return false
	}
	if *at > 0 {
		*at = 0
		return true
	}
	t.crowds[-*at-1] = slices.Delete(slices.Clone(all), i, i+1)
	if len(all) == 1 {
		*at = 0
	}
	return true
}

// candidates are those of a slot, in the order in which they are tried.
func (t *Table[T]) candidates(at slot) []candidate {
	switch {
	case at == 0:
		return nil
	case at > 0:
		return []candidate{{rule: at - 1}}
	}
	return t.crowds[-at-1]
}

// member is the rule of a slot with just these conditions, -1 if there is none.
func (t *Table[T]) member(at slot, text string) int32 {
	for _, c := range t.candidates(at) {
		if c.asks.String() == text {
			return c.rule
		}
	}
	return -1
}

// pick is the rule of a slot that takes a request, counted from 1; 0 for none.
func (t *Table[T]) pick(at slot, l *look) int32 {
	if at >= 0 {
		return at
	}
	for _, c := range t.crowds[-at-1] {
		miss := c.asks.miss(l)
		if miss == holds {
			return c.rule + 1
		}
		if l.missed != nil {
			l.missed(c.rule, c.asks, miss)
		}
	}
	return 0
}

// among is for a slot with conditions, which the tree found at a node: where none of its rules takes the request, the next
// best place is tried, which is the node's prefix after its exact path, and then a shorter prefix. The number counts from 1;
// 0 is none.
func (t *Table[T]) among(found slot, number int32, l *look) int32 {
	if found == t.paths.nodes[number].exact {
		if rule := t.pick(found, l); rule != 0 {
			return rule
		}
	}
	for ; number != 0; number = t.paths.nodes[number].parent {
		if rule := t.pick(t.paths.nodes[number].prefix, l); rule != 0 {
			return rule
		}
	}
	return 0
}

// regex is a rule with an expression.
type regex struct {
	expression *regexp.Regexp // shared by all rules that have it
	order      uint32
	rule       int32
	asks       *conditions
}

// sortRegexes sorts in place, so that copies of the class see it. Rules with one expression stand together, where the first
// of them has it.
func (c class) sortRegexes() {
	if len(c.regexes) < 2 {
		return
	}
	first := make(map[*regexp.Regexp]uint32, len(c.regexes))
	for _, r := range c.regexes {
		if order, ok := first[r.expression]; !ok || r.order < order {
			first[r.expression] = r.order
		}
	}
	slices.SortStableFunc(c.regexes, func(a, b regex) int {
		return cmp.Or(cmp.Compare(first[a.expression], first[b.expression]), cmp.Compare(a.expression.String(), b.expression.String()),
			a.asks.before(b.asks))
	})
}

// matching is the rule of the first expression found in path that takes a request, -1 if there is none.
func (t *Table[T]) matching(regexes []regex, path []byte, l *look) int32 {
	var last *regexp.Regexp
	found := false
	for i := range regexes {
		one := &regexes[i]
		if one.expression != last {
			last, found = one.expression, l.matches(one.expression, path)
		}
		if !found {
			continue
		}
		miss := one.asks.miss(l)
		if miss == holds {
			return one.rule
		}
		if l.missed != nil {
			l.missed(one.rule, one.asks, miss)
		}
	}
	return -1
}
