package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAFleetOutlivesItsControl kills control for good and lets nodes have their configuration from one another: one that
// has lost its bundles, and one that was away while the newest was applied.
func TestAFleetOutlivesItsControl(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3", "n4", "n5")
	port := newBackend(t, "b1").port
	c.mustApply(fmt.Sprintf("server:\n  reverse_proxy:\n    - {path: /old, host: 127.0.0.1, port: %d}\n", port))
	c.statusShows("every node alive in gossip", func(s status) bool {
		for _, r := range s.Nodes {
			if r.Gossip != "alive" {
				return false
			}
		}
		return len(s.Nodes) == 5
	})
	n4, n5 := c.node("n4"), c.node("n5")
	for _, n := range []*daemon{n4, n5} { // or they would have nobody to ask later
		eventually(t, n.name+" knows the others", func() string {
			return c.ctl("--control", n.gossip, "get", "nodes", "-o", "name").complaint(0, []string{"n1", "n2", "n3"})
		})
	}
	n4.stop(t)
	n5.stop(t)
	c.mustApply(fmt.Sprintf("server:\n  reverse_proxy:\n    - {path: /new, host: 127.0.0.1, port: %d}\n", port))
	s := c.status()

	c.control.kill()
	if err := os.Rename(c.control.dataDir, c.control.dataDir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(n4.dataDir, "bundles")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*daemon{n4, n5} {
		c.start(n)
		c.ready(n)
	}
	for _, n := range []*daemon{n4, n5} {
		eventually(t, n.name+" serves what the others serve", func() string {
			if got := metric(t, n.admin, "pyserve_revision"); got != float64(s.Revision) {
				return fmt.Sprintf("revision %g", got)
			}
			return ""
		})
		get(t, newClient(t, nil, false), "http://"+n.listen+"/new/x").seen(t)
		n.logs(t, "the revision is from a peer")
		n.logs(t, s.Digest[:12])
	}

	// Control comes back, to nodes that serve what it knows.
	if err := os.Rename(c.control.dataDir+".away", c.control.dataDir); err != nil {
		t.Fatal(err)
	}
	c.restartControl()
	c.statusShows("n4 and n5 at the revision, from a peer", func(now status) bool {
		for _, n := range []*daemon{n4, n5} {
			if got := now.row(n.name); got.Digest != s.Digest || got.State != "ready" || !strings.Contains(got.Note, "from peer n") {
				return false
			}
		}
		return now.Converged && now.Digest == s.Digest
	})
}
