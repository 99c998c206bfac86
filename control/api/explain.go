package api

import (
	"context"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func (o *operator) Explain(ctx context.Context, request *operatorv1.ExplainRequest) (*operatorv1.ExplainResponse, error) {
	return o.control.Explain(ctx, request)
}

func (o *operator) ExplainBackend(ctx context.Context, request *operatorv1.ExplainBackendRequest) (*operatorv1.ExplainBackendResponse, error) {
	return o.control.ExplainBackend(ctx, request)
}
