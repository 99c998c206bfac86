package control

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestStateOfANode(t *testing.T) {
	b, err := bundle.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	digest := b.Digest()
	release := func(revision uint64) *fleetv1.Release {
		return &fleetv1.Release{Epoch: 1, Revision: revision, Digest: digest[:]}
	}
	active := &store.Snapshot{Revision: store.Revision{Number: 5, Release: release(5)}, Bundle: b}
	why := []*fleetv1.Refusal{fleettest.Refusal("server.port", "in use")}
	for name, tt := range map[string]struct {
		node        fleet.Node
		active      *store.Snapshot
		state, note string
	}{
		"left":                              {fleet.Node{Left: true}, active, "left", ""},
		"left, and had refused":             {fleet.Node{Left: true, Rejected: true, Refusals: why}, active, "left", ""},
		"gone":                              {fleet.Node{Applied: release(5), Since: time.Now()}, active, "disconnected", "its stream is gone"},
		"never there":                       {fleet.Node{}, active, "disconnected", "it had no stream since this control started"},
		"new, nothing applied":              {fleet.Node{Connected: true}, nil, "joining", "no configuration yet: pyservectl apply FILE"},
		"new":                               {fleet.Node{Connected: true}, active, "joining", "receiving its first configuration"},
		"new and refuses":                   {fleet.Node{Connected: true, Refused: 5, Rejected: true, Refusals: why}, active, "rejected", "server.port: in use"},
		"new and reports what stands there": {fleet.Node{Connected: true, Refusals: why}, active, "rejected", "server.port: in use"},
		"serves":                            {fleet.Node{Connected: true, Applied: release(5)}, active, "ready", ""},
		"serves, and reports an old reason": {fleet.Node{Connected: true, Applied: release(5), Refusals: why}, active, "ready", ""},
		"on its way":                        {fleet.Node{Connected: true, Applied: release(4)}, active, "ready", "on its way to revision 5"},
		"serves what control lost":          {fleet.Node{Connected: true, Applied: release(9)}, active, "ready", "serves revision 9 of epoch 1 and keeps it: control has lost what came after revision 5; restore a newer backup, or apply what is to be served"},
		"refuses what is active":            {fleet.Node{Connected: true, Applied: release(4), Refused: 5, Rejected: true, Refusals: why}, active, "rejected", "server.port: in use"},
		"refused a proposal":                {fleet.Node{Connected: true, Applied: release(5), Refused: 6, Refusals: why}, active, "ready", "refused revision 6, which nobody serves: server.port: in use"},
		"drains":                            {fleet.Node{Connected: true, Applied: release(5), Draining: true}, active, "draining", ""},
		"drains before it served":           {fleet.Node{Connected: true, Draining: true}, active, "draining", ""},
		"serves, and control knows nothing": {fleet.Node{Connected: true, Applied: release(5)}, nil, "ready", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if state, note := stateOf(tt.node, tt.active); state != tt.state || note != tt.note {
				t.Errorf("got %s (%s), want %s (%s)", state, note, tt.state, tt.note)
			}
		})
	}
}

func TestGossipAndNotesOfANode(t *testing.T) {
	for _, tt := range []struct {
		node   fleet.Node
		gossip string
		want   string
		note   string
	}{
		{fleet.Node{Connected: true}, "alive", "alive", "no configuration yet: pyservectl apply FILE"},
		{fleet.Node{Connected: true, Applied: &fleetv1.Release{}}, "", "suspect", "gossip has not seen it yet"},
		{fleet.Node{Connected: true}, "", "suspect", "no configuration yet: pyservectl apply FILE"},
		{fleet.Node{Since: time.Now()}, "", "dead", "its stream is gone"},
		{fleet.Node{Since: time.Now()}, "suspect", "suspect", "its stream is gone"},
		{fleet.Node{Left: true}, "", "left", ""},
		// What a node says beside its state; of one that is not there, it is not known to be true.
		{fleet.Node{Connected: true, Applied: &fleetv1.Release{}, Notes: []string{"a", "b"}}, "alive", "alive", "a; b"},
		{fleet.Node{Connected: true, Applied: &fleetv1.Release{}, Notes: []string{"a"}}, "", "suspect", "a"},
		{fleet.Node{Connected: true, Rejected: true, Refusals: []*fleetv1.Refusal{{Reason: "no"}}, Notes: []string{"a"}}, "alive", "alive", "no; a"},
		{fleet.Node{Since: time.Now(), Notes: []string{"a"}}, "", "dead", "its stream is gone"},
	} {
		if row := nodeStatus(tt.node, nil, tt.gossip); row.GetGossip() != tt.want || row.GetNote() != tt.note {
			t.Errorf("%+v seen as %q: got %s (%s), want %s (%s)", tt.node, tt.gossip, row.GetGossip(), row.GetNote(), tt.want, tt.note)
		}
	}
}

func TestStatusIsConvergedWhenEveryNodeServesWhatIsActive(t *testing.T) {
	now := time.Now()
	o := optionsFor(t.TempDir())
	o.Now = func() time.Time { return now }
	o.Members = func() []Member { return []Member{{Name: "n1", Address: "127.0.0.1:1", State: "alive"}} }
	c := start(t, o)
	check := func(converged bool, want ...string) {
		t.Helper()
		var got []string
		status := c.Status()
		for _, n := range status.GetNodes() {
			got = append(got, fmt.Sprintf("%s %s %d %s", n.GetName(), n.GetState(), n.GetRevision(), n.GetGossip()))
		}
		if status.GetConverged() != converged || !slices.Equal(got, want) {
			t.Errorf("converged is %t with %q, want %t with %q", status.GetConverged(), got, converged, want)
		}
	}
	check(false)
	n1, n2 := &fleettest.Node{Name: "n1"}, &fleettest.Node{Name: "n2"}
	join(t, c, n1)
	check(false, "n1 joining 0 alive")
	applied(t, c, document(1))
	check(true, "n1 ready 1 alive")
	join(t, c, n2)
	eventually(t, "n2 serves", func() bool { return n2.Applied() != nil })
	eventually(t, "converged", func() bool { return c.Status().GetConverged() })
	check(true, "n1 ready 1 alive", "n2 ready 1 suspect")
	if digest := c.Status().GetNodes()[0].GetDigest(); digest != c.Status().GetDigest() || len(digest) != 64 {
		t.Errorf("n1's digest is %q", digest)
	}
	n1.Close()
	check(false, "n1 disconnected 1 alive", "n2 ready 1 suspect")
	if err := n2.Leave(); err != nil {
		t.Fatal(err)
	}
	check(false, "n1 disconnected 1 alive", "n2 left 1 left")
	now = now.Add(2 * time.Hour)
	check(false, "n1 disconnected 1 alive")
	now = now.Add(30 * time.Hour)
	check(false)
}

func TestLeftNodesDoNotStandInTheWay(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n1, n2 := &fleettest.Node{Name: "n1"}, &fleettest.Node{Name: "n2"}
	join(t, c, n1, n2)
	applied(t, c, document(1))
	if err := n2.Leave(); err != nil {
		t.Fatal(err)
	}
	if !c.Status().GetConverged() {
		t.Errorf("not converged: %v", c.Status())
	}
}

func TestWatchTellsOfAnApply(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	changed, stop := c.Watch()
	defer stop()
	applied(t, c, document(1))
	select {
	case <-changed:
	case <-time.After(patience):
		t.Error("no signal")
	}
}

func verdict(node string, state fleetv1.BackendState, reason string, since *timestamppb.Timestamp) fleet.Verdict {
	return fleet.Verdict{Node: node, Status: &fleetv1.BackendStatus{State: state, Reason: reason, Since: since}}
}

func TestJudgeShowsWhatMostNodesSayAndTheWorseWhereAsManyDo(t *testing.T) {
	healthy, unhealthy := fleetv1.BackendState_BACKEND_STATE_HEALTHY, fleetv1.BackendState_BACKEND_STATE_UNHEALTHY
	unknown, draining := fleetv1.BackendState_BACKEND_STATE_UNKNOWN, fleetv1.BackendState_BACKEND_STATE_DRAINING
	at := timestamppb.New(time.Unix(1, 0))
	for name, tt := range map[string]struct {
		verdicts []fleet.Verdict
		state    string
		reason   string
		nodes    map[string]string
	}{
		"nobody says anything": {nil, "unknown", "", nil},
		"all agree":            {[]fleet.Verdict{verdict("a", unhealthy, "refused", at), verdict("b", unhealthy, "timeout", at)}, "unhealthy", "refused", nil},
		"most":                 {[]fleet.Verdict{verdict("a", healthy, "", at), verdict("b", unhealthy, "refused", at), verdict("c", healthy, "", at)}, "healthy", "", map[string]string{"a": "healthy", "b": "unhealthy: refused", "c": "healthy"}},
		"as many":              {[]fleet.Verdict{verdict("a", healthy, "", at), verdict("b", unhealthy, "refused", at)}, "unhealthy", "refused", map[string]string{"a": "healthy", "b": "unhealthy: refused"}},
		"as many, no times":    {[]fleet.Verdict{verdict("a", healthy, "", nil), verdict("b", unhealthy, "refused", nil)}, "unhealthy", "refused", map[string]string{"a": "healthy", "b": "unhealthy: refused"}},
		"three states":         {[]fleet.Verdict{verdict("a", healthy, "", at), verdict("b", unknown, "", at), verdict("c", draining, "", at)}, "draining", "", map[string]string{"a": "healthy", "b": "unknown", "c": "draining"}},
		"from a newer node":    {[]fleet.Verdict{verdict("a", fleetv1.BackendState(99), "", at)}, "unknown", "", nil},
		"unspecified":          {[]fleet.Verdict{verdict("a", 0, "", at)}, "unknown", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			row := &operatorv1.BackendSummary{State: "unknown"}
			judge(row, tt.verdicts)
			if row.GetState() != tt.state || row.GetReason() != tt.reason || !maps.Equal(row.GetNodes(), tt.nodes) {
				t.Errorf("got %v", row)
			}
		})
	}
}

func TestJudgeShowsThatANodeUsesAnUnhealthyBackend(t *testing.T) {
	open := verdict("b", fleetv1.BackendState_BACKEND_STATE_UNHEALTHY, "refused", nil)
	open.Status.FailOpen = true
	row := &operatorv1.BackendSummary{}
	judge(row, []fleet.Verdict{verdict("a", fleetv1.BackendState_BACKEND_STATE_UNHEALTHY, "refused", nil), open})
	if !row.GetFailOpen() || row.GetState() != "unhealthy" {
		t.Errorf("got %v", row)
	}
}

func TestRoutesAndBackendsAreThoseOfTheActiveBundle(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	if routes, err := c.Routes(); err != nil || len(routes) != 0 {
		t.Errorf("before the first apply: %v, %v", routes, err)
	}
	if backends, err := c.Backends(); err != nil || len(backends) != 0 {
		t.Errorf("before the first apply: %v, %v", backends, err)
	}
	n := &fleettest.Node{Name: "n1"}
	join(t, c, n)
	applied(t, c, Document{Data: []byte(`
server:
  reverse_proxy:
    - path: /b
      hosts: [b.example.com]
      strip_path: false
      backends: [{host: 127.0.0.1, port: 1, weight: 3}, {host: "::1", port: 2}]
    - {path: /a, match: exact, host: 127.0.0.1, port: 3}
`)})
	routes, err := c.Routes()
	if err != nil || len(routes) != 2 {
		t.Fatalf("got %v, %v", routes, err)
	}
	if a := routes[0]; a.GetPath() != "/a" || a.GetMatch() != "exact" || len(a.GetHosts()) != 0 || !slices.Equal(a.GetBackends(), []string{"127.0.0.1:3"}) {
		t.Errorf("got %v", a)
	}
	if b := routes[1]; b.GetMatch() != "prefix" || !slices.Equal(b.GetHosts(), []string{"b.example.com"}) || b.GetStripPath() || !slices.Equal(b.GetBackends(), []string{"127.0.0.1:1", "[::1]:2"}) {
		t.Errorf("got %v", b)
	}
	since := timestamppb.Now()
	n.Say(fleettest.Status(&fleetv1.Status{BackendsFull: true, Backends: []*fleetv1.BackendStatus{
		{Route: routes[1].GetName(), Address: "[::1]:2", State: fleetv1.BackendState_BACKEND_STATE_UNHEALTHY, Reason: "refused", Since: since},
		{Route: "/gone", Address: "127.0.0.1:9"},
	}}))
	eventually(t, "the verdict is there", func() bool { return len(c.fleet.Verdicts()) == 2 })
	backends, err := c.Backends()
	if err != nil || len(backends) != 3 {
		t.Fatalf("got %v, %v", backends, err)
	}
	var got []string
	for _, b := range backends {
		got = append(got, fmt.Sprintf("%s %s %d %s %s", b.GetRoute(), b.GetAddress(), b.GetWeight(), b.GetState(), b.GetReason()))
	}
	b := routes[1].GetName()
	want := []string{"/a", b + " 127.0.0.1:1 3 unknown ", b + " [::1]:2 1 unhealthy refused"}
	if !strings.HasSuffix(got[0], " 127.0.0.1:3 1 unknown ") || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("got %q", got)
	}
}

// TestWhatAnApplyHasReadIsWhatItsBundleMeans, since it is what the next apply is compared with, and what status shows.
func TestWhatAnApplyHasReadIsWhatItsBundleMeans(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	applied(t, c, document(1, 2))
	active := c.store.Active()
	kept := c.decoded.Load()
	if kept == nil || kept.of != active {
		t.Fatalf("nothing is kept of the active revision: %+v", kept)
	}
	want, err := active.Bundle.Decode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := bundle.Encode(kept.resources)
	if err != nil {
		t.Fatal(err)
	}
	if changes := config.Diff(want, kept.resources); len(changes) > 0 || again.Digest() != active.Bundle.Digest() {
		t.Errorf("it means something else: %v", changes)
	}
	result, s := apply(t, c, document(1, 3), nil)
	checkOutcome(t, result, appliedOutcome, 2, "")
	if created, removed := s.of("created"), s.of("removed"); len(created) != 1 || len(removed) != 1 {
		t.Errorf("the next apply creates %v and removes %v, want one route each", created, removed)
	}
}

func TestControlsAreOne(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	if got := c.Controls(); len(got) != 1 || got[0].GetName() != "c1" || got[0].GetRole() != "leader" || got[0].GetAddress() != "127.0.0.1:7400" || got[0].GetVersion() != "test" {
		t.Errorf("got %v", got)
	}
}

func TestCollectorTellsEveryState(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c.Collector())
	read := func() map[string]float64 {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := strings.TrimPrefix(f.GetName(), "pyserve_control_")
				for _, l := range m.GetLabel() {
					name += " " + l.GetValue()
				}
				out[name] = m.GetGauge().GetValue()
			}
		}
		return out
	}
	if got := read(); got["revision"] != 0 || got["converged"] != 0 || got["leads"] != 1 || got["controls"] != 1 || got["disk_writable"] != 1 || len(got) != 11 {
		t.Errorf("before the first apply: %v", got)
	}
	join(t, c, &fleettest.Node{Name: "n1"})
	applied(t, c, document(1))
	if got := read(); got["revision"] != 1 || got["converged"] != 1 || got["nodes ready"] != 1 || got["nodes joining"] != 0 {
		t.Errorf("after it: %v", got)
	}
}

// TestANodeThatWasNotHeardOfSinceAStartIsShownForADay, which is as long as control can know that it is away.
func TestANodeThatWasNotHeardOfSinceAStartIsShownForADay(t *testing.T) {
	clock := newClock()
	o := optionsFor(t.TempDir())
	o.Now = clock.Now
	c := start(t, o)
	for _, n := range []store.Node{{Name: "n1", Enrolled: clock.Now()}, {Name: "n2", Enrolled: clock.Now(), Left: true}} {
		if err := c.store.PutNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		later time.Duration
		shown []string
	}{{0, []string{"n1", "n2"}}, {2 * time.Hour, []string{"n1"}}, {23 * time.Hour, nil}} {
		clock.turn(step.later)
		var names []string
		for _, row := range c.Status().GetNodes() {
			names = append(names, row.GetName())
			if row.GetSince() != nil || row.GetRevision() != 0 || row.GetDigest() != "" {
				t.Errorf("it is said to be %v", row)
			}
		}
		if !slices.Equal(names, step.shown) {
			t.Errorf("after %s more: %v, want %v", step.later, names, step.shown)
		}
	}
}
