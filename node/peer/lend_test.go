package peer

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/node"
	"github.com/pyserve/pyserve/node/nodetest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	peerv1 "github.com/pyserve/pyserve/proto/pyserve/peer/v1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// member is a node with its door and what it asks others with.
type member struct {
	Node
	node     *node.Node
	server   *Server
	borrower *Borrower
}

func newMember(t *testing.T, a *identity.Authority, name string) *member {
	t.Helper()
	id := enrol(t, a, name)
	m := &member{borrower: NewBorrower(func() Identity { return id })}
	var err error
	if m.node, err = node.New(node.Options{Name: name, Listen: "127.0.0.1:0", AskLender: m.borrower.Ask}); err != nil {
		t.Fatal(err)
	}
	m.server = NewServer(ServerOptions{
		Identity: func() Identity { return id }, Holding: (&holdings{}).get, Lend: m.node.Lend, Logger: slog.New(slog.DiscardHandler),
	})
	m.Node = Node{Name: name, Address: accepting(t, m.server.Take)}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		for _, stop := range []func(context.Context) error{m.node.Stop, m.server.Stop, m.borrower.Stop} {
			_ = stop(ctx) // of the node: that clients were still there
		}
	})
	return m
}

// apply serves a route that lets through so many requests of each value of X-Key, and the next after an hour.
func (m *member) apply(t *testing.T, burst uint32) {
	t.Helper()
	b := nodetest.NewBuild().Route("/", 1)
	b.Routes["/"].Respond = &resourcev1.Respond{Status: http.StatusOK}
	b.Routes["/"].RateLimit = &resourcev1.RateLimit{Requests: 1, Per: durationpb.New(time.Hour), Burst: burst,
		Key: resourcev1.RateKey_RATE_KEY_HEADER, Header: "x-key", Scope: resourcev1.RateScope_RATE_SCOPE_CLUSTER}
	g, err := m.node.Prepare(&fleetv1.Release{Revision: 1}, b.Bundle(t))
	if err != nil {
		t.Fatal(err)
	}
	m.node.Apply(g)
}

// passes says whether a request with a key passes.
func (m *member) passes(t *testing.T, client *http.Client, key string) bool {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+m.node.ListenAddress()+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Key", key)
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return true
	case http.StatusTooManyRequests:
		return false
	}
	t.Fatalf("status %d", response.StatusCode)
	return false
}

func know(members ...*member) {
	var names []string
	for _, m := range members {
		names = append(names, m.Name)
	}
	for _, m := range members {
		var others []Node
		for _, o := range members {
			if o != m {
				others = append(others, o.Node)
			}
		}
		m.borrower.SetNodes(others)
		m.node.SetMembers(names)
	}
}

// Three nodes let through together about what one would; when one of them is gone, the others do, whoever owned the key. Of calls that
// take too long on a slow machine something may be lent twice, or lost: so keys are many, and one that has bad luck decides nothing.
func TestNodesLendOneAnotherOverTheWire(t *testing.T) {
	const burst, share, keys = 30, 10, 6
	a := newAuthority(t, nil)
	members := []*member{newMember(t, a, "n1"), newMember(t, a, "n2"), newMember(t, a, "n3")}
	for _, m := range members {
		m.apply(t, burst)
	}
	know(members...)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, Timeout: patience}
	ask := func(key string, asked []*member) (passed int) {
		for _, m := range asked { // each until it refuses
			for m.passes(t, client, key) {
				passed++
			}
		}
		return passed
	}
	// lent asks for new keys until each gets more than the shares of those that are asked, or all, and gives how much they get then.
	lent := func(asked ...*member) (passed int) {
		t.Helper()
		round, enough := 0, min(burst, share*len(asked)+1)
		nodetest.Eventually(t, "all or more than their shares pass", func() bool {
			round, passed = round+1, 0
			for i := range keys {
				key, of := fmt.Sprint(asked[0].Name, len(asked), " ", round, " ", i), 0
				for tries := 0; of < enough && tries < 1000; tries++ {
					of += ask(key, asked)
				}
				if of < enough {
					return false
				}
				for range 20 {
					of += ask(key, asked)
				}
				passed += of
			}
			return true
		})
		return passed / keys
	}
	if n := lent(members...); n < burst/2 || n > 3*burst-10 { // 30 to 50
		t.Errorf("three nodes let %d through, of %d", n, burst)
	}
	if n := lent(members[1]); n > 2*burst {
		t.Errorf("one node lets %d through, of %d", n, burst)
	}
	if err := members[2].server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := lent(members[:2]...); n > 2*burst-5 { // 30 to 40; some of the keys were owned by the third
		t.Errorf("two nodes let %d through, of %d", n, burst)
	}
}

// lendingServer is a server whose Lend answers how.
func lendingServer(t *testing.T, id Identity, name string, how func(string, *peerv1.LendRequest) (*peerv1.LendResponse, error)) (Node, *Server) {
	t.Helper()
	s := NewServer(ServerOptions{
		Identity: func() Identity { return id }, Holding: (&holdings{}).get, Lend: how, Logger: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return Node{Name: name, Address: accepting(t, s.Take)}, s
}

func newBorrower(t *testing.T, id Identity, nodes ...Node) *Borrower {
	t.Helper()
	b := NewBorrower(func() Identity { return id })
	b.SetNodes(nodes)
	t.Cleanup(func() {
		if err := b.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestWhoAsksIsKnownByHisCertificate(t *testing.T) {
	a := newAuthority(t, nil)
	var asked atomic.Value
	n2, _ := lendingServer(t, enrol(t, a, "n2"), "n2", func(from string, _ *peerv1.LendRequest) (*peerv1.LendResponse, error) {
		asked.Store(from)
		return &peerv1.LendResponse{}, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := newBorrower(t, enrol(t, a, "n1"), n2).Ask(ctx, "n2", &peerv1.LendRequest{}); err != nil || asked.Load() != "n1" {
		t.Errorf("%v, asked by %v", err, asked.Load())
	}

	asked.Store("nobody")
	foreign := enrol(t, newAuthority(t, nil), "n1")
	foreign.Authorities, foreign.ClusterID = enrol(t, a, "x").Authorities, a.ClusterID()
	if _, err := newBorrower(t, foreign, n2).Ask(ctx, "n2", &peerv1.LendRequest{}); err == nil {
		t.Error("a node of another cluster is lent to")
	}
	other := n2
	other.Name = "n3"
	if _, err := newBorrower(t, enrol(t, a, "n1"), other).Ask(ctx, "n3", &peerv1.LendRequest{}); err == nil {
		t.Error("one that answers in place of another is believed")
	}
	admin, err := a.NewContext("admin", []string{n2.Address}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := admin.ReaderTLS()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := peerv1.NewPeerClient(dialled(t, n2.Address, config)).Lend(ctx, &peerv1.LendRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an operator: %v", err)
	}
	if asked.Load() != "nobody" {
		t.Errorf("%v was answered", asked.Load())
	}
}

func TestLendRequestsAreBounded(t *testing.T) {
	a := newAuthority(t, nil)
	n := newMember(t, a, "n2")
	n.apply(t, 3)
	b := newBorrower(t, enrol(t, a, "n1"), n.Node)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	huge := &peerv1.LimitAsks{Keys: make([]uint64, maxRequest/8+1)}
	many := &peerv1.LimitAsks{Keys: make([]uint64, 5000), Wants: make([]uint32, 5000), Used: make([]uint32, 5000), Levels: make([]uint64, 5000)}
	for want, m := range map[string]*peerv1.LimitAsks{
		"larger than max": huge, "more than 4096 keys": many, "has 1 keys, with 0, 0 and 0 numbers": {Keys: []uint64{1}},
	} {
		if _, err := b.Ask(ctx, "n2", &peerv1.LendRequest{Limits: []*peerv1.LimitAsks{m}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := b.Ask(ctx, "n2", &peerv1.LendRequest{}); err != nil {
		t.Errorf("after them: %v", err)
	}
	deaf, _ := lendingServer(t, enrol(t, a, "n3"), "n3", nil)
	if _, err := newBorrower(t, enrol(t, a, "n1"), deaf).Ask(ctx, "n3", &peerv1.LendRequest{}); err == nil || err.Error() != "this node lends nothing" {
		t.Errorf("one that lends nothing: %v", err)
	}
}

func TestABorrowerGoesWhereANodeHasGone(t *testing.T) {
	a := newAuthority(t, nil)
	answer := func(string, *peerv1.LendRequest) (*peerv1.LendResponse, error) { return &peerv1.LendResponse{}, nil }
	before, server := lendingServer(t, enrol(t, a, "n2"), "n2", answer)
	b := newBorrower(t, enrol(t, a, "n1"), before)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ask := func() error {
		_, err := b.Ask(ctx, "n2", &peerv1.LendRequest{})
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	for range redialAfter { // each fails at once, or when its connection does
		if ask() == nil {
			t.Fatal("a server that has stopped answers")
		}
	}
	if b.nodes["n2"].conn != nil {
		t.Error("the connection is kept for ever")
	}
	after, _ := lendingServer(t, enrol(t, a, "n2"), "n2", answer)
	b.SetNodes([]Node{after})
	if err := ask(); err != nil {
		t.Error(err)
	}
	b.SetNodes(nil)
	if err := ask(); err == nil || !strings.Contains(err.Error(), "is no member") {
		t.Errorf("one that is no member: %v", err)
	}
	if err := b.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	b.SetNodes([]Node{after})
	if err := ask(); err == nil || !strings.Contains(err.Error(), "this one stops") {
		t.Errorf("one that has stopped: %v", err)
	}
}
