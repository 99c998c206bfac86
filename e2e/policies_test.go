package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// policy is a row of TestPolicies: a document, and what clients and backends see of it at each node.
type policy struct {
	name string
	// document is applied as it is, but for $a, $b and $c, each of which stands for "host: …, port: …" of a backend, and @a, @b
	// and @c for its host:port. It may begin with the routes, each with "- ", without the sections around them.
	document string
	// asks are made in turn, at each node over HTTP/1.1 and then over HTTP/2.
	asks []ask
	// also checks what asks cannot say, once for each node.
	also func(t *testing.T, b bench, node *daemon)
}

// ask is a request and what has to come of it. Without a status it has to reach a backend, which answers 200.
type ask struct {
	proto  string   // over which alone it is made; empty: over both
	method string   // empty: GET
	path   string   // with a query, if there is one
	header []string // names and values in turn; Host is the request's
	body   string
	// lengthless: the body is sent without saying how long it is.
	lengthless bool

	status int               // of the answer; 0: 200
	answer map[string]string // fields of the answer, several values joined by ", "; empty: it must not be there
	says   string            // is in the answer's body

	by      string            // the backend that answers; empty: whichever
	uri     string            // what it was asked for; empty: whatever
	host    string            // what Host it was sent; empty: whatever
	gets    map[string]string // fields that it was sent, as with answer
	unasked bool              // no backend is sent anything
}

// bench is what all rows share.
type bench struct {
	*cluster
	backends map[string]*backend
}

// TestPolicies applies one document after the other to one cluster, and asks every node.
func TestPolicies(t *testing.T) {
	t.Parallel()
	b := bench{cluster: newCluster(t, "n1", "n2"), backends: map[string]*backend{}}
	for _, name := range []string{"a", "b", "c"} {
		b.backends[name] = newBackend(t, name)
	}
	clients := map[string]*http.Client{"HTTP/1.1": newClient(t, nil, false), "HTTP/2.0": newPlainHTTP2Client(t)}
	for _, p := range slices.Concat(policies, balancingPolicies, breakerPolicies, timeoutPolicies) {
		t.Run(p.name, func(t *testing.T) {
			b.apply(b.fill(p.document)).must(t, 0)
			for _, n := range b.nodes {
				for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
					for _, a := range p.asks {
						if a.proto != "" && a.proto != proto {
							continue
						}
						a.check(t, b, clients[proto], n, proto)
					}
				}
				if p.also != nil {
					p.also(t, b, n)
				}
			}
		})
	}
}

// fill makes a document of a row's.
func (b bench) fill(document string) string {
	if routes := strings.TrimLeft(document, "\n"); strings.HasPrefix(strings.TrimSpace(routes), "- ") {
		document = "server:\n  reverse_proxy:\n" + routes
	}
	var pairs []string
	for name, backend := range b.backends {
		pairs = append(pairs, "$"+name, fmt.Sprintf("host: 127.0.0.1, port: %d", backend.port), "@"+name, fmt.Sprintf("127.0.0.1:%d", backend.port))
	}
	return strings.NewReplacer(pairs...).Replace(document)
}

// announced asks over a connection that begins with header. No answer is one of status 0.
func announced(t *testing.T, address, header string) reply {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "%sGET /x HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.9\r\n\r\n", header)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("neither an answer nor an end")
		}
		return reply{}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{response.StatusCode, response.Header, string(body), response.Proto}
}

func newPlainHTTP2Client(t *testing.T) *http.Client {
	t.Helper()
	client := newClient(t, nil, false)
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	client.Transport.(*http.Transport).Protocols = protocols
	return client
}

func (a ask) check(t *testing.T, b bench, client *http.Client, n *daemon, proto string) {
	t.Helper()
	method, status := a.method, a.status
	if method == "" {
		method = http.MethodGet
	}
	if status == 0 {
		status = http.StatusOK
	}
	what := fmt.Sprintf("%s at %s: %s %s %q", proto, n.name, method, a.path, a.header)
	var body io.Reader = strings.NewReader(a.body)
	if a.lengthless {
		body = io.NopCloser(body)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.listen+a.path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(a.header); i += 2 {
		if a.header[i] == "Host" {
			request.Host = a.header[i+1]
			continue
		}
		request.Header.Add(a.header[i], a.header[i+1])
	}
	before := b.received()
	r := do(t, client, request)
	if r.status != status || r.proto != proto || !strings.Contains(r.body, a.says) {
		t.Errorf("%s: %s %d %q, want %d with %q", what, r.proto, r.status, r.body, status, a.says)
		return
	}
	wantFields(t, what+": the answer", r.header, a.answer)
	if a.unasked {
		if after := b.received(); after != before {
			t.Errorf("%s: %d requests reached a backend, want none", what, after-before)
		}
		return
	}
	if a.by == "" && a.uri == "" && a.host == "" && a.gets == nil {
		return
	}
	s := r.seen(t)
	if a.by != "" && s.Backend != a.by || a.uri != "" && s.URI != a.uri || a.host != "" && s.Host != a.host {
		t.Errorf("%s: backend %s was asked for %s with Host %s, want %q, %q, %q", what, s.Backend, s.URI, s.Host, a.by, a.uri, a.host)
	}
	wantFields(t, what+": the backend", s.Header, a.gets)
}

func wantFields(t *testing.T, what string, have http.Header, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got := strings.Join(have.Values(name), ", "); got != value {
			t.Errorf("%s has %s: %q, want %q", what, name, got, value)
		}
	}
}

// received is how many requests have come to the backends.
func (b bench) received() (n int) {
	for _, backend := range b.backends {
		backend.mu.Lock()
		n += len(backend.requests)
		backend.mu.Unlock()
	}
	return n
}

var policies = []policy{
	{
		name: "extensions",
		document: `
version: 2
extensions:
  - type: routing
    config:
      regex_locations:
        "__default__": {proxy_pass: "http://@c", cache_control: no-store}
        "~^/api/v(?P<version>[0-9]+)/": {proxy_pass: "http://@a", headers: ["API-Version: {version}", "X-Client: $remote_addr"]}
        "~*\\.(js|css)$": {root: ./static}
        "^~/shop/": {proxy_pass: "http://@b/items"}
        "~^/u/(?P<id>[a-z]+)$": {proxy_pass: "http://@b/users/{id}"}
        "=/health": {return: "200 OK", headers: ["X-Own: yes"]}
        "=/old": {return: "301 /new"}`,
		asks: []ask{
			{path: "/health", says: "OK", unasked: true, answer: map[string]string{"X-Own": "yes", "Content-Type": "text/plain"}},
			{path: "/healthy", by: "c", uri: "/healthy", answer: map[string]string{"Cache-Control": "no-store"}},
			{path: "/old?x=1", status: 301, unasked: true, answer: map[string]string{"Location": "/new?x=1"}},
			{path: "/api/v12/x?y=1", by: "a", uri: "/api/v12/x?y=1", gets: map[string]string{"Api-Version": "12", "X-Client": "127.0.0.1"}},
			{path: "/api/v12/x.JS", by: "a", uri: "/api/v12/x.JS"},
			{path: "/shop/x.JS", status: 404, unasked: true},
			{path: "/shop/a/b?c", by: "b", uri: "/items/a/b?c"},
			{path: "/u/joe", by: "b", uri: "/users/joe"},
			{path: "/u/joe/x", by: "c", uri: "/u/joe/x"},
		},
	},
	{
		name: "strip_path and preserve_host",
		document: `
    - {path: /api, $a}
    - {path: /kept, $b, strip_path: false, preserve_host: true}`,
		asks: []ask{
			{path: "/api/x?y=1", by: "a", uri: "/x?y=1"},
			{path: "/kept/x", header: []string{"Host", "shop.example.com"}, by: "b", uri: "/kept/x", host: "shop.example.com"},
			{path: "/elsewhere", status: 404, unasked: true},
		},
	}, {
		name: "methods, headers and query",
		document: `
    - {path: /, $a}
    - {path: /api, $b, strip_path: false, methods: [POST]}
    - {path: /api/v1, $c, methods: [GET], headers: {X-Version: "2", Cookie: {regex: "(^|; )beta=1(;|$)"}}}
    - {path: /api/v1, $b, query: {"b c": {regex: "^1 "}, old: {present: false}}}
    - {path: /only, match: exact, $c, methods: [PUT], hosts: [shop.example.com]}`,
		asks: []ask{
			{path: "/api", by: "a", uri: "/api"},
			{method: "POST", path: "/api?x", body: "b", by: "b", uri: "/api?x"},
			{method: "POST", path: "/api/v1/y", by: "b", uri: "/api/v1/y"},
			{path: "/api/v1/y", header: []string{"X-Version", "2", "Cookie", "a=1; beta=1"}, by: "c", uri: "/y"},
			{path: "/api/v1/y?b+c=1+2", header: []string{"X-Version", "2", "Cookie", "a=1; beta=1"}, by: "c"},
			{path: "/api/v1/y?b+c=1+2", header: []string{"X-Version", "2"}, by: "b", uri: "/y?b+c=1+2"},
			{path: "/api/v1/y?b%20c=1%202&old", by: "a"},
			{path: "/api/v1/y", header: []string{"X-Version", "2", "X-Version", "2"}, by: "a"},
			{method: "PUT", path: "/only", header: []string{"Host", "shop.example.com"}, by: "c"},
			{path: "/only", header: []string{"Host", "shop.example.com"}, by: "a"},
		},
	},
	{
		name: "a path with other methods alone",
		document: `
    - {path: /api, $b, methods: [POST]}`,
		asks: []ask{{path: "/api", status: 404, unasked: true}, {method: "POST", path: "/api", by: "b"}},
	},
	{
		name: "request_headers",
		document: `
    - path: /api
      backends: [{$a}]
      request_headers:
        set: {X-Tenant: "{host}", X-Forwarded-Proto: https, X-From: "{client_ip} {path}?{query} {{x}"}
        add: {X-Own: [mine, yours]}
        remove: [Cookie, X-Request-ID]
    - {path: /other, $a}
    - {path: "^/u/(?P<user>[^/]+)/(?P<rest>.*)$", match: regex, $b, request_headers: {set: {Host: "u.internal:80", X-User: "{user}", X-Rest: "[{rest}]"}}}`,
		asks: []ask{
			{path: "/api/x%20y?q=1&r", by: "a", uri: "/x%20y?q=1&r",
				header: []string{"Host", "shop.example.com:81", "x-tenant", "spoofed", "X-Own", "theirs", "Cookie", "a=b", "X-Kept", "1"},
				gets: map[string]string{"X-Tenant": "shop.example.com", "X-From": "127.0.0.1 /api/x%20y?q=1&r {x}", "X-Own": "theirs, mine, yours",
					"Cookie": "", "X-Request-Id": "", "X-Kept": "1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example.com:81"}},
			{path: "/other", header: []string{"Cookie", "a=b"}, gets: map[string]string{"Cookie": "a=b", "X-Tenant": "", "X-Forwarded-Proto": "http"}},
			{path: "/u/j%C3%BCrgen/a/b%0D%0AX-Evil:%201", by: "b", host: "u.internal:80",
				gets: map[string]string{"X-User": "j%C3%BCrgen", "X-Rest": "[a/b%0D%0AX-Evil:%201]", "X-Evil": ""}},
			{path: "/u/joe/", gets: map[string]string{"X-User": "joe", "X-Rest": "[]"}},
		},
		also: func(t *testing.T, b bench, n *daemon) {
			e := b.explain(0, "GET", "http://shop.example.com/api/x", "--node", n.name, "-H", "Cookie: a=b")
			if e.Forward == nil || !slices.Contains(e.Forward.Headers, "X-Tenant: shop.example.com") || slices.Contains(e.Forward.Headers, "Cookie: a=b") {
				t.Errorf("explained as %+v", e.Forward)
			}
		},
	},
	{
		name: "response_headers",
		document: `
    - path: /api
      backends: [{$a}]
      response_headers: {set: {X-Backend: "hidden for {client_ip}", Cache-Control: no-store}, add: {Set-Cookie: ["a=1", "b=2"]}, remove: [Content-Type]}`,
		asks: []ask{
			{path: "/api", by: "a", answer: map[string]string{
				"X-Backend": "hidden for 127.0.0.1", "Cache-Control": "no-store", "Set-Cookie": "a=1, b=2", "Content-Type": ""}},
		},
		also: func(t *testing.T, b bench, n *daemon) {
			conn, response, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+n.listen+"/api", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			wantFields(t, "the handshake's answer", response.Header, map[string]string{"X-Backend": "hidden for 127.0.0.1", "Set-Cookie": "a=1, b=2"})
		},
	},
	{
		name: "redirect",
		document: `
    - {path: /old, redirect: {to: "https://example.com{path}", status: 308}}
    - {path: /moved, redirect: {to: "/new?", status: 302}, response_headers: {set: {Cache-Control: no-cache}}}
    - {path: /secure, redirect: {to: "https://{host}{path}"}}
    - {path: "^/go/(?P<to>.*)$", match: regex, redirect: {to: "/{to}", status: 307}}`,
		asks: []ask{
			{path: "/old/a%20b?x=1&y", status: 308, unasked: true, answer: map[string]string{
				"Location": "https://example.com/old/a%20b?x=1&y", "Content-Length": "0", "Content-Type": ""}},
			{path: "/old", method: "HEAD", status: 308, answer: map[string]string{"Location": "https://example.com/old"}},
			{path: "/old", method: "POST", body: "something", status: 308},
			{path: "/old", status: 308},
			{path: "/moved/x?y=1", status: 302, answer: map[string]string{"Location": "/new", "Cache-Control": "no-cache"}},
			{path: "/secure/x", header: []string{"Host", "shop.example.com:8080"}, status: 308, answer: map[string]string{"Location": "https://shop.example.com/secure/x"}},
			{path: "/go//evil.example/x?a", status: 307, answer: map[string]string{"Location": "/evil.example/x?a"}},
			{path: "/go/%5C/evil.example", status: 307, answer: map[string]string{"Location": "/%5C/evil.example"}},
		},
		also: func(t *testing.T, b bench, n *daemon) {
			_, response, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+n.listen+"/old", nil)
			if err == nil || response == nil || response.StatusCode != http.StatusPermanentRedirect {
				t.Errorf("a WebSocket's handshake: %v, %v", response, err)
			}
			if e := b.explain(0, "GET", "/old/x", "--node", n.name); e.Status != 308 || e.Forward != nil || !strings.Contains(e.Reason, "https://example.com/old/x") {
				t.Errorf("explained as %+v", e)
			}
			b.ctl("get", "routes").wants(t, 0, "redirect 308 https://example.com{path}")
		},
	},
	{
		name: "respond",
		document: `
    - {path: /robots.txt, match: exact, respond: {body: "User-agent: *"}}
    - {path: /json, respond: {status: 503, body: '{"path":"{path}"}', content_type: application/json}, response_headers: {set: {Retry-After: "120"}}}
    - {path: /gone, respond: {status: 410}}
    - {path: /untyped, respond: {body: "<html>"}, response_headers: {remove: [Content-Type]}}
    - {path: /none, respond: {status: 204}}`,
		asks: []ask{
			{path: "/robots.txt", says: "User-agent: *", unasked: true, answer: map[string]string{"Content-Type": "text/plain; charset=utf-8", "Content-Length": "13"}},
			{path: "/robots.txt", method: "HEAD", answer: map[string]string{"Content-Length": "13"}},
			{path: "/json", status: 503, says: `{"path":"{path}"}`, answer: map[string]string{"Content-Type": "application/json", "Retry-After": "120"}},
			{path: "/gone", status: 410, answer: map[string]string{"Content-Length": "0", "Content-Type": ""}},
			{path: "/untyped", says: "<html>", answer: map[string]string{"Content-Type": "", "Content-Length": "6"}},
			{path: "/none", status: 204, answer: map[string]string{"Content-Length": "", "Content-Type": ""}},
			{path: "/none", status: 204, method: "POST", body: "x"},
		},
		also: func(t *testing.T, b bench, n *daemon) {
			b.ctl("get", "backends").wants(t, 0)
			b.ctl("get", "routes").wants(t, 0, "respond 410")
			if e := b.explain(0, "GET", "/gone", "--node", n.name); e.Status != 410 || e.Route != "/gone" || len(e.Backends) != 0 {
				t.Errorf("explained as %+v", e)
			}
		},
	},
	{
		name: "proxy_protocol",
		document: `
server:
  proxy_protocol: true
  trusted_proxies: [127.0.0.1]
  reverse_proxy:
    - {path: /, $a}`,
		also: func(t *testing.T, b bench, n *daemon) {
			for name, header := range map[string]string{
				"a text": "PROXY TCP4 203.0.113.7 127.0.0.1 4660 80\r\n",
				"bytes":  "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0f\xcb\x00\x71\x07\x7f\x00\x00\x01\x12\x34\x00\x50\x04\x00\x00",
			} {
				r := announced(t, n.listen, header)
				wantFields(t, name+": the backend", r.seen(t).Header, map[string]string{"X-Forwarded-For": "203.0.113.7", "X-Real-Ip": "203.0.113.7"})
			}
			if got := announced(t, n.listen, ""); got.status != 0 {
				t.Errorf("without a header: %+v", got)
			}
			metrics := get(t, newClient(t, nil, false), "http://"+n.admin+"/metrics").body
			for _, line := range []string{`pyserve_proxy_protocol_connections_total{header="read"} 2`, `pyserve_proxy_protocol_connections_total{header="refused"} 1`} {
				if !strings.Contains(metrics, line+"\n") {
					t.Errorf("the metrics have no %s", line)
				}
			}
		},
	},
	{
		name: "max_body_bytes",
		document: `
    - {path: /small, $a, max_body_bytes: 10}
    - {path: /any, $a}`,
		asks: []ask{
			{path: "/small/sum", method: "POST", body: "0123456789", says: "10 "},
			{path: "/small/sum", method: "POST", body: "0123456789+", status: 413, unasked: true, says: "The body of the request is too long."},
			{path: "/small/sum", method: "POST", body: "0123456789", lengthless: true, says: "10 "},
			{path: "/small/sum", method: "POST", body: "0123456789+", lengthless: true, status: 413},
			{path: "/any/sum", method: "POST", body: "0123456789+", says: "11 "},
		},
	},
	{
		name: "rate_limit",
		document: `
    - {path: /slow, $a, rate_limit: {requests: 1, per: 1h, burst: 3, key: "header:X-Who"}}
    - {path: /free, $b}`,
		asks: func() (asks []ask) {
			for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} { // each of them is one client
				for i, rest := range []string{`"default";r=2;t=3600`, `"default";r=1;t=7200`, `"default";r=0;t=3600`, `"default";r=0;t=3600`} {
					a := ask{path: "/slow", proto: proto, header: []string{"X-Who", proto}, by: "a",
						answer: map[string]string{"RateLimit": rest, "RateLimit-Policy": `"default";q=1;w=3600`, "Retry-After": ""}}
					if i == 3 {
						a.status, a.by, a.unasked, a.says = 429, "", true, "There were too many requests."
						a.answer["Retry-After"] = "3600"
					}
					asks = append(asks, a)
				}
			}
			return append(asks, ask{path: "/free", by: "b", answer: map[string]string{"RateLimit": ""}})
		}(),
	}, {
		name: "split",
		document: `
    - {path: /all, split: [{weight: 0, backends: [{$a}]}, {weight: 7, backends: [{$b}]}]}
    - {path: /shared, split: [{weight: 3, backends: [{$a}]}, {weight: 1, backends: [{$b}]}]}
    - {path: /dead, split: [{weight: 99, backends: [{host: 127.0.0.1, port: 1}]}, {backends: [{$c}]}]}
    - {path: /drained, split: [{weight: 99, backends: [{$a, weight: 0}]}, {backends: [{$c}]}]}`,
		asks: []ask{
			{path: "/all/x", by: "b", uri: "/x"}, {path: "/shared"}, {path: "/dead/y", by: "c", uri: "/y"}, {path: "/drained", by: "c"},
			{method: "POST", path: "/dead", body: "b", by: "c"},
		},
		also: func(t *testing.T, b bench, n *daemon) {
			by := map[string]int{}
			client := newClient(t, nil, false)
			for range 40 {
				request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+n.listen+"/shared", nil)
				if err != nil {
					t.Fatal(err)
				}
				by[do(t, client, request).seen(t).Backend]++
			}
			if by["a"] < 28 || by["b"] < 8 || by["a"]+by["b"] != 40 {
				t.Errorf("the shares of 3 and 1 are %v", by)
			}
		},
	},
	{
		name: "panic_percent",
		document: `
    - path: /
      backends: [{$a}, {$b}, {$c}]
      health_check: {type: http, path: /healthz, interval: 100ms, timeout: 100ms, healthy_threshold: 1, unhealthy_threshold: 2}
    - path: /strict
      backends: [{$a}, {$b}, {$c}]
      health_check: {type: http, path: /healthz, interval: 100ms, timeout: 100ms, healthy_threshold: 1, unhealthy_threshold: 2}
      load_balancing: {panic_percent: 0}`,
		also: func(t *testing.T, b bench, n *daemon) { b.failsOpen(t, n) },
	},
	{
		name: "retries",
		document: `
    - path: /
      backends: [{$a}, {$b}]
      retries: {attempts: 1, on: [500], per_try_timeout: 1m, budget_percent: 1000}`,
		also: func(t *testing.T, b bench, n *daemon) {
			b.backends["a"].setSick(true)
			defer b.backends["a"].setSick(false)
			client := newClient(t, nil, false)
			failed := 0
			for range 8 {
				if r := get(t, client, "http://"+n.listen+"/healthz"); r.status != 200 {
					t.Errorf("a GET that one of two backends fails is answered %d", r.status)
				}
				request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+n.listen+"/healthz", nil)
				if err != nil {
					t.Fatal(err)
				}
				if do(t, client, request).status == 500 {
					failed++
				}
			}
			if failed == 0 {
				t.Error("every POST was sent again")
			}
			eventually(t, n.name+" counts retries", func() string {
				if text := get(t, client, "http://"+n.admin+"/metrics").body; !strings.Contains(text, `pyserve_retries_total{route="/"}`) {
					return text
				}
				return ""
			})
		},
	},
}
