package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// The rows of TestPolicies that are about which backend is picked.
var balancingPolicies = []policy{
	{
		name: "load_balancing by turn, load and chance",
		document: `
    - {path: /turn, backends: [{$a, weight: 2}, {$b}], load_balancing: {policy: round_robin}}
    - {path: /least, backends: [{$a}, {$b}], load_balancing: {policy: least_request}}
    - {path: /slow, backends: [{$a}, {$b}], slow_start: 30s}
    - {path: /random, backends: [{$a}, {$b}], load_balancing: {policy: random}}
    - {path: /quick, backends: [{$a}, {$b}], load_balancing: {policy: p2c_ewma}}`,
		asks: []ask{{path: "/turn"}, {path: "/slow"}, {path: "/least"}, {path: "/random"}, {path: "/quick"}},
		also: func(t *testing.T, b bench, n *daemon) {
			client := newClient(t, nil, false)
			for path, mostly := range map[string]bool{"/turn": true, "/least": false, "/random": false} {
				by := map[string]int{}
				for range 90 {
					by[get(t, client, "http://"+n.listen+path).seen(t).Backend]++
				}
				if by["a"]+by["b"] != 90 || by["b"] == 0 || mostly && by["a"] != 60 {
					t.Errorf("%s at %s: %v", path, n.name, by)
				}
			}
			for path, want := range map[string]string{"/least": "least_request picks the backend", "/quick": "p2c_ewma picks the backend"} {
				if e := b.explain(0, "GET", path, "--node", n.name); !strings.Contains(e.Reason, want) {
					t.Errorf("%s is explained with %q", path, e.Reason)
				}
			}
		},
	},
	{
		name: "load_balancing by hash",
		document: `
    - {path: /maglev, backends: [{$a}, {$b}, {$c}], load_balancing: {policy: maglev, hash: {on: header, name: X-User}}}
    - {path: /ring, backends: [{$a}, {$b}, {$c}], load_balancing: {policy: ring_hash, hash: {on: path}}}
    - {path: /cookie, backends: [{$a}, {$b}, {$c}], load_balancing: {policy: maglev, hash: {on: cookie, name: user}}}
    - {path: /address, backends: [{$a}, {$b}, {$c}], load_balancing: {policy: ring_hash}}`,
		also: func(t *testing.T, b bench, _ *daemon) {
			client := newClient(t, nil, false)
			at := func(path string, header ...string) string {
				t.Helper()
				var one string
				for _, n := range b.nodes {
					got := get(t, client, "http://"+n.listen+path, header...).seen(t).Backend
					if one != "" && got != one {
						t.Errorf("%s %v is at %s through one node, at %s through another", path, header, one, got)
					}
					one = got
				}
				return one
			}
			used := map[string]map[string]bool{"maglev": {}, "ring": {}, "cookie": {}}
			for i := range 30 {
				used["maglev"][at("/maglev", "X-User", fmt.Sprint("user-", i))] = true
				used["ring"][at(fmt.Sprint("/ring/", i))] = true
				used["cookie"][at("/cookie", "Cookie", fmt.Sprint("theme=dark; user=", i))] = true
			}
			for policy, backends := range used {
				if len(backends) != 3 {
					t.Errorf("%s: 30 clients are at %v", policy, backends)
				}
			}
			if at("/address") != at("/address/else") {
				t.Error("one address is at two backends")
			}
			e := b.explain(0, "GET", "/maglev", "-H", "X-User: user-1")
			if !strings.Contains(e.Reason, "maglev picks "+e.Forward.Host+" by the header x-user") {
				t.Errorf("explained as %+v", e)
			}
		},
	},
	{
		name: "sticky",
		document: `
    - {path: /, backends: [{$a}, {$b}, {$c}], sticky: {cookie: lane, ttl: 1h}}`,
		also: func(t *testing.T, b bench, _ *daemon) {
			client := newClient(t, nil, false)
			for range 3 {
				first := get(t, client, "http://"+b.nodes[0].listen+"/")
				set := first.header.Get("Set-Cookie")
				if !strings.HasPrefix(set, "lane=") || !strings.HasSuffix(set, "; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax") {
					t.Fatalf("Set-Cookie %q", set)
				}
				cookie, _, _ := strings.Cut(set, ";")
				for _, n := range b.nodes {
					for range 3 {
						again := get(t, client, "http://"+n.listen+"/", "Cookie", cookie)
						if got, want := again.seen(t).Backend, first.seen(t).Backend; got != want || again.header.Get("Set-Cookie") != "" {
							t.Errorf("%s: %s after %s, Set-Cookie %q", n.name, got, want, again.header.Get("Set-Cookie"))
						}
					}
				}
			}
			if e := b.explain(0, "GET", "/"); !strings.Contains(e.Reason, "the cookie lane keeps the client there") {
				t.Errorf("explained as %+v", e)
			}
		},
	},
	{
		name: "weight 0",
		document: `
    - {path: /, backends: [{$a, weight: 0}, {$b}]}`,
		asks: []ask{{path: "/", by: "b"}, {path: "/", by: "b"}, {path: "/", by: "b"}},
		also: func(t *testing.T, b bench, _ *daemon) {
			b.backendShows(local(b.backends["a"].port), "draining")
		},
	},
}
