package api

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// gather receives until the stream ends.
func gather[M any](t *testing.T, stream grpc.ServerStreamingClient[M], err error) ([]*M, error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var all []*M
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, m)
	}
}

func TestHistoryAndRollbackOverTheWire(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewOperatorClient(s.operator(t))
	history := func(limit uint32) (out string) {
		t.Helper()
		stream, err := c.ListRevisions(deadline(t), &operatorv1.ListRevisionsRequest{Limit: limit})
		parts, err := gather(t, stream, err)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range parts {
			for _, r := range m.GetRevisions() {
				out += fmt.Sprintf("%d %s %s %t %t\n", r.GetRevision(), r.GetAuthor(), r.GetMessage(), r.GetActive(), r.GetWhole())
			}
		}
		return out
	}
	rollback := func(m *operatorv1.RollbackRequest) ([]*operatorv1.ApplyEvent, error) {
		t.Helper()
		stream, err := c.Rollback(deadline(t), m)
		return gather(t, stream, err)
	}
	if got := history(0); got != "" {
		t.Errorf("before the first apply: %q", got)
	}
	for _, path := range []string{"/one", "/two"} {
		if _, err := apply(t, c, document(part("", strings.Replace(sample, "/api", path, 1)))...); err != nil {
			t.Fatal(err)
		}
	}
	events, err := rollback(&operatorv1.RollbackRequest{})
	if err != nil || len(events) == 0 {
		t.Fatalf("got %v, %v", events, err)
	}
	if r := events[len(events)-1].GetResult(); r.GetOutcome() != operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED || r.GetRevision() != 3 {
		t.Errorf("the last event is %v", events[len(events)-1])
	}
	if got, want := history(2), "3 admin rollback to revision 1 true true\n2 admin  false true\n"; got != want {
		t.Errorf("the history is\n%swant\n%s", got, want)
	}
	events, err = rollback(&operatorv1.RollbackRequest{Revision: 9})
	if err != nil || len(events) != 1 || events[0].GetResult().GetOutcome() != operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED {
		t.Errorf("of a revision that is not there: %v, %v", events, err)
	}
	_, err = rollback(&operatorv1.RollbackRequest{Options: &operatorv1.ApplyOptions{Message: strings.Repeat("m", 2<<10)}})
	checkCode(t, err, codes.ResourceExhausted, "--message is at most 1024 bytes")
}

func TestConfigOfAnEarlierRevision(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewOperatorClient(s.operator(t))
	for _, path := range []string{"/one", "/two"} {
		if _, err := apply(t, c, document(part("", strings.Replace(sample, "/api", path, 1)))...); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := c.GetConfig(deadline(t), &operatorv1.GetConfigRequest{Revision: 1})
	parts, err := gather(t, stream, err)
	if err != nil || len(parts) != 1 || parts[0].GetRevision() != 1 || !strings.Contains(string(parts[0].GetData()), "/one") {
		t.Errorf("got %v, %v", parts, err)
	}
	stream, err = c.GetConfig(deadline(t), &operatorv1.GetConfigRequest{Revision: 3})
	_, err = gather(t, stream, err)
	checkCode(t, err, codes.NotFound, "there is no revision 3")
}
