package balance

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// kinds are the two tables, with how far a share of one of up to a hundred equal places may be off, in parts of it.
var kinds = []struct {
	name   string
	make   func([]Place) *Table
	uneven float64
	// moved is the part of the hashes of places that stay which may move to another one of them, where one of ten goes.
	moved float64
}{
	{"maglev", NewMaglev, 0.03, 0.03},
	{"ring", NewRing, 0.30, 0},
}

func placesOf(weights ...uint32) []Place {
	places := make([]Place, len(weights))
	for i, w := range weights {
		places[i] = Place{Key: Hash(fmt.Appendf(nil, "10.0.%d.%d:8000", i/250, i%250)), Weight: w}
	}
	return places
}

func equal(n int) []Place {
	weights := make([]uint32, n)
	for i := range weights {
		weights[i] = 1
	}
	return placesOf(weights...)
}

// hashes are those of the first n client addresses.
func hashes(n int) []uint64 {
	all := make([]uint64, n)
	var address [16]byte
	for i := range all {
		binary.BigEndian.PutUint32(address[12:], uint32(i))
		all[i] = Hash(address[:])
	}
	return all
}

func TestEachPlaceHasItsShare(t *testing.T) {
	for _, kind := range kinds {
		for _, weights := range [][]uint32{{1}, {1, 1, 1}, {3, 1}, {5, 0, 5}, {10, 20, 30, 40}, slices.Repeat([]uint32{1}, 100)} {
			table, counts := kind.make(placesOf(weights...)), make([]int, len(weights))
			all := hashes(200_000)
			for _, h := range all {
				counts[table.At(h)]++
			}
			var sum float64
			for _, w := range weights {
				sum += float64(w)
			}
			worst := 0.0
			for i, w := range weights {
				share := float64(len(all)) * float64(w) / sum
				if w == 0 {
					if counts[i] != 0 {
						t.Errorf("%s %v: weight 0 has %d hashes", kind.name, weights, counts[i])
					}
					continue
				}
				worst = max(worst, float64(counts[i])/share-1, 1-float64(counts[i])/share)
			}
			t.Logf("%s, %d places: the worst share is %.1f %% off", kind.name, len(weights), 100*worst)
			if worst > kind.uneven+0.07 { // chance has its part: 2,000 hashes are a share of 1 in 100
				t.Errorf("%s %v: shares %v, one is %.1f %% off", kind.name, weights, counts, 100*worst)
			}
		}
	}
}

func TestALightPlaceIsNotLost(t *testing.T) {
	for _, kind := range kinds {
		table := kind.make(placesOf(1000, 1000, 1, 1000))
		if !slices.Contains(table.slots, 2) {
			t.Errorf("%s: nothing is for weight 1 beside 1000", kind.name)
		}
	}
}

func TestATableOfOnePlaceTakesNoMemory(t *testing.T) {
	for _, kind := range kinds {
		table := kind.make(placesOf(0, 7))
		if got := table.At(1 << 63); got != 1 || len(table.slots)+len(table.starts) != 1 {
			t.Errorf("%s: place %d, %d slots", kind.name, got, len(table.slots))
		}
	}
}

func TestNoPlaceIsMinusOne(t *testing.T) {
	for _, kind := range kinds {
		for _, places := range [][]Place{nil, placesOf(0, 0)} {
			if got := kind.make(places).At(42); got != -1 {
				t.Errorf("%s: %d", kind.name, got)
			}
		}
	}
}

// Nodes read the same document, but a table is a matter of what is in it: the order means nothing.
func TestTheOrderOfPlacesMeansNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		places := placesOf(rapid.SliceOfN(rapid.Uint32Range(0, 20), 1, 30).Draw(t, "weights")...)
		shuffled := rapid.Permutation(places).Draw(t, "shuffled")
		for _, kind := range kinds {
			one, other := kind.make(places), kind.make(shuffled)
			for _, h := range hashes(200) {
				i, j := one.At(h), other.At(h)
				if i != j && (i < 0 || j < 0 || places[i].Key != shuffled[j].Key) {
					t.Fatalf("%s: %d and %d have the same hash", kind.name, i, j)
				}
			}
		}
	})
}

// TestFewHashesMove prints what a change of members costs.
func TestFewHashesMove(t *testing.T) {
	all := hashes(100_000)
	for _, kind := range kinds {
		for _, n := range []int{3, 10, 50, 100} {
			before := kind.make(equal(n))
			gone := slices.Clone(equal(n))
			gone[n/2].Weight = 0
			ended := moved(all, before, kind.make(gone), func(i int) bool { return i == n/2 })
			came := moved(all, before, kind.make(equal(n+1)), func(i int) bool { return false })
			t.Logf("%-6s %3d places: one goes: %.2f %% of the others' hashes move; one comes: %.2f %% of all move, %.2f %% had to",
				kind.name, n, 100*ended, 100*came, 100/float64(n+1))
			if ended > kind.moved {
				t.Errorf("%s: %.2f %% moved between places that stay", kind.name, 100*ended)
			}
			if most := 1.6/float64(n+1) + kind.moved; came > most {
				t.Errorf("%s: %.2f %% moved when one came, want at most %.2f %%", kind.name, 100*came, 100*most)
			}
		}
	}
}

// moved is the part of the hashes that have another place, those apart whose place has to.
func moved(all []uint64, before, after *Table, has func(int) bool) float64 {
	n, of := 0, 0
	for _, h := range all {
		i := before.At(h)
		if has(i) {
			continue
		}
		of++
		if after.At(h) != i {
			n++
		}
	}
	return float64(n) / float64(of)
}

func TestHashesOfOneThatFailsAreSpreadOverAll(t *testing.T) {
	for _, kind := range kinds {
		table, counts := kind.make(equal(5)), make([]int, 5)
		for _, h := range hashes(50_000) {
			if table.At(h) != 2 {
				continue
			}
			for n := 1; ; n++ {
				if i := table.At(Rehash(h, n)); i != 2 {
					counts[i]++
					break
				}
			}
		}
		for i, c := range counts {
			if i != 2 && (c < 1500 || c > 3500) {
				t.Errorf("%s: the hashes of place 2 went to %v", kind.name, counts)
			}
		}
	}
}

// TestHashesStayWhatTheyAre: nodes of two versions share clients during an update.
func TestHashesStayWhatTheyAre(t *testing.T) {
	for text, want := range map[string]uint64{"": 0xf52a15e9a9b5e89b, "10.0.0.1:8000": 0x9201c0cea293f846} {
		if got := Hash([]byte(text)); got != want {
			t.Errorf("the hash of %q is %#x, want %#x", text, got, want)
		}
	}
	at := map[string][]int{}
	for _, kind := range kinds {
		table := kind.make(placesOf(1, 2, 3))
		for _, h := range hashes(12) {
			at[kind.name] = append(at[kind.name], table.At(h))
		}
	}
	if !slices.Equal(at["maglev"], []int{2, 0, 2, 2, 1, 1, 2, 0, 2, 0, 2, 0}) || !slices.Equal(at["ring"], []int{2, 1, 2, 2, 2, 0, 2, 0, 2, 1, 2, 1}) {
		t.Errorf("places %v", at)
	}
}

func FuzzTables(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint64(7))
	f.Add([]byte{0, 0, 255, 1}, uint64(1)<<63)
	f.Fuzz(func(t *testing.T, raw []byte, h uint64) {
		weights, some := make([]uint32, min(len(raw), 200)), false
		for i := range weights {
			weights[i] = uint32(raw[i])
			some = some || raw[i] > 0
		}
		for _, kind := range kinds {
			i := kind.make(placesOf(weights...)).At(h)
			if some != (i >= 0) || i >= 0 && weights[i] == 0 {
				t.Fatalf("%s %v: %#x is at %d", kind.name, weights, h, i)
			}
		}
	})
}

func BenchmarkTableAt(b *testing.B) {
	for _, kind := range kinds {
		table := kind.make(equal(100))
		b.Run(kind.name, func(b *testing.B) {
			for b.Loop() {
				table.At(rand.Uint64())
			}
		})
	}
}

func BenchmarkNewTable(b *testing.B) {
	for _, kind := range kinds {
		b.Run(kind.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				kind.make(equal(100))
			}
		})
	}
}
