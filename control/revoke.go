package control

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/identity"
)

// ErrNoNode says that no node of a name is registered.
var ErrNoNode = errors.New("no node of that name is registered")

// RevokeNode forgets a node: its streams end at once, with this control and with every other, its certificate is not
// believed any more, and status shows it no longer. What it serves, it serves on, from its own memory. It says whether
// the node was connected here, and fails with [ErrNoNode].
func (c *Control) RevokeNode(ctx context.Context, name string) (connected bool, err error) {
	audit.Describe(ctx, "node %.80q", name)
	c.registry.Lock()
	defer c.registry.Unlock()
	if _, known := c.store.Node(name); !known {
		return false, fmt.Errorf("%.80q: %w", name, ErrNoNode)
	}
	connected = c.fleet.Connected(name)
	if err := c.store.RemoveNode(ctx, name); err != nil {
		return connected, err
	}
	c.cutRefused()
	c.fleet.Forget(name)
	c.options.Logger.Info("revoked a node", "node", name, "connected", connected)
	return connected, nil
}

// cutRefused ends the streams of nodes that are not registered, or by another key, and the calls of people whose certificates
// were revoked.
func (c *Control) cutRefused() {
	c.streams.cut(func(peer identity.Peer) error {
		if peer.Role.IsPerson() {
			return c.Believes(peer)
		}
		return c.registered(peer)
	})
}

// streams are the node streams and the people's calls that this control serves, so that they can be ended.
type streams struct {
	mu   sync.Mutex // guards live
	live map[*cuttable]struct{}
}

// cuttable is who can be cut off, and how.
type cuttable struct {
	peer identity.Peer
	end  context.CancelCauseFunc
}

// liveStream is a node's stream whose context ends when the node is revoked.
type liveStream struct {
	fleet.Stream
	ctx context.Context
}

// Context implements the fleet's stream.
func (s *liveStream) Context() context.Context { return s.ctx }

// open gives a context that cut can end. Call end when what has it is over.
func (s *streams) open(ctx context.Context, peer identity.Peer) (_ context.Context, end func()) {
	c := &cuttable{peer: peer}
	ctx, c.end = context.WithCancelCause(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live == nil {
		s.live = map[*cuttable]struct{}{}
	}
	s.live[c] = struct{}{}
	return ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.live, c)
		c.end(nil)
	}
}

// cut ends everything of whom check refuses, with its reason.
func (s *streams) cut(check func(identity.Peer) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.live {
		if err := check(c.peer); err != nil {
			c.end(err)
		}
	}
}
