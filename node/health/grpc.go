package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

const (
	// After this long the next probe opens a new connection, which shows whether the backend still takes any, and follows a
	// name to its new addresses.
	maxKept = time.Minute
	// An answer of the health service has two bytes.
	maxHealthAnswer = 4 << 10
	// Of the buffers in each direction, which every backend's kept connection has: nothing that a probe sends fills them.
	grpcBuffer = 4 << 10
)

// grpcProbe asks the health service of a backend (grpc.health.v1), over a connection that is kept from probe to probe. One
// goroutine uses it.
type grpcProbe struct {
	backend *upstream.Backend
	service string // empty: the server as a whole

	client *grpc.ClientConn // nil: there is no connection
	conn   *overheard
	opened time.Time
}

func newGRPCProbe(b *upstream.Backend, c *resourcev1.HealthCheck) *grpcProbe {
	return &grpcProbe{backend: b, service: strings.TrimPrefix(c.GetPath(), "/")}
}

// probe asks once. A kept connection that turns out to have ended says nothing about the backend: another is opened in its
// place.
func (g *grpcProbe) probe(ctx context.Context) error {
	if time.Since(g.opened) >= maxKept {
		g.close()
	}
	kept := g.client != nil
	if !kept {
		if err := g.open(ctx); err != nil {
			return err
		}
	}
	err := g.ask(ctx)
	if kept && status.Code(err) == codes.Unavailable {
		g.close()
		if err := g.open(ctx); err != nil {
			return err
		}
		err = g.ask(ctx)
	}
	if err != nil {
		return g.judge(err)
	}
	return nil
}

// open connects in the way that traffic does and gives the connection to a client of its own. The client cannot open another,
// so that its pauses after a failure are never waited for: the next probe has a new client.
func (g *grpcProbe) open(ctx context.Context) error {
	conn, err := g.backend.DialHTTP2(ctx)
	if err != nil {
		return err
	}
	heard := &overheard{Conn: conn}
	var taken atomic.Bool
	take := func(context.Context, string) (net.Conn, error) {
		if taken.Swap(true) {
			return nil, errors.New("the connection has ended")
		}
		return heard, nil
	}
	secured := insecure.NewCredentials()
	if g.backend.Spec().TLS != nil {
		secured = overTLS{secured}
	}
	client, err := grpc.NewClient("passthrough:///backend",
		grpc.WithContextDialer(take), grpc.WithTransportCredentials(secured), grpc.WithAuthority(g.backend.Authority()),
		grpc.WithUserAgent(userAgent), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithReadBufferSize(grpcBuffer), grpc.WithWriteBufferSize(grpcBuffer), grpc.WithMaxHeaderListSize(maxHead),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxHealthAnswer)),
	)
	if err != nil {
		conn.Close()
		return fmt.Errorf("making a gRPC client: %w", err)
	}
	g.client, g.conn, g.opened = client, heard, time.Now()
	return nil
}

// close ends the kept connection, if there is one.
func (g *grpcProbe) close() {
	if g.client == nil {
		return
	}
	g.client.Close()
	g.conn.Close() // the client may not have taken it yet
	g.client, g.conn = nil, nil
}

// ask returns what gRPC says, or a failure in words where the answer is not SERVING.
func (g *grpcProbe) ask(ctx context.Context) error {
	answer, err := healthv1.NewHealthClient(g.client).Check(ctx, &healthv1.HealthCheckRequest{Service: g.service})
	if err != nil {
		return err
	}
	if s := answer.GetStatus(); s != healthv1.HealthCheckResponse_SERVING {
		return failure("gRPC health" + g.of() + " is " + s.String())
	}
	return nil
}

// of names what was asked about.
func (g *grpcProbe) of() string {
	if g.service == "" {
		return ""
	}
	return " of " + g.service
}

// judge puts what ask returned into words. A connection is kept only where the health service itself, or the server in its
// place, has answered.
func (g *grpcProbe) judge(err error) error {
	var answered failure
	if errors.As(err, &answered) {
		return err
	}
	s := status.Convert(err)
	switch s.Code() {
	case codes.NotFound:
		return failure("gRPC health" + g.of() + " is not known to the server")
	case codes.Unimplemented:
		return failure("no gRPC health service: " + s.Message())
	}
	conn := g.conn
	g.close()
	switch s.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded // the server, told of the deadline, may say so first
	case codes.Unavailable:
		if cause := conn.trouble(); cause != nil {
			return cause
		}
	}
	return failure(fmt.Sprintf("gRPC status %s: %s", s.Code(), s.Message()))
}

// overTLS is the credentials of a connection on which the handshake is done: they make the client say that it speaks https.
type overTLS struct {
	credentials.TransportCredentials
}

func (o overTLS) Info() credentials.ProtocolInfo {
	info := o.TransportCredentials.Info()
	info.SecurityProtocol = "tls"
	return info
}

func (o overTLS) Clone() credentials.TransportCredentials {
	return overTLS{o.TransportCredentials.Clone()}
}

// overheard is a connection that remembers what went wrong on it: gRPC tells of that in words alone.
type overheard struct {
	net.Conn

	mu    sync.Mutex // guards what follows: gRPC reads in a goroutine of its own
	head  []byte     // the first bytes from the backend
	ended error      // what reading ended with
}

// frameType is where a frame's type stands, and settings the type that the first one must have (RFC 9113 section 3.4).
const (
	frameType = 3
	settings  = 4
)

func (o *overheard) Read(p []byte) (int, error) {
	n, err := o.Conn.Read(p)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.head = append(o.head, p[:min(n, frameType+1-len(o.head))]...)
	if o.ended == nil {
		o.ended = err
	}
	return n, err
}

// trouble is what went wrong below gRPC, nil if nothing did.
func (o *overheard) trouble() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case len(o.head) > frameType && o.head[frameType] != settings:
		return failure("the backend does not speak HTTP/2")
	case errors.Is(o.ended, net.ErrClosed):
		return nil // by ourselves, for a reason that gRPC knows
	}
	return o.ended
}
