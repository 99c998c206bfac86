package config

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// routing puts the locations of one extension, which begin at line 5, into a document.
func routing(locations string) string {
	return "extensions:\n  - type: routing\n    config:\n      regex_locations:\n        " +
		strings.ReplaceAll(strings.TrimSpace(locations), "\n", "\n        ") + "\n"
}

// onlyRoute gives the one route of a document, and its backends.
func onlyRoute(t *testing.T, document string) (string, *resourcev1.Route, []string) {
	t.Helper()
	r := mustParse(t, document, nil)
	for name, route := range r.Routes {
		var backends []string
		for _, b := range r.Pools[route.Pool].GetBackends() {
			backends = append(backends, fmt.Sprint(backendAddress(b), " ", b.Tls))
		}
		return name, route, backends
	}
	t.Fatal("no route")
	return "", nil, nil
}

// byOrder are the names of the routes in the order in which they are tried.
func byOrder(r *Resources) []string {
	all := names(r.Routes)
	slices.SortStableFunc(all, func(a, b string) int { return cmp.Compare(r.Routes[a].Order, r.Routes[b].Order) })
	return all
}

func TestLocationsAreTriedInTheOrderOfPyServe(t *testing.T) {
	document, err := os.ReadFile("testdata/v2/routing.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r := mustParse(t, string(document), nil)
	want := []string{"= /health", `~ ^/api/v(?P<version>\d+)/`, `~ (?i)\.(js|css)$`, "~ ^/media/", "~ ^/docs/", "~ ^/"}
	if got := byOrder(r); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWhatOfAFileHasNoCounterpartIsTold(t *testing.T) {
	document, err := os.ReadFile("testdata/v2/routing.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const location = "extensions[0].config.regex_locations."
	const unserved = ": warning: has neither proxy_pass nor return, so what it matches is answered 404"
	wantProblems(t, string(document), nil,
		"1: version: warning: the cluster does not use the version: there is one dialect",
		"6: server.proxy_timeout: warning: the cluster does not use this setting of PyServe: write timeout in a location, or timeouts in a route",
		"12: "+location+"__default__"+unserved,
		"13: "+location+"__default__.spa_fallback: warning: "+noFiles,
		"14: "+location+"__default__.root: warning: "+noFiles,
		"15: "+location+"__default__.index_file: warning: "+noFiles,
		"16: "+location+"__default__.exclude_patterns: warning: "+noFiles,
		"24: "+location+`"~*\\.(js|css)$"`+unserved,
		"25: "+location+`"~*\\.(js|css)$".root: warning: `+noFiles,
		`38: extensions[1].type: warning: the cluster does not use the extension "security" of PyServe`,
		`41: extensions[2].type: warning: the cluster does not use the extension "monitoring" of PyServe`,
		"42: extensions[2].source: warning: other files are not read: write what is in it here",
	)
}

func TestProxyPass(t *testing.T) {
	for location, want := range map[string]struct{ name, forward, backend string }{
		`"~^/a/": {proxy_pass: "http://b:3000"}`:                         {"~ ^/a/", "", "b:3000 false"},
		`"~^/a/": {proxy_pass: "http://b"}`:                              {"~ ^/a/", "", "b:80 false"},
		`"~^/a/": {proxy_pass: "https://B.example.com/"}`:                {"~ ^/a/", "", "b.example.com:443 true"},
		`"~^/a/": {proxy_pass: "http://b:3000{path}"}`:                   {"~ ^/a/", "", "b:3000 false"},
		`"~^/a/": {proxy_pass: "http://[::1]:3000$request_uri"}`:         {"~ ^/a/", "", "[::1]:3000 false"},
		`"~^/a/": {proxy_pass: "http://b/v2"}`:                           {"~ (?:^/a/)(?P<rest>.*)$", "/v2/{rest}", "b:80 false"},
		`"~^/a": {proxy_pass: "http://b/v2/"}`:                           {"~ (?:^/a)(?P<rest>.*)$", "/v2/{rest}", "b:80 false"},
		`"~^/a": {proxy_pass: "http://b/v2"}`:                            {"~ (?:^/a)(?P<rest>.*)$", "/v2{rest}", "b:80 false"},
		`"~*^/(a|b)/": {proxy_pass: "http://b/v2"}`:                      {"~ (?:(?i)^/(a|b)/)(?P<rest>.*)$", "/v2/{rest}", "b:80 false"},
		`"~^/(?P<rest>x)/": {proxy_pass: "http://b/v2"}`:                 {"~ (?:^/(?P<rest>x)/)(?P<rest_>.*)$", "/v2/{rest_}", "b:80 false"},
		`"~^/a|^/b": {proxy_pass: "http://b/v2"}`:                        {"~ (?:^/a|^/b)(?P<rest>.*)$", "/v2{rest}", "b:80 false"},
		`"~/v(?P<n>[0-9]+)/(?P<r>.*)": {proxy_pass: "http://b/{r}/{n}"}`: {"~ /v(?P<n>[0-9]+)/(?P<r>.*)", "/{r}/{n}", "b:80 false"},
		`"~^/a/": {proxy_pass: "http://b/x{path}"}`:                      {"~ ^/a/", "/x{path}", "b:80 false"},
		`"~a": {proxy_pass: "http://b/x/$request_uri"}`:                  {"~ a", "/x{path}", "b:80 false"},
		`"~^/a/": {proxy_pass: "http://b/{path}"}`:                       {"~ ^/a/", "", "b:80 false"},
		`"~^/f/(?P<uri>.*)$": {proxy_pass: "http://b/x$uri"}`:            {"~ ^/f/(?P<uri>.*)$", "/x{path}", "b:80 false"},
		`"=/a": {proxy_pass: "http://b"}`:                                {"= /a", "", "b:80 false"},
		`"=/a": {proxy_pass: "http://b/c"}`:                              {"= /a", "/c", "b:80 false"},
		`"^~/a.b/": {proxy_pass: "http://b/c"}`:                          {`~ (?:^/a\.b/)(?P<rest>.*)$`, "/c/{rest}", "b:80 false"},
		`"/a": {proxy_pass: "http://b"}`:                                 {"~ ^/a", "", "b:80 false"},
		`"__default__": {proxy_pass: "http://b"}`:                        {"~ ^/", "", "b:80 false"},
	} {
		name, route, backends := onlyRoute(t, routing(location))
		if name != want.name || route.ForwardPath != want.forward || !slices.Equal(backends, []string{want.backend}) || route.StripPath {
			t.Errorf("%s\ngot  %s, forwarded as %q to %v, strip_path %v", location, name, route.ForwardPath, backends, route.StripPath)
		}
	}
}

func TestTimeoutOfALocation(t *testing.T) {
	_, route, _ := onlyRoute(t, routing(`"~^/a": {proxy_pass: "http://b", timeout: 1.5}`))
	want := defaultTimeouts
	want.ResponseHeader, want.Idle = 1500e6, 1500e6
	if got := TimeoutsOf(route); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestReturn(t *testing.T) {
	text := func(status uint32, body string) *resourcev1.Route {
		r := &resourcev1.Respond{Status: status, Body: body}
		if body != "" {
			r.ContentType = "text/plain"
		}
		return &resourcev1.Route{Respond: r}
	}
	redirect := func(status uint32, to string) *resourcev1.Route {
		return &resourcev1.Route{Redirect: &resourcev1.Redirect{Status: status, To: to}}
	}
	for written, want := range map[string]*resourcev1.Route{
		`"200 OK"`:                          text(200, "OK"),
		`404`:                               text(404, ""),
		`"204 No Content"`:                  text(204, ""),
		`"503 back at {noon}"`:              text(503, "back at {noon}"),
		`"301 https://example.com/"`:        redirect(301, "https://example.com/"),
		`"302 /new/{id}"`:                   redirect(302, "/new/{id}"),
		`"307 https://$host$request_uri"`:   redirect(307, "https://{host}{path}"),
		`"308 https://example.com/{other}"`: redirect(308, "https://example.com/{{other}"),
	} {
		_, got, backends := onlyRoute(t, routing(`"~^/(?P<id>[0-9]+)": {return: `+written+"}"))
		if len(backends) > 0 || got.Respond.String() != want.Respond.String() || got.Redirect.String() != want.Redirect.String() {
			t.Errorf("%s: got %v, %v and backends %v", written, got.Respond, got.Redirect, backends)
		}
	}
}

func TestHeadersOfALocation(t *testing.T) {
	const headers = `headers: ["A: 1", "B:  {id}{other} $remote_addr", "X-Forwarded-For: $remote_addr", "a: 2"], cache_control: no-cache}`
	set := []*resourcev1.Field{{Name: "a", Value: "2"}, {Name: "B", Value: "{id}{{other} {client_ip}"}}
	cached := &resourcev1.Field{Name: "Cache-Control", Value: "no-cache"}
	forwarded := &resourcev1.Field{Name: "X-Forwarded-For", Value: "{client_ip}"}
	same := func(got *resourcev1.FieldEdits, want ...*resourcev1.Field) bool {
		return slices.EqualFunc(got.GetSet(), want, func(a, b *resourcev1.Field) bool { return a.Name == b.Name && a.Value == b.Value })
	}
	_, route, _ := onlyRoute(t, routing(`"~^/(?P<id>[0-9]+)": {proxy_pass: "http://b", `+headers))
	if !same(route.RequestHeaders, set...) || !same(route.ResponseHeaders, cached) {
		t.Errorf("with proxy_pass: %v and %v", route.RequestHeaders, route.ResponseHeaders)
	}
	_, route, _ = onlyRoute(t, routing(`"~^/(?P<id>[0-9]+)": {return: 200 ok, `+headers))
	if route.RequestHeaders != nil || !same(route.ResponseHeaders, set[0], set[1], cached, forwarded) {
		t.Errorf("with return: %v and %v", route.RequestHeaders, route.ResponseHeaders)
	}
}

func TestProblemsOfLocations(t *testing.T) {
	const back = `{proxy_pass: "http://b"}`
	for location, want := range map[string]string{
		`"~^/(?!admin)": ` + back:                                        `"~^/(?!admin)": "^/(?!admin)" looks around, which RE2 cannot: match what is meant itself, or give what is not meant a location of its own before this one`,
		`"~(?<=/a)/b": ` + back:                                          `"~(?<=/a)/b": "(?<=/a)/b" looks around, which RE2 cannot: match what is meant itself, or give what is not meant a location of its own before this one`,
		`'~^/(\w+)/\1': ` + back:                                         `"~^/(\\w+)/\\1": "^/(\\w+)/\\1" refers back to a group, which RE2 cannot: write out what it may be`,
		`'~^/(?P<a>x)(?P=a)': ` + back:                                   `"~^/(?P<a>x)(?P=a)": "^/(?P<a>x)(?P=a)" refers back to a group, which RE2 cannot: write out what it may be`,
		`'~^/a++': ` + back:                                              `"~^/a++": "^/a++" gives nothing back of what it has matched, which RE2 cannot: write it without the last + or the ?>`,
		`'~^/a\Z': ` + back:                                              `"~^/a\\Z": "^/a\\Z" has \Z: write \z`,
		`'~^/(a': ` + back:                                               `"~^/(a": "^/(a" is not a regular expression (RE2): missing closing ) in "^/(a"`,
		`"api": ` + back:                                                 `api: begins with none of the patterns there are: write "=/path", "~expression", "~*expression", "^~/prefix", "/prefix" or "__default__"`,
		`"/{x}": {proxy_pass: "http://b/y"}`:                             `"/{x}": "/{x}" is not in the form that requests are matched in: write "/%7Bx%7D"`,
		`"=api": ` + back:                                                `"=api": "api" does not begin with "/": write "/api"`,
		`"/a/../b": ` + back:                                             `"/a/../b": "/a/../b" is not in the form that requests are matched in: write "/b"`,
		`"/a": {proxy_pass: backend}`:                                    `"/a".proxy_pass: "backend" is not the URL of a backend: write one such as "http://localhost:3000"`,
		`"/a": {proxy_pass: "ws://b"}`:                                   `"/a".proxy_pass: "ws://b" is not the URL of a backend: write one such as "http://localhost:3000"`,
		`"/a": {proxy_pass: "http://b:99999"}`:                           `"/a".proxy_pass: "99999" is no port: write a number from 1 to 65535`,
		`"/a": {proxy_pass: "http://b?x=1"}`:                             `"/a".proxy_pass: "http://b?x=1" has more than host, port and path: leave the rest out`,
		`"~^/v(?P<n>[0-9])": {proxy_pass: "http://b{n}:1"}`:              `"~^/v(?P<n>[0-9])".proxy_pass: "http://b{n}:1" lets the request choose the backend: write a location for each`,
		`"~a": {proxy_pass: "http://b/c"}`:                               `"~a".proxy_pass: what of the path it takes the place of cannot be told: begin the expression with ^, or name a group, such as (?P<rest>.*), and write {rest} here`,
		`"/a": {proxy_pass: "http://b/c/../d"}`:                          `"/a".proxy_pass: "/c/../d{rest}": is no path in the form that requests are forwarded in: write it without . and .. segments, and percent-encoded where need be`,
		`"~^/f/(?P<path>.*)$": {proxy_pass: "http://b/{path}"}`:          `"~^/f/(?P<path>.*)$".proxy_pass: "/{path}": {path} is of the request, and the expression has a group of that name: give the group another`,
		`"/a": {return: OK}`:                                             `"/a".return: "OK" does not begin with a status from 200 to 599: write one such as "200 OK"`,
		`"/a": {return: 700 x}`:                                          `"/a".return: "700 x" does not begin with a status from 200 to 599: write one such as "200 OK"`,
		`"/a": {return: 301 Moved Permanently}`:                          `"/a".return: "301 Moved Permanently" names no place to redirect to: write one such as "301 https://example.com/"`,
		`"/a": {return: 200, proxy_pass: "http://b"}`:                    `"/a".return: stands beside proxy_pass: a location has one of them`,
		`"/a": {proxy_pass: "http://b", headers: [A]}`:                   `"/a".headers[0]: "A" has no colon: write a line such as "X-Frame-Options: DENY"`,
		`"/a": {proxy_pass: "http://b", headers: ["Content-Length: 1"]}`: `"/a".headers[0]: Content-Length says how long the body is, which passes as it is: leave it out`,
		`"/a": {proxy_pass: "http://b", timeout: 5s}`:                    `"/a".timeout: "5s" is no number of seconds from 0.001 to 3.16224e+07: write one such as 30`,
		`"/a": {proxypass: "http://b"}`:                                  `"/a".proxypass: unknown key: did you mean proxy_pass?`,
		`"/a": {return: 200 ok, timeout: 5}`:                             `"/a".timeout: warning: is not used: return answers without a backend`,
		`"/a": {return: 404, content_type: text/html}`:                   `"/a".content_type: warning: is not used: it is said of the text of return, and none stands here`,
		`"/a": {proxy_pass: "http://b", content_type: text/html}`:        `"/a".content_type: warning: is not used: it is said of the text of return, and none stands here`,
		`"/a": {return: 301 /b, content_type: text/html}`:                `"/a".content_type: warning: is not used: it is said of the text of return, and none stands here`,
		`'~^/[a]++': ` + back:                                            `"~^/[a]++": "^/[a]++" gives nothing back of what it has matched, which RE2 cannot: write it without the last + or the ?>`,
		`"/a": {}`:                                                       `"/a": warning: has neither proxy_pass nor return, so what it matches is answered 404`,
	} {
		wantProblems(t, routing(location), nil, "5: extensions[0].config.regex_locations."+want)
	}
}

// What only looks like Python's is RE2's too.
func TestExpressionsThatBothUnderstand(t *testing.T) {
	for _, expression := range []string{`^/a\++`, `^/\(\?=`, `^/a\\1`, `^/(?P<x>[a-z]+)/(?:b|c)`, `^/[0-9]{1,3}$`, `(?i)a`, `^/\{,3\}`, `^/[*+]+$`, `^/[(?=]x`, `^/[]+]+`} {
		if _, problems := parse([]byte(routing(`'~`+expression+`': {return: 200 ok}`)), nil, today); len(problems) > 0 {
			t.Errorf("%s: %s", expression, joined(problems))
		}
	}
}

func TestLocationsBesideRoutes(t *testing.T) {
	for _, c := range []struct {
		location, routes string
		clash            bool
	}{
		{"~^/api/", "/web", false},
		{"~^/api/", "/api", true},
		{"~^/api/", "/", true},
		{"~^/api/v1", "/api", true},
		{"~^/apis/", "/api", false},
		{"~^/api", "/apis", true},
		{`~\.js$`, "/web", true},
		{"~*^/api/", "/api", true},
		{"=/api", "/api", false},
		{"=/api", "/api, match: exact", true},
		{"=/api", "/apis, match: exact", false},
		{"~^/api/", "/api/x, match: exact", true},
		{"~^/api/", "/api, hosts: [a.example.com]", false},
		{"/docs", "/docs", true},
		{"~^/api/", "'^/api/', match: regex", true},
		{"~^/api/", "'^/api', match: regex", false},
		{"__default__", "/api", false},
	} {
		document := routing(fmt.Sprintf(`%q: {proxy_pass: "http://b"}`, c.location)) + "server: {reverse_proxy: [{path: " + c.routes + "}]}\n"
		if _, problems := parse([]byte(document), nil, today); problems.HasErrors() != c.clash {
			t.Errorf("%s beside %s: %s", c.location, c.routes, joined(problems))
		}
	}
}

func TestALocationThatIsNeverTriedIsTold(t *testing.T) {
	wantProblems(t, routing(`"/": {return: 200 a}`+"\n"+`"__default__": {return: 200 b}`), nil,
		"6: extensions[0].config.regex_locations.__default__: warning: is never tried, in PyServe neither: the location on line 5 takes all that it matches")
}

// Expressions of routes come after those of locations, as PyServe looks there afterwards.
func TestExpressionsOfRoutesComeAfterThoseOfLocations(t *testing.T) {
	r := mustParse(t, "server: {reverse_proxy: [{path: ^/a, match: regex}, {path: ^/b, match: regex}]}\n"+
		routing(`"~^/c": {return: 200 c}`+"\n"+`"~^/d": {return: 200 d}`), nil)
	if got, want := byOrder(r), []string{"~ ^/c", "~ ^/d", "~ ^/a", "~ ^/b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
