package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// controlRow is a control as `pyservectl get controls -o json` shows it.
type controlRow struct {
	Name      string `json:"name"`
	Address   string `json:"address"`
	Role      string `json:"role"`
	Reachable bool   `json:"reachable"`
	Lag       uint64 `json:"lag"`
	Voter     bool   `json:"voter"`
	Gossip    string `json:"gossip"`
}

// addControl starts a further control, which joins one that runs, and waits until it is ready.
func (c *cluster) addControl(name string, joins *daemon) *daemon {
	c.t.Helper()
	d := &daemon{
		name: name, kind: "control", dataDir: filepath.Join(c.dir, name),
		listen: local(freePort(c.t)), admin: local(freePort(c.t)), gossip: local(freePort(c.t)), raft: local(freePort(c.t)),
		flags: []string{"--join", joins.listen, "--token-file", filepath.Join(joins.dataDir, "control-token")},
	}
	c.start(d)
	if !c.up(d) {
		c.t.Fatalf("control %s did not start:\n%s", name, d.stderr.String())
	}
	d.flags = nil // it needs them no more
	return d
}

func (c *cluster) controls() (rows []controlRow) {
	c.t.Helper()
	var m struct {
		Controls []controlRow `json:"controls"`
	}
	r := c.ctl("get", "controls", "-o", "json").must(c.t, 0)
	if err := json.Unmarshal([]byte(r.stdout), &m); err != nil {
		c.t.Fatal(err)
	}
	return m.Controls
}

// leads waits until one of the controls leads, and gives it.
func (c *cluster) leads(controls ...*daemon) *daemon {
	c.t.Helper()
	var found *daemon
	eventually(c.t, "a control leads", func() string {
		for _, row := range c.controls() {
			for _, d := range controls {
				if row.Role == "leader" && row.Name == d.name && !d.hasEnded() {
					found = d
					return ""
				}
			}
		}
		return fmt.Sprintf("%+v", c.controls())
	})
	return found
}

// controlsShow waits until all of the named controls are there and have caught up.
func (c *cluster) controlsShow(names ...string) {
	c.t.Helper()
	eventually(c.t, "the controls "+strings.Join(names, ", ")+" are there", func() string {
		rows := c.controls()
		for i, row := range rows {
			if i >= len(names) || row.Name != names[i] || !row.Reachable || !row.Voter || row.Gossip != "alive" {
				return fmt.Sprintf("%+v", rows)
			}
		}
		if len(rows) != len(names) {
			return fmt.Sprintf("%+v", rows)
		}
		return ""
	})
}

// TestThreeControls kills leaders under applies and traffic: no apply that was accepted is lost, no request fails, and a
// fourth control that joins afterwards catches up.
func TestThreeControls(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c1 := c.control
	controls := []*daemon{c1, c.addControl("c2", c1)}
	controls = append(controls, c.addControl("c3", controls[1]))
	c.controlsShow("c2", "c3", "control")
	for i := range 5 {
		n := c.addNode(fmt.Sprintf("n%d", i+1))
		c.start(n)
	}
	for _, n := range c.nodes {
		c.connected(n.name)
	}
	b := newBackend(t, "b")
	c.mustApply(route("/r0", b.port) + fmt.Sprintf("    - {path: /load, host: 127.0.0.1, port: %d}\n", b.port))
	load := startLoad(t, c.listens(), "/load/x", 1, 0)
	defer load.finish(t)

	revision := c.status().Revision
	for round := 1; round <= 6; round++ {
		killed := (*daemon)(nil)
		if round%2 == 1 {
			killed = c.leads(controls...)
		}
		document := route(fmt.Sprintf("/r%d", round), b.port) + fmt.Sprintf("    - {path: /load, host: 127.0.0.1, port: %d}\n", b.port)
		file := c.write(fmt.Sprintf("round-%d.yaml", round), document)
		applied := make(chan result, 1)
		go func() { applied <- c.ctl("apply", file, "-o", "json") }()
		if killed != nil {
			time.Sleep(time.Duration(round*7) * time.Millisecond) // somewhere within the apply
			killed.kill()
		}
		r := <-applied
		r.must(t, 0, `"applied"`)
		if revision++; decode(t, r)["revision"] != float64(revision) {
			t.Errorf("round %d: %s, want revision %d", round, r.stdout, revision)
		}
		if killed != nil {
			c.start(killed)
			if !c.up(killed) {
				t.Fatalf("%s did not start again:\n%s", killed.name, killed.stderr.String())
			}
		}
	}
	c.controlsShow("c2", "c3", "control")
	if s := c.converged(); s.Revision != revision {
		t.Errorf("the status is %+v, want revision %d", s, revision)
	}
	c.addControl("c4", c.leads(controls...))
	c.controlsShow("c2", "c3", "c4", "control")
	for number, kept := range c.history() {
		if want := revision - uint64(number); kept.Revision != want {
			t.Errorf("the history has revision %d where %d is due", kept.Revision, want)
		}
	}
	load.reaches(t, 200)
}

// TestPlannedStopHandsOver stops the leader in order; the next apply goes through, at another.
func TestPlannedStopHandsOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	c1 := c.control
	c2, c3 := c.addControl("c2", c1), c.addControl("c3", c1)
	c.controlsShow("c2", "c3", "control")
	b := newBackend(t, "b")
	c.mustApply(route("/a", b.port))
	c1.signal(t, syscall.SIGTERM)
	c.mustApply(route("/b", b.port))
	if code := c1.wait(t); code != 0 {
		t.Errorf("control ended with %d:\n%s", code, tail(c1.stderr.String()))
	}
	if strings.Contains(c1.stderr.String(), "could not hand the lead over") {
		t.Errorf("the lead was not handed over:\n%s", tail(c1.stderr.String()))
	}
	c.leads(c2, c3)
	c.converged()
	// The node was sent to another control, if its stream was with this one; either way it complains of nothing.
	if log := c.node("n1").stderr.String(); strings.Contains(log, "no stream to control") {
		t.Errorf("the node:\n%s", tail(log))
	}
	// A control that is gone for good is removed, and the others go on.
	c.ctl("control", "remove", "control").must(t, 0, "control")
	c.controlsShow("c2", "c3")
	c.ctl("control", "remove", "control").wants(t, 2, "there is no control of that name")
}

// TestLostMajority loses two of three controls for good.
func TestLostMajority(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	c1 := c.control
	c2, c3 := c.addControl("c2", c1), c.addControl("c3", c1)
	c.controlsShow("c2", "c3", "control")
	b := newBackend(t, "b")
	c.mustApply(route("/a", b.port))
	eventually(t, "c3 has heard that it is stored", func() string {
		if got := metric(t, c3.admin, "pyserve_control_revision"); got != 1 {
			return fmt.Sprintf("it is at revision %v", got)
		}
		return ""
	})
	c1.kill()
	c2.kill()
	// What runs can be read, and nothing can be changed.
	c.ctl("get", "config").must(t, 0, "/a")
	c.apply(route("/b", b.port)).wants(t, 2, "no control leads")
	c3.stop(t)
	c3.flags = []string{"--force-single"}
	c.start(c3)
	if !c.up(c3) {
		t.Fatalf("c3 did not start:\n%s", c3.stderr.String())
	}
	c.connected("n1")
	c.mustApply(route("/b", b.port))
	c.converged()
	client := newClient(t, nil, false)
	get(t, client, "http://"+c.node("n1").listen+"/b/x").seen(t)
	c.controlsShow("c3")
}

// TestControlsReturnOneByOne kills all three, as a power cut does, and lets them come back after each other: the first has
// nobody to ask, and has to wait for the second.
func TestControlsReturnOneByOne(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	c1 := c.control
	c2, c3 := c.addControl("c2", c1), c.addControl("c3", c1)
	c.controlsShow("c2", "c3", "control")
	b := newBackend(t, "b")
	c.mustApply(route("/a", b.port))
	for _, d := range []*daemon{c1, c2, c3} {
		d.kill()
	}
	// A token file that is missing is made again, but not before somebody leads.
	lost := filepath.Join(c2.dataDir, "join-token")
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	c.start(c2)
	if !c.up(c2) {
		t.Fatalf("c2 did not start alone:\n%s", tail(c2.stderr.String()))
	}
	c.apply(route("/b", b.port)).wants(t, 2, "no control leads")
	c.start(c3)
	if !c.up(c3) {
		t.Fatalf("c3 did not start:\n%s", tail(c3.stderr.String()))
	}
	c.leads(c2, c3)
	c.connected("n1")
	c.mustApply(route("/b", b.port))
	eventually(t, "the token file is there again", func() string {
		if _, err := os.Stat(lost); err != nil {
			return err.Error()
		}
		return ""
	})
	c.start(c1)
	if !c.up(c1) {
		t.Fatalf("c1 did not start:\n%s", tail(c1.stderr.String()))
	}
	c.controlsShow("c2", "c3", "control")
	c.converged()
}

// TestBackupAndRestore goes back to a backup: nodes follow, though they served a later revision.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	c.mustApply(route("/a", b.port))
	file := filepath.Join(c.dir, "saved.backup")
	c.ctl("backup", file).must(t, 0, "seal.key")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the backup is %v, %v", info, err)
	}
	c.mustApply(route("/b", b.port))
	c.mustApply(route("/c", b.port))
	c.ctl("restore", file).wants(t, 2, "--yes is needed")
	if s := c.status(); s.Revision != 3 {
		t.Errorf("without an answer it was restored: %+v", s)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	c.ctl("restore", "--yes", c.write("damaged.backup", string(data))).wants(t, 2, "not a whole backup")
	c.ctl("restore", "--yes", file).must(t, 0, "holds revision 1", "takes the place of revision 3", "restored: revision 1", "epoch 2")
	if s := c.converged(); s.Revision != 1 {
		t.Errorf("the status is %+v", s)
	}
	client := newClient(t, nil, false)
	for _, n := range c.nodes {
		get(t, client, "http://"+n.listen+"/a/x").seen(t)
	}
	c.mustApply(route("/d", b.port))
	if s := c.converged(); s.Revision != 2 {
		t.Errorf("the status is %+v", s)
	}
	foreign := newCluster(t)
	foreign.ctl("restore", "--yes", file).wants(t, 2, "the backup of another cluster")
}

// TestControlMoves starts a control again on other addresses: the others find it there, and so do nodes.
func TestControlMoves(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	c1 := c.control
	c2 := c.addControl("c2", c1)
	c.addControl("c3", c1)
	c.controlsShow("c2", "c3", "control")
	b := newBackend(t, "b")
	c.mustApply(route("/a", b.port))
	for range 2 {
		moved := c2
		moved.stop(t)
		moved.listen, moved.raft, moved.gossip = local(freePort(t)), local(freePort(t)), local(freePort(t))
		c.start(moved)
		if !c.up(moved) {
			t.Fatalf("%s did not start again:\n%s", moved.name, moved.stderr.String())
		}
		eventually(t, "the others know where it is", func() string {
			for _, row := range c.controls() {
				if row.Name == moved.name && row.Address == moved.listen && row.Reachable {
					return ""
				}
			}
			return fmt.Sprintf("%+v", c.controls())
		})
	}
	c.mustApply(route("/b", b.port))
	c.converged()
	eventually(t, "the node knows where it is", func() string {
		data, err := os.ReadFile(filepath.Join(c.node("n1").dataDir, "identity.json"))
		if err != nil || !strings.Contains(string(data), c2.listen) {
			return fmt.Sprintf("%v: %s is not there", err, c2.listen)
		}
		return ""
	})
}
