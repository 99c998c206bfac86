package forward

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"time"

	"github.com/pyserve/pyserve/node/tunnel"
	"github.com/pyserve/pyserve/node/upstream"
)

const (
	// maxAnswerHead bounds the heads of a backend's answers to an upgrade, those of its 1xx answers included.
	maxAnswerHead = 64 << 10
	// switchTimeout is for the head of a 101 to the client.
	switchTimeout = 10 * time.Second
)

// forwardUpgrade passes a request to change protocols on, and after the backend's 101 everything that either side says
// (RFC 9110 section 7.8). Any other answer reaches the client like that of an ordinary request.
func (x *exchange) forwardUpgrade() *failure {
	a, f := x.send(x.r.Context(), x.handshake)
	if f != nil {
		return f
	}
	if a.StatusCode == http.StatusSwitchingProtocols {
		return x.joinTunnel(a)
	}
	defer a.Body.Close() // closes the connection
	return x.relay(a)
}

// handshake is an attempt over a connection of its own.
func (x *exchange) handshake(ctx context.Context, b *upstream.Backend) (*answer, *failure) {
	conn, err := b.Dial(ctx)
	if err != nil {
		return nil, upstreamFailure(ctx, err, false)
	}
	w := &watched{Conn: conn, left: maxAnswerHead}
	a, err := x.ask(ctx, b, w)
	if err != nil {
		conn.Close()
		return nil, upstreamFailure(ctx, err, w.answered)
	}
	return a, nil
}

// ask sends the request and reads the head of the answer. After an error the caller closes the connection; otherwise it is
// the answer's.
func (x *exchange) ask(ctx context.Context, b *upstream.Backend, conn *watched) (*answer, error) {
	out, err := x.outgoing(ctx, b)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(x.handshakeTimeout)); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	gone := context.AfterFunc(ctx, func() { conn.Close() })
	written := make(chan error, 1)
	if out.Body == nil {
		written <- out.Write(conn)
	} else {
		go func() { written <- out.Write(conn) }() // ends with the connection, and is waited for
	}
	reader := bufio.NewReader(conn)
	response, err := x.readHead(reader, out)
	if err == nil {
		// The deadline was for the head; a body may take its time.
		err = conn.SetDeadline(time.Time{})
	}
	conn.left = math.MaxInt64
	// release ends what watches and fills the connection, which is closed by then.
	release := func() error { gone(); x.upload.end(x.rc); return <-written }
	if err != nil {
		conn.Close()
		return nil, errors.Join(err, release())
	}
	a := &answer{Response: response, backend: b, host: out.Host, conn: conn.Conn, reader: reader}
	if response.StatusCode != http.StatusSwitchingProtocols {
		a.Body = &closing{Reader: response.Body, conn: conn, release: release}
		return a, nil
	}
	// A body has to be through before the protocol changes, at both ends.
	err = <-written
	if !gone() {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("send body before the change of protocol: %w", err)
	}
	return a, nil
}

// readHead reads heads until that of a final answer.
func (x *exchange) readHead(reader *bufio.Reader, out *http.Request) (*http.Response, error) {
	for {
		response, err := http.ReadResponse(reader, out)
		if err != nil {
			return nil, fmt.Errorf("read answer to upgrade: %w", err)
		}
		if response.StatusCode < 100 {
			return nil, fmt.Errorf("read answer to upgrade: status %d", response.StatusCode)
		}
		if response.StatusCode >= 200 || response.StatusCode == http.StatusSwitchingProtocols {
			return response, nil
		}
		if err := x.interim(response.StatusCode, textproto.MIMEHeader(response.Header)); err != nil {
			return nil, err
		}
	}
}

// joinTunnel passes the 101 on and then leaves both connections to a tunnel. It does not wait for its end: the request's
// goroutine, its buffers and its generation are free while the tunnel lives.
func (x *exchange) joinTunnel(a *answer) *failure {
	early, err := a.reader.Peek(a.reader.Buffered())
	if err != nil {
		a.conn.Close()
		return ours(err)
	}
	early = bytes.Clone(early)
	webSocket := isWebSocket(a.Header) // before the header is written, which changes it
	client, buffered, err := x.rc.Hijack()
	if err != nil {
		a.conn.Close()
		return ours(fmt.Errorf("take over the client's connection: %w", err))
	}
	// The request's body is through, and the deadlines of what was its connection are the tunnel's.
	x.upload = nil
	x.mu.Lock()
	x.status = http.StatusSwitchingProtocols
	x.mu.Unlock()
	x.count()
	sent, err := buffered.Reader.Peek(buffered.Reader.Buffered())
	if err == nil {
		err = writeSwitch(client, a.Response)
	}
	if err != nil {
		client.Close()
		a.conn.Close()
		return &failure{class: ClassClient, err: fmt.Errorf("pass 101 to client: %w", err)}
	}
	err = x.tunnels.Start(tunnel.Tunnel{
		Client: client, Backend: a.conn, FromClient: bytes.Clone(sent), FromBackend: early, WebSocket: webSocket,
		Owner: Lane{Route: x.route.name, Backend: a.backend},
		Ended: tunnelLog(x.logger, x.begun, "route", x.route.name, "request_id", x.origin.id, "client", x.origin.real),
	})
	if err != nil {
		x.logger.Debug("tunnel not begun", "route", x.route.name, "request_id", x.origin.id, "error", err)
	}
	return nil
}

// tunnelLog tells the end of a tunnel; nil where nobody would read it. It holds nothing of the exchange, which would live as
// long as the tunnel.
func tunnelLog(logger *slog.Logger, begun time.Time, about ...any) func(tunnel.Summary) {
	if !logger.Enabled(context.Background(), slog.LevelDebug) {
		return nil
	}
	logger = logger.With(about...)
	return func(sum tunnel.Summary) {
		logger.Debug("tunnel ended", "age", time.Since(begun), "from_client", sum.ToBackend.Bytes, "from_backend", sum.ToClient.Bytes,
			"messages_from_client", sum.ToBackend.Messages, "messages_from_backend", sum.ToClient.Messages, "error", sum.Err)
	}
}

// isWebSocket says whether a 101 is to RFC 6455 (section 4.2.2: "websocket" in any case).
func isWebSocket(header http.Header) bool {
	upgrade := header["Upgrade"]
	return len(upgrade) == 1 && strings.EqualFold(strings.TrimSpace(upgrade[0]), "websocket")
}

// writeSwitch writes the head of a 101 as the backend sent it, but for the fields that Connection takes away.
func writeSwitch(client net.Conn, response *http.Response) error {
	upgrade := response.Header["Upgrade"]
	dropHopByHop(response.Header)
	response.Header["Connection"] = []string{"Upgrade"}
	if upgrade != nil {
		response.Header["Upgrade"] = upgrade
	}
	var head bytes.Buffer
	fmt.Fprintf(&head, "HTTP/1.1 %s\r\n", response.Status)
	if err := response.Header.Write(&head); err != nil {
		return fmt.Errorf("write head: %w", err)
	}
	head.WriteString("\r\n")
	if err := client.SetWriteDeadline(time.Now().Add(switchTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if _, err := client.Write(head.Bytes()); err != nil {
		return fmt.Errorf("write head: %w", err)
	}
	return client.SetWriteDeadline(time.Time{})
}

// watched is a connection to a backend while it is asked for an upgrade: it knows whether anything of an answer has come,
// and stops at a head without end.
type watched struct {
	net.Conn
	answered bool
	left     int64
}

func (w *watched) Read(p []byte) (int, error) {
	if w.left <= 0 {
		return 0, errors.New("head of the answer is too long")
	}
	n, err := w.Conn.Read(p[:min(int64(len(p)), w.left)])
	w.left -= int64(n)
	w.answered = w.answered || n > 0
	return n, err
}

// closing is the body of an answer that refuses an upgrade: with it ends the connection that was opened for it.
type closing struct {
	io.Reader
	conn    net.Conn
	release func() error
}

// Close ends the connection and waits for the request's body to be let go of.
func (c *closing) Close() error {
	err := c.conn.Close()
	c.release() // that the rest of the request could not be sent is no news
	return err
}
