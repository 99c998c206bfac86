//go:build !unix

package upstream

import "net"

// socket cannot be asked about without reading from it.
type socket struct{}

func (s *socket) open(*net.TCPConn) {}

func (s *socket) ask() (spoken, ended bool) { return false, false }
