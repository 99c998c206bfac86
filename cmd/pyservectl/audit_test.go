package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyserve/pyserve/control/audit"
)

func someTrail() (audit.Anchor, []audit.Entry) {
	var trail audit.Trail
	for _, what := range []string{"revision 1", "revision 2", "revision 3"} {
		trail.Append(audit.Entry{Time: time.Unix(1, 0), Actor: "alice", Role: "editor", Address: "10.0.0.1:5", Method: "Apply", What: what, Outcome: audit.Done})
	}
	anchor, entries := trail.Entries()
	return anchor, slices.Clone(entries)
}

// printed prints a trail and gives what went where.
func printed(output string, limit int, anchor audit.Anchor, entries []audit.Entry) (out, errs string, err error) {
	var o, e bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetOut(&o)
	cmd.SetErr(&e)
	err = (&settings{output: output}).printAudit(cmd, anchor, entries, limit)
	return o.String(), e.String(), err
}

func TestAuditShowsTheNewestAndVerifiesAll(t *testing.T) {
	anchor, entries := someTrail()
	out, errs, err := printed("table", 2, anchor, entries)
	if err != nil || strings.Contains(out, "revision 1") || !strings.Contains(out, "revision 3") || !strings.Contains(errs, "entries 1 to 3 is whole") {
		t.Errorf("%v\n%s%s", err, out, errs)
	}
	entries[0].What = "nothing at all" // not among those that are shown
	out, errs, err = printed("table", 2, anchor, entries)
	if !errors.Is(err, errNo) || !strings.Contains(errs, "the audit trail is broken at entry 1: it was changed") || !strings.Contains(out, "revision 3") {
		t.Errorf("%v\n%s%s", err, out, errs)
	}
}

func TestAuditForPrograms(t *testing.T) {
	anchor, entries := someTrail()
	out, _, err := printed("json", 0, anchor, slices.Delete(entries, 1, 2))
	if !errors.Is(err, errNo) {
		t.Errorf("the error is %v", err)
	}
	var got struct {
		Verified bool
		BrokenAt uint64 `json:"broken_at"`
		Reason   string
		Entries  []struct{ Sequence uint64 }
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Verified || got.BrokenAt != 2 || got.Reason == "" || len(got.Entries) != 2 {
		t.Errorf("%v\n%s", err, out)
	}
	out, errs, err := printed("json", 0, audit.Anchor{}, nil)
	if err != nil || errs != "" || !strings.Contains(out, `"entries": []`) || !strings.Contains(out, `"verified": true`) {
		t.Errorf("of nothing: %v\n%s%s", err, out, errs)
	}
}
