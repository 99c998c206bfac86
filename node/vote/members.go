package vote

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Members are the nodes among which probers are chosen, by rendezvous hashing: each check ranks all of them by a hash of its
// key and their names. Who leaves hands its places to those that come next, and nobody else moves. All nodes have to hash
// alike, whatever their version. The zero value has none.
type Members struct {
	names []string // sorted
	seeds []uint64 // of the names, in their order
}

// NewMembers copies names, which may be in any order and hold some twice.
func NewMembers(names []string) Members {
	m := Members{names: slices.Compact(slices.Sorted(slices.Values(names)))}
	m.seeds = make([]uint64, len(m.names))
	for i, name := range m.names {
		sum := sha256.Sum256([]byte(name))
		m.seeds[i] = binary.BigEndian.Uint64(sum[:])
	}
	return m
}

// Len is how many there are.
func (m Members) Len() int { return len(m.names) }

// Has says whether name is one of them.
func (m Members) Has(name string) bool {
	_, known := slices.BinarySearch(m.names, name)
	return known
}

// Equal says whether both have the same names.
func (m Members) Equal(other Members) bool { return slices.Equal(m.names, other.names) }

// First gives the n members that come first for key, fewer if there are not so many.
func (m Members) First(key Key, n int) []string {
	type ranked struct {
		name  string
		score uint64
	}
	first := make([]ranked, 0, n+1)
	for i, name := range m.names {
		r := ranked{name, score(key, m.seeds[i])}
		at, _ := slices.BinarySearchFunc(first, r, func(a, b ranked) int {
			return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.name, b.name))
		})
		if at < n {
			first = slices.Insert(first, at, r)
			first = first[:min(len(first), n)]
		}
	}
	names := make([]string, len(first))
	for i, r := range first {
		names[i] = r.name
	}
	return names
}

// Place is where name comes for key, 0 the first; known is false if it is not a member.
func (m Members) Place(key Key, name string) (place int, known bool) {
	at, known := slices.BinarySearch(m.names, name)
	if !known {
		return 0, false
	}
	own := score(key, m.seeds[at])
	for i, seed := range m.seeds {
		if s := score(key, seed); s > own || s == own && i < at {
			place++
		}
	}
	return place, true
}

// score is the rank of a member for a key: the higher, the earlier.
func score(key Key, seed uint64) uint64 {
	return mix(mix(seed^binary.BigEndian.Uint64(key[:8])) + binary.BigEndian.Uint64(key[8:]))
}

// mix spreads every bit of x over all of the result (the finaliser of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
