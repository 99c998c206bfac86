package main

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func sampleAt(at time.Duration, requests uint64, routes ...*fleetv1.RouteCounts) *operatorv1.NodeSample {
	return &operatorv1.NodeSample{Sample: &fleetv1.Sample{
		At: durationpb.New(at), Load: &fleetv1.Load{Requests: 3, Tunnels: 4}, Connections: 5, Bounds: []float64{0.001, 0.01},
		All: &fleetv1.Counts{Requests: requests, Buckets: []uint64{requests, 0, 0}}, Routes: routes, RouteCount: uint32(len(routes)),
	}}
}

func routeCounts(name string, requests uint64) *fleetv1.RouteCounts {
	return &fleetv1.RouteCounts{Route: name, Counts: &fleetv1.Counts{Requests: requests, Errors: requests / 2}}
}

func TestTopIsTheDifferenceOfTwoLooks(t *testing.T) {
	before := map[string]*operatorv1.NodeSample{
		"n1": sampleAt(10*time.Second, 100, routeCounts("/a", 50)),
		"n2": sampleAt(10*time.Second, 0, routeCounts("/a", 10)),
		"n3": sampleAt(time.Hour, 1000),
	}
	after := map[string]*operatorv1.NodeSample{
		"n1": sampleAt(12*time.Second, 300, routeCounts("/a", 150), routeCounts("/b", 300)),
		"n2": sampleAt(12*time.Second, 40, routeCounts("/a", 30)),
		"n3": sampleAt(time.Second, 7), // it was started again
		"n4": {Failure: "node n4 went away before it answered"},
	}
	top := topOf(before, after, 10)
	if top.Seconds != 2 || len(top.Nodes) != 4 {
		t.Fatalf("got %+v", top)
	}
	if n1 := top.Nodes[0]; n1.Requests != 100 || n1.InFlight != 3 || n1.WebSockets != 4 || n1.Connections != 5 || n1.P50 != 0.5 || n1.Note != "" {
		t.Errorf("n1 is %+v", n1)
	}
	if n3 := top.Nodes[2]; n3.Requests != 0 || n3.Note == "" {
		t.Errorf("n3 is %+v", n3)
	}
	if n4 := top.Nodes[3]; n4.Note != "node n4 went away before it answered" {
		t.Errorf("n4 is %+v", n4)
	}
	want := []topRoute{{"/b", topRates{Requests: 150, Errors: 75}}, {"/a", topRates{Requests: 60, Errors: 30}}}
	if len(top.Routes) != 2 || top.Routes[0] != want[0] || top.Routes[1] != want[1] {
		t.Errorf("routes are %+v, want %+v", top.Routes, want)
	}
	if one := topOf(before, after, 1).Routes; len(one) != 1 || one[0].Route != "/b" {
		t.Errorf("limited to %+v", one)
	}
}

func TestQuantiles(t *testing.T) {
	bounds := []float64{0.001, 0.01, 0.1}
	for _, tt := range []struct {
		q       float64
		buckets []float64
		want    float64
	}{
		{0.5, []float64{0, 0, 0, 0}, 0},
		{0.5, nil, 0},
		{0.5, []float64{10, 0, 0, 0}, 0.0005},
		{0.99, []float64{50, 50, 0, 0}, 0.00982},
		{0.5, []float64{0, 0, 100, 0}, 0.055},
		{0.99, []float64{0, 0, 0, 5}, 0.1},
	} {
		if got := quantile(tt.q, tt.buckets, bounds); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("%v of %v: %v, want %v", tt.q, tt.buckets, got, tt.want)
		}
	}
}

func TestTopForPeople(t *testing.T) {
	var out strings.Builder
	s := &settings{output: "table"}
	err := s.printTop(&out, topOutput{
		Nodes:  []topNode{{Name: "n1", Connections: 2, topRates: topRates{Requests: 1234.4, Errors: 0.5, Sent: 2.5e6, P50: 0.42, P99: 2500}}},
		Routes: []topRoute{{"/a", topRates{Requests: 3}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"n1    1234   0.5    0", "2.5MB", "0.4ms", "2.5s", "/a     3.0"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, out.String())
		}
	}
}

func TestANodeThatDoesNotAnswerHasNoFigures(t *testing.T) {
	looks := map[string]*operatorv1.NodeSample{"n1": {Failure: "gossip has lost it"}}
	var out bytes.Buffer
	if err := (&settings{output: "table"}).printTop(&out, topOf(looks, looks, 10)); err != nil {
		t.Fatal(err)
	}
	if _, row, _ := strings.Cut(out.String(), "\n"); strings.Contains(strings.TrimPrefix(row, "n1"), "0") || !strings.Contains(row, "gossip has lost it") {
		t.Errorf("printed\n%s", &out)
	}
}
