package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/proto"
)

// outline writes down what is served where, a line for each route.
func outline(r *Resources) string {
	var lines []string
	for _, name := range names(r.Routes) {
		route := r.Routes[name]
		pool := r.Pools[route.Pool]
		var backends []string
		for _, b := range pool.Backends {
			backends = append(backends, describeBackend(backendAddress(b), b))
		}
		line := name + " -> " + strings.Join(backends, ", ")
		if !route.StripPath {
			line += " (path kept)"
		}
		if route.PreserveHost {
			line += " (host kept)"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestDocumentedExamplesMeanWhatTheirPageSays(t *testing.T) {
	tests := map[string]struct {
		want     string
		problems []string
	}{
		"overview": {want: "/api -> localhost:3000\n/socket.io -> example.com:443 ssl\n/ws -> localhost:8080"},
		"http": {want: "/api -> api.internal:8000", problems: []string{
			"7: server.reverse_proxy[0].websocket: warning: is no longer used: upgrades are seen by their headers. Leave it out"}},
		"websocket": {want: "/ws -> ws.example.com:8080", problems: []string{
			"7: server.reverse_proxy[0].websocket: warning: is no longer used: upgrades are seen by their headers. Leave it out"}},
		"ssl":     {want: "/secure -> secure.example.com:443 ssl"},
		"gateway": {want: "/api/v1 -> api.internal:8000\n/api/v2 -> api.internal:8001\n/auth -> auth.internal:3000"},
		"chat": {want: "/ws/chat -> chat.internal:8080\n/ws/notifications -> notifications.internal:8081", problems: []string{
			"6: server.reverse_proxy[0].websocket: warning: is no longer used: upgrades are seen by their headers. Leave it out",
			"10: server.reverse_proxy[1].websocket: warning: is no longer used: upgrades are seen by their headers. Leave it out"}},
		"mixed": {want: "/api -> api.example.com:443 ssl\n/realtime -> ws.example.com:443 ssl", problems: []string{
			"10: server.reverse_proxy[1].websocket: warning: is no longer used: upgrades are seen by their headers. Leave it out"}},
	}
	files := sslFiles(t)
	found, err := filepath.Glob("testdata/pyserve/*.yaml")
	if err != nil || len(found) != len(tests) {
		t.Fatalf("%d examples on disk, %d in the table (%v)", len(found), len(tests), err)
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			document, err := os.ReadFile("testdata/pyserve/" + name + ".yaml")
			if err != nil {
				t.Fatal(err)
			}
			r := mustParse(t, string(document), files)
			if got := outline(r); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
			wantProblems(t, string(document), files, test.problems...)
			if hasTLS := r.Listener.Certificate != ""; hasTLS != (name == "ssl") {
				t.Errorf("clients speak TLS: %v", hasTLS)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	r := mustParse(t, "server:\n  reverse_proxy:\n    - {}\n", nil)
	want := &Resources{
		Listener: &resourcev1.Listener{Host: "0.0.0.0", Port: 8000},
		Routes: map[string]*resourcev1.Route{"/": {
			Path: "/", Match: resourcev1.PathMatch_PATH_MATCH_PREFIX, StripPath: true, Pool: "/",
		}},
		Pools: map[string]*resourcev1.Pool{"/": {
			Backends:    []*resourcev1.Backend{{Host: "localhost", Port: 80, Weight: 1}},
			HealthCheck: defaultHealthCheck(),
		}},
	}
	if !proto.Equal(r.Listener, want.Listener) || !proto.Equal(r.Routes["/"], want.Routes["/"]) || !proto.Equal(r.Pools["/"], want.Pools["/"]) {
		t.Errorf("got %v %v %v", r.Listener, r.Routes, r.Pools)
	}
}

func TestListener(t *testing.T) {
	r := mustParse(t, `
server:
  host: "[::1]"
  port: 8443
  proxy_protocol: off
  trusted_proxies: [fd00::/8, 192.0.2.7, 10.0.0.0/8, "2001:db8::1", 10.0.0.0/8]
  reverse_proxy: [{}]
`, nil)
	want := &resourcev1.Listener{Host: "::1", Port: 8443,
		TrustedProxies: []string{"10.0.0.0/8", "192.0.2.7/32", "2001:db8::1/128", "fd00::/8"}}
	if !proto.Equal(r.Listener, want) {
		t.Errorf("got %v, want %v", r.Listener, want)
	}
}

func TestSectionsOfPyServeThatTheClusterDoesNotUse(t *testing.T) {
	document, err := os.ReadFile("testdata/unused.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const section = "warning: the cluster does not use this section of PyServe"
	const setting = "warning: the cluster does not use this setting of PyServe"
	wantProblems(t, string(document), nil,
		"1: version: warning: the cluster does not use the version: there is one dialect",
		"3: http: "+section,
		"10: server.backlog: "+setting,
		"11: server.default_root: "+setting,
		"12: server.redirect_instructions: "+section,
		"23: logging: "+section+": nodes log as their --log-format and --log-level say",
	)
}

func TestUnknownAndMisplacedKeys(t *testing.T) {
	for _, test := range []struct{ document, want string }{
		{"serevr: {}", "1: serevr: unknown key: did you mean server?"},
		{"Server: {}", "1: Server: unknown key: did you mean server?"},
		{"frobnicate: {}", "1: frobnicate: unknown key: write server, ssl or extensions"},
		{"loging: {}", "1: loging: unknown key: did you mean logging?"},
		{"reverse_proxy: []", "1: reverse_proxy: does not belong here: write it below server"},
		{"server: {ssl: {}}", "1: server.ssl: does not belong here: write it at the top, beside server"},
		{"server: {prot: 1}", "1: server.prot: unknown key: did you mean port?"},
		{"server: {trusted-proxies: []}", "1: server.trusted-proxies: unknown key: did you mean trusted_proxies?"},
		{"server: {'a b': 1}", `1: server."a b": unknown key: write host, port, proxy_protocol, trusted_proxies or reverse_proxy`},
		{"server: {'': 1}", `1: server."": unknown key: write host, port, proxy_protocol, trusted_proxies or reverse_proxy`},
		{"ssl: {certfile: x}", "1: ssl.certfile: unknown key: did you mean cert_file?"},
		{routeEntry("helth_check: {}"), "3: server.reverse_proxy[0].helth_check: unknown key: did you mean health_check?"},
		{routeEntry("timeout: 5s"), "3: server.reverse_proxy[0].timeout: unknown key: did you mean timeouts?"},
		{routeEntry("weight: 5"), "3: server.reverse_proxy[0].weight: does not belong here: write backends, and a weight for each"},
		{routeEntry("backends: [{hots: a}]"), "3: server.reverse_proxy[0].backends[0].hots: unknown key: did you mean host?"},
		{routeEntry("health_check: {intervall: 5s}"), "3: server.reverse_proxy[0].health_check.intervall: unknown key: did you mean interval?"},
		{routeEntry("timeouts: {reponse_header: 5s}"), "3: server.reverse_proxy[0].timeouts.reponse_header: unknown key: did you mean response_header?"},
		{routeEntry("timeouts: {per_try: 5s}"), "3: server.reverse_proxy[0].timeouts.per_try: unknown key: write connect, response_header, idle, request or websocket_idle"},
		{routeEntry("tls: {cafile: x}"), "3: server.reverse_proxy[0].tls.cafile: unknown key: did you mean ca_file?"},
		{routeEntry("load_balancing: {polcy: x}"), "3: server.reverse_proxy[0].load_balancing.polcy: unknown key: did you mean policy?"},
	} {
		wantProblems(t, test.document, nil, test.want)
	}
}

func TestUnknownWords(t *testing.T) {
	const entry = "3: server.reverse_proxy[0]."
	wantProblems(t, routeEntry("load_balancing: {policy: roundrobin}"), nil, entry+`load_balancing.policy: "roundrobin" is not known here: did you mean round_robin?`)
	mustParse(t, routeEntry("max_body_bytes: 0\nload_balancing: {policy: round_robin}"), nil)
}

func TestWrongTypes(t *testing.T) {
	for _, test := range []struct{ document, want string }{
		{"just text", `1: "just text" stands here: write sections, such as server:`},
		{"[1, 2]", "1: a list stands here: write sections, such as server:"},
		{"server: 5", `1: server: "5" stands here: write a mapping with host, port and reverse_proxy`},
		{"server: {port: '80'}", `1: server.port: "80" is text: write 80, without quotes`},
		{"server: {port: eighty}", `1: server.port: "eighty" stands here: write a whole number from 1 to 65535`},
		{"server: {port: 70000}", "1: server.port: 70000 is out of range: write a whole number from 1 to 65535"},
		{"server: {port: 0}", "1: server.port: 0 is out of range: write a whole number from 1 to 65535"},
		{"server: {port: -1}", "1: server.port: -1 is out of range: write a whole number from 1 to 65535"},
		{"server: {port: 99999999999999999999999999}", "1: server.port: 999999999999999999999999… is out of range: write a whole number from 1 to 65535"},
		{"server: {port: 010}", "1: server.port: 010 is not a plain whole number: write a whole number from 1 to 65535"},
		{"server: {port: 0x50}", "1: server.port: 0x50 is not a plain whole number: write a whole number from 1 to 65535"},
		{"server: {port: 80.5}", "1: server.port: 80.5 is not a plain whole number: write a whole number from 1 to 65535"},
		{"server: {port: }", "1: server.port: nothing stands here: write a whole number from 1 to 65535"},
		{"server: {port: [80]}", "1: server.port: a list stands here: write a whole number from 1 to 65535"},
		{"server: {host: true}", `1: server.host: "true" stands here: write a host name or an IP address`},
		{"server: {host: }", "1: server.host: nothing stands here: write a host name or an IP address, or leave the key out"},
		{"server: {host: {}}", "1: server.host: a mapping stands here: write a host name or an IP address"},
		{"server: {proxy_protocol: 'false'}", `1: server.proxy_protocol: "false" is text: write false, without quotes`},
		{"server: {proxy_protocol: 1}", `1: server.proxy_protocol: "1" stands here: write true or false`},
		{"server: {trusted_proxies: 10.0.0.0/8}", `1: server.trusted_proxies: "10.0.0.0/8" stands here: write a list such as [10.0.0.0/8]`},
		{"server: {reverse_proxy: {path: /}}", `1: server.reverse_proxy: a mapping stands here: write a list, in which each route begins with "- "`},
		{"server: {reverse_proxy: [/api]}", `1: server.reverse_proxy[0]: "/api" stands here: write a mapping such as {path: /api, host: localhost, port: 3000}`},
		{"server: {reverse_proxy: [~]}", `1: server.reverse_proxy[0]: nothing stands here: write a mapping such as {path: /api, host: localhost, port: 3000}`},
		{routeEntry("backends: [a:80]"), `3: server.reverse_proxy[0].backends[0]: "a:80" stands here: write a mapping such as {host: 10.0.0.1, port: 8000}`},
		{routeEntry("backends: []"), `3: server.reverse_proxy[0].backends: no backend stands here: write a list such as [{host: 10.0.0.1, port: 8000}]`},
		{routeEntry("hosts: []"), `3: server.reverse_proxy[0].hosts: no host stands here: name one, or leave hosts out for every host`},
		{routeEntry("timeouts: 5s"), `3: server.reverse_proxy[0].timeouts: "5s" stands here: write a mapping such as {connect: 5s, response_header: 60s}`},
		{routeEntry("hosts: a"), `3: server.reverse_proxy[0].hosts: "a" stands here: write a list such as [api.example.com]`},
	} {
		wantProblems(t, test.document, nil, test.want)
	}
}

func TestBooleansOfYAML11(t *testing.T) {
	for written, want := range map[string]bool{"true": true, "yes": true, "On": true, "TRUE": true, "false": false, "no": false, "OFF": false} {
		r := mustParse(t, routeEntry("preserve_host: "+written), nil)
		if got := r.Routes["/"].PreserveHost; got != want {
			t.Errorf("preserve_host: %s was read as %v", written, got)
		}
	}
}

func TestEmptySectionsMeanNothingSet(t *testing.T) {
	const none = "1: warning: no routes: every request will be answered 404"
	for _, document := range []string{"server:\n", "server: {}\n", "server:\n  reverse_proxy:\n", "server:\n  reverse_proxy: []\n", "server: {}\nssl:\n", "{}"} {
		wantProblems(t, document, nil, none)
	}
}

func TestAllProblemsAreToldAtOnce(t *testing.T) {
	wantProblems(t, `server:
  port: 99999
  reverse_proxy:
    - path: api
      host: http://x:3000
      port: "3000"
    - path: /b
      hosts: ["https://b.example.com/x"]
      health_check: {type: http, interval: 5}
ssl:
  enabled: true
`, nil,
		"2: server.port: 99999 is out of range: write a whole number from 1 to 65535",
		`4: server.reverse_proxy[0].path: "api" does not begin with "/": write "/api"`,
		`5: server.reverse_proxy[0].host: "http://x:3000" is more than a host: write host: x and port: 3000`,
		`6: server.reverse_proxy[0].port: "3000" is text: write 3000, without quotes`,
		`8: server.reverse_proxy[1].hosts[0]: "https://b.example.com/x" is more than a host: write b.example.com`,
		`9: server.reverse_proxy[1].health_check.interval: 5 has no unit: write "5s" for seconds (ms, s, m and h are known)`,
		"11: ssl.enabled: TLS needs a certificate: write cert_file, the path of a PEM file",
		"11: ssl.enabled: TLS needs the certificate's key: write key_file, the path of a PEM file",
	)
}

func TestManyProblemsAreCounted(t *testing.T) {
	var document strings.Builder
	document.WriteString("server:\n  reverse_proxy:\n")
	for range 150 {
		document.WriteString("    - {path: x, websocket: true}\n")
	}
	_, problems := Parse([]byte(document.String()), nil)
	if len(problems) != MaxProblems+1 {
		t.Fatalf("%d problems", len(problems))
	}
	if got, want := problems[MaxProblems].String(), "102: and 50 more errors and 150 more warnings not shown here"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !slices.IsSortedFunc(problems, func(a, b Problem) int { return a.Line - b.Line }) {
		t.Error("problems are not sorted by line")
	}
}

func TestWarningsNeverPushErrorsOut(t *testing.T) {
	document := "server:\n  reverse_proxy:\n" + strings.Repeat("    - {path: /a, host: a, weight: 1, websocket: true}\n", 1) +
		strings.Repeat("    - {websocket: true}\n", 300) + "    - {port: 0}\n"
	_, problems := Parse([]byte(document), nil)
	errorLines := []int{}
	for _, p := range problems {
		if !p.Warning {
			errorLines = append(errorLines, p.Line)
		}
	}
	if !slices.Equal(errorLines, []int{3, 304}) {
		t.Errorf("errors on lines %v", errorLines)
	}
}

func TestSameDocumentGivesTheSame(t *testing.T) {
	var document strings.Builder
	document.WriteString("server:\n  reverse_proxy:\n")
	for i := range 200 {
		fmt.Fprintf(&document, "    - {path: /r%d, hosts: [b.example.com, a.example.com], port: %d}\n", i%50, 1000+i)
	}
	first := mustParse(t, document.String(), nil)
	for range 5 {
		again := mustParse(t, document.String(), nil)
		if changes := Diff(first, again); changes != nil {
			t.Fatalf("differs from itself: %v", changes)
		}
	}
}

func TestNamedFiles(t *testing.T) {
	got := NamedFiles([]byte(`
server:
  port: nonsense
  reverse_proxy:
    - {path: /a, ssl: true, tls: {ca_file: ca.pem, cert_file: c.pem, key_file: k.pem}}
    - {path: /b, ssl: true, tls: {ca_file: ca.pem, cert_file: "", key_file: only-key.pem}}
    - {path: no-slash, ssl: true, tls: {ca_file: other.pem}}
ssl: {enabled: true, cert_file: ./ssl/cert.pem, key_file: ./ssl/key.pem}
`))
	want := []string{"ca.pem", "c.pem", "k.pem", "only-key.pem", "other.pem", "./ssl/cert.pem", "./ssl/key.pem"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := NamedFiles([]byte("ssl: {enabled: false, cert_file: a, key_file: b}")); got != nil {
		t.Errorf("files of an ssl section that is off: %q", got)
	}
	if got := NamedFiles([]byte("a: [")); got != nil {
		t.Errorf("files of no YAML: %q", got)
	}
}
