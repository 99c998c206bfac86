package config

import (
	"fmt"
	"strings"
	"testing"
)

func TestRouteNames(t *testing.T) {
	for entry, want := range map[string]string{
		"path: /api":                  "/api",
		"path: /api/":                 "/api",
		"{}":                          "/",
		"path: /":                     "/",
		"{path: /api, match: exact}":  "= /api",
		"{path: /api/, match: exact}": "= /api/",
		"{path: ^/x$, match: regex}":  "~ ^/x$",
		"{path: /api, hosts: [b.example.com, A.example.com]}":     "a.example.com,b.example.com /api",
		"{path: /api, match: exact, hosts: ['*.x.com', '[::1]']}": "*.x.com,::1 = /api",
		"path: /to/http://x":    "/to/http://x",
		"path: /a//b":           "/a//b",
		"path: /a%2Fb":          "/a%2Fb",
		"path: /:@!$&'()*+,;=~": "/:@!$&'()*+,;=~",
	} {
		r := mustParse(t, routeEntry(entry), nil)
		if got := strings.Join(names(r.Routes), "|"); got != want {
			t.Errorf("%s: got %q, want %q", entry, got, want)
		}
		if route := r.Routes[want]; route != nil && (route.Pool != want || r.Pools[want] == nil) {
			t.Errorf("%s: the pool is %q of %q", entry, route.Pool, names(r.Pools))
		}
	}
}

func TestPathsInAnotherForm(t *testing.T) {
	const refused = " is not in the form that requests are matched in: write "
	for path, want := range map[string]string{
		"":                                     `nothing stands here: write a path that begins with "/"`,
		"api":                                  `"api" does not begin with "/": write "/api"`,
		"~ ^/x":                                `"~ ^/x" does not begin with "/": for a regular expression write match: regex and the expression as path`,
		"http://x/a":                           `"http://x/a" is a URL: write its path alone, such as "/api"`,
		"/a?b=c":                               `"/a?b=c" has more than a path: write "/a"`,
		"/a#b":                                 `"/a#b" has more than a path: write "/a"`,
		"/a/../b":                              `"/a/../b"` + refused + `"/b"`,
		"/a/./b":                               `"/a/./b"` + refused + `"/a/b"`,
		"/a/%2e%2E/b":                          `"/a/%2e%2E/b"` + refused + `"/b"`,
		"/a/..":                                `"/a/.."` + refused + `"/"`,
		"/a/b/..":                              `"/a/b/.."` + refused + `"/a"`,
		"/..":                                  `"/.." climbs above "/": write it without ".."`,
		"/%41":                                 `"/%41"` + refused + `"/A"`,
		"/%2f":                                 `"/%2f"` + refused + `"/%2F"`,
		"/a b":                                 `"/a b"` + refused + `"/a%20b"`,
		"/café":                                `"/café"` + refused + `"/caf%C3%A9"`,
		`/a\b`:                                 `"/a\\b"` + refused + `"/a%5Cb"`,
		"/100%":                                `"/100%" has a "%" that is no percent-encoding: write %25 for a percent sign`,
		"/%zz":                                 `"/%zz" has a "%" that is no percent-encoding: write %25 for a percent sign`,
		"/a//":                                 `"/a/"` + refused + `"/a"`,
		"/a\tb":                                `"/a\tb" has a control character: leave it out`,
		"/" + strings.Repeat("a", longestPath): fmt.Sprintf("the path has %d bytes: write at most %d", longestPath+1, longestPath),
	} {
		if got, err := checkPath(path, true); err == nil || err.Error() != want {
			t.Errorf("%q gave %q, %v\nwant %s", path, got, err, want)
		}
	}
	wantProblems(t, routeEntry("path: /api/*"), nil,
		`3: server.reverse_proxy[0].path: warning: "*" stands for itself here: a prefix such as "/api" is for everything below it`)
}

func TestNormalFormOfAPathIsItsOwn(t *testing.T) {
	for _, path := range []string{"/a/../b", "/a//../b", "/%41%2f%7e", "/a/./", "/a/b/../..", "//", "/..a", "/a b|c"} {
		normal, err := normalPath(path)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := normalPath(normal); err != nil || again != normal {
			t.Errorf("%q became %q and then %q (%v)", path, normal, again, err)
		}
	}
}

func TestRegularExpressions(t *testing.T) {
	const path = "3: server.reverse_proxy[0].path: "
	for _, test := range []struct{ entry, want string }{
		{"{match: regex, path: '('}", path + `"(" is not a regular expression (RE2): missing closing ) in "("`},
		{"{match: regex, path: '(?=a)'}", path + `"(?=a)" is not a regular expression (RE2): invalid or unsupported Perl syntax in "(?="`},
		{"{match: regex, path: ''}", path + `nothing stands here: write an expression such as "^/v[0-9]+/"`},
		{"{match: regex}", `3: server.reverse_proxy[0].match: match: regex needs an expression: write path, such as path: "^/v[0-9]+/"`},
		{"{match: regex, path: '" + strings.Repeat("x{999}", 11) + "'}", path + `"x{999}x{999}x{999}x{999}x{999}x{999}x{999}x{999}x{999}x{999}x{999}" stands for more than 10000 steps: write smaller repetitions`},
		{`{match: regex, path: "a\nb"}`, path + `"a\nb" has a control character: write it as an escape such as \n`},
		{"{match: regex, path: '" + strings.Repeat("a", 1025) + "'}", path + "the expression has 1025 bytes: write at most 1024"},
		{"{match: regex, path: ^/x, strip_path: true}", "3: server.reverse_proxy[0].strip_path: a regular expression cannot be stripped from a path: write strip_path: false, or leave it out"},
		{"{match: regexp, path: ^/x}", `3: server.reverse_proxy[0].match: "regexp" is not known here: did you mean regex?`},
	} {
		_, problems := Parse([]byte(routeEntry(test.entry)), nil)
		if !strings.Contains(joined(problems), test.want) {
			t.Errorf("%s gave\n%s\nwant\n%s", test.entry, joined(problems), test.want)
		}
	}
}

func TestRegexOrderIsThatOfTheDocument(t *testing.T) {
	r := mustParse(t, `
server:
  reverse_proxy:
    - {match: regex, path: z, port: 1}
    - {path: /a}
    - {match: regex, path: a}
    - {match: regex, path: z, port: 2}
    - {match: regex, path: m, strip_path: false}
`, nil)
	for name, want := range map[string]uint32{"~ z": 1, "~ a": 2, "~ m": 3, "/a": 0} {
		if got := r.Routes[name]; got.Order != want || got.StripPath != (want == 0) {
			t.Errorf("%s: order %d, strip_path %v", name, got.Order, got.StripPath)
		}
	}
}

func TestHosts(t *testing.T) {
	const host = "3: server.reverse_proxy[0].host: "
	for written, want := range map[string]string{
		"http://x:3000":         `"http://x:3000" is more than a host: write host: x and port: 3000`,
		"https://x":             `"https://x" is more than a host: write host: x and port: 443 and ssl: true`,
		"https://X.com/api":     `"https://X.com/api" is more than a host: write host: x.com and port: 443 and ssl: true`,
		"wss://x:9":             `"wss://x:9" is more than a host: write host: x and port: 9 and ssl: true`,
		"x:3000":                `"x:3000" is more than a host: write host: x and port: 3000`,
		"x/api":                 `"x/api" is more than a host: write host: x`,
		"'[::1]:80'":            `"[::1]:80" is more than a host: write host: ::1 and port: 80`,
		"x:99999":               `"x:99999" is not a host: write a host name or an IP address, without scheme, port or path`,
		"'::zz'":                `"::zz" is not a host: write a host name or an IP address, without scheme, port or path`,
		"10.0.0.256":            `"10.0.0.256" is not an IPv4 address: write four numbers from 0 to 255`,
		"10.0":                  `"10.0" is not an IPv4 address: write four numbers from 0 to 255`,
		"fe80::1%eth0":          `"fe80::1%eth0" has a zone, which means something else on every machine: write an address without %eth0`,
		"a..b":                  `"a..b" is not a host name: write something on both sides of each dot`,
		"-a":                    `"-a" is not a host name: no part of it may begin or end with "-"`,
		"a b":                   `"a b" is not a host name: write letters, digits, hyphens and dots`,
		"example.com.":          `"example.com." is not a host name: write it without the dot at its end, "example.com"`,
		"bücher.de":             `"bücher.de" is not a host name: write international names in their ASCII form, which begins with xn--`,
		"''":                    `nothing stands here: write a host name or an IP address`,
		strings.Repeat("a", 64): fmt.Sprintf("%q is not a host name: write at most 63 characters between dots", strings.Repeat("a", 64)),
	} {
		wantProblems(t, routeEntry("host: "+written), nil, host+want)
	}
	for written, want := range map[string]string{
		"'[2001:DB8::1]'": "2001:db8::1", "'2001:db8:0::1'": "2001:db8::1", "10.0.0.1": "10.0.0.1", "API.Internal": "api.internal", "my_service": "my_service", "localhost": "localhost",
	} {
		r := mustParse(t, routeEntry("host: "+written), nil)
		if got := r.Pools["/"].Backends[0].Host; got != want {
			t.Errorf("%s became %q, want %q", written, got, want)
		}
	}
	wantProblems(t, "server: {host: '*', reverse_proxy: [{}]}", nil, `1: server.host: "*" is not an address: write 0.0.0.0 for every IPv4 address, or "::" for every address`)
	wantProblems(t, "server: {host: '0.0.0.0:80', reverse_proxy: [{}]}", nil, `1: server.host: "0.0.0.0:80" is more than a host: write host: 0.0.0.0 and port: 80`)
}

func TestHostPatterns(t *testing.T) {
	for written, want := range map[string]string{
		"'*'":            `"*" is every host: leave hosts out`,
		"'a.*.com'":      `"a.*.com" has a "*" elsewhere than at its beginning: write "*.example.com" or the whole name`,
		"'*example.com'": `"*example.com" has a "*" elsewhere than at its beginning: write "*.example.com" or the whole name`,
		"'*.*.com'":      `"*.*.com" is not a host pattern: write letters, digits, hyphens and dots`,
		"'*.'":           `"*." is not a host pattern: write something on both sides of each dot`,
		"a.com:80":       `"a.com:80" is more than a host: write a.com`,
		"https://a.com/": `"https://a.com/" is more than a host: write a.com`,
		"true":           `"true" stands here: write a host such as api.example.com or "*.example.com"`,
	} {
		wantProblems(t, routeEntry("hosts: ["+written+"]"), nil, "3: server.reverse_proxy[0].hosts[0]: "+want)
	}
	wantProblems(t, routeEntry("hosts: [a.com, A.com]"), nil, `3: server.reverse_proxy[0].hosts[1]: warning: "a.com" stands here twice`)
	wantProblems(t, routeEntry("hosts: ["+strings.Repeat("a.com,", maxHosts)+"b.com]")+"", nil, manyTwice(maxHosts)...)
}

// manyTwice are the warnings of one host that stands n times.
func manyTwice(n int) []string {
	var want []string
	for i := 1; i < n; i++ {
		if i <= MaxProblems {
			want = append(want, fmt.Sprintf(`3: server.reverse_proxy[0].hosts[%d]: warning: "a.com" stands here twice`, i))
		}
	}
	return append(want, fmt.Sprintf("3: warning: and %d more warnings not shown here", n-1-MaxProblems))
}

func TestTrustedProxies(t *testing.T) {
	for written, want := range map[string]string{
		"10.0.0.1/8":  `"10.0.0.1/8" has an address inside of the network: write 10.0.0.0/8, or the address alone`,
		"10.0.0.0/33": `"10.0.0.0/33" is not a network: write one such as 10.0.0.0/8 or fd00::/8, or an address`,
		"example.com": `"example.com" is not a network: write one such as 10.0.0.0/8 or fd00::/8, or an address`,
		"''":          `"" is not a network: write one such as 10.0.0.0/8 or fd00::/8, or an address`,
	} {
		wantProblems(t, "server: {trusted_proxies: ["+written+"], reverse_proxy: [{}]}", nil, "1: server.trusted_proxies[0]: "+want)
	}
}

func TestEntriesOfOneRouteArePutTogether(t *testing.T) {
	r := mustParse(t, `
server:
  reverse_proxy:
    - {path: /api, host: a, health_check: {type: http, path: /up}}
    - {path: /other, host: x}
    - {path: /api/, host: b, strip_path: false}
    - path: /api
      backends:
        - {host: c, weight: 3}
        - {host: d, weight: 0, ssl: true, port: 443}
    - {path: /api, match: exact, host: e}
    - {path: /api, hosts: [v.com, w.com], host: f}
    - {path: /api, hosts: [w.com, v.com], host: g}
`, nil)
	want := `/api -> a:80, b:80, c:80 weight 3, d:443 weight 0 ssl (path kept)
/other -> x:80
= /api -> e:80
v.com,w.com /api -> f:80, g:80`
	if got := outline(r); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if r.Pools["/api"].HealthCheck.Path != "/up" {
		t.Error("the health check of one entry is not that of the route")
	}
	if r.Pools["/api"].Tls == nil || r.Pools["/other"].Tls != nil {
		t.Error("tls is there where a backend speaks it, and only there")
	}
}

func TestEntriesOfOneRouteMustAgree(t *testing.T) {
	files := sslFiles(t)
	for key, values := range map[string][2]string{
		"strip_path":    {"true", "false"},
		"preserve_host": {"true", "false"},
		"health_check":  {"{interval: 1s}", "{interval: 2s}"},
		"timeouts":      {"{connect: 1s}", "{connect: 5s}"},
		"tls":           {"{ca_file: ./ca.pem}", "{server_name: x}"},
	} {
		document := fmt.Sprintf("server:\n  reverse_proxy:\n    - {path: /a, host: a, port: 1, ssl: true, %s: %s}\n    - {path: /a, host: b, port: 1, ssl: true, %s: %s}\n", key, values[0], key, values[1])
		wantProblems(t, document, files, fmt.Sprintf("4: server.reverse_proxy[1].%s: is different on line 3, in another entry of the same route: write the same in both, or leave one out", key))
	}
	mustParse(t, "server:\n  reverse_proxy:\n    - {path: /a, host: a, health_check: {interval: 1s}}\n    - {path: /a, host: b, health_check: {interval: 1000ms, type: tcp}}\n", nil)
}

func TestHostsThatOverlapAreRefused(t *testing.T) {
	wantProblems(t, `server:
  reverse_proxy:
    - {path: /a, hosts: [x.com, y.com]}
    - {path: /a, hosts: [z.com, y.com]}
    - {path: /a, hosts: ["*.com"]}
    - {path: /a}
`, nil, `4: server.reverse_proxy[1].hosts: "y.com" has a route for /a already, on line 3: write the same hosts in both, or take it out of one`)
}

func TestBackendsTwiceInAPool(t *testing.T) {
	document := "server:\n  reverse_proxy:\n    - {path: /a, host: A}\n    - {path: /a, host: a}\n"
	wantProblems(t, document, nil, "4: server.reverse_proxy[1]: warning: a:80 stands in this route on line 3 too: it is one backend, of weight 2")
	if got := outline(mustParse(t, document, nil)); got != "/a -> a:80 weight 2" {
		t.Errorf("got %s", got)
	}
	wantProblems(t, routeEntry("backends:\n- {host: a, port: 443, ssl: true}\n- {host: a, port: 443}"), nil,
		"5: server.reverse_proxy[0].backends[1]: a:443 stands in this route on line 4 too, once with ssl and once without: keep one of them")
	wantProblems(t, routeEntry("backends:\n- {host: a, weight: 600}\n- {host: a, weight: 600}"), nil,
		"5: server.reverse_proxy[0].backends[1]: a:80 stands in this route on line 4 too, and the weights come to more than 1000: keep one of them")
}

func TestWeights(t *testing.T) {
	wantProblems(t, routeEntry("backends: [{weight: 1001}]"), nil,
		"3: server.reverse_proxy[0].backends[0].weight: 1001 is out of range: write a whole number from 0 to 1000")
	wantProblems(t, routeEntry("backends: [{host: a, weight: 0}, {host: b, weight: 0}]"), nil,
		"3: server.reverse_proxy[0]: warning: every backend has weight 0: every request will be answered 503")
}

func TestBackendsStandInsteadOfHost(t *testing.T) {
	const message = ": stands beside backends, which takes its place: write it there, or leave backends out"
	wantProblems(t, routeEntry("host: a\nport: 1\nssl: false\nbackends: [{host: b}]"), nil,
		"3: server.reverse_proxy[0].host"+message, "4: server.reverse_proxy[0].port"+message, "5: server.reverse_proxy[0].ssl"+message)
}

func TestTLSToPort80IsWarnedOf(t *testing.T) {
	const message = ": warning: TLS to port 80: write port: 443 if that is meant"
	wantProblems(t, routeEntry("ssl: true"), nil, "3: server.reverse_proxy[0].ssl"+message)
	wantProblems(t, routeEntry("backends: [{ssl: true}]"), nil, "3: server.reverse_proxy[0].backends[0].ssl"+message)
}
