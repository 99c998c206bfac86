package config

import (
	"fmt"
	"strings"
	"testing"
)

const aSplit = `
path: /a
load_balancing: {policy: round_robin}
split:
  - {weight: 95, backends: [{host: a, port: 1}, {host: a, port: 2, weight: 3}]}
  - {weight: 5, backends: [{host: b, port: 1, ssl: true}]}`

func TestASplitIsAPoolForEachPart(t *testing.T) {
	r := mustParse(t, routeEntry(aSplit), nil)
	route := r.Routes["/a"]
	if route.GetPool() != "" || len(route.GetSplit()) != 2 || route.Split[0].Weight != 95 || route.Split[1].Weight != 5 || len(r.Pools) != 2 {
		t.Fatal(route, names(r.Pools))
	}
	var got []string
	for part, pool := range r.PoolsOf(route) {
		for _, b := range pool.GetBackends() {
			got = append(got, fmt.Sprintf("%d %s %d", part, BackendAddress(b), b.Weight))
		}
	}
	if strings.Join(got, ", ") != "1 a:1 1, 1 a:2 3, 2 b:1 1" || r.Pools[route.Split[1].Pool].Tls == nil || r.Pools[route.Split[0].Pool].Tls != nil {
		t.Error(got)
	}
	if weight, part := r.BackendOf(route, "a:2"); weight != 3 || part != 1 {
		t.Error(weight, part)
	}
	if all := r.RouteSummaries()[0].Backends; strings.Join(all, " ") != "a:1 a:2 b:1" {
		t.Error(all)
	}
}

func TestNoRouteHasTheNameOfAPartsPool(t *testing.T) {
	r := mustParse(t, `
server:
  reverse_proxy:
    - {path: ^/a, match: regex, split: [{backends: [{port: 1}]}]}
    - {path: "^/a [part 1]", match: regex, port: 2}
`, nil)
	if len(r.Pools) != 2 || len(r.Routes) != 2 {
		t.Error(names(r.Pools), names(r.Routes))
	}
}

func TestWrongSplitsAreRefused(t *testing.T) {
	for entry, want := range map[string]string{
		"split: []":               "split: no part stands here: write a mapping such as {weight: 95, backends: [{host: 10.0.0.1, port: 8000}]}",
		"split: [{weight: 5}]":    "split[0]: this part has no backends: write a mapping such as {weight: 95, backends: [{host: 10.0.0.1, port: 8000}]}",
		"split: [{wieght: 5}]":    "split[0].wieght: unknown key: did you mean weight?",
		"split: [{weight: 1001}]": "split[0].weight: 1001 is out of range: write a whole number from 0 to 1000",
		"split: [~]":              "split[0]: nothing stands here: write a mapping such as {weight: 95, backends: [{host: 10.0.0.1, port: 8000}]}",
		"{port: 1, split: [{backends: [{port: 2}]}]}":                              "port: stands beside split, which takes its place: leave it out",
		"{respond: {status: 200}, split: [{backends: [{port: 2}]}]}":               "split: stands beside respond, which answers without a backend: leave one of them out",
		"split: [{weight: 0, backends: [{port: 2}]}]":                              "split: warning: every part has weight 0: every request will be answered 503",
		"split: [{backends: [{port: 2, weight: 0}]}]":                              "split[0].backends[0]: warning: every backend of this part has weight 0: the other parts get its requests",
		"split: [{backends: [{port: 2}]}, {backends: [{port: 3}, {port: 2}]}]":     "split[1].backends[1]: localhost:2 stands in part 1 too, on line 3: a backend belongs to one part",
		"split: [" + strings.Repeat("{backends: [{port: 2}]}, ", maxParts) + "{}]": "split[32]: a split has at most 32 parts: write fewer",
	} {
		wantProblems(t, routeEntry(entry), nil, "3: server.reverse_proxy[0]."+want)
	}
	wantProblems(t, "server:\n  reverse_proxy:\n    - {path: /a, port: 1}\n    - {path: /a, split: [{backends: [{port: 2}]}]}\n", nil,
		"4: server.reverse_proxy[1]: is for the same route as the entry on line 3, and a split stands in one entry alone: write all parts there")
}

func TestASplitIsComparedPartByPart(t *testing.T) {
	whole := mustParse(t, routeEntry("{path: /a, host: a, port: 1}"), nil)
	before := mustParse(t, routeEntry("{path: /a, split: [{weight: 95, backends: [{host: a, port: 1}]}, {weight: 5, backends: [{host: b, port: 1}]}]}"), nil)
	after := mustParse(t, routeEntry("{path: /a, split: [{weight: 90, backends: [{host: a, port: 1}]}, {weight: 10, backends: [{host: b, port: 1, weight: 2}, {host: c, port: 1}]}, {backends: [{host: d, port: 1}]}]}"), nil)
	for _, c := range []struct {
		name     string
		old, new *Resources
		want     string
	}{
		{"the same", before, before, ""},
		{"split", whole, before, "backends: - a:1; split: part 1 weight: 95; split: part 1 backends: + a:1; split: part 2 weight: 5; split: part 2 backends: + b:1"},
		{"put together", before, whole, "backends: + a:1; split: part 1 removed; split: part 2 removed"},
		{"shifted", before, after, "split: part 1 weight: 95 → 90; split: part 2 weight: 5 → 10; split: part 2 backends: + c:1; " +
			"split: part 2 backends: b:1 weight 1 → 2; split: part 3 weight: 1; split: part 3 backends: + d:1"},
	} {
		got := ""
		if changes := Diff(c.old, c.new); len(changes) > 0 {
			got = strings.Join(changes[0].Details, "; ")
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
