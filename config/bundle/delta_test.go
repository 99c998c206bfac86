package bundle

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/config"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

func route(name, body string) Resource { return Resource{Key{config.KindRoute, name}, []byte(body)} }

// TestADeltaThatBetweenDoesNotMakeIsRefused says what Apply does with what only somebody hostile, or a defect, would send.
func TestADeltaThatBetweenDoesNotMakeIsRefused(t *testing.T) {
	base, err := New([]Resource{route("/b", "b"), route("/d", "d")})
	if err != nil {
		t.Fatal(err)
	}
	removed := func(names ...string) Delta {
		d := Delta{Base: base.Digest()}
		for _, name := range names {
			d.Removed = append(d.Removed, Key{config.KindRoute, name})
		}
		return d
	}
	for name, test := range map[string]struct {
		delta Delta
		want  string
	}{
		"it removes what sorts before all":  {removed("/a"), `"/a", which its base does not hold`},
		"it removes what sorts between two": {removed("/b", "/c"), `"/c", which its base does not hold`},
		"it removes what sorts after all":   {removed("/d", "/e"), `"/e", which its base does not hold`},
		"it removes one twice":              {removed("/b", "/b"), `"/b", which its base does not hold`},
		"it brings one twice":               {Delta{Base: base.Digest(), Upserted: []Resource{route("/x", "1"), route("/x", "2")}}, "two resources"},
		"it brings a name that is too long": {Delta{Base: base.Digest(), Upserted: []Resource{route(strings.Repeat("x", MaxNameBytes+1), "")}}, "longer than"},
	} {
		if _, err := test.delta.Apply(base); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// TestTheLimitsHoldForWhatADeltaMakes, not only for what it brings.
func TestTheLimitsHoldForWhatADeltaMakes(t *testing.T) {
	const half = MaxBytes/2 + 1
	base, err := New([]Resource{{Key{config.KindPool, "a"}, make([]byte, half)}})
	if err != nil {
		t.Fatal(err)
	}
	d := Delta{Base: base.Digest(), Upserted: []Resource{{Key{config.KindPool, "b"}, make([]byte, half)}}}
	if _, err := d.Apply(base); err == nil || !strings.Contains(err.Error(), "at most 256 MiB") {
		t.Errorf("two halves that are too large together: %v", err)
	}
	d.Removed = []Key{{config.KindPool, "a"}}
	if b, err := d.Apply(base); err != nil || b.Len() != 1 {
		t.Errorf("one of them in the other's place: %v", err)
	}
}

// large is a bundle of so many routes and pools, one of which differs with change.
func large(b *testing.B, routes int, change string) *Bundle {
	b.Helper()
	resources := make([]Resource, 0, 2*routes)
	for i := range routes {
		name, body := fmt.Sprintf("/service/%06d", i), fmt.Sprintf("the body of route %d, as long as one is", i)
		if i == routes/2 {
			body += change
		}
		resources = append(resources, route(name, body), Resource{Key{config.KindPool, name}, []byte(body)})
	}
	made, err := New(resources)
	if err != nil {
		b.Fatal(err)
	}
	return made
}

func BenchmarkNew10kRoutes(b *testing.B) {
	resources := large(b, 10_000, "").resources
	for b.Loop() {
		if _, err := New(resources); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBetweenOneOf10kRoutes(b *testing.B) {
	// The names are not the same strings, as they are not where two documents were read.
	base, target := large(b, 10_000, ""), large(b, 10_000, "changed")
	for b.Loop() {
		if d := Between(base, target); len(d.Upserted) != 2 {
			b.Fatal(d)
		}
	}
}

func BenchmarkApplyOneOf10kRoutes(b *testing.B) {
	base, target := large(b, 10_000, ""), large(b, 10_000, "changed")
	d := Between(base, target)
	for b.Loop() {
		if made, err := d.Apply(base); err != nil || made.Digest() != target.Digest() {
			b.Fatal(err)
		}
	}
}

func BenchmarkMarshal100kRoutes(b *testing.B) {
	whole := large(b, 100_000, "")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Marshal(&fleetv1.Release{}, whole); err != nil {
			b.Fatal(err)
		}
	}
}
