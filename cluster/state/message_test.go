package state

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/proto/voucher"
)

func largestMessage() Message {
	return Message{
		Origin:   Origin{RoleControl, "c" + strings.Repeat("x", maxName-1)},
		Sequence: ^uint64(0), Topic: 255,
		Key: strings.Repeat("k", MaxKey), Payload: bytes.Repeat([]byte{1}, MaxPayload),
		Signature: bytes.Repeat([]byte{2}, voucher.SignatureSize),
	}
}

// sent is a message as it travels.
func sent(m Message) []byte { return append(m.EncodeUnsigned(), m.Signature...) }

// told is a snapshot as it travels.
func told(s Snapshot) []byte { return append(s.EncodeUnsigned(), s.Signature...) }

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
	for want, change := range map[string]func(*Message){
		"key of a message has 129":     func(m *Message) { m.Key += "k" },
		"not UTF-8":                    func(m *Message) { m.Key = "\xff" },
		"payload of a message has 401": func(m *Message) { m.Payload = append(m.Payload, 0) },
	} {
		m := largestMessage()
		change(&m)
		if err := m.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestSnapshotsComeBack(t *testing.T) {
	want := Snapshot{Origin: Origin{RoleNode, "n1"}, Sequence: 7, Bytes: []byte("state"), Signature: make([]byte, voucher.SignatureSize)}
	got, _, err := DecodeSnapshot(told(want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v came back as %+v, %v", want, got, err)
	}
}

func TestEachMessageIsNewsOnce(t *testing.T) {
	l := NewLedger()
	m := Message{Origin: Origin{RoleNode, "n1"}, Sequence: 5, Topic: 1, Key: "k"}
	l.Note(m)
	older, newer, other, another := m, m, m, m
	older.Sequence, newer.Sequence, other.Key, another.Origin.Name = 4, 6, "l", "n2"
	for what, c := range map[string]struct {
		m    Message
		news bool
	}{"the same": {m, false}, "older": {older, false}, "newer": {newer, true}, "another key": {other, true}, "another origin": {another, true}} {
		if got := l.IsNews(c.m); got != c.news {
			t.Errorf("%s: news is %v", what, got)
		}
	}
	l.Forget(m.Origin)
	if !l.IsNews(m) {
		t.Error("a forgotten origin is remembered")
	}
}

func TestTheLedgerIsBounded(t *testing.T) {
	l := NewLedger()
	m := Message{Origin: Origin{RoleNode, "n1"}}
	for i := range uint64(3 * maxKeysHeard) {
		m.Sequence, m.Key = i, fmt.Sprint(i)
		l.Note(m)
	}
	if n := len(l.origins[m.Origin]); n != maxKeysHeard {
		t.Errorf("%d keys are remembered", n)
	}
	if l.IsNews(m) {
		t.Error("the newest was forgotten")
	}
}

func FuzzDecodeMessage(f *testing.F) {
	f.Add(sent(largestMessage()))
	f.Add(sent(Message{Origin: Origin{RoleNode, "n1"}, Signature: make([]byte, voucher.SignatureSize)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, _, err := DecodeMessage(b); err == nil && !bytes.Equal(sent(m), b) {
			t.Errorf("%x is read as %x", b, sent(m))
		}
		if s, _, err := DecodeSnapshot(b); err == nil && !bytes.Equal(told(s), b) {
			t.Errorf("the state %x is read as %x", b, told(s))
		}
	})
}
