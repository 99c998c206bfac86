package e2e

import (
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/pyserve/pyserve/node/certtest"
)

// up is a `pyserve up` that has said where everything is.
type up struct {
	*process
	nodes     []string // host:port
	dashboard string   // host:port
}

var (
	nodeLine      = regexp.MustCompile(`(?m)^\s*node (n\d+)\s+https?://(\S+)$`)
	dashboardLine = regexp.MustCompile(`(?m)^\s*dashboard\s+http://(\S+)/$`)
)

// startUp starts `pyserve up` in a directory and reads what it prints.
func startUp(t *testing.T, dir string, args ...string) *up {
	t.Helper()
	u := &up{process: launch(t, command{name: "up", program: programs.pyserve, dir: dir, args: append([]string{"up"}, args...)})}
	eventually(t, "up says that it is up", func() string {
		if strings.Contains(u.stdout.String(), "Ctrl-C stops it all.") {
			return ""
		}
		if u.hasEnded() {
			t.Fatalf("it has ended: %s", u.stderr.String())
		}
		return "not yet"
	})
	for _, m := range nodeLine.FindAllStringSubmatch(u.stdout.String(), -1) {
		u.nodes = append(u.nodes, m[2])
	}
	if m := dashboardLine.FindStringSubmatch(u.stdout.String()); m != nil {
		u.dashboard = m[1]
	}
	if len(u.nodes) == 0 || u.dashboard == "" {
		t.Fatalf("up prints\n%s", u.stdout.String())
	}
	return u
}

// interrupt is Ctrl-C: exit code 0, and nothing listens any more.
func (u *up) interrupt(t *testing.T) {
	t.Helper()
	u.signal(t, syscall.SIGINT)
	if code := u.wait(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if strings.Contains(u.stderr.String(), "pyserve:") {
		t.Errorf("it complains:\n%s", u.stderr.String())
	}
	for _, address := range append(u.nodes, u.dashboard) {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			t.Errorf("%s still listens", address)
		}
	}
}

// TestUpRunsAWholeCluster with its demo, and leaves nothing.
func TestUpRunsAWholeCluster(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	u := startUp(t, dir, "--port", "0")
	if len(u.nodes) != 3 {
		t.Errorf("%d nodes", len(u.nodes))
	}
	client := newClient(t, nil, false)
	for _, address := range u.nodes {
		if r := get(t, client, "http://"+address+"/api/hello"); r.status != http.StatusOK || !strings.Contains(r.body, `"/hello"`) {
			t.Errorf("%s/api/hello: %d %s", address, r.status, r.body)
		}
		if r := get(t, client, "http://"+address+"/"); r.status != http.StatusOK {
			t.Errorf("%s/: %d", address, r.status)
		}
		exchange(t, dialWebSocket(t, "ws://"+address+"/ws", nil), websocket.TextMessage, []byte("hello"))
	}
	if r := get(t, client, "http://"+u.dashboard+"/"); r.status != http.StatusOK || !strings.Contains(r.body, "n3") {
		t.Errorf("the dashboard: %d", r.status)
	}
	// The line that it prints for pyservectl works as it is, in this directory.
	runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: []string{"status"}, dir: dir}, "").wants(t, 0, "converged", "n1", "n2", "n3")
	u.interrupt(t)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("it leaves %v behind: %v", entries, err)
	}
}

// TestUpKeepsADirectoryThatWasNamed, and starts from it again.
func TestUpKeepsADirectoryThatWasNamed(t *testing.T) {
	t.Parallel()
	b := newBackend(t, "b")
	dir := t.TempDir()
	data, file := filepath.Join(dir, "kept"), filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(route("/mine", b.port)), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		u := startUp(t, dir, "--port", "0", "--nodes", "2", "--data-dir", data, file)
		for _, address := range u.nodes {
			get(t, newClient(t, nil, false), "http://"+address+"/mine/x").seen(t)
		}
		runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: []string{
			"--context", filepath.Join(data, "control", "admin.yaml"), "status",
		}, dir: dir}, "").wants(t, 0, "converged")
		u.interrupt(t)
		if _, err := os.Stat(filepath.Join(data, "control", "admin.yaml")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUpWithTLS prints URLs that work.
func TestUpWithTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	authority := certtest.New(t)
	pair := authority.Issue(t, "127.0.0.1")
	for name, content := range map[string]string{
		"cert.pem": string(pair.ChainPEM), "key.pem": string(pair.KeyPEM),
		"config.yaml": route("/", newBackend(t, "b").port) + "ssl: {enabled: true, cert_file: cert.pem, key_file: key.pem}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u := startUp(t, dir, "--port", "0", "--nodes", "1", "config.yaml")
	if url := "https://" + u.nodes[0]; !strings.Contains(u.stdout.String(), url) {
		t.Errorf("%s is not printed:\n%s", url, u.stdout.String())
	}
	get(t, newClient(t, &tls.Config{RootCAs: authority.Pool()}, true), "https://"+u.nodes[0]+"/x").seen(t)
	u.interrupt(t)
}

// TestUpTouchesNothingThatIsNotItsOwn refuses a directory that something else made, and one that another up uses.
func TestUpTouchesNothingThatIsNotItsOwn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mine := filepath.Join(dir, "data", "precious")
	if err := os.MkdirAll(filepath.Dir(mine), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mine, []byte("keep me"), 0o600); err != nil {
		t.Fatal(err)
	}
	runToEnd(t, command{name: "up", program: programs.pyserve, args: []string{"up", "--port", "0"}, dir: dir}, "").
		wantsOneLine(t, "--data-dir", "did not make")
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}

	shared := t.TempDir()
	u := startUp(t, shared, "--port", "0", "--nodes", "1")
	runToEnd(t, command{name: "up", program: programs.pyserve, args: []string{"up", "--port", "0", "--nodes", "1"}, dir: shared}, "").
		wantsOneLine(t, "in use by another process")
	if r := get(t, newClient(t, nil, false), "http://"+u.nodes[0]+"/api/x"); r.status != http.StatusOK {
		t.Errorf("the first up after the second: %d", r.status)
	}
	runToEnd(t, command{name: "pyservectl", program: programs.pyservectl, args: []string{"status"}, dir: shared}, "").wants(t, 0, "converged")
	u.interrupt(t)
}

// TestUpTellsOfABadFile before it starts anything.
func TestUpTellsOfABadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bad.yaml"), []byte("server:\n  prot: 1\n  port: high\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := runToEnd(t, command{name: "up", program: programs.pyserve, args: []string{"up", "--port", "0", "bad.yaml"}, dir: dir}, "")
	r.wants(t, 2, "bad.yaml:2: server.prot: ", "bad.yaml:3: server.port: ")
	if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
		t.Error("it has made a data directory")
	}
}

// TestUpIsInterruptedWhileItStarts cleans up all the same.
func TestUpIsInterruptedWhileItStarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := launch(t, command{name: "up", program: programs.pyserve, args: []string{"up", "--port", "0", "--log-level", "info"}, dir: dir})
	p.logs(t, "cluster identity") // control is on its way, nodes are not there yet
	p.signal(t, syscall.SIGINT)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d, want 0:\n%s", code, p.stderr.String())
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("it leaves %v behind: %v", entries, err)
	}
}

// TestDaemonsAreStoppedWhileTheyWait: a node that waits for its control ends as cleanly as one that serves.
func TestDaemonsAreStoppedWhileTheyWait(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.control.stop(t)
	n := c.addNode("n1")
	c.start(n)
	n.logs(t, "cannot enrol yet")
	n.stop(t)
	if strings.Contains(n.stderr.String(), "pyserve:") {
		t.Errorf("it complains:\n%s", n.stderr.String())
	}
}
