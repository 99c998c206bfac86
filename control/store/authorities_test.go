package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"
)

func TestAuthoritiesReplaceThoseThatTheAskerKnew(t *testing.T) {
	s := sampleState(t)
	before := written(t, s)
	stale := sha256.Sum256([]byte("old"))
	for name, c := range map[string][]byte{"none": nil, "another": stale[:]} {
		if err := s.apply(setAuthorities(c, "newer")); !errors.Is(err, ErrConflict) || !bytes.Equal(written(t, s), before) {
			t.Errorf("%s: %v", name, err)
		}
	}
	current := sha256.Sum256([]byte("new"))
	if err := s.apply(setAuthorities(current[:])); err == nil {
		t.Error("a cluster without an authority was made")
	}
	if err := s.apply(setAuthorities(current[:], "a", "b", "c")); err == nil {
		t.Error("three were taken")
	}
	mustApply(t, s, setAuthorities(current[:], "new"))
	again, err := readSnapshot(bytes.NewReader(written(t, s)))
	if err != nil || len(again.authorities) != 1 || string(again.authorities[0].Key) != "key of new" {
		t.Errorf("restored: %v, %v", again, err)
	}
}

func TestAuthoritiesAreKeptAndNotReadable(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	if len(s.Authorities()) != 0 {
		t.Fatal("there are some at the beginning")
	}
	first := []Authority{{[]byte("new"), []byte("key of new")}, {[]byte("old"), []byte("key of old")}}
	if err := s.SetAuthorities(t.Context(), first, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.SetAuthorities(t.Context(), first[:1], nil); !errors.Is(err, ErrConflict) {
		t.Errorf("got %v", err)
	}
	if err := s.SetAuthorities(t.Context(), first[:1], s.Authorities()); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if got := openIn(t, dir).Authorities(); len(got) != 1 || string(got[0].Certificate) != "new" {
		t.Errorf("got %q", got)
	}
}
