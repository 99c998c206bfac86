package main

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func sampleExplain() explainOutput {
	return explainOf(&operatorv1.ExplainResponse{
		Route: "/api", Reason: "because", Node: "n1", Revision: 3, Part: 2, Policies: []string{"retries: attempts 2", "sticky: cookie \"a\""},
		Forward: &operatorv1.ExplainedForward{Method: "GET", Path: "/users?x=1", Host: "api.internal:8000"},
		Backends: []*operatorv1.ExplainedBackend{
			{Address: "10.0.0.1:8000", State: "healthy"}, {Address: "10.0.0.2:8000", State: "unhealthy", Reason: "connection\x1b refused"},
		},
	})
}

func TestExplainForPeople(t *testing.T) {
	var out bytes.Buffer
	if err := (&settings{output: "table"}).printExplain(&out, sampleExplain()); err != nil {
		t.Fatal(err)
	}
	want := "route     /api\nreason    because\nforward   GET /users?x=1, Host: api.internal:8000\n" +
		"backends  10.0.0.1:8000 healthy\n          10.0.0.2:8000 unhealthy: connection  refused\npolicies  retries: attempts 2\n          sticky: cookie \"a\"\nnode      n1, revision 3\n"
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if err := (&settings{output: "table"}).printExplain(&out, explainOutput{Reason: "no route", Node: "n1"}); err != nil || out.String() != "reason    no route\nnode      n1, revision 0\n" {
		t.Errorf("without a route: %q, %v", out.String(), err)
	}
}

// Programs read these keys; the contract has the first four.
func TestExplainForPrograms(t *testing.T) {
	var out bytes.Buffer
	s := &settings{output: "json"}
	if err := s.printExplain(&out, sampleExplain()); err != nil {
		t.Fatal(err)
	}
	if keys := keysOf(t, out.Bytes()); !slices.Equal(keys, []string{"route", "forward", "method", "path", "host", "headers", "backends", "reason", "status", "node", "revision", "policies", "part"}) {
		t.Errorf("the keys are %v", keys)
	}
	out.Reset()
	if err := s.printExplain(&out, explainOf(&operatorv1.ExplainResponse{})); err != nil || !bytes.Contains(out.Bytes(), []byte(`"forward": null`)) || !bytes.Contains(out.Bytes(), []byte(`"backends": []`)) {
		t.Errorf("of nothing: %s, %v", out.String(), err)
	}
}

func TestExplainTakesAMethodAndAURL(t *testing.T) {
	for _, args := range [][]string{{"explain"}, {"explain", "GET"}, {"explain", "GET", "/", "x"}} {
		if _, _, err := run(t, "", args...); err == nil || errors.Is(err, errNo) {
			t.Errorf("%v: the error is %v, want one of usage", args, err)
		}
	}
}
