package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/fleet"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

type enrollment struct {
	fleetv1.UnimplementedEnrollmentServer
	control *control.Control
}

func (e *enrollment) Enroll(ctx context.Context, m *fleetv1.EnrollRequest) (*fleetv1.EnrollResponse, error) {
	id, err := e.control.Enroll(ctx, m.GetToken(), m.GetName(), m.GetCertificateRequest())
	if err != nil {
		return nil, err
	}
	return &fleetv1.EnrollResponse{Identity: id}, nil
}

type fleetService struct {
	fleetv1.UnimplementedFleetServer
	control *control.Control
}

func (f *fleetService) Connect(stream grpc.BidiStreamingServer[fleetv1.FromNode, fleetv1.ToNode]) error {
	return f.control.Serve(caller(stream.Context()), stream)
}

func (f *fleetService) Renew(ctx context.Context, m *fleetv1.RenewRequest) (*fleetv1.RenewResponse, error) {
	id, err := f.control.Renew(caller(ctx), m.GetCertificateRequest())
	if err != nil {
		return nil, err
	}
	return &fleetv1.RenewResponse{Identity: id}, nil
}

type operator struct {
	operatorv1.UnimplementedOperatorServer
	control *control.Control
}

func (o *operator) Apply(stream grpc.BidiStreamingServer[operatorv1.ApplyRequest, operatorv1.ApplyEvent]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	options := first.GetOptions()
	if options == nil {
		return fmt.Errorf("the first message of Apply carries its options: %w", errMalformed)
	}
	if err := checkOptions(options); err != nil {
		return err
	}
	document, err := collect(func() (*operatorv1.FilePart, error) {
		m, err := stream.Recv()
		return m.GetPart(), err
	})
	if err != nil {
		return err
	}
	audit.Describe(stream.Context(), "a document of %d bytes", len(document.Data))
	return telling(stream, options, func(emit func(*operatorv1.ApplyEvent)) (*operatorv1.ApplyResult, error) {
		return o.control.Apply(stream.Context(), caller(stream.Context()).Name, document, options, emit)
	})
}

// telling runs what makes a new revision and sends what it tells on the way, and at last its result. What is run does not
// wait for the caller to read.
func telling(stream grpc.ServerStreamingServer[operatorv1.ApplyEvent], o *operatorv1.ApplyOptions, run func(emit func(*operatorv1.ApplyEvent)) (*operatorv1.ApplyResult, error)) error {
	if o.GetDryRun() {
		audit.Skip(stream.Context())
	}
	to := newTeller(stream.Context(), stream.Send)
	result, err := run(to.tell)
	if err == nil {
		audit.Conclude(stream.Context(), outcome(result))
		to.tell(&operatorv1.ApplyEvent{Event: &operatorv1.ApplyEvent_Result{Result: result}})
	}
	if untold := to.finish(); err == nil {
		return untold
	}
	return err
}

// outcome says for the audit trail what became of an apply that made no revision.
func outcome(result *operatorv1.ApplyResult) string {
	word := strings.ToLower(strings.TrimPrefix(result.GetOutcome().String(), "APPLY_OUTCOME_"))
	return strings.TrimSuffix(word+": "+result.GetReason(), ": ")
}

func checkOptions(o *operatorv1.ApplyOptions) error {
	if len(o.GetMessage()) > maxMessage {
		return fmt.Errorf("--message is at most %d bytes: %w", maxMessage, errTooLarge)
	}
	return nil
}

// maxMessage bounds what history keeps of a revision's message, in bytes.
const maxMessage = 1 << 10

func (o *operator) Diff(stream grpc.ClientStreamingServer[operatorv1.DiffRequest, operatorv1.DiffResponse]) error {
	revision := uint64(0)
	document, err := collect(func() (*operatorv1.FilePart, error) {
		m, err := stream.Recv()
		revision = max(revision, m.GetRevision())
		return m.GetPart(), err
	})
	if err != nil {
		return err
	}
	response, err := o.control.Diff(document, revision)
	if err != nil {
		return err
	}
	return stream.SendAndClose(response)
}

func (o *operator) GetStatus(context.Context, *operatorv1.GetStatusRequest) (*operatorv1.GetStatusResponse, error) {
	return o.control.Status(), nil
}

// watchInterval is how often gossip's view, which signals nobody here, is looked at.
const watchInterval = time.Second

func (o *operator) WatchStatus(_ *operatorv1.GetStatusRequest, stream grpc.ServerStreamingServer[operatorv1.GetStatusResponse]) error {
	changed, stop := o.control.Watch()
	defer stop()
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	var last *operatorv1.GetStatusResponse
	for {
		if now := o.control.Status(); last == nil || !proto.Equal(now, last) {
			if err := stream.Send(now); err != nil {
				return err
			}
			last = now
		}
		select {
		case <-changed:
		case <-ticker.C:
		case <-o.control.StreamsEnded():
			return fleet.ErrClosed
		case <-stream.Context().Done():
			return context.Cause(stream.Context())
		}
	}
}

// partBytes is how much one message of a long answer carries, well under gRPC's 4 MiB. A row alone may be longer: a
// route may have as many backends as a document.
const partBytes = 1 << 20

// sendRows sends a list in parts.
func sendRows[M proto.Message](rows []M, send func([]M) error) error {
	first, size := 0, 0
	for i, row := range rows {
		n := proto.Size(row) + 8 // its tag and length
		if i > first && size+n > partBytes {
			if err := send(rows[first:i]); err != nil {
				return err
			}
			first, size = i, 0
		}
		size += n
	}
	if first == len(rows) {
		return nil
	}
	return send(rows[first:])
}

func (o *operator) GetConfig(request *operatorv1.GetConfigRequest, stream grpc.ServerStreamingServer[operatorv1.GetConfigResponse]) error {
	document, revision, digest, err := o.control.Document(request.GetRevision())
	if err != nil {
		return err
	}
	m := &operatorv1.GetConfigResponse{Revision: revision, Digest: digest}
	for part := range slices.Chunk(document, partBytes) {
		m.Data = part
		if err := stream.Send(m); err != nil {
			return err
		}
		m = &operatorv1.GetConfigResponse{}
	}
	if len(document) == 0 {
		return stream.Send(m)
	}
	return nil
}

func (o *operator) ListRoutes(_ *operatorv1.ListRoutesRequest, stream grpc.ServerStreamingServer[operatorv1.ListRoutesResponse]) error {
	routes, err := o.control.Routes()
	if err != nil {
		return err
	}
	return sendRows(routes, func(part []*operatorv1.RouteSummary) error {
		return stream.Send(&operatorv1.ListRoutesResponse{Routes: part})
	})
}

func (o *operator) ListBackends(_ *operatorv1.ListBackendsRequest, stream grpc.ServerStreamingServer[operatorv1.ListBackendsResponse]) error {
	backends, err := o.control.Backends()
	if err != nil {
		return err
	}
	return sendRows(backends, func(part []*operatorv1.BackendSummary) error {
		return stream.Send(&operatorv1.ListBackendsResponse{Backends: part})
	})
}

func (o *operator) ListControls(context.Context, *operatorv1.ListControlsRequest) (*operatorv1.ListControlsResponse, error) {
	return &operatorv1.ListControlsResponse{Controls: o.control.Controls()}, nil
}
