// Package listener owns the sockets that clients connect to: binding them, TLS, the limits on a request's head, and the
// drain. What is answered is the business of the http.Handler it is given.
//
// For now the HTTP engine above the socket is net/http's server.
//
// Order of calls: Bind, then either Close, if the socket is not wanted after all, or Start and, once, Drain. Between Bind
// and Start the kernel takes connections and lets them wait.
package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	defaultReadHeaderTimeout = 10 * time.Second
	defaultIdleTimeout       = 90 * time.Second
	// net/http lets a head be 4 KiB longer than it is told, for what its buffer reads ahead. With this, a head of up to
	// 60 KiB always passes and one of more than 64 KiB never does.
	maxHeaderBytes = 60 << 10
)

// Options of a Listener.
type Options struct {
	// Answers the requests. Required.
	Handler http.Handler
	// Asked for each connection; nil, or a nil answer: the connection speaks plain HTTP. The config should offer "h2" and
	// "http/1.1" in NextProtos. Connections that came before the answer changed between plain and TLS are told to close
	// with their next response.
	TLS func() *tls.Config
	// Nil: nothing is logged.
	Logger *slog.Logger
	// For the head of a request, and for the TLS handshake. 0: 10 s.
	ReadHeaderTimeout time.Duration
	// How long a connection is kept without a request. 0: 90 s.
	IdleTimeout time.Duration
	// A listener of this process that may hold the same port on another address ("127.0.0.1:80" and then "0.0.0.0:80",
	// which the kernel calls a conflict) and is drained when the new one is in use. Nil: none.
	Beside *Listener
}

// Listener is one bound address.
type Listener struct {
	socket net.Listener
	server *http.Server
	tls    func() *tls.Config
	logger *slog.Logger
	serves sync.WaitGroup // the accepting goroutine

	leaving atomic.Bool   // answers say that the connection closes
	conns   atomic.Int64  // the server's connections
	last    chan struct{} // signalled when conns has become 0; capacity 1

	// mu guards what follows.
	mu     sync.Mutex
	active int  // handlers that run
	closed bool // no handler may begin
	idle   chan struct{}
}

// Bind takes address, host:port, without accepting anything yet. The error wraps what the kernel said: see Reason.
func Bind(ctx context.Context, address string, o Options) (*Listener, error) {
	socket, err := bind(ctx, address, o.Beside)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	l := &Listener{socket: socket, tls: o.TLS, logger: o.Logger, last: make(chan struct{}, 1), idle: make(chan struct{})}
	if l.logger == nil {
		l.logger = slog.New(slog.DiscardHandler)
	}
	if l.tls == nil {
		l.tls = func() *tls.Config { return nil }
	}
	l.server = &http.Server{
		Handler:                      l.gate(o.Handler),
		ReadHeaderTimeout:            withDefault(o.ReadHeaderTimeout, defaultReadHeaderTimeout),
		IdleTimeout:                  withDefault(o.IdleTimeout, defaultIdleTimeout),
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true,
		ConnState:                    l.count,
		// Mostly clients that break off or speak nonsense.
		ErrorLog: slog.NewLogLogger(l.logger.Handler(), slog.LevelDebug),
	}
	return l, nil
}

func withDefault(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

// bind listens on address, next to a listener of ours where there is one in the way.
func bind(ctx context.Context, address string, beside *Listener) (net.Listener, error) {
	var plain net.ListenConfig
	socket, err := plain.Listen(ctx, network(address), address)
	if beside == nil || !errors.Is(err, syscall.EADDRINUSE) || !samePort(address, beside.Address()) {
		return socket, err
	}
	if shared, sharedErr := bindShared(ctx, address, beside.socket); sharedErr == nil {
		return shared, nil
	}
	return nil, err
}

// network makes 0.0.0.0 mean what it says, every IPv4 address: for Go's "tcp" it is every IPv6 address too.
func network(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return "tcp"
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		return "tcp4"
	}
	return "tcp"
}

func samePort(a, b string) bool {
	_, portA, errA := net.SplitHostPort(a)
	_, portB, errB := net.SplitHostPort(b)
	return errA == nil && errB == nil && portA == portB
}

// Reason is an error of Bind in a few words for people, without Go's own: "address already in use".
func Reason(err error) string {
	var errno syscall.Errno
	var lookup *net.DNSError
	var address *net.AddrError
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &lookup):
		return lookup.Err
	case errors.As(err, &address):
		return address.Err
	}
	return err.Error()
}

// Address is the bound host:port.
func (l *Listener) Address() string { return l.socket.Addr().String() }

// Start accepts connections, until Drain.
func (l *Listener) Start() {
	l.serves.Go(func() {
		err := l.server.Serve(acceptor{l})
		if !errors.Is(err, http.ErrServerClosed) && !(l.leaving.Load() && errors.Is(err, net.ErrClosed)) {
			l.logger.Error("accepting connections ended", "listen", l.Address(), "error", err)
		}
	})
}

// Close gives up a listener that was not started.
func (l *Listener) Close() error {
	if err := l.socket.Close(); err != nil {
		return fmt.Errorf("close listener on %s: %w", l.Address(), err)
	}
	return nil
}

// Drain accepts no more, gives kept connections a moment to bring a last request, lets the requests under way end and cuts
// what is left when ctx ends. It returns once every handler has returned; a connection that was upgraded is its new owner's
// to end. The error is that of ctx if anything had to be cut.
func (l *Listener) Drain(ctx context.Context) error {
	l.sayGoodBye(ctx)
	err := l.server.Shutdown(ctx)
	if err != nil {
		l.server.Close()
		err = fmt.Errorf("drain %s: %w", l.Address(), err)
	}
	l.serves.Wait()
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		if l.active == 0 {
			close(l.idle)
		}
	}
	l.mu.Unlock()
	<-l.idle
	return err
}

// goodBye is how long a drain waits for kept connections to come by once more.
const goodBye = time.Second

// sayGoodBye closes the socket and lets every request that still comes be answered with "Connection: close". Shutdown alone
// would cut kept connections that are between two requests, and with them requests that are on their way already, which
// clients must not repeat unless they are idempotent (RFC 9112 section 9.3.1).
func (l *Listener) sayGoodBye(ctx context.Context) {
	if l.leaving.Swap(true) {
		return
	}
	l.socket.Close() // an error would mean that it is closed
	l.serves.Wait()  // or Shutdown would close it once more, and fail
	timer := time.NewTimer(goodBye)
	defer timer.Stop()
	for l.conns.Load() > 0 {
		select {
		case <-l.last:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// count follows the connections that are the server's; upgraded ones are not.
func (l *Listener) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		l.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		if l.conns.Add(-1) > 0 {
			return
		}
		select {
		case l.last <- struct{}{}:
		default:
		}
	}
}

// gate counts the handlers, so that Drain can wait for them: the server's Close does not.
func (l *Listener) gate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !l.enter() {
			panic(http.ErrAbortHandler)
		}
		defer l.leave()
		if l.leaving.Load() || (r.TLS != nil) != (l.tls() != nil) {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

func (l *Listener) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.active++
	return true
}

func (l *Listener) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active--
	if l.closed && l.active == 0 {
		close(l.idle)
	}
}

// acceptor gives the server each connection as the TLS setting of its moment wants it. The handshake is left to the
// connection's own goroutine.
type acceptor struct{ *Listener }

func (a acceptor) Accept() (net.Conn, error) {
	conn, err := a.socket.Accept()
	if err != nil {
		return nil, err
	}
	if config := a.tls(); config != nil {
		return tls.Server(conn, config), nil
	}
	return conn, nil
}

func (a acceptor) Addr() net.Addr { return a.socket.Addr() }

// Close is the server's, at the beginning of a drain.
func (a acceptor) Close() error { return a.socket.Close() }
