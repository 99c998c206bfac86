package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// revision is one of `pyservectl history -o json`.
type revision struct {
	Revision uint64 `json:"revision"`
	Digest   string `json:"digest"`
	Parent   uint64 `json:"parent"`
	Author   string `json:"author"`
	Message  string `json:"message"`
	Created  string `json:"created"`
	Active   bool   `json:"active"`
}

func (c *cluster) history(flags ...string) []revision {
	c.t.Helper()
	var list struct {
		Revisions []revision `json:"revisions"`
	}
	r := c.ctl(append([]string{"history", "-o", "json"}, flags...)...).must(c.t, 0)
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		c.t.Fatalf("history -o json: %v\n%s", err, r.stdout)
	}
	return list.Revisions
}

// TestHistoryAndRollback goes back, on again, and to where the cluster is.
func TestHistoryAndRollback(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	client := newClient(t, nil, false)
	serves := func(path, not string) {
		t.Helper()
		for _, n := range c.nodes {
			get(t, client, "http://"+n.listen+path+"/x").seen(t)
			if r := get(t, client, "http://"+n.listen+not+"/x"); r.status != http.StatusNotFound {
				t.Errorf("%s: %s answers %d", n.name, not, r.status)
			}
		}
	}
	c.ctl("history").wants(t, 0, "nothing was applied yet")
	c.ctl("rollback").wants(t, 1, "refused, nothing was changed: nothing was applied yet")

	one, two := "# comments are kept\n"+route("/one", b.port), route("/two", b.port)
	c.apply(one, "--message", "the first").must(t, 0)
	c.ctl("rollback").wants(t, 1, "there is no revision before revision 1")
	c.mustApply(two)
	original := c.history()[1]

	c.ctl("rollback", "--dry-run").wants(t, 0, "+ route /one created", "- route /two removed", "dry run: 2 nodes could serve it")
	c.ctl("rollback", "1", "--expect-revision", "1").wants(t, 1, "revision 2 is active, not 1 as expected")
	c.ctl("rollback").must(t, 0, "+ route /one created", "- route /two removed", "node n1: serving", "node n2: serving", "applied: revision 3", "served by 2 nodes")
	serves("/one", "/two")
	if s := c.status(); s.Revision != 3 || s.Digest != original.Digest || !s.Converged {
		t.Errorf("after the rollback the status is %+v, the digest was %s", s, original.Digest)
	}
	if r := c.ctl("get", "config").wants(t, 0); r.stdout != one {
		t.Errorf("the document is\n%s", r.stdout)
	}
	c.ctl("rollback", "3").wants(t, 0, "unchanged: revision 3 is active already, served by 2 nodes")
	c.ctl("rollback", "1").must(t, 0, "applied: revision 4") // the same content, and yet somebody's decision
	c.ctl("rollback", "2", "--message", "on again").must(t, 0, "applied: revision 5")
	serves("/two", "/one")
	c.ctl("rollback", "99").wants(t, 1, "there is no revision 99", "revision 5")
	c.ctl("rollback", "two").wants(t, 2, "is not a revision")
	if r := c.ctl("get", "config", "--revision", "1").wants(t, 0); r.stdout != one {
		t.Errorf("the document of revision 1 is\n%s", r.stdout)
	}
	c.ctlReading(one, "diff", "-", "--revision", "1").wants(t, 0, "no difference from revision 1")
	c.ctlReading(one, "diff", "-", "--revision", "2").wants(t, 1, "+ route /one created", "- route /two removed")
	c.ctlReading(one, "diff", "-", "--revision", "99").wants(t, 2, "there is no revision 99")
	c.ctl("get", "config", "--revision", "99").wants(t, 2, "there is no revision 99")

	whole := decode(t, c.ctl("history", "-o", "json").wants(t, 0))
	wantKeys(t, "a revision", first(t, whole["revisions"]), "revision", "digest", "parent", "author", "message", "created", "active")
	var told []string
	for _, r := range c.history() {
		told = append(told, fmt.Sprintf("%d after %d, %s, %s, %t, as the first %t", r.Revision, r.Parent, r.Author, r.Message, r.Active, r.Digest == original.Digest))
		if created, err := time.Parse(time.RFC3339, r.Created); err != nil || time.Since(created) > time.Hour {
			t.Errorf("revision %d was created at %q", r.Revision, r.Created)
		}
	}
	want := []string{
		"5 after 4, admin, on again, true, as the first false",
		"4 after 3, admin, rollback to revision 1, false, as the first true",
		"3 after 2, admin, rollback to revision 1, false, as the first true",
		"2 after 1, admin, , false, as the first false",
		"1 after 0, admin, the first, false, as the first true",
	}
	if !slices.Equal(told, want) {
		t.Errorf("the history is\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
	c.ctl("history").wants(t, 0, "REVISION", "DIGEST", "AUTHOR", "CREATED", "MESSAGE", "5 (active)", "rollback to revision 1")
	if got := c.history("--limit", "2"); len(got) != 2 || got[0].Revision != 5 {
		t.Errorf("history --limit 2 gives %+v", got)
	}

	// History is durable, and a rollback is refused like any apply.
	c.control.kill()
	c.restartControl()
	c.converged()
	if got := c.history(); len(got) != 5 || !got[0].Active {
		t.Errorf("after a restart of control the history is %+v", got)
	}
	c.ctl("rollback", "1", "--detach").must(t, 0, "stored: revision 6")
	c.converged()
	serves("/one", "/two")
}
