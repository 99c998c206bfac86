package control

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/control/fleettest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// journalOf gives the events whose kind begins with a word, a line for each.
func journalOf(c *Control, word string) (lines []string) {
	events, _ := c.Journal().Recent(0)
	for _, e := range events {
		if strings.HasPrefix(string(e.Kind), word) {
			lines = append(lines, fmt.Sprintf("%s %s %s", e.Kind, e.Subject, e.Message))
		}
	}
	return lines
}

func TestTheJournalHasRevisionsAndRollbacks(t *testing.T) {
	dir := t.TempDir()
	c, err := New(optionsFor(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	apply(t, c, document(1), &operatorv1.ApplyOptions{Message: "the first"})
	applied(t, c, document(2))
	rollback(t, c, 1, nil)
	apply(t, c, document(1), nil) // unchanged: nothing happened
	apply(t, c, document(3), &operatorv1.ApplyOptions{DryRun: true})
	applied(t, c, document(3))
	want := []string{
		"revision-applied revision 1 by admin: the first",
		"revision-applied revision 2 by admin",
		"revision-rolled-back revision 3 by admin: rollback to revision 1",
		"revision-applied revision 4 by admin",
	}
	if got := journalOf(c, "revision"); !slices.Equal(got, want) {
		t.Errorf("the journal has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := journalOf(c, "control"); !slices.Equal(got, []string{"control-started c1 nothing was applied yet"}) {
		t.Errorf("the journal has %v", got)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	again := start(t, optionsFor(dir))
	if got := journalOf(again, ""); !slices.Equal(got, []string{"control-started c1 revision 4 is active"}) {
		t.Errorf("after a restart the journal has %v", got)
	}
}

func TestTheJournalHasWhatDidNotComeToBe(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n1 := &fleettest.Node{Name: "n1"}
	join(t, c, n1)
	if got := journalOf(c, "node-enrolled"); len(got) != 1 || !strings.HasPrefix(got[0], "node-enrolled n1 by the token ") || strings.Contains(got[0], joinToken(t, c)) {
		t.Errorf("the journal has %v", got)
	}
	n1.SetRefuse(func(*fleetv1.Release) []*fleetv1.Refusal {
		return []*fleetv1.Refusal{fleettest.Refusal("server.port", "in use")}
	})
	apply(t, c, document(1), &operatorv1.ApplyOptions{DryRun: true})
	if got := journalOf(c, "revision"); len(got) > 0 {
		t.Errorf("a dry run is in the journal: %v", got)
	}
	apply(t, c, document(1), nil)
	if got := journalOf(c, "revision"); !slices.Equal(got, []string{"revision-refused revision 1 by admin: node n1 refuses it: server.port: in use"}) {
		t.Errorf("the journal has %v", got)
	}
	if got := journalOf(c, "node-refused"); !slices.Equal(got, []string{"node-refused n1 revision 1: server.port: in use"}) {
		t.Errorf("the journal has %v", got)
	}
}

func TestTheJournalGoesOnAfterARestore(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	applied(t, c, document(1))
	var backup bytes.Buffer
	if err := c.Backup(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	applied(t, c, document(2))
	applied(t, c, document(3))
	r, _, err := c.ReadBackup(t.Context(), bytes.NewReader(backup.Bytes()), int64(backup.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Restore(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the restore is in the journal", func() bool { return len(journalOf(c, "revision")) == 4 })
	applied(t, c, document(4))
	want := []string{
		"revision-restored revision 1 it begins epoch 2: a backup was restored, or one control was made the only one",
		"revision-applied revision 2 by admin",
	}
	if got := journalOf(c, "revision"); !slices.Equal(got[3:], want) {
		t.Errorf("the journal ends with\n%s\nwant\n%s", strings.Join(got[3:], "\n"), strings.Join(want, "\n"))
	}
}
