package api

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/journal"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func (o *operator) WatchEvents(request *operatorv1.WatchEventsRequest, stream grpc.ServerStreamingServer[operatorv1.WatchEventsResponse]) error {
	j := o.control.Journal()
	events, last := j.Recent(int(request.GetLimit()))
	if err := sendEvents(stream, events, 0); err != nil || !request.GetFollow() {
		return err
	}
	for {
		changed := j.Changed()
		events, missed := j.After(last)
		if err := sendEvents(stream, events, missed); err != nil {
			return err
		}
		last += missed + uint64(len(events))
		select {
		case <-changed:
		case <-o.control.StreamsEnded():
			return fleet.ErrClosed
		case <-stream.Context().Done():
			return context.Cause(stream.Context())
		}
	}
}

// sendEvents waits until the reader takes them, while the journal goes on: that is how a slow one comes to miss some.
func sendEvents(stream grpc.ServerStreamingServer[operatorv1.WatchEventsResponse], events []journal.Event, missed uint64) error {
	rows := make([]*operatorv1.Event, 0, len(events))
	for _, e := range events {
		rows = append(rows, &operatorv1.Event{
			Sequence: e.Sequence, Time: timestamppb.New(e.Time), Kind: string(e.Kind), Subject: e.Subject, Message: e.Message,
		})
	}
	return sendRows(rows, func(part []*operatorv1.Event) error {
		err := stream.Send(&operatorv1.WatchEventsResponse{Events: part, Missed: missed})
		missed = 0
		return err
	})
}
