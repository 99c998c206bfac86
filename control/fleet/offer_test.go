package fleet

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/fleettest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// drawBundle draws a small set of names with bodies of very different sizes, so that deltas have all shapes.
func drawBundle(t *rapid.T, label string) *bundle.Bundle {
	sizes := rapid.SampledFrom([]int{0, 1, 1000, partBytes / 3, partBytes - 1, partBytes, partBytes + 1, 3 * partBytes})
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`/[a-z]{1,3}`), 0, 12, rapid.ID).Draw(t, label)
	var resources []bundle.Resource
	for _, name := range names {
		body := make([]byte, sizes.Draw(t, "size"))
		resources = append(resources, bundle.Resource{Key: bundle.Key{Kind: config.KindRoute, Name: name}, Body: body})
	}
	b, err := bundle.New(resources)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPartsMakeUpTheDelta(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var base *bundle.Bundle
		if rapid.Bool().Draw(t, "delta") {
			base = drawBundle(t, "base")
		}
		target := drawBundle(t, "target")
		delta := bundle.Between(base, target)
		got, lasts := bundle.Delta{Base: delta.Base}, 0
		for part := range parts(delta) {
			if lasts > 0 {
				t.Fatal("a part follows the last")
			}
			if part.GetLast() {
				lasts++
			}
			if size := proto.Size(part); size > 4<<20 && len(part.GetUpserted())+len(part.GetRemoved()) > 1 {
				t.Fatalf("a part of several resources has %d bytes", size)
			} else if size > 2*partBytes && len(part.GetUpserted()) > 1 {
				t.Fatalf("a part of several resources has %d bytes, meant are %d", size, partBytes)
			}
			fleettest.Take(&got, part)
		}
		if lasts != 1 {
			t.Fatalf("%d parts say that they are the last", lasts)
		}
		b, err := got.Apply(base)
		if err != nil || b.Digest() != target.Digest() {
			t.Fatalf("the parts do not lead to the target: %v", err)
		}
	})
}

func TestPartsOfNothingIsOneLastPart(t *testing.T) {
	var all []*fleetv1.OfferPart
	for part := range parts(bundle.Delta{}) {
		all = append(all, part)
	}
	if len(all) != 1 || !all[0].GetLast() {
		t.Errorf("got %v", all)
	}
}

func TestPartsCanBeLeftOff(t *testing.T) {
	d := bundle.Delta{Removed: []bundle.Key{{Name: "a"}}}
	for range 4 {
		d.Upserted = append(d.Upserted, bundle.Resource{Body: make([]byte, partBytes)})
	}
	for range parts(d) {
		break // must not panic
	}
}
