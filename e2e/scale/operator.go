package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/pyserve/pyserve/control/identity"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// operator applies documents as pyservectl does, but without reading them itself first.
type operator struct {
	conn   *grpc.ClientConn
	client operatorv1.OperatorClient
}

func newOperator(c *identity.Context, address string) (*operator, error) {
	tlsConfig, err := c.ClientTLS()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	if err != nil {
		return nil, err
	}
	return &operator{conn, operatorv1.NewOperatorClient(conn)}, nil
}

func (o *operator) close() { o.conn.Close() }

// phases are the moments of an apply, since it was called. Each is when this end heard of it.
type phases struct {
	// Read: control has the document, has read it, and knows what it changes.
	Read time.Duration `json:"read"`
	// Offered: nodes are told to prepare it.
	Offered time.Duration `json:"offered"`
	// Prepared: the last node could serve it.
	Prepared time.Duration `json:"prepared"`
	// FirstCommitted: one node serves it, so that it is on control's disk, too.
	FirstCommitted time.Duration `json:"first_committed"`
	// Returned: the apply is over.
	Returned time.Duration `json:"returned"`
}

// partBytes is how much of a document one message carries, as in pyservectl.
const partBytes = 512 << 10

// applyTime bounds one apply.
const applyTime = 3 * time.Minute

// apply makes a document what all nodes serve, and is an error where they do not.
func (o *operator) apply(ctx context.Context, document []byte, began time.Time) (phases, *operatorv1.ApplyResult, error) {
	ctx, cancel := context.WithTimeout(ctx, applyTime)
	defer cancel()
	stream, err := o.client.Apply(ctx)
	if err != nil {
		return phases{}, nil, err
	}
	if err := send(stream, document); err != nil {
		return phases{}, nil, err
	}
	var p phases
	for {
		event, err := stream.Recv()
		if err != nil {
			return p, nil, err
		}
		since := time.Since(began)
		switch e := event.GetEvent().(type) {
		case *operatorv1.ApplyEvent_Change:
			p.Read = since
		case *operatorv1.ApplyEvent_Node:
			p.take(e.Node.GetPhase(), since)
		case *operatorv1.ApplyEvent_Result:
			p.Returned = since
			if outcome := e.Result.GetOutcome(); outcome != operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED {
				return p, e.Result, fmt.Errorf("the apply ends as %s: %s", outcome, e.Result.GetReason())
			}
			return p, e.Result, nil
		}
	}
}

func (p *phases) take(phase operatorv1.NodePhase, since time.Duration) {
	switch phase {
	case operatorv1.NodePhase_NODE_PHASE_OFFERED:
		if p.Offered == 0 {
			p.Offered = since
		}
	case operatorv1.NodePhase_NODE_PHASE_PREPARED:
		p.Prepared = since
	case operatorv1.NodePhase_NODE_PHASE_COMMITTED:
		if p.FirstCommitted == 0 {
			p.FirstCommitted = since
		}
	}
}

func send(stream grpc.BidiStreamingClient[operatorv1.ApplyRequest, operatorv1.ApplyEvent], document []byte) error {
	requests := []*operatorv1.ApplyRequest{{Message: &operatorv1.ApplyRequest_Options{Options: &operatorv1.ApplyOptions{Message: "measured"}}}}
	for part := range slices.Chunk(document, partBytes) {
		requests = append(requests, &operatorv1.ApplyRequest{Message: &operatorv1.ApplyRequest_Part{Part: &operatorv1.FilePart{Data: part}}})
	}
	for _, request := range requests {
		// io.EOF: control has ended the call; Recv says why.
		if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return stream.CloseSend()
}

// converged says whether control says so.
func (o *operator) converged(ctx context.Context) (bool, error) {
	m, err := o.client.GetStatus(ctx, &operatorv1.GetStatusRequest{})
	return m.GetConverged(), err
}
