package listener

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pyserve/pyserve/node/proxyproto"
)

// Proxies are those whose connections begin with a header of the PROXY protocol. They outlive listeners.
type Proxies struct {
	// Networks are where they connect from, IPv4 as such; none: no connection begins with a header. It is asked for each
	// connection, from its goroutine. Required.
	Networks func() []netip.Prefix

	read, refused atomic.Uint64
}

// Counts are how many headers were read, and how many connections were closed because theirs was missing or malformed.
func (p *Proxies) Counts() (read, refused uint64) { return p.read.Load(), p.refused.Load() }

// announced gives whose connection it is by the word of a proxy; an invalid address where none speaks for it. It is false for a
// connection that is not to be served: one that should begin with a header and does not could be anybody's.
func (l *Listener) announced(tcp *net.TCPConn) (client netip.Addr, ok bool) {
	if l.proxies == nil {
		return netip.Addr{}, true
	}
	networks := l.proxies.Networks()
	if len(networks) == 0 {
		return netip.Addr{}, true
	}
	peer := addressOf(tcp)
	if !slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(peer) }) {
		return netip.Addr{}, true
	}
	header, err := l.readHeader(tcp)
	if err == nil {
		l.proxies.read.Add(1)
		return header.Source.Addr(), true
	}
	defer tcp.Close() // who sees the end finds it counted
	switch {
	case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return netip.Addr{}, false // a probe of the proxy's: it connects, and that is all
	case errors.Is(err, net.ErrClosed):
		return netip.Addr{}, false // by a drain that could not wait for the header
	}
	l.proxies.refused.Add(1)
	if times, due := l.unannounced.due(time.Now()); due {
		l.logger.Warn("a connection of a trusted proxy was closed: it must begin with a PROXY protocol header",
			"listen", l.Address(), "proxy", peer, "error", err, "times", times)
	}
	return netip.Addr{}, false
}

// readHeader reads it within the time that a handshake may take.
func (l *Listener) readHeader(tcp *net.TCPConn) (proxyproto.Header, error) {
	if !l.handshakes.enter(tcp) {
		return proxyproto.Header{}, net.ErrClosed
	}
	defer l.handshakes.leave(tcp)
	if err := tcp.SetReadDeadline(time.Now().Add(l.handshakeTimeout)); err != nil {
		return proxyproto.Header{}, err
	}
	header, err := proxyproto.Read(tcp)
	if err == nil {
		err = tcp.SetReadDeadline(time.Time{})
	}
	return header, err
}

func addressOf(tcp *net.TCPConn) netip.Addr {
	if at, ok := tcp.RemoteAddr().(*net.TCPAddr); ok {
		return at.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// sharedNotice is a notice of several goroutines.
type sharedNotice struct {
	mu sync.Mutex // guards the notice
	notice
}

func (n *sharedNotice) due(now time.Time) (times int, due bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.notice.due(now)
}
