package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"sync"

	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// shelf holds bundles for all light nodes. The first that receives an offer makes the bundle and proves it, as every real
// node does; one that receives byte for byte the same on the same base is given the same bundle, or the same error.
type shelf struct {
	mu   sync.Mutex // guards what follows
	key  ed25519.PublicKey
	made []*making // the newest last
}

// kept is how many bundles the shelf holds; nodes hold what they serve themselves.
const kept = 3

// recipe is all that a node makes a bundle of.
type recipe struct {
	base  bundle.Digest
	parts [sha256.Size]byte // over what the parts carry
	head  [sha256.Size]byte // over the release with its signature
}

// making is a bundle that is made once.
type making struct {
	recipe recipe
	once   sync.Once
	bundle *bundle.Bundle
	err    error
}

// take gives the bundle that a delta and a release make.
func (s *shelf) take(r recipe, base *bundle.Bundle, delta bundle.Delta, release *fleetv1.Release) (*bundle.Bundle, error) {
	m, key := s.making(r)
	m.once.Do(func() {
		if m.bundle, m.err = delta.Apply(base); m.err == nil {
			m.err = bundle.Verify(key, release, m.bundle)
		}
	})
	return m.bundle, m.err
}

// believe sets the key that releases are signed with: the cluster's.
func (s *shelf) believe(key ed25519.PublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = key
}

func (s *shelf) making(r recipe) (*making, ed25519.PublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.made {
		if m.recipe == r {
			return m, s.key
		}
	}
	m := &making{recipe: r}
	if s.made = append(s.made, m); len(s.made) > kept {
		s.made = append([]*making(nil), s.made[1:]...)
	}
	return m, s.key
}

// digester sums what parts carry, so that it can be told whether two nodes received the same.
type digester struct{ hash hash.Hash }

func newDigester() digester { return digester{sha256.New()} }

func (d digester) add(m *fleetv1.OfferPart) {
	var scratch []byte
	field := func(s string) { scratch = append(binary.AppendUvarint(scratch, uint64(len(s))), s...) }
	for _, r := range m.GetRemoved() {
		scratch = append(scratch, '-')
		field(r.GetKind())
		field(r.GetName())
	}
	for _, r := range m.GetUpserted() {
		scratch = append(scratch, '+')
		field(r.GetKind())
		field(r.GetName())
		field(string(r.GetBody()))
	}
	d.hash.Write(scratch)
}

func (d digester) sum() [sha256.Size]byte { return [sha256.Size]byte(d.hash.Sum(nil)) }

func sumOf(r *fleetv1.Release) [sha256.Size]byte {
	b := binary.BigEndian.AppendUint64(nil, r.GetEpoch())
	b = binary.BigEndian.AppendUint64(b, r.GetRevision())
	b = append(append(b, r.GetDigest()...), r.GetSignature()...)
	return sha256.Sum256(b)
}
