package forward

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/meter"
	"github.com/pyserve/pyserve/node/socket"
)

// conn is a client's HTTP/1 connection. It is the peer of its exchanges, of which there is one at a time.
type conn struct {
	watch
	front  *Front
	nc     net.Conn
	tcp    *net.TCPConn // what nc is made of; nil over TLS
	socket *net.TCPConn // nc, or what is below TLS; nil where it is no TCP
	stale  func() bool
	number uint32
	peer   netip.Addr
	secure bool
	handed bool // to a tunnel
	asleep bool // run has left it idle

	x *exchange // nil while there is nothing from the client

	wait   syscall.RawConn    // nil: nc has to be read to be waited for
	ready  func(uintptr) bool // takeReady, made a value once
	got    int
	failed error
	own    []byte // where wait is nil
	idle   int64  // when it was idle for too long

	closing bool // the answer said that the connection ends
	unread  bool // something that the client sent was not read
}

// ownSize is what a connection holds for itself that has to be read to be waited for.
const ownSize = 512

func newConn(f *Front, nc net.Conn, tcp *net.TCPConn, client netip.Addr, stale func() bool) *conn {
	c := &conn{front: f, nc: nc, socket: tcp, stale: stale, number: f.numbers.Add(1), peer: clientOf(client, nc)}
	c.client = nc
	if tcp != nil {
		c.raw, _ = tcp.SyscallConn() // an error means that it is closed, which reading will tell
	}
	if plain, ok := nc.(*net.TCPConn); ok {
		c.tcp, c.nc = plain, socket.New(plain)
		c.wait = waitable(c.raw)
	} else {
		c.secure = tcp != nil
	}
	if c.wait != nil {
		c.ready, c.sleeper = c.takeReady, c.tcp
	} else {
		c.own = make([]byte, ownSize)
	}
	return c
}

// serve is the life of the connection, up to where it sleeps. It is called again then.
func (c *conn) serve() (sleeps bool) {
	defer func() {
		if !sleeps { // in the end, of which a panic is one: a drain would wait for ever
			c.end()
			c.front.meter.Connected(c.number, -1)
			c.front.exit()
		}
	}()
	return c.run()
}

func (c *conn) run() (sleeps bool) {
	for c.await() && c.carry() {
	}
	if c.x != nil {
		c.finish()
	}
	return c.asleep
}

// end closes the connection, unless it is a tunnel's.
func (c *conn) end() {
	if !c.handed {
		c.front.forget(&c.watch)
		c.nc.Close() // an error means that it is closed
	}
}

// await waits for the client's next request. While there is nothing, the connection holds no exchange, and after a while it
// sleeps, with the limit that it had before.
func (c *conn) await() bool {
	if !c.asleep {
		c.idle = c.front.after(c.front.idleTimeout)
		if !c.arm(&c.main, phaseIdle, c.idle) {
			return false
		}
	}
	c.asleep = false
	if !c.awaitBytes() {
		if c.asleep = c.toldToSleep(); c.asleep {
			c.main.set(phaseAsleep, c.idle)
		}
		return false
	}
	if head := c.front.after(c.front.headTimeout); !c.arm(&c.main, phaseHead, head) {
		if !c.toldToSleep() { // at the moment that the request came
			return false
		}
		c.main.set(phaseHead, head)
	}
	if c.parked.Load() {
		c.unpark()
	}
	return true
}

// toldToSleep is whether the sweeper interrupted the wait for that alone. It is undone then.
func (c *conn) toldToSleep() bool {
	if c.interrupted() != causeSleep {
		return false
	}
	c.nc.SetReadDeadline(noDeadline)
	c.cause.Store(uint32(causeNone))
	return true
}

func (c *conn) awaitBytes() bool {
	if c.wait != nil {
		if err := c.wait.Read(c.ready); err != nil || c.failed != nil || c.got == 0 {
			return false
		}
		c.x.have = c.got
		return true
	}
	if c.x != nil {
		c.release()
	}
	n, err := c.nc.Read(c.own)
	if n == 0 || err != nil && err != io.EOF {
		return false
	}
	c.hold()
	c.x.have = copy(c.x.in, c.own[:n])
	return true
}

// hold takes an exchange.
func (c *conn) hold() {
	c.x = c.front.take(c.front, &c.watch, c, c.number)
	c.x.origin.peer, c.x.origin.secure = c.peer, c.secure
}

// release gives the exchange back.
func (c *conn) release() {
	x := c.x
	c.x = nil
	c.front.giveBack(x)
}

// carry serves requests until nothing is left of what came. It reports whether the connection goes on.
func (c *conn) carry() bool {
	x := c.x
	for {
		x.reset()
		n, ok := c.readHead()
		if !ok {
			return false
		}
		x.headEnd, x.at = n, n
		c.begin()
		c.closing = true // until an answer has said otherwise
		f := x.carry()
		if c.handed || c.closing || f != nil && f.status == 0 {
			c.unread = x.at < x.have || !x.bodyRead()
			return false
		}
		if cause(c.cause.Load()) != causeNone { // what was interrupted was the backend, or over already
			c.nc.SetDeadline(noDeadline)
			c.main.due.Store(0)
			c.upload.due.Store(0)
			c.cause.Store(uint32(causeNone))
		}
		x.have = copy(x.in, x.in[x.at:x.have])
		if x.have == 0 {
			return true
		}
		if !c.arm(&c.main, phaseHead, c.front.after(c.front.headTimeout)) {
			return false
		}
	}
}

// readHead reads the head of a request, of which the first bytes are there. It answers for one that is none.
func (c *conn) readHead() (int, bool) {
	x := c.x
	x.request.Reset()
	for {
		n, err := x.request.Parse(x.in[:x.have])
		if err != nil {
			c.reject(err)
			return 0, false
		}
		if n > 0 {
			return n, true
		}
		if x.have == len(x.in) {
			bigger := make([]byte, 2*len(x.in))
			copy(bigger, x.in[:x.have])
			x.in = bigger
		}
		m, err := c.nc.Read(x.in[x.have:])
		if x.have += m; m == 0 {
			if c.interrupted() == causeTimeout {
				c.answerRejected(http.StatusRequestTimeout, "The head of the request did not come in time.", err)
			}
			return 0, false
		}
	}
}

// reject answers for a head that is not one.
func (c *conn) reject(err error) {
	var reason http1.Reason
	errors.As(err, &reason)
	first := c.requests.Load() == 0 // later, a preface would come out of a request's body
	if first && reason == http1.HTTP2Preface {
		c.front.http2.servePlain(c)
		return
	}
	c.front.meter.Rejected(meter.Client, int(reason))
	if first && reason == http1.UnknownProtocol && !c.secure {
		// Who does not speak HTTP/1 could not read an answer. As a preface of HTTP/2 it is an error of the connection (RFC 9113
		// section 3.4).
		c.front.logger.Debug("connection closed", "client", c.peer, "error", err)
		return
	}
	c.answerRejected(reason.Status(), "The request was not understood: "+reason.String()+".", err)
}

// answerRejected answers for a request that there is nothing to be known of.
func (c *conn) answerRejected(status int, sentence string, err error) {
	x := c.x
	x.begun = time.Now()
	x.request.Reset()
	x.salvaged = acceptIn(x.in[:x.have])
	defer func() { x.salvaged = "" }()
	x.readOrigin()
	c.unread = true
	c.main.due.Store(0) // the head's time may be up; the answer has its own
	if !c.arm(&c.main, phaseBody, c.front.after(writeTimeout)) {
		return
	}
	x.fail(refused(status, sentence, err))
	x.account()
}

// finish is the last thing: what the client still sends is read for a while, since closing with something unread would destroy
// answers that were not read yet (RFC 9112 section 9.6).
func (c *conn) finish() {
	x := c.x
	if !c.handed && c.unread && x.headSent && c.interrupted() != causeCut && c.interrupted() != causeClientGone {
		c.linger()
	}
	c.release()
}

const (
	lingerTimeout = 5 * time.Second
	// writeTimeout is for the proxy's own answers, for a 101 and for each other 1xx.
	writeTimeout = 10 * time.Second
)

func (c *conn) linger() {
	c.main.due.Store(0)
	if half, ok := c.nc.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	if c.nc.SetReadDeadline(time.Now().Add(lingerTimeout)) != nil || c.front.cutAll.Load() {
		return
	}
	for {
		if _, err := c.nc.Read(c.x.in); err != nil {
			return
		}
	}
}

// version is the client's.
func (c *conn) version() string {
	if c.x.request.Minor == 0 {
		return "1.0"
	}
	return "1.1"
}

// rewind goes back to the first byte behind the head.
func (c *conn) rewind() {
	x := c.x
	x.at = x.headEnd
	x.upBody.Reset(&x.request.Head)
	if x.route != nil && x.route.maxBody > 0 {
		x.upBody.Limit(x.route.maxBody)
	}
}

// pending gives what of the body is in the buffer. A chunked one stays chunked.
func (c *conn) pending() (wire []byte, done bool, err error) {
	x := c.x
	for n := -1; n != 0 && len(wire) == 0 && !x.upBody.Done(); {
		wire, n, err = x.upBody.NextRaw(x.in[x.at:x.have])
		x.at += n
		if err != nil {
			return nil, false, err
		}
	}
	if done = x.upBody.Done(); done && x.upBody.Trailer().Len() > 0 {
		// Only now is it known that there are trailers, and wire is empty: see NextRaw.
		x.tail = appendTrailers(x.tail[:0], x.upBody.Trailer())
		wire = x.tail
	}
	return wire, done, nil
}

// receive waits for more of the body.
func (c *conn) receive() (wire []byte, done bool, err error) {
	x := c.x
	for {
		wire, done, err = c.pending()
		if err != nil || done || len(wire) > 0 {
			return wire, done, err
		}
		x.makeRoom()
		n, err := c.nc.Read(x.in[x.have:])
		x.have += n
		if n == 0 {
			if err == io.EOF {
				err = fmt.Errorf("%w: %w", x.upBody.EOF(), io.ErrUnexpectedEOF)
			}
			return nil, false, err
		}
		if !x.arm(&x.watch.upload, phaseUpload, x.front.after(x.route.timeouts.Idle)) {
			return nil, false, errStoodStill
		}
	}
}

// makeRoom moves what is left of the body to right behind the head. Some of it can be left only in the middle of chunks, which
// need room for their trailers.
func (x *exchange) makeRoom() {
	left := x.in[x.at:x.have]
	if len(x.in)-x.headEnd < len(left)+http1.MaxTrailer {
		bigger := make([]byte, x.headEnd+len(left)+inSize)
		copy(bigger, x.in[:x.headEnd])
		x.in = bigger // the head goes on pointing into the old one
	}
	x.at, x.have = x.headEnd, x.headEnd+copy(x.in[x.headEnd:], left)
}

// bodyRead says whether the request's body is behind us, reading on in what has come.
func (x *exchange) bodyRead() bool {
	if x.request.Framing == http1.None || x.outcome.complete {
		return true
	}
	if x.uploading || x.pumped {
		return x.taken.Load() // a quick backend's answer comes before the pump has seen that it is done
	}
	x.peer.rewind()
	for {
		wire, done, err := x.peer.pending()
		if err != nil || len(wire) == 0 && !done {
			return false
		}
		if done {
			return true
		}
	}
}

// closes decides whether the answer ends the connection.
func (c *conn) closes() bool {
	x := c.x
	return !x.request.KeepAlive || c.front.leaving.Load() || c.stale != nil && c.stale() || !x.bodyRead()
}

// interim passes on a 1xx. The phase under way is the wait for the backend, at whose end the client is not interrupted, so this
// has a limit of its own. If the sweeper's deadline is undone with it, what comes next finds its limit expired.
func (c *conn) interim() error {
	x := c.x
	out, err := http1.AppendStatusLine(x.out[:0], x.response.Status, x.response.ReasonPhrase())
	if err != nil {
		return err
	}
	out, _ = x.appendResponseFields(out)
	x.out = http1.AppendHeadEnd(out)
	if err := c.nc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := c.nc.Write(x.out); err != nil {
		return err
	}
	return c.nc.SetWriteDeadline(noDeadline)
}

// reply answers for the proxy itself.
func (c *conn) reply(status int, kind string, body []byte) error {
	x := c.x
	c.closing = c.closes() || status == http.StatusBadRequest || status == http.StatusRequestTimeout || status == http.StatusNotImplemented
	out, err := http1.AppendStatusLine(x.out[:0], status, http.StatusText(status))
	if err != nil {
		return err
	}
	out = x.appendReplyFields(out, status, kind, len(body))
	if c.closing {
		out = append(out, "Connection: close\r\n"...)
	} else if x.request.Minor == 0 {
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	out = append(out, *c.front.date.Load()...)
	out = http1.AppendHeadEnd(out)
	if x.request.Method != http1.HEAD {
		out = append(out, body...)
		x.sent = int64(len(body))
	}
	x.out = out
	x.status, x.headSent = status, true
	if !c.arm(&c.main, phaseBody, c.front.after(writeTimeout)) { // it was the backend that was too slow
		c.main.set(phaseBody, c.front.after(writeTimeout))
	}
	if _, err := c.nc.Write(out); err != nil {
		c.closing = true
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// appendReplyFields is what the proxy's own answers say in whatever version.
func (x *exchange) appendReplyFields(out []byte, status int, kind string, size int) []byte {
	if x.answering {
		return append(out, x.tail...)
	}
	out = http1.AppendContentLength(out, int64(size))
	if x.route != nil && x.route.rate != nil {
		out = x.appendStanding(out)
	}
	if kind == "" {
		return out
	}
	out = append(out, "Content-Type: "...)
	out = append(out, kind...)
	out = append(out, "\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nX-Request-ID: "...)
	out = append(out, x.origin.id...)
	out = append(out, "\r\n"...)
	switch status {
	case http.StatusServiceUnavailable:
		out = append(out, "Retry-After: 1\r\n"...)
	case http.StatusTooManyRequests:
		out = append(strconv.AppendInt(append(out, "Retry-After: "...), wholeSeconds(x.standing.Retry), 10), "\r\n"...)
	}
	return out
}
