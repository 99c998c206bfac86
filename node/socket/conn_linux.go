package socket

import (
	"io"
	"net"
	"os"
	"syscall"
)

// Conn is a TCP connection. Read and Write are those of net, errors included (those of deadlines and of Close call the operation
// "raw-read" or "raw-write"), and may be called concurrently with each other, with Close and with the deadlines' methods; each of
// them by one goroutine at a time, Ask counting as a Read.
type Conn struct {
	*net.TCPConn
	raw           syscall.RawConn
	reads, writes operation
}

// operation is one read, write or exchange: what goes into the function that net calls with the socket, and comes out.
type operation struct {
	run   func(fd uintptr) (done bool) // a method, made a value once
	b     []byte
	n     int
	errno syscall.Errno

	// Of Ask only.
	out   []byte
	wrote int
	stage stage
}

// stage is how far an Ask is.
type stage uint8

const (
	reading stage = iota // no Ask, or the last part of one
	looking
	asking
)

// New makes a Conn of a connection, which must not be used by itself meanwhile.
func New(tcp *net.TCPConn) *Conn {
	raw, _ := tcp.SyscallConn() // fails for nil alone
	c := &Conn{TCPConn: tcp, raw: raw}
	c.reads.run, c.writes.run = c.readNow, c.writeNow
	return c
}

// TCP is the connection as net has it.
func (c *Conn) TCP() *net.TCPConn { return c.TCPConn }

// Read implements [io.Reader] as net does.
func (c *Conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return c.TCPConn.Read(b)
	}
	o := &c.reads
	o.b, o.stage = b, reading
	err := c.raw.Read(o.run)
	o.b = nil
	return c.outcome(o, err)
}

// outcome is what a read came to; err is that of waiting.
func (c *Conn) outcome(o *operation, err error) (int, error) {
	switch {
	case err != nil:
		return 0, err
	case o.errno != 0:
		return 0, c.failure("read", o.errno)
	case o.n == 0:
		return 0, io.EOF
	}
	return o.n, nil
}

// failure is what net would say.
func (c *Conn) failure(op string, errno syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno)}
}

// Write implements [io.Writer] as net does.
func (c *Conn) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return c.TCPConn.Write(b)
	}
	o := &c.writes
	o.b, o.n = b, 0
	err := c.raw.Write(o.run)
	o.b = nil
	if err == nil && o.errno != 0 {
		err = c.failure("write", o.errno)
	}
	return o.n, err
}

func (c *Conn) readNow(fd uintptr) (done bool) {
	o := &c.reads
	if o.stage == reading {
		o.n, o.errno = Read(fd, o.b)
		return o.errno != syscall.EAGAIN
	}
	return o.ask(fd)
}

func (c *Conn) writeNow(fd uintptr) (done bool) {
	o := &c.writes
	for o.n < len(o.b) {
		n, errno := Write(fd, o.b[o.n:])
		o.n += n
		if o.errno = errno; errno != 0 {
			return errno != syscall.EAGAIN
		}
	}
	return true
}

// Asks says whether Ask works: it does on Linux.
func (c *Conn) Asks() bool { return true }

// Ask writes a question to a peer that should be silent, and reads what there is of the answer once it comes, at least one
// byte. A peer that has said something before it was asked, or has ended, is found out first: then nothing is written, and
// quiet is false. That is one system call less than asking about it, writing and reading.
//
// wrote below len(out) with quiet and without an error is that the peer does not take more at the moment; nothing was read
// then, and the caller is to go on with Write. An error with wrote 0 came before anything was sent.
func (c *Conn) Ask(out, into []byte) (quiet bool, wrote, n int, err error) {
	o := &c.reads
	o.out, o.b, o.wrote, o.stage = out, into, 0, looking
	err = c.raw.Read(o.run)
	o.out, o.b = nil, nil
	switch {
	case o.stage == looking:
		return err != nil, 0, 0, err
	case o.stage == asking && err == nil && o.errno == syscall.EAGAIN:
		return true, o.wrote, 0, nil
	case o.stage == asking && err == nil && o.errno != 0:
		return true, o.wrote, 0, c.failure("write", o.errno)
	}
	n, err = c.outcome(o, err)
	return true, o.wrote, n, err
}

// ask is called first when nobody waits, and again whenever there may be something to read. That net forgot what it knew of
// the socket before the first call, and not between the others, is why the answer cannot be missed.
func (o *operation) ask(fd uintptr) (done bool) {
	if o.n, o.errno = Read(fd, o.b); o.errno != syscall.EAGAIN {
		return true
	}
	o.stage = asking
	for o.wrote < len(o.out) {
		n, errno := Write(fd, o.out[o.wrote:])
		o.wrote += n
		if o.errno = errno; errno != 0 {
			return true
		}
	}
	o.stage = reading
	return false
}
