package forward

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/tunnel"
	"github.com/pyserve/pyserve/node/upstream"
)

// join passes a 101 on and leaves both connections to a tunnel (RFC 9110 section 7.8). The request's goroutine, its buffers and
// its generation are free while the tunnel lives.
func (c *conn) join() *failure {
	x := c.x
	if f := x.finishUpload(); f != nil {
		return f
	}
	out, err := http1.AppendStatusLine(x.out[:0], x.response.Status, x.response.ReasonPhrase())
	if err != nil {
		return ours(err)
	}
	out, _, err = x.appendEditedFields(out)
	if err != nil {
		return headFailure(err)
	}
	for i := x.response.Find(http1.Upgrade, 0); i >= 0; i = x.response.Find(http1.Upgrade, i+1) {
		out = x.response.AppendLine(out, i)
	}
	x.out = http1.AppendHeadEnd(append(out, "Connection: Upgrade\r\n"...))
	if !c.arm(&c.main, phaseBody, c.front.after(writeTimeout)) {
		return x.relayFailure(context.Canceled)
	}
	x.status, x.headSent = x.response.Status, true
	if f := c.write(x.out); f != nil {
		return f
	}
	if !c.arm(&c.main, phaseNone, 0) {
		return x.relayFailure(context.Canceled)
	}
	return c.handOver()
}

// handOver ends what the front and the sweeper have to do with both connections.
func (c *conn) handOver() *failure {
	x := c.x
	backend := x.conn
	x.backend.Store(nil)
	x.conn = nil
	c.handed = true
	c.front.forget(&c.watch)
	if c.interrupted() != causeNone { // in the last moment
		c.nc.Close()
		backend.Close()
		return &failure{class: ClassClient, err: errClientGone}
	}
	x.startTunnel(x.tunnel(c.nc, backend)) // which has closed both where it failed
	return nil
}

// startTunnel hands the request's place on with the connections.
func (x *exchange) startTunnel(t tunnel.Tunnel) error {
	if err := x.tunnels.Start(t); err != nil {
		x.logger.Debug("tunnel not begun", "route", x.route.name, "request_id", string(x.origin.id), "error", err)
		return err
	}
	x.places.held = upstream.Place{}
	return nil
}

// tunnel is what the exchange goes on as. It holds nothing of it.
func (x *exchange) tunnel(client net.Conn, backend *upstream.Conn) tunnel.Tunnel {
	return tunnel.Tunnel{
		Client: client, Backend: backend,
		FromClient: bytes.Clone(x.in[x.at:x.have]), FromBackend: bytes.Clone(x.back[x.from:x.to]),
		WebSocket: x.response.WebSocket, Idle: tunnelIdle(x.route.timeouts.WebSocketIdle),
		Owner: Lane{Route: x.route.name, Backend: backend.Backend()},
		Ended: leaving(x.places.held,
			tunnelLog(x.logger, x.begun, "route", x.route.name, "request_id", string(x.origin.id), "client", x.origin.real)),
	}
}

// tunnelIdle is the timeout as a tunnel has it, where 0 stands for a default.
func tunnelIdle(d time.Duration) time.Duration {
	if d <= 0 {
		return -1
	}
	return d
}

// finishUpload waits for the request's body: it has to be through before the protocol changes, at both ends.
func (x *exchange) finishUpload() *failure {
	if x.uploading {
		x.outcome, x.uploading = <-x.uploaded, false
	}
	switch {
	case x.outcome.complete:
		return nil
	case x.outcome.client != nil:
		return x.uploadFailure()
	}
	return x.attemptFailure(errors.Join(errors.New("send the body before the change of protocol"), x.outcome.backend), true)
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
