//go:build !linux

package socket

import (
	"errors"
	"net"
)

// Conn is a TCP connection as net has it.
type Conn struct{ *net.TCPConn }

// New makes a Conn of a connection.
func New(tcp *net.TCPConn) *Conn { return &Conn{tcp} }

// TCP is the connection as net has it.
func (c *Conn) TCP() *net.TCPConn { return c.TCPConn }

// Asks says whether Ask works.
func (c *Conn) Asks() bool { return false }

// Ask does not work on this system.
func (c *Conn) Ask(out, into []byte) (quiet bool, wrote, n int, err error) {
	return false, 0, 0, errors.ErrUnsupported
}
