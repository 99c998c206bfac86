package tunnel

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pyserve/pyserve/node/socket"
)

// direction is which of a pair's halves.
type direction uint8

const (
	toBackend direction = iota
	toClient
)

// from is the side that a direction comes from, to the one that it goes to.
func (d direction) from() string { return [...]string{"client", "backend"}[d] }
func (d direction) to() string   { return d.opposite().from() }

func (d direction) opposite() direction { return d ^ 1 }

// pair is one live tunnel whose sides are sockets of the kernel's and nothing else, moved by a reactor: no goroutine, no
// timer, no buffer while nothing is held up. Everything but the totals is guarded by the reactor's mu, and every method
// that does not say otherwise is called with it held.
//
// It does what a link with its flows does, told by events instead of returning calls. flow.leave is where the closing in
// order is explained.
type pair struct {
	record
	set     *Set
	reactor *reactor
	counted io.Closer // what still counts the backend's connection; nil: nothing does
	halves  [2]half   // by direction
	err     error     // once ended
	idle    time.Duration
	active  time.Duration // when a byte last went either way, or up to a tick later; by the reactor's clock
	asked   time.Duration // when it was to be closed in order
	slot    uint32
	moved   bool // a byte went either way since the last tick
	leaving bool
	ended   bool
}

// half is one direction. Its fd is the side that it comes from; it goes to that of the opposite half.
type half struct {
	bytes, messages atomic.Uint64 // readable at any time
	frames          frames
	held            *[]byte // what the other side has not taken yet; nil: nothing, and reading may go on
	at, end         uint32  // of held
	fd              int32
	step            step
	ready           bool // there may be something to read
	behind          bool // a read that does not fill the buffer says nothing
	waits           bool // is among those of the reactor's that will have another turn
	lost            bool // the kernel has told of an error; what came before that may still be read
	closeSent       bool // the side's own Close frame was passed on
	halted          bool // the other side will not be sent a Close: this one has ended, or something went wrong
}

// step is how far a half is.
type step uint8

const (
	passing   step = iota
	finishing      // passes the rest of a frame on, for a Close to be put in behind
	telling        // what is held is that Close
	awaiting       // throws away what comes, up to the side's own Close
	done
)

// pairUp makes a pair of t if its sides allow. Where not, nothing has happened to them, and goroutines have to do.
func (s *Set) pairUp(t Tunnel) (paired bool, err error) {
	client, backend := plainOf(t.Client), plainOf(t.Backend)
	if client == nil || backend == nil {
		return false, nil
	}
	r := s.reactors.pick()
	if r == nil {
		return false, nil
	}
	p := &pair{
		record: record{owner: t.Owner, told: t.Ended, webSocket: t.WebSocket}, set: s, reactor: r,
		idle: cmp.Or(t.Idle, s.idle), active: time.Since(r.began),
	}
	p.halves[toBackend].frames.masked = true
	if !p.duplicate(client, backend) {
		return false, nil
	}
	r.mu.Lock()
	defer r.unlock()
	if r.settle(p) != nil {
		return false, nil
	}
	welcome, err := s.add(p)
	if err != nil {
		r.evict(p)
		t.Client.Close()
		t.Backend.Close()
		return true, err
	}
	letGo(t.Client)
	p.counted = letGo(t.Backend)
	p.begin(t, welcome)
	return true, nil
}

// plainOf is c if it is read and written as a socket of the kernel's. Nil: it is not, or not to be had alone.
func plainOf(c net.Conn) *net.TCPConn {
	if _, counts := c.(interface{ Plain() *net.TCPConn }); counts {
		if _, parts := c.(interface{ Detach() io.Closer }); !parts {
			return nil
		}
	}
	return tcpOf(c)
}

// duplicate takes descriptors of its own of both sides. Those of package net can be closed then, and with them go the memory
// that it has for each and the waking of a second poller for each message.
func (p *pair) duplicate(client, backend *net.TCPConn) bool {
	var err error
	if p.halves[toBackend].fd, err = duplicate(client); err != nil {
		return false
	}
	if p.halves[toClient].fd, err = duplicate(backend); err != nil {
		unix.Close(int(p.halves[toBackend].fd))
		return false
	}
	return true
}

func duplicate(tcp *net.TCPConn) (int32, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	own := 0
	if controlErr := raw.Control(func(fd uintptr) {
		own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}); controlErr != nil {
		return 0, controlErr
	}
	return int32(own), os.NewSyscallError("fcntl", err)
}

// letGo closes c but for the duplicate, which is all that package net had of it; the peer hears nothing.
func letGo(c net.Conn) (counted io.Closer) {
	if c, ok := c.(interface{ Detach() io.Closer }); ok {
		return c.Detach()
	}
	c.Close()
	return nil
}

// begin passes on what has come already, and reads from then on.
func (p *pair) begin(t Tunnel, welcome bool) {
	for d, early := range [...][]byte{t.FromClient, t.FromBackend} {
		if !p.ended && len(early) > 0 {
			p.take(direction(d), early)
		}
	}
	switch {
	case p.ended || welcome:
	case p.webSocket:
		p.beginToLeave()
	default:
		p.finish(ErrEnded)
	}
}

func (p *pair) about() *record { return &p.record }

// totals may be called at any time.
func (p *pair) totals() Totals {
	return Totals{
		ToBackend: Traffic{Bytes: p.halves[toBackend].bytes.Load(), Messages: p.halves[toBackend].messages.Load()},
		ToClient:  Traffic{Bytes: p.halves[toClient].bytes.Load(), Messages: p.halves[toClient].messages.Load()},
	}
}

// cutOff is called without the lock.
func (p *pair) cutOff(err error) {
	p.reactor.mu.Lock()
	defer p.reactor.unlock()
	p.finish(err)
}

// leave is called without the lock. The reactor may be waiting: if there is now more to be read, it is because the other side
// takes bytes again, and the event of that is on its way.
func (p *pair) leave() {
	p.reactor.mu.Lock()
	defer p.reactor.unlock()
	p.beginToLeave()
}

// event is how the kernel names the side that d comes from.
func (p *pair) event(d direction) event {
	return event{int32(p.slot)<<1 | int32(d), p.reactor.slots[p.slot].generation}
}

// happened is told what the kernel knows of the side that d comes from.
func (p *pair) happened(d direction, events uint32) {
	h, o := &p.halves[d], &p.halves[d.opposite()]
	if events&readable != 0 {
		h.ready = true
		h.behind = h.behind || events&behind != 0
		h.lost = h.lost || events&unix.EPOLLERR != 0
	}
	if o.held != nil && events&writable != 0 {
		p.advance(d.opposite())
	}
	switch {
	case p.ended:
	case h.step == done && events&unix.EPOLLERR != 0:
		p.broken(d) // reading will not tell, and writing perhaps not for an hour
	case h.ready && !h.waits: // or it would have more turns than others
		p.advance(d)
	}
}

// broken ends a pair of which one side, which had ended already, does not take any more either.
func (p *pair) broken(d direction) {
	if p.leaving {
		return // there is nothing to be had from it, and the limits are short
	}
	if fault := p.fault(d); fault != 0 {
		p.finish(fmt.Errorf("write to the %s: %w", d.from(), fault))
	}
}

// fault is the error of the side that d comes from, which the kernel tells once. 0: there is none.
func (p *pair) fault(d direction) syscall.Errno {
	n, err := unix.GetsockoptInt(int(p.halves[d].fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return 0
	}
	return syscall.Errno(n)
}

// advance passes on what is held, and after that one read.
func (p *pair) advance(d direction) {
	h := &p.halves[d]
	if h.held != nil && !p.flush(d) || p.ended || h.step == done || !h.ready {
		return
	}
	r := p.reactor
	n, errno := socket.Read(uintptr(h.fd), r.buffer)
	switch {
	case errno == syscall.EAGAIN:
		h.ready, h.behind = false, false
		return
	case errno != 0:
		p.fail(d, fmt.Errorf("read from the %s: %w", d.from(), os.NewSyscallError("read", errno)))
		return
	case n == 0:
		p.exhausted(d)
		return
	}
	h.ready = h.behind || n == len(r.buffer)
	p.take(d, r.buffer[:n])
	if h.ready && h.held == nil && h.step != done && !h.waits && !p.ended {
		h.waits = true
		r.again = append(r.again, p.event(d))
	}
}

// take is given what has come, and holds what the other side does not take.
func (p *pair) take(d direction, b []byte) {
	if rest := p.offer(d, b); len(rest) > 0 {
		p.hold(d, rest)
	}
}

// hold keeps b until the other side takes it. Nothing more is read meanwhile: that is all that a slow peer costs.
func (p *pair) hold(d direction, b []byte) {
	h, set := &p.halves[d], p.set
	switch {
	case len(b) <= shortSize:
		h.held = set.short.Get().(*[]byte)
	case len(b) <= longSize:
		h.held = set.long.Get().(*[]byte)
	default: // was read before there was a tunnel
		own := make([]byte, len(b))
		h.held = &own
	}
	h.at, h.end = 0, uint32(copy(*h.held, b))
}

func (p *pair) release(held *[]byte) {
	switch len(*held) {
	case shortSize:
		p.set.short.Put(held)
	case longSize:
		p.set.long.Put(held)
	}
}

// flush offers what is held once more, and reports whether nothing is left of it.
func (p *pair) flush(d direction) bool {
	h := &p.halves[d]
	held := h.held
	h.held = nil
	rest := p.offer(d, (*held)[h.at:h.end])
	if len(rest) == 0 {
		p.release(held)
		return h.held == nil // otherwise it is a Close of the proxy's
	}
	h.held, h.at = held, h.end-uint32(len(rest))
	return false
}

// offer does with b what the half is at, and returns what the other side does not take now.
func (p *pair) offer(d direction, b []byte) (rest []byte) {
	h := &p.halves[d]
	switch h.step {
	case passing:
		return p.pass(d, b)
	case finishing:
		return p.finishFrame(d, b)
	case telling:
		return p.tell(d, b)
	case awaiting:
		if h.frames.scan(b); h.frames.over() {
			p.endHalf(d)
		}
	}
	return nil
}

// pass passes b on and counts what was taken of it.
func (p *pair) pass(d direction, b []byte) (rest []byte) {
	h := &p.halves[d]
	n, errno := p.write(d, b)
	if n > 0 {
		p.moved = true
		h.bytes.Add(uint64(n))
		if p.webSocket {
			h.follow(b[:n])
		}
	}
	if errno != 0 {
		p.fail(d, p.writeFailure(d, errno))
		return nil
	}
	return b[n:]
}

// follow is told what was passed on.
func (h *half) follow(b []byte) {
	h.frames.scan(b)
	if h.frames.messages != h.messages.Load() {
		h.messages.Store(h.frames.messages)
	}
	h.closeSent = h.frames.closed()
}

// write writes as much of b as the other side takes. The kernel tells when it takes more only after it has refused something.
func (p *pair) write(d direction, b []byte) (n int, errno syscall.Errno) {
	fd := uintptr(p.halves[d.opposite()].fd)
	for n < len(b) {
		m, errno := socket.Write(fd, b[n:])
		n += m
		if errno == syscall.EAGAIN {
			return n, 0
		}
		if errno != 0 {
			return n, errno
		}
	}
	return n, 0
}

func (p *pair) writeFailure(d direction, errno syscall.Errno) error {
	return fmt.Errorf("write to the %s: %w", d.to(), os.NewSyscallError("write", errno))
}

// exhausted is the end of what a side sends.
func (p *pair) exhausted(d direction) {
	h := &p.halves[d]
	if h.step != passing {
		p.fail(d, nil)
		return
	}
	h.halted = true
	if err := unix.Shutdown(int(p.halves[d.opposite()].fd), unix.SHUT_WR); err != nil {
		p.finish(fmt.Errorf("end writes to the %s: %w", d.to(), os.NewSyscallError("shutdown", err)))
		return
	}
	p.endHalf(d)
}

// fail ends the pair, or, if that is being closed in order, only this direction: the other has still something to tell its
// side. But nobody waits for the answer of a side that was not told.
func (p *pair) fail(d direction, err error) {
	if !p.leaving {
		p.finish(err)
		return
	}
	h, o := &p.halves[d], &p.halves[d.opposite()]
	if h.step != awaiting && !h.closeSent {
		h.halted = true
		if o.step == awaiting {
			o.step = done
		}
	}
	p.endHalf(d)
}

// endHalf ends one direction, and the pair with the second.
func (p *pair) endHalf(d direction) {
	p.halves[d].step = done
	switch {
	case p.halves[d.opposite()].step != done:
	case p.leaving:
		p.finish(ErrEnded)
	default:
		p.finish(nil)
	}
}

// beginToLeave has both directions tell their sides that this end is going away.
func (p *pair) beginToLeave() {
	if p.ended || p.leaving {
		return
	}
	p.leaving, p.asked = true, time.Since(p.reactor.began)
	for d := range p.halves {
		if h := &p.halves[d]; h.step == passing {
			h.step = finishing
		}
	}
	for d := range p.halves {
		d, h := direction(d), &p.halves[d]
		if h.step == finishing && h.held == nil {
			p.finishFrame(d, nil)
		}
		if !p.ended {
			p.advance(d)
		}
	}
}

// finishFrame passes frames on until a Close can be sent. While the peers close by themselves it goes on until that is done.
func (p *pair) finishFrame(d direction, b []byte) (rest []byte) {
	h, o := &p.halves[d], &p.halves[d.opposite()]
	for {
		switch {
		case h.frames.over():
			p.fail(d, nil)
			return nil
		case h.frames.between() && !o.closeSent:
			h.frames.scan(b)
			h.step = telling
			if rest := p.tell(d, closeFrame(d == toClient)); len(rest) > 0 {
				p.hold(d, rest)
			}
			return nil
		case len(b) == 0:
			return nil
		}
		ahead := h.frames
		n := ahead.next(b)
		rest := p.pass(d, b[:n])
		if p.ended || h.step == done {
			return nil
		}
		if len(rest) > 0 {
			return b[n-len(rest):]
		}
		b = b[n:]
	}
}

// tell sends b, of the proxy's own Close frame.
func (p *pair) tell(d direction, b []byte) (rest []byte) {
	h := &p.halves[d]
	n, errno := p.write(d, b)
	switch {
	case errno != 0:
		p.fail(d, p.writeFailure(d, errno))
		return nil
	case n < len(b):
		return b[n:]
	}
	h.step = awaiting
	if h.frames.over() || p.halves[d.opposite()].halted {
		p.endHalf(d)
	}
	return nil
}

// look ends what has taken too long.
func (p *pair) look(now time.Duration) {
	switch {
	case p.leaving:
		p.lookAtLeaving(now - p.asked)
	case p.moved:
		p.moved, p.active = false, now
	case p.stranded():
	case p.idle > 0 && now-p.active >= p.idle:
		p.finish(ErrIdle)
	}
}

// stranded ends a pair of which one side was reset and the other has taken nothing since the last tick of what that one had
// sent before. It is not read from meanwhile, so that nothing else tells of it.
func (p *pair) stranded() bool {
	for d := range p.halves {
		h, d := &p.halves[d], direction(d)
		if !h.lost || h.held == nil {
			continue
		}
		if fault := p.fault(d); fault != 0 {
			p.finish(fmt.Errorf("read from the %s: %w", d.from(), fault))
			return true
		}
	}
	return false
}

func (p *pair) lookAtLeaving(since time.Duration) {
	if since >= finishTime+answerTime {
		p.finish(ErrEnded)
		return
	}
	for d := range p.halves {
		if since >= finishTime && p.halves[d].step == finishing && !p.halves[direction(d).opposite()].closeSent && !p.ended {
			p.fail(direction(d), nil)
		}
	}
}

// finish ends the pair; err is kept if it is the first reason.
func (p *pair) finish(err error) {
	if p.ended {
		return
	}
	p.ended, p.err = true, err
	for d := range p.halves {
		h := &p.halves[d]
		h.step = done
		if h.held != nil {
			p.release(h.held)
			h.held = nil
		}
	}
	p.reactor.evict(p)
	p.reactor.over = append(p.reactor.over, p)
}

// bury is called without the lock, once. Somebody who wants to be told has a goroutine for it: he may take his time.
func (p *pair) bury() {
	if p.told != nil {
		go p.conclude()
		return
	}
	p.conclude()
}

func (p *pair) conclude() {
	if p.counted != nil {
		p.counted.Close()
	}
	if p.told != nil {
		p.told(Summary{Totals: p.totals(), Err: p.err})
	}
	p.set.remove(p)
}
