package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	replicav1 "github.com/pyserve/pyserve/proto/pyserve/replica/v1"
)

// maxPeerMessage is how large one message of another control may be: an answer that is passed on, or a resource that
// fills a bundle.
const maxPeerMessage = 256 << 20

// maxForwarded is how large a command may be that a follower brings to the leader, within gRPC's 4 MiB: records are
// small, and revisions are made where the leader is.
const maxForwarded = 3 << 20

// Peers are this control's connections to the others, one to each, opened when they are needed. It implements
// [control.Peers].
type Peers struct {
	tls func() (*tls.Config, error)

	mu     sync.Mutex // guards what follows
	closed bool
	conns  map[string]*grpc.ClientConn // by endpoint
}

// NewPeers makes them; tls is called when the first connection is made, after the control has started to start.
func NewPeers(tls func() (*tls.Config, error)) *Peers {
	return &Peers{tls: tls, conns: map[string]*grpc.ClientConn{}}
}

// Close ends all connections, and lets no other be opened.
func (p *Peers) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var problems []error
	for _, conn := range p.conns {
		problems = append(problems, conn.Close())
	}
	clear(p.conns)
	return errors.Join(problems...)
}

func (p *Peers) conn(endpoint string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fleet.ErrClosed
	}
	if conn := p.conns[endpoint]; conn != nil {
		return conn, nil
	}
	config, err := p.tls()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+endpoint,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		// A control that comes back is found at once: there are few of them.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPeerMessage), grpc.MaxCallSendMsgSize(maxPeerMessage)),
	)
	if err != nil {
		return nil, fmt.Errorf("%q is not the address of a control: %w", endpoint, err)
	}
	p.conns[endpoint] = conn
	return conn, nil
}

// Attend implements [control.Peers].
func (p *Peers) Attend(ctx context.Context, endpoint string) (fleet.LeaderStream, error) {
	conn, err := p.conn(endpoint)
	if err != nil {
		return nil, err
	}
	return replicav1.NewReplicaClient(conn).Attend(ctx)
}

// Write implements [control.Peers].
func (p *Peers) Write(ctx context.Context, endpoint string, command []byte) error {
	conn, err := p.conn(endpoint)
	if err != nil {
		return err
	}
	if len(command) > maxForwarded {
		return fmt.Errorf("%w, and the change is too large to be brought there", store.ErrNotLeader)
	}
	answer, err := replicav1.NewReplicaClient(conn).Write(ctx, &replicav1.WriteRequest{Command: command})
	switch status.Code(err) {
	case codes.OK:
	case codes.FailedPrecondition:
		return fmt.Errorf("%w: %s", store.ErrNotLeader, status.Convert(err).Message())
	default:
		return fmt.Errorf("%w: %s", store.ErrUnknown, status.Convert(err).Message())
	}
	switch {
	case answer.GetConflict():
		return fmt.Errorf("%w: %s", store.ErrConflict, answer.GetRefused())
	case answer.GetRefused() != "":
		return store.Refused(answer.GetRefused())
	}
	return nil
}

// Announce implements [control.Peers].
func (p *Peers) Announce(ctx context.Context, endpoint string, m *replicav1.AnnounceRequest) error {
	conn, err := p.conn(endpoint)
	if err != nil {
		return err
	}
	_, err = replicav1.NewReplicaClient(conn).Announce(ctx, m)
	switch {
	case err == nil:
		return nil
	case status.Code(err) == codes.FailedPrecondition:
		return control.ErrRemoved
	case conn.GetState() != connectivity.Ready:
		return fmt.Errorf("%w: %s", control.ErrUnreached, status.Convert(err).Message())
	}
	return err
}

// Verdicts implements [control.Peers].
func (p *Peers) Verdicts(ctx context.Context, endpoint string) ([]*replicav1.NodeVerdict, error) {
	conn, err := p.conn(endpoint)
	if err != nil {
		return nil, err
	}
	stream, err := replicav1.NewReplicaClient(conn).ListVerdicts(ctx, &replicav1.ListVerdictsRequest{})
	if err != nil {
		return nil, err
	}
	var out []*replicav1.NodeVerdict
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m.GetVerdicts()...)
	}
}

// joinTime bounds a control's first call; those that lead may have to begin to replicate first.
const joinTime = 30 * time.Second

// Join asks the control at address to let another in, by a token that pins its cluster. The request's token is set here.
func Join(ctx context.Context, address, token string, m *fleetv1.JoinRequest) (*fleetv1.JoinResponse, error) {
	config, err := identity.JoinTLS(token)
	if err != nil {
		return nil, fmt.Errorf("--token-file: %w", err)
	}
	verify, wrong := config.VerifyConnection, make(chan error, 1)
	config.VerifyConnection = func(state tls.ConnectionState) error {
		err := verify(state)
		if err != nil {
			select {
			case wrong <- err:
			default:
			}
		}
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return nil, fmt.Errorf("--join: %q is not an address: %w", address, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	m.Token = token
	answer, err := fleetv1.NewEnrollmentClient(conn).Join(ctx, m)
	if err == nil {
		return answer, nil
	}
	select {
	case err := <-wrong:
		return nil, fmt.Errorf("--join: the control at %s is not the one to join: %w", address, err)
	default:
		return nil, fmt.Errorf("--join: the control at %s: %s", address, status.Convert(err).Message())
	}
}
