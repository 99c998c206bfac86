package node

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node/forward"
	"github.com/pyserve/pyserve/node/health"
	"github.com/pyserve/pyserve/node/route"
	"github.com/pyserve/pyserve/node/upstream"
)

// FuzzAcceptedDocumentsCompile: no node refuses routes that the dialect has let through. An operator would hear of it from every node
// instead of being told a line.
func FuzzAcceptedDocumentsCompile(f *testing.F) {
	seeds, err := filepath.Glob("../config/testdata/*/*.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds (%v)", err)
	}
	for _, seed := range seeds {
		document, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(document)
	}
	for _, routes := range []string{
		`{path: "^/(?P<x>.)", match: regex, headers: {A: {regex: "^a"}, b: ""}, query: {"": {present: true}}, request_headers: {set: {Host: "{host}", A: "{x}{{"}}}`,
		`{path: "^/(?P<x>.)", match: regex, methods: [GET], redirect: {to: "https://{host}:1/{x}?{query}#a"}, hosts: ["*.a", "[::1]"]}`,
		`{split: [{weight: 1, backends: [{port: 1}]}, {backends: [{port: 2}]}], load_balancing: {policy: maglev, hash: {on: cookie, name: x}}, sticky: {}, rate_limit: {requests: 3, per: 100ms}}`,
	} {
		f.Add([]byte("server: {reverse_proxy: [" + routes + "]}"))
	}
	for _, locations := range []string{
		`{"=/a": {return: 204}, "~^/v(?P<n>[0-9]+)/": {proxy_pass: "http://b/{n}", headers: ["A: {n}"]}, "^~/c/": {proxy_pass: "https://c/d"}, "/e": {root: ./e}}`,
		`{'~^/a\Qb': {proxy_pass: "http://b:1/x"}}`,
		`{'~*^/(?s)\.js$': {proxy_pass: "http://b:1/x"}, "__default__": {return: "301 /a{{$host"}}`,
	} {
		f.Add([]byte("extensions: [{type: routing, config: {regex_locations: " + locations + "}}]"))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		if len(document) > 16<<10 {
			return // no new paths, only slower
		}
		resources, _ := config.Parse(document, func(name string) ([]byte, error) {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		})
		if resources == nil {
			return
		}
		if _, err := bundle.Encode(resources); err != nil {
			t.Fatal(err)
		}
		var rules []rule
		for name, r := range resources.Routes {
			var pools []*upstream.Pool
			for _, p := range resources.PoolsOf(r) {
				if err := health.Supports(p.GetHealthCheck()); err != nil {
					t.Fatal(err)
				}
				if err := upstream.Supports(p.GetLoadBalancing()); err != nil {
					t.Fatal(err)
				}
				pools = append(pools, upstream.NewPool(nil, upstream.PoolOptions{Balancing: p.GetLoadBalancing()}))
			}
			made, err := forward.NewRoute(name, r, pools[0])
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			rules = append(rules, ruleOf(r, made))
		}
		if _, err := route.Compile(rules, nil); err != nil {
			t.Fatal(err)
		}
	})
}
