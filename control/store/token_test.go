package store

import (
	"bytes"
	"errors"
	"testing"
	"time"

	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

func TestTokensAndTheirUsesAreRestored(t *testing.T) {
	s := sampleState(t)
	again, err := readSnapshot(bytes.NewReader(written(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	if got := again.tokens["t1"]; got != s.tokens["t1"] || got.Uses != 1 || got.Pattern != "n*" || got.Author != "admin" || got.Expires.IsZero() {
		t.Errorf("the token is %+v", got)
	}
	if got := again.nodes["n3"]; got != s.nodes["n3"] || got.Token != "t1" || !got.Enrolled.Equal(someTime) {
		t.Errorf("the node is %+v", got)
	}
}

// TestUseOfATokenIsDecidedByTheCommandAlone: the outcome depends on the time in the command and on no clock.
func TestUseOfATokenIsDecidedByTheCommandAlone(t *testing.T) {
	for name, tt := range map[string]struct {
		id, kind, node string
		at             time.Time
		want           error
	}{
		"good":                {"t1", "join", "n4", someTime.Add(time.Hour - 1), nil},
		"again, the same key": {"t1", "join", "n3", someTime.Add(24 * time.Hour), nil},
		"expired":             {"t1", "join", "n4", someTime.Add(time.Hour), ErrTokenExpired},
		"another name":        {"t1", "join", "x4", someTime, ErrTokenName},
		"another kind":        {"t1", "control", "n4", someTime, ErrTokenKind},
		"no such token":       {"t2", "join", "n4", someTime, ErrTokenGone},
	} {
		t.Run(name, func(t *testing.T) {
			s := sampleState(t)
			before := written(t, s)
			err := s.apply(useToken(tt.id, tt.kind, tt.node, tt.at))
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v", err)
			}
			if err != nil && !bytes.Equal(written(t, s), before) {
				t.Error("a refused use changed the state")
			}
		})
	}
	s := sampleState(t)
	mustApply(t, s, useToken("t1", "join", "n4", someTime))
	if err := s.apply(useToken("t1", "join", "n5", someTime)); !errors.Is(err, ErrTokenUsedUp) {
		t.Errorf("got %v", err)
	}
	if err := s.apply(&storev1.Command{Action: &storev1.Command_RemoveToken{RemoveToken: &storev1.RemoveToken{Id: "t2"}}}); !errors.Is(err, ErrTokenGone) {
		t.Errorf("got %v", err)
	}
}

func TestTokenThatCannotBeOneIsRefused(t *testing.T) {
	for name, change := range map[string]func(*storev1.Token){
		"no id":         func(m *storev1.Token) { m.Id = "" },
		"no kind":       func(m *storev1.Token) { m.Kind = "" },
		"half a hash":   func(m *storev1.Token) { m.Hash = m.GetHash()[:16] },
		"no time":       func(m *storev1.Token) { m.Created = nil },
		"a bad pattern": func(m *storev1.Token) { m.Pattern = "[a" },
		"a long author": func(m *storev1.Token) { m.Author = string(make([]byte, maxNameBytes+1)) },
	} {
		m := (&Token{ID: "t9", Kind: "join", Created: someTime}).toProto()
		change(m)
		s := newState()
		if err := s.apply(&storev1.Command{Action: &storev1.Command_PutToken{PutToken: &storev1.PutToken{Token: m}}}); err == nil || len(s.tokens) > 0 {
			t.Errorf("%s was taken", name)
		}
	}
}
