package api

import (
	"context"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// ListSamples gives what the nodes have counted.
func (o *operator) ListSamples(ctx context.Context, request *operatorv1.ListSamplesRequest) (*operatorv1.ListSamplesResponse, error) {
	return o.control.Top(ctx, request), nil
}
