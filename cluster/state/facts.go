package state

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxMetadata is the most bytes that a member's metadata may have. The gossip layer panics at 512 and puts the
// metadata into every packet that announces a member, so the limit is well below that.
const MaxMetadata = 200

// Facts are what a member says of itself in its metadata: hints for the others, believed for display and for asking
// further, never for what is served.
type Facts struct {
	// Epoch and Revision tell which release the member serves; both 0: none.
	Epoch    uint64
	Revision uint64
	// DigestPrefix is the first eight bytes of that release's digest.
	DigestPrefix [8]byte
	// Draining members finish what they have and want nothing new.
	Draining bool
	// Leaving members said goodbye: when they are gone, they left and did not die.
	Leaving bool
}

// The layout, big-endian:
//
//	0      layout version, 1
//	1      flags, bit 0: draining, bit 1: leaving
//	2-9    epoch
//	10-17  revision
//	18-25  digest prefix
//
// What comes later is appended, and older members ignore what they do not know; the version changes only if what stands
// here changes its meaning.
const (
	layoutVersion = 1
	flagDraining  = 1 << 0
	flagLeaving   = 1 << 1
	layoutSize    = 26
)

// ErrLayout is returned for metadata of another layout version, as a newer member may carry.
var ErrLayout = errors.New("metadata of another layout version")

// Encode gives the metadata that carries the facts, at most MaxMetadata bytes.
func (f Facts) Encode() []byte {
	b := make([]byte, 0, layoutSize)
	var flags byte
	if f.Draining {
		flags |= flagDraining
	}
	if f.Leaving {
		flags |= flagLeaving
	}
	b = append(b, layoutVersion, flags)
	b = binary.BigEndian.AppendUint64(b, f.Epoch)
	b = binary.BigEndian.AppendUint64(b, f.Revision)
	return append(b, f.DigestPrefix[:]...)
}

// DecodeFacts reads metadata as it came from the network. It keeps nothing of b.
func DecodeFacts(b []byte) (Facts, error) {
	if len(b) > MaxMetadata {
		return Facts{}, fmt.Errorf("metadata of %d bytes, more than %d", len(b), MaxMetadata)
	}
	if len(b) == 0 {
		return Facts{}, errors.New("metadata is empty")
	}
	if b[0] != layoutVersion {
		return Facts{}, fmt.Errorf("%w: %d", ErrLayout, b[0])
	}
	if len(b) < layoutSize {
		return Facts{}, fmt.Errorf("metadata of %d bytes, fewer than %d", len(b), layoutSize)
	}
	return Facts{
		Draining:     b[1]&flagDraining != 0,
		Leaving:      b[1]&flagLeaving != 0,
		Epoch:        binary.BigEndian.Uint64(b[2:]),
		Revision:     binary.BigEndian.Uint64(b[10:]),
		DigestPrefix: [8]byte(b[18:26]),
	}, nil
}
