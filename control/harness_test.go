package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/identity"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that happens in other goroutines.
const patience = 20 * time.Second

// eventually waits for a condition that other goroutines bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

func optionsFor(dir string) Options {
	return Options{
		DataDir: dir, Name: "c1", Endpoint: "127.0.0.1:7400", Version: "test", Logger: slog.New(slog.DiscardHandler),
	}
}

// start starts a control, which the test's end stops.
func start(t *testing.T, o Options) *Control {
	t.Helper()
	c, err := New(o)
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
	return c
}

func joinToken(t *testing.T, c *Control) string { return tokenIn(t, c, JoinTokenFile) }

func tokenIn(t *testing.T, c *Control, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(c.options.DataDir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func requestFor(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return request
}

func peerOf(t *testing.T, name string, certificate []byte) identity.Peer {
	t.Helper()
	hash, err := identity.KeyHash(certificate)
	if err != nil {
		t.Fatal(err)
	}
	return identity.Peer{Role: identity.RoleNode, Name: name, KeyHash: hash}
}

// enrol lets a node in with a key of its own.
func enrol(t *testing.T, c *Control, name string) identity.Peer {
	t.Helper()
	issued, err := c.Enroll(t.Context(), joinToken(t, c), name, requestFor(t, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	return peerOf(t, name, issued.GetCertificate())
}

// serving gives how control serves a node's streams.
func serving(c *Control, peer identity.Peer) func(fleettest.Stream) error {
	return func(s fleettest.Stream) error { return c.Serve(peer, s) }
}

// join enrols nodes and connects them until the test's end.
func join(t *testing.T, c *Control, nodes ...*fleettest.Node) {
	t.Helper()
	for _, n := range nodes {
		connect(t, c, enrol(t, c, n.Name), n)
	}
}

func connect(t *testing.T, c *Control, peer identity.Peer, n *fleettest.Node) {
	t.Helper()
	n.Connect(serving(c, peer))
	t.Cleanup(func() { n.Close() })
	eventually(t, n.Name+" is connected", func() bool { return c.fleet.Connected(n.Name) })
}

// document gives a document with one route for each backend port.
func document(ports ...int) Document {
	var b strings.Builder
	b.WriteString("server:\n  port: 8080\n  reverse_proxy:\n")
	for _, port := range ports {
		fmt.Fprintf(&b, "    - {path: /p%d, host: 127.0.0.1, port: %d}\n", port, port)
	}
	return Document{Data: []byte(b.String())}
}

// story is what an apply told on its way, a line for each event.
type story []string

func (s *story) emit(e *operatorv1.ApplyEvent) {
	switch e := e.GetEvent().(type) {
	case *operatorv1.ApplyEvent_Problem:
		*s = append(*s, fmt.Sprintf("problem %d %s", e.Problem.GetLine(), e.Problem.GetPath()))
	case *operatorv1.ApplyEvent_Change:
		*s = append(*s, fmt.Sprintf("%s %s %s", strings.ToLower(strings.TrimPrefix(e.Change.GetAction().String(), "CHANGE_ACTION_")), e.Change.GetKind(), e.Change.GetName()))
	case *operatorv1.ApplyEvent_Node:
		line := fmt.Sprintf("%s %s", e.Node.GetName(), strings.ToLower(strings.TrimPrefix(e.Node.GetPhase().String(), "NODE_PHASE_")))
		if note := e.Node.GetNote(); note != "" {
			line += ": " + note
		}
		*s = append(*s, line)
	}
}

// of gives the lines about one node, or of another first word.
func (s story) of(word string) []string {
	var out []string
	for _, line := range s {
		if strings.HasPrefix(line, word+" ") {
			out = append(out, strings.TrimPrefix(line, word+" "))
		}
	}
	return out
}

func apply(t *testing.T, c *Control, d Document, o *operatorv1.ApplyOptions) (*operatorv1.ApplyResult, story) {
	t.Helper()
	var s story
	result, err := c.Apply(t.Context(), "admin", d, o, s.emit)
	if err != nil {
		t.Fatal(err)
	}
	return result, s
}

// applied applies a document that must be taken.
func applied(t *testing.T, c *Control, d Document) *operatorv1.ApplyResult {
	t.Helper()
	result, s := apply(t, c, d, nil)
	if result.GetOutcome() != operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED {
		t.Fatalf("the outcome is %v: %s\n%s", result.GetOutcome(), result.GetReason(), strings.Join(s, "\n"))
	}
	return result
}

func checkOutcome(t *testing.T, result *operatorv1.ApplyResult, want operatorv1.ApplyOutcome, revision uint64, reason string) {
	t.Helper()
	if result.GetOutcome() != want || result.GetRevision() != revision || !strings.Contains(result.GetReason(), reason) {
		t.Errorf("got %v, want %v of revision %d, with the reason %q", result, want, revision, reason)
	}
}

// untouched fails the test unless the store and every node are at a revision; 0 is none.
func untouched(t *testing.T, c *Control, revision uint64, nodes ...*fleettest.Node) {
	t.Helper()
	var active uint64
	if a := c.store.Active(); a != nil {
		active = a.Number
	}
	if active != revision || len(c.store.Revisions()) != int(revision) {
		t.Errorf("the store is at revision %d with %d in its history, want %d", active, len(c.store.Revisions()), revision)
	}
	for _, n := range nodes {
		if got := n.Applied().GetRevision(); got != revision {
			t.Errorf("node %s serves revision %d, want %d", n.Name, got, revision)
		}
	}
}

func errorIs(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("the error is %v, want %v", err, want)
	}
}

func contains(log []string, word string) bool { return slices.Contains(log, word) }

// released waits until nodes hold nothing that is only proposed: they were told to drop it, or were never offered it,
// where a refusal came first.
func released(t *testing.T, nodes ...*fleettest.Node) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, n.Name+" was told to drop what it prepared", func() bool {
			log := n.Log()
			return len(log) == 0 || log[len(log)-1] == "abort" || log[len(log)-1] == "commit"
		})
	}
}
