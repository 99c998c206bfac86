package config

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

// FuzzParse: whatever the bytes, Parse ends, gives resources or an error but never both or neither, and gives the same
// the next time.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*/*.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds (%v)", err)
	}
	for _, seed := range append(seeds, "testdata/unused.yaml") {
		document, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(document)
	}
	f.Add([]byte("a: &a [*a]\n<<: *a\n"))
	f.Add([]byte("server: {reverse_proxy: [&e {path: '^/x', match: regex, hosts: ['*.a']}, {<<: *e, health_check: {type: http, expected_status: '200,3-4'}}]}"))
	for _, timeouts := range []string{
		"{connect: 1s, response_header: 0s, idle: 1h, request: 30s, websocket_idle: 0s}",
		"{connect: 5s, response_header: 60s, idle: 60s, request: 0s, websocket_idle: 1h}",
		"{connect: 10m1ns, idle: 1us, request: -1s, websocket_idle: 9999999h}",
	} {
		f.Add([]byte(routeEntry("timeouts: " + timeouts)))
	}
	for _, conditions := range []string{
		"{methods: [GET, M-SEARCH], headers: {X-A: {regex: '^a'}, x-a: 1}, query: {'a b': {present: no}}}",
		"{headers: {Host: a, ' ': b, X-B: {present: true, regex: '('}}, query: [], methods: {}}",
	} {
		f.Add([]byte(routeEntry(conditions)))
	}
	for _, policies := range []string{
		`{path: "^/(?P<x>.)", match: regex, request_headers: {set: {Host: "{host}", A: "{x}{{"}, add: {B: [c, "{query}"]}, remove: [D]}}`,
		`{response_headers: {set: {A: "{path}"}}, redirect: {to: "https://{host}:1{path}?{query}#a", status: 301}}`,
		`{path: "(?P<path>.)", match: regex, redirect: {to: "{path}"}, hosts: [a]}`,
		`{respond: {status: 599, body: "{", content_type: a/b}, max_body_bytes: 1099511627776}`,
	} {
		f.Add([]byte(routeEntry(policies)))
	}
	f.Add([]byte("server: {proxy_protocol: true, trusted_proxies: [::1], reverse_proxy: [{}]}"))
	for _, locations := range []string{
		`{"=/a": {return: 204}, "~^/v(?P<n>[0-9]+)/": {proxy_pass: "http://b/{n}", headers: ["A: {n}"]}, "^~/c/": {proxy_pass: "https://c/d"}, "/e": {root: ./e}}`,
		`{"=/a": {return: "301 /b"}, "~*\\.js$": {proxy_pass: "http://b:1/x"}, "__default__": {proxy_pass: "http://b:1", timeout: 0.5, cache_control: no-cache}}`,
	} {
		f.Add([]byte("extensions: [{type: routing, config: {regex_locations: " + locations + "}}]"))
	}
	files := memory(map[string][]byte{"./ssl/cert.pem": []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")})
	f.Fuzz(func(t *testing.T, document []byte) {
		if len(document) > 64<<10 {
			return // no new paths, only slower
		}
		resources, problems := parse(document, files, today)
		if (resources == nil) != problems.HasErrors() {
			t.Fatalf("resources are nil: %v, problems:\n%s", resources == nil, joined(problems))
		}
		if len(problems) > MaxProblems+1 {
			t.Fatalf("%d problems", len(problems))
		}
		for _, p := range problems {
			if p.Line < 1 || p.Message == "" {
				t.Fatalf("a problem without line or message: %+v", p)
			}
		}
		checkTimeouts(t, resources)
		again, problemsAgain := parse(document, files, today)
		if joined(problems) != joined(problemsAgain) {
			t.Fatalf("problems differ:\n%s\nand:\n%s", joined(problems), joined(problemsAgain))
		}
		if changes := Diff(resources, again); changes != nil {
			t.Fatalf("differs from itself:\n%s", told(changes))
		}
	})
}

// checkTimeouts: every route's timeouts are within their bounds and written in the one form that they have.
func checkTimeouts(t *testing.T, r *Resources) {
	t.Helper()
	if r == nil {
		return
	}
	limited := func(d time.Duration) bool { return d == 0 || d >= leastLimit && d <= mostLimit }
	for name, route := range r.Routes {
		got := TimeoutsOf(route)
		if got.Connect < leastLimit || got.Connect > mostConnect || !limited(got.ResponseHeader) || !limited(got.Idle) ||
			!limited(got.Request) || !limited(got.WebSocketIdle) {
			t.Fatalf("%s has timeouts out of their bounds: %+v", name, got)
		}
		if !proto.Equal(got.resource(), route.Timeouts) {
			t.Fatalf("%s: %v is written as %v", name, route.Timeouts, got.resource())
		}
	}
}

// FuzzPath: the normal form of a path is its own normal form, and so is accepted where it is told to be written.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"/a/../b", "/%41%2f", "//", "/a/%2e%2e/", "/é", "/%"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if path == "" || path[0] != '/' {
			return
		}
		normal, err := normalPath(path)
		if err != nil {
			return
		}
		if again, err := normalPath(normal); err != nil || again != normal {
			t.Fatalf("%q became %q and then %q (%v)", path, normal, again, err)
		}
	})
}
