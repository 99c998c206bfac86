// Package fleettest holds what the tests of the control lane share: the other end of a node's stream, in memory, and a
// node that does as it is told.
//
// Nothing in it waits for a clock, so that it can be used with testing/synctest.
package fleettest

import (
	"context"
	"errors"
	"io"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// Stream is control's end of a [Conn]: what gRPC would hand to a handler. Send waits until the node's end takes the
// message, or until the stream is over.
type Stream struct{ conn *Conn }

// Context ends with the connection, and when the handler has returned.
func (s Stream) Context() context.Context { return s.conn.ctx }

// Send implements the fleet's stream.
func (s Stream) Send(m *fleetv1.ToNode) error {
	select {
	case s.conn.toNode <- m:
		return nil
	case <-s.conn.ctx.Done():
		return context.Cause(s.conn.ctx)
	}
}

// Recv implements the fleet's stream.
func (s Stream) Recv() (*fleetv1.FromNode, error) {
	select {
	case m := <-s.conn.fromNode:
		return m, nil
	case <-s.conn.closed:
		return nil, io.EOF
	case <-s.conn.ctx.Done():
		return nil, context.Cause(s.conn.ctx)
	}
}

// Conn is the node's end of a stream. Its methods are for one goroutine.
type Conn struct {
	toNode   chan *fleetv1.ToNode
	fromNode chan *fleetv1.FromNode
	closed   chan struct{} // the node closed its direction
	ctx      context.Context
	cancel   context.CancelCauseFunc
	done     chan struct{} // the handler has returned
	err      error
}

// ErrBroken is what control's end sees of a connection that broke.
var ErrBroken = errors.New("connection reset by peer")

// errReturned is what a handler's goroutines see once it has returned.
var errReturned = errors.New("the handler has returned")

// Open gives a stream to a handler, in a goroutine of its own, which ends by Break, CloseSend or the handler itself.
func Open(serve func(Stream) error) *Conn {
	c := &Conn{
		toNode: make(chan *fleetv1.ToNode), fromNode: make(chan *fleetv1.FromNode),
		closed: make(chan struct{}), done: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	go func() {
		defer close(c.done)
		c.err = serve(Stream{c})
		c.cancel(errReturned)
	}()
	return c
}

// Say sends a message to control; false: the stream is over.
func (c *Conn) Say(m *fleetv1.FromNode) bool {
	select {
	case c.fromNode <- m:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// Hear takes control's next message; nil: the stream is over.
func (c *Conn) Hear() *fleetv1.ToNode {
	select {
	case m := <-c.toNode:
		return m
	case <-c.ctx.Done():
		return nil
	}
}

// Heard is where control's messages come, for a select.
func (c *Conn) Heard() <-chan *fleetv1.ToNode { return c.toNode }

// Over is closed when the stream is over.
func (c *Conn) Over() <-chan struct{} { return c.ctx.Done() }

// CloseSend ends the node's direction.
func (c *Conn) CloseSend() { close(c.closed) }

// Break ends the stream as a lost connection does.
func (c *Conn) Break() { c.cancel(ErrBroken) }

// Wait waits for the handler to return and gives its error.
func (c *Conn) Wait() error {
	<-c.done
	return c.err
}

// Hello, Status and the others below make the messages that a node sends.
func Hello(name string, applied *fleetv1.Release) *fleetv1.FromNode {
	return &fleetv1.FromNode{Message: &fleetv1.FromNode_Hello{Hello: &fleetv1.Hello{Name: name, BootId: "boot", Version: "test", Applied: applied}}}
}

// Prepared answers an offer; without refusals, that it can be served.
func Prepared(nonce uint64, refusals ...*fleetv1.Refusal) *fleetv1.FromNode {
	return &fleetv1.FromNode{Message: &fleetv1.FromNode_Prepared{Prepared: &fleetv1.Prepared{Nonce: nonce, Refusals: refusals}}}
}

// Committed confirms a commit.
func Committed(nonce uint64, applied *fleetv1.Release) *fleetv1.FromNode {
	return &fleetv1.FromNode{Message: &fleetv1.FromNode_Committed{Committed: &fleetv1.Committed{Nonce: nonce, Applied: applied}}}
}

// NeedFull says that a delta did not fit.
func NeedFull(nonce uint64, reason string) *fleetv1.FromNode {
	return &fleetv1.FromNode{Message: &fleetv1.FromNode_NeedFull{NeedFull: &fleetv1.NeedFull{Nonce: nonce, Reason: reason}}}
}

// Status is what a node says of itself every second.
func Status(m *fleetv1.Status) *fleetv1.FromNode {
	return &fleetv1.FromNode{Message: &fleetv1.FromNode_Status{Status: m}}
}

// Leaving says that a node stops on purpose.
func Leaving() *fleetv1.FromNode {
	return &fleetv1.FromNode{Message: &fleetv1.FromNode_Leaving{Leaving: &fleetv1.Leaving{}}}
}

// Refusal is one reason.
func Refusal(field, reason string) *fleetv1.Refusal {
	return &fleetv1.Refusal{Field: field, Reason: reason}
}
