package vote

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func keyOf(text string) (k Key) {
	sum := sha256.Sum256([]byte(text))
	copy(k[:], sum[:])
	return k
}

func nodes(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("n%d", i)
	}
	return names
}

// Nodes of different versions must agree on who probes: these are for ever.
func TestRanksAreTheSameInEveryVersion(t *testing.T) {
	m := NewMembers([]string{"edge-1", "edge-2", "edge-3", "edge-4", "edge-5"})
	for text, want := range map[string]string{
		"10.0.0.1:80": "edge-4 edge-3 edge-2 edge-1 edge-5",
		"10.0.0.2:80": "edge-2 edge-3 edge-1 edge-4 edge-5",
		"10.0.0.3:80": "edge-3 edge-2 edge-4 edge-5 edge-1",
	} {
		if got := strings.Join(m.First(keyOf(text), 9), " "); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestDutiesAreBalanced(t *testing.T) {
	const keys = 10000
	m := NewMembers(nodes(30))
	duties := map[string]int{}
	for i := range keys {
		for _, name := range m.First(keyOf(fmt.Sprint(i)), Probers) {
			duties[name]++
		}
	}
	for name, n := range duties {
		if fair := keys * Probers / 30; n < fair*9/10 || n > fair*11/10 {
			t.Errorf("%s probes %d of %d, fair were %d", name, n, keys*Probers, fair)
		}
	}
	if len(duties) != 30 {
		t.Errorf("%d of 30 have duties", len(duties))
	}
}

// Who leaves hands over its own duties, each to the next in the rank; nobody else's move. Coming is leaving backwards.
func TestOnlyTheDutiesOfWhoLeavesMove(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]{1,4}`), 2, 12, rapid.ID).Draw(t, "names")
		gone := rapid.SampledFrom(names).Draw(t, "gone")
		key := keyOf(rapid.String().Draw(t, "key"))
		before := NewMembers(names).First(key, len(names))
		after := NewMembers(slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == gone })).First(key, len(names))
		if want := slices.DeleteFunc(before, func(n string) bool { return n == gone }); !slices.Equal(after, want) {
			t.Fatalf("without %s the rank is %v, want %v", gone, after, want)
		}
	})
}

func TestRankDoesNotDependOnTheOrderOfNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfN(rapid.StringMatching(`[a-c]{1,2}`), 0, 12).Draw(t, "names")
		a, b := NewMembers(names), NewMembers(rapid.Permutation(names).Draw(t, "permutation"))
		if !a.Equal(b) {
			t.Fatalf("%v and %v differ", a, b)
		}
		key := keyOf("x")
		for i, name := range a.First(key, len(names)) {
			if place, known := b.Place(key, name); !known || place != i {
				t.Fatalf("%s has place %d (%v), and comes %dth", name, place, known, i)
			}
		}
		if _, known := a.Place(key, "stranger"); known {
			t.Fatal("a stranger has a place")
		}
	})
}
