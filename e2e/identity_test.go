package e2e

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestServedKeysAreSealedOnControl looks for the private key of a served certificate, PEM and DER, in every file of
// control, in what it says, and in its log; through applies and a restart.
func TestServedKeysAreSealedOnControl(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	pair := certificate(t)
	c.write("cert.pem", string(pair.ChainPEM))
	c.write("key.pem", string(pair.KeyPEM))
	tls := "ssl: {enabled: true, cert_file: cert.pem, key_file: key.pem}\n"
	port := newBackend(t, "b").port
	c.mustApply(route("/", port) + tls)
	c.mustApply(route("/next", port) + tls)
	c.mustApply(route("/next", port))
	c.mustApply(route("/", port) + tls)
	c.control.stop(t)
	c.restartControl()
	c.connected("n1")
	c.converged()

	block, _ := pem.Decode(pair.KeyPEM)
	secrets := map[string][]byte{"DER": block.Bytes}
	for i, line := range strings.Split(strings.TrimSpace(string(pair.KeyPEM)), "\n") {
		if !strings.HasPrefix(line, "-----") {
			secrets[fmt.Sprint("PEM, line ", i)] = []byte(line)
		}
	}
	search := func(where string, data []byte) {
		for form, secret := range secrets {
			if bytes.Contains(data, secret) {
				t.Errorf("%s holds the served key (%s)", where, form)
			}
		}
	}
	files := 0
	err := filepath.WalkDir(c.control.dataDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil // a temporary file
		}
		files++
		search(path, data)
		return err
	})
	if err != nil || files < 8 {
		t.Fatalf("%d files, %v", files, err)
	}
	search("control's log", []byte(c.control.stderr.String()))
	search("n1's log", []byte(c.node("n1").stderr.String()))
	for _, args := range [][]string{{"get", "config"}, {"get", "config", "-o", "json"}, {"get", "routes", "-o", "json"}, {"status", "-o", "json"}} {
		r := c.ctl(args...)
		search(strings.Join(args, " "), []byte(r.stdout+r.stderr))
	}
	// A document that is refused with the key beside it does not quote it either.
	c.write("cert.pem", "nonsense")
	r := c.apply(route("/", port) + tls)
	search("a refused apply", []byte(r.wants(t, 1).stdout+r.stderr))

	c.control.stop(t)
	if err := os.Remove(filepath.Join(c.control.dataDir, "identity", "seal.key")); err != nil {
		t.Fatal(err)
	}
	c.start(c.control)
	if code := c.control.wait(t); code != 2 {
		t.Errorf("without its key control ended with %d", code)
	}
	c.control.logs(t, "seal.key is missing; restore it from a backup")
}

// nodeArgs are the flags of a node that is not one of the cluster's own.
func (c *cluster) nodeArgs(name, dir, tokenFile string) []string {
	return []string{"node", "--name", name, "--data-dir", dir, "--control", c.control.listen, "--token-file", tokenFile,
		"--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--gossip", "127.0.0.1:0"}
}

type tokenRow struct {
	Token   string `json:"token"`
	ID      string `json:"id"`
	Kind    string `json:"kind"`
	Uses    uint64 `json:"uses"`
	MaxUses uint64 `json:"max_uses"`
	Pattern string `json:"pattern"`
	Valid   bool   `json:"valid"`
}

// TestJoinTokens makes tokens, lets nodes in by them, and sees each reason why one is not let in.
func TestJoinTokens(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	r := c.ctl("token", "create", "--ttl", "1h", "--uses", "1", "--node-pattern", "edge-*").must(t, 0)
	token := strings.TrimSpace(r.stdout)
	if strings.Count(r.stdout, "\n") != 1 || len(strings.Split(token, ".")) != 4 || !strings.Contains(r.stderr, "edge-*") || strings.Contains(r.stderr, token) {
		t.Errorf("token create printed %q and %q", r.stdout, r.stderr)
	}
	file := c.write("edge-token", r.stdout)
	refused := func(name, tokenFile string, want ...string) {
		t.Helper()
		pyserve(t, nil, c.nodeArgs(name, filepath.Join(t.TempDir(), name), tokenFile)...).wantsOneLine(t, want...)
	}
	refused("web-1", file, "refuses", "edge-*", "web-1")
	n := launch(t, command{name: "edge-1", program: programs.pyserve, args: c.nodeArgs("edge-1", filepath.Join(t.TempDir(), "edge-1"), file)})
	c.connected("edge-1")
	refused("edge-2", file, "refuses", "used up")

	var made tokenRow
	r = c.ctl("token", "create", "--ttl", "1s", "-o", "json").must(t, 0)
	if err := json.Unmarshal([]byte(r.stdout), &made); err != nil || made.Token == "" || made.Kind != "join" {
		t.Fatalf("%v: %s", err, r.stdout)
	}
	short := c.write("short-token", made.Token)
	eventually(t, "the token expires", func() string {
		if list := c.ctl("token", "list").must(t, 0); strings.Contains(list.stdout, "expired") {
			return ""
		}
		return "still good"
	})
	refused("edge-2", short, "refuses", "expired")

	list := c.ctl("token", "list").must(t, 0, "ID", "KIND", "CREATED", "EXPIRES", "USES", "PATTERN", "1/1", "edge-*", "never", "control")
	for _, secret := range []string{strings.Split(token, ".")[2], strings.Split(made.Token, ".")[2]} {
		if strings.Contains(list.stdout+c.ctl("token", "list", "-o", "json").stdout, secret) {
			t.Error("token list shows a secret")
		}
	}
	data, err := os.ReadFile(c.joinToken())
	if err != nil {
		t.Fatal(err)
	}
	id := strings.Split(string(data), ".")[1]
	c.ctl("token", "revoke", id).must(t, 0, "token "+id+" revoked", "join-token", "next start")
	refused("edge-2", c.joinToken(), "refuses", "revoked")
	c.ctl("token", "revoke", id).wants(t, 2, "there is no such token")
	c.control.stop(t)
	c.restartControl()
	second := launch(t, command{name: "edge-2", program: programs.pyserve, args: c.nodeArgs("edge-2", filepath.Join(t.TempDir(), "edge-2"), c.joinToken())})
	c.connected("edge-2")
	n.stop(t)
	second.stop(t)
}

// TestARevokedNode is cut off at once, serves on, and is let in again by a token.
func TestARevokedNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	c.mustApply(route("/", newBackend(t, "b").port))
	n2 := c.node("n2")
	c.ctl("node", "revoke", "n2").must(t, 0, "node n2 revoked", "its stream was ended")
	if s := c.status(); !s.Converged || len(s.Nodes) != 1 {
		t.Errorf("the status is %+v", s)
	}
	n2.logs(t, "the node's registration was revoked")
	get(t, newClient(t, nil, false), "http://"+n2.listen+"/x").seen(t)
	c.ctl("node", "revoke", "n2").wants(t, 2, "no node of that name")
	n2.stop(t)
	if err := os.Remove(filepath.Join(n2.dataDir, "identity.json")); err != nil {
		t.Fatal(err)
	}
	c.start(n2)
	c.connected("n2")
	c.converged()

	// A node that is gone for good is forgotten the same way.
	n2.kill()
	c.statusShows("n2 gone", func(s status) bool { return s.row("n2").State == "disconnected" && !s.Converged })
	c.ctl("node", "revoke", "n2").must(t, 0, "node n2 revoked")
	c.converged()
}

// TestRoles has a person of each role try what each may.
func TestRoles(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	document := c.write("config.yaml", route("/", newBackend(t, "b").port))
	contexts := map[string]string{}
	for _, role := range []string{"viewer", "editor", "operator", "admin"} {
		r := c.ctl("context", "create", "p-"+role, "--role", role, "--ttl", "1h").must(t, 0, "role "+role)
		contexts[role] = c.write(role+".yaml", r.stdout)
	}
	for _, test := range []struct {
		least string
		args  []string
		ok    []int
	}{
		{"viewer", []string{"status"}, []int{0, 1}},
		{"viewer", []string{"get", "nodes"}, []int{0}},
		{"viewer", []string{"history"}, []int{0}},
		{"editor", []string{"diff", document}, []int{0, 1}},
		{"editor", []string{"apply", document}, []int{0}},
		{"admin", []string{"token", "list"}, []int{0}},
		{"admin", []string{"token", "create"}, []int{0}},
		{"admin", []string{"context", "create", "x", "--role", "admin"}, []int{0}},
	} {
		allowed := false
		for _, role := range []string{"viewer", "editor", "operator", "admin"} {
			allowed = allowed || role == test.least
			r := runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: append([]string{"--context", contexts[role]}, test.args...), dir: c.dir}, "")
			if allowed {
				if !slices.Contains(test.ok, r.code) {
					t.Errorf("%s %v: %d\n%s", role, test.args, r.code, r.stderr)
				}
				continue
			}
			r.wants(t, 2, "has the role "+role, "needs the role "+test.least)
		}
	}
	c.ctl("context", "create", "x", "--role", "king").wants(t, 2, "viewer, editor, operator, admin")
	// Sent into a file, a context is for its owner alone.
	path := filepath.Join(c.dir, "loose.yaml")
	shell := fmt.Sprintf("umask 022; %s --context %s context create y --role viewer > %s", programs.pyservectl, c.admin(), path)
	runToEnd(t, command{name: "sh", program: "/bin/sh", args: []string{"-c", shell}, dir: c.dir}, "").must(t, 0)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestARevokedContext is refused, over a restart of control too, and another one of its name is not.
func TestARevokedContext(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	create := func(file string) (path string) {
		return c.write(file, c.ctl("context", "create", "alice", "--role", "viewer").must(t, 0, "context of alice").stdout)
	}
	with := func(context string) result {
		return runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: []string{"--context", context, "get", "nodes"}, dir: c.dir}, "")
	}
	first := create("alice.yaml")
	with(first).must(t, 0)
	c.ctl("context", "revoke", "alice").must(t, 0, "context alice revoked")
	with(first).wants(t, 2, "alice: the context was revoked")
	second := create("alice-2.yaml")
	c.control.kill()
	c.restartControl()
	with(first).wants(t, 2, "alice: the context was revoked")
	with(second).must(t, 0)
	var list struct {
		Contexts []struct {
			Name    string
			Revoked bool
		}
	}
	r := c.ctl("context", "list", "-o", "json").must(t, 0)
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		t.Fatalf("%v\n%s", err, r.stdout)
	}
	var states []bool
	for _, one := range list.Contexts {
		if one.Name == "alice" {
			states = append(states, one.Revoked)
		}
	}
	if !slices.Equal(states, []bool{true, false}) {
		t.Errorf("alice's contexts are revoked: %v\n%s", states, r.stdout)
	}
	c.ctl("context", "revoke", "alicia").wants(t, 2, "no context of that name is known")
}

// TestAudit finds in the trail who did what, and who was not let do it, over a restart.
func TestAudit(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	c.mustApply(route("/", newBackend(t, "b").port))
	c.apply(route("/", 9), "--expect-revision", "9").wants(t, 1)
	viewer := c.write("viewer.yaml", c.ctl("context", "create", "victor", "--role", "viewer").must(t, 0).stdout)
	runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: []string{"--context", viewer, "node", "revoke", "n1"}, dir: c.dir}, "").
		wants(t, 2, "needs the role admin")
	token := strings.TrimSpace(c.ctl("token", "create").must(t, 0).stdout)
	c.ctl("token", "revoke", strings.Split(token, ".")[1]).must(t, 0)
	c.ctl("rollback").wants(t, 1)
	c.ctl("node", "revoke", "n1").must(t, 0)
	c.control.kill()
	c.restartControl()
	r := c.ctl("audit", "-o", "json").must(t, 0)
	var trail struct {
		Verified bool
		Entries  []struct {
			Sequence                                    uint64
			Actor, Role, Address, Method, What, Outcome string
		}
	}
	if err := json.Unmarshal([]byte(r.stdout), &trail); err != nil || !trail.Verified {
		t.Fatalf("%v\n%s", err, r.stdout)
	}
	var lines []string
	for i, e := range trail.Entries {
		if e.Sequence != uint64(i+1) {
			t.Errorf("entry %d has number %d", i+1, e.Sequence)
		}
		lines = append(lines, fmt.Sprintf("%s (%s) %s %s: %s", e.Actor, e.Role, e.Method, e.What, e.Outcome))
	}
	all := strings.Join(lines, "\n")
	for _, want := range []string{
		"control (control) Start", "n1 (node) Enroll token", "admin (admin) Apply revision 1, digest ", "refused: revision 1 is active, not 9",
		"admin (admin) CreateContext context victor, role viewer", "victor (viewer) RevokeNode", "admin (admin) CreateToken", "admin (admin) RevokeToken",
		"admin (admin) Rollback", `admin (admin) RevokeNode node "n1": done`,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("the trail has no %q:\n%s", want, all)
		}
	}
	if secret := strings.Split(token, ".")[2]; strings.Contains(r.stdout, secret) {
		t.Error("the trail holds a token's secret")
	}
	few := c.ctl("audit", "--limit", "1").must(t, 0, "ENTRY", "is whole")
	if strings.Count(few.stdout, "\n") != 2 {
		t.Errorf("--limit 1 shows\n%s", few.stdout)
	}
}

// TestRotationOfTheAuthority replaces the authority under load, step by step, and has everybody go on.
func TestRotationOfTheAuthority(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	c.mustApply(route("/", newBackend(t, "b").port))
	l := startLoad(t, []string{c.node("n2").listen}, "/x", 2, 0)
	old := c.write("old-admin.yaml", read(t, c.admin()))
	oldToken := c.write("old-token", read(t, c.joinToken()))
	c.ctl("ca", "status").must(t, 0, "issues certificates")
	c.ctl("ca", "rotate", "--finish").wants(t, 2, "none is under way")
	c.ctl("ca", "rotate").must(t, 0, "is still believed", "ca rotate --finish")
	with := func(context string, args ...string) result {
		t.Helper()
		return runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: append([]string{"--context", context}, args...), dir: c.dir}, "")
	}
	with(old, "status").wants(t, 0)
	with(old, "ca", "rotate", "--finish").wants(t, 2, "your own context", "admin.yaml")
	third := launch(t, command{name: "n3", program: programs.pyserve, args: c.nodeArgs("n3", filepath.Join(t.TempDir(), "n3"), oldToken)})
	c.connected("n3")
	c.control.stop(t) // everything of it is on disk
	c.restartControl()
	c.converged()
	eventually(t, "every node has renewed, and the rotation is finished", func() string {
		return c.ctl("ca", "rotate", "--finish").complaint(0, []string{"issues certificates"})
	})
	with(old, "status").wants(t, 2, "is not of the cluster")
	c.mustApply(route("/", newBackend(t, "b2").port))
	c.control.stop(t)
	c.restartControl()
	c.node("n1").stop(t)
	c.start(c.node("n1"))
	c.converged()
	pyserve(t, nil, c.nodeArgs("n4", filepath.Join(t.TempDir(), "n4"), oldToken)...).wantsOneLine(t, "its authority was replaced since the token was made")
	fourth := launch(t, command{name: "n4", program: programs.pyserve, args: c.nodeArgs("n4", filepath.Join(t.TempDir(), "n4"), c.joinToken())})
	c.connected("n4")
	l.finish(t)
	third.stop(t)
	fourth.stop(t)
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestIdentityAmongThreeControls: whichever control is asked, a token for one lets in one, a revoked node is cut off where it
// is connected, the trail is one, and a rotation of the authority takes every control along.
func TestIdentityAmongThreeControls(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c1 := c.control
	c2, c3 := c.addControl("c2", c1), c.addControl("c3", c1)
	c.controlsShow("c2", "c3", "control")
	at := func(d *daemon, args ...string) result {
		t.Helper()
		return c.ctl(append([]string{"--control", d.listen}, args...)...)
	}
	token := c.write("one-token", at(c2, "token", "create", "--uses", "1").must(t, 0).stdout)
	args := func(name string, control *daemon, tokenFile string) []string {
		return []string{"node", "--name", name, "--data-dir", filepath.Join(c.dir, name), "--control", control.listen, "--token-file", tokenFile,
			"--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--gossip", "127.0.0.1:0"}
	}
	n1 := launch(t, command{name: "n1", program: programs.pyserve, args: args("n1", c3, token)})
	c.connected("n1")
	pyserve(t, nil, args("n2", c2, token)...).wantsOneLine(t, "refuses", "used up")
	n2 := launch(t, command{name: "n2", program: programs.pyserve, args: args("n2", c2, c.joinToken())})
	c.connected("n2")

	oldToken := c.write("old-token", read(t, c.joinToken()))
	at(c2, "ca", "rotate").must(t, 0, "is still believed")
	c3.stop(t)
	eventually(t, "c3 is away", func() string {
		r := c.ctl("ca", "rotate", "--finish")
		if r.code == 2 && strings.Contains(r.stderr, "c3") {
			return ""
		}
		if r.code == 0 {
			t.Fatal("finished while a control was away")
		}
		return r.stderr
	})
	c.start(c3)
	c.controlsShow("c2", "c3", "control")
	c.connected("n1")
	eventually(t, "the rotation ends", func() string {
		if r := c.ctl("ca", "rotate", "--finish"); r.code != 0 {
			return r.stderr
		}
		return ""
	})
	for _, d := range []*daemon{c1, c2, c3} {
		d.stop(t)
		c.start(d)
		c.controlsShow("c2", "c3", "control")
		at(d, "ca", "status").must(t, 0, "issues certificates")
	}
	c4 := c.addControl("c4", c2)
	c.controlsShow("c2", "c3", "c4", "control")
	pyserve(t, nil, args("n3", c2, oldToken)...).wantsOneLine(t, "its authority was replaced since the token was made")
	c.connected("n1")
	c.connected("n2")
	at(c4, "node", "revoke", "n1").must(t, 0, "node n1 revoked")
	n1.logs(t, "the node's registration was revoked")
	for _, d := range []*daemon{c1, c2, c3, c4} {
		r := at(d, "audit").must(t, 0, "RotateAuthority", "FinishRotation", "RevokeNode", "Enroll", "is whole")
		if strings.Contains(r.stdout, "control (control)  RevokeNode") {
			t.Errorf("a control stands for who asked it:\n%s", r.stdout)
		}
	}
	n1.stop(t)
	n2.stop(t)
}
