package balance

import "math/bits"

// Hash is of anything that tells clients apart, or backends. It is the same on every node and in every version, since all nodes
// must come to the same table: maphash is another one in each process.
func Hash(b []byte) uint64 {
	h := uint64(fnvOffset)
	for _, c := range b {
		h = (h ^ uint64(c)) * fnvPrime
	}
	return mix(h)
}

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
	golden    = 0x9E3779B97F4A7C15
)

// Rehash is another hash of the same, for the n-th choice; the first is number 0 and the hash itself.
func Rehash(h uint64, n int) uint64 {
	if n == 0 {
		return h
	}
	return mix(h + uint64(n)*golden)
}

// mix makes every bit of the result hang on every bit of h: FNV alone leaves those of short texts alike.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xBF58476D1CE4E5B9
	h = (h ^ h>>27) * 0x94D049BB133111EB
	return h ^ h>>31
}

// below gives a number below n out of the upper bits of h, each about as often.
func below(h uint64, n int) int {
	upper, _ := bits.Mul64(h, uint64(n))
	return int(upper)
}
