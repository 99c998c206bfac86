package api

import (
	"context"
	"path"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/identity"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// begin has the context carry a note for the audit trail, where the method is one that changes something. What conclude
// is told of the call's end is kept where the call itself kept nothing.
//
// An anonymous caller is kept only once the call has told what it is about, which it does when the caller has shown a
// token of this cluster: whoever has none is refused without a trace in the trail.
func (g gate) begin(ctx context.Context, who identity.Peer, method string) (_ context.Context, conclude func(error)) {
	if !audited[method] {
		return ctx, func(error) {}
	}
	key, role := "", ""
	if who.Role != anonymous {
		key, role = who.Role.String()+"/"+who.Name, who.Role.String()
	}
	ctx, note := audit.Begin(ctx, who.Name, role, addressOf(ctx), path.Base(method))
	return ctx, func(err error) {
		reason := ""
		if err != nil {
			reason = status.Convert(err).Message() // without gRPC's dress
		}
		if who.Role != anonymous || note.Described() {
			g.control.Record(ctx, note, key, reason)
		}
	}
}

// addressOf gives where a call came from, also where another control passed it on.
func addressOf(ctx context.Context) string {
	if origin, ok := ctx.Value(originKey{}).(string); ok {
		return origin
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

func (a *access) ListAudit(_ *operatorv1.ListAuditRequest, stream grpc.ServerStreamingServer[operatorv1.ListAuditResponse]) error {
	anchor, entries := a.control.Audit()
	first := &operatorv1.ListAuditResponse{AnchorSequence: anchor.Sequence, AnchorHash: anchor.Hash[:]}
	if err := stream.Send(first); err != nil {
		return err
	}
	rows := make([]*operatorv1.AuditEntry, 0, len(entries))
	for i := range entries {
		e := &entries[i]
		rows = append(rows, &operatorv1.AuditEntry{
			Sequence: e.Sequence, Time: timestamppb.New(e.Time), Actor: e.Actor, Role: e.Role, Address: e.Address,
			Method: e.Method, What: e.What, Outcome: e.Outcome, Previous: e.Previous[:], Hash: e.Hash[:],
		})
	}
	return sendRows(rows, func(part []*operatorv1.AuditEntry) error {
		return stream.Send(&operatorv1.ListAuditResponse{Entries: part})
	})
}
