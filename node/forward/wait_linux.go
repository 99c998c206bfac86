package forward

import (
	"os"
	"syscall"

	"github.com/pyserve/pyserve/node/socket"
)

// waitable is raw where the socket can be waited for without a buffer.
func waitable(raw syscall.RawConn) syscall.RawConn { return raw }

// takeReady reads without blocking and reports whether there was an answer; where not, it is called again when there is one.
// An exchange is held from the first byte on.
func (c *conn) takeReady(fd uintptr) bool {
	if c.x == nil {
		c.hold()
	}
	n, errno := socket.Read(fd, c.x.in)
	if errno == syscall.EAGAIN {
		c.release()
		return false
	}
	c.got, c.failed = n, nil
	if errno != 0 {
		c.failed = os.NewSyscallError("read", errno)
	}
	return true
}
