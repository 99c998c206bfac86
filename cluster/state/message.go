package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/pyserve/pyserve/proto/voucher"
)

// Topic says which part of the program a message is for.
type Topic uint8

// The limits of a message. One of the largest fits into a packet beside what else is in it.
const (
	MaxKey     = 128
	MaxPayload = 400
)

// Origin is the member that a message comes from, whoever passed it on.
type Origin struct {
	Role Role
	Name string
}

// Message is a small piece of news that members pass on to one another until all have it.
type Message struct {
	Origin Origin
	// Sequence grows with each message of an origin, also across its restarts.
	Sequence uint64
	Topic    Topic
	// Key says what the news is about: of one origin, topic and key the latest message counts. Up to MaxKey bytes of UTF-8.
	Key string
	// Payload is up to MaxPayload bytes.
	Payload []byte
	// Signature is the origin's, over Signed.
	Signature []byte
}

// The layout of a message, big-endian:
//
//	0     layout version, 1
//	1     topic
//	2-9   sequence
//	10    length of the origin's wire name, which follows
//	      length of the key in one byte, and the key
//	      length of the payload in two bytes, and the payload
//	      signature, 64 bytes
const (
	messageVersion = 1
	messageHead    = 10
)

// Check names the limit that a message of ours is over.
func (m Message) Check() error {
	if len(m.Key) > MaxKey {
		return fmt.Errorf("the key of a message has %d bytes, more than %d", len(m.Key), MaxKey)
	}
	if !utf8.ValidString(m.Key) {
		return errors.New("the key of a message is not UTF-8")
	}
	if len(m.Payload) > MaxPayload {
		return fmt.Errorf("the payload of a message has %d bytes, more than %d", len(m.Payload), MaxPayload)
	}
	return nil
}

// EncodeUnsigned gives the bytes of a message that passes Check, but for its signature, which is to be appended.
func (m Message) EncodeUnsigned() []byte {
	origin := WireName(m.Origin.Role, m.Origin.Name)
	b := make([]byte, 0, messageHead+4+len(origin)+len(m.Key)+len(m.Payload)+voucher.SignatureSize)
	b = append(b, messageVersion, byte(m.Topic))
	b = binary.BigEndian.AppendUint64(b, m.Sequence)
	b = append(append(b, byte(len(origin))), origin...)
	b = append(append(b, byte(len(m.Key))), m.Key...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Payload)))
	return append(b, m.Payload...)
}

// What is signed of messages and of states: these words, the cluster, and the bytes themselves.
const (
	messageMagic  = "pyserve gossip message 1\n"
	snapshotMagic = "pyserve gossip state 1\n"
)

// SignedMessage is what the origin signs.
func SignedMessage(cluster string, unsigned []byte) []byte {
	return append(appendContext(messageMagic, cluster), unsigned...)
}

// SignedSnapshot is what the origin signs.
func SignedSnapshot(cluster string, unsigned []byte) []byte {
	return append(appendContext(snapshotMagic, cluster), unsigned...)
}

// cutSignature takes the signature off the end.
func cutSignature(b []byte) (unsigned, signature []byte, err error) {
	n := len(b) - voucher.SignatureSize
	if n < messageHead {
		return nil, nil, errCut
	}
	return b[:n:n], b[n:], nil
}

// errCut is why a message or state ends too early.
var errCut = errors.New("it is cut off")

// DecodeMessage reads a message as it came from the network. Unsigned is what the signature is over; it, the payload and
// the signature are parts of b.
func DecodeMessage(b []byte) (m Message, unsigned []byte, err error) {
	unsigned, signature, err := cutSignature(b)
	if err != nil {
		return Message{}, nil, err
	}
	m, err = decodeUnsigned(unsigned)
	m.Signature = signature
	return m, unsigned, err
}

func decodeUnsigned(b []byte) (Message, error) {
	if b[0] != messageVersion {
		return Message{}, fmt.Errorf("a message of another layout version: %d", b[0])
	}
	m := Message{Topic: Topic(b[1]), Sequence: binary.BigEndian.Uint64(b[2:])}
	origin, rest, err := cutShort(b[messageHead:])
	if err != nil {
		return Message{}, err
	}
	if m.Origin.Role, m.Origin.Name, err = ParseWireName(string(origin)); err != nil {
		return Message{}, fmt.Errorf("the origin of a message: %w", err)
	}
	key, rest, err := cutShort(rest)
	if err != nil {
		return Message{}, err
	}
	m.Key = string(key)
	if len(rest) < 2 || len(rest[2:]) != int(binary.BigEndian.Uint16(rest)) {
		return Message{}, errors.New("the length of a message's payload is wrong")
	}
	m.Payload = rest[2:]
	return m, m.Check()
}

// cutShort takes off a text with one byte of length before it.
func cutShort(b []byte) (text, rest []byte, err error) {
	if len(b) == 0 || len(b)-1 < int(b[0]) {
		return nil, nil, errCut
	}
	n := 1 + int(b[0])
	return b[1:n], b[n:], nil
}

// Snapshot is what a member tells at a full exchange, to one other.
type Snapshot struct {
	Origin Origin
	// Sequence is as a message's.
	Sequence  uint64
	Bytes     []byte
	Signature []byte
}

// The layout of a snapshot: that of a message up to the origin, with topic 0; the bytes follow, and the signature.

// EncodeUnsigned gives the snapshot's bytes, but for its signature, which is to be appended.
func (s Snapshot) EncodeUnsigned() []byte {
	origin := WireName(s.Origin.Role, s.Origin.Name)
	b := make([]byte, 0, messageHead+1+len(origin)+len(s.Bytes)+voucher.SignatureSize)
	b = append(b, messageVersion, 0)
	b = binary.BigEndian.AppendUint64(b, s.Sequence)
	b = append(append(b, byte(len(origin))), origin...)
	return append(b, s.Bytes...)
}

// DecodeSnapshot reads a snapshot as it came from the network, of whatever length. Unsigned is what the signature is over;
// it, the bytes and the signature are parts of b.
func DecodeSnapshot(b []byte) (s Snapshot, unsigned []byte, err error) {
	unsigned, signature, err := cutSignature(b)
	if err != nil {
		return Snapshot{}, nil, err
	}
	if unsigned[0] != messageVersion || unsigned[1] != 0 {
		return Snapshot{}, nil, fmt.Errorf("a state of another layout version: %d", unsigned[0])
	}
	origin, rest, err := cutShort(unsigned[messageHead:])
	if err != nil {
		return Snapshot{}, nil, err
	}
	s = Snapshot{Sequence: binary.BigEndian.Uint64(unsigned[2:]), Bytes: rest, Signature: signature}
	if s.Origin.Role, s.Origin.Name, err = ParseWireName(string(origin)); err != nil {
		return Snapshot{}, nil, fmt.Errorf("the origin of a state: %w", err)
	}
	return s, unsigned, nil
}
