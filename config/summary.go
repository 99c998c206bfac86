package config

import (
	"fmt"
	"maps"
	"slices"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

var pathMatches = map[resourcev1.PathMatch]string{
	resourcev1.PathMatch_PATH_MATCH_PREFIX: "prefix",
	resourcev1.PathMatch_PATH_MATCH_EXACT:  "exact",
	resourcev1.PathMatch_PATH_MATCH_REGEX:  "regex",
}

// RouteSummaries are the routes as operators are shown them, sorted by name.
func (r *Resources) RouteSummaries() []*operatorv1.RouteSummary {
	out := make([]*operatorv1.RouteSummary, 0, len(r.Routes))
	for _, name := range slices.Sorted(maps.Keys(r.Routes)) {
		route := r.Routes[name]
		row := &operatorv1.RouteSummary{
			Name: name, Path: route.GetPath(), Match: pathMatches[route.GetMatch()], Hosts: route.GetHosts(),
			StripPath: route.GetStripPath(), PreserveHost: route.GetPreserveHost(), Answer: answerText(route),
			Conditions: ConditionsOf(route).Texts(),
		}
		for _, pool := range r.PoolsOf(route) {
			for _, b := range pool.GetBackends() {
				row.Backends = append(row.Backends, BackendAddress(b))
			}
		}
		out = append(out, row)
	}
	return out
}

// answerText is what the proxy itself answers for a route; empty where its backends do.
func answerText(route *resourcev1.Route) string {
	switch {
	case route.GetRedirect() != nil:
		return fmt.Sprintf("redirect %d %s", route.Redirect.Status, route.Redirect.To)
	case route.GetRespond() != nil:
		return fmt.Sprintf("respond %d", route.Respond.Status)
	}
	return ""
}
