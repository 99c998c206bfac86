package store

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/control/audit"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

func TestWhatIsDoneIsInTheTrailWithItsWrite(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	ctx, note := audit.Begin(t.Context(), "alice", "admin", "10.0.0.1:5", "RevokeNode")
	audit.Describe(ctx, "node n1")
	if err := s.PutNode(ctx, Node{Name: "n1", Enrolled: someTime}); err != nil {
		t.Fatal(err)
	}
	if err := s.PutNode(ctx, Node{Name: "n1", Enrolled: someTime, Left: true}); err != nil { // the same call writes again
		t.Fatal(err)
	}
	if err := s.PutNode(t.Context(), Node{Name: "n2", Enrolled: someTime}); err != nil { // nobody asked for it
		t.Fatal(err)
	}
	if _, ok := note.Refused(someTime, ""); ok {
		t.Error("the note is not kept")
	}
	check := func(s *Store) {
		t.Helper()
		anchor, entries := s.Audit()
		if err := audit.Verify(anchor, entries); err != nil || len(entries) != 1 {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		if e := entries[0]; e.Actor != "alice" || e.What != "node n1" || e.Outcome != audit.Done || !e.Time.Equal(someTime) {
			t.Errorf("the entry is %+v", e)
		}
	}
	check(s)
	closeStore(t, s)
	s = openIn(t, dir) // from the log
	check(s)
	if err := s.engine.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	check(openIn(t, dir)) // from a snapshot
}

// TestARestoreIsInTheTrailThatComesWithIt: a control that dies right after has both, or neither.
func TestARestoreIsInTheTrailThatComesWithIt(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	mustCommit(t, s, map[string]string{"a": "one"}, "one")
	data := backup(t, s)
	before, _ := audit.Begin(t.Context(), "alice", "admin", "", "CreateToken")
	if err := s.PutToken(before, Token{ID: "t1", Kind: "join", Created: someTime}); err != nil {
		t.Fatal(err)
	}
	r, err := readBackup(s, data)
	if err != nil {
		t.Fatal(err)
	}
	ctx, note := audit.Begin(t.Context(), "bob", "admin", "10.0.0.1:5", "Restore")
	audit.Describe(ctx, "the backup with revision 1")
	if err := s.Restore(ctx, r, signAgain); err != nil {
		t.Fatal(err)
	}
	if _, ok := note.Refused(someTime, ""); ok {
		t.Error("the note would be kept a second time")
	}
	check := func(s *Store) {
		t.Helper()
		anchor, entries := s.Audit()
		if err := audit.Verify(anchor, entries); err != nil || len(entries) != 2 || s.Active().Release.GetEpoch() != 2 {
			t.Fatalf("%d entries in epoch %d, %v", len(entries), s.Active().Release.GetEpoch(), err)
		}
		if e := entries[1]; e.Actor != "bob" || e.What != "the backup with revision 1" || e.Outcome != audit.Done || !e.Time.Equal(someTime) {
			t.Errorf("the entry is %+v", e)
		}
	}
	check(s)
	closeStore(t, s)
	check(openIn(t, dir))
}

// TestARestoreThatFailsLeavesNoTraceInTheTrail of what was not done, and its note for who tells of the failure.
func TestARestoreThatFailsLeavesNoTraceInTheTrail(t *testing.T) {
	s := openIn(t, t.TempDir())
	mustCommit(t, s, map[string]string{"a": "one"}, "one")
	r, err := readBackup(s, backup(t, s))
	if err != nil {
		t.Fatal(err)
	}
	ctx, note := audit.Begin(t.Context(), "bob", "admin", "", "Restore")
	over, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Restore(over, r, signAgain); err == nil {
		t.Fatal("it was restored")
	}
	if _, entries := s.Audit(); len(entries) > 0 {
		t.Errorf("the trail holds %v", entries)
	}
	if _, ok := note.Refused(someTime, "it failed"); !ok {
		t.Error("nothing is left to keep")
	}
}

func TestRefusedWriteIsNotInTheTrail(t *testing.T) {
	s := openIn(t, t.TempDir())
	ctx, note := audit.Begin(t.Context(), "alice", "admin", "", "RevokeToken")
	if err := s.RemoveToken(ctx, "t1"); !errors.Is(err, ErrTokenGone) {
		t.Fatal(err)
	}
	if _, entries := s.Audit(); len(entries) > 0 {
		t.Errorf("the trail holds %v", entries)
	}
	e, ok := note.Refused(someTime, "there is none")
	if !ok {
		t.Fatal("nothing is left to keep")
	}
	if err := s.AppendAudit(context.Background(), e); err != nil {
		t.Fatal(err)
	}
	if _, entries := s.Audit(); len(entries) != 1 || entries[0].Outcome != "there is none" {
		t.Errorf("the trail holds %v", entries)
	}
}

func TestEntryThatCannotBeOneRefusesItsCommand(t *testing.T) {
	for name, change := range map[string]func(*storev1.AuditEntry){
		"no time":     func(m *storev1.AuditEntry) { m.Time = nil },
		"a long text": func(m *storev1.AuditEntry) { m.What = strings.Repeat("x", 10_000) },
		"half a hash": func(m *storev1.AuditEntry) { m.Hash = m.GetHash()[:16] },
	} {
		s := sampleState(t)
		before := written(t, s)
		c := useToken("t1", "join", "n4", someTime)
		c.Audit = someAudit()
		change(c.GetAudit())
		if err := s.apply(c); err == nil || !bytes.Equal(written(t, s), before) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// BenchmarkSnapshotOfAFullTrail is what an audit trail adds to a snapshot at most.
func BenchmarkSnapshotOfAFullTrail(b *testing.B) {
	s := newState()
	for range audit.Kept {
		e, err := auditFrom(someAudit())
		if err != nil {
			b.Fatal(err)
		}
		s.trail.Append(e)
	}
	c := s.capture()
	c.seal = testSeal
	b.ReportAllocs()
	for b.Loop() {
		var out bytes.Buffer
		if err := c.writeSealed(&out); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(out.Len()))
	}
}
