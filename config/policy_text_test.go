package config

import (
	"slices"
	"testing"
)

func TestPoliciesAreToldALineForEachKey(t *testing.T) {
	const timeouts = "timeouts: connect 5s, response_header 1m, idle 1m, request no limit, websocket_idle 1h"
	const once = "retries: once, where nothing of an answer has come and the request may be repeated"
	for entry, want := range map[string][]string{
		"port: 1": {timeouts, once},
		"retries: {attempts: 0}\ntimeouts: {idle: 0s, request: 90s}": {
			"timeouts: connect 5s, response_header 1m, idle no limit, request 1m30s, websocket_idle 1h", "retries: never"},
		"retries: {attempts: 2, on: [connect_failure, 503]}\nrate_limit: {requests: 5}\nmax_body_bytes: 7\nsticky: {}\nload_balancing: {policy: maglev}": {
			"rate_limit: requests 5, per 1s, burst 5, key client_ip, scope node", "max_body_bytes: 7", timeouts,
			"retries: attempts 2, connect_failure true, statuses [503], budget_percent 20", `sticky: cookie "pyserve_backend"`,
			"load_balancing: policy maglev, hash_on client_ip"},
		"redirect: {to: /a}\nmax_body_bytes: 7": {"max_body_bytes: 7"},
	} {
		r := mustParse(t, routeEntry(entry), nil)
		if got := PoliciesOf(r.Routes["/"], r.Pools["/"]); !slices.Equal(got, want) {
			t.Errorf("%s\ngot  %q\nwant %q", entry, got, want)
		}
	}
}
