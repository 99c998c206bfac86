package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

const (
	// What a ping carries, and its pong gives back (RFC 6455 section 5.5.3).
	pingData = "pyserve"
	// How long the backend has to answer our Close. It is healthy by then; without an answer the connection is cut.
	closeWait = 500 * time.Millisecond
)

// past is a deadline that ends what is under way.
var past = time.Unix(1, 0)

// webSocketProbe opens a WebSocket, pings, waits for the pong and closes it in order.
type webSocketProbe struct {
	backend *upstream.Backend
	url     string
	timeout time.Duration // for the reason; what ends a probe is its context
}

func newWebSocketProbe(b *upstream.Backend, c *resourcev1.HealthCheck, timeout time.Duration) *webSocketProbe {
	scheme := "ws://"
	if b.Spec().TLS != nil {
		scheme = "wss://"
	}
	return &webSocketProbe{backend: b, url: scheme + b.Authority() + cmp.Or(c.GetPath(), "/"), timeout: timeout}
}

func (w *webSocketProbe) probe(ctx context.Context) error {
	conn, err := w.backend.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// Whatever ends the context ends the conversation.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(past) })
	defer stop()
	socket, err := w.open(ctx, conn)
	if err != nil {
		return err
	}
	return w.ping(ctx, socket, conn)
}

// open does the handshake over conn.
func (w *webSocketProbe) open(ctx context.Context, conn net.Conn) (*websocket.Conn, error) {
	bounded := &bounded{Conn: conn, left: maxHead}
	take := func(context.Context, string, string) (net.Conn, error) { return bounded, nil }
	dialer := websocket.Dialer{NetDialContext: take, NetDialTLSContext: take}
	socket, answer, err := dialer.DialContext(ctx, w.url, http.Header{"User-Agent": {userAgent}})
	switch {
	case err == nil:
		bounded.unbounded = true // frames are read as they come, and kept nowhere
		return socket, nil
	case errors.Is(err, websocket.ErrBadHandshake) && answer.StatusCode == http.StatusSwitchingProtocols:
		return nil, failure("the answer to the handshake is not that of a WebSocket")
	case errors.Is(err, websocket.ErrBadHandshake):
		return nil, failure(fmt.Sprintf("status %d, expected 101", answer.StatusCode))
	}
	return nil, err
}

// ping is nil if the pong came, however the connection ended after that.
func (w *webSocketProbe) ping(ctx context.Context, socket *websocket.Conn, conn net.Conn) error {
	var cut *time.Timer // armed by the pong
	socket.SetPongHandler(func(data string) error {
		if data != pingData || cut != nil {
			return nil // unasked for, which is allowed
		}
		cut = time.AfterFunc(closeWait, func() { conn.SetDeadline(past) })
		return socket.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Time{})
	})
	err := socket.WriteControl(websocket.PingMessage, []byte(pingData), time.Time{})
	for err == nil {
		_, _, err = socket.NextReader() // passes over what the backend has to tell
	}
	if cut != nil {
		cut.Stop()
		return nil
	}
	var closed *websocket.CloseError
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return failure("no pong after " + w.timeout.String())
	case errors.As(err, &closed) && closed.Code == websocket.CloseAbnormalClosure:
		return failure("connection closed before the pong")
	case errors.As(err, &closed):
		return failure(fmt.Sprintf("closed with %d before the pong", closed.Code))
	}
	return err
}

// bounded is a connection from which only so much can be read: an answer's head is kept in memory. Deadlines are the probe's
// own; those that the library sets, and takes away, would undo them.
type bounded struct {
	net.Conn
	left      int
	unbounded bool
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.unbounded {
		return b.Conn.Read(p)
	}
	if b.left == 0 {
		return 0, failure(fmt.Sprintf("the answer's head is over %d KiB", maxHead>>10))
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func (b *bounded) SetDeadline(time.Time) error      { return nil }
func (b *bounded) SetReadDeadline(time.Time) error  { return nil }
func (b *bounded) SetWriteDeadline(time.Time) error { return nil }
