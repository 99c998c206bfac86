//go:build linux && !race

package socket

import (
	"syscall"
	"unsafe"
)

// Read reads from a socket that does not block, as a function that [syscall.RawConn] calls may. EAGAIN: there is nothing yet;
// 0 bytes without an error: the end.
func Read(fd uintptr, b []byte) (int, syscall.Errno) { return call(syscall.SYS_READ, fd, b) }

// Write writes to a socket that does not block. EAGAIN: it takes nothing at the moment. It may take a part.
func Write(fd uintptr, b []byte) (int, syscall.Errno) { return call(syscall.SYS_WRITE, fd, b) }

func call(trap, fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

func receive(fd uintptr, m *syscall.Msghdr) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(syscall.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(m)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
