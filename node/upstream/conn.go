package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/node/socket"
)

// Conn is one connection to a backend, in the hands of one request at a time: who has it from Open or Take gives it back
// with Keep or ends it with Close. Only Close may be called by others meanwhile; they must be done before Keep.
type Conn struct {
	// As it is spoken over: *socket.Conn, or *tls.Conn with the handshake done; whatever Options.DialContext gives in the
	// place of TCP. Not to be closed by itself: Conn.Close counts.
	net.Conn

	backend *Backend
	plain   *socket.Conn // nil: over TLS, or no TCP
	secured bool
	kernel  kernelSide
	epoch   uint64 // of the backend's addresses when it was opened

	// Guarded by backend.conns.mu.
	older, newer *Conn // neighbours while idle
	since        int64 // idle since, by the registry's clock
	idle, closed bool

	// Written under that lock while nobody holds the connection, read by its holder without.
	reused bool
}

// Open opens a connection for the caller, as Dial does and with the same errors, a *DialError each.
func (b *Backend) Open(ctx context.Context) (*Conn, error) {
	// Before Dial reads the addresses: were they to change in between, the connection is merely not kept.
	epoch := b.conns.currentEpoch()
	b.conns.opening()
	conn, err := b.Dial(ctx)
	if err != nil {
		b.conns.unopened()
		if !errors.Is(err, context.Canceled) { // the client's going away is no fault of the backend
			b.connectFailures.Add(1)
		}
		if !Ours(err) {
			b.registry.options.Failed(b, err)
		}
		return nil, err
	}
	c := newConn(b, conn, epoch)
	b.conns.add()
	return c, nil
}

func newConn(b *Backend, conn net.Conn, epoch uint64) *Conn {
	c := &Conn{Conn: conn, backend: b, epoch: epoch}
	below := conn
	if t, ok := conn.(*tls.Conn); ok {
		c.secured, below = true, t.NetConn()
	}
	plain, ok := below.(*socket.Conn)
	if !ok {
		return c
	}
	if !c.secured {
		c.plain = plain
	}
	c.kernel.open(plain.TCP())
	return c
}

// Take is the connection that was kept last, to be used by the caller alone; nil: none is idle. The last one is the likeliest
// to be open still, and the others grow old enough to be closed. That it is Alive is not checked. It allocates nothing.
func (b *Backend) Take() *Conn { return b.conns.take() }

// Backend is the one that the connection leads to.
func (c *Conn) Backend() *Backend { return c.backend }

// Plain is the connection as TCP, for splice and for tunnels; nil where it is spoken over TLS or is no TCP.
func (c *Conn) Plain() *net.TCPConn {
	if c.plain == nil {
		return nil
	}
	return c.plain.TCP()
}

// Asks says whether Ask may be called: over plain TCP, on systems that know how.
func (c *Conn) Asks() bool { return c.plain != nil && c.plain.Asks() }

// Ask is Alive, Write and Read in one, see [socket.Conn.Ask].
func (c *Conn) Ask(out, into []byte) (quiet bool, wrote, n int, err error) {
	return c.plain.Ask(out, into)
}

// CloseWrite tells the peer that nothing more will come, as *net.TCPConn and *tls.Conn do; over other connections it ends both
// directions, which is the only way there to tell.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// Reused says that the connection has been kept before: the backend may have closed it while it was idle, which a request
// sent over it finds out too late.
func (c *Conn) Reused() bool { return c.reused }

// Alive asks the kernel, without waiting, whether an idle connection is as it was left: the peer has neither closed it nor
// sent anything, for what came unasked would be read as the answer to the next request. It allocates nothing unless the
// answer is no. Where it cannot be told, since the connection is no TCP or the system knows no such question, it is true.
//
// Over TLS, unread bytes may be session tickets, which only reading would tell apart. They come before the first answer, so
// that little is lost by taking them for the worse.
func (c *Conn) Alive() bool {
	spoken, ended := c.kernel.ask()
	return !ended && !spoken
}

// Keep gives the connection back, to be had from Take by the next request. The answer must have been read to its end, nothing
// beyond it been read, and no deadline be set. The connection is closed instead if the backend was released for the last
// time or its addresses have changed since Open; if Options.MaxIdleConns are idle already, the oldest of those is. On a
// connection that is closed or kept already it does nothing.
func (c *Conn) Keep() {
	if c.secured && c.surplus() {
		c.Close()
		return
	}
	if surplus := c.backend.conns.keep(c); surplus != nil {
		surplus.Close()
	}
}

// surplus says whether something is left in what was decrypted or read ahead, which no question to the kernel would show: it
// would be read as the next answer. Behind a deadline that has passed, Read gives just that.
func (c *Conn) surplus() bool {
	if c.Conn.SetReadDeadline(time.Unix(1, 0)) != nil {
		return true
	}
	var one [1]byte
	n, err := c.Conn.Read(one[:])
	return n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || c.Conn.SetReadDeadline(time.Time{}) != nil
}

// Close ends the connection, and with it reads and writes that are under way. It may be called concurrently with anything and
// more than once; from the second time on it does nothing and returns nil.
func (c *Conn) Close() error {
	if !c.backend.conns.remove(c) {
		return nil
	}
	return c.Conn.Close()
}

// Detach closes the connection here, without a word to the peer, for somebody who goes on with a descriptor of his own: none
// of the memory that it takes here has to live as long. It goes on being counted as open until what is returned is closed, which
// is when the peer has been left. It must not be called concurrently with other methods, and only where Plain gives something.
func (c *Conn) Detach() io.Closer {
	d := &detached{backend: c.backend}
	d.closed.Store(!c.backend.conns.handOver(c))
	c.Conn.Close()
	return d
}

// detached counts for a connection that is elsewhere.
type detached struct {
	backend *Backend
	closed  atomic.Bool
}

// Close counts it out, the first time.
func (d *detached) Close() error {
	if !d.closed.Swap(true) {
		d.backend.conns.forget()
	}
	return nil
}
