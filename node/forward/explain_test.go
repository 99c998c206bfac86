package forward

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// An explanation is worth as much as it is true: each is compared with what the backend is sent for the same head.
func TestWhatIsExplainedIsWhatIsSent(t *testing.T) {
	b := nodetest.NewRecorder(t, "HTTP/1.1 204 No Content\r\n\r\n")
	kept := to("/kept", b.Port())
	kept.route.StripPath, kept.route.PreserveHost = false, true
	expression := to("^/v[0-9]+/", b.Port())
	expression.route.Match, expression.route.StripPath = resourcev1.PathMatch_PATH_MATCH_REGEX, false
	exactly := to("/exactly", b.Port())
	exactly.route.Match = resourcev1.PathMatch_PATH_MATCH_EXACT
	hosted := to("/", b.Port())
	hosted.route.Hosts = []string{"*.example.com"}
	p := start(t, to("/api", b.Port()), kept, expression, exactly, hosted)
	for _, request := range []string{
		"GET /api HTTP/1.1\r\nHost: a",
		"GET /api/users?x=1&y=%20 HTTP/1.1\r\nHost: a:81",
		"POST /api/./x/../y%2Fz/%7e?/../ HTTP/1.1\r\nHost: a\r\nContent-Length: 0",
		"GET http://b.org/api// HTTP/1.1\r\nHost: a",
		"DELETE /kept/x HTTP/1.1\r\nHost: Some.Host:8080",
		"PURGE /v12/x? HTTP/1.1\r\nHost: a\r\nConnection: X-Y\r\nX-Y: 1",
		"GET /exactly HTTP/1.1\r\nHost: a",
		"GET /anything HTTP/1.1\r\nHost: X.EXAMPLE.com.",
		"OPTIONS /api/x HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3",
	} {
		e := p.proxy.Explain([]byte(request+"\r\n\r\n"), false)
		if e.Status != 0 || e.Route == nil {
			t.Errorf("%q: %+v", request, e)
			continue
		}
		p.exchange(t, request+"\r\nConnection: close\r\n\r\n")
		head := b.Head(t)
		want := e.Method + " " + e.Target + " HTTP/1.1"
		if lines(head)[0] != want || fields(head, "Host")[0] != e.Authority {
			t.Errorf("%q was explained as %q with the host %q, and the backend was sent\n%s", request, want, e.Authority, head)
		}
	}
	if b.Requests() > 0 {
		t.Error("an explanation was sent to the backend")
	}
}

func TestTheProxysOwnAnswersAreExplained(t *testing.T) {
	dead := to("/dead", 1)
	p := start(t, dead, to("/api", 1))
	p.backends[0].SetVerdict(upstream.Verdict{State: upstream.Unhealthy, Reason: "connection refused"})
	for request, want := range map[string]struct {
		status   int
		sentence string
	}{
		"GET /none HTTP/1.1\r\nHost: a\r\n\r\n":                                                               {404, "No route matches this request."},
		"GET /../x HTTP/1.1\r\nHost: a\r\n\r\n":                                                               {400, "The path of the request is not valid."},
		"GET /api HTTP/1.1\r\n\r\n":                                                                           {400, "The request was not understood: "},
		"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n":                                                                {400, "The request was not understood: "},
		"GET /api HTTP/2.0\r\nHost: a\r\n\r\n":                                                                {505, "The request was not understood: "},
		"GET /api HTTP/1.1\r\nHost: a\r\n":                                                                    {400, "The request's head does not end."},
		"GET /api HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n":                                              {400, "The request's head ends before its fields do."},
		"GET /" + strings.Repeat("x", 70_000) + " HTTP/1.1\r\nHost: a\r\n":                                    {414, "The request was not understood: "},
		"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n":                                                               {200, "The proxy answers this for itself."},
		"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n":                                                           {501, "This server is not a forward proxy"},
		"TRACE /api HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n":                                           {501, "does not answer TRACE"},
		"GET /dead/x HTTP/1.1\r\nHost: a\r\n\r\n":                                                             {503, "No backend is healthy"},
		"GET /api HTTP/1.1\r\nHost: a\r\nVia: 1.1 pyserve" + strings.Repeat(", 1.1 pyserve", 16) + "\r\n\r\n": {508, "come by here too often"},
	} {
		e := p.proxy.Explain([]byte(request), false)
		if e.Status != want.status || !strings.Contains(e.Sentence, want.sentence) {
			t.Errorf("%.60q: %d %s, want %d %s", request, e.Status, e.Sentence, want.status, want.sentence)
		}
	}
	if e := p.proxy.Explain([]byte("GET /dead/x HTTP/1.1\r\nHost: a\r\n\r\n"), false); e.Route == nil || e.Target != "/x" {
		t.Errorf("a route without a healthy backend is no route: %+v", e)
	}
	p.table = nil
	if e := p.proxy.Explain([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), false); e.Status != http.StatusServiceUnavailable {
		t.Errorf("without a table: %+v", e)
	}
}

// Whoever asks must not shift the turns of those who send.
func TestAnExplanationTakesNobodysTurn(t *testing.T) {
	one, two := nodetest.NewRecorder(t, "HTTP/1.1 204 No Content\r\n\r\n"), nodetest.NewRecorder(t, "HTTP/1.1 204 No Content\r\n\r\n")
	p := start(t, to("/", one.Port(), two.Port()))
	const head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	for range 4 {
		p.exchange(t, head)
		p.proxy.Explain([]byte(head), false)
	}
	if one.Requests() != 2 || two.Requests() != 2 {
		t.Errorf("the backends were sent %d and %d requests", one.Requests(), two.Requests())
	}
}

func FuzzExplain(f *testing.F) {
	for _, seed := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n", "GET /%zz HTTP/1.0\r\n\r\n", ""} {
		f.Add([]byte(seed), true)
	}
	p := start(f, to("/", 1), to("/api", 1))
	f.Fuzz(func(t *testing.T, head []byte, secure bool) {
		e := p.proxy.Explain(head, secure)
		if e.Status == http.StatusInternalServerError {
			t.Fatalf("a defect: %v", e.Err)
		}
		if (e.Status == 0) != (e.Route != nil && e.Target != "") {
			t.Fatalf("neither forwarded nor answered: %+v", e)
		}
	})
}
