package state

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestRoomIsNeverMoreThanThereIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r Room
		for _, n := range rapid.SliceOfN(rapid.OneOf(rapid.IntRange(-1, 9), rapid.IntRange(0, math.MaxInt)), 1, 20).Draw(t, "room") {
			r = r.Next(n)
			at, told := r.AtLeast()
			if !told || at > max(n, 0) || r < mostRoom && at < n/8 {
				t.Fatalf("with room for %d it says %d, %v", n, at, told)
			}
		}
	})
}

func TestRoomChangesSeldom(t *testing.T) {
	r := Room(0).Next(1000)
	for i, c := range []struct {
		n, want int
	}{{1000, 512}, {511, 256}, {600, 256}, {1023, 256}, {255, 128}, {256, 128}, {512, 512}, {0, 0}, {1, 0}, {2, 2}} {
		r = r.Next(c.n)
		if at, _ := r.AtLeast(); at != c.want {
			t.Errorf("step %d: with room for %d it says %d, want %d", i, c.n, at, c.want)
		}
	}
	if _, told := Room(0).AtLeast(); told {
		t.Error("who says nothing has told it")
	}
}
