package control

import (
	"testing"

	"github.com/pyserve/pyserve/control/fleettest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestTopAsksEveryNode(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	counts := func(q *fleetv1.Question) *fleetv1.Answer {
		return &fleetv1.Answer{Sample: &fleetv1.Sample{RouteCount: q.GetTake().GetRoutes()}}
	}
	old := func(*fleetv1.Question) *fleetv1.Answer { return &fleetv1.Answer{Reason: "the request is empty"} }
	join(t, c, &fleettest.Node{Name: "n1", Answer: counts}, &fleettest.Node{Name: "n2", Answer: old})
	m := c.Top(t.Context(), &operatorv1.ListSamplesRequest{Routes: 1 << 30})
	if len(m.GetNodes()) != 2 {
		t.Fatalf("got %v", m)
	}
	if n1 := m.GetNodes()[0]; n1.GetNode() != "n1" || n1.GetSample().GetRouteCount() != maxTopRoutes || n1.GetFailure() != "" {
		t.Errorf("n1: %v", n1)
	}
	if n2 := m.GetNodes()[1]; n2.GetNode() != "n2" || n2.GetSample() != nil || n2.GetFailure() == "" {
		t.Errorf("n2: %v", n2)
	}
}
