package api

import (
	"google.golang.org/grpc"

	"github.com/pyserve/pyserve/control/audit"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func (o *operator) ListRevisions(request *operatorv1.ListRevisionsRequest, stream grpc.ServerStreamingServer[operatorv1.ListRevisionsResponse]) error {
	return sendRows(o.control.History(int(request.GetLimit())), func(part []*operatorv1.RevisionSummary) error {
		return stream.Send(&operatorv1.ListRevisionsResponse{Revisions: part})
	})
}

func (o *operator) Rollback(request *operatorv1.RollbackRequest, stream grpc.ServerStreamingServer[operatorv1.ApplyEvent]) error {
	options := request.GetOptions()
	if err := checkOptions(options); err != nil {
		return err
	}
	audit.Describe(stream.Context(), "back to revision %d", request.GetRevision())
	return telling(stream, options, func(emit func(*operatorv1.ApplyEvent)) (*operatorv1.ApplyResult, error) {
		return o.control.Rollback(stream.Context(), caller(stream.Context()).Name, request.GetRevision(), options, emit)
	})
}
