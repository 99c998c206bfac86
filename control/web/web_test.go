package web

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/identity"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func startControl(t *testing.T) (*control.Control, string) {
	t.Helper()
	dir := t.TempDir()
	c, err := control.New(control.Options{DataDir: dir, Name: "c1", Endpoint: "127.0.0.1:7400", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c, dir
}

// join connects a node that serves what it is given.
func join(t *testing.T, c *control.Control, dir, name string) *fleettest.Node {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(dir, control.JoinTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := c.Enroll(t.Context(), strings.TrimSpace(string(token)), name, request)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := identity.KeyHash(issued.GetCertificate())
	if err != nil {
		t.Fatal(err)
	}
	n := &fleettest.Node{Name: name}
	n.Connect(func(s fleettest.Stream) error {
		return c.Serve(identity.Peer{Role: identity.RoleNode, Name: name, KeyHash: hash}, s)
	})
	t.Cleanup(func() { n.Close() })
	return n
}

func apply(t *testing.T, c *control.Control, document string) {
	t.Helper()
	result, err := c.Apply(t.Context(), "admin", control.Document{Data: []byte(document)}, nil, func(e *operatorv1.ApplyEvent) {
		if p := e.GetProblem(); p != nil {
			t.Log(p)
		}
	})
	if err != nil || result.GetOutcome() != operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED {
		t.Fatalf("got %v, %v", result, err)
	}
}

func get(t *testing.T, c *control.Control, method, path string) (*http.Response, string) {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(c, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest(method, path, nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Result(), string(body)
}

// holds fails the test unless the page holds all of the texts.
func holds(t *testing.T, page string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(page, text) {
			t.Errorf("the page does not hold %q:\n%s", text, page[:min(len(page), 6000)])
		}
	}
}

// shown waits for a page that holds a text, which a node's message brings about.
func shown(t *testing.T, c *control.Control, text string) string {
	t.Helper()
	changed, stop := c.Watch()
	defer stop()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for {
		_, page := get(t, c, "GET", "/")
		if strings.Contains(page, text) {
			return page
		}
		select {
		case <-changed:
		case <-limit.C:
			t.Fatalf("the page never shows %q:\n%s", text, page)
		}
	}
}

func TestPageOfAControlThatKnowsNothing(t *testing.T) {
	c, _ := startControl(t)
	r, page := get(t, c, "GET", "/")
	if r.StatusCode != 200 {
		t.Fatalf("status %d", r.StatusCode)
	}
	holds(t, page, "Nothing was applied yet", "No node was enrolled yet", "None.", "</html>")
	for name, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
		"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestPageShowsTheFleetTheRoutesAndTheBackends(t *testing.T) {
	c, dir := startControl(t)
	n := join(t, c, dir, "n1")
	shown(t, c, ">joining<")
	apply(t, c, "server:\n  reverse_proxy:\n    - {path: /api, hosts: [a.example.com], host: 127.0.0.1, port: 3000}\n    - {path: /b, host: 127.0.0.1, port: 3001, strip_path: true}\n")
	n.Say(fleettest.Status(&fleetv1.Status{Applied: n.Applied(), Listen: "127.0.0.1:8080", BackendsFull: true, Backends: []*fleetv1.BackendStatus{
		{Route: "/b", Address: "127.0.0.1:3001", State: fleetv1.BackendState_BACKEND_STATE_UNHEALTHY, Reason: "connection refused", FailOpen: true},
	}}))
	page := shown(t, c, "127.0.0.1:8080")
	holds(t, page, "Revision <b>1</b>", "every node serves it", `<td>n1</td><td class="ready">ready</td>`, "127.0.0.1:3000", "unknown",
		`class="unhealthy">unhealthy</td><td>connection refused`, "Used all the same", "a.example.com", ">any<")
}

func TestPageEscapesWhatNodesSay(t *testing.T) {
	c, dir := startControl(t)
	n := join(t, c, dir, "n1")
	apply(t, c, "server:\n  reverse_proxy: [{path: /, host: 127.0.0.1, port: 1}]\n")
	const evil = `"><script>alert(1)</script>`
	n.Say(fleettest.Status(&fleetv1.Status{Listen: evil, Refusals: []*fleetv1.Refusal{fleettest.Refusal(evil, evil)}, BackendsFull: true, Backends: []*fleetv1.BackendStatus{
		{Route: "/", Address: "127.0.0.1:1", State: fleetv1.BackendState_BACKEND_STATE_UNHEALTHY, Reason: evil},
	}}))
	page := shown(t, c, "alert(1)")
	if strings.Contains(page, "<script") || strings.Count(page, "&lt;script&gt;") < 2 {
		t.Errorf("the page holds a script:\n%s", page)
	}
}

func TestPageOfManyRoutesIsBounded(t *testing.T) {
	const many = 20_000
	c, _ := startControl(t)
	var document strings.Builder
	document.WriteString("server:\n  reverse_proxy:\n")
	for i := range many {
		fmt.Fprintf(&document, "    - {path: /%d, host: 127.0.0.1, port: 3000}\n", i)
	}
	apply(t, c, document.String())
	r, page := get(t, c, "GET", "/")
	if r.StatusCode != 200 || len(page) > 1<<20 {
		t.Errorf("status %d, %d bytes", r.StatusCode, len(page))
	}
	holds(t, page, fmt.Sprintf("and %d more: <code>pyservectl get routes</code>", many-rows), fmt.Sprintf("and %d more: <code>pyservectl get backends</code>", many-rows))
}

func TestPageIsReadOnlyAndAlone(t *testing.T) {
	c, _ := startControl(t)
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/", 200}, {"HEAD", "/", 200}, {"POST", "/", 405}, {"DELETE", "/", 405},
		{"GET", "/index.html", 404}, {"GET", "/admin.yaml", 404}, {"POST", "/x", 404}, {"GET", "//", 404},
	} {
		r, _ := get(t, c, tt.method, tt.path)
		if r.StatusCode != tt.want {
			t.Errorf("%s %s is %d, want %d", tt.method, tt.path, r.StatusCode, tt.want)
		}
		if tt.want == 405 && r.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s allows %q", tt.method, tt.path, r.Header.Get("Allow"))
		}
	}
}
