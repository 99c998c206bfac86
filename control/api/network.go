package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pyserve/pyserve/control/store"
)

const (
	// handshakeTime bounds a TLS handshake.
	handshakeTime = 5 * time.Second
	// maxHandshakes is how many are under way at once. Where more come, one of those that hold the most is ended.
	maxHandshakes = 64
)

// Network gives the way that the log is replicated by: TCP with TLS on both sides.
func Network(address string, server, client *tls.Config) *store.Network {
	return &store.Network{
		Listen: func() (net.Listener, error) {
			l, err := net.Listen("tcp", address)
			if err != nil {
				return nil, fmt.Errorf("--raft: cannot listen on %s: %w", address, err)
			}
			return newSecured(l, server), nil
		},
		Dial: func(address string, timeout time.Duration) (net.Conn, error) {
			d := tls.Dialer{NetDialer: &net.Dialer{}, Config: client}
			ctx, cancel := context.WithTimeout(context.Background(), timeout)
			defer cancel()
			return d.DialContext(ctx, "tcp", address)
		},
	}
}

// secured is a listener whose connections have shown their certificate before they are accepted: raft reads from a
// connection without a deadline, and must not wait for a stranger.
type secured struct {
	net.Listener
	config *tls.Config
	ready  chan net.Conn
	closed chan struct{}
	once   sync.Once
	group  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	live    map[*securedConn]struct{}
	shaking []*handshake // the oldest first
}

// handshake is one that is under way.
type handshake struct {
	conn net.Conn
	from netip.Prefix
}

// securedConn is a connection that ends with its listener: raft forgets those that it accepted.
type securedConn struct {
	net.Conn
	listener *secured
}

// Close implements net.Conn.
func (c *securedConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.live, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// keep remembers a connection; false: the listener is closed.
func (s *secured) keep(c *securedConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
		return false
	default:
	}
	s.live[c] = struct{}{}
	return true
}

// endAll ends every connection.
func (s *secured) endAll() {
	s.mu.Lock()
	all := slices.Collect(maps.Keys(s.live))
	s.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

func newSecured(l net.Listener, config *tls.Config) *secured {
	s := &secured{
		Listener: l, config: config, ready: make(chan net.Conn), closed: make(chan struct{}),
		live: map[*securedConn]struct{}{},
	}
	s.group.Go(s.accept)
	return s
}

func (s *secured) accept() {
	for {
		conn, err := s.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			timer := time.NewTimer(50 * time.Millisecond) // out of descriptors, most likely
			select {
			case <-timer.C:
				continue
			case <-s.closed:
				timer.Stop()
				return
			}
		}
		h := s.begin(conn)
		s.group.Go(func() { s.shake(h) })
	}
}

// begin gives a connection its place. Where there is none, a stranger has taken it: an address with many handshakes that do
// not end loses its oldest. A control's own takes milliseconds, so that it is over before its turn comes.
func (s *secured) begin(conn net.Conn) *handshake {
	h := &handshake{conn, comesFrom(conn.RemoteAddr())}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.shaking) >= maxHandshakes {
		i := mostCrowded(s.shaking)
		s.shaking[i].conn.Close()
		s.shaking = slices.Delete(s.shaking, i, i+1)
	}
	s.shaking = append(s.shaking, h)
	return h
}

// over frees the place of a handshake.
func (s *secured) over(h *handshake) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shaking = slices.DeleteFunc(s.shaking, func(other *handshake) bool { return other == h })
}

// mostCrowded gives the place of the oldest handshake of who has the most; of two that have as many, who began first.
func mostCrowded(all []*handshake) int {
	counts, most := map[netip.Prefix]int{}, 0
	for _, h := range all {
		counts[h.from]++
		most = max(most, counts[h.from])
	}
	return slices.IndexFunc(all, func(h *handshake) bool { return counts[h.from] == most })
}

// comesFrom is whom a connection counts for: an IPv4 address, or an IPv6 network, of which one machine has all addresses.
func comesFrom(remote net.Addr) netip.Prefix {
	at, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return netip.Prefix{}
	}
	bits := 32
	if at.Addr().Unmap().Is6() {
		bits = 64
	}
	from, _ := at.Addr().Unmap().WithZone("").Prefix(bits) // fails for no such length
	return from
}

// shake hands a connection over when its other side has proved to be a control.
func (s *secured) shake(h *handshake) {
	plain := h.conn
	conn := tls.Server(plain, s.config)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { plain.Close() })
	done := make(chan struct{})
	s.group.Go(func() { // the end of the listener ends handshakes as well
		select {
		case <-s.closed:
			cancel()
		case <-done:
		}
	})
	err := conn.HandshakeContext(ctx)
	close(done)
	unhook()
	s.over(h)
	if err != nil {
		plain.Close()
		return
	}
	kept := &securedConn{conn, s}
	if !s.keep(kept) {
		conn.Close()
		return
	}
	select {
	case s.ready <- kept:
	case <-s.closed:
		kept.Close()
	}
}

// Accept implements net.Listener.
func (s *secured) Accept() (net.Conn, error) {
	select {
	case conn := <-s.ready:
		return conn, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener, and waits for everything that was begun.
func (s *secured) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closed)
		err = s.Listener.Close()
		s.group.Wait()
		s.endAll()
	})
	return err
}
