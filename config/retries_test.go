package config

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func retriesOf(t *testing.T, section string) (*resourcev1.Retries, string) {
	t.Helper()
	out, problems := parse([]byte(routeEntry("retries: "+section)), nil, today)
	if out == nil {
		return nil, joined(problems)
	}
	return out.Routes["/"].GetRetries(), joined(problems)
}

func TestRetries(t *testing.T) {
	for section, want := range map[string]*resourcev1.Retries{
		"{}":               defaultRetries(),
		"{on: }":           defaultRetries(),
		"{attempts: 0}":    {ConnectFailure: true, Statuses: []uint32{502, 503, 504}, BudgetPercent: 20},
		"{on: [503, 429]}": {Attempts: 2, Statuses: []uint32{429, 503}, BudgetPercent: 20},
		"{on: [connect_failure], per_try_timeout: 0s, budget_percent: 0}": {Attempts: 2, ConnectFailure: true},
		"{attempts: 10, on: [503, connect_failure], per_try_timeout: 5s, budget_percent: 1000}": {
			Attempts: 10, ConnectFailure: true, Statuses: []uint32{503}, PerTryTimeout: durationpb.New(5 * time.Second), BudgetPercent: 1000,
		},
	} {
		if got, problems := retriesOf(t, section); !proto.Equal(got, want) || problems != "" {
			t.Errorf("%s is %v %s, want %v", section, got, problems, want)
		}
	}
	if got, _ := retriesOf(t, "\n"); got == nil {
		t.Error("an empty section is none")
	}
}

func TestRetriesProblems(t *testing.T) {
	for section, want := range map[string]string{
		"{attempts: 11}":         "11 is out of range: write a whole number from 0 to 10",
		"{on: [200]}":            "200 is out of range: write a whole number from 400 to 599",
		"{on: [conect_failure]}": "did you mean connect_failure?",
		"{on: 503}":              "write a list such as [connect_failure, 503]",
		"{on: []}":               "nothing is tried again, as with attempts: 0",
		"{on: [503, 503]}":       "503 stands here twice",
		"{per_try_timeout: 5}":   `write "5s" for seconds`,
		"{per_try_timeout: 1us}": "or 0s for no limit",
		"{budget_percents: 20}":  "did you mean budget_percent?",
		"{budget_percent: 1001}": "from 0 to 1000",
		"2":                      "write a mapping such as {attempts: 2, on: [connect_failure, 503]}",
	} {
		if _, problems := retriesOf(t, section); !strings.Contains(problems, want) {
			t.Errorf("%s: %q does not say %q", section, problems, want)
		}
	}
}
