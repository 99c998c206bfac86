package forward

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
)

var errStoodStill = errors.New("the request's body stood still for too long")

// noDeadline takes a deadline back.
var noDeadline time.Time

// uploadOutcome is what became of a request's body.
type uploadOutcome struct {
	complete bool  // all of it was sent
	client   error // why it could not be read
	backend  error // why it could not be written
}

// startUpload sends the rest of the body in a goroutine of its own, until endUpload.
func (x *exchange) startUpload() *failure {
	x.outcome = uploadOutcome{}
	if !x.arm(&x.main, phaseAnswer, x.attemptEnd) {
		return x.attemptFailure(context.Canceled, false)
	}
	x.uploading, x.pumped = true, true
	x.taken.Store(false)
	go x.pump(x.conn)
	return nil
}

// pump is that goroutine. Where the body cannot be read there will be no answer worth waiting for, so the exchange is woken;
// where it cannot be written there may well be one.
func (x *exchange) pump(conn *upstream.Conn) {
	out := x.guardedBody(conn)
	if out.complete {
		x.awaitFrom(x.within(x.route.timeouts.ResponseHeader))
	}
	wake := out.client != nil
	x.uploaded <- out // x is not ours any more
	if wake {
		conn.SetDeadline(longAgo)
	}
}

// guardedBody turns a panic into the failure of its request, as guarded does: in this goroutine nobody else would.
func (x *exchange) guardedBody(conn *upstream.Conn) (out uploadOutcome) {
	defer func() {
		if p := recover(); p != nil {
			x.arm(&x.upload, phaseNone, 0)
			out = uploadOutcome{client: &clientError{panicked(p)}}
		}
	}()
	return x.pumpBody(conn)
}

// awaitFrom begins the time for the answer's head, unless that is there already.
func (x *exchange) awaitFrom(due int64) {
	seen := x.main.due.Load()
	if seen >= 0 && phase(seen&phaseMask) == phaseAnswer {
		x.main.due.CompareAndSwap(seen, due<<phaseBits|int64(phaseAnswer))
	}
}

func (x *exchange) pumpBody(conn *upstream.Conn) uploadOutcome {
	limit := x.route.timeouts.Idle
	var unsent error // the rest is read all the same where another backend may be sent it
	for {
		if out, ended := x.spliceUpload(conn); ended {
			return out
		}
		if !x.arm(&x.upload, phaseUpload, x.front.after(limit)) {
			return uploadOutcome{client: &clientError{errStoodStill}}
		}
		wire, done, err := x.peer.receive()
		if err != nil {
			x.arm(&x.upload, phaseNone, 0)
			return uploadOutcome{client: &clientError{err}}
		}
		x.taken.Store(done)
		x.received += int64(len(wire))
		x.body.keep(wire, done)
		if len(wire) > 0 && unsent == nil {
			if _, err := conn.Write(wire); err != nil {
				unsent = fmt.Errorf("send the request's body: %w", err)
			}
		}
		if unsent != nil && (done || !x.body.on) {
			x.arm(&x.upload, phaseNone, 0)
			return uploadOutcome{backend: unsent}
		}
		if done {
			return uploadOutcome{complete: x.arm(&x.upload, phaseNone, 0)}
		}
	}
}

// endUpload takes the body back. A pump that is still at it is interrupted, and then the connection cannot go on, unless all of
// the body was taken.
func (x *exchange) endUpload() {
	if !x.uploading {
		return
	}
	select {
	case x.outcome = <-x.uploaded:
	default:
		x.client.SetReadDeadline(longAgo)
		if c := x.conn; c != nil {
			c.SetWriteDeadline(longAgo)
		}
		x.outcome = <-x.uploaded
		x.client.SetReadDeadline(noDeadline)
		x.outcome.client = nil // it was us
		if x.outcome.complete {
			x.conn.SetWriteDeadline(noDeadline) // the pump was done at that moment, and the connection may be kept
		}
	}
	x.uploading = false
}
