package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestControlAndANodeAreKilled is the story of a bad day: control dies under load, then a node, a node starts again
// meanwhile, and control comes back.
func TestControlAndANodeAreKilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3")
	b1, b2 := newBackend(t, "b1"), newBackend(t, "b2")
	n1, n2, n3 := c.node("n1"), c.node("n2"), c.node("n3")
	document := fmt.Sprintf(`
server:
  reverse_proxy:
    - {path: /api, host: 127.0.0.1, port: %[1]d}
    - {path: /api, host: 127.0.0.1, port: %[2]d}
`, b1.port, b2.port)
	c.mustApply(document)
	before := c.status()
	client := newClient(t, nil, false)

	// kill -9 control: 10,000 requests through all nodes, none lost.
	l := startLoad(t, c.listens(), "/api/x", 2, 10_000)
	l.reaches(t, 2_000)
	c.control.kill()
	l.finish(t)
	if l.good.Load() != 10_000 {
		t.Errorf("%d of 10000 requests were answered", l.good.Load())
	}
	for _, n := range c.nodes {
		if code := probe(n.admin, "/readyz"); code != http.StatusOK {
			t.Errorf("%s without control: /readyz says %d", n.name, code)
		}
		n.logs(t, "no stream to control; trying on")
	}
	c.ctl("status").wants(t, 2, "no control answers at "+c.control.listen)

	// kill -9 one node: the others lose none, and it serves from its disk as soon as it is started again.
	l = startLoad(t, []string{n1.listen, n2.listen}, "/api/x", 2, 0)
	l.reaches(t, 500)
	n3.kill()
	l.reaches(t, 1_000)
	c.start(n3)
	c.ready(n3)
	get(t, client, "http://"+n3.listen+"/api/x").seen(t)
	n3.logs(t, "serving the last known good bundle")
	n3.kill()
	l.reaches(t, 500)

	// Control again: the nodes that live take up their streams, and an apply reaches them.
	c.restartControl()
	c.connected("n1")
	c.connected("n2")
	s := c.status()
	if s.Revision != before.Revision || s.Digest != before.Digest {
		t.Errorf("control came back with %+v, it had %+v", s, before)
	}
	if got := s.row("n3"); got.State != "disconnected" || got.Note != "it had no stream since this control started" || s.Converged {
		t.Errorf("a node that is dead: %+v, converged: %t", got, s.Converged)
	}
	c.apply(document+fmt.Sprintf("    - {path: /new, host: 127.0.0.1, port: %d}\n", b1.port)).must(t, 0, "applied: revision 2", "served by 2 nodes")
	for _, n := range []*daemon{n1, n2} {
		get(t, client, "http://"+n.listen+"/new/x").seen(t)
	}
	l.reaches(t, 500)
	l.finish(t)

	// The dead node returns, serves what it has, and then what the others serve.
	c.start(n3)
	c.ready(n3)
	s = c.converged()
	if got := s.row("n3"); got.Revision != 2 || got.State != "ready" {
		t.Errorf("the node that returned: %+v", got)
	}
	c.statusShows("every node alive in gossip", func(s status) bool {
		return s.row("n1").Gossip == "alive" && s.row("n2").Gossip == "alive" && s.row("n3").Gossip == "alive"
	})
	get(t, client, "http://"+n3.listen+"/new/x").seen(t)
	l = startLoad(t, c.listens(), "/api/x", 2, 1_000)
	l.finish(t)
}

// TestARevisionOutlivesAKillRightAfterApply kills control the moment apply has returned, a few times over.
func TestARevisionOutlivesAKillRightAfterApply(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	b := newBackend(t, "b")
	client := newClient(t, nil, false)
	for i := 1; i <= 4; i++ {
		path := fmt.Sprintf("/v%d", i)
		document := route(path, b.port)
		c.apply(document).must(t, 0, fmt.Sprintf("applied: revision %d", i))
		c.control.kill()
		c.restartControl()
		if s := c.status(); s.Revision != uint64(i) {
			t.Fatalf("after the kill the revision is %d, apply had said %d", s.Revision, i)
		}
		if r := c.ctl("get", "config").wants(t, 0); r.stdout != document {
			t.Errorf("after the kill the document is\n%s", r.stdout)
		}
		c.converged()
		get(t, client, "http://"+c.nodes[0].listen+path+"/x").seen(t)
	}
}

// TestANodeThatWasAwayTakesTheNewestRevision applies while a node is dead.
func TestANodeThatWasAwayTakesTheNewestRevision(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	c.mustApply(route("/old", b.port))
	n2 := c.node("n2")
	n2.kill()
	c.statusShows("n2 disconnected", func(s status) bool { return s.row("n2").State == "disconnected" })
	if s := c.status(); s.Converged || s.row("n1").State != "ready" {
		t.Errorf("with a dead node: %+v", s)
	}
	for i := range 3 {
		c.apply(route(fmt.Sprintf("/new%d", i), b.port)).must(t, 0)
	}
	c.statusShows("n2 dead in gossip", func(s status) bool { return s.row("n2").Gossip == "dead" })
	c.start(n2)
	c.statusShows("n2 alive in gossip", func(s status) bool { return s.row("n2").Gossip == "alive" })
	if s := c.converged(); s.row("n2").Revision != 4 {
		t.Errorf("n2 is at revision %d", s.row("n2").Revision)
	}
	get(t, newClient(t, nil, false), "http://"+n2.listen+"/new2/x").seen(t)
}

// TestANodeThatLostItsDiskEnrolsAnew under its old name; who still has the old key is not believed any more.
func TestANodeThatLostItsDiskEnrolsAnew(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	b := newBackend(t, "b")
	c.mustApply(route("/", b.port))
	n := c.node("n1")
	n.kill()
	old := n.dataDir + "-old"
	if err := os.Rename(n.dataDir, old); err != nil {
		t.Fatal(err)
	}
	c.start(n)
	c.ready(n)
	c.converged()
	n.stop(t)

	n.dataDir = old
	c.start(n)
	n.logs(t, "now belongs to another key")
	// It is not let in, and serves what it has.
	c.ready(n)
	get(t, newClient(t, nil, false), "http://"+n.listen+"/x").seen(t)
	if s := c.status(); s.row("n1").State != "left" {
		t.Errorf("%+v", s)
	}
}

// TestNodesComeAfterTheApply, which needs none.
func TestNodesComeAfterTheApply(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.apply(route("/", newBackend(t, "b").port)).must(t, 0, "applied: revision 1", "no node is connected")
	c.ctl("status").wants(t, 1, "no node is there to serve it")
	for _, name := range []string{"n1", "n2"} {
		n := c.addNode(name)
		c.start(n)
		c.ready(n)
	}
	c.converged()
	for _, n := range c.nodes {
		get(t, newClient(t, nil, false), "http://"+n.listen+"/x").seen(t)
	}
}

// TestANodeIsStartedBeforeControl waits, says so, and comes in as soon as there is a control.
func TestANodeIsStartedBeforeControl(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.control.stop(t)
	n := c.addNode("n1")
	c.start(n)
	if !c.up(n) {
		t.Fatalf("the node gave up:\n%s", n.stderr.String())
	}
	n.logs(t, "cannot enrol yet, trying on")
	n.logs(t, "connection refused")
	if code := probe(n.admin, "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz says %d", code)
	}
	c.restartControl()
	c.connected("n1")
	c.mustApply(route("/", newBackend(t, "b").port))
	c.ready(n)
}

// TestANodeThatIsToldToStopDrains has requests under way when the signal comes: all of them are answered.
func TestANodeThatIsToldToStopDrains(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	c.mustApply(fmt.Sprintf("server:\n  reverse_proxy:\n    - {path: /api, host: 127.0.0.1, port: %[1]d}\n    - {path: /ws, host: 127.0.0.1, port: %[1]d}\n", b.port))
	n1, n2 := c.node("n1"), c.node("n2")

	const underWay = 50
	l := startLoad(t, []string{n1.listen}, "/api/held", underWay, underWay)
	b.holds(t, underWay)
	others := startLoad(t, []string{n2.listen}, "/api/x", 2, 0)
	n1.signal(t, syscall.SIGTERM)
	eventually(t, "n1 takes no more connections", func() string {
		if !isFree(port(n1.listen)) {
			return "it still listens"
		}
		return ""
	})
	eventually(t, "/readyz says that n1 drains", func() string {
		r := get(t, newClient(t, nil, false), "http://"+n1.admin+"/readyz")
		if r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, "draining") {
			return fmt.Sprintf("%d %s", r.status, r.body)
		}
		return ""
	})
	if n1.hasEnded() {
		t.Fatal("n1 did not wait for its requests")
	}
	close(b.release)
	l.finish(t)
	if code := n1.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	others.reaches(t, 100)
	others.finish(t)
	s := c.statusShows("n1 left", func(s status) bool { return s.row("n1").State == "left" })
	if !s.Converged {
		t.Errorf("a node that left on purpose is no lack of convergence: %+v", s)
	}
	c.apply(route("/", b.port)).wants(t, 0, "served by 1 node")
}

// TestADrainUnderLoadLosesNoRequest: clients that send one request after the other over kept connections are told to close
// them before that is done.
func TestADrainUnderLoadLosesNoRequest(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	c.mustApply(route("/", newBackend(t, "b").port))
	n := c.node("n1")
	l := startLoad(t, []string{n.listen}, "/x", 16, 0)
	l.untilClosed.Store(true)
	l.reaches(t, 2_000)
	n.stop(t)
	l.finish(t)
}

// TestASecondSignalStopsAtOnce does not wait for what is under way.
func TestASecondSignalStopsAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	b := newBackend(t, "b")
	c.mustApply(route("/", b.port))
	n := c.node("n1")
	startLoad(t, []string{n.listen}, "/held", 1, 1)
	b.holds(t, 1)
	n.signal(t, syscall.SIGTERM)
	n.logs(t, "a second signal stops at once")
	n.signal(t, syscall.SIGTERM)
	if code := n.wait(t); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
}

// TestControlStopsWhileSomebodyWatches does not wait for people who watch, and says why their stream ends.
func TestControlStopsWhileSomebodyWatches(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	c.mustApply(route("/", newBackend(t, "b").port))
	p := launch(t, command{name: "status -w", program: programs.pyservectl, args: []string{"--context", c.admin(), "status", "-w"}, dir: c.dir})
	eventually(t, "status -w shows the status", func() string {
		if !strings.Contains(p.stdout.String(), "converged") {
			return "not yet"
		}
		return ""
	})
	c.control.stop(t)
	if code := p.wait(t); code != 2 || !strings.Contains(p.stderr.String(), "control is stopping") {
		t.Errorf("status -w: exit code %d: %s", code, p.stderr.String())
	}
	if strings.Contains(c.control.stderr.String(), "level=ERROR") || strings.Contains(c.control.stderr.String(), "level=WARN") {
		t.Errorf("control complains while it stops:\n%s", c.control.stderr.String())
	}
}

// TestANodeStopsWithAnOpenTunnel: a client that never leaves does not keep a node, or the good-bye to the others, from
// its end.
func TestANodeStopsWithAnOpenTunnel(t *testing.T) {
	if testing.Short() {
		t.Skip("a drain takes 30 s")
	}
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	c.mustApply(route("/", newBackend(t, "b").port))
	socket := dialWebSocket(t, "ws://"+c.node("n1").listen+"/ws", nil)
	exchange(t, socket, 1, []byte("hello"))
	c.node("n1").stop(t)
	c.statusShows("n1 left in gossip too", func(s status) bool { return s.row("n1").State == "left" && s.row("n1").Gossip == "left" })
}
