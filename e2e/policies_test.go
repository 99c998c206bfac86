package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// policy is a row of TestPolicies: a document, and what clients and backends see of it at each node.
type policy struct {
	name string
	// document is applied as it is, but for $a, $b and $c, each of which stands for "host: …, port: …" of a backend. It may
	// begin with the routes, each with "- ", without the sections around them.
	document string
	// asks are made in turn, at each node over HTTP/1.1 and then over HTTP/2.
	asks []ask
	// also checks what asks cannot say, once for each node.
	also func(t *testing.T, b bench, node *daemon)
}

// ask is a request and what has to come of it. Without a status it has to reach a backend, which answers 200.
type ask struct {
	method string   // empty: GET
	path   string   // with a query, if there is one
	header []string // names and values in turn; Host is the request's
	body   string

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
	for _, p := range policies {
		t.Run(p.name, func(t *testing.T) {
			applied := b.apply(b.fill(p.document))
			applied.wants(t, 0)
			for _, n := range b.nodes {
				for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
					for _, a := range p.asks {
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
		pairs = append(pairs, "$"+name, fmt.Sprintf("host: 127.0.0.1, port: %d", backend.port))
	}
	return strings.NewReplacer(pairs...).Replace(document)
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
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.listen+a.path, strings.NewReader(a.body))
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
		name: "strip_path and preserve_host",
		document: `
    - {path: /api, $a}
    - {path: /kept, $b, strip_path: false, preserve_host: true}`,
		asks: []ask{
			{path: "/api/x?y=1", by: "a", uri: "/x?y=1"},
			{path: "/kept/x", header: []string{"Host", "shop.example.com"}, by: "b", uri: "/kept/x", host: "shop.example.com"},
			{path: "/elsewhere", status: 404, unasked: true},
		},
	},
}
