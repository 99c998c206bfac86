package socket

import (
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Poll is a set of sockets that one goroutine waits for, whatever their number (epoll(7)). Its methods may be called concurrently,
// but for Wait and Take, which are one goroutine's. After Close they do nothing, or fail: the descriptor's number may be another
// file's by then.
//
// It does not block in the kernel: its descriptor is itself waited for by Go's poller, so the scheduler knows when there is something
// to do, and no thread is held.
type Poll struct {
	file *os.File
	raw  syscall.RawConn // of file

	// Of Take only.
	take   func(fd uintptr) // a method, made a value once
	events []unix.EpollEvent
	taken  int
}

// NewPoll makes a Poll without sockets. It must be closed.
func NewPoll(name string) (*Poll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	// os asks Go's poller to wait for what is not to be waited for in the kernel.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	p := &Poll{file: os.NewFile(uintptr(fd), name)}
	p.take = p.takeNow
	p.raw, err = p.file.SyscallConn()
	if err == nil {
		err = p.file.SetReadDeadline(time.Time{}) // fails where the poller would not have it
	}
	if err != nil {
		p.file.Close()
		return nil, err
	}
	return p, nil
}

// Close wakes who waits. Sockets are not closed.
func (p *Poll) Close() error { return p.file.Close() }

// Add has the kernel tell of a socket, in the words of epoll_ctl(2).
func (p *Poll) Add(fd int, e unix.EpollEvent) error { return p.control(unix.EPOLL_CTL_ADD, fd, &e) }

// Remove ends what Add began, as closing the socket does.
func (p *Poll) Remove(fd int) error { return p.control(unix.EPOLL_CTL_DEL, fd, nil) }

func (p *Poll) control(op, fd int, e *unix.EpollEvent) error {
	var errno error
	if err := p.raw.Control(func(poll uintptr) { errno = unix.EpollCtl(int(poll), op, fd, e) }); err != nil {
		return err
	}
	return os.NewSyscallError("epoll_ctl", errno)
}

// Wait calls turn, at once and whenever something may have come, until it returns true. turn is to take events until there are
// fewer than it has room for: what comes after that wakes it again. The error is that of a deadline or of Close.
func (p *Poll) Wait(turn func(uintptr) (done bool)) error { return p.raw.Read(turn) }

// SetDeadline ends a Wait, and those that begin later.
func (p *Poll) SetDeadline(t time.Time) error { return p.file.SetReadDeadline(t) }

// Take takes the kernel's events without waiting for any, and returns how many there were. Before Close it cannot fail.
func (p *Poll) Take(events []unix.EpollEvent) int {
	p.events, p.taken = events, 0
	p.raw.Control(p.take) // an error is that it is closed
	p.events = nil
	return p.taken
}

// takeNow makes the system call by itself: golang.org/x/sys/unix would tell the scheduler of it.
func (p *Poll) takeNow(fd uintptr) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT,
		fd, uintptr(unsafe.Pointer(unsafe.SliceData(p.events))), uintptr(len(p.events)), 0, 0, 0)
	if errno == 0 {
		p.taken = int(n)
	}
}
