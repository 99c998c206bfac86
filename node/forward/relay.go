package forward

import (
	"context"
	"fmt"
	"io"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/meter"
)

// delivery is how a body goes to a client of HTTP/1.
type delivery uint8

const (
	deliverNothing delivery = iota
	deliverData             // as it is: by its length, or until the connection closes
	deliverRaw              // in the backend's chunks
	deliverChunks           // in our chunks
)

// delivery decides on it. endless is that only the end of the connection ends the body.
func (x *exchange) delivery() (how delivery, endless bool) {
	switch x.response.Framing {
	case http1.Length:
		return deliverData, false
	case http1.Chunked:
		if x.request.Minor > 0 {
			return deliverRaw, false
		}
		return deliverData, true
	case http1.UntilClose:
		// In chunks, so that the client can tell an end from a break.
		if x.request.Minor > 0 {
			return deliverChunks, false
		}
		return deliverData, true
	}
	return deliverNothing, false
}

// relay passes on the final answer.
func (c *conn) relay() *failure {
	x := c.x
	how, endless := x.delivery()
	c.closing = c.closes() || endless
	if _, err := x.appendResponseHead(how == deliverRaw || how == deliverChunks, c.closing); err != nil {
		return headFailure(err)
	}
	if f := c.bodyTime(); f != nil {
		return f
	}
	x.status, x.headSent = x.response.Status, true
	f := c.relayFirst(how)
	for f == nil && !x.downBody.Done() {
		f = c.relayMore(how)
	}
	if f == nil {
		f = c.relayEnd(how)
	}
	if f != nil && endless && x.headSent {
		c.reset() // or what there is would look complete
	}
	return f
}

// bodyTime begins the time for the next bytes.
func (c *conn) bodyTime() *failure {
	x := c.x
	if x.arm(&c.main, phaseBody, x.front.after(x.route.timeouts.Idle)) {
		return nil
	}
	return x.relayFailure(context.Canceled)
}

// relayFailure classes an error after the answer has begun, or that keeps it from beginning.
func (x *exchange) relayFailure(err error) *failure {
	f := x.interruption(err)
	if f == nil {
		f = x.uploadFailure()
	}
	if f == nil {
		f = &failure{class: ClassUpstreamAfter, err: fmt.Errorf("read the answer of %s: %w", x.conn.Backend().Address(), err)}
	}
	if f.class == ClassUpstreamBefore && x.headSent {
		f.class = ClassUpstreamAfter
	}
	return f
}

// write sends to the client.
func (c *conn) write(b []byte) *failure {
	if _, err := c.nc.Write(b); err != nil {
		return c.writeFailure(err)
	}
	return nil
}

// writeFailure classes an error of sending to the client.
func (c *conn) writeFailure(err error) *failure {
	f := c.x.interruption(err)
	if f == nil {
		return &failure{class: ClassClient, err: fmt.Errorf("write to client: %w", err)}
	}
	if f.class == ClassUpstreamBefore {
		f.class = ClassClient // it did not read in time
	}
	return f
}

// relayFirst sends the head, with what of the body came along: one write.
func (c *conn) relayFirst(how delivery) *failure {
	x := c.x
	if how == deliverNothing {
		return c.write(x.out)
	}
	start := x.from
	wire, n, err := x.next(how)
	x.from += n
	if err != nil { // nothing has gone out yet
		x.status, x.headSent = 0, false
		return x.attemptFailure(err, true)
	}
	x.sent += int64(len(wire))
	switch {
	case len(wire) == 0:
		return c.write(x.out)
	case how == deliverChunks:
		x.out = http1.AppendChunkHeader(x.out, int64(len(wire)))
		x.out = append(append(x.out, wire...), "\r\n"...)
		return c.write(x.out)
	case start >= len(x.out) && &wire[0] == &x.back[start]:
		// The backend's head is done with: ours takes its place, right before the body.
		begin := start - len(x.out)
		copy(x.back[begin:], x.out)
		return c.write(x.back[begin : start+len(wire)])
	}
	x.out = append(x.out, wire...)
	return c.write(x.out)
}

// next takes the next piece of the body from what the backend sent.
func (x *exchange) next(how delivery) (wire []byte, n int, err error) {
	if how == deliverRaw {
		return x.downBody.NextRaw(x.back[x.from:x.to])
	}
	return x.downBody.Next(x.back[x.from:x.to])
}

// nonsense is an answer that cannot be read on.
func (x *exchange) nonsense(err error) *failure {
	if reason, ok := err.(http1.Reason); ok {
		x.meter.Rejected(meter.Backend, int(reason))
	}
	return x.relayFailure(err)
}

// relayMore sends a piece of the body, and reads more where there is none. What was read is sent at once, whatever the kind
// of answer: events, slow downloads and long polls need no special case.
func (c *conn) relayMore(how delivery) *failure {
	x := c.x
	start := x.from
	wire, n, err := x.next(how)
	x.from += n
	if f := c.bodyTime(); f != nil {
		return f
	}
	switch {
	case err != nil:
		return x.nonsense(err)
	case len(wire) > 0:
		x.sent += int64(len(wire))
		if how == deliverChunks {
			wire = x.chunk(start, len(wire))
		}
		return c.write(wire)
	case n > 0 || x.downBody.Done():
		return nil
	}
	if moved, f := c.splice(how); moved || f != nil {
		return f
	}
	return x.readMore()
}

// chunkRoom is for the end of a chunk behind what was read.
const chunkRoom = 2

// chunk frames size bytes at start of the buffer, in place.
func (x *exchange) chunk(start, size int) []byte {
	begin := http1.PutChunkHeader(x.back[:start], int64(size))
	end := copy(x.back[start+size:], "\r\n")
	return x.back[begin : start+size+end]
}

// readMore reads from the backend, behind what is left.
func (x *exchange) readMore() *failure {
	x.to = headroom + copy(x.back[headroom:], x.back[x.from:x.to])
	x.from = headroom
	n, err := x.conn.Read(x.back[x.to : len(x.back)-chunkRoom])
	x.to += n
	switch {
	case n > 0:
		return nil
	case err == io.EOF:
		if err = x.downBody.EOF(); err == nil {
			return nil
		}
	}
	return x.relayFailure(err)
}

var lastChunk = []byte("0\r\n\r\n")

// relayEnd sends what ends a chunked body and was not in it: our own last chunk, or one with trailers.
func (c *conn) relayEnd(how delivery) *failure {
	x := c.x
	switch {
	case how == deliverChunks:
		return c.write(lastChunk)
	case how == deliverRaw && x.downBody.Trailer().Len() > 0:
		x.out = appendTrailers(x.out[:0], x.downBody.Trailer())
		return c.write(x.out)
	}
	return nil
}

// appendTrailers writes the last chunk and the trailers that may be passed on.
func appendTrailers(out []byte, t *http1.Fields) []byte {
	out = http1.AppendLastChunk(out)
	for i := range t.List() {
		if !t.List()[i].Hop {
			out = t.AppendLine(out, i)
		}
	}
	return http1.AppendHeadEnd(out)
}

// reset makes the end of the connection look like the break that it is: a RST, and over TLS no close_notify before it.
// Errors mean that it is closed.
func (c *conn) reset() {
	if c.socket != nil {
		c.socket.SetLinger(0)
		c.socket.Close()
	}
}
