package listener

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pyserve/pyserve/node/socket"
)

// serveTLS runs the handshake in the connection's goroutine and gives the connection to the engine that ALPN chose.
func (l *Listener) serveTLS(tcp *net.TCPConn, client netip.Addr, config *tls.Config) {
	conn := l.shakeHands(tcp, config)
	switch {
	case conn == nil:
	case conn.ConnectionState().NegotiatedProtocol == "h2":
		l.front.ServeHTTP2(conn, client, l.tlsIsStale)
	default:
		for wake := l.front.Serve(conn, tcp, client, l.tlsIsStale); wake != nil && wake(); {
			// What TLS has read already would wake nobody, so this goroutine waits.
		}
	}
}

// shakeHands returns nil when the handshake has failed; the connection is closed then. There is a deadline on the socket
// and not a context, because that would cost another goroutine.
func (l *Listener) shakeHands(tcp *net.TCPConn, config *tls.Config) *tls.Conn {
	if !l.handshakes.enter(tcp) {
		tcp.Close()
		return nil
	}
	defer l.handshakes.leave(tcp)
	conn := tls.Server(socket.New(tcp), config)
	err := tcp.SetDeadline(time.Now().Add(l.handshakeTimeout))
	if err == nil {
		err = conn.Handshake()
	}
	if err == nil {
		err = tcp.SetDeadline(time.Time{})
	}
	if err != nil {
		l.refuse(tcp, err)
		return nil
	}
	return conn
}

// refuse ends a connection whose handshake has failed. It is the client's doing, or a scanner's: no news for an operator.
func (l *Listener) refuse(tcp *net.TCPConn, err error) {
	defer tcp.Close()
	l.logger.Debug("a TLS handshake failed", "client", tcp.RemoteAddr(), "error", err)
	var record tls.RecordHeaderError
	if errors.As(err, &record) && record.Conn != nil && looksLikeHTTP(record.RecordHeader) {
		answerPlain(tcp)
	}
}

// looksLikeHTTP tells the beginning of a request by its method.
func looksLikeHTTP(header [5]byte) bool {
	switch string(header[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "PATCH", "DELET", "OPTIO", "TRACE", "CONNE", "PRI *":
		return true
	}
	return false
}

const plainToTLS = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 48\r\n" +
	"Connection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"

// answerPlain leaves the deadline of the handshake in force. To close a socket with unread bytes makes the kernel send RST,
// which may overtake the answer (RFC 9112 section 9.6): so what the client still sends is read, up to a bound.
func answerPlain(tcp *net.TCPConn) {
	if _, err := io.WriteString(tcp, plainToTLS); err != nil {
		return
	}
	if tcp.CloseWrite() == nil {
		io.CopyN(io.Discard, tcp, 64<<10) // whatever ends it, the connection is closed next
	}
}

// handshakes are the connections that Front does not have yet and that something is read from, for a drain that can wait no longer.
type handshakes struct {
	mu    sync.Mutex // guards what follows
	conns map[*net.TCPConn]struct{}
	over  bool
}

// enter returns false when no handshake may begin any more.
func (h *handshakes) enter(c *net.TCPConn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return false
	}
	if h.conns == nil {
		h.conns = make(map[*net.TCPConn]struct{})
	}
	h.conns[c] = struct{}{}
	return true
}

func (h *handshakes) leave(c *net.TCPConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, c)
}

// cut ends those under way and all that would begin, and returns how many were under way.
func (h *handshakes) cut() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
	for c := range h.conns {
		c.Close()
	}
	return len(h.conns)
}
