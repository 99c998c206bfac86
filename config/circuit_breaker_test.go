package config

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func TestCircuitBreaker(t *testing.T) {
	for written, want := range map[string]*resourcev1.CircuitBreaker{
		"{}":                  nil,
		"{max_requests: 100}": {MaxRequests: 100},
		"{max_connections: 0, max_requests: 0, max_pending: 0}":                               nil,
		"{max_connections: 10, max_pending: 5}":                                               {MaxConnections: 10, MaxPending: 5, PendingTimeout: durationpb.New(5 * time.Second)},
		"{max_connections: 10, max_requests: 1000000, max_pending: 5, pending_timeout: 20ms}": {MaxConnections: 10, MaxRequests: 1000000, MaxPending: 5, PendingTimeout: durationpb.New(20 * time.Millisecond)},
	} {
		if got := mustParse(t, routeEntry("circuit_breaker: "+written), nil).Pools["/"].GetCircuitBreaker(); !proto.Equal(got, want) {
			t.Errorf("%s: %v, want %v", written, got, want)
		}
	}
}

func TestCircuitBreakerProblems(t *testing.T) {
	const at = "3: server.reverse_proxy[0].circuit_breaker"
	for written, want := range map[string]string{
		"5":                       `: "5" stands here: write a mapping such as {max_requests: 1000, max_pending: 100}`,
		"{max_requests: -1}":      ".max_requests: -1 is out of range: write a whole number from 0 to 1000000",
		"{max_connections: many}": `.max_connections: "many" stands here: write a whole number from 0 to 1000000`,
		"{max_requests: 1, max_pending: 1, pending_timeout: 0s}": `.pending_timeout: "0s" is out of range: write a time from 1ms to 1h`,
		"{max_request: 1}":                       ".max_request: unknown key: did you mean max_requests?",
		"{max_pending: 1}":                       ".max_pending: warning: is not used: nothing waits where neither max_connections nor max_requests is a limit",
		"{max_requests: 1, pending_timeout: 1s}": ".pending_timeout: warning: is not used: max_pending is 0, so no request waits",
	} {
		wantProblems(t, routeEntry("circuit_breaker: "+written), nil, at+want)
	}
}
