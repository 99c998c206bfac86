package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/node"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that comes over a socket.
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

// clock is a time that a test moves.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time           { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(by time.Duration) { c.ahead.Add(int64(by)) }

// logBuffer keeps what is logged.
type logBuffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logBuffer) has(text string) bool { return strings.Contains(l.String(), text) }

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// script is a control whose part the test plays.
type script struct {
	fleetv1.UnimplementedFleetServer
	clock     *clock
	authority *identity.Authority
	address   string
	server    *grpc.Server
	streams   chan *wire
	deaf      bool // streams are opened and nothing is taken off them

	renewals   atomic.Int32
	failRenews atomic.Bool
}

// newScript starts a control on a loopback port.
func newScript(t *testing.T) *script {
	t.Helper()
	s := &script{clock: &clock{}, streams: make(chan *wire, 16)}
	var err error
	if s.authority, err = identity.Open(identity.Options{Dir: t.TempDir(), Now: s.clock.now}); err != nil {
		t.Fatal(err)
	}
	s.listen(t, "127.0.0.1:0")
	return s
}

// listen serves until the test's end.
func (s *script) listen(t *testing.T, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	config, err := s.authority.ServerTLS("c1")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	s.server = server
	fleetv1.RegisterFleetServer(server, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
}

// Connect implements the service: it hands the stream to the test and lasts until the stream or the test ends it.
func (s *script) Connect(stream grpc.BidiStreamingServer[fleetv1.FromNode, fleetv1.ToNode]) error {
	w := &wire{stream: stream, in: make(chan *fleetv1.FromNode, 1000), left: make(chan struct{}), end: make(chan error, 1)}
	s.streams <- w
	if !s.deaf {
		go w.receive() // ends with the stream, which is when the handler has returned
	}
	select {
	case err := <-w.end:
		return err
	case <-w.left:
		return nil
	case <-stream.Context().Done():
		return context.Cause(stream.Context())
	}
}

// Renew implements the service.
func (s *script) Renew(_ context.Context, m *fleetv1.RenewRequest) (*fleetv1.RenewResponse, error) {
	s.renewals.Add(1)
	if s.failRenews.Load() {
		return nil, errors.New("no renewals today")
	}
	id, err := s.authority.IssueNode("n1", m.GetCertificateRequest())
	return &fleetv1.RenewResponse{Identity: id}, err
}

// identity is one that was issued by this control.
func (s *script) identity(t *testing.T) *Identity {
	t.Helper()
	keyPEM, request, err := newKey("n1")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := s.authority.IssueNode("n1", request)
	if err != nil {
		t.Fatal(err)
	}
	id, err := received("n1", keyPEM, issued)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// sign makes the release of a bundle.
func (s *script) sign(epoch, revision uint64, b *bundle.Bundle) *fleetv1.Release {
	return bundle.Sign(s.authority.ReleaseKey(), epoch, revision, b.Digest())
}

// wire is control's end of one stream.
type wire struct {
	stream grpc.BidiStreamingServer[fleetv1.FromNode, fleetv1.ToNode]
	in     chan *fleetv1.FromNode
	left   chan struct{} // closed when the node closed the stream
	end    chan error
}

func (w *wire) receive() {
	defer close(w.in)
	for {
		m, err := w.stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				close(w.left)
			}
			return
		}
		select {
		case w.in <- m:
		case <-w.stream.Context().Done():
			return
		}
	}
}

// opened waits for the node's next stream and takes its Hello.
func (s *script) opened(t *testing.T) (*wire, *fleetv1.Hello) {
	t.Helper()
	select {
	case w := <-s.streams:
		m := w.any(t)
		if m.GetHello() == nil {
			t.Fatalf("the stream begins with %v", m)
		}
		return w, m.GetHello()
	case <-time.After(patience):
		t.Fatal("the node opens no stream")
		return nil, nil
	}
}

// welcomed is opened with a Welcome.
func (s *script) welcomed(t *testing.T) *wire {
	t.Helper()
	w, _ := s.opened(t)
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Welcome{Welcome: &fleetv1.Welcome{ControlName: "c1"}}})
	return w
}

func (w *wire) send(t *testing.T, m *fleetv1.ToNode) {
	t.Helper()
	if err := w.stream.Send(m); err != nil {
		t.Fatal(err)
	}
}

// any gives the node's next message; nil: the stream is over.
func (w *wire) any(t *testing.T) *fleetv1.FromNode {
	t.Helper()
	select {
	case m := <-w.in:
		return m
	case <-time.After(patience):
		t.Fatal("the node says nothing")
		return nil
	}
}

// answer gives the node's next message that is no Status.
func (w *wire) answer(t *testing.T) *fleetv1.FromNode {
	t.Helper()
	for {
		if m := w.any(t); m.GetStatus() == nil {
			return m
		}
	}
}

// status waits for a Status that a condition holds for.
func (w *wire) status(t *testing.T, what string, ok func(*fleetv1.Status) bool) *fleetv1.Status {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		m := w.any(t)
		if m == nil {
			t.Fatal("the stream is over")
		}
		if s := m.GetStatus(); s != nil && ok(s) {
			return s
		}
	}
	t.Fatalf("no status with %s", what)
	return nil
}

// begin sends an offer's head.
func (w *wire) begin(t *testing.T, nonce uint64, release *fleetv1.Release, base *bundle.Bundle) {
	t.Helper()
	head := &fleetv1.Offer{Nonce: nonce, Release: release}
	if base != nil {
		digest := base.Digest()
		head.BaseDigest = digest[:]
	}
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Offer{Offer: head}})
}

// complete sends all of a delta as the last part of an offer.
func (w *wire) complete(t *testing.T, nonce uint64, delta bundle.Delta) {
	t.Helper()
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_OfferPart{OfferPart: lastPart(nonce, delta)}})
}

func lastPart(nonce uint64, delta bundle.Delta) *fleetv1.OfferPart {
	part := &fleetv1.OfferPart{Nonce: nonce, Last: true}
	for _, k := range delta.Removed {
		part.Removed = append(part.Removed, &fleetv1.ResourceKey{Kind: string(k.Kind), Name: k.Name})
	}
	for _, r := range delta.Upserted {
		part.Upserted = append(part.Upserted, &fleetv1.Resource{Kind: string(r.Kind), Name: r.Name, Body: r.Body})
	}
	return part
}

// offer sends a whole offer, against a base where there is one, and gives the answer.
func (w *wire) offer(t *testing.T, nonce uint64, release *fleetv1.Release, base, b *bundle.Bundle) *fleetv1.FromNode {
	t.Helper()
	w.begin(t, nonce, release, base)
	w.complete(t, nonce, bundle.Between(base, b))
	return w.answer(t)
}

func (w *wire) commit(t *testing.T, nonce uint64) {
	t.Helper()
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Commit{Commit: &fleetv1.Commit{Nonce: nonce}}})
}

func (w *wire) abort(t *testing.T, nonce uint64) {
	t.Helper()
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Abort{Abort: &fleetv1.Abort{Nonce: nonce}}})
}

// serve offers and commits a bundle that must be taken.
func (w *wire) serve(t *testing.T, nonce uint64, release *fleetv1.Release, base, b *bundle.Bundle) {
	t.Helper()
	checkPrepared(t, w.offer(t, nonce, release, base, b), nonce)
	w.commit(t, nonce)
	m := w.answer(t)
	if m.GetCommitted().GetNonce() != nonce || m.GetCommitted().GetApplied().GetRevision() != release.GetRevision() {
		t.Fatalf("the answer to Commit is %v", m)
	}
}

func checkPrepared(t *testing.T, m *fleetv1.FromNode, nonce uint64) {
	t.Helper()
	if m.GetPrepared().GetNonce() != nonce || len(m.GetPrepared().GetRefusals()) > 0 {
		t.Fatalf("the answer is %v, want offer %d prepared", m, nonce)
	}
}

func checkRefused(t *testing.T, m *fleetv1.FromNode, nonce uint64, field, reason string) {
	t.Helper()
	refusals := m.GetPrepared().GetRefusals()
	if m.GetPrepared().GetNonce() != nonce || len(refusals) == 0 || refusals[0].GetField() != field || !strings.Contains(refusals[0].GetReason(), reason) {
		t.Fatalf("the answer is %v, want offer %d refused for %q: %q", m, nonce, field, reason)
	}
}

// bundleOf makes the bundle of a document with one route, to a backend that nobody probes.
func bundleOf(t *testing.T, path string) *bundle.Bundle {
	t.Helper()
	document := fmt.Sprintf("server:\n  host: 127.0.0.1\n  port: 8080\n  reverse_proxy:\n    - {path: %s, host: 127.0.0.1, port: 1, health_check: {type: none}}\n", path)
	resources, problems := config.Parse([]byte(document), nil)
	if resources == nil {
		t.Fatal(problems)
	}
	b, err := bundle.Encode(resources)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rig is a node with its agent.
type rig struct {
	*Agent
	node *node.Node
	dir  string
	log  *logBuffer
	stop func() // ends Run and waits
}

// rigOptions change what newRig makes.
type rigOptions struct {
	dir, listen string
	controls    []string
	identity    *Identity
	now         func() time.Time
	welcomed    func(*Identity) error
	peers       func() []Peer
}

// newRig makes a node that listens on a port of its own and its agent, and boots it.
func newRig(t *testing.T, s *script, o rigOptions) *rig {
	t.Helper()
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	if o.listen == "" {
		o.listen = "127.0.0.1:0"
	}
	if o.controls == nil {
		o.controls = []string{s.address}
	}
	if o.identity == nil {
		o.identity = s.identity(t)
	}
	r := &rig{dir: o.dir, log: &logBuffer{}, stop: func() {}}
	var err error
	if r.node, err = node.New(node.Options{Listen: o.listen}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.stop()
		if err := r.node.Stop(t.Context()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	r.Agent, err = New(Options{
		Node: r.node, Identity: o.identity, Controls: o.controls, DataDir: o.dir, Version: "test",
		Gossip: func() string { return "127.0.0.1:7946" }, Welcomed: o.welcomed, Peers: o.peers, Logger: r.log.logger(), Now: o.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Boot()
	return r
}

// run starts the agent, which the test's end stops.
func (r *rig) run() *rig {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	r.stop = func() {
		cancel()
		<-done
	}
	return r
}

func (r *rig) revision() uint64 { return r.node.Applied().GetRevision() }

// recorder is the sending half of a stream, for what needs no control.
type recorder struct {
	grpc.ClientStream
	sent []*fleetv1.FromNode
}

func (r *recorder) Send(m *fleetv1.FromNode) error {
	r.sent = append(r.sent, m)
	return nil
}

func (r *recorder) Recv() (*fleetv1.ToNode, error) { return nil, io.EOF }
