package main

import (
	"crypto/ed25519"
	"errors"
	"testing"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

var signing = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// received is what a node makes a bundle of that holds one route with this body.
func received(t *testing.T, body string) (recipe, bundle.Delta, *fleetv1.Release) {
	t.Helper()
	delta := bundle.Delta{Upserted: []bundle.Resource{{Key: bundle.Key{Kind: config.KindRoute, Name: "/"}, Body: []byte(body)}}}
	b, err := delta.Apply(nil)
	if err != nil {
		t.Fatal(err)
	}
	release := bundle.Sign(signing, 1, 1, b.Digest())
	parts := newDigester()
	parts.add(&fleetv1.OfferPart{Upserted: []*fleetv1.Resource{{Kind: string(config.KindRoute), Name: "/", Body: []byte(body)}}})
	return recipe{parts: parts.sum(), head: sumOf(release)}, delta, release
}

func TestTheSameOfferIsOneBundle(t *testing.T) {
	s := &shelf{}
	s.believe(signing.Public().(ed25519.PublicKey))
	r, delta, release := received(t, "a")
	one, err := s.take(r, nil, delta, release)
	if err != nil {
		t.Fatal(err)
	}
	if two, err := s.take(r, nil, delta, release); err != nil || two != one {
		t.Errorf("the same offer makes another bundle: %v", err)
	}
	other, delta, release := received(t, "b")
	if b, err := s.take(other, nil, delta, release); err != nil || b == one {
		t.Errorf("another offer makes the same bundle: %v", err)
	}
	for i := range kept + 1 {
		r, delta, release := received(t, string(rune('c'+i)))
		if _, err := s.take(r, nil, delta, release); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.made) != kept {
		t.Errorf("%d bundles are held, want %d", len(s.made), kept)
	}
}

// TestAnOfferThatIsNotTrue is refused to all that receive it.
func TestAnOfferThatIsNotTrue(t *testing.T) {
	s := &shelf{}
	s.believe(signing.Public().(ed25519.PublicKey))
	r, delta, release := received(t, "a")
	release.Signature[0] ^= 1
	r.head = sumOf(release)
	for range 2 {
		if _, err := s.take(r, nil, delta, release); !errors.Is(err, bundle.ErrSignature) {
			t.Errorf("a signature that is not good: %v", err)
		}
	}
	r, delta, _ = received(t, "a")
	_, _, release = received(t, "b")
	r.head = sumOf(release)
	if _, err := s.take(r, nil, delta, release); err == nil {
		t.Error("a bundle is taken for the one of another release")
	}
}
