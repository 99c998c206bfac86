package store

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

func putContext(key byte, name string, expires time.Time) *storev1.Command {
	c := Context{KeyHash: [32]byte{key}, Name: name, Role: "viewer", Issued: someTime, Expires: expires, Author: "admin"}
	return &storev1.Command{Version: 3, Action: &storev1.Command_PutContext{PutContext: &storev1.PutContext{Context: c.toProto()}}}
}

func revokeContext(name string, until time.Time) *storev1.Command {
	return &storev1.Command{Version: 3, Action: &storev1.Command_RevokeContext{RevokeContext: &storev1.RevokeContext{
		Name: name, Until: timestamppb.New(until), Ends: timestamppb.New(until.Add(time.Hour)), At: timestamppb.New(until),
	}}}
}

func TestContextsAndRevocationsAreRestored(t *testing.T) {
	s := sampleState(t)
	again, err := readSnapshot(bytes.NewReader(written(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	key := "\x02" + strings.Repeat("\x00", 31)
	if got := again.contexts[key]; len(again.contexts) != 2 || got != s.contexts[key] || got.Name != "bob" || got.Role != "viewer" || got.Author != "admin" || !got.Expires.Equal(someTime.Add(time.Hour)) {
		t.Errorf("the contexts are %+v", again.contexts)
	}
	if got := again.revocations["alice"]; len(again.revocations) != 1 || got != s.revocations["alice"] || !got.Until.Equal(someTime) || !got.Ends.Equal(someTime.Add(time.Hour)) {
		t.Errorf("the revocations are %+v", again.revocations)
	}
}

func TestLaterRevocationOfANameStays(t *testing.T) {
	s := newState()
	mustApply(t, s, revokeContext("alice", someTime.Add(time.Minute)))
	mustApply(t, s, revokeContext("alice", someTime))
	if got := s.revocations["alice"]; !got.Until.Equal(someTime.Add(time.Minute)) || !got.Ends.Equal(someTime.Add(time.Hour+time.Minute)) {
		t.Errorf("it is %+v", got)
	}
}

func TestContextsAndRevocationsAreForgottenOnceTheyHaveEnded(t *testing.T) {
	s := newState()
	mustApply(t, s, putContext(1, "alice", someTime.Add(time.Hour)))
	mustApply(t, s, revokeContext("alice", someTime))
	mustApply(t, s, revokeContext("bob", someTime.Add(time.Hour)))
	if len(s.contexts) != 1 || len(s.revocations) != 2 {
		t.Errorf("forgotten too early: %v, %v", s.contexts, s.revocations)
	}
	mustApply(t, s, revokeContext("bob", someTime.Add(2*time.Hour)))
	if _, known := s.revocations["alice"]; known || len(s.contexts) != 0 {
		t.Errorf("what has ended is kept: %v, %v", s.contexts, s.revocations)
	}
}

func TestRestoreBringsNoRevokedContextBack(t *testing.T) {
	s := openIn(t, t.TempDir())
	mustCommit(t, s, map[string]string{"a": "one"}, "one")
	r, err := readBackup(s, backup(t, s)) // from before anything was issued, or revoked
	if err != nil {
		t.Fatal(err)
	}
	issued := Context{KeyHash: [32]byte{1}, Name: "alice", Role: "admin", Issued: someTime, Expires: someTime.Add(time.Hour), Author: "admin"}
	if err := s.PutContext(t.Context(), issued); err != nil {
		t.Fatal(err)
	}
	revoked := Revocation{Name: "alice", Until: someTime, Ends: someTime.Add(time.Hour)}
	if err := s.RevokeContext(t.Context(), revoked, someTime); err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(t.Context(), r, signAgain); err != nil {
		t.Fatal(err)
	}
	got, known := s.Revocation("alice")
	if !known || !got.Until.Equal(someTime) || !got.Ends.Equal(revoked.Ends) {
		t.Errorf("the revocation is %+v, %t", got, known)
	}
	if all := s.Contexts(); len(all) != 1 || all[0].Name != "alice" || !all[0].Issued.Equal(someTime) {
		t.Errorf("the contexts are %+v", all)
	}
}
