package config

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func TestPoliciesAreComparedFieldByField(t *testing.T) {
	before := &resourcev1.Retries{Attempts: 1, ConnectFailure: true, Statuses: []uint32{502}}
	after := &resourcev1.Retries{Attempts: 2, ConnectFailure: true, Statuses: []uint32{502, 503}, PerTryTimeout: durationpb.New(5 * time.Second)}
	for _, c := range []struct {
		name string
		got  []string
		want []string
	}{
		{"none", policyDetails("retries", (*resourcev1.Retries)(nil), (*resourcev1.Retries)(nil)), nil},
		{"the same", policyDetails("retries", before, before), nil},
		{"new", policyDetails("retries", nilRetries(), before), []string{"retries: attempts 1, connect_failure true, statuses [502]"}},
		{"gone", policyDetails("retries", before, nilRetries()), []string{"retries: removed"}},
		{"changed", policyDetails("retries", before, after), []string{
			"retries: attempts 1 → 2", "retries: statuses [502] → [502; 503]", "retries: per_try_timeout none → 5s"}},
		{"a time", policyDetails("slow_start", durationpb.New(time.Second), durationpb.New(time.Minute)), []string{"slow_start: 1s → 1m"}},
		{"an enum", policyDetails("load_balancing", (*resourcev1.LoadBalancing)(nil),
			&resourcev1.LoadBalancing{Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_P2C_EWMA}), []string{"load_balancing: policy p2c_ewma"}},
		{"fields", policyDetails("request_headers", (*resourcev1.FieldEdits)(nil),
			&resourcev1.FieldEdits{Set: []*resourcev1.Field{{Name: "x-a", Value: "b c"}}, Remove: []string{"x-d"}}),
			[]string{`request_headers: set [name "x-a", value "b c"], remove ["x-d"]`}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, c.got, c.want)
		}
	}
}

func nilRetries() *resourcev1.Retries { return nil }
