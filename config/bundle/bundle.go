// Package bundle owns the immutable form in which resources travel and rest: a [Bundle] is a set of resources with a
// manifest and one digest; a [Delta] leads from one bundle to another; a release is a bundle's place in history with
// control's signature; a [Directory] keeps the last two on disk, and the mark of the one that is on trial.
//
// It does not know the dialect (package config makes resources of documents) and does not decide which bundle is
// right: control signs, nodes verify.
//
// The order of calls: [Encode] resources → [Sign] the digest → [Between] two bundles → send → [Delta.Apply] →
// [Verify] → [Bundle.Decode] → [Directory.Stage] → [Staged.BeginTrial] → (it is served) → [Staged.Commit] →
// [Directory.ClearTrial].
package bundle

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/config"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Limits of what is taken from the network or from disk. They are above everything that a document within its own
// limits can make.
const (
	// MaxResources is how many resources a bundle may hold.
	MaxResources = 1_000_000
	// MaxNameBytes is how long a resource's name may be.
	MaxNameBytes = 64 << 10
	// MaxBytes is how large all bodies of a bundle may be together.
	MaxBytes = 256 << 20
)

// manifestMagic begins every manifest, so that a digest of ours is never the digest of something else.
const manifestMagic = "pyserve manifest 1\n"

// Digest is the SHA-256 of a bundle's manifest: two bundles with one digest mean the same. The zero value is no
// bundle's digest.
type Digest [sha256.Size]byte

// String is the digest in hexadecimal, and empty for the zero value.
func (d Digest) String() string {
	if d == (Digest{}) {
		return ""
	}
	return hex.EncodeToString(d[:])
}

// Short is the first twelve digits of String, for people.
func (d Digest) Short() string {
	s := d.String()
	return s[:min(len(s), 12)]
}

// ParseDigest takes the 32 bytes that a message carries.
func ParseDigest(raw []byte) (Digest, error) {
	if len(raw) != len(Digest{}) {
		return Digest{}, fmt.Errorf("a digest has %d bytes, got %d", len(Digest{}), len(raw))
	}
	return Digest(raw), nil
}

// Key names a resource within a bundle.
type Key struct {
	Kind config.Kind
	Name string
}

// compare orders keys as the manifest does: by kind, then by name.
func (k Key) compare(other Key) int {
	if k.Kind != other.Kind {
		return strings.Compare(string(k.Kind), string(other.Kind))
	}
	return strings.Compare(k.Name, other.Name)
}

// Resource is one resource as stored: its body is never decoded and encoded again on the way, since protobuf output
// is not canonical and the manifest holds the hash of exactly these bytes.
type Resource struct {
	Key
	Body []byte
}

// Bundle is an immutable set of resources. Its methods may be called concurrently; what they return is not to be
// changed.
type Bundle struct {
	resources []Resource // sorted by key
	sums      []sum      // of their bodies
	digest    Digest
}

type sum = [sha256.Size]byte

// New makes a bundle of resources in any order. It is an error if two have one key or a limit is passed.
func New(resources []Resource) (*Bundle, error) { return makeOf(slices.Clone(resources)) }

// makeOf keeps the slice.
func makeOf(resources []Resource) (*Bundle, error) {
	if len(resources) > MaxResources {
		return nil, fmt.Errorf("a bundle holds at most %d resources, got %d", MaxResources, len(resources))
	}
	b := &Bundle{resources: resources, sums: make([]sum, len(resources))}
	byKey := func(x, y Resource) int { return x.Key.compare(y.Key) }
	if !slices.IsSortedFunc(b.resources, byKey) {
		slices.SortFunc(b.resources, byKey)
	}
	var pace Pace
	for i, r := range b.resources {
		pace.Step()
		if i > 0 && b.resources[i-1].Key == r.Key {
			return nil, fmt.Errorf("the bundle holds two resources %s %q", r.Kind, r.Name)
		}
		if len(r.Name) > MaxNameBytes || len(r.Kind) > 64 {
			return nil, fmt.Errorf("the name of a resource of kind %.64q is longer than %d bytes", r.Kind, MaxNameBytes)
		}
		b.sums[i] = sha256.Sum256(r.Body)
	}
	if err := b.complete(); err != nil {
		return nil, err
	}
	return b, nil
}

// complete checks what is bounded of the whole, and sets the digest. Resources and sums are there, sorted.
func (b *Bundle) complete() error {
	if len(b.resources) > MaxResources {
		return fmt.Errorf("a bundle holds at most %d resources, got %d", MaxResources, len(b.resources))
	}
	total := 0
	var pace Pace
	for _, r := range b.resources {
		pace.Step()
		if total += len(r.Body); total > MaxBytes {
			return fmt.Errorf("the bodies of a bundle hold at most %d MiB", MaxBytes>>20)
		}
	}
	b.digest = b.manifestDigest()
	return nil
}

// manifestDigest hashes the manifest without building it: magic, then for every resource in order its kind and name,
// each behind its length, and the SHA-256 of its body.
func (b *Bundle) manifestDigest() Digest {
	h := sha256.New()
	h.Write([]byte(manifestMagic))
	var scratch []byte
	var pace Pace
	for i, r := range b.resources {
		pace.Step()
		scratch = appendField(scratch[:0], r.Kind)
		scratch = appendField(scratch, r.Name)
		scratch = append(scratch, b.sums[i][:]...)
		h.Write(scratch)
	}
	return Digest(h.Sum(nil))
}

// appendField appends text behind its length.
func appendField[T ~string | ~[]byte](to []byte, text T) []byte {
	return append(binary.AppendUvarint(to, uint64(len(text))), text...)
}

// Digest is the SHA-256 of the manifest.
func (b *Bundle) Digest() Digest { return b.digest }

// Len is the number of resources.
func (b *Bundle) Len() int { return len(b.resources) }

// All gives the resources in the manifest's order.
func (b *Bundle) All() iter.Seq[Resource] { return slices.Values(b.resources) }

// Encode makes the bundle of resources.
func Encode(r *config.Resources) (*Bundle, error) {
	out := make([]Resource, 0, 1+len(r.Certificates)+len(r.Routes)+len(r.Pools))
	var problems []error
	add := func(kind config.Kind, name string, m proto.Message) {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			problems = append(problems, fmt.Errorf("encode %s %q: %w", kind, name, err))
			return
		}
		out = append(out, Resource{Key{kind, name}, body})
	}
	// In the manifest's order: names alone are sorted faster than what they name.
	for name, c := range byName(r.Certificates) {
		add(config.KindCertificate, name, c)
	}
	if r.Listener != nil {
		add(config.KindListener, config.ListenerName, r.Listener)
	}
	for name, pool := range byName(r.Pools) {
		add(config.KindPool, name, pool)
	}
	for name, route := range byName(r.Routes) {
		add(config.KindRoute, name, route)
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return makeOf(out)
}

// byName gives what is in a map in the order of its keys.
func byName[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			if !yield(name, m[name]) {
				return
			}
		}
	}
}

// Decode gives the resources of the bundle. What [Bundle.Known] says is an error, and so is a bundle without a listener.
func (b *Bundle) Decode() (*config.Resources, error) {
	if err := b.Known(); err != nil {
		return nil, err
	}
	r := &config.Resources{
		Certificates: map[string]*resourcev1.Certificate{},
		Routes:       map[string]*resourcev1.Route{},
		Pools:        map[string]*resourcev1.Pool{},
	}
	for _, stored := range b.resources {
		var m proto.Message
		switch stored.Kind {
		case config.KindListener:
			r.Listener = &resourcev1.Listener{}
			m = r.Listener
		case config.KindCertificate:
			c := &resourcev1.Certificate{}
			r.Certificates[stored.Name], m = c, c
		case config.KindRoute:
			route := &resourcev1.Route{}
			r.Routes[stored.Name], m = route, route
		case config.KindPool:
			pool := &resourcev1.Pool{}
			r.Pools[stored.Name], m = pool, pool
		}
		if err := stored.Decode(m); err != nil {
			return nil, err
		}
	}
	if r.Listener == nil {
		return nil, errors.New("the bundle holds no listener")
	}
	return r, nil
}

// Decode reads the resource into a message of its kind.
func (r Resource) Decode(into proto.Message) error {
	if err := proto.Unmarshal(r.Body, into); err != nil {
		return fmt.Errorf("decode %s %q: %w", r.Kind, r.Name, err)
	}
	return nil
}
