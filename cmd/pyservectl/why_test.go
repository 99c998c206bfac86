package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func sampleWhy() whyOutput {
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	return whyOf(&operatorv1.ExplainBackendResponse{Node: "n4", Revision: 3, Backends: []*fleetv1.Evidence{{
		Status: &fleetv1.BackendStatus{Address: "10.0.0.1:80", State: fleetv1.BackendState_BACKEND_STATE_UNHEALTHY, Reason: "connection\x1b refused", Since: at},
		Routes: []string{"/a", "/b"}, Check: "tcp every 5s", DecidedBy: "majority", Members: 5, Probers: []string{"n1", "n2", "n3"}, Role: "listens",
		Votes: []*fleetv1.Vote{
			{Node: "n1", State: "unhealthy", Reason: "connection refused", Since: at, Age: durationpb.New(1234 * time.Millisecond), Counted: true},
			{Node: "n2", State: "unhealthy", Reason: "connection refused", Since: at, Age: durationpb.New(time.Second), Counted: true},
			{Node: "n3", State: "unsure", Since: at, Age: durationpb.New(2 * time.Second)},
		},
	}}})
}

func TestWhyForPeople(t *testing.T) {
	var out bytes.Buffer
	if err := (&settings{output: "table"}).printWhy(&out, sampleWhy()); err != nil {
		t.Fatal(err)
	}
	want := `backend   10.0.0.1:80
routes    /a, /b
check     tcp every 5s
state     unhealthy: connection  refused
since     2026-01-02T03:04:05Z
decided   by the majority, 2 of 2
probers   n1, n2, n3
node      n4, revision 3, knows 5 nodes, listens

PROBER  SAYS       SINCE                 AGE   COUNTED  REASON
n1      unhealthy  2026-01-02T03:04:05Z  1.2s  yes      connection refused
n2      unhealthy  2026-01-02T03:04:05Z  1s    yes      connection refused
n3      unsure     2026-01-02T03:04:05Z  2s    no
`
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

func TestWhyForPrograms(t *testing.T) {
	var out bytes.Buffer
	s := &settings{output: "json"}
	if err := s.printWhy(&out, sampleWhy()); err != nil {
		t.Fatal(err)
	}
	keys := keysOf(t, out.Bytes())
	for _, key := range []string{"node", "revision", "backends", "address", "routes", "check", "state", "reason", "since", "decided_by", "probers", "votes", "counted", "own", "refused"} {
		if !slices.Contains(keys, key) {
			t.Errorf("the keys are %v, without %s", keys, key)
		}
	}
	out.Reset()
	if err := s.printWhy(&out, whyOf(&operatorv1.ExplainBackendResponse{})); err != nil || !strings.Contains(out.String(), `"backends": []`) {
		t.Errorf("of nothing: %s, %v", out.String(), err)
	}
}

func TestWhyTakesABackend(t *testing.T) {
	for _, args := range [][]string{{"why"}, {"why", "a:1", "b:1"}} {
		if _, _, err := run(t, "", args...); err == nil || errors.Is(err, errNo) {
			t.Errorf("%v: the error is %v, want one of usage", args, err)
		}
	}
}
