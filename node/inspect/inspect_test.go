package inspect

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node"
	"github.com/pyserve/pyserve/node/nodetest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// desk is a service with a node behind it.
type desk struct {
	*Service
	node      *node.Node
	bundle    *bundle.Bundle
	members   []Member
	connected string
	sampled   func(Member) (*fleetv1.Sample, error)
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	n, err := node.New(node.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		n.Stop(ctx)
	})
	d := &desk{node: n}
	d.Service = New(Options{
		Name: "n1", Version: "v1", Node: n,
		Serving:   func() (*fleetv1.Release, *bundle.Bundle) { return n.Applied(), d.bundle },
		Gossip:    func() string { return "127.0.0.1:1" },
		Members:   func() []Member { return d.members },
		Controls:  func() []string { return []string{"10.0.0.1:7400", "10.0.0.2:7400"} },
		Connected: func() string { return d.connected },
		Sample:    func(_ context.Context, m Member, _ uint32) (*fleetv1.Sample, error) { return d.sampled(m) },
	})
	return d
}

// serve has the node serve one route to a backend that answers.
func (d *desk) serve(t *testing.T) (digest []byte) {
	t.Helper()
	s := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	b := nodetest.NewBuild().Route("/a", uint32(s.Listener.Addr().(*net.TCPAddr).Port))
	encoded, err := bundle.Encode(&b.Resources)
	if err != nil {
		t.Fatal(err)
	}
	sum := encoded.Digest()
	g, err := d.node.Prepare(&fleetv1.Release{Epoch: 1, Revision: 7, Digest: sum[:]}, encoded)
	if err != nil {
		t.Fatal(err)
	}
	d.node.Apply(g)
	d.bundle = encoded
	return sum[:]
}

// rows collects what a stream is sent.
type rows[M any] struct {
	grpc.ServerStream
	ctx  context.Context
	sent chan *M
}

func (r *rows[M]) Send(m *M) error {
	r.sent <- m
	return nil
}

func (r *rows[M]) Context() context.Context { return r.ctx }

func newRows[M any](t *testing.T) *rows[M] {
	return &rows[M]{ctx: t.Context(), sent: make(chan *M, 16)}
}

func TestStatusIsWhatTheNodeDoesAndGossipTells(t *testing.T) {
	d := newDesk(t)
	m, err := d.GetStatus(t.Context(), &operatorv1.GetStatusRequest{})
	if err != nil || m.GetConverged() || len(m.GetNodes()) != 1 || m.GetNodes()[0].GetState() != "joining" ||
		m.GetNodes()[0].GetNote() != "has nothing to serve yet; has no control" {
		t.Fatalf("before anything is served: %v, %v", m, err)
	}
	digest := d.serve(t)
	d.connected = "10.0.0.1:7400"
	same := Member{Name: "n2", Node: true, Gossip: "alive", Epoch: 1, Revision: 7, DigestPrefix: digest[:8], Since: time.Unix(1, 0)}
	change := func(name string, do func(*Member)) Member {
		m := same
		m.Name = name
		do(&m)
		return m
	}
	d.members = []Member{
		same, change("n0", func(m *Member) { m.Draining = true }), change("n3", func(m *Member) { m.Gossip = "left" }),
		change("c1", func(m *Member) { m.Node = false }), change("n1", func(m *Member) { m.Revision = 3 }), // itself, as others tell
	}
	m, err = d.GetStatus(t.Context(), &operatorv1.GetStatusRequest{})
	if err != nil || !m.GetConverged() || m.GetRevision() != 7 || m.GetDigest() != hex.EncodeToString(digest) {
		t.Fatalf("got %v, %v", m, err)
	}
	want := map[string]string{"n0": "draining", "n1": "ready", "n2": "ready", "n3": "left"}
	for _, row := range m.GetNodes() {
		if row.GetState() != want[row.GetName()] || row.GetDigest() != m.GetDigest() || row.GetRevision() != 7 {
			t.Errorf("%v, want %s", row, want[row.GetName()])
		}
		delete(want, row.GetName())
	}
	if len(want) != 0 {
		t.Errorf("missing: %v", want)
	}
	for what, other := range map[string]Member{
		"another revision":                  change("n2", func(m *Member) { m.Revision = 6 }),
		"another epoch":                     change("n2", func(m *Member) { m.Epoch = 2 }),
		"another bundle under one revision": change("n2", func(m *Member) { m.DigestPrefix = make([]byte, 8) }),
		"nothing":                           change("n2", func(m *Member) { m.Revision, m.DigestPrefix = 0, make([]byte, 8) }),
		"dead":                              change("n2", func(m *Member) { m.Gossip = "dead" }),
	} {
		d.members = []Member{other}
		if m, _ := d.GetStatus(t.Context(), &operatorv1.GetStatusRequest{}); m.GetConverged() {
			t.Errorf("%s: converged: %v", what, m)
		}
	}
}

func TestWhoWatchesIsToldOfChanges(t *testing.T) {
	d := newDesk(t)
	ctx, cancel := context.WithCancel(t.Context())
	stream := newRows[operatorv1.GetStatusResponse](t)
	stream.ctx = ctx
	ended := make(chan error, 1)
	go func() { ended <- d.WatchStatus(nil, stream) }()
	if m := <-stream.sent; m.GetRevision() != 0 {
		t.Errorf("first: %v", m)
	}
	d.serve(t)
	if m := <-stream.sent; m.GetRevision() != 7 {
		t.Errorf("then: %v", m)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("who went away was no error")
	}
}

func TestRoutesAndBackendsAreTheNodesOwn(t *testing.T) {
	d := newDesk(t)
	routes := newRows[operatorv1.ListRoutesResponse](t)
	if err := d.ListRoutes(nil, routes); err != nil || len(routes.sent) != 0 {
		t.Errorf("a node that serves nothing: %v", err)
	}
	d.serve(t)
	if err := d.ListRoutes(nil, routes); err != nil {
		t.Fatal(err)
	}
	if m := <-routes.sent; len(m.GetRoutes()) != 1 || m.GetRoutes()[0].GetPath() != "/a" || len(m.GetRoutes()[0].GetBackends()) != 1 {
		t.Errorf("got %v", m)
	}
	backends := newRows[operatorv1.ListBackendsResponse](t)
	if err := d.ListBackends(nil, backends); err != nil {
		t.Fatal(err)
	}
	if m := <-backends.sent; len(m.GetBackends()) != 1 || m.GetBackends()[0].GetRoute() != "/a" || m.GetBackends()[0].GetState() == "" || m.GetBackends()[0].GetWeight() != 1 {
		t.Errorf("got %v", m)
	}
}

func TestReasonsAreTheNodesOwn(t *testing.T) {
	d := newDesk(t)
	d.serve(t)
	backend := d.node.Backends()[0].GetAddress()
	m, err := d.ExplainBackend(t.Context(), &operatorv1.ExplainBackendRequest{Address: backend})
	if err != nil || m.GetNode() != "n1" || m.GetRevision() != 7 || len(m.GetBackends()) != 1 || m.GetBackends()[0].GetStatus().GetAddress() != backend {
		t.Errorf("got %v, %v", m, err)
	}
	if m, err := d.ExplainBackend(t.Context(), &operatorv1.ExplainBackendRequest{Address: "nowhere:1"}); err != nil || len(m.GetBackends()) != 0 {
		t.Errorf("of a backend that there is not: %v, %v", m, err)
	}
	d.members = []Member{{Name: "n2", Address: "10.0.0.9:7946"}, {Name: "n2", Node: true, Address: "10.0.0.2:7946"}}
	for name, want := range map[string]string{"n2": "ask n2 with --control 10.0.0.2:7946", "n3": "knows of no node n3"} {
		if _, err := d.ExplainBackend(t.Context(), &operatorv1.ExplainBackendRequest{Address: backend, Node: name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("asked for what %s thinks: %v, want %q", name, err, want)
		}
	}
}

func TestControlsAreThoseThatTheNodeKnows(t *testing.T) {
	d := newDesk(t)
	d.connected = "10.0.0.2:7400"
	m, err := d.ListControls(t.Context(), nil)
	if err != nil || len(m.GetControls()) != 2 || m.GetControls()[0].GetReachable() || !m.GetControls()[1].GetReachable() {
		t.Errorf("got %v, %v", m, err)
	}
}

func TestSamplesAreOfEveryNodeThatIsAliveAndNameTheDead(t *testing.T) {
	d := newDesk(t)
	d.members = []Member{
		{Name: "n2", Node: true, Gossip: "alive"}, {Name: "n0", Node: true, Gossip: "alive", Address: "10.0.0.9:7946"},
		{Name: "n3", Node: true, Gossip: "dead"}, {Name: "n4", Node: true, Gossip: "left"}, {Name: "c1", Gossip: "alive"},
	}
	d.sampled = func(m Member) (*fleetv1.Sample, error) {
		if m.Name == "n0" {
			return nil, errors.New("refused")
		}
		return &fleetv1.Sample{Connections: 9}, nil
	}
	m, err := d.ListSamples(t.Context(), &operatorv1.ListSamplesRequest{})
	if err != nil || len(m.GetNodes()) != 4 {
		t.Fatalf("got %v, %v", m, err)
	}
	if n3 := m.GetNodes()[3]; n3.GetNode() != "n3" || n3.GetFailure() != "gossip has lost it" {
		t.Errorf("n3: %v", n3)
	}
	if n0 := m.GetNodes()[0]; n0.GetNode() != "n0" || n0.GetFailure() != "cannot be asked at 10.0.0.9:7946: refused" {
		t.Errorf("n0: %v", n0)
	}
	if n1 := m.GetNodes()[1]; n1.GetNode() != "n1" || n1.GetSample().GetAt() == nil {
		t.Errorf("n1: %v", n1)
	}
	if n2 := m.GetNodes()[2]; n2.GetSample().GetConnections() != 9 {
		t.Errorf("n2: %v", n2)
	}
	if m, err := d.ListSamples(t.Context(), &operatorv1.ListSamplesRequest{Local: true}); err != nil || len(m.GetNodes()) != 1 {
		t.Errorf("its own alone: %v, %v", m, err)
	}
}
