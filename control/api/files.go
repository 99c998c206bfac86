package api

import (
	"context"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func (o *operator) FindFiles(_ context.Context, request *operatorv1.FindFilesRequest) (*operatorv1.FindFilesResponse, error) {
	return &operatorv1.FindFilesResponse{Names: o.control.HeldFiles(request.GetNames())}, nil
}
