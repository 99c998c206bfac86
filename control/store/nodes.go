package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// Node is an enrolled node.
type Node struct {
	Name string
	// KeyHash is the SHA-256 of its public key (SPKI, DER).
	KeyHash  [32]byte
	Enrolled time.Time
	// Left says that it stopped on purpose.
	Left bool
	// Token is the id of the token that it came by.
	Token string
}

func (n *Node) toProto() *storev1.Node {
	return &storev1.Node{Name: n.Name, KeyHash: n.KeyHash[:], Enrolled: timestamppb.New(n.Enrolled), Left: n.Left, Token: n.Token}
}

func nodeFrom(m *storev1.Node) (Node, error) {
	hash, err := hashFrom(m.GetKeyHash())
	if err != nil {
		return Node{}, fmt.Errorf("the node's key hash: %w", err)
	}
	enrolled, err := timeFrom(m.GetEnrolled())
	if err != nil {
		return Node{}, err
	}
	if len(m.GetToken()) > maxNameBytes {
		return Node{}, fmt.Errorf("the id of the node's token is longer than %d bytes", maxNameBytes)
	}
	return Node{m.GetName(), hash, enrolled, m.GetLeft(), m.GetToken()}, checkName("the node's name", m.GetName())
}

// PutNode remembers a node, in the place of what was remembered under its name.
func (s *Store) PutNode(ctx context.Context, n Node) error {
	c := &storev1.Command{Action: &storev1.Command_PutNode{PutNode: &storev1.PutNode{Node: n.toProto()}}}
	if err := s.write(ctx, c); err != nil {
		return fmt.Errorf("remember node %.80q: %w", n.Name, err)
	}
	return nil
}

// RemoveNode forgets a node; one that is not known is no error.
func (s *Store) RemoveNode(ctx context.Context, name string) error {
	c := &storev1.Command{Action: &storev1.Command_RemoveNode{RemoveNode: &storev1.RemoveNode{Name: name}}}
	if err := s.write(ctx, c); err != nil {
		return fmt.Errorf("forget node %.80q: %w", name, err)
	}
	return nil
}

// Nodes gives every node that is remembered, in the order of their names.
func (s *Store) Nodes() []Node {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return sorted(s.machine.state.nodes)
}

// Node gives the node of that name.
func (s *Store) Node(name string) (Node, bool) {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	n, ok := s.machine.state.nodes[name]
	return n, ok
}

// Alike gives the name of a node that differs from name in case alone; empty: there is none.
func (s *Store) Alike(name string) string {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	for other := range s.machine.state.nodes {
		if other != name && strings.EqualFold(other, name) {
			return other
		}
	}
	return ""
}
