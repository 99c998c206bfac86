package control

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/identity"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestOptionsNameWhatIsWrong(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"no directory": {func(o *Options) { o.DataDir = "" }, "--data-dir"},
		"no name":      {func(o *Options) { o.Name = "" }, "--name"},
		"no endpoint":  {func(o *Options) { o.Endpoint = "" }, "--listen"},
		"no port":      {func(o *Options) { o.Endpoint = "127.0.0.1" }, "host:port"},
	} {
		t.Run(name, func(t *testing.T) {
			o := optionsFor("x")
			tt.change(&o)
			if _, err := New(o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error is %v, want one that names %s", err, tt.want)
			}
		})
	}
}

func readAll(t *testing.T, dir string, files ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		out[file] = string(data)
	}
	return out
}

var secretFiles = []string{JoinTokenFile, ControlTokenFile, AdminFile}

func TestFirstStartMakesTheSecretsAndLaterOnesKeepThem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "control")
	c, err := New(optionsFor(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := readAll(t, dir, secretFiles...)
	for _, file := range secretFiles {
		info, err := os.Stat(filepath.Join(dir, file))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v (%v), want 0600", file, info.Mode(), err)
		}
	}
	for _, file := range []string{JoinTokenFile, ControlTokenFile} {
		if text := first[file]; strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") {
			t.Errorf("%s holds %q, want one line", file, text)
		}
	}
	peer := enrol(t, c, "n1")
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	c = start(t, optionsFor(dir))
	for file, text := range readAll(t, dir, secretFiles...) {
		if text != first[file] {
			t.Errorf("the second start changed %s", file)
		}
	}
	if err := c.registered(peer); err != nil {
		t.Errorf("after a restart the node is not known: %v", err)
	}
	enrol(t, c, "n2") // the token works on
	if kept, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(kept) != 5 {
		t.Errorf("the data directory holds %v", kept)
	}
}

func TestMissingTokenFileIsMadeAnew(t *testing.T) {
	dir := t.TempDir()
	c, _ := New(optionsFor(dir))
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := joinToken(t, c)
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	// As after a crash between registering the token and writing its file.
	if err := os.Remove(filepath.Join(dir, JoinTokenFile)); err != nil {
		t.Fatal(err)
	}
	c = start(t, optionsFor(dir))
	if joinToken(t, c) == old {
		t.Error("the token is the old one")
	}
	enrol(t, c, "n1")
}

func TestAdminContextFollowsTheEndpointAndItsExpiry(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	run := func(endpoint string) *identity.Context {
		t.Helper()
		o := optionsFor(dir)
		o.Endpoint, o.Now = endpoint, func() time.Time { return now }
		c, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
		admin, err := identity.LoadContext(filepath.Join(dir, AdminFile))
		if err != nil {
			t.Fatal(err)
		}
		return admin
	}
	first := run("127.0.0.1:7400")
	if again := run("127.0.0.1:7400"); again.Key != first.Key {
		t.Error("a good context was made anew")
	}
	moved := run("10.0.0.1:7400")
	if moved.Endpoints[0] != "10.0.0.1:7400" {
		t.Errorf("the context names %v", moved.Endpoints)
	}
	now = now.Add(2*365*24*time.Hour - 60*24*time.Hour)
	if late := run("10.0.0.1:7400"); late.Key == moved.Key {
		t.Error("a context that ends in 60 days was kept")
	}
	if err := os.WriteFile(filepath.Join(dir, AdminFile), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	run("10.0.0.1:7400")
}

func TestDirectoryInUseIsToldAndLeftAlone(t *testing.T) {
	dir := t.TempDir()
	c := start(t, optionsFor(dir))
	second, _ := New(optionsFor(dir))
	if err := second.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("the error is %v", err)
	}
	enrol(t, c, "n1")
}

func TestDirectoryThatCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, _ := New(optionsFor(filepath.Join(file, "control")))
	if err := c.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "--data-dir") {
		t.Fatalf("the error is %v", err)
	}
}

func TestLostIdentityIsNotReplacedByANewOne(t *testing.T) {
	dir := t.TempDir()
	c, _ := New(optionsFor(dir))
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "identity")); err != nil {
		t.Fatal(err)
	}
	c, _ = New(optionsFor(dir))
	if err := c.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Fatalf("the error is %v: a new authority would lock every node out", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "identity")); !os.IsNotExist(err) {
		t.Errorf("an identity was made all the same: %v", err)
	}
}

func TestEverythingIsThereAfterARestart(t *testing.T) {
	dir := t.TempDir()
	c, _ := New(optionsFor(dir))
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := &fleettest.Node{Name: "n1"}
	peer := enrol(t, c, "n1")
	n.Connect(serving(c, peer))
	eventually(t, "connected", func() bool { return c.fleet.Connected("n1") })
	applied(t, c, document(1))
	was := applied(t, c, document(1, 2))
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	n.Wait()

	c = start(t, optionsFor(dir))
	status := c.Status()
	if status.GetRevision() != 2 || status.GetDigest() != was.GetDigest() || status.GetConverged() {
		t.Errorf("the status is %v", status)
	}
	if row := status.GetNodes(); len(row) != 1 || row[0].GetState() != "disconnected" || row[0].GetSince() != nil {
		t.Errorf("the nodes are %v", row)
	}
	if doc, revision, digest, err := c.Document(0); err != nil || string(doc) != string(document(1, 2).Data) || revision != 2 || digest != was.GetDigest() {
		t.Errorf("the document is %q of revision %d", doc, revision)
	}
	before := len(n.Log())
	connect(t, c, peer, n) // it serves what is active: nothing to offer
	eventually(t, "converged", func() bool { return c.Status().GetConverged() })
	if log := n.Log(); len(log) != before {
		t.Errorf("control said %v to a node that serves what is active", log[before:])
	}
	// A delta is possible against what was active before the restart.
	applied(t, c, document(3))
	if log := n.Log(); !contains(log[before:], "delta") {
		t.Errorf("control said %v", log[before:])
	}
	result, _ := apply(t, c, document(3), nil)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED, 3, "")
}

func TestWelcomeNamesSeeds(t *testing.T) {
	o := optionsFor(t.TempDir())
	gossip := ""
	o.GossipAddress = func() string { return gossip }
	o.Members = func() []Member {
		members := []Member{{Name: "dead", Address: "127.0.0.1:1", State: "dead"}}
		for i := range 9 {
			members = append(members, Member{Name: string(rune('a' + i)), Address: "127.0.0.1:2", State: "alive"})
		}
		return members
	}
	c := start(t, o)
	own, err := c.Gossip()
	if err != nil {
		t.Fatal(err)
	}
	m := c.welcome()
	if len(m.GetGossipSeeds()) != maxSeeds || len(m.GetGossipKeys()) != len(own.Keys) || m.GetControlName() != "c1" {
		t.Errorf("the welcome is %v", m)
	}
	gossip = "127.0.0.1:7402"
	if m := c.welcome(); len(m.GetGossipSeeds()) != maxSeeds || m.GetGossipSeeds()[0] != gossip {
		t.Errorf("the seeds are %v", m.GetGossipSeeds())
	}
}

// A directory that others may read is the operator's choice; what control makes in it is for its user alone.
func TestNothingInTheDataDirectoryIsForOthers(t *testing.T) {
	dir := t.TempDir()
	c := start(t, optionsFor(dir))
	applied(t, c, document(1))
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
