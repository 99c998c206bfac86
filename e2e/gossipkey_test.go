package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type gossipKey struct {
	Key             string   `json:"key"`
	New             string   `json:"new_key"`
	Stage           string   `json:"stage"`
	PendingNodes    []string `json:"pending_nodes"`
	PendingControls []string `json:"pending_controls"`
	Away            []string `json:"away_nodes"`
}

func (c *cluster) gossipKey(flags ...string) (k gossipKey) {
	c.t.Helper()
	r := c.ctl(append([]string{"gossip", "status", "-o", "json"}, flags...)...).must(c.t, 0)
	if err := json.Unmarshal([]byte(r.stdout), &k); err != nil {
		c.t.Fatal(err)
	}
	return k
}

// gossipShows waits until gossip status shows something.
func (c *cluster) gossipShows(what string, check func(gossipKey) bool) (k gossipKey) {
	c.t.Helper()
	eventually(c.t, what, func() string {
		if k = c.gossipKey(); check(k) {
			return ""
		}
		return fmt.Sprintf("%+v", k)
	})
	return k
}

// allAlive waits until control's own gossip hears every node.
func (c *cluster) allAlive(names ...string) {
	c.t.Helper()
	c.statusShows("everybody is alive in gossip", func(s status) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return s.row(name).Gossip != "alive" || s.row(name).State == "disconnected" })
	})
}

// keysOf are the keys in a control's file, in base64 as they lie there.
func keysOf(t *testing.T, control *daemon) []string {
	t.Helper()
	path := filepath.Join(control.dataDir, "identity", "gossip.key")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	return strings.Fields(read(t, path))
}

// TestGossipChangesItsKey changes the key while one node is away, which comes back and is heard; no key is told anywhere.
func TestGossipChangesItsKey(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3")
	c.mustApply(route("/", newBackend(t, "b").port))
	c.allAlive("n1", "n2", "n3")
	before, old := c.gossipKey(), keysOf(t, c.control)
	c.node("n3").stop(t)
	r := c.ctl("gossip", "rotate").must(t, 0, "gossip is encrypted with key", "n3")
	after, fresh := c.gossipKey(), keysOf(t, c.control)
	if after.Stage != "settled" || after.Key == before.Key || !slices.Equal(after.Away, []string{"n3"}) || len(fresh) != 1 || fresh[0] == old[0] {
		t.Errorf("%+v after %+v; %d keys in control's file", after, before, len(fresh))
	}
	c.ctl("gossip", "rotate", "--cancel").wants(t, 2, "no new key of gossip is handed out and not used yet")
	c.allAlive("n1", "n2")
	c.start(c.node("n3"))
	c.connected("n3")
	c.allAlive("n1", "n2", "n3")
	c.gossipShows("nobody is away", func(k gossipKey) bool { return len(k.Away)+len(k.PendingNodes) == 0 })
	c.control.stop(t)
	c.restartControl()
	c.allAlive("n1", "n2", "n3")
	if again := c.gossipKey(); again.Key != after.Key || again.Stage != "settled" {
		t.Errorf("after a restart: %+v", again)
	}
	audit := c.ctl("audit").must(t, 0, "new key "+after.Key+" is handed out", "key "+after.Key+" is used", "key "+before.Key+" is dropped", "is whole")
	// The commands' own output and every log; base64 as in files, and as the bytes are.
	texts := map[string]string{"rotate": r.stdout + r.stderr, "audit": audit.stdout, "control": c.control.stderr.String()}
	for _, n := range c.nodes {
		texts[n.name] = n.stderr.String()
		path := filepath.Join(n.dataDir, "identity.json")
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
		if kept := read(t, path); !strings.Contains(kept, fresh[0]) || strings.Contains(kept, old[0]) {
			t.Errorf("%s keeps other keys", n.name)
		}
	}
	for where, text := range texts {
		for _, key := range []string{old[0], fresh[0]} {
			raw, err := base64.StdEncoding.DecodeString(key)
			if err != nil || strings.Contains(text, key) || strings.Contains(text, string(raw)) || strings.Contains(text, fmt.Sprintf("%x", raw)) {
				t.Errorf("%s tells a key, or %v", where, err)
			}
		}
	}
}

// TestChangeOfTheGossipKeyOutlivesItsLeader kills a node, so that the change waits for it, and then the control that leads.
func TestChangeOfTheGossipKeyOutlivesItsLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	c1 := c.control
	c2, c3 := c.addControl("c2", c1), c.addControl("c3", c1)
	c.controlsShow("c2", "c3", "control")
	c.mustApply(route("/", newBackend(t, "b").port))
	c.allAlive("n1")
	c.node("n1").kill()
	c.ctl("gossip", "rotate", "--timeout", "5s").must(t, 1, "is handed out", "n1")
	begun := c.gossipKey()
	c1.kill()
	at := []string{"--control", c2.listen + "," + c3.listen}
	eventually(t, "another control goes on with the same key and waits for the one that is gone", func() string {
		r := c.ctl(append([]string{"gossip", "status", "-o", "json"}, at...)...)
		var k gossipKey
		if err := json.Unmarshal([]byte(r.stdout), &k); err != nil {
			return r.stderr
		}
		if k.Stage != "install" || k.New != begun.New || !slices.Contains(k.PendingControls, "control") {
			return fmt.Sprintf("%+v", k)
		}
		return ""
	})
	c.start(c.node("n1"))
	c.start(c1)
	c.controlsShow("c2", "c3", "control")
	c.gossipShows("the change has ended", func(k gossipKey) bool {
		return k.Stage == "settled" && k.Key == begun.New && len(k.PendingNodes)+len(k.PendingControls) == 0
	})
	c.allAlive("n1")
	c.controlsShow("c2", "c3", "control")
	for _, control := range []*daemon{c1, c2, c3} {
		if got := keysOf(t, control); len(got) != 1 || got[0] != keysOf(t, c2)[0] {
			t.Errorf("%s holds %d keys, or another", control.name, len(got))
		}
	}
	c3.stop(t)
	eventually(t, "no change begins while a control is away", func() string {
		return c.ctl("gossip", "rotate").complaint(2, []string{"c3", "control remove"})
	})
}
