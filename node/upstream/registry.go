package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ErrClosed is what Acquire returns after Registry.Close.
var ErrClosed = errors.New("the registry of backends is closed")

// Options of a Registry. The zero value works.
type Options struct {
	// Nil: nothing is logged.
	Logger *slog.Logger
	// Called when a backend is acquired for the first time, before Acquire returns it, and when it is released for the last
	// time, after which no pool holds it. Health checks hang on these. No lock is held. Nil: nobody is told.
	Added, Removed func(*Backend)
	// Called after the state or the reason of a backend's verdict changed and the pools have taken it up, by whoever called
	// SetVerdict. No lock is held. Nil: nobody is told.
	Changed func(*Backend)
	// Called when Open has failed by what looks like the backend's doing, or the network's, with a *DialError, by the goroutine
	// that called Open. No lock is held. Nil: nobody is told.
	Failed func(*Backend, error)
	// For name lookup, connect and TLS handshake together, where the caller's context has no deadline. 0: 5 s.
	ConnectTimeout time.Duration
	// How long a connection is kept without a request, at most: up to a second less, and up to a quarter if that is shorter.
	// 0: 60 s.
	IdleTimeout time.Duration
	// Connections kept without a request, for each backend. 0: 256.
	MaxIdleConns int
	// Looks up backends that are given by name, in the background. Nil: the system's name servers and hosts file, asked by
	// Go's own resolver.
	Resolver Resolver
	// A random number from 0 up to but not including n, which is above 0: spreads lookups over time, and first connections
	// over addresses. Called concurrently. Nil: math/rand/v2.
	Random func(n int64) int64
	// Opens the connection below TLS; address is host:port, the host an IP address. It must heed ctx. Nil: TCP.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for _, hook := range []*func(*Backend){&o.Added, &o.Removed, &o.Changed} {
		if *hook == nil {
			*hook = func(*Backend) {}
		}
	}
	if o.Failed == nil {
		o.Failed = func(*Backend, error) {}
	}
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = 5 * time.Second
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = time.Minute
	}
	if o.MaxIdleConns <= 0 {
		o.MaxIdleConns = 256
	}
	if o.Resolver == nil {
		// Not the C library's: it holds a thread for each lookup, even after its context has ended.
		o.Resolver = &net.Resolver{PreferGo: true}
	}
	if o.Random == nil {
		o.Random = rand.Int64N
	}
	if o.DialContext == nil {
		o.DialContext = (&net.Dialer{}).DialContext
	}
	return o
}

// Registry holds every backend that some generation uses. Its methods may be called concurrently.
type Registry struct {
	options Options
	lookups chan struct{} // holds one for each that is under way
	sweeper *sweeper
	serving atomic.Bool

	// mu guards everything below and every backend's refs. No other lock is taken and no hook called under it.
	mu       sync.Mutex
	backends map[identity]*Backend
	material map[digest]*tlsMaterial
	closed   bool
}

// identity is a Spec made comparable.
type identity struct {
	address    string
	tls, check digest
}

// NewRegistry returns an empty registry, to be closed with Close.
func NewRegistry(o Options) *Registry {
	o = o.withDefaults()
	return &Registry{
		options:  o,
		lookups:  make(chan struct{}, maxLookups),
		sweeper:  newSweeper(o.IdleTimeout),
		backends: make(map[identity]*Backend),
		material: make(map[digest]*tlsMaterial),
	}
}

// appendBackends adds all backends to those in the slice.
func (r *Registry) appendBackends(to []*Backend) []*Backend {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.backends {
		to = append(to, b)
	}
	return to
}

// Acquire returns the backend that s describes and takes a reference to it, to be given back with Release. It waits for
// nothing: that a name cannot be resolved is seen by its first user. Specs of the same content get the same backend,
// whichever generation asks; the messages in s are kept and must not be changed. The error is a *SpecError, or ErrClosed.
func (r *Registry) Acquire(s Spec) (*Backend, error) {
	s.Host = canonicalHost(s.Host)
	if s.Host == "" {
		return nil, &SpecError{Field: "host", Reason: "is empty"}
	}
	if s.Port == 0 || s.Port > 65535 {
		return nil, &SpecError{Field: "port", Reason: fmt.Sprintf("is %d, and must be from 1 to 65535", s.Port)}
	}
	id := identity{
		address: net.JoinHostPort(s.Host, strconv.FormatUint(uint64(s.Port), 10)),
		tls:     digestOf(s.TLS),
		check:   digestOf(s.Check),
	}
	b, fresh, err := r.take(id, s)
	if err != nil {
		return nil, err
	}
	if fresh {
		r.options.Logger.Debug("backend added", "backend", b.address)
		r.options.Added(b)
	}
	return b, nil
}

// Serving says that backends take traffic from now on: those that are acquired later are new among others, and start slowly
// where a pool says so. Those of before start together, and who all of them are to be spared for is nobody.
func (r *Registry) Serving() { r.serving.Store(true) }

// take finds or makes the backend and counts the reference.
func (r *Registry) take(id identity, s Spec) (b *Backend, fresh bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, false, ErrClosed
	}
	if b, ok := r.backends[id]; ok {
		b.refs++
		return b, false, nil
	}
	b = newBackend(r, id, s)
	if s.TLS != nil {
		m, err := r.takeMaterial(id.tls, s)
		if err != nil {
			return nil, false, err
		}
		b.tls = m.tlsFor(s.Host)
	}
	if r.serving.Load() {
		now := time.Now()
		b.began.Store(&now)
	}
	b.refs = 1
	r.backends[id] = b
	r.sweeper.start(r.appendBackends)
	if b.name != nil {
		b.name.start()
	}
	return b, true, nil
}

// takeMaterial is called with mu held. Parsing under it is bearable: it is done once for each content, by whoever builds a
// generation, and requests never come here.
func (r *Registry) takeMaterial(d digest, s Spec) (*tlsMaterial, error) {
	m, ok := r.material[d]
	if !ok {
		config, err := parseTLS(s.TLS)
		if err != nil {
			return nil, err
		}
		m = &tlsMaterial{config: config}
		r.material[d] = m
	}
	m.refs++
	return m, nil
}

// release gives back one reference to b.
func (r *Registry) release(b *Backend) {
	r.mu.Lock()
	if r.backends[b.id] != b {
		r.mu.Unlock()
		return // released more often than acquired, or after Close
	}
	b.refs--
	last := b.refs == 0
	if last {
		r.forget(b)
	}
	r.mu.Unlock()
	if last {
		r.end(b)
	}
}

// forget is called with mu held.
func (r *Registry) forget(b *Backend) {
	delete(r.backends, b.id)
	if m, ok := r.material[b.id.tls]; ok {
		if m.refs--; m.refs == 0 {
			delete(r.material, b.id.tls)
		}
	}
}

// end tells of a removed backend, ends its lookups and closes its idle connections. Requests that are under way go on.
func (r *Registry) end(b *Backend) {
	r.options.Removed(b)
	if b.name != nil {
		b.name.stop()
	}
	b.conns.end()
	r.options.Logger.Debug("backend removed", "backend", b.address)
}

// Close removes every backend still held, as its last Release would, and waits for the registry's goroutines. Later Releases
// do nothing, a later Acquire fails.
func (r *Registry) Close() {
	r.mu.Lock()
	r.closed = true
	held := make([]*Backend, 0, len(r.backends))
	for _, b := range r.backends {
		held = append(held, b)
		r.forget(b)
	}
	r.mu.Unlock()
	for _, b := range held {
		r.end(b)
	}
	r.sweeper.stop()
}

// canonicalHost makes one spelling of the many that an address has, so that a rewritten document finds its backends again.
func canonicalHost(host string) string {
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return strings.ToLower(host)
	}
	var room [64]byte
	if short := ip.AppendTo(room[:0]); string(short) != host {
		return string(short)
	}
	return host
}
