package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

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
	out := make([]byte, 0, b.fileBytes()+len(head)) // growing it would leave three times as much behind
	out = appendField(append(out, fileMagic...), head)
	out = binary.AppendUvarint(out, uint64(len(b.resources)))
	for _, r := range b.resources {
		out = appendField(out, r.Kind)
		out = appendField(out, r.Name)
		out = appendField(out, r.Body)
	}
	return seal(out), nil
}

// fileBytes is how long the bundle's file is at most, without the release.
func (b *Bundle) fileBytes() int {
	size := len(fileMagic) + 2*binary.MaxVarintLen64 + sha256.Size
	for i := range b.resources {
		r := &b.resources[i]
		size += fieldBytes(len(r.Kind)) + fieldBytes(len(r.Name)) + fieldBytes(len(r.Body))
	}
	return size
}

// fieldBytes is how long a field of so many bytes is with its length.
func fieldBytes(length int) int { return length + (bits.Len(uint(length)|1)+6)/7 }

// seal ends a file with the SHA-256 of it.
func seal(data []byte) []byte {
	sum := sha256.Sum256(data)
	return append(data, sum[:]...)
}

// unseal gives what lies between magic and the checksum that seal made.
func unseal(magic string, data []byte) (*reader, error) {
	body, ok := bytes.CutPrefix(data, []byte(magic))
	if !ok {
		return nil, errors.New("not a file of this kind and version, or damaged at its beginning")
	}
	if len(body) < sha256.Size {
		return nil, errors.New("the file is cut short")
	}
	end := len(data) - sha256.Size
	if sha256.Sum256(data[:end]) != [sha256.Size]byte(data[end:]) {
		return nil, errors.New("the file is damaged: its checksum does not fit")
	}
	return &reader{rest: body[:len(body)-sha256.Size]}, nil
}

// Unmarshal reads what [Marshal] wrote. Any flipped or missing byte is an error. The signature is not looked at.
func Unmarshal(data []byte) (*fleetv1.Release, *Bundle, error) {
	r, err := unseal(fileMagic, data)
	if err != nil {
		return nil, nil, err
	}
	release := &fleetv1.Release{}
	if err := proto.Unmarshal(r.bytes(maxReleaseBytes), release); err != nil {
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
	if err := r.end(); err != nil {
		return nil, nil, err
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
		r.err = errors.New("the file is malformed: a length is out of bounds")
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) bytes(limit uint64) []byte {
	n := r.uvarint(limit)
	if r.err == nil && n > uint64(len(r.rest)) {
		r.err = errors.New("the file is malformed: a field is cut short")
	}
	if r.err != nil {
		return nil
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

// end gives the first error, and one where something is left.
func (r *reader) end() error {
	if r.err == nil && len(r.rest) > 0 {
		return fmt.Errorf("the file has %d bytes too many", len(r.rest))
	}
	return r.err
}
