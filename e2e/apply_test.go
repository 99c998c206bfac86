package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// route is a document with one route.
func route(path string, port int) string {
	return fmt.Sprintf("server:\n  host: 127.0.0.1\n  reverse_proxy:\n    - {path: %s, host: 127.0.0.1, port: %d}\n", path, port)
}

// decode reads the JSON of a command that succeeded.
func decode(t *testing.T, r result) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil {
		t.Fatalf("not JSON: %v\n%s%s", err, r.stdout, r.stderr)
	}
	return out
}

// wantKeys checks that an object of the contract has its keys.
func wantKeys(t *testing.T, what string, object any, keys ...string) {
	t.Helper()
	m, ok := object.(map[string]any)
	if !ok {
		t.Errorf("%s is no object: %v", what, object)
		return
	}
	for _, key := range keys {
		if _, ok := m[key]; !ok {
			t.Errorf("%s has no %q: %v", what, key, m)
		}
	}
}

func first(t *testing.T, list any) any {
	t.Helper()
	items, ok := list.([]any)
	if !ok || len(items) == 0 {
		t.Fatalf("no items: %v", list)
	}
	return items[0]
}

// TestOperatorsCommands goes through what an operator does with a cluster, from before the first apply.
func TestOperatorsCommands(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	client := newClient(t, nil, false)

	t.Run("before the first apply", func(t *testing.T) {
		c.ctl("status").wants(t, 1, "nothing was applied yet", "joining")
		c.ctl("get", "config").wants(t, 2, "nothing was applied yet")
		c.ctl("get", "routes", "-o", "json").wants(t, 0, `"routes": []`)
		for _, n := range c.nodes {
			if code := probe(n.admin, "/readyz"); code != http.StatusServiceUnavailable {
				t.Errorf("%s has nothing to serve, and /readyz says %d", n.name, code)
			}
		}
	})

	one := c.write("one.yaml", route("/one", b.port))
	two := c.write("two.yaml", route("/two", b.port))

	t.Run("diff tells what would change", func(t *testing.T) {
		c.ctl("diff", one).wants(t, 1, "+ route /one created")
	})
	t.Run("a dry run changes nothing", func(t *testing.T) {
		c.ctl("apply", "--dry-run", one).wants(t, 0, "dry run: 2 nodes could serve it")
		if s := c.status(); s.Revision != 0 {
			t.Errorf("the revision is %d", s.Revision)
		}
	})
	t.Run("apply brings it to all", func(t *testing.T) {
		c.ctl("apply", "--message", "the first", one).must(t, 0, "+ route /one created", "applied: revision 1")
		for _, n := range c.nodes {
			get(t, client, "http://"+n.listen+"/one/x").seen(t)
		}
		c.ctl("status").wants(t, 0, "converged", "n1", "n2", "NAME", "STATE", "REVISION", "LISTEN", "GOSSIP", "AGE", "NOTE")
	})
	t.Run("the same again is unchanged", func(t *testing.T) {
		c.ctl("apply", one).wants(t, 0, "unchanged: revision 1")
		c.ctl("diff", one).wants(t, 0, "no difference from revision 1")
		if s := c.status(); s.Revision != 1 || !s.Converged {
			t.Errorf("%+v", s)
		}
	})
	t.Run("an apply from standard input replaces everything", func(t *testing.T) {
		text, err := os.ReadFile(two)
		if err != nil {
			t.Fatal(err)
		}
		c.ctlReading(string(text), "apply", "-", "--expect-revision", "1").must(t, 0, "- route /one removed", "+ route /two created", "applied: revision 2")
		for _, n := range c.nodes {
			if r := get(t, client, "http://"+n.listen+"/one/x"); r.status != http.StatusNotFound {
				t.Errorf("%s: a removed route answers %d", n.name, r.status)
			}
			get(t, client, "http://"+n.listen+"/two/x").seen(t)
		}
	})
	t.Run("an apply that expected another revision is refused", func(t *testing.T) {
		c.ctl("apply", one, "--expect-revision", "1").wants(t, 1, "revision 2 is active, not 1")
	})
	t.Run("a change is told by its fields", func(t *testing.T) {
		c.ctl("diff", c.write("retargeted.yaml", route("/two", newBackend(t, "other").port))).wants(t, 1, "~ ", "/two changed")
	})
	t.Run("what a later version brings is said to be missing", func(t *testing.T) {
		c.ctl("apply", one, "--strategy", "canary").wants(t, 2, "not supported yet")
	})
	t.Run("JSON has the keys of the contract", func(t *testing.T) { checkJSON(t, c) })
	t.Run("tables and names", func(t *testing.T) {
		c.ctl("get", "routes").wants(t, 0, "PATH", "/two", b.address())
		c.ctl("get", "backends").wants(t, 0, "ROUTE", "STATE", b.address())
		c.ctl("get", "nodes").wants(t, 0, "n1", "n2", "ready")
		c.ctl("get", "controls").wants(t, 0, "control", c.control.listen)
		c.ctl("get", "nodes", "-o", "wide").wants(t, 0, "DIGEST", "VERSION")
		if r := c.ctl("get", "nodes", "-o", "name").wants(t, 0); r.stdout != "n1\nn2\n" {
			t.Errorf("names: %q", r.stdout)
		}
		if r := c.ctl("get", "config").wants(t, 0); r.stdout != route("/two", b.port) {
			t.Errorf("get config gives another document than was applied:\n%s", r.stdout)
		}
		c.ctl("status", "-o", "yaml").wants(t, 0, "revision: 2", "converged: true")
	})
	t.Run("status -w follows until it is interrupted", func(t *testing.T) { checkWatch(t, c, one) })
	t.Run("usage errors are exit code 2", func(t *testing.T) {
		for _, args := range [][]string{
			{"apply"}, {"apply", "a", "b"}, {"nonsense"}, {"status", "--nonsense"}, {"status", "-o", "xml"}, {"get"}, {"get", "nonsense"},
			{"status", "--timeout", "0s"},
		} {
			r := c.ctl(args...).wants(t, 2)
			if r.stdout != "" || strings.Count(strings.TrimSpace(r.stderr), "\n") > 2 {
				t.Errorf("%v: stdout %q, stderr %q", args, r.stdout, r.stderr)
			}
		}
	})
	t.Run("no control is exit code 2", func(t *testing.T) {
		nobody := local(freePort(t))
		c.ctl("--control", nobody, "status").wants(t, 2, "no control answers at "+nobody, "any node shows what it knows")
		c.ctl("--context", filepath.Join(c.dir, "missing.yaml"), "status").wants(t, 2, "missing.yaml")
		c.ctl("--control", nobody+","+c.control.listen, "status").wants(t, 0, "converged")
	})
	t.Run("version and completion", func(t *testing.T) {
		c.ctl("version").wants(t, 0, "pyservectl")
		c.ctl("completion", "bash").wants(t, 0, "pyservectl")
		c.ctl("--help").wants(t, 0, "Examples:", "apply")
		runToEnd(t, command{name: "pyserve", program: programs.pyserve, args: []string{"version"}}, "").wants(t, 0, "pyserve ")
		runToEnd(t, command{name: "pyserve", program: programs.pyserve, args: []string{"completion", "zsh"}}, "").wants(t, 0, "pyserve")
		runToEnd(t, command{name: "pyserve", program: programs.pyserve, args: []string{"node", "--help"}}, "").wants(t, 0, "Examples:", "--token-file")
	})
}

func checkJSON(t *testing.T, c *cluster) {
	whole := decode(t, c.ctl("status", "-o", "json").wants(t, 0))
	wantKeys(t, "status", whole, "revision", "digest", "converged", "nodes")
	wantKeys(t, "a node", first(t, whole["nodes"]), "name", "state", "revision", "digest", "listen", "gossip", "note")
	nodes := decode(t, c.ctl("get", "nodes", "-o", "json").wants(t, 0))
	wantKeys(t, "a node", first(t, nodes["nodes"]), "name", "state", "revision", "digest", "listen", "gossip", "note")
	backends := decode(t, c.ctl("get", "backends", "-o", "json").wants(t, 0))
	wantKeys(t, "a backend", first(t, backends["backends"]), "route", "address", "state", "reason", "since")
	routes := decode(t, c.ctl("get", "routes", "-o", "json").wants(t, 0))
	wantKeys(t, "a route", first(t, routes["routes"]), "name", "path", "backends")
	controls := decode(t, c.ctl("get", "controls", "-o", "json").wants(t, 0))
	wantKeys(t, "a control", first(t, controls["controls"]), "name", "address")
	wantKeys(t, "the config", decode(t, c.ctl("get", "config", "-o", "json").wants(t, 0)), "revision", "digest", "document")
	// Gossip's view takes its time.
	c.statusShows("every node alive in gossip", func(s status) bool {
		return !slices.ContainsFunc(s.Nodes, func(r row) bool { return r.Gossip != "alive" })
	})
}

func checkWatch(t *testing.T, c *cluster, document string) {
	p := launch(t, command{name: "status -w", program: programs.pyservectl, args: []string{"--context", c.admin(), "status", "-w"}, dir: c.dir})
	// The last status decides the exit code, and it comes a moment after apply has returned.
	see := func(revision string) {
		t.Helper()
		eventually(t, "status -w shows that every node serves "+revision, func() string {
			_, last, found := strings.Cut(p.stdout.String(), revision+" (")
			if !found || !strings.Contains(last, ": converged, ") {
				return p.stdout.String()
			}
			return ""
		})
	}
	see("revision 2")
	c.ctl("apply", document).wants(t, 0, "applied: revision 3")
	see("revision 3")
	p.stop(t)
}

// TestARefusingNodeStopsAnApply has one node that takes its port from the document, where somebody else has that port.
func TestARefusingNodeStopsAnApply(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	n2 := c.addNode("n2")
	n2.listen = "" // from the document
	c.start(n2)
	c.connected("n2")
	b := newBackend(t, "b")
	client := newClient(t, nil, false)
	document := func(port int, path string) string {
		return fmt.Sprintf("server:\n  host: 127.0.0.1\n  port: %d\n  reverse_proxy:\n    - {path: %s, host: 127.0.0.1, port: %d}\n", port, path, b.port)
	}
	port := freePort(t)
	c.mustApply(document(port, "/old"))

	taken, release := hold(t)
	var takenPort int
	fmt.Sscanf(taken, "127.0.0.1:%d", &takenPort)
	out := decode(t, c.apply(document(takenPort, "/new"), "-o", "json").wants(t, 1))
	if out["outcome"] != "refused" || !strings.Contains(fmt.Sprint(out["reason"]), "n2") || out["revision"] != 1.0 {
		t.Errorf("apply -o json: %v", out)
	}
	r := c.apply(document(takenPort, "/new")).wants(t, 1, "node n2: refused", "server.port", taken, "address already in use", "refused, nothing was changed", "revision 1")
	if strings.Contains(r.stdout, "n1: serving") {
		t.Errorf("n1 went ahead:\n%s", r.stdout)
	}
	s := c.status()
	if s.Revision != 1 || s.row("n1").Revision != 1 || s.row("n2").Revision != 1 || !s.Converged {
		t.Errorf("the status after a refused apply is %+v", s)
	}
	if note := s.row("n2").Note; !strings.Contains(note, "refused revision 2") || !strings.Contains(note, "address already in use") {
		t.Errorf("the note on n2 is %q", note)
	}
	for _, address := range []string{c.nodes[0].listen, local(port)} {
		get(t, client, "http://"+address+"/old/x").seen(t)
		if r := get(t, client, "http://"+address+"/new/x"); r.status != http.StatusNotFound {
			t.Errorf("%s serves some of what was refused: %d", address, r.status)
		}
	}

	release()
	c.apply(document(takenPort, "/new")).must(t, 0, "applied: revision 2")
	get(t, client, "http://"+taken+"/new/x").seen(t)
	s = c.status()
	if s.row("n2").Listen != taken || s.row("n2").Note != "" {
		t.Errorf("n2 after it moved: %+v", s.row("n2"))
	}
	eventually(t, "the old port is let go", func() string {
		if !isFree(port) {
			return "still taken"
		}
		return ""
	})
}

// TestBadFilesAreRefused tells every problem, and what runs is not touched.
func TestBadFilesAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	b := newBackend(t, "b")
	client := newClient(t, nil, false)
	good := route("/good", b.port)
	c.mustApply(good)
	before := c.status()
	pair, other := certificate(t), certificate(t)
	c.write("cert.pem", string(pair.ChainPEM))
	c.write("other-key.pem", string(other.KeyPEM))

	for _, test := range []struct {
		name, document string
		want           []string // after "FILE:"
	}{
		{"empty", "", []string{"1: the document is empty"}},
		{"only comments", "# nothing\n\n", []string{"the document is empty"}},
		{"binary", "\x7fELF\x02\x01\x01\x00\x00\xff\xfe", []string{"1: "}},
		{"not UTF-8", "server:\n  host: \"caf\xe9\"\n", []string{"2: "}},
		{"not YAML", "server:\n  host: [1,\n  port: }\n", []string{": "}},
		{"huge", "server:\n  host: 127.0.0.1\n" + strings.Repeat("# a comment that says little and takes some room\n", 220_000), []string{"10 MiB"}},
		{"duplicate keys", "server:\n  port: 1\n  port: 2\n", []string{"3: server: the key \"port\" stands twice in one mapping, first on line 2"}},
		{"wrong types", "server:\n  port: high\n  reverse_proxy:\n    - {path: /, port: [1]}\n    - 7\n", []string{
			"2: server.port: ", "4: server.reverse_proxy[0].port: ", "5: server.reverse_proxy[1]: ",
		}},
		{"unknown keys", "server:\n  prot: 8080\n  reverse_proxy:\n    - {paht: /api, hots: localhost, port: 1}\n", []string{
			"2: server.prot: ", "port", "4: server.reverse_proxy[0].paht: ", "path", "4: server.reverse_proxy[0].hots: ", "host",
		}},
		{"missing files", "ssl:\n  enabled: true\n  cert_file: ./nowhere.pem\n  key_file: ./nowhere-key.pem\n", []string{
			"3: ssl.cert_file: ", "4: ssl.key_file: ", "nowhere.pem",
		}},
		{"certificate and key that do not match", "ssl:\n  enabled: true\n  cert_file: ./cert.pem\n  key_file: ./other-key.pem\n", []string{
			"4: ssl.key_file: ", "is not the key of the certificate",
		}},
		{"an alias bomb", aliasBomb(), []string{"alias"}},
		{"values out of range", "server:\n  port: 70000\n  trusted_proxies: [10.0.0.0/40]\n  reverse_proxy:\n    - {path: api, port: 1}\n    - {path: /x, port: 1, health_check: {interval: 5}}\n", []string{
			"2: server.port: ", "3: server.trusted_proxies[0]: ", "5: server.reverse_proxy[0].path: ", "6: server.reverse_proxy[1].health_check.interval: ",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := c.write("bad.yaml", test.document)
			for _, command := range []string{"validate", "apply", "diff"} {
				r := c.ctl(command, file).wants(t, 1, test.want...)
				for line := range strings.Lines(r.stdout + r.stderr) {
					if !strings.HasPrefix(line, file+":") {
						t.Errorf("%s: a problem does not begin with FILE:LINE: %s", command, line)
					}
				}
				if strings.Contains(r.stdout+r.stderr, "PRIVATE KEY") {
					t.Errorf("%s shows a key", command)
				}
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		for _, path := range []string{filepath.Join(c.dir, "nowhere.yaml"), c.dir} {
			for _, command := range []string{"validate", "apply", "diff"} {
				c.ctl(command, path).wants(t, 2, "cannot read the configuration", path)
			}
		}
	})
	t.Run("problems as JSON", func(t *testing.T) {
		r := c.ctl("validate", "-o", "json", c.write("bad.yaml", "server: {prot: 1}\n")).wants(t, 1)
		out := decode(t, r)
		wantKeys(t, "validate", out, "valid", "problems")
		wantKeys(t, "a problem", first(t, out["problems"]), "line", "path", "message", "warning")
	})

	if after := c.status(); after.Revision != before.Revision || after.Digest != before.Digest || !after.Converged {
		t.Errorf("after all these the status is %+v, before it was %+v", after, before)
	}
	if r := c.ctl("get", "config").wants(t, 0); r.stdout != good {
		t.Errorf("the running document is\n%s", r.stdout)
	}
	get(t, client, "http://"+c.nodes[0].listen+"/good/x").seen(t)
}

// aliasBomb has few bytes and more values than any machine holds.
func aliasBomb() string {
	var b strings.Builder
	b.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := range 12 {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 10), ", "))
	}
	return b.String()
}

// TestValidFilesAreToldSo checks validate's good side, offline: there is no control anywhere.
func TestValidFilesAreToldSo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	validate := func(file string, want ...string) {
		t.Helper()
		runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: []string{"validate", file}, dir: dir}, "").wants(t, 0, want...)
	}
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(route("/api", 3000)+"logging: {level: INFO}\nhttp: {static_dir: ./static}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	validate(file, "is valid: 1 route, 1 backend", "logging: warning: ", "http: warning: ")
}
