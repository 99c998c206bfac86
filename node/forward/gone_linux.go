package forward

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// gonePoll asks the kernel whether the other side of a connection has closed it, whatever is still unread. It is used by
// one goroutine.
type gonePoll struct {
	fds    [1]unix.PollFd
	closed bool
	ask    func(uintptr) // made a value once
}

func (g *gonePoll) gone(raw syscall.RawConn) bool {
	if g.ask == nil {
		g.ask = g.poll
	}
	if raw.Control(g.ask) != nil {
		return true // closed on this side
	}
	return g.closed
}

func (g *gonePoll) poll(fd uintptr) {
	g.fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLRDHUP}
	n, err := unix.Poll(g.fds[:], 0)
	g.closed = err == nil && n > 0 && g.fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}
