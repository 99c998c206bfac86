package peer

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peerv1 "github.com/pyserve/pyserve/proto/pyserve/peer/v1"
)

// Lend implements the service. Who asks is known by his certificate.
func (s *Server) Lend(ctx context.Context, m *peerv1.LendRequest) (*peerv1.LendResponse, error) {
	if s.options.Lend == nil {
		return nil, status.Error(codes.Unimplemented, "this node lends nothing")
	}
	_, name, err := caller(ctx, s.options.Identity().ClusterID)
	if err != nil {
		return nil, err
	}
	response, err := s.options.Lend(name, m)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return response, nil
}

// redialAfter is after how many failures in a row a connection is made anew: it may lead to a machine that is gone without a word, or be
// made with a certificate that has ended.
const redialAfter = 10

// Borrower asks other nodes, over one connection to each, which is kept. Its methods may be called concurrently.
type Borrower struct {
	identity func() Identity

	mu    sync.Mutex        // guards what follows
	nodes map[string]lender // by name
	ended bool
}

// lender is a node to ask.
type lender struct {
	address  string
	conn     *grpc.ClientConn // nil: it was not asked yet
	failures int              // in a row
}

// NewBorrower makes one that knows no node. identity is asked for with each connection.
func NewBorrower(identity func() Identity) *Borrower {
	return &Borrower{identity: identity, nodes: make(map[string]lender)}
}

// SetNodes says who can be asked, and where. Connections to others are closed.
func (b *Borrower) SetNodes(nodes []Node) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return
	}
	next := make(map[string]lender, len(nodes))
	for _, n := range nodes {
		next[n.Name] = lender{address: n.Address}
		if was := b.nodes[n.Name]; was.address == n.Address {
			next[n.Name] = was
		}
	}
	for name, was := range b.nodes {
		if was.conn != next[name].conn {
			_ = was.conn.Close() // it fails where it is closed already
		}
	}
	b.nodes = next
}

// Ask asks a node. It fails at once where the node is known not to be there; what is not connected goes on being so when ctx ends.
func (b *Borrower) Ask(ctx context.Context, name string, m *peerv1.LendRequest) (*peerv1.LendResponse, error) {
	conn, err := b.conn(name)
	if err != nil {
		return nil, err
	}
	response, err := peerv1.NewPeerClient(conn).Lend(ctx, m)
	b.note(name, conn, err == nil)
	return response, plain(err)
}

func (b *Borrower) conn(name string) (*grpc.ClientConn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, known := b.nodes[name]
	switch {
	case b.ended:
		return nil, fmt.Errorf("node %s is not asked any more: this one stops", name)
	case !known:
		return nil, fmt.Errorf("node %s cannot be asked: it is no member", name)
	case l.conn != nil:
		return l.conn, nil
	}
	conn, err := dial(b.identity(), Node{Name: name, Address: l.address}, time.Now)
	if err != nil {
		return nil, err
	}
	l.conn = conn
	b.nodes[name] = l
	return conn, nil
}

// note keeps count of failures.
func (b *Borrower) note(name string, conn *grpc.ClientConn, answered bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.nodes[name]
	if l.conn != conn {
		return
	}
	if l.failures++; answered {
		l.failures = 0
	}
	if l.failures >= redialAfter {
		_ = conn.Close()
		l.conn, l.failures = nil, 0
	}
	b.nodes[name] = l
}

// Stop closes all connections, for good.
func (b *Borrower) Stop(context.Context) error {
	b.SetNodes(nil)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	return nil
}
