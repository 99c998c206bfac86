package forward

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Front speaks HTTP on the connections of one listener. Its methods may be called concurrently.
type Front struct {
	*Proxy
	sweeper

	leaving atomic.Bool // answers say that the connection closes
	numbers atomic.Uint32
	last    chan struct{} // signalled when open has become 0; capacity 1
	http2   http2Server

	// mu guards what follows. The sweeper does not take it.
	mu       sync.Mutex
	open     int           // connections
	sweeping chan struct{} // closed to end the sweeper; nil: it does not run
	swept    sync.WaitGroup
}

// NewFront makes a front. It has no goroutine until it has a connection; then Leave or Drain must be called at its end.
func (p *Proxy) NewFront() *Front {
	f := &Front{Proxy: p, last: make(chan struct{}, 1)}
	f.start()
	f.http2.init(f)
	return f
}

// Serve speaks HTTP/1 on conn, in the caller's goroutine, until it ends or was handed to a tunnel. tcp is the connection below
// TLS, or conn itself; nil where it is none. stale is asked before each answer, which says that the connection closes when it
// is true; nil: never. client is whose connection it is by the word of a proxy in front; invalid: the one's at its other end.
//
// It also returns where an idle connection needs no goroutine any more; wake is not nil then, and has to be called when there is
// something to read, or earlier. It does as Serve, and sleeps is true where it is to be called again.
func (f *Front) Serve(nc net.Conn, tcp *net.TCPConn, client netip.Addr, stale func() bool) (wake func() (sleeps bool)) {
	c := newConn(f, nc, tcp, client, stale)
	f.enter()
	f.watch(&c.watch, c.number)
	f.meter.Connected(c.number, 1)
	if c.serve() {
		return c.serve
	}
	return nil
}

// enter counts a connection, and starts the sweeper with the first.
func (f *Front) enter() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open++
	if f.sweeping == nil {
		done := make(chan struct{})
		f.sweeping = done
		f.tick(time.Now()) // the clock has stood still until now
		f.swept.Go(func() { f.run(done) })
		f.swept.Go(func() { f.notices.run(done) }) // not the sweeper: a log may wait, and limits must not
	}
}

func (f *Front) exit() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open--
	f.rest()
	if f.open > 0 {
		return
	}
	select {
	case f.last <- struct{}{}:
	default:
	}
}

// rest ends the sweeper when the last connection of a front that leaves is gone. It is called with mu held.
func (f *Front) rest() {
	if f.open == 0 && f.leaving.Load() && f.sweeping != nil {
		close(f.sweeping)
		f.swept.Wait()
		f.sweeping = nil
	}
}

// Leave makes every answer from now on say that the connection closes; over HTTP/2, GOAWAY does. It does not wait.
func (f *Front) Leave() {
	if f.leaving.Swap(true) {
		return
	}
	f.http2.leave()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rest()
}

// GoAway asks the clients of HTTP/2 connections to send no more requests on them; those under way are answered. Connections
// that come later are served as ever.
func (f *Front) GoAway() { f.http2.leave() }

// goodBye is how long a drain waits for kept connections to come by once more. Cutting those that are between two requests at
// once would cut requests that are on their way already, which clients must not repeat unless they are idempotent (RFC 9112
// section 9.3.1).
const goodBye = time.Second

// Drain leaves, lets the requests under way end, closes idle connections after a second and cuts what is left when ctx ends.
// It returns when all connections have ended. The error is that of ctx if anything was cut. Connections that were handed to a
// tunnel are the tunnel's. Connections that Serve is given later are ended likewise, and Drain may be called again for them.
func (f *Front) Drain(ctx context.Context) error {
	f.Leave()
	timer := time.NewTimer(goodBye)
	defer timer.Stop()
	over, cut := ctx.Done(), false
	for f.connections() > 0 {
		select {
		case <-f.last:
		case <-timer.C:
			f.closeIdle.Store(true)
			f.http2.leave() // those that were about to begin at the first time
		case <-over:
			over, cut = nil, true
			f.cutAll.Store(true)
			f.http2.cut()
		}
	}
	if cut {
		return fmt.Errorf("connections were cut: %w", context.Cause(ctx))
	}
	return nil
}

func (f *Front) connections() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open
}

// clientOf is whose connection it is: the one's that a proxy has announced, or who is at its other end.
func clientOf(announced netip.Addr, nc net.Conn) netip.Addr {
	if announced.IsValid() {
		return announced
	}
	return addressOf(nc)
}

// addressOf is the address at the other end, invalid for a connection that is not over IP, as in a test.
func addressOf(nc net.Conn) netip.Addr {
	if tcp, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	at, err := netip.ParseAddrPort(nc.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}
