package api

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/control/journal"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func watchEvents(t *testing.T, ctx context.Context, s *site, m *operatorv1.WatchEventsRequest) grpc.ServerStreamingClient[operatorv1.WatchEventsResponse] {
	t.Helper()
	stream, err := operatorv1.NewOperatorClient(s.operator(t)).WatchEvents(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestRecentEventsComeAndEnd(t *testing.T) {
	s := newSite(t)
	for i := range 5 {
		s.control.Journal().Add(journal.NodeConnected, fmt.Sprintf("n%d", i), strings.Repeat("x", 1<<10))
	}
	parts, err := gather(t, watchEvents(t, deadline(t), s, &operatorv1.WatchEventsRequest{Limit: 2}), nil)
	if err != nil || len(parts) != 1 || len(parts[0].GetEvents()) != 2 || parts[0].GetEvents()[1].GetSubject() != "n4" || parts[0].GetMissed() != 0 {
		t.Errorf("got %v, %v", parts, err)
	}
	for range 1200 {
		s.control.Journal().Add(journal.NodeConnected, "n", strings.Repeat("x", 1<<10))
	}
	parts, err = gather(t, watchEvents(t, deadline(t), s, &operatorv1.WatchEventsRequest{}), nil)
	n := 0
	for _, m := range parts {
		n += len(m.GetEvents())
	}
	if err != nil || n != 1000 || len(parts) < 2 {
		t.Errorf("%d events in %d messages, %v", n, len(parts), err)
	}
}

func TestEventsAreFollowed(t *testing.T) {
	s := newSite(t)
	stream := watchEvents(t, deadline(t), s, &operatorv1.WatchEventsRequest{Follow: true})
	if m, err := stream.Recv(); err != nil || m.GetEvents()[0].GetKind() != "control-started" || m.GetEvents()[0].GetTime() == nil {
		t.Fatalf("got %v, %v", m, err)
	}
	for i := range 3 {
		s.control.Journal().Add(journal.BackendDown, fmt.Sprint(i), "")
		if m, err := stream.Recv(); err != nil || len(m.GetEvents()) != 1 || m.GetEvents()[0].GetSubject() != fmt.Sprint(i) || m.GetEvents()[0].GetSequence() != uint64(i+2) {
			t.Fatalf("got %v, %v", m, err)
		}
	}
	s.control.EndStreams()
	_, err := stream.Recv()
	checkCode(t, err, codes.Unavailable, "control is stopping")
}

func TestWhoFollowsEventsMayGoAway(t *testing.T) {
	s := newSite(t)
	ctx, cancel := context.WithCancel(deadline(t))
	stream := watchEvents(t, ctx, s, &operatorv1.WatchEventsRequest{Follow: true})
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("the stream ended with %v", err)
	}
}

// A reader that takes nothing holds nobody up, and is told how much it missed.
func TestASlowReaderIsToldWhatItMissed(t *testing.T) {
	s := newSite(t)
	stream := watchEvents(t, deadline(t), s, &operatorv1.WatchEventsRequest{Follow: true})
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	const many = 20_000 // far more than the flow control of a stream and the journal take
	for range many {
		s.control.Journal().Add(journal.BackendDown, "x", strings.Repeat("x", 1<<10))
	}
	var seen, missed uint64
	for seen+missed < many {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %d events and %d missed: %v", seen, missed, err)
		}
		if m.GetMissed() > 0 && len(m.GetEvents()) == 0 {
			t.Error("a gap without an event after it")
		}
		seen, missed = seen+uint64(len(m.GetEvents())), missed+m.GetMissed()
	}
	if seen+missed != many || missed == 0 {
		t.Errorf("%d events came and %d were missed, of %d", seen, missed, many)
	}
}
