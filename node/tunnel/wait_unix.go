//go:build unix

package tunnel

import (
	"io"
	"net"
	"os"
	"syscall"
)

// rawOf is src as the kernel's socket, where reading it is no more than a read(2); otherwise nil.
func rawOf(src net.Conn) syscall.RawConn {
	var raw syscall.RawConn
	var err error
	switch c := src.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	case interface{ Plain() *net.TCPConn }:
		// A connection that is counted where it was opened, but read as what it is.
		if tcp := c.Plain(); tcp != nil {
			raw, err = tcp.SyscallConn()
		}
	}
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
	switch {
	case f.failed != nil:
		return 0, os.NewSyscallError("read", f.failed)
	case f.got == 0:
		return 0, io.EOF
	}
	return f.got, nil
}

// take reads without blocking and reports whether there was an answer; where not, it is called again when there is one.
func (f *flow) take(fd uintptr) bool {
	f.hold()
	for {
		n, err := syscall.Read(int(fd), *f.held)
		switch err {
		case nil:
			f.got, f.failed = n, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			f.release()
			return false
		default:
			f.got, f.failed = 0, err
		}
		return true
	}
}
