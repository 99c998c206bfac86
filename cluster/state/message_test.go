package state

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/proto/voucher"
)

func largestMessage() Message {
	return Message{
		Origin:   Origin{RoleControl, "c" + strings.Repeat("x", maxName-1)},
		Sequence: ^uint64(0), Topic: 255,
		Payload:   bytes.Repeat([]byte{1}, MaxPayload),
		Signature: bytes.Repeat([]byte{2}, voucher.SignatureSize),
	}
}

// sent is a message as it travels.
func sent(m Message) []byte { return append(m.EncodeUnsigned(), m.Signature...) }

func TestMessagesComeBack(t *testing.T) {
	for _, want := range []Message{
		largestMessage(),
		{Origin: Origin{RoleNode, "n1"}, Payload: []byte{}, Signature: make([]byte, voucher.SignatureSize)},
	} {
		if err := want.Check(); err != nil {
			t.Fatal(err)
		}
		got, unsigned, err := DecodeMessage(sent(want))
		if err != nil || !reflect.DeepEqual(got, want) || !bytes.Equal(unsigned, want.EncodeUnsigned()) {
			t.Errorf("%+v came back as %+v, %v", want, got, err)
		}
	}
}

func TestACutMessageIsNone(t *testing.T) {
	whole := sent(largestMessage())
	for n := range whole {
		if m, _, err := DecodeMessage(whole[:n]); err == nil {
			t.Fatalf("%d of %d bytes are %+v", n, len(whole), m)
		}
	}
	if _, _, err := DecodeMessage(append(whole, 0)); err == nil {
		t.Error("a byte after the end is passed over")
	}
}

func TestMessagesOverTheirLimitsAreNamed(t *testing.T) {
	m := largestMessage()
	m.Payload = append(m.Payload, 0)
	if err := m.Check(); err == nil || !strings.Contains(err.Error(), "payload of a message has 561") {
		t.Error(err)
	}
}

func FuzzDecodeMessage(f *testing.F) {
	f.Add(sent(largestMessage()))
	f.Add(sent(Message{Origin: Origin{RoleNode, "n1"}, Signature: make([]byte, voucher.SignatureSize)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, _, err := DecodeMessage(b); err == nil && !bytes.Equal(sent(m), b) {
			t.Errorf("%x is read as %x", b, sent(m))
		}
	})
}
