// Package listener owns the sockets that clients connect to: binding them, accepting, TLS, the limit on connections, and the
// drain. What is spoken on a connection is the business of the Front it is given.
//
// Each connection has one goroutine, from the accept to the end of Front's call; a TLS handshake is part of it. An idle connection
// may give it back: it sleeps, and gets one again when there is something to read. The Listener waits for all of them. What Front
// has handed over to another owner, as after an upgrade, is not its concern any more.
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
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const defaultHandshakeTimeout = 10 * time.Second

// Front speaks HTTP on connections. A Front serves one Listener: Leave and Drain are about all of its connections.
type Front interface {
	// Serve speaks HTTP/1 on conn until it ends or is handed over, after an upgrade; it closes conn itself. tcp is the
	// connection below TLS, or conn itself where that is plain, for Front to look at the socket. It is called in the
	// connection's own goroutine, after Leave as well. stale is asked before each answer; true: the connection is to be
	// closed after it, because TLS was turned on or off since it came, or because clients are sent away. client is whose
	// connection it is by the word of a proxy (Options.Proxies); invalid: the one's at its other end.
	//
	// Not nil, wake goes on with a connection that may sleep: it is called when there is something to read from tcp, its end
	// included, which a CloseRead makes too, or at once where the system cannot wait for that. It does as Serve, and says
	// whether the connection may sleep again. The socket must stay open until then.
	Serve(conn net.Conn, tcp *net.TCPConn, client netip.Addr, stale func() bool) (wake func() (sleeps bool))
	// ServeHTTP2 does so with HTTP/2, chosen by ALPN. The handshake is done.
	ServeHTTP2(conn *tls.Conn, client netip.Addr, stale func() bool)
	// GoAway tells clients that can be told without an answer, over HTTP/2, to send no more requests on the connections that
	// there are. It does not wait.
	GoAway()
	// Leave makes every answer from now on say that the connection closes (HTTP/2: GOAWAY), on connections that come later
	// too. It does not wait.
	Leave()
	// Drain is Leave, and then waits until all connections that Serve and ServeHTTP2 were given have ended. Idle ones are
	// closed after the good-bye second; what is left when ctx ends is cut, as is all that comes after that. The error is
	// ctx's if anything was cut. It is called again if connections came while it returned.
	Drain(ctx context.Context) error
}

// Options of a Listener.
type Options struct {
	// Speaks on the connections. Required.
	Front Front
	// Asked for each connection; nil, or a nil answer: the connection speaks plain HTTP. The config should offer "h2" and
	// "http/1.1" in NextProtos. Sessions may be resumed across answers that show the same certificates: see resumption. It
	// is called from one goroutine, and as stale from those of connections.
	TLS func() *tls.Config
	// SendAway is asked before each answer; true: the client is told to use another connection for the next request, which is
	// what it has a load balancer for. Called from the goroutines of connections. Nil: false.
	SendAway func() bool
	// Who says in a PROXY protocol header, before TLS, whose a connection is. Others' connections are served as they are. Nil:
	// nobody.
	Proxies *Proxies
	// Nil: nothing is logged.
	Logger *slog.Logger
	// For a TLS handshake as a whole, and for a PROXY protocol header. 0: 10 s.
	HandshakeTimeout time.Duration
	// How many connections Front may be speaking on at once; those that were handed over do not count. At the limit no
	// more are accepted until one ends: they wait in the kernel's queue. It is this Listener's alone, not the process's.
	//
	// 0: three quarters of the process's file descriptors (RLIMIT_NOFILE as it is at Bind). The last quarter is for what a
	// connection leads to, a backend's above all; without it each accepted client could cost another its answer. Most
	// connections are between two requests at any moment and have no backend's then. Where the system knows no such
	// limit, there is none here.
	MaxConnections int
	// A listener of this process that may hold the same port on another address ("127.0.0.1:80" and then "0.0.0.0:80",
	// which the kernel calls a conflict) and is drained when the new one is in use. Nil: none.
	Beside *Listener
}

func (o *Options) validate() error {
	switch {
	case o.Front == nil:
		return errors.New("Options.Front is nil")
	case o.HandshakeTimeout < 0:
		return fmt.Errorf("Options.HandshakeTimeout is negative: %v", o.HandshakeTimeout)
	case o.MaxConnections < 0:
		return fmt.Errorf("Options.MaxConnections is negative: %d", o.MaxConnections)
	}
	return nil
}

// withDefaults puts values in the place of zeros.
func (o Options) withDefaults() Options {
	if o.TLS == nil {
		o.TLS = func() *tls.Config { return nil }
	}
	if o.SendAway == nil {
		o.SendAway = func() bool { return false }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = defaultHandshakeTimeout
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = max(1, descriptors()/4*3)
	}
	return o
}

// Listener is one bound address.
type Listener struct {
	socket           *net.TCPListener
	take             func() (*net.TCPConn, error) // the next connection: socket's AcceptTCP
	front            Front
	tls              func() *tls.Config
	logger           *slog.Logger
	handshakeTimeout time.Duration

	// What connections are given as stale. They stand here so that none has to make its own.
	plainIsStale, tlsIsStale func() bool

	slots      chan struct{} // holds one for each connection; full at the limit
	accepts    sync.WaitGroup
	conns      sync.WaitGroup // connections
	handshakes handshakes
	proxies    *Proxies // nil: none

	unannounced sharedNotice
	sleepers    sleepers

	// Goroutines that have served a connection and wait for the next, with the stack that they have grown.
	spare    chan accepted
	restTime time.Duration
	resting  atomic.Int32
	workers  sync.WaitGroup // these, and those that serve a connection first

	lastAccepted atomic.Int64 // Unix nanoseconds; 0: none yet

	leave   sync.Once
	leaving chan struct{} // closed at the beginning of the drain
}

// Bind takes address, host:port, without accepting anything yet. The error wraps what the kernel said: see Reason.
func Bind(ctx context.Context, address string, o Options) (*Listener, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	socket, err := bind(ctx, address, o.Beside)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	return newListener(socket, o.withDefaults()), nil
}

func newListener(socket *net.TCPListener, o Options) *Listener {
	l := &Listener{
		socket:           socket,
		take:             socket.AcceptTCP,
		front:            o.Front,
		tls:              o.TLS,
		logger:           o.Logger,
		proxies:          o.Proxies,
		unannounced:      sharedNotice{notice: notice{every: noticeEvery}},
		handshakeTimeout: o.HandshakeTimeout,
		plainIsStale:     func() bool { return o.TLS() != nil || o.SendAway() },
		tlsIsStale:       func() bool { return o.TLS() == nil || o.SendAway() },
		slots:            make(chan struct{}, o.MaxConnections),
		spare:            make(chan accepted),
		restTime:         restTime,
		leaving:          make(chan struct{}),
	}
	l.sleepers.wake = l.assign
	return l
}

// bind listens on address, next to a listener of ours where there is one in the way.
func bind(ctx context.Context, address string, beside *Listener) (*net.TCPListener, error) {
	socket, err := listen(ctx, net.ListenConfig{}, address)
	if beside == nil || !errors.Is(err, syscall.EADDRINUSE) || !samePort(address, beside.Address()) {
		return socket, err
	}
	if shared, sharedErr := bindShared(ctx, address, beside.socket); sharedErr == nil {
		return shared, nil
	}
	return nil, err
}

// listen opens one socket. What it accepts has TCP_NODELAY and the keepalive that is Go's default: after 15 s, every 15 s,
// nine times.
func listen(ctx context.Context, lc net.ListenConfig, address string) (*net.TCPListener, error) {
	if inheritsKeepAlive {
		lc.KeepAlive = -1
	}
	// Go's default since 1.24. No client of a proxy has been seen to speak it, and every accept pays for the question.
	lc.SetMultipathTCP(false)
	socket, err := lc.Listen(ctx, network(address), address)
	if err != nil {
		return nil, err
	}
	tcp, ok := socket.(*net.TCPListener)
	if !ok {
		socket.Close()
		return nil, fmt.Errorf("%T is no TCP socket", socket)
	}
	if err := setKeepAlive(tcp); err != nil {
		tcp.Close()
		return nil, err
	}
	return tcp, nil
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

// Free is for how many more connections there is a slot at this moment, but for the one that the next has already.
func (l *Listener) Free() int { return cap(l.slots) - len(l.slots) }

// LastAccepted is when the last connection came; the zero Time: none has yet.
func (l *Listener) LastAccepted() time.Time {
	if at := l.lastAccepted.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// GoAway tells the clients of the connections that there are to send no more requests, where they can be told without an
// answer; Options.SendAway does the rest. It does not wait, and connections are accepted as before.
func (l *Listener) GoAway() { l.front.GoAway() }

// Start accepts connections, until Drain.
func (l *Listener) Start() { l.accepts.Go(l.accept) }

// Close gives up a listener that was not started.
func (l *Listener) Close() error {
	if err := l.socket.Close(); err != nil {
		return fmt.Errorf("close listener on %s: %w", l.Address(), err)
	}
	return nil
}
