package control

import (
	"strings"
	"testing"

	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/fleettest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestTheRequestThatIsAskedAbout(t *testing.T) {
	for _, tt := range []struct {
		method, url string
		headers     []string
		head        string
		tls         bool
	}{
		{"GET", "http://a.example.com/x?y=1#z", nil, "GET /x?y=1 HTTP/1.1\r\nHost: a.example.com\r\n\r\n", false},
		{"GET", "HTTPS://A:8443", nil, "GET / HTTP/1.1\r\nHost: A:8443\r\n\r\n", true},
		{"GET", "http://[::1]:80?q", nil, "GET /?q HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", false},
		{"get", "/p/../%2e//é?u=http://b/", nil, "get /p/../%2e//é?u=http://b/ HTTP/1.1\r\nHost: \r\n\r\n", false},
		{"GET", "a.example.com/x", nil, "GET /x HTTP/1.1\r\nHost: a.example.com\r\n\r\n", false},
		{"OPTIONS", "*", nil, "OPTIONS * HTTP/1.1\r\nHost: \r\n\r\n", false},
		{"GET", "", nil, "GET / HTTP/1.1\r\nHost: \r\n\r\n", false},
		{"POST", "http://a/", []string{"host: b ", "X-Y:1", "X-Y:  2"}, "POST / HTTP/1.1\r\nHost: b\r\nX-Y: 1\r\nX-Y: 2\r\n\r\n", false},
	} {
		q, err := questionAbout(&operatorv1.ExplainRequest{Method: tt.method, Url: tt.url, Headers: tt.headers})
		if err != nil || string(q.GetHead()) != tt.head || q.GetTls() != tt.tls {
			t.Errorf("%s %s: %q, %t, %v", tt.method, tt.url, q.GetHead(), q.GetTls(), err)
		}
	}
	for _, m := range []*operatorv1.ExplainRequest{
		{Method: "GET", Url: "ftp://a/"},
		{Method: "GET\r\nX: y", Url: "http://a/"},
		{Method: "GET", Url: "http://a/ HTTP/1.1\r\n\r\nGET /"},
		{Method: "GET", Url: "http://a/", Headers: []string{"X: 1\r\n\r\nGET / HTTP/1.1"}},
		{Method: "GET", Url: "http://a/", Headers: []string{"Host: 1\nX: y"}},
		{Method: "GET", Url: "http://a/", Headers: []string{"no colon"}},
		{Method: "GET", Url: "http://a/" + strings.Repeat("x", maxRequestHead)},
	} {
		_, err := questionAbout(m)
		errorIs(t, err, ErrNotARequest)
	}
}

func TestExplainIsANodesAnswer(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	request := &operatorv1.ExplainRequest{Method: "GET", Url: "http://a/p1/x"}
	_, err := c.Explain(t.Context(), request)
	errorIs(t, err, ErrNobodyServes)
	answer := func(reason string) func(*fleetv1.Question) *fleetv1.Answer {
		return func(q *fleetv1.Question) *fleetv1.Answer {
			return &fleetv1.Answer{
				Route: "/p1", Reason: reason + " was asked " + string(q.GetHead()[:13]), BackendCount: 3,
				Forward:  &fleetv1.Forward{Method: "GET", Path: "/x", Host: "b:1"},
				Backends: []*fleetv1.BackendStatus{{Address: "b:1", State: fleetv1.BackendState_BACKEND_STATE_UNHEALTHY, Reason: "down"}},
				Revision: 1,
			}
		}
	}
	n1, n2 := &fleettest.Node{Name: "n1", Answer: answer("n1")}, &fleettest.Node{Name: "n2", Answer: answer("n2")}
	join(t, c, n1, n2)
	_, err = c.Explain(t.Context(), request)
	errorIs(t, err, ErrNobodyServes)
	applied(t, c, document(1))
	m, err := c.Explain(t.Context(), request)
	if err != nil || m.GetNode() != "n1" || m.GetRoute() != "/p1" || m.GetForward().GetHost() != "b:1" || m.GetRevision() != 1 ||
		m.GetReason() != "n1 was asked GET /p1/x HTT; 2 more backends are not listed" || m.GetBackends()[0].GetState() != "unhealthy" {
		t.Errorf("got %v, %v", m, err)
	}
	request.Node = "n2"
	if m, err := c.Explain(t.Context(), request); err != nil || m.GetNode() != "n2" {
		t.Errorf("got %v, %v", m, err)
	}
	request.Node = "n3"
	_, err = c.Explain(t.Context(), request)
	errorIs(t, err, fleet.ErrNotConnected)
	request.Url = "ftp://a"
	_, err = c.Explain(t.Context(), request)
	errorIs(t, err, ErrNotARequest)
}

func TestWhyIsANodesAnswer(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	request := &operatorv1.ExplainBackendRequest{Address: "b:1"}
	_, err := c.ExplainBackend(t.Context(), request)
	errorIs(t, err, ErrNobodyServes)
	knows := &fleettest.Node{Name: "n1", Answer: func(q *fleetv1.Question) *fleetv1.Answer {
		return &fleetv1.Answer{Revision: 1, Verdicts: &fleetv1.Verdicts{Evidence: []*fleetv1.Evidence{{DecidedBy: "asked about " + q.GetBackend()}}}}
	}}
	old := &fleettest.Node{Name: "n2", Answer: func(*fleetv1.Question) *fleetv1.Answer { return &fleetv1.Answer{Status: 400} }}
	join(t, c, knows, old)
	applied(t, c, document(1))
	m, err := c.ExplainBackend(t.Context(), request)
	if err != nil || m.GetNode() != "n1" || m.GetRevision() != 1 || m.GetBackends()[0].GetDecidedBy() != "asked about b:1" {
		t.Errorf("got %v, %v", m, err)
	}
	_, err = c.ExplainBackend(t.Context(), &operatorv1.ExplainBackendRequest{Address: "b:1", Node: "n2"})
	errorIs(t, err, ErrUnwilling)
	for _, address := range []string{"", "b", strings.Repeat("b", maxAddress) + ":1"} {
		_, err = c.ExplainBackend(t.Context(), &operatorv1.ExplainBackendRequest{Address: address})
		errorIs(t, err, ErrNotARequest)
	}
}

// Whatever somebody asks about is one request, and no more than nodes read.
func FuzzQuestionAbout(f *testing.F) {
	f.Add("GET", "http://a/x?y#z", "Host: b")
	f.Add("G\r\nET", "://", ":")
	f.Add("", "https://[::1]:1", "X: \r\n\r\n")
	f.Fuzz(func(t *testing.T, method, url, header string) {
		q, err := questionAbout(&operatorv1.ExplainRequest{Method: method, Url: url, Headers: []string{header}})
		if err != nil {
			return
		}
		head, ended := strings.CutSuffix(string(q.GetHead()), "\r\n\r\n")
		lines := strings.Split(head, "\r\n")
		if !ended || len(lines) < 2 || len(lines) > 3 || strings.ContainsAny(strings.Join(lines, ""), "\r\n") || len(head) > maxRequestHead {
			t.Errorf("%q %q %q became %q", method, url, header, q.GetHead())
		}
	})
}
