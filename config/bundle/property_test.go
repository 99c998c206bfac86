package bundle

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/pyserve/pyserve/config"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// drawResources gives resources with few names, so that two draws often have some in common, and in any order.
func drawResources(t *rapid.T, label string) []Resource {
	key := rapid.Custom(func(t *rapid.T) Key {
		return Key{
			rapid.SampledFrom([]config.Kind{config.KindRoute, config.KindPool, config.KindCertificate, "r", ""}).Draw(t, "kind"),
			rapid.StringMatching(`[a-cé]{0,2}`).Draw(t, "name"),
		}
	})
	bodies := rapid.MapOf(key, rapid.SliceOfN(rapid.Byte(), 0, 3)).Draw(t, label)
	out := make([]Resource, 0, len(bodies))
	for key, body := range bodies {
		out = append(out, Resource{key, body})
	}
	return out
}

func made(t *rapid.T, resources []Resource) *Bundle {
	b, err := New(resources)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func drawBundle(t *rapid.T, label string) *Bundle { return made(t, drawResources(t, label)) }

// checkSame wants two bundles with the same content, and one digest only where that is so.
func checkSame(t *rapid.T, what string, got, want *Bundle) {
	same := slices.EqualFunc(got.resources, want.resources, func(a, b Resource) bool {
		return a.Key == b.Key && bytes.Equal(a.Body, b.Body)
	})
	if !same || got.Digest() != want.Digest() {
		t.Fatalf("%s: %v, want %v", what, got.resources, want.resources)
	}
}

func TestDeltaAppliedToItsBaseGivesTheTarget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base, target := drawBundle(t, "base"), drawBundle(t, "target")
		got, err := Between(base, target).Apply(base)
		if err != nil {
			t.Fatal(err)
		}
		checkSame(t, "there", got, target)
		back, err := Between(target, base).Apply(got)
		if err != nil {
			t.Fatal(err)
		}
		checkSame(t, "and back", back, base)
		whole, err := Between(nil, target).Apply(nil)
		if err != nil {
			t.Fatal(err)
		}
		checkSame(t, "the whole", whole, target)
	})
}

func TestAWayOfDeltasLeadsWhereEachOfThemDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := drawBundle(t, "base")
		at := base
		var way []Delta
		for range rapid.IntRange(0, 5).Draw(t, "deltas") {
			next := drawBundle(t, "next")
			way = append(way, Between(at, next))
			at = next
		}
		got, err := Follow(base, way)
		if err != nil {
			t.Fatal(err)
		}
		checkSame(t, "the end of the way", got, at)
	})
}

func TestAFileIsAsLongAsWasThought(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := made(t, []Resource{
			{Key{config.KindPool, strings.Repeat("n", rapid.SampledFrom([]int{0, 127, 128, 16383, 16384}).Draw(t, "name"))}, nil},
			{Key{config.KindRoute, ""}, make([]byte, rapid.SampledFrom([]int{0, 127, 128, 16383, 16384, 2097151, 2097152}).Draw(t, "body"))},
		})
		data, err := Marshal(&fleetv1.Release{}, b)
		if err != nil {
			t.Fatal(err)
		}
		if most := b.fileBytes(); len(data) > most || len(data) < most-2*binary.MaxVarintLen64 {
			t.Fatalf("the file has %d bytes, at most %d were thought of", len(data), most)
		}
	})
}

func TestASharingBundleIsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, base := drawBundle(t, "bundle"), drawBundle(t, "base")
		got := b.Sharing(base)
		checkSame(t, "shared", got, b)
		if !slices.Equal(got.sums, b.sums) {
			t.Fatal("its sums are others")
		}
		for i, r := range got.resources {
			at, ok := slices.BinarySearchFunc(base.resources, r.Key, func(r Resource, k Key) int { return r.Key.compare(k) })
			if ok && bytes.Equal(base.resources[at].Body, r.Body) && unsafe.SliceData(base.resources[at].Body) != unsafe.SliceData(r.Body) {
				t.Fatalf("%v is in memory twice (%d)", r, i)
			}
		}
	})
}

func TestSectionsAreWhatABundleHoldsOfEachKind(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, old := drawBundle(t, "bundle"), drawBundle(t, "old")
		for _, kind := range []config.Kind{config.KindRoute, config.KindPool, config.KindCertificate, config.KindListener, "r", ""} {
			of := func(b *Bundle) []Resource {
				return slices.DeleteFunc(slices.Clone(b.resources), func(r Resource) bool { return r.Kind != kind })
			}
			want, before := of(b), of(old)
			s, earlier := b.Section(kind), old.Section(kind)
			if s.Len() != len(want) || earlier.Len() != len(before) {
				t.Fatalf("%q: %d resources, want %d", kind, s.Len(), len(want))
			}
			var without []string
			for i, same := range s.Unchanged(earlier) {
				r := s.At(i)
				if at, ok := s.Find(r.Name); r.Key != want[i].Key || !ok || at != i {
					t.Fatalf("%v is at %d, want %v at %d", r, at, want[i], i)
				}
				at := slices.IndexFunc(before, func(o Resource) bool { return o.Key == r.Key })
				if _, ok := earlier.Find(r.Name); ok != (at >= 0) {
					t.Fatalf("%v is in the old one: %v", r, ok)
				}
				if at < 0 {
					without = append(without, r.Name)
				} else if !bytes.Equal(before[at].Body, r.Body) {
					at = -1
				}
				if int(same) != at {
					t.Fatalf("%v is unchanged at %d, want %d", r, same, at)
				}
			}
			if got := slices.Collect(s.Without(earlier)); !slices.Equal(got, without) {
				t.Fatalf("%q: without %q, want %q", kind, got, without)
			}
		}
	})
}

func TestDeltaHoldsNothingThatTheBaseHas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base, target := drawBundle(t, "base"), drawBundle(t, "target")
		d := Between(base, target)
		for _, r := range d.Upserted {
			if slices.ContainsFunc(base.resources, func(held Resource) bool { return held.Key == r.Key && bytes.Equal(held.Body, r.Body) }) {
				t.Fatalf("%v is sent, and the base has it", r)
			}
		}
		for _, key := range d.Removed {
			if slices.ContainsFunc(target.resources, func(wanted Resource) bool { return wanted.Key == key }) {
				t.Fatalf("%v is removed, and the target has it", key)
			}
		}
	})
}

func TestOrderOfResourcesDoesNotChangeTheDigest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		resources := drawResources(t, "resources")
		b := made(t, resources)
		checkSame(t, "in another order", made(t, rapid.Permutation(resources).Draw(t, "order")), b)
	})
}

// TestTwoBundlesWithOneDigestAreTheSame also where what one has in a kind, the other has in a name or a body.
func TestTwoBundlesWithOneDigestAreTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawBundle(t, "one"), drawBundle(t, "other")
		if a.Digest() == b.Digest() {
			checkSame(t, "one digest", a, b)
		}
		for i := range a.resources {
			kind, name := a.resources[i].Kind, a.resources[i].Name
			if name == "" {
				continue
			}
			moved := slices.Clone(a.resources)
			moved[i].Key = Key{kind + config.Kind(name[:1]), name[1:]}
			if other, err := New(moved); err == nil && other.Digest() == a.Digest() {
				t.Fatalf("%q %q and %q %q have one digest", kind, name, moved[i].Kind, moved[i].Name)
			}
		}
	})
}

// flipped gives data with one bit turned.
func flipped(t *rapid.T, label string, data []byte) []byte {
	out := bytes.Clone(data)
	at := rapid.IntRange(0, 8*len(data)-1).Draw(t, label)
	out[at/8] ^= 1 << (at % 8)
	return out
}

// TestAnyFlippedBitIsRefused turns one bit of what was signed, as a node gets it: of a resource's kind, name or body, of the
// signature, of the digest, of what stands beside it.
func TestAnyFlippedBitIsRefused(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		resources := append(drawResources(t, "resources"), Resource{Key{"kind", "name"}, []byte("body")})
		b := made(t, resources)
		release := Sign(private, rapid.Uint64().Draw(t, "epoch"), rapid.Uint64().Draw(t, "revision"), b.Digest())
		if err := Verify(public, release, b); err != nil {
			t.Fatal(err)
		}
		refused := func(what string, release *fleetv1.Release, b *Bundle) {
			if err := Verify(public, release, b); err == nil {
				t.Fatalf("a flipped bit of the %s is accepted", what)
			}
		}
		last := len(resources) - 1
		with := func(r Resource) *Bundle { return made(t, append(slices.Clone(resources[:last]), r)) }
		refused("kind", release, with(Resource{Key{config.Kind(flipped(t, "kind's bit", []byte("kind"))), "name"}, []byte("body")}))
		refused("name", release, with(Resource{Key{"kind", string(flipped(t, "name's bit", []byte("name")))}, []byte("body")}))
		refused("body", release, with(Resource{Key{"kind", "name"}, flipped(t, "body's bit", []byte("body"))}))
		refused("bundle, cut", release, made(t, resources[:last]))

		change := func(change func(*fleetv1.Release)) *fleetv1.Release {
			out := proto.CloneOf(release)
			change(out)
			return out
		}
		bit := uint64(1) << rapid.IntRange(0, 63).Draw(t, "number's bit")
		refused("epoch", change(func(r *fleetv1.Release) { r.Epoch ^= bit }), b)
		refused("revision", change(func(r *fleetv1.Release) { r.Revision ^= bit }), b)
		refused("digest", change(func(r *fleetv1.Release) { r.Digest = flipped(t, "digest's bit", r.Digest) }), b)
		refused("signature", change(func(r *fleetv1.Release) { r.Signature = flipped(t, "signature's bit", r.Signature) }), b)
		if err := Verify(flipped(t, "key's bit", public), release, b); err == nil {
			t.Fatal("a flipped bit of the key is accepted")
		}

		data, err := Marshal(release, b)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Unmarshal(flipped(t, "file's bit", data)); err == nil {
			t.Fatal("a flipped bit of the file is accepted")
		}
		read, back, err := Unmarshal(data)
		if err != nil || !proto.Equal(read, release) {
			t.Fatalf("read %v, %v", read, err)
		}
		checkSame(t, "from the file", back, b)
	})
}

// TestAFlippedBitOfADeltaIsRefused by the digest of what it leads to, where it can be applied at all.
func TestAFlippedBitOfADeltaIsRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base, target := drawBundle(t, "base"), drawBundle(t, "target")
		d := Between(base, target)
		d.Upserted = slices.Clone(d.Upserted)
		if len(d.Upserted) == 0 {
			t.Skip("nothing to flip")
		}
		at := rapid.IntRange(0, len(d.Upserted)-1).Draw(t, "resource")
		if len(d.Upserted[at].Body) == 0 {
			t.Skip("nothing to flip")
		}
		d.Upserted[at].Body = flipped(t, "bit", d.Upserted[at].Body)
		if got, err := d.Apply(base); err == nil && got.Digest() == target.Digest() {
			t.Fatal("nobody noticed")
		}
	})
}
