package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/pyserve/pyserve/control/store"
)

const (
	// handshakeTime bounds a TLS handshake.
	handshakeTime = 5 * time.Second
	// maxHandshakes is how many are under way at once; whoever comes on top is turned away.
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
	places chan struct{}
	closed chan struct{}
	once   sync.Once
	group  sync.WaitGroup

	mu   sync.Mutex // guards live
	live map[*securedConn]struct{}
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
		Listener: l, config: config, ready: make(chan net.Conn), places: make(chan struct{}, maxHandshakes), closed: make(chan struct{}),
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
		select {
		case s.places <- struct{}{}:
			s.group.Go(func() {
				defer func() { <-s.places }()
				s.shake(conn)
			})
		default:
			conn.Close()
		}
	}
}

// shake hands a connection over when its other side has proved to be a control.
func (s *secured) shake(plain net.Conn) {
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
