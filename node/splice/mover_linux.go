package splice

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mover is a transfer from one connection to another. It has a pipe only while it is filling one or one holds something, not
// while it waits for the source. It is for one goroutine; the connections may be closed and their deadlines be set by others.
type Mover struct {
	src, dst syscall.RawConn
	pipe     *pipe // nil: none at the moment
	held     int64 // bytes in the pipe

	fill, drain func(fd uintptr) bool // fillFrom and drainTo, made values once

	// What goes into these functions and comes out.
	want, n int64
	err     error
}

var movers = sync.Pool{New: func() any {
	m := new(Mover)
	m.fill, m.drain = m.fillFrom, m.drainTo
	return m
}}

// Start begins a transfer from src to dst, which must end with Stop. Both are TCP and nothing of them is buffered by the
// caller. The error is ErrUnavailable.
func Start(dst, src *net.TCPConn) (*Mover, error) {
	p, err := pipes.take() // the first, since it mostly is what is missing
	if err != nil {
		return nil, err
	}
	from, err := src.SyscallConn()
	if err == nil {
		var to syscall.RawConn
		if to, err = dst.SyscallConn(); err == nil {
			m := movers.Get().(*Mover)
			m.src, m.dst, m.pipe = from, to, p
			return m, nil
		}
	}
	pipes.giveBack(p)
	return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// Stop ends the transfer; m must not be used afterwards. What is Held is lost.
func (m *Mover) Stop() {
	switch {
	case m.pipe == nil:
	case m.held > 0:
		pipes.discard(m.pipe)
	default:
		pipes.giveBack(m.pipe)
	}
	m.src, m.dst, m.pipe, m.held, m.err = nil, nil, nil, 0, nil
	movers.Put(m)
}

// Held is how many bytes were read and have not been written.
func (m *Mover) Held() int64 { return m.held }

var errHeld = errors.New("splice: Fill before everything was drained")

// Fill waits until the source has something and reads up to n bytes of it, which are Held then; n below 0 is as many as there
// are. It returns how many: at least one if there is no error and n is not 0. io.EOF is the end of the source, ErrUnavailable
// that there is no pipe any more, anything else the source's failure, os.ErrDeadlineExceeded among them. It must be called
// with nothing Held only.
func (m *Mover) Fill(n int64) (int64, error) {
	if m.held > 0 {
		return 0, errHeld
	}
	if n == 0 {
		return 0, nil // to the kernel's answer, it would look like the end
	}
	m.want = n
	if err := m.src.Read(m.fill); err != nil {
		return 0, fmt.Errorf("splice into a pipe: %w", err)
	}
	switch {
	case m.err != nil:
		return 0, m.fillError()
	case m.n == 0:
		return 0, io.EOF
	}
	m.held = m.n
	return m.n, nil
}

// fillError says what m.err means. Nothing was read.
func (m *Mover) fillError() error {
	switch m.err {
	case unix.EINVAL, unix.ENOSYS, unix.EPERM: // the latter two from filters of system calls
		pipes.unsupported.Store(true)
		return fmt.Errorf("%w: %w", ErrUnavailable, os.NewSyscallError("splice", m.err))
	}
	if errno, ok := m.err.(syscall.Errno); ok {
		return os.NewSyscallError("splice", errno)
	}
	return m.err
}

// fillFrom is what Fill does once the source may have something; false: it has nothing, wait. As the pipe is empty, EAGAIN is
// about the socket.
func (m *Mover) fillFrom(fd uintptr) bool {
	if m.pipe == nil {
		if m.pipe, m.err = pipes.take(); m.err != nil {
			return true
		}
	}
	n := int64(m.pipe.size)
	if m.want > 0 {
		n = min(n, m.want)
	}
	if m.n, m.err = move(m.pipe.w, int(fd), n); m.err != unix.EAGAIN {
		return true
	}
	pipes.giveBack(m.pipe)
	m.pipe = nil
	return false
}

// Drain waits until the destination takes something and writes as much as it takes at once. It returns how many bytes: at
// least one if there is no error and something is Held. The error is the destination's, os.ErrDeadlineExceeded among them.
func (m *Mover) Drain() (int64, error) {
	if m.held == 0 {
		return 0, nil
	}
	if err := m.dst.Write(m.drain); err != nil {
		return 0, fmt.Errorf("splice from a pipe: %w", err)
	}
	switch {
	case m.err != nil:
		return 0, os.NewSyscallError("splice", m.err)
	case m.n <= 0:
		return 0, fmt.Errorf("splice from a pipe that holds %d bytes: %w", m.held, io.ErrNoProgress)
	}
	m.held -= m.n
	return m.n, nil
}

// drainTo is what Drain does once the destination may take something.
func (m *Mover) drainTo(fd uintptr) bool {
	m.n, m.err = move(int(fd), m.pipe.r, m.held)
	return m.err != unix.EAGAIN
}

// move is splice(2), repeated where a signal came first. SPLICE_F_MORE is not said: the last bytes before a pause would wait
// in the kernel for a full packet.
func move(dst, src int, n int64) (int64, error) {
	for {
		moved, err := unix.Splice(src, nil, dst, nil, int(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err != unix.EINTR {
			return int64(moved), err
		}
	}
}
