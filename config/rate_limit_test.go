package config

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func TestRateLimit(t *testing.T) {
	const byIP, onNode = resourcev1.RateKey_RATE_KEY_CLIENT_IP, resourcev1.RateScope_RATE_SCOPE_NODE
	for written, want := range map[string]*resourcev1.RateLimit{
		"{requests: 5}": {Requests: 5, Per: durationpb.New(time.Second), Burst: 5, Key: byIP, Scope: onNode},
		"{requests: 100, per: 1m, burst: 50, key: client_ip, scope: node}": {
			Requests: 100, Per: durationpb.New(time.Minute), Burst: 50, Key: byIP, Scope: onNode},
		"{requests: 1, key: route}": {Requests: 1, Per: durationpb.New(time.Second), Burst: 1, Key: resourcev1.RateKey_RATE_KEY_ROUTE, Scope: onNode},
		"{requests: 1, key: route, scope: cluster}": {Requests: 1, Per: durationpb.New(time.Second), Burst: 1, Key: resourcev1.RateKey_RATE_KEY_ROUTE,
			Scope: resourcev1.RateScope_RATE_SCOPE_CLUSTER},
		"{requests: 1, key: 'header:X-Api-Key'}": {Requests: 1, Per: durationpb.New(time.Second), Burst: 1,
			Key: resourcev1.RateKey_RATE_KEY_HEADER, Header: "x-api-key", Scope: onNode},
	} {
		if got := mustParse(t, routeEntry("rate_limit: "+written), nil).Routes["/"].GetRateLimit(); !proto.Equal(got, want) {
			t.Errorf("%s: %v, want %v", written, got, want)
		}
	}
}

func TestRateLimitProblems(t *testing.T) {
	const at = "3: server.reverse_proxy[0].rate_limit"
	for written, want := range map[string]string{
		"{}":                                      ": requests is missing: write how many may pass, such as {requests: 100, per: 1s}",
		"{requests: 0}":                           ".requests: 0 is out of range: write a whole number from 1 to 1000000",
		"{requests: 1, per: 1ms}":                 `.per: "1ms" is out of range: write a time from 100ms to 24h`,
		"{requests: 1, key: user}":                `.key: "user" is not known here: write client_ip, route or header:NAME`,
		"{requests: 1, scope: fleet}":             `.scope: "fleet" is not known here: write node or cluster`,
		"{requests: 1, key: 'header:'}":           `.key: "" is not the name of a header field: write header:X-Api-Key, for one`,
		"{requests: 1, key: 'header:a b'}":        `.key: "a b" is not the name of a header field: write header:X-Api-Key, for one`,
		"{requests: 1, per: 24h, burst: 1000000}": ": after a burst of 1000000 it would take more than 720h until as many may pass again: write a smaller burst, or a shorter per",
	} {
		wantProblems(t, routeEntry("rate_limit: "+written), nil, at+want)
	}
}
