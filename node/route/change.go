package route

import (
	"maps"
	"slices"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Change is one rule of a table that gives way to another.
type Change[T any] struct {
	// Old is as the table was given it, its Value aside; nil: the rule is new.
	Old *Rule[T]
	// New is nil where nothing takes the place of Old.
	New *Rule[T]
}

// Change makes the table of the rules of t with some of them changed, in whatever order, and leaves t as it is. It copies
// what is flat and walks through nothing, so that one rule of very many costs little.
//
// ok is false where it cannot: where expressions come, go or change their order, where so many rules have gone since Compile
// that the table is mostly what they left, and where an Old is none of its rules. Then the answer is Compile. The error is
// a *RuleError as that of Compile, with an Index in changes.
func (t *Table[T]) Change(changes []Change[T]) (next *Table[T], ok bool, err error) {
	c := changer[T]{Table: *t}
	c.values = slices.Clone(t.values)
	// First everything that goes, since what comes may have its place.
	for i := range changes {
		if !c.leave(&changes[i]) {
			return nil, false, nil
		}
	}
	if c.worn > len(c.values)/2 {
		return nil, false, nil
	}
	for i := range changes {
		if err := c.come(&changes[i]); err != nil {
			err.Index = i
			return nil, true, err
		}
	}
	c.measureWild()
	return &c.Table, true, nil
}

// changer is a table that is being made of another.
type changer[T any] struct {
	Table[T]
	own bool // nothing is shared with the other table any more but what is never changed
	entering
}

// unshare is called before anything but values changes.
func (c *changer[T]) unshare() {
	if c.own {
		return
	}
	c.own = true
	c.free, c.paths = slices.Clone(c.free), c.paths.clone()
	c.crowds = slices.Clone(c.crowds)
	c.hosts, c.wild = maps.Clone(c.hosts), maps.Clone(c.wild)
}

// moves says whether the rule that comes has another place than the one that goes.
func (change *Change[T]) moves() bool {
	before, after := change.Old, change.New
	return before == nil || after == nil || before.Match != after.Match || before.Path != after.Path ||
		before.Order != after.Order || !slices.Equal(before.Hosts, after.Hosts) || before.Conditions.String() != after.Conditions.String()
}

func isRegex[T any](r *Rule[T]) bool {
	return r != nil && r.Match == resourcev1.PathMatch_PATH_MATCH_REGEX
}

// leave takes the rule that goes out of its place, or puts the new value there where only that changes. It returns false
// where it cannot.
func (c *changer[T]) leave(change *Change[T]) bool {
	moves := change.moves()
	if moves && (isRegex(change.Old) || isRegex(change.New)) {
		return false
	}
	if change.Old == nil {
		return true
	}
	number := c.number(change.Old)
	switch {
	case number < 0:
		return false
	case !moves:
		c.values[number] = change.New.Value
		return true
	}
	c.unshare()
	var none T
	c.values[number] = none
	c.free = append(c.free, number)
	c.worn++
	return c.clear(change.Old, number)
}

// number is that of a rule of the table; below 0: it is none.
func (c *changer[T]) number(r *Rule[T]) int32 {
	host := ""
	if len(r.Hosts) > 0 {
		host = string(CanonicalHost(nil, []byte(r.Hosts[0])))
	}
	if isRegex(r) {
		return c.expression(place{host, r.Path, r.Conditions.String()})
	}
	at := c.at(c.class(host), r)
	if at == nil {
		return -1
	}
	return c.member(*at, r.Conditions.String())
}

func (c *changer[T]) expression(at place) int32 {
	if c.places == nil {
		c.places = make(map[place]int32)
		c.gather("", c.any)
		for host, class := range c.hosts {
			c.gather(host, class)
		}
		for end, class := range c.wild {
			c.gather("*."+end, class)
		}
	}
	if number, ok := c.places[at]; ok {
		return number
	}
	return -1
}

func (c *changer[T]) gather(host string, of class) {
	for _, r := range of.regexes {
		c.places[place{host, r.expression.String(), r.asks.String()}] = r.rule
	}
}

// at is where the tree of a class has a rule like r; nil: nowhere.
func (t *Table[T]) at(c class, r *Rule[T]) *slot {
	if c.root == 0 {
		return nil
	}
	path := r.segments()
	number := c.root
	for len(path) > 0 {
		var segment []byte
		segment, path = nextSegment(path)
		if number = t.paths.child(number, segment); number == 0 {
			return nil
		}
	}
	return r.in(&t.paths.nodes[number])
}

// clear takes a rule out of the trees of its hosts.
func (c *changer[T]) clear(r *Rule[T], number int32) (ok bool) {
	err := c.under(r, func(_ string, of *class) bool {
		at := c.at(*of, r)
		if at == nil || !c.part(at, number) {
			return false
		}
		of.rules--
		return true
	})
	return err == nil
}

// come enters the rule that comes, where leave has not done it.
func (c *changer[T]) come(change *Change[T]) *RuleError {
	if change.New == nil || !change.moves() {
		return nil
	}
	c.unshare()
	if len(c.free) == 0 {
		c.free = append(c.free, int32(len(c.values)))
		c.values = append(c.values, change.New.Value)
	}
	number := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	c.values[number] = change.New.Value
	return c.add(number, change.New, &c.entering)
}
