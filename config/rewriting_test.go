package config

import (
	"slices"
	"strings"
	"testing"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// only gives the one route of a document.
func only(t *testing.T, document string) *resourcev1.Route {
	t.Helper()
	for _, route := range mustParse(t, document, nil).Routes {
		return route
	}
	t.Fatal("no route")
	return nil
}

func TestTemplates(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "",
		"plain } text":           "'plain } text'",
		"{path}":                 "1",
		"a{host}b{query}":        "'a'2'b'3",
		"{client_ip}{user}":      "4<user>",
		"{{path}":                "'{path}'",
		"{{{path}}":              "'{'1'}'",
		`{{"a":{{"b":"{host}"}}`: `'{"a":{"b":"'2'"}}'`,
	} {
		parts, err := ParseTemplate(text, []string{"user"})
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var got strings.Builder
		for _, p := range parts {
			switch p.Variable {
			case NoVariable:
				got.WriteString("'" + p.Literal + "'")
			case VariableGroup:
				got.WriteString("<" + p.Group + ">")
			default:
				got.WriteByte('0' + byte(p.Variable))
			}
		}
		if got.String() != want {
			t.Errorf("%s: %s, want %s", text, got.String(), want)
		}
	}
}

func TestTemplatesThatAreNone(t *testing.T) {
	for text, want := range map[string]string{
		"{":                          `a "{" has no "}" after it: write "{{" for a brace`,
		"{path":                      `a "{" has no "}" after it: write "{{" for a brace`,
		"{pth}":                      `{pth} is not known here: did you mean {path}? "{{" is a brace`,
		"{usr}":                      `{usr} is not known here: did you mean {user}? "{{" is a brace`,
		"{}":                         `{} is not known here: write {path}, {host}, {query}, {client_ip}, {user}, {query}, or "{{" for a brace`,
		"{query}":                    "{query} is of the request, and the expression has a group of that name: give the group another",
		strings.Repeat("{path}", 17): "more than 16 names stand in braces: write fewer",
	} {
		if _, err := ParseTemplate(text, []string{"user", "query"}); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestFieldEditsAreSorted(t *testing.T) {
	a := only(t, routeEntry("request_headers: {set: {X-B: '1', x-a: ''}, add: {X-C: ['2', '3'], X-B: 4}, remove: [B, a]}"))
	want := &resourcev1.FieldEdits{
		Set:    []*resourcev1.Field{{Name: "x-a"}, {Name: "X-B", Value: "1"}},
		Add:    []*resourcev1.Field{{Name: "X-B", Value: "4"}, {Name: "X-C", Value: "2"}, {Name: "X-C", Value: "3"}},
		Remove: []string{"a", "b"},
	}
	if policyDetails("", want, a.RequestHeaders) != nil || a.ResponseHeaders != nil {
		t.Errorf("%v, %v", a.RequestHeaders, a.ResponseHeaders)
	}
	for _, nothing := range []string{"{}", "", "{set: {}, add: , remove: []}"} {
		if r := only(t, routeEntry("request_headers: "+nothing)); r.RequestHeaders != nil {
			t.Errorf("%q is %v", nothing, r.RequestHeaders)
		}
	}
}

func TestFieldEditsRefused(t *testing.T) {
	const at = "3: server.reverse_proxy[0]."
	for entry, want := range map[string]string{
		"request_headers: {sett: {}}":                  at + "request_headers.sett: unknown key: did you mean set?",
		"request_headers: [A]":                         at + "request_headers: a list stands here: write a mapping such as {set: {X-Frame-Options: DENY}, remove: [Server]}",
		"request_headers: {set: [A]}":                  at + "request_headers.set: a list stands here: write a mapping such as {X-Frame-Options: DENY}",
		"request_headers: {set: {A: [b]}}":             at + `request_headers.set.A: a list stands here: write a value such as "nosniff"`,
		"request_headers: {set: {'a b': c}}":           at + `request_headers.set."a b": "a b" is not a header's name: write letters, digits and hyphens`,
		"request_headers: {set: {A: b, a: c}}":         at + "request_headers.set.a: stands here twice, in two spellings: keep one of them",
		`request_headers: {set: {A: "b\r\nX: c"}}`:     at + `request_headers.set.A: "b\r\nX: c" has a control character, such as an end of line: leave it out`,
		"request_headers: {set: {A: ' b'}}":            at + `request_headers.set.A: " b" has spaces at its beginning or end, which do not pass: leave them out`,
		"request_headers: {set: {A: '{hots}'}}":        at + `request_headers.set.A: "{hots}": {hots} is not known here: did you mean {host}? "{{" is a brace`,
		"request_headers: {set: {Connection: x}}":      at + "request_headers.set.Connection: Connection is about the connection, which is the proxy's own: leave it out",
		"request_headers: {remove: [content_length]}":  at + "request_headers.remove[0]: content_length says how long the body is, which passes as it is: leave it out",
		"request_headers: {remove: [Host]}":            at + "request_headers.remove[0]: Host cannot be removed: every request names one",
		"request_headers: {add: {X-Forwarded-For: x}}": at + "request_headers.add.X-Forwarded-For: X-Forwarded-For is there once, written by the proxy: write it below set",
		"request_headers: {set: {Host: 'a b'}}":        at + `request_headers.set.Host: "a b": " " cannot stand in a host: write a host, with a port if need be`,
		"request_headers: {set: {Host: '{path}'}}":     at + `request_headers.set.Host: "{path}": only {host} can stand in a host: the client could name any otherwise`,
		"response_headers: {set: {Date: x}}":           at + "response_headers.set.Date: Date belongs to every answer: leave it out",
		"{request_headers: {set: {Host: x}}, preserve_host: true}": at +
			"preserve_host: request_headers sets Host, which takes its place: leave one of them out",
	} {
		wantProblems(t, routeEntry(entry), nil, want)
	}
	wantProblems(t, routeEntry("{path: /, request_headers: {set: {A: b}}}\n")+"    - {path: /, request_headers: {set: {A: c}}}\n", nil,
		`4: server.reverse_proxy[1]: warning: localhost:80 stands in this route on line 3 too: it is one backend, of weight 2`,
		"4: server.reverse_proxy[1].request_headers: is different on line 3, in another entry of the same route: write the same in both, or leave one out")
}

func TestRedirectsThatLeadWhereTheyAreWritten(t *testing.T) {
	for _, to := range []string{
		"/new", "{path}", "{path}/", "/{x}", "https://example.com", "http://{host}", "https://{host}:8443{path}?{query}", "https://a.example.com/{x}#top",
		"https://example.com?from={path}", "https://[::1]:80/",
	} {
		r := only(t, routeEntry(`{path: "(?P<x>.)", match: regex, redirect: {to: "`+to+`"}}`))
		if r.GetRedirect().GetTo() != to || r.Redirect.Status != 308 {
			t.Errorf("%s: %v", to, r.Redirect)
		}
	}
}

func TestAnswersRefused(t *testing.T) {
	const at = "3: server.reverse_proxy[0]."
	const first = "begin with https://, http://, / or {path}, so that no client decides where it leads"
	const host = "of what a client sends only {host} can stand in a host: write a / behind it, and the rest then"
	for to, why := range map[string]string{
		"//example.com":              "begins with //, which takes over the scheme: write https:// or http://",
		"example.com":                first,
		"ftp://example.com":          first,
		"javascript:alert(1)":        first,
		"{x}":                        first,
		"{query}":                    first,
		"https://":                   "no host stands behind //: write one, or {host} for the one that the client named",
		"https:///x":                 "no host stands behind //: write one, or {host} for the one that the client named",
		"https://{path}":             "no host stands behind //: write one, or {host} for the one that the client named",
		"https://{x}.example.com":    host,
		"https://example.com{x}":     host,
		"https://example.com{query}": host,
		"https://user@example.com/":  `"@" cannot stand in a host: write https://, a host and a path`,
		"/{xx}":                      `{xx} is not known here: did you mean {x}? "{{" is a brace`,
	} {
		wantProblems(t, routeEntry(`{path: "(?P<x>.)", match: regex, redirect: {to: "`+to+`"}}`), nil, at+`redirect.to: "`+to+`": `+why)
	}
	for entry, want := range map[string]string{
		"redirect: {}":                               at + `redirect: a redirect needs to: write where clients are sent, such as to: "https://example.com{path}"`,
		"redirect: {to: '/a b'}":                     at + `redirect.to: "/a b" has a character that a URL does not: write it percent-encoded`,
		`redirect: {to: '/\a'}`:                      at + `redirect.to: "/\\a" has a character that a URL does not: write it percent-encoded`,
		"redirect: {to: /a, status: 304}":            at + "redirect.status: 304 does not send clients elsewhere: write 301, 302, 303, 307 or 308",
		"{redirect: {to: /a}, respond: {}}":          at + "respond: stands beside redirect, and a route gives one answer: leave one of them out",
		"{redirect: {to: /a}, host: b}":              at + "host: stands beside redirect, which answers without a backend: leave one of them out",
		"{respond: {}, backends: [{}]}":              at + "backends: stands beside respond, which answers without a backend: leave one of them out",
		"{respond: {}, strip_path: true}":            at + "strip_path: warning: is not used: respond answers without a backend",
		"respond: {status: 101}":                     at + "respond.status: 101 is out of range: write a whole number from 200 to 599",
		"respond: {status: 204, body: x}":            at + "respond.body: an answer with status 204 has no body: leave it out",
		"respond: {content_type: text/html}":         at + "respond.content_type: there is no body that it could be said of: write body, or leave content_type out",
		`respond: {body: x, content_type: "a\r\nb"}`: at + `respond.content_type: "a\r\nb" is not a media type: write one such as application/json`,
		"max_body_bytes: -1":                         at + "max_body_bytes: -1 is out of range: write a whole number from 0 to 1099511627776",
	} {
		wantProblems(t, routeEntry(entry), nil, want)
	}
	wantProblems(t, routeEntry("{path: /, redirect: {to: /a}}")+"    - {path: /, port: 81}\n", nil,
		"3: server.reverse_proxy[0].redirect: an entry of the same route has a backend: leave one of them out")
}

func TestTheProxyProtocolNeedsProxies(t *testing.T) {
	wantProblems(t, "server: {proxy_protocol: true, reverse_proxy: [{}]}", nil,
		"1: server.proxy_protocol: needs trusted_proxies: write the addresses of the proxies that send the header")
	for text, want := range map[string]bool{"true": true, "false": false} {
		r := mustParse(t, "server: {proxy_protocol: "+text+", trusted_proxies: [10.0.0.1], reverse_proxy: [{}]}", nil)
		if r.Listener.ProxyProtocol != want {
			t.Errorf("%s: %v", text, r.Listener)
		}
		without := mustParse(t, "server: {trusted_proxies: [10.0.0.1], reverse_proxy: [{}]}", nil)
		if changes := told(Diff(without, r)); strings.Contains(changes, "proxy_protocol: false → true") != want {
			t.Errorf("%s: %q", text, changes)
		}
	}
}

func TestARouteThatAnswersHasNoBackends(t *testing.T) {
	r := mustParse(t, routeEntry("{path: /a, redirect: {to: /b}}")+"    - {path: /c, respond: {body: x}}\n", nil)
	for name, answer := range map[string]string{"/a": "redirect 308 /b", "/c": "respond 200"} {
		if pool := r.Pools[r.Routes[name].Pool]; pool == nil || len(pool.Backends) != 0 || pool.HealthCheck != nil {
			t.Errorf("%s: %v", name, pool)
		}
		if got := answerText(r.Routes[name]); got != answer {
			t.Errorf("%s: %q, want %q", name, got, answer)
		}
	}
	if got := r.Routes["/c"].Respond.ContentType; got != "text/plain; charset=utf-8" {
		t.Errorf("the media type is %q", got)
	}
}

func TestDiffOfRoutesThatAnswer(t *testing.T) {
	served := mustParse(t, routeEntry("{path: /, port: 81}"), nil)
	answered := mustParse(t, routeEntry("{path: /, redirect: {to: /a}}"), nil)
	for _, c := range []struct {
		from, to *Resources
		want     string
	}{
		{answered, answered, ""},
		{served, answered, "changed route /\n  backends: - localhost:81\n  redirect: to \"/a\", status 308"},
		{answered, served, "changed route /\n  backends: + localhost:81\n  redirect: removed"},
	} {
		got := strings.Split(told(Diff(c.from, c.to)), "\n")
		want := strings.Split(c.want, "\n")
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// FuzzTemplate: what is read comes out as it was written, and of no other text.
func FuzzTemplate(f *testing.F) {
	for _, seed := range []string{"", "{path}", "{{", "a}b", "{{{host}}}", "{x}{y}", "{\x00}"} {
		f.Add(seed)
	}
	names := map[Variable]string{VariablePath: "path", VariableHost: "host", VariableQuery: "query", VariableClientIP: "client_ip"}
	f.Fuzz(func(t *testing.T, text string) {
		parts, err := ParseTemplate(text, []string{"x", "y"})
		if err != nil {
			return
		}
		var again strings.Builder
		for _, p := range parts {
			switch p.Variable {
			case NoVariable:
				again.WriteString(strings.ReplaceAll(p.Literal, "{", "{{"))
			case VariableGroup:
				again.WriteString("{" + p.Group + "}")
			default:
				again.WriteString("{" + names[p.Variable] + "}")
			}
		}
		if again.String() != text {
			t.Fatalf("%q was read as %q", text, again.String())
		}
	})
}
