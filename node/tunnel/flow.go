package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
)

const (
	// shortSize and longSize are the pooled buffers: most of what is sent is short, and the few that send much want few
	// system calls.
	shortSize = 4 << 10
	longSize  = 32 << 10
	// ownSize is what a direction holds for itself where waiting without a buffer is not possible: TLS has to be read to
	// be waited for.
	ownSize = 512
	// recordSize is how much TLS gives at a time where there is a lot (RFC 8446 section 5.1).
	recordSize = 16 << 10
)

// errLeave ends the passing of bytes, for leave to go on from there.
var errLeave = errors.New("tunnel: to be closed in order")

// flow is one direction. Its goroutine is the only one that reads src and writes to dst.
type flow struct {
	link     *link
	opposite *flow
	src, dst net.Conn
	early    []byte             // was read from src before there was a tunnel
	raw      syscall.RawConn    // of src; nil: src is read by Read
	ready    func(uintptr) bool // take, made a value once
	passing  func(uintptr) bool // passReady, likewise
	held     *[]byte            // from the pool; nil: none
	own      []byte             // where raw is nil
	got      int                // what take has read
	failed   error              // how take or passReady failed
	long     bool               // the last read gave much: there is probably more
	frames   frames
	toClient bool

	// Written by this goroutine, read by others at any time.
	bytes, messages atomic.Uint64
	closeSent       atomic.Bool // src's own Close frame was passed on
	halted          atomic.Bool // dst will not be sent a Close: src has ended, or something went wrong
	awaiting        atomic.Bool // src's answer to a Close is all that is still waited for
}

func (f *flow) run() {
	err := f.pass()
	switch {
	case errors.Is(err, errLeave):
		f.leave()
	case errors.Is(err, io.EOF):
		f.halted.Store(true)
		f.endDst()
	default:
		f.halted.Store(true)
		if f.link.leaving.Load() == nil {
			f.link.cut(err)
		} // otherwise the other side shall still be told
	}
	f.link.flowEnded()
}

// endDst passes the end of src on.
func (f *flow) endDst() {
	half, ok := f.dst.(interface{ CloseWrite() error })
	if !ok {
		// Ending the whole connection is the only way left to tell its peer that nothing more will come.
		f.link.cut(nil)
		return
	}
	if err := half.CloseWrite(); err != nil {
		f.link.cut(fmt.Errorf("end writes to %s: %w", f.dst.RemoteAddr(), err))
	}
}

// pass passes on what src sends until it ends, io.EOF, or something is wrong.
func (f *flow) pass() error {
	if len(f.early) > 0 {
		if err := f.forward(f.early); err != nil {
			return err
		}
		f.early = nil
	}
	if f.raw != nil {
		return f.passRaw()
	}
	for {
		b, err := f.receive()
		if err == nil {
			f.link.touch()
			err = f.forward(b)
			f.release()
		}
		if err != nil {
			return err
		}
	}
}

// forward passes b on and counts it.
func (f *flow) forward(b []byte) error {
	n, err := f.dst.Write(b)
	f.bytes.Add(uint64(n))
	f.link.touch()
	if err != nil {
		return fmt.Errorf("write to %s: %w", f.dst.RemoteAddr(), err)
	}
	if f.link.webSocket {
		f.frames.scan(b)
		f.count()
	}
	return nil
}

// count tells others how far the frames have come.
func (f *flow) count() {
	if f.frames.messages != f.messages.Load() {
		f.messages.Store(f.frames.messages)
	}
	if f.frames.closed() && !f.closeSent.Load() {
		f.closeSent.Store(true)
	}
}

// receive waits for bytes. They are valid until release.
func (f *flow) receive() ([]byte, error) {
	n, err := 0, error(nil)
	into := f.own
	if f.raw != nil {
		if n, err = f.wait(); err == nil {
			into, f.long = *f.held, n >= shortSize
		}
	} else {
		if f.long {
			f.hold()
			into = *f.held
		}
		n, err = f.src.Read(into)
		f.long = n == len(into) || n >= recordSize
		if n > 0 {
			err = nil // it will come again
		}
	}
	if err == nil {
		return into[:n], nil
	}
	f.release()
	return nil, f.readFailure(err)
}

// readFailure says what it means that src could not be read.
func (f *flow) readFailure(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded) && f.link.leaving.Load() != nil:
		return errLeave
	}
	return fmt.Errorf("read from %s: %w", f.src.RemoteAddr(), err)
}

// hold takes a buffer from the pool.
func (f *flow) hold() {
	pool := &f.link.set.short
	if f.long {
		pool = &f.link.set.long
	}
	f.held = pool.Get().(*[]byte)
}

// release gives the buffer back, if one is held.
func (f *flow) release() {
	if f.held == nil {
		return
	}
	pool := &f.link.set.short
	if len(*f.held) == longSize {
		pool = &f.link.set.long
	}
	pool.Put(f.held)
	f.held = nil
}
