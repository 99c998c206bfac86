package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func printEvents(t *testing.T, output string) string {
	t.Helper()
	var out bytes.Buffer
	p := &eventPrinter{settings: &settings{output: output}, out: &out}
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	for _, m := range []*operatorv1.WatchEventsResponse{
		{Events: []*operatorv1.Event{{Sequence: 1, Time: at, Kind: "node-connected", Subject: "n1", Message: "version\x1b v1"}}},
		{Missed: 12, Events: []*operatorv1.Event{{Sequence: 14, Time: at, Kind: "backend-down", Subject: "10.0.0.1:80", Message: "node n1: refused"}}},
	} {
		if err := p.print(m); err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

func TestEventsForPeople(t *testing.T) {
	want := "TIME                  KIND                  SUBJECT                MESSAGE\n" +
		"2026-01-02T03:04:05Z  node-connected        n1                     version  v1\n" +
		"                      missed                                       12 events came faster than they were read\n" +
		"2026-01-02T03:04:05Z  backend-down          10.0.0.1:80            node n1: refused\n"
	if got := printEvents(t, "table"); got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
	if got := printEvents(t, "name"); got != "node-connected\nmissed\nbackend-down\n" {
		t.Errorf("printed %q", got)
	}
}

func TestEventsForPrograms(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(printEvents(t, "json")), "\n")
	if len(lines) != 3 || lines[0] != `{"sequence":1,"time":"2026-01-02T03:04:05Z","kind":"node-connected","subject":"n1","message":"version\u001b v1"}` {
		t.Errorf("printed\n%s", strings.Join(lines, "\n"))
	}
	var e eventOutput
	if err := json.Unmarshal([]byte(lines[1]), &e); err != nil || e.Missed != 12 || e.Kind != "missed" {
		t.Errorf("got %+v, %v", e, err)
	}
	if got := printEvents(t, "yaml"); !strings.HasPrefix(got, "---\nsequence: 1\n") || strings.Count(got, "---\n") != 3 {
		t.Errorf("printed\n%s", got)
	}
}
