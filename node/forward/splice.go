package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/pyserve/pyserve/node/splice"
	"github.com/pyserve/pyserve/node/upstream"
)

// spliceLeast is how many bytes of data must be ahead for splice to be worth it. Over the loopback it saves a fifth of the CPU
// time that copying them takes at 64 KiB and at 1 MiB, two fifths at 128 KiB and at 32 MiB, and nothing at 32 KiB.
const spliceLeast = 64 << 10

// spliceable gives a transfer of a body of which left is ahead, as http1.Body.Left has it; nil: it has to be copied. src and
// dst are nil where that side is no plain TCP.
func spliceable(left int64, dst, src *net.TCPConn) *splice.Mover {
	if left >= 0 && left < spliceLeast || dst == nil || src == nil {
		return nil
	}
	m, err := splice.Start(dst, src)
	if err != nil {
		return nil // what was not begun is copied, and nobody is the worse for it
	}
	return m
}

// drain writes what m holds. Each piece has its own time, so that who is slow but steady comes to the end.
func (x *exchange) drain(m *splice.Mover, l *limit, p phase) (written int64, err error) {
	for m.Held() > 0 {
		if !x.arm(l, p, x.front.after(x.route.timeouts.Idle)) {
			return written, context.Canceled
		}
		n, err := m.Drain()
		if written += n; err != nil {
			return written, err
		}
	}
	return written, nil
}

// splice passes on a large body, or a large chunk of one, without taking it through user space, where both sides are plain
// TCP. moved is whether it did anything: it need not come to the end.
func (c *conn) splice(how delivery) (moved bool, f *failure) {
	x := c.x
	if how != deliverData && how != deliverRaw || x.from != x.to {
		return false, nil
	}
	m := spliceable(x.downBody.Left(), c.tcp, x.conn.Plain())
	if m == nil {
		return false, nil
	}
	defer m.Stop()
	for x.downBody.Left() != 0 {
		more, f := c.spliceMore(m)
		if f != nil || !more {
			return moved, f
		}
		moved = true
	}
	return moved, nil
}

// spliceMore passes on a piece. more is false where there is no pipe any more, or the connection's end has ended the body.
func (c *conn) spliceMore(m *splice.Mover) (more bool, f *failure) {
	x := c.x
	if f := c.bodyTime(); f != nil {
		return false, f
	}
	n, err := m.Fill(x.downBody.Left())
	switch {
	case errors.Is(err, splice.ErrUnavailable):
		return false, nil
	case err == io.EOF:
		if err = x.downBody.EOF(); err == nil {
			return false, nil
		}
		return false, x.relayFailure(err)
	case err != nil:
		return false, x.relayFailure(err)
	}
	x.downBody.Skip(n)
	written, err := x.drain(m, &c.main, phaseBody)
	if x.sent += written; err != nil {
		return false, c.writeFailure(err)
	}
	return true, nil
}

// spliceUpload is splice for the request's body. It reports an outcome where that is not to be gone on with.
func (x *exchange) spliceUpload(to *upstream.Conn) (out uploadOutcome, ended bool) {
	c, ok := x.peer.(*conn)
	if !ok || x.at != x.have || x.body.on {
		return out, false
	}
	m := spliceable(x.upBody.Left(), to.Plain(), c.tcp)
	if m == nil {
		return out, false
	}
	defer m.Stop()
	for more := true; more && x.upBody.Left() > 0; {
		more, out = x.spliceUploadMore(m)
	}
	return out, out.client != nil || out.backend != nil
}

// spliceUploadMore is spliceMore for the request's body.
func (x *exchange) spliceUploadMore(m *splice.Mover) (more bool, out uploadOutcome) {
	if !x.arm(&x.upload, phaseUpload, x.front.after(x.route.timeouts.Idle)) {
		return false, uploadOutcome{client: &clientError{errStoodStill}}
	}
	n, err := m.Fill(x.upBody.Left())
	switch {
	case errors.Is(err, splice.ErrUnavailable):
		return false, out
	case err == io.EOF:
		err = fmt.Errorf("%w: %w", x.upBody.EOF(), io.ErrUnexpectedEOF)
		fallthrough
	case err != nil:
		x.arm(&x.upload, phaseNone, 0)
		return false, uploadOutcome{client: &clientError{err}}
	}
	x.upBody.Skip(n)
	x.taken.Store(x.upBody.Done())
	x.received += n
	if _, err := x.drain(m, &x.upload, phaseUpload); err != nil {
		x.arm(&x.upload, phaseNone, 0)
		return false, uploadOutcome{backend: fmt.Errorf("send the request's body: %w", err)}
	}
	return true, out
}
