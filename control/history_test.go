package control

import (
	"fmt"
	"slices"
	"testing"

	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func rollback(t *testing.T, c *Control, number uint64, o *operatorv1.ApplyOptions) (*operatorv1.ApplyResult, story) {
	t.Helper()
	var s story
	result, err := c.Rollback(t.Context(), "admin", number, o, s.emit)
	if err != nil {
		t.Fatal(err)
	}
	return result, s
}

func TestARollbackIsANewRevisionWithOldContent(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n1 := &fleettest.Node{Name: "n1"}
	join(t, c, n1)
	first := applied(t, c, document(1))
	applied(t, c, document(1, 2))

	result, told := rollback(t, c, 0, nil)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, 3, "")
	if result.GetDigest() != first.GetDigest() {
		t.Errorf("the digest is %s, that of revision 1 was %s", result.GetDigest(), first.GetDigest())
	}
	if removed := told.of("removed"); !slices.Equal(removed, []string{"route /p2"}) {
		t.Errorf("it told %v", told)
	}
	untouched(t, c, 3, n1)
	newest := c.History(1)[0]
	if newest.GetMessage() != "rollback to revision 1" || newest.GetParent() != 2 || newest.GetAuthor() != "admin" || !newest.GetActive() || !newest.GetWhole() {
		t.Errorf("the history has %v", newest)
	}
	if document, revision, _, err := c.Document(0); err != nil || revision != 3 || string(document) != string(documentOf(t, c, 1)) {
		t.Errorf("the document of revision %d is %q, %v", revision, document, err)
	}
	result, _ = rollback(t, c, 0, &operatorv1.ApplyOptions{Message: "on again"})
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, 4, "")
	if got := c.History(0); got[0].GetDigest() != got[2].GetDigest() || got[0].GetMessage() != "on again" || len(got) != 4 {
		t.Errorf("a rollback of the rollback: %v", got)
	}
}

func documentOf(t *testing.T, c *Control, revision uint64) []byte {
	t.Helper()
	document, _, _, err := c.Document(revision)
	if err != nil {
		t.Fatal(err)
	}
	return document
}

// Whoever goes back to a revision wants that in the history, also where it means what runs already.
func TestARollbackToTheSameContentIsARevision(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n1 := &fleettest.Node{Name: "n1"}
	join(t, c, n1)
	applied(t, c, document(1))
	applied(t, c, document(2))
	rollback(t, c, 1, nil)
	result, told := rollback(t, c, 1, nil)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, 4, "")
	if len(told.of("changed"))+len(told.of("created"))+len(told.of("removed")) > 0 {
		t.Errorf("it told changes: %v", told)
	}
	untouched(t, c, 4, n1)
}

func TestARollbackToTheActiveRevisionChangesNothing(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	applied(t, c, document(1))
	applied(t, c, document(2))
	result, _ := rollback(t, c, 2, nil)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED, 2, "revision 2 is active already")
	untouched(t, c, 2)
}

func TestARollbackIsRefused(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	refused := func(number uint64, o *operatorv1.ApplyOptions, active uint64, reason string) {
		t.Helper()
		result, _ := rollback(t, c, number, o)
		checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED, active, reason)
	}
	refused(0, nil, 0, "nothing was applied yet")
	refused(1, nil, 0, "nothing was applied yet")
	applied(t, c, document(1))
	refused(0, nil, 1, "there is no revision before revision 1")
	refused(7, nil, 1, "there is no revision 7")
	applied(t, c, document(2))
	refused(1, &operatorv1.ApplyOptions{ExpectRevision: 1}, 2, "revision 2 is active, not 1 as expected")
	n1 := &fleettest.Node{Name: "n1"}
	join(t, c, n1)
	eventually(t, "n1 serves revision 2", func() bool { return n1.Applied().GetRevision() == 2 })
	n1.SetRefuse(func(*fleetv1.Release) []*fleetv1.Refusal {
		return []*fleetv1.Refusal{fleettest.Refusal("server.port", "in use")}
	})
	refused(1, nil, 2, "node n1 refuses it: server.port: in use")
	untouched(t, c, 2, n1)
}

func TestADryRollbackChangesNothing(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	applied(t, c, document(1))
	applied(t, c, document(2))
	result, told := rollback(t, c, 1, &operatorv1.ApplyOptions{DryRun: true})
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_DRY_RUN, 2, "")
	if !slices.Equal(told, story{"created route /p1", "removed route /p2"}) {
		t.Errorf("it told %v", told)
	}
	untouched(t, c, 2)
}

func TestOldRevisionsAreLines(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	for i := range store.WholeRevisions + 1 {
		applied(t, c, document(1+i%2))
	}
	all := c.History(0)
	if len(all) != store.WholeRevisions+1 || all[0].GetRevision() != store.WholeRevisions+1 {
		t.Fatalf("the history has %d revisions, the first is %v", len(all), all[0])
	}
	if oldest := all[len(all)-1]; oldest.GetRevision() != 1 || oldest.GetWhole() || oldest.GetAuthor() != "admin" || oldest.GetCreated() == nil {
		t.Errorf("the oldest is %v", oldest)
	}
	result, _ := rollback(t, c, 1, nil)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED, store.WholeRevisions+1, "only its line in the history is kept")
	if _, _, _, err := c.Document(1); err == nil {
		t.Error("a line has a document")
	} else {
		errorIs(t, err, ErrNoRevision)
	}
	result, _ = rollback(t, c, 2, nil)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, store.WholeRevisions+2, "")
}

func TestHistoryHasALimit(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	if got := c.History(5); len(got) != 0 {
		t.Errorf("before the first apply: %v", got)
	}
	for i := range 3 {
		applied(t, c, document(1+i))
	}
	for limit, want := range map[int]string{0: "3 2 1 ", 2: "3 2 ", 9: "3 2 1 "} {
		got := ""
		for _, r := range c.History(limit) {
			got += fmt.Sprintf("%d ", r.GetRevision())
		}
		if got != want {
			t.Errorf("the history of %d is %q, want %q", limit, got, want)
		}
	}
}

func TestADocumentIsComparedWithAnEarlierRevision(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	applied(t, c, document(1))
	applied(t, c, document(2))
	if m, err := c.Diff(document(1), 1); err != nil || m.GetRevision() != 1 || len(m.GetChanges()) != 0 {
		t.Errorf("got %v, %v", m, err)
	}
	if m, err := c.Diff(document(1), 0); err != nil || m.GetRevision() != 2 || len(m.GetChanges()) != 2 {
		t.Errorf("got %v, %v", m, err)
	}
	_, err := c.Diff(document(1), 3)
	errorIs(t, err, ErrNoRevision)
}
