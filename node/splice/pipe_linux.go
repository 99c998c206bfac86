package splice

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is what a pipe holds, in bytes. A page of it is taken for each fragment of a packet, however small, so that
	// what comes over a network fills it with a third of that. Bodies of 32 MiB over the loopback cost the relay 13 ms of CPU
	// with 64 KiB, 10.3 with this and 9.6 with 1 MiB, of which a user could have few; copying them costs 18 to 20.
	pipeSize = 256 << 10
	// leastSize is the system's default. A user who has too many pages in pipes (fs.pipe-user-pages-soft) gets pipes of two
	// pages, with which copying is faster.
	leastSize = 64 << 10
	// maxPipes bounds those that are open: half of the pages that a user has by default. A slow destination keeps its pipe as
	// long as that is full.
	maxPipes = 128
	// maxIdle bounds those of them that nobody uses.
	maxIdle = 32
)

// pipe is one in the kernel. One goroutine has it at a time.
type pipe struct {
	r, w int // descriptors
	size int // bytes
}

// openPipe makes a pipe. The error is that of the system, or that it would be too small.
func openPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	p := &pipe{r: fds[0], w: fds[1]}
	size, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil { // over the user's limit: it stays as it is
		size, err = unix.FcntlInt(uintptr(p.w), unix.F_GETPIPE_SZ, 0)
	}
	if err == nil && size < leastSize {
		err = fmt.Errorf("a pipe of %d bytes is too small", size)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	p.size = size
	return p, nil
}

// close gives the descriptors back, and what the pipe holds up. Linux frees a descriptor whatever close(2) says.
func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// pool is the open pipes.
type pool struct {
	// unsupported is that the kernel, or a filter before it, refuses to splice: that does not change.
	unsupported atomic.Bool

	mu   sync.Mutex // guards what follows; nothing is called under it
	idle []*pipe    // empty; the one used last at the end, since its memory is in the caches
	open int        // idle ones included
}

// pipes are the process's: see the package comment.
var pipes pool

// take gives an empty pipe. The error is an ErrUnavailable.
func (l *pool) take() (*pipe, error) {
	if l.unsupported.Load() {
		return nil, ErrUnavailable
	}
	p, room := l.reserve()
	if p != nil {
		return p, nil
	}
	if !room {
		return nil, ErrUnavailable
	}
	p, err := openPipe()
	if err != nil {
		l.forget()
		return nil, fmt.Errorf("%w: make a pipe: %w", ErrUnavailable, err)
	}
	return p, nil
}

// reserve gives an idle pipe or, if there is none, the right to open one.
func (l *pool) reserve() (p *pipe, room bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last := len(l.idle) - 1; last >= 0 {
		p, l.idle[last] = l.idle[last], nil
		l.idle = l.idle[:last]
		return p, true
	}
	if l.open == maxPipes {
		return nil, false
	}
	l.open++
	return nil, true
}

func (l *pool) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
}

// giveBack takes an empty pipe back.
func (l *pool) giveBack(p *pipe) {
	if !l.keep(p) {
		l.discard(p)
	}
}

func (l *pool) keep(p *pipe) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.idle) == maxIdle {
		return false
	}
	l.idle = append(l.idle, p)
	return true
}

// discard ends a pipe, with what it holds: the next to use it would send that to a stranger.
func (l *pool) discard(p *pipe) {
	p.close()
	l.forget()
}

func (l *pool) closeIdle() {
	for _, p := range l.takeIdle() {
		l.discard(p)
	}
}

func (l *pool) takeIdle() []*pipe {
	l.mu.Lock()
	defer l.mu.Unlock()
	idle := l.idle
	l.idle = nil
	return idle
}

// CloseIdle closes the pipes that are not in use. Those that are stay open, and may be kept when their transfers end. It may
// be called at any time, concurrently.
func CloseIdle() { pipes.closeIdle() }

// Open is how many pipes are open, each of two descriptors; those that are not in use included, of which there are at most 32.
// It may be called concurrently.
func Open() int {
	pipes.mu.Lock()
	defer pipes.mu.Unlock()
	return pipes.open
}
