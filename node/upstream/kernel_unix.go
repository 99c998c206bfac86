//go:build unix && !linux

package upstream

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// kernelSide is the kernel's side of a connection, to be asked about without taking anything from it. Asked by one at a time.
type kernelSide struct {
	raw  syscall.RawConn // nil: cannot be asked
	peek func(uintptr)   // peekNow, made a value once
	into [1]byte
	got  int
	err  error
}

func (s *kernelSide) open(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // closed: whoever speaks over it will be told
	}
	s.raw, s.peek = raw, s.peekNow
}

// ask says whether there are bytes to be read, and whether the peer has ended the connection, which is not seen behind such
// bytes. Both are false where it cannot be told.
func (s *kernelSide) ask() (spoken, ended bool) {
	if s.raw == nil {
		return false, false
	}
	// Control rather than Read, which a read deadline that has passed would end.
	if err := s.raw.Control(s.peek); err != nil {
		return false, true // closed on this side
	}
	if s.err == unix.EAGAIN {
		return false, false
	}
	return s.got > 0, s.got <= 0
}

func (s *kernelSide) peekNow(fd uintptr) {
	for {
		// It does not wait: all of net's sockets are non-blocking.
		if s.got, _, s.err = unix.Recvfrom(int(fd), s.into[:], unix.MSG_PEEK); s.err != unix.EINTR {
			return
		}
	}
}
