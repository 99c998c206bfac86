//lint:file-ignore SA1019 http.Server, which is to take http2.Server's place, serves listeners, and sees TLS in a *tls.Conn alone.

package forward

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/http2"

	_ "github.com/pyserve/pyserve/node/forward/xconnect" // or the server would refuse WebSockets
	"github.com/pyserve/pyserve/node/http1"
)

const (
	// maxStreams is how many requests a client may have under way on one connection.
	maxStreams = 250
	// maxHeaderBytes bounds a head as HTTP/2 counts it (RFC 9113 section 6.5.2), which is more than its bytes in HTTP/1.
	maxHeaderBytes = http1.MaxHead
	// ownFields is for what intake adds to a head: the server is never to find one too long, which it would answer itself.
	ownFields = 1 << 10
	// After pingAfter without a frame a client is asked whether it is there, and has pingTimeout to answer.
	pingAfter, pingTimeout = 30 * time.Second, 15 * time.Second
	// stallTimeout is how long a client may leave its socket full, whatever the routes allow.
	stallTimeout = time.Minute
)

// http2Server hands the requests of HTTP/2 connections to the forwarding of HTTP/1. The protocol is golang.org/x/net/http2's,
// with its limits against floods of resets, CONTINUATION frames and settings; only how much is ours to say.
type http2Server struct {
	front  *Front
	server http2.Server
	base   *http.Server

	// mu guards what follows.
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func (h *http2Server) init(f *Front) {
	h.front = f
	h.conns = make(map[net.Conn]struct{})
	h.base = &http.Server{
		MaxHeaderBytes: maxHeaderBytes + ownFields, IdleTimeout: f.idleTimeout, ReadHeaderTimeout: f.headTimeout,
		ErrorLog: slog.NewLogLogger(f.logger.Handler(), slog.LevelDebug), // clients that break off or speak nonsense
	}
	h.server = http2.Server{
		MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrame,
		IdleTimeout: f.idleTimeout, ReadIdleTimeout: pingAfter, PingTimeout: pingTimeout,
		MaxUploadBufferPerConnection: 1 << 20, MaxUploadBufferPerStream: 256 << 10,
	}
	if err := http2.ConfigureServer(h.base, &h.server); err != nil {
		panic(err) // it is about cipher suites, of which none are given
	}
}

// ServeHTTP2 speaks HTTP/2 on conn, in the caller's goroutine and several more, until it ends, and closes it. stale is asked
// before each answer, by any of them: true ends the connection once the streams under way have ended. Nil: never.
// client is as with Serve.
func (f *Front) ServeHTTP2(conn *tls.Conn, client netip.Addr, stale func() bool) {
	f.enter()
	defer f.exit()
	number := f.numbers.Add(1)
	f.meter.Connected(number, 1)
	defer f.meter.Connected(number, -1)
	f.http2.serve(newIntake(newOutlet(f, conn), conn), clientOf(client, conn), stale)
}

// serve speaks HTTP/2 on a connection until it ends.
func (h *http2Server) serve(in *intake, client netip.Addr, stale func() bool) {
	h.mu.Lock()
	h.conns[in.Conn] = struct{}{}
	h.mu.Unlock()
	if h.front.cutAll.Load() {
		cutConn(in.Conn)
	}
	_, secure := in.Conn.(*tls.Conn)
	o := origin{peer: client, secure: secure}
	var streams streamGroup
	h.server.ServeConn(in.server(), &http2.ServeConnOpts{
		BaseConfig: h.base,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !streams.enter() {
				panic(http.ErrAbortHandler) // nobody is there any more
			}
			defer streams.running.Done()
			h.front.serveStream(w, r, in, &o, stale)
		}),
	})
	in.Close() // it mostly is
	in.end()
	streams.end()
	h.mu.Lock()
	delete(h.conns, in.Conn)
	h.mu.Unlock()
}

// streamGroup is the requests of a connection, which the server does not wait for when that has ended. The zero value is ready.
type streamGroup struct {
	running sync.WaitGroup
	mu      sync.Mutex // guards over, and that nothing enters running after it
	over    bool
}

// enter is false for a request that comes too late: its goroutine begins when it likes.
func (g *streamGroup) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return false
	}
	g.running.Add(1)
	return true
}

// end lets no more requests in and waits for those that are. They are told by the server that the client is gone.
func (g *streamGroup) end() {
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
	g.running.Wait()
}

// servePlain goes on with a connection whose client speaks HTTP/2 with prior knowledge (RFC 9113 section 3.3).
func (h *http2Server) servePlain(c *conn) {
	began := bytes.Clone(c.x.in[:c.x.have])
	if !c.arm(&c.main, phaseNone, 0) {
		return
	}
	c.release()
	c.x = nil
	h.serve(newIntake(newOutlet(h.front, c.nc), io.MultiReader(bytes.NewReader(began), c.nc)), c.peer, c.stale)
}

// leave sends GOAWAY on every connection.
func (h *http2Server) leave() {
	h.base.Shutdown(context.Background()) // it knows no connection to wait for, and tells those of h.server
}

// cut closes every connection.
func (h *http2Server) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for nc := range h.conns {
		cutConn(nc)
	}
}

// cutConn closes what is below TLS: the goodbye of TLS waits for clients that do not read.
func cutConn(nc net.Conn) {
	if secured, ok := nc.(*tls.Conn); ok {
		nc = secured.NetConn()
	}
	nc.Close()
}
