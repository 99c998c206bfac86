package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/config"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// fileMagic begins a bundle file. What follows, each behind its length as a uvarint: the release (protobuf), then for
// every resource kind, name and body, counted; the SHA-256 of all that ends the file.
const fileMagic = "pyserve bundle 1\n"

// Marshal writes a bundle and its release as one self-checking piece of bytes, as it rests on disk.
func Marshal(release *fleetv1.Release, b *Bundle) ([]byte, error) {
	head, err := proto.Marshal(release)
	if err != nil {
		return nil, fmt.Errorf("encode the release: %w", err)
	}
	out := appendString([]byte(fileMagic), string(head))
	out = binary.AppendUvarint(out, uint64(len(b.resources)))
	for _, r := range b.resources {
		out = appendString(out, string(r.Kind))
		out = appendString(out, r.Name)
		out = appendString(out, string(r.Body))
	}
	sum := checksum(out)
	return append(out, sum[:]...), nil
}

func checksum(data []byte) [sha256.Size]byte { return sha256.Sum256(data) }

// Unmarshal reads what [Marshal] wrote. Any flipped or missing byte is an error. The signature is not looked at.
func Unmarshal(data []byte) (*fleetv1.Release, *Bundle, error) {
	body, ok := bytes.CutPrefix(data, []byte(fileMagic))
	if !ok {
		return nil, nil, errors.New("not a bundle file of this version")
	}
	if len(body) < sha256.Size {
		return nil, nil, errors.New("the bundle file is cut short")
	}
	end := len(data) - sha256.Size
	if checksum(data[:end]) != [sha256.Size]byte(data[end:]) {
		return nil, nil, errors.New("the bundle file is damaged: its checksum does not fit")
	}
	r := reader{rest: body[:len(body)-sha256.Size]}
	release := &fleetv1.Release{}
	if err := proto.Unmarshal(r.bytes(1<<10), release); err != nil {
		return nil, nil, fmt.Errorf("decode the release: %w", err)
	}
	count := r.uvarint(MaxResources)
	resources := make([]Resource, 0, min(count, uint64(len(r.rest)/3)))
	for range count {
		if r.err != nil {
			break
		}
		key := Key{config.Kind(r.bytes(64)), string(r.bytes(MaxNameBytes))}
		resources = append(resources, Resource{key, bytes.Clone(r.bytes(MaxBytes))})
	}
	if r.err != nil {
		return nil, nil, r.err
	}
	if len(r.rest) > 0 {
		return nil, nil, fmt.Errorf("the bundle file has %d bytes too many", len(r.rest))
	}
	b, err := New(resources)
	if err != nil {
		return nil, nil, err
	}
	return release, b, nil
}

// reader takes length-prefixed fields off a buffer and remembers the first error.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.rest)
	switch {
	case r.err != nil:
		return 0
	case n <= 0 || v > limit:
		r.err = errors.New("the bundle file is malformed: a length is out of bounds")
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) bytes(limit uint64) []byte {
	n := r.uvarint(limit)
	if r.err == nil && n > uint64(len(r.rest)) {
		r.err = errors.New("the bundle file is malformed: a field is cut short")
	}
	if r.err != nil {
		return nil
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}
