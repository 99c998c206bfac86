package e2e

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/pyserve/pyserve/node/certtest"
)

// TestTLSInFront has the nodes speak TLS, with files that lie beside the document.
func TestTLSInFront(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	authority := certtest.New(t)
	pair := authority.Issue(t, "127.0.0.1", "shop.example.com")
	c.write("cert.pem", string(pair.ChainPEM))
	c.write("key.pem", string(pair.KeyPEM))
	plain := fmt.Sprintf(`
server:
  reverse_proxy:
    - {path: /, host: 127.0.0.1, port: %d}
`, b.port)
	c.mustApply(plain + "ssl:\n  enabled: true\n  cert_file: ./cert.pem\n  key_file: ./key.pem\n")
	config := &tls.Config{RootCAs: authority.Pool()}

	for _, n := range c.nodes {
		t.Run(n.name, func(t *testing.T) {
			for _, http2 := range []bool{false, true} {
				r := get(t, newClient(t, config, http2), "https://"+n.listen+"/x?q=1", "X-Own", "1")
				s := r.seen(t)
				want := "HTTP/1.1"
				if http2 {
					want = "HTTP/2.0"
				}
				if r.proto != want || s.URI != "/x?q=1" || s.Header.Get("X-Forwarded-Proto") != "https" || s.Header.Get("X-Forwarded-Host") != n.listen {
					t.Errorf("HTTP/2 %t: %s, the backend was sent %+v", http2, r.proto, s)
				}
				checkUpload(t, newClient(t, config, http2), "https://"+n.listen+"/sum", 4<<20)
				checkEvents(t, newClient(t, config, http2), "https://"+n.listen+"/events", b)
			}
			socket := dialWebSocket(t, "wss://"+n.listen+"/ws", config)
			exchange(t, socket, websocket.TextMessage, []byte("over TLS"))
			if s := b.last(t); s.Header.Get("X-Forwarded-Proto") != "https" {
				t.Errorf("the handshake was sent %+v", s)
			}
			old := &tls.Config{RootCAs: authority.Pool(), MaxVersion: tls.VersionTLS11}
			if conn, err := tls.Dial("tcp", n.listen, old); err == nil {
				conn.Close()
				t.Error("TLS 1.1 was accepted")
			}
			if r, err := newClient(t, nil, false).Get("http://" + n.listen + "/x"); err == nil {
				r.Body.Close()
				if r.StatusCode == http.StatusOK {
					t.Error("plain HTTP was answered on a TLS port")
				}
			}
		})
	}
	for _, args := range [][]string{{"get", "config"}, {"get", "config", "-o", "json"}, {"get", "routes", "-o", "yaml"}, {"status", "-o", "json"}} {
		if r := c.ctl(args...); strings.Contains(r.stdout+r.stderr, "PRIVATE KEY") {
			t.Errorf("%v shows the key", args)
		}
	}

	t.Run("a renewed certificate is served after the next apply", func(t *testing.T) {
		renewed := certtest.New(t)
		pair := renewed.Issue(t, "127.0.0.1")
		c.write("cert.pem", string(pair.ChainPEM))
		c.write("key.pem", string(pair.KeyPEM))
		c.mustApply(plain + "ssl:\n  enabled: true\n  cert_file: ./cert.pem\n  key_file: ./key.pem\n")
		for _, n := range c.nodes {
			get(t, newClient(t, &tls.Config{RootCAs: renewed.Pool()}, true), "https://"+n.listen+"/x").seen(t)
		}
	})
	t.Run("and TLS can be turned off", func(t *testing.T) {
		c.mustApply(plain)
		for _, n := range c.nodes {
			if s := get(t, newClient(t, nil, false), "http://"+n.listen+"/x").seen(t); s.Header.Get("X-Forwarded-Proto") != "http" {
				t.Errorf("X-Forwarded-Proto %q", s.Header.Get("X-Forwarded-Proto"))
			}
		}
	})
}

// TestTLSToTheBackend verifies the backend's certificate: against ca_file, and against the system's authorities.
func TestTLSToTheBackend(t *testing.T) {
	t.Parallel()
	authority := certtest.New(t)
	c := newCluster(t)
	n := c.addNode("n1")
	// What stands in for the system's authorities: the file that Go reads them from.
	system := certtest.New(t)
	n.env = []string{"SSL_CERT_FILE=" + c.write("system.pem", string(system.PEM)), "SSL_CERT_DIR=" + t.TempDir()}
	c.start(n)
	c.connected("n1")
	c.write("ca.pem", string(authority.PEM))
	private := newTLSBackend(t, "private", authority.Issue(t, "ledger.example.com").TLS)
	public := newTLSBackend(t, "public", system.Issue(t, "localhost").TLS)

	c.mustApply(fmt.Sprintf(`
server:
  reverse_proxy:
    - {path: /named, host: 127.0.0.1, port: %[1]d, ssl: true, tls: {ca_file: ./ca.pem, server_name: ledger.example.com}}
    - {path: /wrong-name, host: 127.0.0.1, port: %[1]d, ssl: true, tls: {ca_file: ./ca.pem}, health_check: {type: none}}
    - {path: /unknown-authority, host: 127.0.0.1, port: %[1]d, ssl: true, tls: {server_name: ledger.example.com}, health_check: {type: none}}
    - {path: /unverified, host: 127.0.0.1, port: %[1]d, ssl: true, tls: {insecure_skip_verify: true}}
    - {path: /system, host: localhost, port: %[2]d, ssl: true}
    - {path: /plain, host: 127.0.0.1, port: %[1]d, health_check: {type: none}}
`, private.port, public.port))
	client := newClient(t, nil, false)
	url := "http://" + n.listen
	for path, want := range map[string]seen{
		"/named":      {Backend: "private", ServerName: "ledger.example.com"},
		"/unverified": {Backend: "private"},
		"/system":     {Backend: "public", ServerName: "localhost"},
	} {
		s := get(t, client, url+path+"/x").seen(t)
		if !s.TLS || s.Backend != want.Backend || s.ServerName != want.ServerName || s.URI != "/x" {
			t.Errorf("%s: %+v", path, s)
		}
	}
	for _, path := range []string{"/wrong-name", "/unknown-authority", "/plain"} {
		if r := get(t, client, url+path+"/x"); r.status != http.StatusBadGateway && !(path == "/plain" && r.status == http.StatusBadRequest) {
			t.Errorf("%s: status %d: %s", path, r.status, r.body)
		}
	}
	socket := dialWebSocket(t, "ws://"+n.listen+"/named/ws", nil)
	exchange(t, socket, websocket.BinaryMessage, []byte{1, 2, 3})
}
