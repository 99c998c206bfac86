package tunnel

import (
	"io"
	"net"
	"os"
	"syscall"

	"github.com/pyserve/pyserve/node/socket"
)

// tcpOf is c as the kernel's socket, where reading it is no more than a read(2); otherwise nil.
func tcpOf(c net.Conn) *net.TCPConn {
	switch c := c.(type) {
	case *net.TCPConn:
		return c
	case *socket.Conn:
		return c.TCP()
	case interface{ Plain() *net.TCPConn }:
		// A connection that is counted where it was opened, but read as what it is.
		return c.Plain()
	}
	return nil
}

// rawOf is src's socket to be waited for; nil where it is none.
func rawOf(src net.Conn) syscall.RawConn {
	tcp := tcpOf(src)
	if tcp == nil {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil // closed: Read will say so
	}
	return raw
}

// wait returns once bytes have come, which are in f.held then: while there are none, it holds no buffer.
func (f *flow) wait() (n int, err error) {
	if err := f.raw.Read(f.ready); err != nil {
		return 0, err
	}
	return f.got, f.failed
}

// take reads without blocking and reports whether there was an answer; where not, it is called again when there is one.
func (f *flow) take(fd uintptr) bool {
	f.hold()
	n, errno := socket.Read(fd, *f.held)
	f.got, f.failed = n, nil
	switch {
	case errno == syscall.EAGAIN:
		f.release()
		return false
	case errno != 0:
		f.failed = os.NewSyscallError("read", errno)
	case n == 0:
		f.failed = io.EOF
	}
	return true
}

// passRaw is pass where the kernel tells what it has.
func (f *flow) passRaw() error {
	if err := f.raw.Read(f.passing); err != nil {
		return f.readFailure(err)
	}
	return f.failed
}

// passReady passes on what there is. It is called when something may have come, and says false to be called again. Where the link
// is to be closed in order, that never comes: the deadline of the past does, which link.leave sets after it has said so. It must
// be behind us when flow.leave begins to set deadlines of its own.
//
// It reads until there is nothing, although a read that gave less than it could mostly was the last: behind it there may be a
// reset, for which there was but one wake-up with what came before. TCP_INQ tells of an end there, but not of that.
func (f *flow) passReady(fd uintptr) bool {
	for {
		if f.link.leaving.Load() != nil {
			return false
		}
		if !f.passOnce(fd) {
			return f.failed != nil
		}
	}
}

// passOnce passes on one read, and says whether there may be more.
func (f *flow) passOnce(fd uintptr) (more bool) {
	f.hold()
	defer f.release()
	n, errno := socket.Read(fd, *f.held)
	switch {
	case errno == syscall.EAGAIN:
		return false
	case errno != 0:
		f.failed = f.readFailure(os.NewSyscallError("read", errno))
	case n == 0:
		f.failed = io.EOF
	default:
		f.long = n >= shortSize
		f.link.touch()
		f.failed = f.forward((*f.held)[:n])
	}
	return f.failed == nil
}
