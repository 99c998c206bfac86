package bundle

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
)

// Sum is the SHA-256 of a resource's body.
type Sum = [sha256.Size]byte

// Entry is a resource's line in the manifest.
type Entry struct {
	Key
	Sum Sum
}

// Manifest gives the manifest's lines in their order.
func (b *Bundle) Manifest() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i, r := range b.resources {
			if !yield(Entry{r.Key, b.sums[i]}) {
				return
			}
		}
	}
}

// Manifest is the list of what a bundle holds, proved by its digest, before the bodies are there.
type Manifest struct {
	entries []Entry
	digest  Digest
}

// ErrManifest says that a list of entries is not the manifest of the digest that was asked for.
var ErrManifest = errors.New("the manifest is not the one that control signed")

// NewManifest makes the manifest of entries in their order. It fails with [ErrManifest] where its digest is another one,
// and where a limit is passed. The entries are the manifest's from then on.
func NewManifest(digest Digest, entries []Entry) (*Manifest, error) {
	if len(entries) > MaxResources {
		return nil, fmt.Errorf("a bundle holds at most %d resources, got %d", MaxResources, len(entries))
	}
	// The digest of a bundle is made of no other order and of no key twice.
	b := &Bundle{resources: make([]Resource, len(entries)), sums: make([]Sum, len(entries))}
	for i, e := range entries {
		b.resources[i].Key, b.sums[i] = e.Key, e.Sum
	}
	if b.manifestDigest() != digest {
		return nil, ErrManifest
	}
	return &Manifest{entries: entries, digest: digest}, nil
}

// Missing gives the sums of the bodies that base does not hold, each once; a nil base holds none.
func (m *Manifest) Missing(base *Bundle) []Sum {
	have := make(map[Sum]bool)
	if base != nil {
		for _, sum := range base.sums {
			have[sum] = true
		}
	}
	var missing []Sum
	for _, e := range m.entries {
		if !have[e.Sum] {
			have[e.Sum] = true
			missing = append(missing, e.Sum)
		}
	}
	return missing
}

// Assemble makes the bundle of what base holds and of the bodies that were missing, by their sums. It is an error if one
// is still missing; whether bodies have the sums that they are under is proved by the bundle's digest.
func (m *Manifest) Assemble(base *Bundle, bodies map[Sum][]byte) (*Bundle, error) {
	held := make(map[Sum][]byte)
	if base != nil {
		for i, sum := range base.sums {
			held[sum] = base.resources[i].Body
		}
	}
	resources := make([]Resource, len(m.entries))
	for i, e := range m.entries {
		body, ok := bodies[e.Sum]
		if !ok {
			body, ok = held[e.Sum]
		}
		if !ok {
			return nil, fmt.Errorf("the body of %s %q is missing", e.Kind, e.Name)
		}
		resources[i] = Resource{e.Key, body}
	}
	b, err := New(resources)
	if err == nil && b.digest != m.digest {
		err = ErrManifest
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Bodies gives the bodies of those sums that the bundle holds.
func (b *Bundle) Bodies(sums []Sum) map[Sum][]byte {
	wanted := make(map[Sum]bool, len(sums))
	for _, sum := range sums {
		wanted[sum] = true
	}
	out := make(map[Sum][]byte, len(sums))
	for i, sum := range b.sums {
		if wanted[sum] {
			out[sum] = b.resources[i].Body
		}
	}
	return out
}
