//go:build unix

package forward

import (
	"os"
	"syscall"
)

// waitable is raw where the socket can be waited for without a buffer.
func waitable(raw syscall.RawConn) syscall.RawConn { return raw }

// takeReady reads without blocking and reports whether there was an answer; where not, it is called again when there is one.
// An exchange is held from the first byte on.
func (c *conn) takeReady(fd uintptr) bool {
	if c.x == nil {
		c.hold()
	}
	for {
		n, err := syscall.Read(int(fd), c.x.in)
		switch err {
		case nil:
			c.got, c.failed = n, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			c.release()
			return false
		default:
			c.got, c.failed = 0, os.NewSyscallError("read", err)
		}
		return true
	}
}
