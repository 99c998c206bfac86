package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestAnyNodeShowsWhatThereIs: with control dead, every node answers who reads, and refuses who would change something
// before anything of it is sent.
func TestAnyNodeShowsWhatThereIs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3")
	backend := newBackend(t, "b1")
	document := fmt.Sprintf("server:\n  reverse_proxy:\n    - {path: /shop, host: 127.0.0.1, port: %d}\n", backend.port)
	c.mustApply(document)
	want := c.converged()
	for _, n := range c.nodes {
		c.ready(n)
	}
	c.control.kill()
	for _, n := range c.nodes {
		ctl := func(args ...string) result { return c.ctl(append([]string{"--control", n.gossip}, args...)...) }
		var got status
		eventually(t, n.name+" tells of a fleet that is converged and has no control", func() string {
			r := ctl("status", "-o", "json")
			if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
				return fmt.Sprintf("%v: %s", err, r.stderr)
			}
			if r.code != 0 || !got.Converged || len(got.Nodes) != 3 || !strings.Contains(got.row(n.name).Note, "no control") {
				return fmt.Sprintf("%+v", got)
			}
			return ""
		})
		if got.Revision != want.Revision || got.Digest != want.Digest {
			t.Errorf("%s tells of revision %d, %s; want %d, %s", n.name, got.Revision, got.Digest, want.Revision, want.Digest)
		}
		for _, row := range got.Nodes {
			if row.State != "ready" || row.Digest != want.Digest || row.Gossip != "alive" {
				t.Errorf("%s says of %s: %+v", n.name, row.Name, row)
			}
		}
		ctl("status").must(t, 0, "n1", "n2", "n3")
		ctl("get", "routes").must(t, 0, "/shop")
		eventually(t, n.name+" tells of a healthy backend", func() string {
			return ctl("get", "backends").complaint(0, []string{"/shop", backend.address(), "healthy"})
		})
		ctl("why", backend.address()).must(t, 0, backend.address(), n.name)
		ctl("get", "nodes").must(t, 0, "n1", "n2", "n3")
		ctl("get", "controls").must(t, 0, c.control.listen)
		ctl("top", "--interval", "100ms").must(t, 0, "n1", "n2", "n3")
	}
	n1 := c.nodes[0]
	refused := c.ctl("--control", n1.gossip, "apply", c.write("other.yaml", document))
	refused.must(t, 2)
	if !strings.Contains(refused.stderr, "is a node's address") {
		t.Errorf("an apply at a node says %q", refused.stderr)
	}
	for _, wantsControl := range [][]string{{"get", "config"}, {"explain", "GET", "/shop"}, {"history"}} {
		if r := c.ctl(append([]string{"--control", n1.gossip}, wantsControl...)...); r.code != 2 || !strings.Contains(r.stderr, "this takes a control") {
			t.Errorf("%v at a node: exit code %d, %q", wantsControl, r.code, r.stderr)
		}
	}
}
