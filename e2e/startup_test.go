package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pyserve runs a daemon that is expected to give up by itself.
func pyserve(t *testing.T, env []string, args ...string) result {
	t.Helper()
	return runToEnd(t, command{name: "pyserve", program: programs.pyserve, args: args, env: env}, "")
}

// TestPortsInUse names the flag and the address in one line, before anything is touched.
func TestPortsInUse(t *testing.T) {
	t.Parallel()
	taken, _ := hold(t)
	for _, kind := range []string{"control", "node"} {
		for _, flag := range []string{"listen", "admin", "gossip"} {
			t.Run(kind+" --"+flag, func(t *testing.T) {
				args := []string{kind, "--name", "x", "--data-dir", filepath.Join(t.TempDir(), "data")}
				for _, other := range []string{"listen", "admin", "gossip"} {
					if other != flag {
						args = append(args, "--"+other, "127.0.0.1:0")
					}
				}
				pyserve(t, nil, append(args, "--"+flag, taken)...).wantsOneLine(t, "--"+flag, taken, "address already in use")
			})
		}
	}
	t.Run("gossip's UDP port alone", func(t *testing.T) {
		packets, err := net.ListenPacket("udp", local(freePort(t)))
		if err != nil {
			t.Fatal(err)
		}
		defer packets.Close()
		address := packets.LocalAddr().String()
		pyserve(t, nil, "control", "--name", "x", "--data-dir", filepath.Join(t.TempDir(), "data"), "--listen", "127.0.0.1:0",
			"--admin", "127.0.0.1:0", "--gossip", address).wantsOneLine(t, "--gossip", address, "address already in use")
	})
	t.Run("up", func(t *testing.T) {
		dir := t.TempDir()
		r := runToEnd(t, command{name: "up", program: programs.pyserve, dir: dir, args: []string{"up", "--port", fmt.Sprint(port(taken))}}, "")
		r.wantsOneLine(t, "address already in use")
		if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
			t.Error("a data directory is left behind")
		}
	})
}

// TestDataDirectories are each for one process, and have to be writable.
func TestDataDirectories(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	n1 := c.node("n1")
	anywhere := []string{"--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--gossip", "127.0.0.1:0"}
	control := func(dir string) result {
		return pyserve(t, nil, append([]string{"control", "--name", "x", "--data-dir", dir}, anywhere...)...)
	}
	node := func(name, dir string) result {
		return pyserve(t, nil, append([]string{"node", "--name", name, "--data-dir", dir, "--control", c.control.listen,
			"--token-file", c.joinToken()}, anywhere...)...)
	}
	control(c.control.dataDir).wantsOneLine(t, c.control.dataDir, "in use by another process")
	node("n1", n1.dataDir).wantsOneLine(t, n1.dataDir, "in use by another process")

	file := c.write("file", "no directory")
	control(filepath.Join(file, "data")).wantsOneLine(t, "--data-dir", file, "not a directory")
	node("n2", filepath.Join(file, "data")).wantsOneLine(t, "--data-dir", file, "not a directory")
	control(file).wantsOneLine(t, file, "not a directory")

	t.Run("that are not writable", func(t *testing.T) {
		if os.Geteuid() == 0 {
			t.Skip("root may write anywhere")
		}
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		control(dir).wantsOneLine(t, dir, "permission denied")
		node("n2", dir).wantsOneLine(t, dir, "permission denied")
	})
	t.Run("of another node", func(t *testing.T) {
		n1.stop(t)
		node("n2", n1.dataDir).wantsOneLine(t, n1.dataDir, `that of node "n1"`)
	})
	// None of these have disturbed the control.
	c.ctl("status").wants(t, 1)
}

// TestNodesThatAreNotLetIn are told why, in one sentence each.
func TestNodesThatAreNotLetIn(t *testing.T) {
	t.Parallel()
	c, other := newCluster(t, "n1"), newCluster(t)
	good, err := os.ReadFile(c.joinToken())
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Split(strings.TrimSpace(string(good)), ".")
	// The same shape and the same cluster, another secret.
	forged := strings.Join([]string{fields[0], fields[1], strings.Repeat("A", len(fields[2])), fields[3]}, ".")

	for _, test := range []struct {
		name, tokenFile string
		env             []string
		want            []string
	}{
		{"no token", "", nil, []string{"not enrolled yet", "--token-file"}},
		{"a file that does not exist", filepath.Join(c.dir, "nowhere"), nil, []string{"--token-file", "nowhere", "does not exist"}},
		{"an empty file", c.write("empty", ""), nil, []string{"--token-file", "holds no token"}},
		{"no token at all", c.write("nonsense", "hello\n"), nil, []string{"the join token is not one"}},
		{"a wrong token", c.write("forged", forged+"\n"), nil, []string{"refuses", "not one of this cluster"}},
		{"half a token", c.write("half", string(good[:len(good)/2])), nil, []string{"token"}},
		{"the token of another cluster", other.joinToken(), nil, []string{"belongs to another cluster"}},
		{"a control token", c.controlToken(), nil, []string{"control token", "join-token"}},
		{"a wrong token in the environment", "", []string{"PYSERVE_JOIN_TOKEN=" + forged}, []string{"not one of this cluster"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := []string{"node", "--name", "n2", "--data-dir", filepath.Join(t.TempDir(), "n2"), "--control", c.control.listen,
				"--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--gossip", "127.0.0.1:0"}
			if test.tokenFile != "" {
				args = append(args, "--token-file", test.tokenFile)
			}
			r := pyserve(t, test.env, args...)
			r.wantsOneLine(t, test.want...)
			if strings.Contains(r.stderr, fields[2]) || strings.Contains(r.stderr, forged) {
				t.Error("the token is printed")
			}
		})
	}
	t.Run("a name that is taken", func(t *testing.T) {
		pyserve(t, nil, "node", "--name", "n1", "--data-dir", filepath.Join(t.TempDir(), "n1"), "--control", c.control.listen,
			"--token-file", c.joinToken(), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--gossip", "127.0.0.1:0").
			wantsOneLine(t, `"n1"`, "taken by a node that is connected")
	})
	t.Run("names that are none", func(t *testing.T) {
		for _, name := range []string{"", "../n1", "a b", strings.Repeat("x", 200)} {
			pyserve(t, nil, "node", "--name", name, "--data-dir", filepath.Join(t.TempDir(), "n"), "--control", c.control.listen,
				"--token-file", c.joinToken(), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--gossip", "127.0.0.1:0").
				wantsOneLine(t, "name")
		}
	})
	if s := c.status(); len(s.Nodes) != 1 || s.row("n1").State != "joining" {
		t.Errorf("after all these the status is %+v", s)
	}
	// An operator of one cluster has no business in the other.
	runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: []string{
		"--context", other.admin(), "--control", c.control.listen, "status",
	}}, "").wants(t, 2, "is not of the cluster")
}

// TestUsageErrors of the daemons are exit code 2 and one line.
func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"nonsense"}, {"node", "--nonsense"}, {"control", "extra"}, {"node", "--log-level", "loud"}, {"control", "--log-format", "xml"},
		{"node", "--control", "no-port", "--name", "x"}, {"up", "--nodes", "0"}, {"up", "nowhere.yaml"}, {"node", "--config", "nowhere.yaml", "--admin", "127.0.0.1:0"},
		{"control", "--name", "x", "--data-dir", filepath.Join(t.TempDir(), "d"), "--listen", "nonsense", "--admin", "127.0.0.1:0", "--gossip", "127.0.0.1:0"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) { pyserve(t, nil, args...).wantsOneLine(t) })
	}
}

// TestSecretsAreForTheOwnerAlone checks the files that hold keys and tokens, and the directories they lie in.
func TestSecretsAreForTheOwnerAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	pair := certificate(t)
	c.write("cert.pem", string(pair.ChainPEM))
	c.write("key.pem", string(pair.KeyPEM))
	c.mustApply(route("/", newBackend(t, "b").port) + "ssl: {enabled: true, cert_file: cert.pem, key_file: key.pem}\n")
	for _, file := range []string{c.joinToken(), c.controlToken(), c.admin(), filepath.Join(c.node("n1").dataDir, "identity.json")} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want mode 0600", file, info, err)
		}
	}
	for _, file := range []string{c.joinToken(), c.controlToken()} {
		if text, err := os.ReadFile(file); err != nil || strings.Count(string(text), "\n") != 1 || !strings.HasSuffix(string(text), "\n") {
			t.Errorf("%s is not one line: %v", file, err)
		}
	}
	for _, dir := range []string{c.control.dataDir, c.node("n1").dataDir} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v, want a directory for the owner alone", dir, info, err)
		}
		// Whatever holds a private key, the store and the bundles included, is no business of others.
		err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if strings.Contains(string(data), "PRIVATE KEY") && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s holds a private key and has mode %v", path, info.Mode())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if err := os.Chmod(c.admin(), 0o644); err != nil {
		t.Fatal(err)
	}
	c.ctl("status").wants(t, 0, "warning:", "chmod 600")
}

// TestTheEnvironmentSetsFlags, and the command line beats it.
func TestTheEnvironmentSetsFlags(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	token, err := os.ReadFile(c.joinToken())
	if err != nil {
		t.Fatal(err)
	}
	n := c.addNode("n1")
	n.process = launch(t, command{name: "n1", program: programs.pyserve, dir: c.dir, args: []string{"node", "--name", "n1"}, env: []string{
		"PYSERVE_NAME=overridden", "PYSERVE_CONTROL=127.0.0.1:1," + c.control.listen, "PYSERVE_DATA_DIR=" + n.dataDir, "PYSERVE_LISTEN=" + n.listen,
		"PYSERVE_ADMIN=" + n.admin, "PYSERVE_GOSSIP=" + n.gossip, "PYSERVE_JOIN_TOKEN=" + strings.TrimSpace(string(token)), "PYSERVE_LOG_FORMAT=json",
	}})
	c.connected("n1")
	c.mustApply(route("/", newBackend(t, "b").port))
	get(t, newClient(t, nil, false), "http://"+n.listen+"/x").seen(t)
	n.logs(t, `{"time":`)
	if s := c.status(); len(s.Nodes) != 1 || s.row("n1").Listen != n.listen {
		t.Errorf("%+v", s)
	}
	pyserve(t, []string{"PYSERVE_LOG_LEVEL=loud"}, "control").wantsOneLine(t, "--log-level")
	pyserve(t, []string{"PYSERVE_NODES=many"}, "up").wantsOneLine(t, "PYSERVE_NODES")
	runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: []string{"status"}, env: []string{"PYSERVE_CONTEXT=" + c.admin()}}, "").
		wants(t, 0, "converged")
	// Without a flag or a variable: admin.yaml in the home directory, then below the working directory.
	runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: []string{"status"}}, "").wants(t, 2, "no context")
	beside := t.TempDir()
	if err := os.MkdirAll(filepath.Join(beside, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(c.control.dataDir, filepath.Join(beside, "data", "control")); err != nil {
		t.Fatal(err)
	}
	runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: []string{"status"}, dir: beside}, "").wants(t, 0, "converged")
}

// TestAdminAddresses answer for health, readiness and metrics, and control shows a page.
func TestAdminAddresses(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	client := newClient(t, nil, false)
	b := newBackend(t, "b")
	c.mustApply(route("/api", b.port))
	n := c.node("n1")
	get(t, client, "http://"+n.listen+"/api/x").seen(t)
	for _, admin := range []string{c.control.admin, n.admin} {
		for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
			if r := get(t, client, "http://"+admin+path); r.status != http.StatusOK {
				t.Errorf("%s%s: %d", admin, path, r.status)
			}
		}
		if r := get(t, client, "http://"+admin+"/nonsense"); r.status != http.StatusNotFound {
			t.Errorf("%s/nonsense: %d", admin, r.status)
		}
	}
	if got := metric(t, n.admin, "pyserve_revision"); got != 1 {
		t.Errorf("the node's metrics say revision %v", got)
	}
	if r := get(t, client, "http://"+n.admin+"/metrics"); !strings.Contains(r.body, `route="/api"`) || !strings.Contains(r.body, "go_goroutines") {
		t.Errorf("the node's metrics:\n%s", r.body)
	}
	page := get(t, client, "http://"+c.control.admin+"/")
	if !strings.HasPrefix(page.header.Get("Content-Type"), "text/html") {
		t.Errorf("the dashboard's Content-Type is %q", page.header.Get("Content-Type"))
	}
	for _, want := range []string{"n1", "/api", b.address(), n.listen} {
		if !strings.Contains(page.body, want) {
			t.Errorf("the dashboard does not show %s", want)
		}
	}
}
