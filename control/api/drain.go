package api

import (
	"context"

	"google.golang.org/grpc"

	"github.com/pyserve/pyserve/control/audit"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// Drain has a node send its clients elsewhere.
func (o *operator) Drain(request *operatorv1.DrainRequest, stream grpc.ServerStreamingServer[operatorv1.DrainEvent]) error {
	audit.Describe(stream.Context(), "node %s", request.GetNode())
	return o.control.Drain(stream.Context(), request, stream.Send)
}

// Undrain has it take them again.
func (o *operator) Undrain(ctx context.Context, request *operatorv1.UndrainRequest) (*operatorv1.UndrainResponse, error) {
	audit.Describe(ctx, "node %s", request.GetNode())
	if err := o.control.Undrain(ctx, request.GetNode()); err != nil {
		return nil, err
	}
	return &operatorv1.UndrainResponse{}, nil
}
