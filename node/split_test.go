package node

import (
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// splitBuild is a route "/" in two parts.
func splitBuild(ports ...uint32) *nodetest.Build {
	b := nodetest.NewBuild().Route("/").Route("/ [part 1]", ports[0]).Route("/ [part 2]", ports[1])
	delete(b.Pools, "/")
	delete(b.Routes, "/ [part 1]")
	delete(b.Routes, "/ [part 2]")
	b.Routes["/"].Pool = ""
	b.Routes["/"].Split = []*resourcev1.Part{{Weight: 3, Pool: "/ [part 1]"}, {Weight: 1, Pool: "/ [part 2]"}}
	return b
}

func TestASplitIsCountedByPart(t *testing.T) {
	registry := prometheus.NewRegistry()
	n := newNode(t, Options{Registerer: registry})
	old, canary := newMoody(t, http.StatusOK), newMoody(t, http.StatusTeapot)
	b := splitBuild(old.port, canary.port)
	apply(t, n, 1, b)
	get := func() {
		response, err := http.Get("http://" + n.ListenAddress() + "/")
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
	}
	for range 40 {
		get()
	}
	b.Routes["/"].PreserveHost = true // another route, and the same parts
	apply(t, n, 2, b)
	for range 40 {
		get()
	}
	if old, canary := old.requests.Load(), canary.requests.Load(); old != 60 || canary != 20 {
		t.Errorf("%d and %d requests, want 60 and 20", old, canary)
	}
	// A request is counted when its answer has been sent.
	nodetest.Eventually(t, "all requests are counted by part", func() bool {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			if f.GetName() != "pyserve_part_requests_total" {
				continue
			}
			for _, m := range f.GetMetric() {
				var labels []string
				for _, l := range m.GetLabel() {
					labels = append(labels, l.GetValue())
				}
				got[strings.Join(labels, " ")] = m.GetCounter().GetValue()
			}
		}
		return got["2xx 1 /"] == 60 && got["4xx 2 /"] == 20 && got["2xx 2 /"] == 0
	})
}

func TestASplitsBackendsAreItsRoutes(t *testing.T) {
	n := newNode(t, Options{})
	apply(t, n, 1, splitBuild(3002, 3001))
	var got []string
	for s := range n.EachBackend() {
		got = append(got, s.Route+" "+s.Address)
	}
	if strings.Join(got, ", ") != "/ 127.0.0.1:3001, / 127.0.0.1:3002" {
		t.Error(got)
	}
	if why := n.Why("127.0.0.1:3001").GetEvidence(); len(why) != 1 || why[0].GetRoutes()[0] != "/" {
		t.Error(why)
	}
	a := ask(n, "x", "/y")
	if len(a.GetBackends()) != 2 || !strings.HasSuffix(a.GetReason(), "; of the 2 parts of its split this is for part 1, which has 3 of the weights' 4") &&
		!strings.HasSuffix(a.GetReason(), "; of the 2 parts of its split this is for part 2, which has 1 of the weights' 4") {
		t.Error(a)
	}
}

func TestAPartWithoutAPoolIsRefused(t *testing.T) {
	n := newNode(t, Options{})
	b := splitBuild(3001, 3002)
	b.Routes["/"].Split[1].Pool = "lost"
	if _, err := n.Prepare(release(1), b.Bundle(t)); err == nil || !strings.Contains(err.Error(), `route /: the bundle has no pool "lost"`) {
		t.Error(err)
	}
}

func TestOnlyThePartThatChangesIsMadeAnew(t *testing.T) {
	n := newNode(t, Options{})
	b := splitBuild(3001, 3002)
	first := apply(t, n, 1, b)
	b.Pools["/ [part 2]"].Backends[0].Weight = 2
	second := apply(t, n, 2, b)
	pools := func(g *Generation) (all []any) {
		for _, p := range g.route("/").EachPool {
			all = append(all, p)
		}
		return all
	}
	before, after := pools(first), pools(second)
	if before[0] != after[0] || before[1] == after[1] {
		t.Error("the first part's pool was made anew, or the second's not")
	}
}
