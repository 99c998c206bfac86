package socket

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CountQueue makes ReadQueue know whether there is more on this socket. Without it, or where the kernel knows no TCP_INQ
// (before Linux 4.18), ReadQueue says that there may be.
func CountQueue(fd uintptr) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_INQ, 1)
}

// ReadQueue is Read that also tells whether the socket has more, its end included. Where it has not, what comes next wakes
// whoever waits, and to read again, only to be told so, is a system call saved. That the first read was short does not say as
// much: the peer may have ended behind what it sent, for which there was but one wake-up.
func ReadQueue(fd uintptr, b []byte) (n int, more bool, errno syscall.Errno) {
	var m struct {
		header  syscall.Msghdr
		vector  syscall.Iovec
		control [controlSize]byte
	}
	m.vector.Base = unsafe.SliceData(b)
	m.vector.SetLen(len(b))
	m.header.Iov, m.header.Iovlen = &m.vector, 1
	for {
		m.header.Control = &m.control[0]
		m.header.SetControllen(len(m.control))
		n, errno = receive(fd, &m.header)
		if errno != syscall.EINTR {
			break
		}
	}
	return n, errno == 0 && queued(m.control[:m.header.Controllen]), errno
}

const (
	controlHeader = unix.SizeofCmsghdr
	controlSize   = controlHeader + 8 // an int, aligned
)

// queued reads the one control message that there should be: how many bytes are left, and 1 behind the last of them if that
// was the end.
func queued(control []byte) bool {
	if len(control) < controlHeader+4 {
		return true
	}
	h := (*syscall.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(control)))
	if h.Level != unix.IPPROTO_TCP || h.Type != unix.TCP_INQ {
		return true
	}
	return binary.NativeEndian.Uint32(control[controlHeader:]) != 0
}
