package main

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// dialWebSocket opens a connection and upgrades it.
func dialWebSocket(t target, path string) (*client, error) {
	conn, err := t.dial()
	if err != nil {
		return nil, err
	}
	c := newClient(conn)
	if err := c.upgrade(path); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

func (c *client) upgrade(path string) error {
	const key = "dGhlIHNhbXBsZSBub25jZQ==" // the example of RFC 6455
	_, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", path, hostName, key)
	if err != nil {
		return err
	}
	h, err := readHead(c.r)
	if err != nil {
		return fmt.Errorf("read the answer to the upgrade: %w", err)
	}
	if !bytes.HasPrefix(h.first, []byte("HTTP/1.1 101 ")) || string(h.accept) != acceptOf([]byte(key)) {
		return fmt.Errorf("the answer to the upgrade is %q", h.first)
	}
	return nil
}

// echo sends a masked frame and wants its payload back in a frame of the server's.
func (c *client) echo(frame, want []byte) error {
	if _, err := c.conn.Write(frame); err != nil {
		return err
	}
	c.scratch = append(c.scratch[:0], want...)
	if _, err := io.ReadFull(c.r, c.scratch); err != nil {
		return fmt.Errorf("read the echo: %w", err)
	}
	if !bytes.Equal(c.scratch, want) {
		return errors.New("the echo is wrong")
	}
	return nil
}

// echoFrames gives what goes to an echo and what must come back.
func (e exchange) echoFrames() (sent, want []byte) {
	return appendFrame(nil, binaryFrame, []byte{0x5a, 0x17, 0xc3, 0x88}, e.body), appendFrame(nil, binaryFrame, nil, e.body)
}

// echoes is a worker that sends message after message over one WebSocket.
func echoes(t target, e exchange, r *recorder) error {
	c, err := dialWebSocket(t, e.path)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	sent, want := e.echoFrames()
	for r.running() {
		began := time.Now()
		if err := c.echo(sent, want); err != nil {
			return err
		}
		r.done(began)
	}
	return nil
}

func openWebSocket(t target, e exchange) (net.Conn, error) {
	c, err := dialWebSocket(t, e.path)
	if err != nil {
		return nil, err
	}
	sent, want := e.echoFrames()
	if err := c.echo(sent, want); err != nil {
		return nil, errors.Join(err, c.conn.Close())
	}
	return c.conn, nil
}

// acceptOf answers a Sec-WebSocket-Key (RFC 6455, section 4.2.2).
func acceptOf(key []byte) string {
	sum := sha1.Sum(append(bytes.Clone(key), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}
