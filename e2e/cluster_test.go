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

// daemon is a control or a node with its addresses, which stay the same over restarts.
type daemon struct {
	*process
	name, kind            string
	dataDir               string
	listen, admin, gossip string
	raft                  string   // of a control
	flags                 []string // beside those of the addresses
	env                   []string
}

// cluster is one control and its nodes.
type cluster struct {
	t       *testing.T
	dir     string // holds data directories and documents
	control *daemon
	nodes   []*daemon
	applied int // documents written so far
}

// newCluster starts a control and named nodes, and waits until all are connected. Every node has a --listen.
func newCluster(t *testing.T, names ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir()}
	c.begin(names...)
	return c
}

// begin is newCluster for a directory that is prepared already.
func (c *cluster) begin(names ...string) {
	c.t.Helper()
	c.t.Cleanup(c.checkSecrets)
	c.startControl()
	for _, name := range names {
		c.addNode(name)
	}
	for _, n := range c.nodes {
		c.start(n)
	}
	for _, n := range c.nodes {
		c.connected(n.name)
	}
}

// startControl starts the control on ports of its own, and on others where somebody was quicker.
func (c *cluster) startControl() {
	c.t.Helper()
	for attempt := 0; ; attempt++ {
		c.control = &daemon{
			name: "control", kind: "control", dataDir: filepath.Join(c.dir, "control"),
			listen: local(freePort(c.t)), admin: local(freePort(c.t)), gossip: local(freePort(c.t)), raft: local(freePort(c.t)),
		}
		c.start(c.control)
		if c.up(c.control) {
			return
		}
		if attempt == 3 || !strings.Contains(c.control.stderr.String(), "address already in use") {
			c.t.Fatalf("control did not start:\n%s", c.control.stderr.String())
		}
	}
}

// addNode makes a node without starting it.
func (c *cluster) addNode(name string, flags ...string) *daemon {
	n := &daemon{
		name: name, kind: "node", dataDir: filepath.Join(c.dir, name),
		listen: local(freePort(c.t)), admin: local(freePort(c.t)), gossip: local(freePort(c.t)), flags: flags,
	}
	c.nodes = append(c.nodes, n)
	return n
}

// arguments are the daemon's flags.
func (c *cluster) arguments(d *daemon) []string {
	args := []string{d.kind, "--name", d.name, "--data-dir", d.dataDir, "--admin", d.admin, "--gossip", d.gossip, "--log-level", "debug"}
	if d.listen != "" {
		args = append(args, "--listen", d.listen)
	}
	if d.raft != "" {
		args = append(args, "--raft", d.raft)
	}
	if d.kind == "node" {
		args = append(args, "--control", c.control.listen, "--token-file", c.joinToken())
	}
	return append(args, d.flags...)
}

// start starts a daemon, or starts it again, and does not wait for anything.
func (c *cluster) start(d *daemon) {
	c.t.Helper()
	d.process = launch(c.t, command{name: d.name, program: programs.pyserve, args: c.arguments(d), dir: c.dir, env: d.env})
}

// up waits until the daemon's admin address says that it lives, or the daemon has ended.
func (c *cluster) up(d *daemon) bool {
	c.t.Helper()
	path := "/healthz"
	if d.kind == "control" {
		path = "/readyz" // then there are tokens
	}
	eventually(c.t, d.name+" starts", func() string {
		if d.hasEnded() || probe(d.admin, path) == http.StatusOK {
			return ""
		}
		return "no answer at " + d.admin + path
	})
	return !d.hasEnded()
}

// restartControl starts the control again on its addresses and data directory.
func (c *cluster) restartControl() {
	c.t.Helper()
	c.start(c.control)
	if !c.up(c.control) {
		c.t.Fatalf("control did not start again:\n%s", c.control.stderr.String())
	}
}

func (c *cluster) joinToken() string    { return filepath.Join(c.dir, "control", "join-token") }
func (c *cluster) controlToken() string { return filepath.Join(c.dir, "control", "control-token") }
func (c *cluster) admin() string        { return filepath.Join(c.dir, "control", "admin.yaml") }

func (c *cluster) node(name string) *daemon {
	i := slices.IndexFunc(c.nodes, func(n *daemon) bool { return n.name == name })
	return c.nodes[i]
}

// listens gives where the nodes take clients.
func (c *cluster) listens() []string {
	var out []string
	for _, n := range c.nodes {
		out = append(out, n.listen)
	}
	return out
}

// ctl runs pyservectl with this cluster's context.
func (c *cluster) ctl(args ...string) result {
	c.t.Helper()
	return c.ctlReading("", args...)
}

func (c *cluster) ctlReading(stdin string, args ...string) result {
	c.t.Helper()
	return runToEnd(c.t, command{
		name: "pyservectl", program: programs.pyservectl, args: append([]string{"--context", c.admin()}, args...), dir: c.dir,
	}, stdin)
}

// write keeps a document, or a file that it names, and gives its path.
func (c *cluster) write(name, content string) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// apply applies a document.
func (c *cluster) apply(document string, flags ...string) result {
	c.t.Helper()
	c.applied++
	file := c.write(fmt.Sprintf("config-%d.yaml", c.applied), document)
	return c.ctl(append([]string{"apply", file}, flags...)...)
}

// mustApply applies a document that every node has to serve.
func (c *cluster) mustApply(document string) result {
	c.t.Helper()
	return c.apply(document).must(c.t, 0)
}

// status is what `pyservectl status -o json` says.
type status struct {
	Revision  uint64 `json:"revision"`
	Digest    string `json:"digest"`
	Converged bool   `json:"converged"`
	Nodes     []row  `json:"nodes"`
}

type row struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Revision uint64 `json:"revision"`
	Digest   string `json:"digest"`
	Listen   string `json:"listen"`
	Gossip   string `json:"gossip"`
	Note     string `json:"note"`
}

func (s status) row(name string) row {
	for _, r := range s.Nodes {
		if r.Name == name {
			return r
		}
	}
	return row{}
}

// status asks for the status; its exit code has to agree with what it says.
func (c *cluster) status() status {
	c.t.Helper()
	r := c.ctl("status", "-o", "json")
	var s status
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		c.t.Fatalf("status -o json: %v\n%s%s", err, r.stdout, r.stderr)
	}
	want := 1
	if s.Converged {
		want = 0
	}
	r.wants(c.t, want)
	return s
}

// statusShows polls until the status is as check wants it, and gives it.
func (c *cluster) statusShows(what string, check func(status) bool) status {
	c.t.Helper()
	var s status
	eventually(c.t, "status shows "+what, func() string {
		if s = c.status(); check(s) {
			return ""
		}
		return fmt.Sprintf("%+v", s)
	})
	return s
}

// connected waits until a node has a stream.
func (c *cluster) connected(name string) {
	c.t.Helper()
	c.statusShows(name+" connected", func(s status) bool {
		state := s.row(name).State
		return state != "" && state != "disconnected" && state != "left"
	})
}

// converged waits until every node serves the active revision.
func (c *cluster) converged() status {
	c.t.Helper()
	return c.statusShows("convergence", func(s status) bool { return s.Converged })
}

// ready waits until a node's /readyz says 200.
func (c *cluster) ready(d *daemon) {
	c.t.Helper()
	eventually(c.t, d.name+" is ready", func() string {
		if code := probe(d.admin, "/readyz"); code != http.StatusOK {
			return fmt.Sprintf("/readyz says %d", code)
		}
		return ""
	})
}

type backendRow struct {
	Route   string `json:"route"`
	Address string `json:"address"`
	State   string `json:"state"`
	Reason  string `json:"reason"`
	Since   string `json:"since"`
	// FailOpen: it is unhealthy and used all the same.
	FailOpen bool `json:"fail_open"`
}

// backends is what `pyservectl get backends -o json` says.
func (c *cluster) backends() []backendRow {
	c.t.Helper()
	r := c.ctl("get", "backends", "-o", "json").must(c.t, 0)
	var list struct {
		Backends []backendRow `json:"backends"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		c.t.Fatalf("get backends -o json: %v\n%s", err, r.stdout)
	}
	return list.Backends
}

// backendShows polls until a backend has the state, and gives its row.
func (c *cluster) backendShows(address, state string) backendRow {
	c.t.Helper()
	var found backendRow
	eventually(c.t, fmt.Sprintf("get backends shows %s %s", address, state), func() string {
		rows := c.backends()
		for _, b := range rows {
			if b.Address == address && b.State == state {
				found = b
				return ""
			}
		}
		return fmt.Sprintf("%+v", rows)
	})
	return found
}

// checkSecrets runs after every test: nothing that a process of the cluster wrote holds a token or a key.
func (c *cluster) checkSecrets() {
	secrets := []string{"PRIVATE KEY"}
	for _, file := range []string{c.joinToken(), c.controlToken()} {
		token, err := os.ReadFile(file)
		if err != nil {
			continue // it never came to be
		}
		if fields := strings.Split(strings.TrimSpace(string(token)), "."); len(fields) == 4 {
			secrets = append(secrets, fields[2])
		}
	}
	for _, d := range append(slices.Clone(c.nodes), c.control) {
		if d == nil || d.process == nil {
			continue
		}
		for _, secret := range secrets {
			if strings.Contains(d.stdout.String()+d.stderr.String(), secret) {
				c.t.Errorf("%s printed a secret", d.name)
			}
		}
	}
}

// probe gives the status of an admin address; 0: no answer.
func probe(address, path string) int {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + path)
	if err != nil {
		return 0
	}
	response.Body.Close()
	return response.StatusCode
}
