package node

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/health"
	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/upstream"
	"github.com/pyserve/pyserve/node/vote"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func TestWhyTellsOfEachWayInWhichAnAddressIsChecked(t *testing.T) {
	n := newNode(t, Options{Name: "n1"})
	if got := n.Why("127.0.0.1:3001"); len(got.GetEvidence()) != 0 {
		t.Errorf("of nothing: %v", got)
	}
	b := nodetest.NewBuild().Route("/a", 3001).Route("/b", 3001).Route("/c", 3001, 3002)
	b.Pools["/b"].HealthCheck = &resourcev1.HealthCheck{
		Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_HTTP, Path: "/healthz", Interval: durationpb.New(time.Hour),
		HealthyThreshold: 2, UnhealthyThreshold: 3,
	}
	apply(t, n, 1, b)
	nodetest.Eventually(t, "the one that is checked is watched", func() bool {
		e := n.Why("127.0.0.1:3001").GetEvidence()
		return len(e) == 2 && e[1].GetRole() == "probes for itself"
	})
	a := n.Answer(&fleetv1.Question{Id: 9, Backend: "127.0.0.1:3001"})
	evidence := a.GetVerdicts().GetEvidence()
	if a.GetId() != 9 || a.GetRevision() != 1 || len(evidence) != 2 {
		t.Fatalf("answered %v", a)
	}
	if e := evidence[0]; strings.Join(e.GetRoutes(), " ") != "/a /c" || e.GetStatus().GetAddress() != "127.0.0.1:3001" ||
		e.GetCheck() != "not probed" || e.GetDecidedBy() != "no check" {
		t.Errorf("%v", e)
	}
	if e := evidence[1]; strings.Join(e.GetRoutes(), " ") != "/b" || e.GetCheck() != "http /healthz every 1h0m0s; 3 failures or 2 successes in a row count" ||
		e.GetMembers() != 1 {
		t.Errorf("%v", e)
	}
	if got := n.Why("127.0.0.1:3003"); got == nil || len(got.GetEvidence()) != 0 {
		t.Errorf("of a backend that there is not: %v", got)
	}
}

// What others say makes a node's verdict, and is shown with it.
func TestWhyShowsWhoSaysWhat(t *testing.T) {
	n := newNode(t, Options{Name: "n9"})
	b := nodetest.NewBuild().Route("/a", 3001)
	b.Pools["/a"].HealthCheck = &resourcev1.HealthCheck{
		Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP, Interval: durationpb.New(time.Hour), UnhealthyThreshold: 100,
	}
	n.SetMembers([]string{"n1", "n2", "n3", "n9"})
	apply(t, n, 1, b)
	backend := poolOf(n.live.Load().routes[0]).Members()[0].Backend
	now := time.Now()
	for _, name := range []string{"n1", "n2", "n3"} {
		message, _ := vote.Encode([]vote.Vote{{
			Key: backend.Identity(), Origin: name, Sequence: uint64(now.UnixMicro()), State: vote.Unhealthy, Reason: "gone fishing",
			Since: now, Repeat: time.Hour, Heard: now,
		}}, 1<<10)
		if err := n.HearVotes(health.Heard{From: name, Message: message, Signed: name}); err != nil {
			t.Fatal(err)
		}
	}
	nodetest.Eventually(t, "the verdict of the majority", func() bool {
		e := n.Why("127.0.0.1:3001").GetEvidence()
		return len(e) == 1 && e[0].GetDecidedBy() == "majority" && len(e[0].GetVotes()) >= 3 && e[0].GetVotes()[0].GetCounted() &&
			e[0].GetVotes()[0].GetReason() == "gone fishing" && e[0].GetStatus().GetState() == fleetv1.BackendState_BACKEND_STATE_UNHEALTHY &&
			len(e[0].GetProbers()) == 3 && e[0].GetMembers() == 4
	})
	if err := n.HearVotes(health.Heard{From: "n1", Message: []byte("nonsense")}); err == nil {
		t.Error("nonsense is taken")
	}
	passed := make(map[string]bool)
	for signed := range n.Votes() {
		passed[signed] = true
	}
	if len(passed) != 3 || !passed["n2"] {
		t.Errorf("passed on are %v", passed)
	}
}

// The first request that cannot connect is enough, long before the health check would know.
func TestRequestThatCannotConnectTakesABackendOutAtOnce(t *testing.T) {
	n := newNode(t, Options{Name: "n1"})
	alive := saying(t, "alive")
	dying := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "dying") }))
	t.Cleanup(dying.Close)
	address := dying.Listener.Addr().String()
	b := nodetest.NewBuild().Route("/", uint32(dying.Listener.Addr().(*net.TCPAddr).Port), alive)
	b.Pools["/"].HealthCheck = &resourcev1.HealthCheck{
		Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP, Interval: durationpb.New(time.Hour), UnhealthyThreshold: 3,
	}
	apply(t, n, 1, b)
	nodetest.Eventually(t, "both are healthy", func() bool {
		for _, s := range n.Backends() {
			if s.GetState() != fleetv1.BackendState_BACKEND_STATE_HEALTHY {
				return false
			}
		}
		return len(n.Backends()) == 2
	})
	dying.Close()
	c, url := client(t, nil), "http://"+n.ListenAddress()+"/x"
	evidence := func() *fleetv1.Evidence { return n.Why(address).GetEvidence()[0] }
	nodetest.Eventually(t, "a request has met with the refusal", func() bool {
		if _, err := fetch(c, url); err != nil {
			t.Fatal(err) // it goes to the other one
		}
		return evidence().GetRefused() == "connection refused"
	})
	var gone *upstream.Backend
	for _, m := range poolOf(n.live.Load().routes[0]).Members() {
		if m.Backend.Address() == address {
			gone = m.Backend
		}
	}
	before := gone.Counters().ConnectFailures
	for range 20 {
		if body, err := fetch(c, url); err != nil || !strings.HasPrefix(body, "alive") {
			t.Errorf("answered %q, %v", body, err)
		}
	}
	if after := gone.Counters().ConnectFailures; after != before {
		t.Errorf("it was tried %d times more", after-before)
	}
	if s := evidence().GetStatus().GetState(); s != fleetv1.BackendState_BACKEND_STATE_HEALTHY {
		t.Errorf("its verdict is %v; only probes change it", s)
	}
}
