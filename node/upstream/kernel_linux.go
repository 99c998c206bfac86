package upstream

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// kernelSide is the kernel's side of a connection, to be asked about without reading from it. Asked by one at a time.
type kernelSide struct {
	raw  syscall.RawConn // nil: cannot be asked
	poll func(uintptr)   // pollNow, made a value once
	fds  [1]unix.PollFd
}

func (s *kernelSide) open(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // closed: whoever speaks over it will be told
	}
	s.raw, s.poll = raw, s.pollNow
}

// ask says whether there are bytes to be read, and whether the peer has ended the connection, though it be behind such bytes.
// Both are false where it cannot be told.
func (s *kernelSide) ask() (spoken, ended bool) {
	if s.raw == nil {
		return false, false
	}
	// Control rather than Read, which a read deadline that has passed would end.
	if err := s.raw.Control(s.poll); err != nil {
		return false, true // closed on this side
	}
	got := s.fds[0].Revents
	return got&unix.POLLIN != 0, got&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}

func (s *kernelSide) pollNow(fd uintptr) {
	for {
		s.fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}
		// Any other error is the kernel's want of memory: Revents is 0 then.
		if _, err := unix.Poll(s.fds[:], 0); err != unix.EINTR {
			return
		}
	}
}
