package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// newClusterOn is newCluster where one daemon's data directory is a disk of its own, of so many KiB.
func newClusterOn(t *testing.T, daemon string, size int, names ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir()}
	smallDisk(t, filepath.Join(c.dir, daemon), size)
	c.begin(names...)
	return c
}

// smallDisk mounts a file system of its own. That takes root, and a system that lets it.
func smallDisk(t *testing.T, dir string, size int) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("pyserve-e2e", dir, "tmpfs", 0, fmt.Sprintf("size=%dk,mode=0700", size)); err != nil {
		t.Skipf("a small disk cannot be mounted here, which takes root: %v", err)
	}
	t.Cleanup(func() { // the daemons have ended by now
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, errors.Join(err, syscall.Unmount(dir, syscall.MNT_DETACH)))
		}
	})
}

// fill leaves no room on a daemon's disk; the function that it gives makes room again.
func fill(t *testing.T, d *daemon) (makeRoom func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(d.dataDir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for page := make([]byte, 4096); err == nil; {
		_, err = f.Write(page)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

// manyRoutes is a document of some length, of which little can be packed: path, and others that nothing asks for. Those
// of another salt are others.
func manyRoutes(path string, port int, salt int) string {
	document := strings.Builder{}
	document.WriteString(route(path, port))
	for i := range 200 {
		name := sha256.Sum256(fmt.Appendf(nil, "%d %d", salt, i))
		fmt.Fprintf(&document, "    - {path: /%x, host: 127.0.0.1, port: %d}\n", name, port)
	}
	return document.String()
}

// runs is what a cluster should be running: the last document that was applied.
type runs struct {
	document string
	revision uint64
}

// check wants exactly that to run.
func (r runs) check(c *cluster) {
	c.t.Helper()
	if s := c.status(); s.Revision != r.revision {
		c.t.Errorf("revision %d is active, want %d", s.Revision, r.revision)
	}
	if got := c.ctl("get", "config").must(c.t, 0); got.stdout != r.document {
		c.t.Errorf("it runs\n%s\nwant\n%s", tail(got.stdout), tail(r.document))
	}
}

// exhaust fills control's disk and applies until control says that it can write nothing more: what its log has allocated
// takes some applies yet. It gives what runs then.
func exhaust(t *testing.T, c *cluster, now runs, port int) (_ runs, makeRoom func()) {
	t.Helper()
	makeRoom = fill(t, c.control)
	salt := 0
	eventually(t, "control has no room left", func() string {
		salt++
		document := manyRoutes("/a", port, salt)
		switch r := c.apply(document); r.code {
		case 0:
			now = runs{document, now.revision + 1}
		default:
			r.must(t, 2, "no space left on device", "make room")
		}
		r := get(t, newClient(t, nil, false), "http://"+c.control.admin+"/readyz")
		if r.status == http.StatusServiceUnavailable && strings.Contains(r.body, "no space left on device") {
			return ""
		}
		return fmt.Sprintf("/readyz says %d %s", r.status, r.body)
	})
	return now, makeRoom
}

// TestControlWithAFullDiskChangesNothingAndGoesOn until there is room, without a restart.
func TestControlWithAFullDiskChangesNothingAndGoesOn(t *testing.T) {
	t.Parallel()
	c := newClusterOn(t, "control", 1024, "n1")
	b := newBackend(t, "b")
	c.mustApply(route("/a", b.port))
	l := startLoad(t, c.listens(), "/a/x", 1, 0)
	now, makeRoom := exhaust(t, c, runs{route("/a", b.port), 1}, b.port)

	refused := []string{filepath.Join(c.dir, "control"), "no space left on device", "make room there and try again"}
	c.apply(manyRoutes("/b", b.port, 0)).wants(t, 2, refused...)
	c.ctl("rollback").wants(t, 2, refused...)
	c.ctl("token", "create").wants(t, 2, refused...)
	c.ctl("status").wants(t, 0, refused...)
	now.check(c)
	l.reaches(t, 100)

	makeRoom()
	eventually(t, "control is ready again", func() string {
		if code := probe(c.control.admin, "/readyz"); code != http.StatusOK {
			return fmt.Sprintf("/readyz says %d", code)
		}
		return ""
	})
	now.check(c)
	next := manyRoutes("/a", b.port, 0)
	c.mustApply(next)
	runs{next, now.revision + 1}.check(c)
	c.converged()
	l.reaches(t, 100)
	l.finish(t)
	if c.control.hasEnded() {
		t.Error("control has ended")
	}
}

// TestControlIsKilledWithAFullDisk: started again it serves what there was, or says why it cannot, and comes back whole
// when there is room.
func TestControlIsKilledWithAFullDisk(t *testing.T) {
	t.Parallel()
	c := newClusterOn(t, "control", 1024, "n1")
	b := newBackend(t, "b")
	c.mustApply(route("/a", b.port))
	l := startLoad(t, c.listens(), "/a/x", 1, 0)
	now, makeRoom := exhaust(t, c, runs{route("/a", b.port), 1}, b.port)
	c.control.kill()
	c.start(c.control)
	if c.up(c.control) { // what it writes first has found a page that the kill gave free
		now.check(c)
		c.control.kill()
	} else if said := c.control.stderr.String(); c.control.wait(t) != 2 || !strings.Contains(said, "no space left on device; make room there") {
		t.Errorf("control ended with %d and said\n%s", c.control.wait(t), tail(said))
	}
	l.reaches(t, 100)

	makeRoom()
	c.restartControl()
	now.check(c)
	next := manyRoutes("/a", b.port, 0)
	c.mustApply(next)
	runs{next, now.revision + 1}.check(c)
	c.converged()
	l.reaches(t, 100)
	l.finish(t)
}

// TestANodeWithAFullDiskRefuses what it could not keep, for everybody, also after a restart, and takes it when there is
// room.
func TestANodeWithAFullDiskRefuses(t *testing.T) {
	t.Parallel()
	c := newClusterOn(t, "n1", 256, "n1", "n2")
	b := newBackend(t, "b")
	client := newClient(t, nil, false)
	now := runs{route("/a", b.port), 1}
	c.mustApply(now.document)
	n1 := c.node("n1")
	makeRoom := fill(t, n1)
	l := startLoad(t, c.listens(), "/a/x", 1, 0)
	next := manyRoutes("/a", b.port, 1)
	refused := func() {
		t.Helper()
		c.apply(next).wants(t, 1, "node n1", "nothing was changed", n1.dataDir, "no space left on device", "make room there")
		now.check(c)
		if s := c.status(); s.row("n1").Revision != 1 || s.row("n2").Revision != 1 || !s.Converged {
			t.Errorf("the status is %+v", s)
		}
		c.statusShows("why n1 refused", func(s status) bool { return strings.Contains(s.row("n1").Note, "no space left on device") })
		for _, n := range c.nodes {
			get(t, client, "http://"+n.listen+"/a/x").seen(t)
		}
	}
	refused()
	l.reaches(t, 100)
	l.finish(t)

	n1.kill()
	c.start(n1)
	n1.logs(t, "serving the last known good bundle")
	c.ready(n1)
	get(t, client, "http://"+n1.listen+"/a/x").seen(t)
	c.connected("n1")
	refused()

	l = startLoad(t, c.listens(), "/a/x", 1, 0)
	makeRoom()
	c.apply(next).must(t, 0, "served by 2 nodes")
	runs{next, 2}.check(c)
	c.converged()
	l.reaches(t, 100)
	l.finish(t)
}

// TestANodeEnrolsWhenItsDiskHasRoom: with a full one it says so, and tries on.
func TestANodeEnrolsWhenItsDiskHasRoom(t *testing.T) {
	t.Parallel()
	c := newClusterOn(t, "n1", 256)
	c.mustApply(route("/a", newBackend(t, "b").port))
	n := c.addNode("n1")
	makeRoom := fill(t, n)
	c.start(n)
	n.logs(t, "no space left on device")
	if code := probe(n.admin, "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz says %d", code)
	}
	makeRoom()
	c.ready(n)
	get(t, newClient(t, nil, false), "http://"+n.listen+"/a/x").seen(t)
	c.converged()
}

// TestOneOfThreeControlsHasAFullDisk: another one leads, no apply fails, and it catches up when there is room.
func TestOneOfThreeControlsHasAFullDisk(t *testing.T) {
	t.Parallel()
	c := newClusterOn(t, "control", 1024, "n1")
	c1 := c.control
	c.addControl("c3", c.addControl("c2", c1))
	c.controlsShow("c2", "c3", "control")
	b := newBackend(t, "b")
	c.mustApply(route("/a", b.port))
	c.converged()
	makeRoom := fill(t, c1)
	now := runs{revision: 1}
	eventually(t, "the disk of the control that led takes no writes", func() string {
		now.revision++
		now.document = manyRoutes("/a", b.port, int(now.revision))
		c.mustApply(now.document)
		r := get(t, newClient(t, nil, false), "http://"+c1.admin+"/readyz")
		if r.status == http.StatusServiceUnavailable && strings.Contains(r.body, "no space left on device") {
			return ""
		}
		return fmt.Sprintf("/readyz says %d %s", r.status, r.body)
	})
	now.check(c)
	c.mustApply(route("/b", b.port))
	now = runs{route("/b", b.port), now.revision + 1}
	now.check(c)

	makeRoom()
	eventually(t, "it has caught up", func() string {
		rows := c.controls()
		for _, row := range rows {
			if !row.Reachable || row.Lag > 0 {
				return fmt.Sprintf("%+v", rows)
			}
		}
		if code := probe(c1.admin, "/readyz"); code != http.StatusOK {
			return fmt.Sprintf("/readyz says %d", code)
		}
		return ""
	})
	now.check(c)
	c.converged()
}
