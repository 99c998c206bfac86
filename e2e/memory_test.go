package e2e

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pyserve/pyserve/control/identity"
)

// TestANodeServesWithinASecondWithoutControl: control is stopped, and a node that starts serves from its disk at once,
// whether it was stopped or killed before.
func TestANodeServesWithinASecondWithoutControl(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	b := newBackend(t, "b")
	c.mustApply(route("/", b.port))
	c.control.stop(t)
	n := c.node("n1")
	client := newClient(t, nil, false)
	var quickest time.Duration
	// The machine may be busy with other things for one start, not for each.
	for i, end := range []func(){func() { n.stop(t) }, func() { n.kill() }, func() { n.stop(t) }} {
		end()
		began := time.Now()
		c.start(n)
		c.ready(n)
		took := time.Since(began)
		if i == 0 || took < quickest {
			quickest = took
		}
		get(t, client, "http://"+n.listen+"/x").seen(t)
		if code := probe(n.admin, "/readyz"); code != http.StatusOK {
			t.Errorf("start %d: /readyz says %d", i, code)
		}
		n.logs(t, "serving the last known good bundle")
		n.logs(t, "no stream to control; trying on")
	}
	if quickest > time.Second {
		t.Errorf("the quickest start took %s", quickest)
	}
}

// damageBundle turns a bit in the middle of a node's current bundle.
func damageBundle(t *testing.T, n *daemon) {
	t.Helper()
	path := filepath.Join(n.dataDir, "bundles", "current.bundle")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestADamagedBundleIsPassedOver: the node serves the one before, says so, and has the newest again as soon as control is
// there.
func TestADamagedBundleIsPassedOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	b := newBackend(t, "b")
	c.mustApply(route("/old", b.port))
	c.mustApply(route("/new", b.port))
	n := c.node("n1")
	client := newClient(t, nil, false)
	n.stop(t)
	c.control.stop(t)
	damageBundle(t, n)

	c.start(n)
	c.ready(n)
	n.logs(t, "passed over a bundle on disk")
	n.logs(t, "its checksum does not fit")
	get(t, client, "http://"+n.listen+"/old/x").seen(t)

	c.restartControl()
	s := c.converged()
	if got := s.row("n1"); got.Revision != 2 || got.Note != "" {
		t.Errorf("with control again: %+v", got)
	}
	get(t, client, "http://"+n.listen+"/new/x").seen(t)
	c.control.logs(t, "the newest bundle on its disk cannot be used")

	// And it is on the disk again.
	c.control.stop(t)
	n.kill()
	c.start(n)
	c.ready(n)
	get(t, client, "http://"+n.listen+"/new/x").seen(t)
}

// TestARevisionThatEndsANodeTwiceIsGivenUp: the node serves the one before, refuses this one, and status says why; until
// another revision comes, or the node is stopped and started.
func TestARevisionThatEndsANodeTwiceIsGivenUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	n := c.node("n1")
	client := newClient(t, nil, false)
	crashTwice := func() {
		t.Helper()
		n.kill()
		c.start(n)
		c.ready(n)
		n.kill()
		c.start(n)
		c.ready(n)
	}
	c.mustApply(route("/good", b.port))
	bad := route("/bad", b.port)
	c.mustApply(bad)
	n.kill()
	c.start(n)
	c.ready(n)
	get(t, client, "http://"+n.listen+"/bad/x").seen(t)
	n.kill()
	c.start(n)
	c.ready(n)
	n.logs(t, "fell back to the revision before")
	get(t, client, "http://"+n.listen+"/good/x").seen(t)
	const reason = "ended 2 times within 30s of serving revision 2"
	s := c.statusShows("n1 rejected", func(s status) bool { return s.row("n1").State == "rejected" })
	if got := s.row("n1"); got.Revision != 1 || !strings.Contains(got.Note, reason) || s.Converged {
		t.Errorf("after two crashes: %+v", s)
	}
	if got := s.row("n2"); got.Revision != 2 || got.State != "ready" {
		t.Errorf("the other node: %+v", got)
	}
	c.apply(bad).wants(t, 1, "n1", reason)

	// Another revision is taken.
	c.mustApply(route("/better", b.port))
	if got := c.converged().row("n1"); got.Revision != 3 || got.Note != "" {
		t.Errorf("after another apply: %+v", got)
	}
	get(t, client, "http://"+n.listen+"/better/x").seen(t)

	// Who stops and starts the node has it try again.
	crashTwice()
	c.statusShows("n1 rejected", func(s status) bool { return s.row("n1").State == "rejected" })
	n.stop(t)
	c.start(n)
	c.ready(n)
	c.statusShows("n1 at revision 3", func(s status) bool { return s.Converged && s.row("n1").State == "ready" && s.row("n1").Revision == 3 })
	get(t, client, fmt.Sprintf("http://%s/better/x", n.listen)).seen(t)
}

// TestANodeWhoseCertificateHasExpiredForwards, also after a restart: it cannot speak to control, says what to do, and does
// its work.
func TestANodeWhoseCertificateHasExpiredForwards(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	b := newBackend(t, "b")
	c.mustApply(route("/", b.port))
	n := c.node("n1")
	n.stop(t)
	expire(t, c, n, 365*24*time.Hour)
	c.start(n)
	c.ready(n)
	n.logs(t, "serving the last known good bundle")
	n.logs(t, "the node's certificate ended on")
	n.logs(t, "start the node with a join token to enrol anew")
	get(t, newClient(t, nil, false), "http://"+n.listen+"/x").seen(t)
	if s := c.status(); s.row("n1").State == "ready" {
		t.Errorf("control let it in: %+v", s)
	}
}

// TestANodeWhoseIdentityIsDamagedServes what lies on its disk, says that control cannot reach it, and is enrolled anew.
func TestANodeWhoseIdentityIsDamagedServes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	client := newClient(t, nil, false)
	c.mustApply(route("/old", b.port))
	n1, n2 := c.node("n1"), c.node("n2")
	path := filepath.Join(n1.dataDir, "identity.json")
	damage := func() {
		t.Helper()
		if err := os.Truncate(path, 100); err != nil {
			t.Fatal(err)
		}
	}
	n1.kill()
	damage()
	c.start(n1)
	c.ready(n1)
	get(t, client, "http://"+n1.listen+"/old/x").seen(t)
	for _, text := range []string{"cannot speak to control", path + " is damaged", "start the node with a join token"} {
		n1.logs(t, text)
	}
	c.statusShows("n1 disconnected", func(s status) bool { return s.row("n1").State == "disconnected" })
	c.apply(route("/new", b.port)).must(t, 0, "served by 1 node")
	get(t, client, "http://"+n2.listen+"/new/x").seen(t)
	get(t, client, "http://"+n1.listen+"/old/x").seen(t)
	n1.stop(t)

	// With nothing to serve it says the same, and ends.
	bundles := filepath.Join(n1.dataDir, "bundles")
	if err := os.Rename(bundles, bundles+"-aside"); err != nil {
		t.Fatal(err)
	}
	c.start(n1)
	if code := n1.wait(t); code != 2 || !strings.Contains(n1.stderr.String(), path+" is damaged") {
		t.Errorf("exit code %d: %s", code, n1.stderr.String())
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	c.start(n1)
	c.ready(n1)
	c.converged()
	get(t, client, "http://"+n1.listen+"/new/x").seen(t)
}

// TestANodeThatWasOffForAWeekendComesBack by itself: its certificate ended, and it still holds its key.
func TestANodeThatWasOffForAWeekendComesBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	c.mustApply(route("/", newBackend(t, "b").port))
	n := c.node("n1")
	n.stop(t)
	expire(t, c, n, 3*24*time.Hour)
	c.start(n)
	c.ready(n)
	n.logs(t, "renewed the node's certificate")
	c.connected("n1")
	c.converged()
	get(t, newClient(t, nil, false), "http://"+n.listen+"/x").seen(t)

	// Not so one that was revoked meanwhile.
	n.stop(t)
	expire(t, c, n, 3*24*time.Hour)
	c.ctl("node", "revoke", "n1").must(t, 0, "node n1 revoked")
	c.start(n)
	n.logs(t, "the node's registration was revoked")
	if s := c.status(); len(s.Nodes) != 0 {
		t.Errorf("the status is %+v", s)
	}
}

// expire has the cluster's authority make a certificate for the key of a node as it would have done some time ago.
func expire(t *testing.T, c *cluster, n *daemon, ago time.Duration) {
	t.Helper()
	path := filepath.Join(n.dataDir, "identity.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var kept map[string]any
	if err := json.Unmarshal(data, &kept); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(kept["certificate"].(string)), []byte(kept["key"].(string)))
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: n.name}}, pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := identity.Open(identity.Options{Dir: c.control.dataDir, MustExist: true, Now: func() time.Time { return time.Now().Add(-ago) }})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := authority.IssueNode(n.name, request)
	if err != nil {
		t.Fatal(err)
	}
	kept["certificate"] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issued.GetCertificate()}))
	if data, err = json.Marshal(kept); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAStartThatFailsIsNoCrash: a port that somebody else has is not held against the revision that is on trial.
func TestAStartThatFailsIsNoCrash(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	b := newBackend(t, "b")
	c.mustApply(route("/old", b.port))
	c.mustApply(route("/new", b.port))
	n := c.node("n1")
	n.stop(t)
	taken, err := net.ListenPacket("udp", n.gossip) // found only when the bundle is served already
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c.start(n)
		if code := n.wait(t); code != 2 || !strings.Contains(n.stderr.String(), "--gossip") {
			t.Fatalf("exit code %d: %s", code, n.stderr.String())
		}
	}
	taken.Close()
	c.start(n)
	c.ready(n)
	get(t, newClient(t, nil, false), "http://"+n.listen+"/new/x").seen(t)
}
