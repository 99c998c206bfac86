package state

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pyserve/pyserve/proto/voucher"
)

// Topic says which part of the program a message is for.
type Topic uint8

// MaxPayload is the most bytes of a message's payload. Two of the largest fit into a packet.
const MaxPayload = 560

// Origin is the member that a message comes from, whoever passed it on.
type Origin struct {
	Role Role
	Name string
}

// Message is a small piece of news that members pass on to one another until all have it.
type Message struct {
	Origin Origin
	// Sequence grows with each message of an origin, also across its restarts: microseconds by its clock, and above all before.
	Sequence uint64
	Topic    Topic
	// Payload is up to MaxPayload bytes.
	Payload []byte
	// Signature is the origin's, over Signed.
	Signature []byte
}

// The layout of a message, big-endian:
//
//	0     layout version, 2
//	1     topic
//	2-9   sequence
//	10    length of the origin's wire name, which follows
//	      length of the payload in two bytes, and the payload
//	      signature, 64 bytes
const (
	messageVersion = 2
	messageHead    = 10
)

// Check names the limit that a message of ours is over.
func (m Message) Check() error {
	if len(m.Payload) > MaxPayload {
		return fmt.Errorf("the payload of a message has %d bytes, more than %d", len(m.Payload), MaxPayload)
	}
	return nil
}

// EncodeUnsigned gives the bytes of a message that passes Check, but for its signature, which is to be appended.
func (m Message) EncodeUnsigned() []byte {
	origin := WireName(m.Origin.Role, m.Origin.Name)
	b := make([]byte, 0, messageHead+3+len(origin)+len(m.Payload)+voucher.SignatureSize)
	b = append(b, messageVersion, byte(m.Topic))
	b = binary.BigEndian.AppendUint64(b, m.Sequence)
	b = append(append(b, byte(len(origin))), origin...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Payload)))
	return append(b, m.Payload...)
}

// messageMagic begins what is signed of messages; the cluster follows, and the bytes themselves.
const messageMagic = "pyserve gossip message 2\n"

// SignedMessage is what the origin signs.
func SignedMessage(cluster string, unsigned []byte) []byte {
	return append(appendContext(messageMagic, cluster), unsigned...)
}

// cutSignature takes the signature off the end.
func cutSignature(b []byte) (unsigned, signature []byte, err error) {
	n := len(b) - voucher.SignatureSize
	if n < messageHead {
		return nil, nil, errCut
	}
	return b[:n:n], b[n:], nil
}

// errCut is why a message ends too early.
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
