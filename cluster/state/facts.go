package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/pyserve/pyserve/proto/voucher"
)

// MaxMetadata is the most bytes that a member's metadata may have. The gossip layer panics at 512 and puts the
// metadata into every packet that announces a member, so the limit is well below that.
const MaxMetadata = 200

// Facts are what a member tells of itself: hints for the others, believed for display and for asking further, never for
// what is served.
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
	// Room is for how many more clients' connections a member has room.
	Room Room
}

// Metadata is what a member says of itself, with the proof that it is the member who says it. It is the member's only
// together with its name and its address, which gossip carries beside it.
type Metadata struct {
	Facts Facts
	// KeyMark tells which gossip key the member encrypts with, see Member.
	KeyMark uint16
	// Sequence is in milliseconds since 1970 and grows with what is said; the later counts. 48 bits.
	Sequence uint64
	// Voucher is control's word that Signature is made with the member's key. Empty: the member has none, as one of an older
	// version, and Signature is not there either.
	Voucher   []byte
	Signature []byte
}

// The layout, big-endian:
//
//	0        layout version, 1
//	1        flags, bit 0: draining, bit 1: leaving, bits 2-6: room
//	2-9      epoch
//	10-17    revision
//	18-25    digest prefix
//	26-27    key mark
//	28-33    sequence
//	34-134   voucher
//	135-198  signature over all before, see SignedMetadata
//
// Older members end after 26 bytes, members without a voucher after 34. What comes later is appended, and older members
// ignore what they do not know; the version changes only if what stands here changes its meaning.
const (
	layoutVersion = 1
	flagDraining  = 1 << 0
	flagLeaving   = 1 << 1
	roomShift     = 2
	oldSize       = 26
	plainSize     = 34
	unsignedSize  = plainSize + voucher.Size
	wholeSize     = unsignedSize + voucher.SignatureSize
)

// ErrLayout is returned for metadata of another layout version, as a newer member may carry.
var ErrLayout = errors.New("metadata of another layout version")

// EncodeUnsigned gives the metadata but for its signature, which is to be appended where there is a voucher.
func (m Metadata) EncodeUnsigned() []byte {
	b := make([]byte, 0, wholeSize)
	var flags byte
	if m.Facts.Draining {
		flags |= flagDraining
	}
	if m.Facts.Leaving {
		flags |= flagLeaving
	}
	flags |= byte(min(m.Facts.Room, mostRoom)) << roomShift
	b = append(b, layoutVersion, flags)
	b = binary.BigEndian.AppendUint64(b, m.Facts.Epoch)
	b = binary.BigEndian.AppendUint64(b, m.Facts.Revision)
	b = append(b, m.Facts.DigestPrefix[:]...)
	b = binary.BigEndian.AppendUint16(b, m.KeyMark)
	b = binary.BigEndian.AppendUint16(b, uint16(m.Sequence>>32))
	b = binary.BigEndian.AppendUint32(b, uint32(m.Sequence))
	return append(b, m.Voucher...)
}

// metadataMagic keeps a member's signature on its metadata from being one on anything else.
const metadataMagic = "pyserve gossip metadata 1\n"

// SignedMetadata is what a member signs, and what is proved of encoded metadata that has a signature. The address is part
// of it, so that a copy is of no use at another one.
func SignedMetadata(cluster string, o Origin, address netip.AddrPort, unsigned []byte) []byte {
	b := appendContext(metadataMagic, cluster)
	name := WireName(o.Role, o.Name)
	b = append(append(b, byte(len(name))), name...)
	ip := address.Addr().As16()
	b = append(b, ip[:]...)
	b = binary.BigEndian.AppendUint16(b, address.Port())
	return append(b, unsigned...)
}

// appendContext begins what is signed: what it is, and in which cluster, of up to 255 bytes.
func appendContext(magic, cluster string) []byte {
	b := append(make([]byte, 0, 512), magic...)
	return append(append(b, byte(len(cluster))), cluster...)
}

// DecodeMetadata reads metadata as it came from the network. Unsigned is the part that the signature is over; it, the
// voucher and the signature are parts of b.
func DecodeMetadata(b []byte) (m Metadata, unsigned []byte, err error) {
	if len(b) > MaxMetadata {
		return Metadata{}, nil, fmt.Errorf("metadata of %d bytes, more than %d", len(b), MaxMetadata)
	}
	if len(b) == 0 {
		return Metadata{}, nil, errors.New("metadata is empty")
	}
	if b[0] != layoutVersion {
		return Metadata{}, nil, fmt.Errorf("%w: %d", ErrLayout, b[0])
	}
	if len(b) < oldSize {
		return Metadata{}, nil, fmt.Errorf("metadata of %d bytes, fewer than %d", len(b), oldSize)
	}
	m.Facts = Facts{
		Draining:     b[1]&flagDraining != 0,
		Leaving:      b[1]&flagLeaving != 0,
		Room:         Room(b[1]>>roomShift) & mostRoom,
		Epoch:        binary.BigEndian.Uint64(b[2:]),
		Revision:     binary.BigEndian.Uint64(b[10:]),
		DigestPrefix: [8]byte(b[18:26]),
	}
	if len(b) >= plainSize {
		m.KeyMark = binary.BigEndian.Uint16(b[26:])
		m.Sequence = uint64(binary.BigEndian.Uint16(b[28:]))<<32 | uint64(binary.BigEndian.Uint32(b[30:]))
	}
	if len(b) >= wholeSize {
		m.Voucher, m.Signature = b[plainSize:unsignedSize], b[unsignedSize:wholeSize]
	}
	return m, b[:min(len(b), unsignedSize)], nil
}
