package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func TestConditionsArePartOfTheName(t *testing.T) {
	for entry, want := range map[string]string{
		"{path: /api, methods: [POST, GET]}":                                      "/api [GET,POST]",
		"{path: /api, headers: {X-Version: 2, accept: '*/*'}}":                    `/api [accept="*/*" x-version="2"]`,
		"{path: /api, query: {b: '', 'a b': x}}":                                  `/api [?"a b"="x" ?b=""]`,
		"{path: /api, headers: {X-A: {regex: ^a, }, X-B: {present: yes}}}":        `/api [x-a=~"^a" x-b=present]`,
		"{path: /api, query: {a: {present: false}}, methods: [M-SEARCH]}":         "/api [M-SEARCH ?a=absent]",
		"{path: /api, match: exact, hosts: [a.com], methods: [GET]}":              "a.com = /api [GET]",
		"{path: '^/x [a]', match: regex}":                                         `~ "^/x [a]"`,
		"{path: '^/x', match: regex, methods: [GET]}":                             `~ "^/x" [GET]`,
		`{path: '^/x "', match: regex, query: {'"': '"'}}`:                        `~ "^/x \"" [?"\""="\""]`,
		"{path: /api, headers: {X-A: 'a b, c'}, query: {é: é}, methods: ['GET']}": `/api [GET x-a="a b, c" ?"é"="é"]`,
	} {
		r := mustParse(t, routeEntry(entry), nil)
		if got := strings.Join(names(r.Routes), "|"); got != want {
			t.Errorf("%s: got %s, want %s", entry, got, want)
			continue
		}
		if row := r.RouteSummaries()[0]; strings.Join(row.Conditions, " ") != ConditionsOf(r.Routes[want]).String() {
			t.Errorf("%s: operators are shown %q", entry, row.Conditions)
		}
	}
}

func TestConditionsAreRead(t *testing.T) {
	r := mustParse(t, routeEntry(`
path: /a
methods: [POST, GET]
headers: {X-B: {regex: "^b"}, X-A: "1"}
query: {Q: {present: true}, p: {present: false}}`), nil)
	for _, route := range r.Routes {
		if !slices.Equal(route.Methods, []string{"GET", "POST"}) || len(route.Headers) != 2 || len(route.Query) != 2 {
			t.Fatal(route)
		}
		a, b, q, p := route.Headers[0], route.Headers[1], route.Query[0], route.Query[1]
		if a.Name != "x-a" || a.GetExact() != "1" || b.Name != "x-b" || b.GetRegex() != "^b" || q.Name != "Q" || !q.GetPresent() || p.Name != "p" {
			t.Error(route)
		}
		if c, ok := p.Condition.(*resourcev1.FieldMatch_Present); !ok || c.Present {
			t.Error(p)
		}
	}
}

func TestEntriesWithTheSameConditionsAreOneRoute(t *testing.T) {
	r := mustParse(t, `
server:
  reverse_proxy:
    - {path: /a, port: 1, methods: [GET, POST], headers: {X-A: "1", X-B: {present: true}}}
    - {path: /a, port: 2, methods: [POST, GET], headers: {x-b: {present: true}, x-a: "1"}}
    - {path: /a, port: 3, methods: [GET]}
    - {path: /a, port: 4}
`, nil)
	if got := strings.Join(names(r.Routes), "|"); got != `/a|/a [GET,POST x-a="1" x-b=present]|/a [GET]` {
		t.Fatal(got)
	}
	if got := r.Pools[`/a [GET,POST x-a="1" x-b=present]`].Backends; len(got) != 2 {
		t.Error(got)
	}
}

func TestConditionsOfOneHostAreNotAskedTwice(t *testing.T) {
	const document = `server:
  reverse_proxy:
    - {path: /a, hosts: [a.com, b.com], methods: [GET]}
    - {path: /a, hosts: [b.com], methods: [%s]}
`
	mustParse(t, fmt.Sprintf(document, "POST"), nil)
	wantProblems(t, fmt.Sprintf(document, "GET"), nil,
		`4: server.reverse_proxy[1].hosts: "b.com" has a route for /a [GET] already, on line 3: write the same hosts in both, or take it out of one`)
}

func TestWrongConditionsAreRefused(t *testing.T) {
	long := strings.Repeat("a", 2000)
	for entry, want := range map[string]string{
		"methods: []":                                   "methods: no method stands here: name one, or leave methods out for every method",
		"methods: GET":                                  `methods: "GET" stands here: write a list such as [GET, POST]`,
		"methods: [get]":                                `methods[0]: "get" is not in upper case, and methods are compared with case: write GET`,
		"methods: ['G T']":                              `methods[0]: "G T" is not a method: write one such as GET`,
		"methods: [GÉT]":                                `methods[0]: "GÉT" is not a method: write one such as GET`,
		"methods: [CONNECT]":                            "methods[0]: CONNECT is never forwarded: leave it out (a WebSocket over HTTP/2 is matched as GET)",
		"methods: [GET, GET]":                           `methods[1]: warning: "GET" stands here twice`,
		"headers: {}":                                   `headers: a mapping stands here: write a mapping such as {X-Version: "2"}, or leave it out`,
		"headers: [X]":                                  `headers: a list stands here: write a mapping such as {X-Version: "2"}, or leave it out`,
		"query:":                                        `query: nothing stands here: write a mapping such as {beta: "1"}, or leave it out`,
		"headers: {Host: a.com}":                        "headers.Host: the host is not compared as a header: write hosts",
		"headers: {'X A': a}":                           `headers."X A": "X A" is not a header's name: write one such as X-Version`,
		"headers: {X-A: 1, x-a: 1}":                     "headers.x-a: stands here twice, in two spellings: keep one of them",
		"headers: {X-A: ' a'}":                          `headers.X-A: " a" has spaces at its beginning or end, which do not count in headers: leave them out`,
		`headers: {X-A: "a\nb"}`:                        `headers.X-A: "a\nb" has a control character, which no header has: leave it out`,
		"headers: {X-A: true}":                          `headers.X-A: true is not a text: write "true", in quotes`,
		"headers: {X-A: {}}":                            "headers.X-A: either regex or present stands here: write one of the two",
		"headers: {X-A: {regex: a, present: true}}":     "headers.X-A: either regex or present stands here: write one of the two",
		"headers: {X-A: {regexp: a}}":                   "headers.X-A.regexp: unknown key: did you mean regex?",
		"headers: {X-A: {regex: '('}}":                  `headers.X-A.regex: "(" is not a regular expression (RE2): missing closing ) in "("`,
		"headers: {X-A: {regex: '((a{100}){100}){5}'}}": `headers.X-A.regex: "((a{100}){100}){5}" is not a regular expression (RE2): invalid repeat count in "{100}"`,
		"query: {'': a}":                                `query."": the name of a parameter has 1 to 128 bytes: write it as it is, without percent-encodings`,
		"query: {a: " + long + "}":                      "query.a: the value has 2000 bytes: write at most 1024",
	} {
		wantProblems(t, routeEntry(entry), nil, "3: server.reverse_proxy[0]."+want)
	}
}

func TestLimitsOfConditions(t *testing.T) {
	var many strings.Builder
	for i := range maxFieldMatches + 1 {
		fmt.Fprintf(&many, "p%d: a, ", i)
	}
	wantProblems(t, routeEntry("query: {"+many.String()+"}"), nil, "3: server.reverse_proxy[0].query.p32: a route has at most 32 conditions here: write fewer")
	var b strings.Builder
	b.WriteString("server:\n  reverse_proxy:\n")
	for i := range maxAlike {
		fmt.Fprintf(&b, "    - {path: /a, query: {v: '%d'}}\n", i)
	}
	b.WriteString("    - {path: /a}\n    - {path: /a, hosts: [a.com], query: {v: a}}\n")
	if _, problems := parse([]byte(b.String()), nil, today); problems.HasErrors() {
		t.Fatal(joined(problems))
	}
	b.WriteString("    - {path: /a, query: {v: a}}\n")
	wantOneProblem(t, []byte(b.String()), nil,
		"more than 1000 routes are for /a with conditions, which are compared one after the other: write fewer, or other paths or hosts")
}

func TestARouteWithOtherConditionsIsAnother(t *testing.T) {
	before := mustParse(t, routeEntry("{path: /a, methods: [GET]}"), nil)
	after := mustParse(t, routeEntry("{path: /a, methods: [GET, HEAD]}"), nil)
	if got := told(Diff(before, after)); !strings.Contains(got, "/a [GET,HEAD]") || !strings.Contains(got, "/a [GET]") {
		t.Error(got)
	}
	if got := Diff(before, mustParse(t, routeEntry("{path: /a, methods: [GET]}"), nil)); got != nil {
		t.Error(told(got))
	}
}
