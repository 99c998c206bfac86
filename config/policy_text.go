package config

import (
	"slices"
	"strings"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// PoliciesOf tells what becomes of the requests of a route, with one of its pools, beyond where they go: a line for each key, as in
// "retries: attempts 2, connect_failure true". Timeouts and retries are told where the document says nothing of them, too.
func PoliciesOf(route *resourcev1.Route, pool *resourcev1.Pool) []string {
	limits := slices.Concat(
		policyDetails("rate_limit", (*resourcev1.RateLimit)(nil), route.GetRateLimit()),
		detailUnless(0, true, "max_body_bytes", 0, route.GetMaxBodyBytes()))
	if route.GetRedirect() != nil || route.GetRespond() != nil {
		return limits
	}
	return slices.Concat(limits,
		timeoutsText(TimeoutsOf(route)),
		retriesText(route.GetRetries()),
		policyDetails("sticky", (*resourcev1.Sticky)(nil), route.GetSticky()),
		poolPolicyDetails(nil, pool))
}

func timeoutsText(t Timeouts) []string {
	var parts []string
	for _, f := range timeoutFields {
		parts = append(parts, f.name+" "+limitText(*f.value(&t)))
	}
	return []string{"timeouts: " + strings.Join(parts, ", ")}
}

func retriesText(r *resourcev1.Retries) []string {
	switch {
	case r == nil:
		return []string{"retries: once, where nothing of an answer has come and the request may be repeated"}
	case r.GetAttempts() == 0:
		return []string{"retries: never"}
	}
	return policyDetails("retries", (*resourcev1.Retries)(nil), r)
}
