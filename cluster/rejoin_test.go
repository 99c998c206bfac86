package cluster

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPickTakesTurnsAmongTheSources(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	many := strings.Fields("m1 m2 m3 m4 m5 m6 m7 m8 m9")
	for range 100 {
		got := pick(rng, 3, []string{"here"}, []string{"here", "a"}, []string{"a", "here"}, many)
		slices.Sort(got)
		if len(got) != 3 || got[0] != "a" || slices.Contains(got, "here") || len(slices.Compact(got)) != 3 {
			t.Fatalf("picked %v", got)
		}
	}
}

func TestPickMayFindNobody(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	if got := pick(rng, 3, []string{"a"}, nil, []string{"a"}); len(got) != 0 {
		t.Errorf("picked %v", got)
	}
	if got := pick(rng, 3, nil, []string{"a", "b"}, []string{"b"}); len(got) != 2 {
		t.Errorf("picked %v of two", got)
	}
}

func TestPickLeavesItsSourcesAlone(t *testing.T) {
	source := strings.Fields("a b c d e f g h")
	pick(rand.New(rand.NewPCG(1, 1)), 3, nil, source)
	if got := strings.Join(source, " "); got != "a b c d e f g h" {
		t.Errorf("the source became %s", got)
	}
}

func TestJitterStaysAround(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		if got := jitter(rng, 4*time.Second); got < 3*time.Second || got > 5*time.Second {
			t.Fatalf("4s became %s", got)
		}
	}
}
