package limit

import (
	"cmp"
	"hash/fnv"
	"slices"
	"sync"
)

// Lenders is who lends which keys, as one node sees it: of the members that answer, the one with the highest score (rendezvous
// hashing). So of a member that comes or goes only its own keys have another owner, and all who know of the same members agree. A
// member that does not answer is passed over from that moment on: long before gossip knows that it is dead, its keys are lent by
// whoever is next. Its methods may be called concurrently.
type Lenders struct {
	self string

	mu      sync.Mutex // guards what follows
	members []lender   // by name, self among them
}

type lender struct {
	name    string
	hash    uint64
	away    bool // it did not answer when it was asked last
	doubted bool // another node had no answer of it
}

// NewLenders knows of self alone, which is never away.
func NewLenders(self string) *Lenders {
	return &Lenders{self: self, members: []lender{newLender(self)}}
}

func newLender(name string) lender {
	h := fnv.New64a()
	h.Write([]byte(name))
	return lender{name: name, hash: h.Sum64()}
}

// Set says who the members are; self is one of them, whatever is said. It reports whether that is news.
func (l *Lenders) Set(names []string) (news bool) {
	names = append(slices.Clone(names), l.self)
	slices.Sort(names)
	names = slices.Compact(names)
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.EqualFunc(l.members, names, func(m lender, name string) bool { return m.name == name }) {
		return false
	}
	members := make([]lender, len(names))
	for i, name := range names {
		if m := l.find(name); m != nil {
			members[i] = *m
		} else {
			members[i] = newLender(name)
		}
	}
	l.members = members
	return true
}

// find is called with mu held, as owner is.
func (l *Lenders) find(name string) *lender {
	if i, ok := slices.BinarySearchFunc(l.members, name, func(m lender, name string) int { return cmp.Compare(m.name, name) }); ok {
		return &l.members[i]
	}
	return nil
}

func (l *Lenders) owner(key uint64) *lender {
	var owner *lender
	var highest uint64
	for i := range l.members {
		m := &l.members[i]
		if m.away {
			continue
		}
		if s := score(m.hash, key); owner == nil || s > highest {
			owner, highest = m, s
		}
	}
	return owner
}

// score is the finish of SplitMix64: FNV alone does not spread what differs in its last bytes.
func score(hash, key uint64) uint64 {
	x := hash ^ key
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Owner is who lends a key.
func (l *Lenders) Owner(key uint64) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owner(key).name
}

// Owns says whether this node lends a key that another has asked it for. Where somebody else does, that one is doubted: whoever asks
// here has had no answer there, or knows of other members.
func (l *Lenders) Owns(key uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.owner(key)
	o.doubted = o.name != l.self
	return !o.doubted
}

// Heard says whether a member has answered.
func (l *Lenders) Heard(name string, answered bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.find(name); m != nil && name != l.self {
		m.away = !answered
	}
}

// Doubted gives the members that have been doubted since it was called last, which have to be asked whether they are there; with all,
// those that are away, too.
func (l *Lenders) Doubted(all bool) (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.members {
		m := &l.members[i]
		if m.doubted && !m.away || all && m.away {
			names = append(names, m.name)
		}
		m.doubted = false
	}
	return names
}

// Count is how many members there are, self among them.
func (l *Lenders) Count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.members)
}

// Away is how many of them do not answer.
func (l *Lenders) Away() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.members {
		if m.away {
			n++
		}
	}
	return n
}
