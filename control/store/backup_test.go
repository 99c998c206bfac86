package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

func backup(t testing.TB, s *Store) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := s.Backup("cluster", &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func readBackup(s *Store, data []byte) (*Restoration, error) {
	return s.ReadBackup("cluster", bytes.NewReader(data), int64(len(data)))
}

func signAgain(epoch uint64, active *Snapshot) *fleetv1.Release {
	return releaseOf(epoch, active.Number, active.Bundle)
}

func TestRestoreBeginsAHigherEpochEverywhere(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	s := c.leader()
	c.commit(map[string]string{"a": "one"}, "one")
	for _, name := range []string{"n1", "n2"} {
		if err := s.PutNode(t.Context(), Node{Name: name, KeyHash: [32]byte{1}, Enrolled: someTime}); err != nil {
			t.Fatal(err)
		}
	}
	data := backup(t, s)
	c.commit(map[string]string{"a": "two"}, "two")
	if err := s.RemoveNode(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	if err := s.PutNode(t.Context(), Node{Name: "n2", KeyHash: [32]byte{2}, Enrolled: someTime}); err != nil {
		t.Fatal(err)
	}
	if err := s.PutToken(t.Context(), Token{ID: "t1", Kind: "join", Created: someTime}); err != nil {
		t.Fatal(err)
	}
	r, err := readBackup(s, data)
	if err != nil {
		t.Fatal(err)
	}
	if r.Info.Revision != 1 || r.Info.Nodes != 2 || !slices.Equal(r.Returning, []string{"n1"}) {
		t.Errorf("the backup says %+v, returning %v", r.Info, r.Returning)
	}
	if s.Active().Number != 2 {
		t.Fatal("reading it changed something")
	}
	if err := s.Restore(t.Context(), r, signAgain); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"c1", "c2", "c3"} {
		s := c.get(name)
		eventually(t, name+" follows", func() bool { return s.Active().Release.GetEpoch() == 2 })
		n1, ok1 := s.Node("n1")
		n2, ok2 := s.Node("n2")
		_, token := s.Token("t1")
		if s.Active().Number != 1 || string(s.Active().Document) != "one" || !ok1 || n1.KeyHash != [32]byte{1} || !ok2 || n2.KeyHash != [32]byte{2} || !token || len(s.Servers()) != 3 {
			t.Errorf("%s is at %+v with %v %v %v and %v", name, s.Active(), n1, n2, token, s.Servers())
		}
	}
	if next := c.commit(map[string]string{"a": "three"}, "three"); next.Number != 2 || next.Release.GetEpoch() != 2 {
		t.Errorf("the next revision is %+v", next)
	}
	// And it is what is there after a start.
	for _, name := range []string{"c1", "c2", "c3"} {
		c.stop(name)
	}
	opened := make(chan struct{})
	for _, name := range []string{"c1", "c2", "c3"} {
		go func() {
			c.open(name, "")
			opened <- struct{}{}
		}()
	}
	for range 3 {
		<-opened
	}
	eventually(t, "revision 2 is active again", func() bool { return c.leader().Active().Number == 2 })
}

func TestRestoreIntoANewStore(t *testing.T) {
	old := openIn(t, t.TempDir())
	mustCommit(t, old, map[string]string{"a": "one"}, "one")
	data := backup(t, old)
	s := openIn(t, t.TempDir())
	r, err := readBackup(s, data)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(t.Context(), r, signAgain); err != nil {
		t.Fatal(err)
	}
	if s.Active().Number != 1 || s.Active().Release.GetEpoch() != 2 {
		t.Errorf("it is at %+v", s.Active())
	}
	empty := openIn(t, t.TempDir())
	if r, err = readBackup(s, backup(t, empty)); err != nil || r.Info.Revision != 0 {
		t.Fatalf("got %+v, %v", r, err)
	}
	if err := s.Restore(t.Context(), r, signAgain); err != nil || s.Active() != nil {
		t.Errorf("of nothing: %v, %v", s.Active(), err)
	}
}

func TestEveryFlippedBitAndCutOfABackupIsRefused(t *testing.T) {
	s := openIn(t, t.TempDir())
	mustCommit(t, s, map[string]string{"a": "one"}, "one")
	good := backup(t, s)
	for i := 0; i < len(good); i += 7 {
		bad := slices.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if _, err := readBackup(s, bad); err == nil {
			t.Fatalf("a flipped bit in byte %d was not noticed", i)
		}
		if _, err := readBackup(s, good[:i]); !errors.Is(err, ErrNoBackup) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
	if _, err := readBackup(s, append(slices.Clone(good), 0)); !errors.Is(err, ErrNoBackup) {
		t.Error("a byte too many was not noticed")
	}
}

func TestForeignAndNewerBackupsAreRefused(t *testing.T) {
	s := openIn(t, t.TempDir())
	good := backup(t, s)
	if _, err := s.ReadBackup("another", bytes.NewReader(good), int64(len(good))); !errors.Is(err, ErrForeignBackup) {
		t.Errorf("of another cluster: %v", err)
	}
	var newer bytes.Buffer
	if err := writeBackupHeader(&newer, &storev1.BackupHeader{Version: backupVersion + 1}); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(newer.Bytes())
	newer.Write(sum[:])
	if _, err := readBackup(s, newer.Bytes()); !errors.Is(err, errTooNew) {
		t.Errorf("of a newer version: %v", err)
	}
}

func TestUnnamedFileIsGone(t *testing.T) {
	dir := t.TempDir()
	f, err := Unnamed(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprint(f, "x"); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("there is %v, %v", left, err)
	}
}

func FuzzBackup(f *testing.F) {
	s := openIn(f, f.TempDir())
	mustCommit(f, s, map[string]string{"a": "one"}, "one")
	f.Add(backup(f, s))
	f.Add([]byte(backupMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := readBackup(s, data); err == nil && r.Info.Cluster != "cluster" {
			t.Fatal("a backup of nobody's was read")
		}
	})
}

func TestWriteDuringARestoreIsKeptOrFails(t *testing.T) {
	s := openIn(t, t.TempDir())
	mustCommit(t, s, map[string]string{"a": "one"}, "one")
	if err := s.PutToken(t.Context(), Token{ID: "t1", Kind: "join", Created: someTime}); err != nil {
		t.Fatal(err)
	}
	r, err := readBackup(s, backup(t, s))
	if err != nil {
		t.Fatal(err)
	}
	revoked := make(chan error, 1)
	err = s.Restore(t.Context(), r, func(epoch uint64, active *Snapshot) *fleetv1.Release {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		revoked <- s.RemoveToken(ctx, "t1")
		return signAgain(epoch, active)
	})
	if err != nil {
		t.Fatal(err)
	}
	err = <-revoked
	if _, valid := s.Token("t1"); valid && err == nil {
		t.Error("a token that was revoked while a backup was restored lets nodes in again")
	}
	if err := s.RemoveToken(t.Context(), "t1"); err != nil && !errors.Is(err, ErrTokenGone) {
		t.Errorf("writes do not go on afterwards: %v", err)
	}
}
