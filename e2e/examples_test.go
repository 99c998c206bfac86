package e2e

import (
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/pyserve/pyserve/node/certtest"
)

// examples are the configurations of PyServe's own documentation, word for word.
const examples = "../config/testdata/pyserve"

// TestPyservesOwnExamples applies them with backends of this machine in place of theirs, and sees each path do what the
// page says of it, in HTTP and in WebSocket, with TLS to the backend where the page has it.
func TestPyservesOwnExamples(t *testing.T) {
	t.Parallel()
	authority := certtest.New(t)
	c := newCluster(t)
	n := c.addNode("n1")
	n.env = []string{"SSL_CERT_FILE=" + c.write("system.pem", string(authority.PEM)), "SSL_CERT_DIR=" + t.TempDir()}
	c.start(n)
	c.connected("n1")
	pair := authority.Issue(t, "localhost", "127.0.0.1")
	if err := os.Mkdir(filepath.Join(c.dir, "ssl"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.write("ssl/cert.pem", string(pair.ChainPEM))
	c.write("ssl/key.pem", string(pair.KeyPEM))

	type below struct{ backend, forwarded string }
	all := map[string]map[string]below{ // by file: a path, the backend as the page names it, and what that is sent
		"overview.yaml":  {"/api/users?x=1": {"localhost:3000", "/users?x=1"}, "/ws/chat": {"localhost:8080", "/chat"}, "/socket.io": {"example.com:443", "/"}},
		"http.yaml":      {"/api/": {"api.internal:8000", "/"}, "/api/a/b": {"api.internal:8000", "/a/b"}},
		"websocket.yaml": {"/ws/room": {"ws.example.com:8080", "/room"}},
		"ssl.yaml":       {"/secure/x": {"secure.example.com:443", "/x"}},
		"gateway.yaml":   {"/auth/login": {"auth.internal:3000", "/login"}, "/api/v1/x": {"api.internal:8000", "/x"}, "/api/v2/x": {"api.internal:8001", "/x"}},
		"chat.yaml":      {"/ws/chat/a": {"chat.internal:8080", "/a"}, "/ws/notifications/b": {"notifications.internal:8081", "/b"}},
		"mixed.yaml":     {"/api/x": {"api.example.com:443", "/x"}, "/realtime/x": {"ws.example.com:443", "/x"}},
	}
	files, err := filepath.Glob(filepath.Join(examples, "*.yaml"))
	if err != nil || len(files) != len(all) {
		t.Fatalf("%d examples, %d are expected: %v", len(files), len(all), err)
	}
	config := &tls.Config{RootCAs: authority.Pool()}
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			// As it is written it is valid; what it names is not asked for anything here.
			c.write(name, string(text))
			c.ctl("validate", filepath.Join(c.dir, name)).wants(t, 0, "is valid")

			c.mustApply(withLocalBackends(t, string(text), pair.TLS))
			scheme, ws, client := "http://", "ws://", newClient(t, nil, false)
			if name == "ssl.yaml" {
				scheme, ws, client = "https://", "wss://", newClient(t, config, true)
			}
			for path, want := range all[name] {
				s := get(t, client, scheme+n.listen+path).seen(t)
				if s.Backend != want.backend || s.URI != want.forwarded {
					t.Errorf("%s: %s was sent %s, want %s to be sent %s", path, s.Backend, s.URI, want.backend, want.forwarded)
				}
				if encrypted := strings.HasSuffix(want.backend, ":443"); s.TLS != encrypted {
					t.Errorf("%s: TLS to the backend: %t, want %t", path, s.TLS, encrypted)
				}
				// Whatever a route is for, it takes WebSockets too.
				exchange(t, dialWebSocket(t, ws+n.listen+path, config), websocket.TextMessage, []byte(path))
			}
			if r := get(t, client, scheme+n.listen+"/elsewhere"); r.status != http.StatusNotFound {
				t.Errorf("a path without a route: %d", r.status)
			}
		})
	}
}

var backendLines = regexp.MustCompile(`(?s)host: (\S+)(.*?)port: (\d+)`)

// withLocalBackends puts a backend of this process in the place of each that an example names; its name is theirs.
func withLocalBackends(t *testing.T, example string, certificate tls.Certificate) string {
	t.Helper()
	entries := strings.Split(example, "- host:")
	for i, entry := range entries[1:] {
		entries[i+1] = backendLines.ReplaceAllStringFunc("- host:"+entry, func(lines string) string {
			m := backendLines.FindStringSubmatch(lines)
			name := m[1] + ":" + m[3]
			var b *backend
			if strings.Contains(entry, "ssl: true") {
				b = newTLSBackend(t, name, certificate)
			} else {
				b = newBackend(t, name)
			}
			return "host: localhost" + m[2] + "port: " + strconv.Itoa(b.port)
		})
	}
	return strings.Join(entries, "")
}
