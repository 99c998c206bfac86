package forward

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/tunnel"
)

// A WebSocket over HTTP/2 begins with CONNECT and :protocol (RFC 8441). The backend is asked in HTTP/1.1: GET with Upgrade and a
// key of ours, and its 101 becomes a 200.

var (
	errUnknownProtocol = errors.New("a protocol other than websocket")
	errNotSwitched     = errors.New("the backend did not change to WebSocket")
)

// connect begins a handshake.
func (s *stream) connect(protocol string) error {
	if protocol != "websocket" {
		return fmt.Errorf("%w: %q", errUnknownProtocol, protocol)
	}
	var nonce [16]byte
	rand.Read(nonce[:]) // never fails
	s.key = base64.StdEncoding.EncodeToString(nonce[:])
	return nil
}

// appendHandshake is what HTTP/1.1 needs beside the client's own fields (RFC 6455 section 4.1).
func (s *stream) appendHandshake(out []byte) []byte {
	out = append(out, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: "...)
	out = append(out, s.key...)
	return append(out, "\r\n"...)
}

// accepted says whether the backend's 101 answers our key (RFC 6455 section 4.2.2).
func (s *stream) accepted() bool {
	sum := sha1.Sum([]byte(s.key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	a := &s.x.response
	return a.WebSocket && string(a.Get(http1.SecWebSocketAccept)) == base64.StdEncoding.EncodeToString(sum[:])
}

// notSwitched is the failure of a backend that takes the handshake for something else. A 2xx of it must not go on: for the
// client it would be the beginning of a WebSocket.
func (s *stream) notSwitched() *failure {
	return &failure{
		class: ClassUpstreamBefore, status: http.StatusBadGateway, sentence: "The backend does not speak WebSocket here.", err: errNotSwitched,
	}
}

// join answers 200 and makes the stream one side of a tunnel, which serveStream then waits for.
func (s *stream) join() *failure {
	x := s.x
	if s.key == "" || !s.accepted() {
		return s.notSwitched()
	}
	h := s.w.Header()
	if f := s.fill(h); f != nil {
		return f
	}
	delete(h, "Sec-Websocket-Accept")
	h["Content-Type"] = nil
	s.sayClosing(h)
	if !s.arm(&s.main, phaseBody, s.front.after(writeTimeout)) {
		return x.relayFailure(errNotSwitched)
	}
	x.status, x.headSent = http.StatusOK, true
	s.in.alone()
	s.w.WriteHeader(x.status)
	if err := s.w.FlushError(); err != nil {
		return &failure{class: ClassClient, err: err}
	}
	if !s.arm(&s.main, phaseNone, 0) {
		return x.relayFailure(errNotSwitched)
	}
	s.front.forget(&s.watch)
	backend := x.conn
	x.backend.Store(nil)
	x.conn = nil
	s.joined = newStreamConn(s.w, s.in)
	t := x.tunnel(s.joined, backend)
	t.Ended = s.joined.ended(t.Ended)
	if err := x.startTunnel(t); err != nil {
		s.joined.end(err)
	}
	return nil
}

// streamSize is the buffer that the client's bytes come through.
const streamSize = 4 << 10

// streamConn is a stream as a connection. The handler's goroutine reads the stream and lends what it has read to Read: a stream
// that was read with a deadline cannot be read any more, and a tunnel goes on after one.
type streamConn struct {
	w       streamWriter
	nc      net.Conn
	arrived chan []byte   // closed at the stream's end, with why in failed
	taken   chan struct{} // what arrived was read to its end
	failed  error
	rest    []byte // Read's
	passed  readDeadline
	writing atomic.Bool
	once    sync.Once
	closed  chan struct{}
	over    chan error // capacity 1: how the tunnel ended, after which nobody uses the stream
}

func newStreamConn(w streamWriter, nc net.Conn) *streamConn {
	return &streamConn{
		w: w, nc: nc, arrived: make(chan []byte), taken: make(chan struct{}), closed: make(chan struct{}), over: make(chan error, 1),
		passed: readDeadline{reached: make(chan struct{})},
	}
}

// serve reads the stream until the tunnel has ended. It reports whether that was in order.
func (c *streamConn) serve(body io.Reader) bool {
	buf := make([]byte, streamSize)
	for c.failed == nil {
		n, err := body.Read(buf)
		if n > 0 && !c.lend(buf[:n]) {
			err = net.ErrClosed
		}
		c.failed = err
	}
	close(c.arrived)
	err := <-c.over
	return err == nil || errors.Is(err, tunnel.ErrEnded)
}

// lend waits until b was read; false: it will not be.
func (c *streamConn) lend(b []byte) bool {
	select {
	case c.arrived <- b:
	case <-c.closed:
		return false
	}
	select {
	case <-c.taken:
		return true
	case <-c.closed:
		return false
	}
}

// ended is told of the tunnel's end, and tells.
func (c *streamConn) ended(tell func(tunnel.Summary)) func(tunnel.Summary) {
	return func(sum tunnel.Summary) {
		if tell != nil {
			tell(sum)
		}
		c.end(sum.Err)
	}
}

func (c *streamConn) end(err error) { c.over <- err }

func (c *streamConn) Read(p []byte) (int, error) {
	reached := c.passed.channel()
	select {
	case <-reached:
		return 0, os.ErrDeadlineExceeded
	default:
	}
	if len(c.rest) == 0 {
		var ok bool
		select {
		case c.rest, ok = <-c.arrived:
			if !ok {
				return 0, c.failed
			}
		case <-reached:
			return 0, os.ErrDeadlineExceeded
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	n := copy(p, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		select {
		case c.taken <- struct{}{}:
		case <-c.closed:
		}
	}
	return n, nil
}

func (c *streamConn) Write(p []byte) (int, error) {
	c.writing.Store(true)
	defer c.writing.Store(false)
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	n, err := c.w.Write(p)
	if err == nil {
		err = c.w.FlushError()
	}
	return n, err
}

// Close wakes whoever reads or writes. What was written has been sent: the stream ends in order, unless somebody waits for the
// client to take more.
func (c *streamConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.passed.set(noDeadline)
		c.w.SetReadDeadline(longAgo)
		if c.writing.Load() {
			c.w.SetWriteDeadline(longAgo)
		}
	})
	return nil
}

func (c *streamConn) LocalAddr() net.Addr  { return c.nc.LocalAddr() }
func (c *streamConn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

func (c *streamConn) SetReadDeadline(t time.Time) error {
	c.passed.set(t)
	return nil
}

// SetWriteDeadline is final where it is reached: the stream is reset.
func (c *streamConn) SetWriteDeadline(t time.Time) error { return c.w.SetWriteDeadline(t) }

func (c *streamConn) SetDeadline(t time.Time) error {
	c.passed.set(t)
	return c.w.SetWriteDeadline(t)
}

// readDeadline is a deadline that can be waited for and taken back.
type readDeadline struct {
	// mu guards what follows.
	mu      sync.Mutex
	timer   *time.Timer
	reached chan struct{} // closed then
}

func (d *readDeadline) channel() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reached
}

func (d *readDeadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.reached // it is about to be
	}
	d.timer = nil
	past := false
	select {
	case <-d.reached:
		past = true
	default:
	}
	left := time.Until(t)
	switch {
	case !t.IsZero() && left <= 0:
		if !past {
			close(d.reached)
		}
		return
	case past:
		d.reached = make(chan struct{})
	}
	if !t.IsZero() {
		reached := d.reached
		d.timer = time.AfterFunc(left, func() { close(reached) })
	}
}
