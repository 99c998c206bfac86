package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"
)

// requestBytes renders a request as it is sent.
func (e exchange) requestBytes() []byte {
	text := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\n", e.method, e.path, hostName)
	for _, f := range e.header {
		text = fmt.Appendf(text, "%s: %s\r\n", f.name, f.value)
	}
	return append(append(text, "\r\n"...), e.body...)
}

// client is one HTTP/1.1 connection.
type client struct {
	conn    net.Conn
	r       *bufio.Reader
	scratch []byte
}

func newClient(conn net.Conn) *client {
	return &client{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
}

// exchange sends a request and wants its answer. closing: the proxy will take no other request on this connection.
func (c *client) exchange(request, want []byte) (closing bool, err error) {
	if _, err := c.conn.Write(request); err != nil {
		return false, err
	}
	h, err := readHead(c.r)
	if err != nil {
		return false, fmt.Errorf("read the answer: %w", err)
	}
	if !bytes.HasPrefix(h.first, []byte("HTTP/1.1 200 ")) {
		return false, fmt.Errorf("the answer is %q", h.first)
	}
	if h.length != int64(len(want)) {
		return false, fmt.Errorf("the answer has Content-Length %d, want %d", h.length, len(want))
	}
	return h.close, c.compare(want)
}

var errWrongBody = errors.New("the answer's body is wrong")

// compare reads a body and wants it to be this one.
func (c *client) compare(want []byte) error {
	for len(want) > 0 {
		if _, err := c.r.Peek(1); err != nil {
			return fmt.Errorf("read the answer's body: %w", err)
		}
		chunk, err := c.r.Peek(min(c.r.Buffered(), len(want)))
		if err != nil {
			return err
		}
		if !bytes.Equal(chunk, want[:len(chunk)]) {
			return errWrongBody
		}
		want = want[len(chunk):]
		if _, err := c.r.Discard(len(chunk)); err != nil {
			return err
		}
	}
	return nil
}

// keepAlive is a worker that sends request after request on one connection.
func keepAlive(t target, e exchange, r *recorder) error {
	conn, err := t.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	c, request := newClient(conn), e.requestBytes()
	for r.running() {
		began := time.Now()
		closing, err := c.exchange(request, e.want)
		if err != nil {
			return err
		}
		r.done(began)
		if closing {
			return nil
		}
	}
	return nil
}

// newConnection is a worker that makes a connection for each request.
func newConnection(t target, e exchange, r *recorder) error {
	c, request := newClient(nil), e.requestBytes()
	for r.running() {
		began := time.Now()
		conn, err := t.dial()
		if err != nil {
			return err
		}
		c.conn = conn
		c.r.Reset(conn)
		_, err = c.exchange(request, e.want)
		conn.Close() // the proxy has most likely closed already: there is nothing to complain of
		if err != nil {
			return err
		}
		r.done(began)
	}
	return nil
}

func openKeepAlive(t target, e exchange) (net.Conn, error) {
	conn, err := t.dial()
	if err != nil {
		return nil, err
	}
	if _, err := newClient(conn).exchange(e.requestBytes(), e.want); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}
