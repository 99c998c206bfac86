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
	c.cutUnregistered()
	c.fleet.Forget(name)
	c.options.Logger.Info("revoked a node", "node", name, "connected", connected)
	return connected, nil
}

// cutUnregistered ends the streams of nodes that are not registered, or by another key.
func (c *Control) cutUnregistered() { c.streams.cut(c.registered) }

// streams are the node streams that this control serves, so that they can be ended.
type streams struct {
	mu   sync.Mutex // guards live
	live map[*liveStream]struct{}
}

// liveStream is a node's stream whose context ends when the node is revoked.
type liveStream struct {
	fleet.Stream
	peer identity.Peer
	ctx  context.Context
	end  context.CancelCauseFunc
}

// Context implements the fleet's stream.
func (s *liveStream) Context() context.Context { return s.ctx }

// open gives the stream as one that cut can end. Call end when it is over.
func (s *streams) open(peer identity.Peer, stream fleet.Stream) (cuttable *liveStream, end func()) {
	cuttable = &liveStream{Stream: stream, peer: peer}
	cuttable.ctx, cuttable.end = context.WithCancelCause(stream.Context())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live == nil {
		s.live = map[*liveStream]struct{}{}
	}
	s.live[cuttable] = struct{}{}
	return cuttable, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.live, cuttable)
		cuttable.end(nil)
	}
}

// cut ends every stream that check refuses, with its reason.
func (s *streams) cut(check func(identity.Peer) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for stream := range s.live {
		if err := check(stream.peer); err != nil {
			stream.end(err)
		}
	}
}
