// Package api is control's gRPC edge: it knows who calls, what each role may call, and which status code an error is;
// what a call does is the control package's.
//
// It keeps no state. The order of calls: [NewServer] → Serve on a listener → [Stop].
package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
	replicav1 "github.com/pyserve/pyserve/proto/pyserve/replica/v1"
)

// NewServer makes the gRPC server of a control that was started. tlsConfig is the control's own; peers reaches the other
// controls, nil: there are none.
func NewServer(c *control.Control, tlsConfig *tls.Config, peers *Peers, logger *slog.Logger) *grpc.Server {
	gate := gate{control: c, peers: peers, logger: logger}
	s := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(tlsConfig)),
		grpc.ChainUnaryInterceptor(gate.unary),
		grpc.ChainStreamInterceptor(gate.stream),
		// A peer that is gone without a word is noticed within 15 s.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		// Nodes ping every 10 s, which the default policy would answer by closing their connection.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.MaxConcurrentStreams(64),
		// Windows that gRPC sizes by itself cost a ping for nearly every message of a quiet stream: see control/fleet/DESIGN.md.
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
	)
	fleetv1.RegisterEnrollmentServer(s, &enrollment{control: c})
	fleetv1.RegisterFleetServer(s, &fleetService{control: c})
	operatorv1.RegisterOperatorServer(s, &operator{control: c})
	operatorv1.RegisterAccessServer(s, &access{control: c})
	replicav1.RegisterReplicaServer(s, &replica{control: c})
	return s
}

// How many bytes a caller may send on one stream, and on one connection, before they are taken in. With 100 ms to the other
// end a document of 10 MiB still takes a second.
const (
	streamWindow = 1 << 20
	connWindow   = 4 << 20
)

// gate lets a call in, or not.
type gate struct {
	control *control.Control
	peers   *Peers // nil: there are no other controls
	logger  *slog.Logger
}

// peerKey carries the caller's identity in a call's context.
type peerKey struct{}

// caller is who the gate found at the other end.
func caller(ctx context.Context) identity.Peer {
	p, _ := ctx.Value(peerKey{}).(identity.Peer)
	return p
}

func (g gate) admit(ctx context.Context, method string) (context.Context, error) {
	need, known := permissions[method]
	if !known {
		return nil, status.Errorf(codes.Unimplemented, "this control does not know %s; is pyservectl newer than control?", method)
	}
	who, err := g.identify(ctx)
	if err == nil && who.Role == identity.RoleControl && need != identity.RoleControl && !who.Expired(g.control.Now()) {
		ctx = originOf(ctx)
		who, err = onBehalf(ctx, who)
	}
	if need == anonymous {
		return ctx, nil
	}
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "a certificate of this cluster is needed: %v", err)
	}
	if err := g.current(who, method); err != nil {
		return nil, err
	}
	err = coded(g.control.Believes(who))
	if err == nil && !who.Role.Includes(need) {
		err = denied(who, need, method)
	}
	if err != nil {
		_, conclude := g.begin(ctx, who, method)
		conclude(err)
		return nil, err
	}
	return context.WithValue(ctx, peerKey{}, who), nil
}

// current refuses who shows a certificate that has ended, but for a node's wish to renew it: it holds the key that is
// registered, or will be told so, and control decides anew whether it may stay. Without that, a machine that was off for
// a weekend could come back only by somebody's hand.
func (g gate) current(who identity.Peer, method string) error {
	now := g.control.Now()
	if !who.Expired(now) {
		return nil
	}
	switch {
	case who.Role != identity.RoleNode:
		return status.Errorf(codes.Unauthenticated, "the certificate of %s ended on %s", who.Name, who.Until.UTC().Format(time.RFC3339))
	case now.Sub(who.Until) > identity.RenewGrace:
		return status.Errorf(codes.Unauthenticated, "the certificate of %s ended on %s, too long ago to be renewed: remove identity.json from the node's data directory and start the node with a join token to enrol anew",
			who.Name, who.Until.UTC().Format(time.RFC3339))
	case method != fleetv1.Fleet_Renew_FullMethodName:
		return status.Errorf(codes.Unauthenticated, "the certificate of %s ended on %s; it has to be renewed first", who.Name, who.Until.UTC().Format(time.RFC3339))
	}
	return nil
}

// denied says what a caller lacks.
func denied(who identity.Peer, need identity.Role, method string) error {
	if who.Role.IsPerson() && need.IsPerson() {
		return status.Errorf(codes.PermissionDenied, "%s has the role %s, and %s needs the role %s", who.Name, who.Role, path.Base(method), need)
	}
	return status.Errorf(codes.PermissionDenied, "the certificate of %s is not one that may call %s", who.Name, method)
}

func (g gate) identify(ctx context.Context) (identity.Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return identity.Peer{}, identity.ErrAnonymous
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return identity.Peer{}, identity.ErrAnonymous
	}
	return g.control.Peer(info.State)
}

func (g gate) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (response any, err error) {
	defer g.recovered(info.FullMethod, &err)
	ctx, err = g.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	conn, err := g.elsewhere(ctx, info.FullMethod, request)
	if err != nil {
		return nil, coded(err)
	}
	if conn != nil {
		response, err = g.passUnary(ctx, conn, info.FullMethod, request)
		if !lost(err) || places[info.FullMethod] == leader {
			return response, coded(err)
		}
	}
	ctx, conclude := g.begin(ctx, caller(ctx), info.FullMethod)
	response, err = next(ctx, request)
	conclude(err)
	return response, coded(err)
}

func (g gate) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer g.recovered(info.FullMethod, &err)
	ctx, err := g.admit(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	if who := caller(ctx); who.Role.IsPerson() {
		live, end := g.control.While(ctx, who)
		defer func() {
			if cause := context.Cause(live); errors.Is(cause, control.ErrContextRevoked) {
				err = coded(cause)
			}
			end()
		}()
		ctx = live
	}
	conn, err := g.elsewhere(ctx, info.FullMethod, nil)
	if err != nil {
		return coded(err)
	}
	if conn != nil {
		told, err := g.passStream(admitted{stream, ctx}, conn, info.FullMethod, info)
		// What a caller has sent is gone with the stream that it was passed to.
		if !lost(err) || told || info.IsClientStream || places[info.FullMethod] == leader {
			return coded(err)
		}
	}
	ctx, conclude := g.begin(ctx, caller(ctx), info.FullMethod)
	err = next(server, admitted{stream, ctx})
	conclude(err)
	return coded(err)
}

// recovered keeps one caller's call from ending control for all.
func (g gate) recovered(method string, err *error) {
	if r := recover(); r != nil {
		g.logger.Error("a call panicked", "method", method, "panic", r, "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "control failed in %s; its log says more", method)
	}
}

// admitted is a stream whose context carries the caller.
type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

func (a admitted) Context() context.Context { return a.ctx }

// coded gives an error its status code; this is the only place that does.
func coded(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Internal
	for _, c := range []struct {
		err  error
		code codes.Code
	}{
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{control.ErrNameTaken, codes.AlreadyExists},
		{control.ErrNameAlike, codes.AlreadyExists},
		{control.ErrNotRegistered, codes.PermissionDenied},
		{control.ErrRevoked, codes.PermissionDenied},
		{control.ErrNoNode, codes.NotFound},
		{control.ErrContextRevoked, codes.Unauthenticated},
		{control.ErrNoContext, codes.NotFound},
		{control.ErrRotation, codes.FailedPrecondition},
		{control.ErrGossipKey, codes.FailedPrecondition},
		{store.ErrTokenGone, codes.NotFound},
		{store.ErrTokenExpired, codes.PermissionDenied},
		{store.ErrTokenUsedUp, codes.PermissionDenied},
		{store.ErrTokenName, codes.PermissionDenied},
		{store.ErrTokenKind, codes.PermissionDenied},
		{fleet.ErrClosed, codes.Unavailable},
		{fleet.ErrStalled, codes.Unavailable},
		{fleet.ErrReplaced, codes.Aborted},
		{fleet.ErrTwice, codes.AlreadyExists},
		{fleet.ErrHello, codes.InvalidArgument},
		{store.ErrClosed, codes.Unavailable},
		{identity.ErrTokenMalformed, codes.InvalidArgument},
		{identity.ErrTokenKind, codes.PermissionDenied},
		{identity.ErrTokenUnknown, codes.Unauthenticated},
		{control.ErrInvalid, codes.InvalidArgument},
		{control.ErrNoRevision, codes.NotFound},
		{control.ErrNotARequest, codes.InvalidArgument},
		{control.ErrNobodyServes, codes.FailedPrecondition},
		{control.ErrControlRuns, codes.AlreadyExists},
		{store.ErrNoBackup, codes.InvalidArgument},
		{store.ErrForeignBackup, codes.InvalidArgument},
		{control.ErrRemoved, codes.FailedPrecondition}, // which nothing else that is announced ends with
		{control.ErrNoControl, codes.NotFound},
		{control.ErrDrains, codes.FailedPrecondition},
		{control.ErrUnwilling, codes.FailedPrecondition},
		{control.ErrNotLeading, codes.Unavailable},
		{control.ErrBehind, codes.Unavailable},
		{store.ErrNotLeader, codes.Unavailable},
		{store.ErrUnknown, codes.Unavailable},
		{fleet.ErrDismissed, codes.Unavailable},
		{fleet.ErrSuperseded, codes.Aborted},
		{fleet.ErrAttendance, codes.InvalidArgument},
		{fleet.ErrNotConnected, codes.NotFound},
		{fleet.ErrGone, codes.Aborted},
		{fleet.ErrBusy, codes.ResourceExhausted},
		{errTooLarge, codes.ResourceExhausted},
		{errDeaf, codes.DeadlineExceeded},
		{errMalformed, codes.InvalidArgument},
	} {
		if errors.Is(err, c.err) {
			code = c.code
			break
		}
	}
	return status.Error(code, err.Error())
}

// Errors of messages that no pyservectl sends.
var (
	errTooLarge  = errors.New("too large")
	errMalformed = errors.New("malformed call")
)

// Stop ends the server: calls that are under way get until ctx ends. Node streams must be ended before, since they
// never end by themselves.
func Stop(ctx context.Context, s *grpc.Server) {
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		s.GracefulStop()
	}()
	select {
	case <-graceful:
	case <-ctx.Done():
		s.Stop()
		<-graceful
	}
}

// collect puts a document together from its parts; next fails with [io.EOF] where there are no more. A message that
// carries no part is not taken for the end: half a document may be a document too.
func collect(next func() (*operatorv1.FilePart, error)) (control.Document, error) {
	d := control.Document{Files: map[string][]byte{}}
	for size := 0; ; {
		part, err := next()
		switch {
		case errors.Is(err, io.EOF):
			return d, nil
		case err != nil:
			return d, err
		case part == nil:
			return d, fmt.Errorf("a message without a part of the document: %w", errMalformed)
		}
		name, data := part.GetName(), part.GetData()
		size += len(data) + len(name)
		if _, known := d.Files[name]; size > maxUpload || name != "" && !known && len(d.Files) == maxFiles {
			return d, fmt.Errorf("a document with its files is at most %d MiB in %d files: %w", maxUpload>>20, maxFiles, errTooLarge)
		}
		if name == "" {
			d.Data = append(d.Data, data...)
		} else {
			d.Files[name] = append(d.Files[name], data...)
		}
	}
}

// What one call may send. A document alone is at most 10 MiB; its certificates come on top.
const (
	maxUpload = 32 << 20
	maxFiles  = 10_000
)
