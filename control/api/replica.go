package api

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
	replicav1 "github.com/pyserve/pyserve/proto/pyserve/replica/v1"
)

// replica is what controls say to each other.
type replica struct {
	replicav1.UnimplementedReplicaServer
	control *control.Control
}

func (r *replica) Attend(stream grpc.BidiStreamingServer[replicav1.FromFollower, replicav1.FromLeader]) error {
	return r.control.Attend(caller(stream.Context()).Name, stream)
}

// Write answers what the log refuses as an answer: an error is that it was not asked, or that nobody knows.
func (r *replica) Write(ctx context.Context, m *replicav1.WriteRequest) (*replicav1.WriteResponse, error) {
	err := r.control.Write(ctx, m.GetCommand())
	switch {
	case err == nil:
		return &replicav1.WriteResponse{}, nil
	case store.IsRefused(err):
		return &replicav1.WriteResponse{Refused: err.Error(), Conflict: errors.Is(err, store.ErrConflict)}, nil
	}
	if errors.Is(err, store.ErrNotLeader) {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return nil, err
}

func (r *replica) Announce(ctx context.Context, m *replicav1.AnnounceRequest) (*replicav1.AnnounceResponse, error) {
	if err := r.control.Announced(ctx, caller(ctx).Name, m); err != nil {
		return nil, err
	}
	return &replicav1.AnnounceResponse{}, nil
}

func (r *replica) ListVerdicts(_ *replicav1.ListVerdictsRequest, stream grpc.ServerStreamingServer[replicav1.ListVerdictsResponse]) error {
	return sendRows(r.control.OwnVerdicts(), func(part []*replicav1.NodeVerdict) error {
		return stream.Send(&replicav1.ListVerdictsResponse{Verdicts: part})
	})
}

// Join lets a further control in.
func (e *enrollment) Join(ctx context.Context, m *fleetv1.JoinRequest) (*fleetv1.JoinResponse, error) {
	return e.control.Join(ctx, m)
}

// RemoveControl takes a control out for good.
func (o *operator) RemoveControl(ctx context.Context, m *operatorv1.RemoveControlRequest) (*operatorv1.RemoveControlResponse, error) {
	if err := o.control.RemoveControl(ctx, m.GetName()); err != nil {
		return nil, fmt.Errorf("remove a control: %w", err)
	}
	return &operatorv1.RemoveControlResponse{}, nil
}
