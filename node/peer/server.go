package peer

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
	peerv1 "github.com/pyserve/pyserve/proto/pyserve/peer/v1"
)

const (
	// maxConnections is how many are open at a time, handshakes included, and handshakeTime how long one of those may take. Where rate
	// limits are shared, every other node keeps one.
	maxConnections = 256
	handshakeTime  = 5 * time.Second
	// maxTransfers is how many manifests and bodies are given at a time; each holds a few parts in memory.
	maxTransfers = 4
	// connectionTime and connectionGrace bound a connection, and so the place of who reads slowly.
	connectionTime  = 2 * time.Minute
	connectionGrace = 3 * time.Minute
	// maxWanted is how many bodies one call may ask for, and maxRequest its size.
	maxWanted  = 4096
	maxRequest = 256 << 10
	// partBytes is the most of a body in one message, and partEntries the most entries of a manifest, whose names may be long.
	partBytes   = 256 << 10
	partEntries = 1000
	// stopTime is how long Stop waits for transfers.
	stopTime = time.Second
)

// ServerOptions say what a Server gives, and to whom.
type ServerOptions struct {
	// Identity is asked for at each handshake. Required.
	Identity func() Identity
	// Holding gives what the node has to give; a nil release: nothing. Required.
	Holding func() (*fleetv1.Release, *bundle.Bundle)
	// Operators answers people; nil: nobody does.
	Operators operatorv1.OperatorServer
	// Lend answers what a node asks of the rate limits that all share; an error is the asker's mistake. Nil: nothing is lent.
	Lend func(from string, m *peerv1.LendRequest) (*peerv1.LendResponse, error)
	// Logger is required.
	Logger *slog.Logger
	// Now is the clock for certificates; nil: time.Now.
	Now func() time.Time
}

// Server gives out what the node serves. Its methods may be called concurrently.
type Server struct {
	peerv1.UnimplementedPeerServer
	options   ServerOptions
	door      *door
	grpc      *grpc.Server
	serving   sync.WaitGroup
	transfers chan struct{}
	busy      atomic.Uint64
}

// NewServer starts a server that waits for connections.
func NewServer(o ServerOptions) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{
		options: o, door: newDoor(), transfers: make(chan struct{}, maxTransfers),
		grpc: grpc.NewServer(
			grpc.Creds(credentials.NewTLS(serverTLS(o.Identity, o.Now))),
			grpc.ConnectionTimeout(handshakeTime),
			grpc.UnaryInterceptor(func(ctx context.Context, m any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
				if err := admit(ctx, o.Identity().ClusterID, info.FullMethod); err != nil {
					return nil, err
				}
				return handle(ctx, m)
			}),
			grpc.StreamInterceptor(func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
				if err := admit(stream.Context(), o.Identity().ClusterID, info.FullMethod); err != nil {
					return err
				}
				return handle(service, stream)
			}),
			grpc.MaxRecvMsgSize(maxRequest),
			grpc.MaxConcurrentStreams(maxTransfers+1),
			grpc.KeepaliveParams(keepalive.ServerParameters{
				MaxConnectionIdle: 30 * time.Second, MaxConnectionAge: connectionTime, MaxConnectionAgeGrace: connectionGrace,
				Time: 10 * time.Second, Timeout: 5 * time.Second,
			}),
		),
	}
	peerv1.RegisterPeerServer(s.grpc, s)
	if o.Operators != nil {
		operatorv1.RegisterOperatorServer(s.grpc, o.Operators)
	}
	s.serving.Go(func() {
		if err := s.grpc.Serve(s.door); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			o.Logger.Error("this node gives its configuration to no other any more", "error", err)
		}
	})
	return s
}

// admit says who may call what: what a bundle holds, private keys among it, is given to nobody who could not get it from
// control, and people are shown what they may see there.
func admit(ctx context.Context, cluster, method string) error {
	role, _, err := caller(ctx, cluster)
	if err != nil {
		return err
	}
	member := role == roleNode || role == roleControl
	switch {
	case role != roleNode && method == peerv1.Peer_Lend_FullMethodName:
	case member && (strings.HasPrefix(method, "/"+peerv1.Peer_ServiceDesc.ServiceName+"/") || method == operatorv1.Operator_ListSamples_FullMethodName):
		return nil
	case !member && strings.HasPrefix(method, "/"+operatorv1.Operator_ServiceDesc.ServiceName+"/"):
		return nil
	}
	return status.Errorf(codes.PermissionDenied, "a certificate of the role %s may not call %s here", role, method)
}

// caller is who calls, by the certificate of the connection.
func caller(ctx context.Context, cluster string) (role, name string, err error) {
	from, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return "", "", status.Error(codes.Unauthenticated, "the call has no connection")
	}
	secured, ok := from.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", "", status.Error(codes.Unauthenticated, "the call is not over TLS")
	}
	if role, name, err = whoIs(secured.State, cluster); err != nil {
		return "", "", status.Error(codes.Unauthenticated, err.Error())
	}
	return role, name, nil
}

// Take serves a connection, or closes it where there are too many. It does not block.
func (s *Server) Take(conn net.Conn) { s.door.take(conn) }

// Busy counts connections and calls that were refused since too many were there.
func (s *Server) Busy() uint64 { return s.busy.Load() + s.door.refused.Load() }

// Stop ends everything, after a second for what is under way.
func (s *Server) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
	}
	<-done
	s.serving.Wait()
	s.door.drain()
	return nil
}

// Head implements the service.
func (s *Server) Head(context.Context, *peerv1.HeadRequest) (*peerv1.HeadResponse, error) {
	release, _ := s.options.Holding()
	if release == nil {
		return nil, status.Error(codes.NotFound, "this node has nothing to give: it serves nothing yet, or has a control to ask")
	}
	return &peerv1.HeadResponse{Release: release}, nil
}

// begin gives the bundle that is asked for and a place to give it from.
func (s *Server) begin(digest []byte) (b *bundle.Bundle, end func(), err error) {
	release, b := s.options.Holding()
	if release == nil || string(release.GetDigest()) != string(digest) {
		return nil, nil, status.Error(codes.NotFound, "this node does not serve that bundle")
	}
	select {
	case s.transfers <- struct{}{}:
		return b, func() { <-s.transfers }, nil
	default:
		s.busy.Add(1)
		return nil, nil, status.Error(codes.ResourceExhausted, "too many nodes ask at once")
	}
}

// Manifest implements the service.
func (s *Server) Manifest(m *peerv1.ManifestRequest, stream grpc.ServerStreamingServer[peerv1.ManifestResponse]) error {
	b, end, err := s.begin(m.GetDigest())
	if err != nil {
		return err
	}
	defer end()
	part, size := &peerv1.ManifestResponse{}, 0
	for e := range b.Manifest() {
		part.Entries = append(part.Entries, &peerv1.ManifestEntry{Kind: string(e.Kind), Name: e.Name, Sha256: e.Sum[:]})
		if size += len(e.Name); len(part.Entries) < partEntries && size < partBytes {
			continue
		}
		if err := stream.Send(part); err != nil {
			return err
		}
		part, size = &peerv1.ManifestResponse{}, 0
	}
	return stream.Send(part)
}

// Resources implements the service.
func (s *Server) Resources(m *peerv1.ResourcesRequest, stream grpc.ServerStreamingServer[peerv1.ResourcesResponse]) error {
	if n := len(m.GetSha256()); n > maxWanted {
		return status.Errorf(codes.InvalidArgument, "%d bodies are asked for, more than %d", n, maxWanted)
	}
	wanted := make([]bundle.Sum, 0, len(m.GetSha256()))
	for _, raw := range m.GetSha256() {
		digest, err := bundle.ParseDigest(raw)
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		wanted = append(wanted, bundle.Sum(digest))
	}
	b, end, err := s.begin(m.GetDigest())
	if err != nil {
		return err
	}
	defer end()
	bodies := b.Bodies(wanted)
	for _, sum := range wanted {
		body, ok := bodies[sum]
		if !ok {
			return status.Error(codes.NotFound, "the bundle holds no such resource")
		}
		if err := sendBody(stream, body); err != nil {
			return err
		}
	}
	return nil
}

func sendBody(stream grpc.ServerStreamingServer[peerv1.ResourcesResponse], body []byte) error {
	for {
		n := min(len(body), partBytes)
		last := n == len(body)
		if err := stream.Send(&peerv1.ResourcesResponse{Data: body[:n], Last: last}); err != nil || last {
			return err
		}
		body = body[n:]
	}
}
