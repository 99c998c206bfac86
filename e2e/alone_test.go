package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"
)

// alone is a node that runs from a file.
type alone struct {
	*process
	file, admin, listen string
}

// startAlone starts a node with --config. The document does not say where to listen.
func startAlone(t *testing.T, document string) *alone {
	t.Helper()
	a := &alone{file: filepath.Join(t.TempDir(), "config.yaml"), admin: local(freePort(t)), listen: local(freePort(t))}
	a.write(t, document)
	a.process = launch(t, command{name: "alone", program: programs.pyserve, args: []string{
		"node", "--name", "alone", "--config", a.file, "--admin", a.admin, "--listen", a.listen, "--log-level", "debug",
	}})
	eventually(t, "the node is ready", func() string {
		if a.hasEnded() {
			t.Fatal("it has ended")
		}
		if code := probe(a.admin, "/readyz"); code != http.StatusOK {
			return fmt.Sprintf("/readyz says %d", code)
		}
		return ""
	})
	return a
}

func (a *alone) write(t *testing.T, document string) {
	t.Helper()
	if err := os.WriteFile(a.file, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestANodeAloneReloadsItsFile takes a good file at SIGHUP, and keeps what it has when the file is bad.
func TestANodeAloneReloadsItsFile(t *testing.T) {
	t.Parallel()
	b := newBackend(t, "b")
	client := newClient(t, nil, false)
	a := startAlone(t, route("/one", b.port))
	get(t, client, "http://"+a.listen+"/one/x").seen(t)
	socket := dialWebSocket(t, "ws://"+a.listen+"/one/ws", nil)

	a.write(t, "server:\n  prot: 1\n")
	a.signal(t, syscall.SIGHUP)
	a.logs(t, "the file was not taken")
	a.logs(t, ":2: server.prot: ")
	get(t, client, "http://"+a.listen+"/one/x").seen(t)
	if code := probe(a.admin, "/readyz"); code != http.StatusOK {
		t.Errorf("after a bad file /readyz says %d", code)
	}

	a.write(t, route("/one", b.port)+fmt.Sprintf("    - {path: /two, host: 127.0.0.1, port: %d}\n", b.port))
	a.signal(t, syscall.SIGHUP)
	eventually(t, "the new route is served", func() string {
		if r := get(t, client, "http://"+a.listen+"/two/x"); r.status != http.StatusOK {
			return fmt.Sprint(r.status)
		}
		return ""
	})
	exchange(t, socket, websocket.TextMessage, []byte("the reload did not touch me"))
	socket.Close()
	a.stop(t)
	if entries, err := os.ReadDir(a.cmd.Dir); err != nil || len(entries) > 0 {
		t.Errorf("a node alone keeps nothing on disk: %v %v", entries, err)
	}
}

// TestANodeAloneSaysWhatIsWrongWithItsFile at the start, and does not run.
func TestANodeAloneSaysWhatIsWrongWithItsFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("server:\n  prot: 1\n  port: high\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pyserve(t, nil, "node", "--config", file, "--admin", "127.0.0.1:0").wants(t, 2, file+":2: server.prot: ", file+":3: server.port: ")
	taken, _ := hold(t)
	if err := os.WriteFile(file, []byte(fmt.Sprintf("server: {host: 127.0.0.1, port: %d}\n", port(taken))), 0o600); err != nil {
		t.Fatal(err)
	}
	pyserve(t, nil, "node", "--config", file, "--admin", "127.0.0.1:0").wantsOneLine(t, "server.port", taken, "address already in use")
}

// TestATrustedProxyIsBelieved extends what it says, and walks the chain to the client's own address.
func TestATrustedProxyIsBelieved(t *testing.T) {
	t.Parallel()
	b := newBackend(t, "b")
	client := newClient(t, nil, false)
	a := startAlone(t, fmt.Sprintf("server:\n  trusted_proxies: [127.0.0.0/8, 10.0.0.0/8]\n  reverse_proxy:\n    - {path: /, host: 127.0.0.1, port: %d}\n", b.port))
	s := get(t, client, "http://"+a.listen+"/x", "X-Forwarded-For", "198.51.100.4, 203.0.113.9, 10.1.2.3", "X-Forwarded-Proto", "https",
		"X-Forwarded-Host", "shop.example.com", "X-Request-ID", "theirs-1").seen(t)
	for name, want := range map[string]string{
		"X-Forwarded-For": "198.51.100.4, 203.0.113.9, 10.1.2.3, 127.0.0.1", "X-Forwarded-Proto": "https",
		"X-Forwarded-Host": "shop.example.com", "X-Request-Id": "theirs-1", "X-Real-Ip": "203.0.113.9",
	} {
		if got := strings.Join(s.Header[name], ", "); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
