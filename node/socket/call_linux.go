//go:build linux && !race

package socket

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads from a socket that does not block, as a function that [syscall.RawConn] calls may. EAGAIN: there is nothing yet;
// 0 bytes without an error: the end.
func Read(fd uintptr, b []byte) (int, syscall.Errno) { return call(unix.SYS_RECVFROM, fd, b, 0) }

// Write writes to a socket that does not block. EAGAIN: it takes nothing at the moment. It may take a part.
func Write(fd uintptr, b []byte) (int, syscall.Errno) {
	return call(unix.SYS_SENDTO, fd, b, unix.MSG_NOSIGNAL)
}

// call is by the calls for sockets: read and write are those for files, and cost 0.1 µs more each for being that.
func call(trap, fd uintptr, b []byte, flags uintptr) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
