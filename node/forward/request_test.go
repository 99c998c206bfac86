package forward

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

const emptyAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

func TestHeadToTheBackendIsExactlyThis(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, to("/api", b.Port()))
	p.exchange(t, "GET /api/users?x=1 HTTP/1.1\r\nHost: Example.com:8080\r\nx-cUSTOM: a\r\nX-Custom:\tb \r\n"+
		"Accept: */*\r\nCookie: k=v\r\nConnection: close\r\n\r\n")
	got := lines(b.Head(t))
	id := fields(strings.Join(got, "\r\n"), "X-Request-Id")
	if len(id) != 1 || len(id[0]) != 32 {
		t.Fatalf("request id: %q", id)
	}
	want := []string{
		"GET /users?x=1 HTTP/1.1", "Host: 127.0.0.1:" + itoa(b.Port()), "x-cUSTOM: a", "X-Custom: b", "Accept: */*", "Cookie: k=v",
		"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: Example.com:8080",
		"X-Real-IP: 127.0.0.1", "X-Request-ID: " + id[0], "Via: 1.1 pyserve",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestPathForwarded(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	keep := to("/keep", b.Port())
	keep.route.StripPath = false
	exact := to("/exact", b.Port())
	exact.route.Match = resourcev1.PathMatch_PATH_MATCH_EXACT
	regex := to("^/re[0-9]+$", b.Port())
	regex.route.Match, regex.route.StripPath = resourcev1.PathMatch_PATH_MATCH_REGEX, false
	p := start(t, to("/api", b.Port()), keep, exact, regex)
	rooted := start(t, whole(b.Port()))
	for _, c := range []struct{ sent, want string }{
		{"/api", "/"},
		{"/api/", "/"},
		{"/api?", "/?"},
		{"/api?a=b?c=d", "/?a=b?c=d"},
		{"/api/x", "/x"},
		{"/api//x", "//x"},
		{"/api///", "///"},
		{"/api/x/../y", "/y"},
		{"/api/%2e%2E/api/./z", "/z"},
		{"/other/../api/x", "/x"},
		{"/%61pi/x", "/x"},
		{"/api/a%2Fb", "/a%2Fb"},
		{"/api/a%2fb%7e", "/a%2Fb~"},
		{"/api/%E4%BD%A0", "/%E4%BD%A0"},
		{"/api/\xe4\xbd\xa0", "/%E4%BD%A0"},
		{"/api/a|b{c}", "/a%7Cb%7Bc%7D"},
		{"/api/a;b=c,d@e:f!$&'()*+", "/a;b=c,d@e:f!$&'()*+"},
		{"/api/%25", "/%25"},
		{"/api/x?q=%2F&r=a%zz&s=\xe4+|", "/x?q=%2F&r=a%zz&s=\xe4+|"},
		{"/api/x?/../y", "/x?/../y"},
		{"/keep", "/keep"},
		{"/keep/", "/keep/"},
		{"/keep/a//b?c", "/keep/a//b?c"},
		{"/exact", "/"},
		{"/re42", "/re42"},
		{"http://ignored.example/api/x?y", "/x?y"},
		{"HTTP://ignored.example/api", "/"},
	} {
		answer := p.exchange(t, "GET "+c.sent+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
			t.Errorf("%s: %s", c.sent, answer)
			continue
		}
		if got, want := lines(b.Head(t))[0], "GET "+c.want+" HTTP/1.1"; got != want {
			t.Errorf("%s: got %q, want %q", c.sent, got, want)
		}
	}
	for _, c := range []struct{ sent, want string }{
		{"/", "/"}, {"//", "//"}, {"//evil.example/x", "//evil.example/x"}, {"/?", "/?"}, {"/apix", "/apix"},
		{"http://ignored.example", "/"}, {"http://ignored.example?q", "/?q"},
	} {
		rooted.exchange(t, "GET "+c.sent+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if got, want := lines(b.Head(t))[0], "GET "+c.want+" HTTP/1.1"; got != want {
			t.Errorf("%s: got %q, want %q", c.sent, got, want)
		}
	}
}

func TestTargetsThatAreRefused(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, to("/api", b.Port()))
	for _, c := range []struct {
		line   string
		status int
	}{
		{"GET /api/../../etc/passwd", 400},
		{"GET /api/%2e%2e/%2e%2e/x", 400},
		{"GET /api/%zz", 400},
		{"GET /api/x#fragment", 400},
		{"GET /api/x?q#fragment", 400},
		{"GET *", 400},
		{"GET ftp://x/api", 400},
		{"GET /apix", 404},
		{"GET /", 404},
		{"GET /API", 404},
		{"CONNECT example.com:443", 501},
		{"OPTIONS *", 200},
	} {
		answer := p.exchange(t, c.line+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(answer, fmt.Sprintf("HTTP/1.1 %d ", c.status)) {
			t.Errorf("%s: %s", c.line, answer)
		}
	}
	if n := b.Requests(); n != 0 {
		t.Errorf("the backend was sent %d requests", n)
	}
}

func TestHopByHopHeadersStay(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close, X-Secret, x-forwarded-for, X-Request-ID\r\nX-Secret: 1\r\n"+
		"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nUpgrade: websocket\r\n"+
		"TE: gzip\r\nTrailer: X-T\r\nHTTP2-Settings: eA\r\nX-End: to-end\r\n\r\n")
	head := b.Head(t)
	for _, name := range []string{
		"Connection", "X-Secret", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Upgrade", "TE", "Transfer-Encoding", "HTTP2-Settings",
	} {
		if got := fields(head, name); got != nil {
			t.Errorf("%s was forwarded: %q", name, got)
		}
	}
	for _, name := range []string{"X-End", "Trailer", "X-Forwarded-For", "X-Request-ID"} {
		if fields(head, name) == nil {
			t.Errorf("%s is missing: Connection must not take what the proxy adds, and trailers pass", name)
		}
	}
}

func TestNothingIsInvented(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	for _, method := range []string{"GET", "HEAD", "DELETE", "OPTIONS", "PROPFIND"} {
		p.exchange(t, method+" / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		head := b.Head(t)
		for _, name := range []string{"User-Agent", "Accept-Encoding", "Accept", "Content-Length", "Transfer-Encoding", "Connection", "Content-Type"} {
			if got := fields(head, name); got != nil {
				t.Errorf("%s: %s was invented: %q", method, name, got)
			}
		}
	}
}

func TestTrailersAreAskedForOnlyIfTheClientDoes(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: TE, close\r\nTE: deflate;q=0.5, trailers\r\n\r\n")
	head := b.Head(t)
	if te, options := fields(head, "TE"), fields(head, "Connection"); !slices.Equal(te, []string{"trailers"}) || !slices.Equal(options, []string{"TE"}) {
		t.Errorf("TE %q, Connection %q", te, options)
	}
}

func TestHostForwarded(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	own := to("/own", b.Port())
	kept := to("/kept", b.Port())
	kept.route.PreserveHost = true
	p := start(t, own, kept)
	for path, want := range map[string]string{"/own": "127.0.0.1:" + itoa(b.Port()), "/kept": "Example.COM:81"} {
		p.exchange(t, "GET "+path+" HTTP/1.1\r\nHost: Example.COM:81\r\nConnection: close\r\n\r\n")
		if got := fields(b.Head(t), "Host"); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: Host %q, want %q", path, got, want)
		}
	}
}

func TestForwardedHeadersOfUntrustedClientsAreReplaced(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := startWith(t, settings{trusted: []string{"10.0.0.0/8"}}, whole(b.Port()))
	p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n"+
		"X-Forwarded-Host: evil\r\nX_forwarded_FOR: 6.6.6.6\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /e\r\nX-Real-IP: 1.2.3.4\r\nX-Request-ID: mine\r\nVia: 1.0 fred\r\n\r\n")
	head := b.Head(t)
	for name, want := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "x", "X-Real-IP": "127.0.0.1",
		"X-Forwarded-Port": "", "X-Forwarded-Prefix": "", "X_Forwarded_For": "",
	} {
		if got := strings.Join(fields(head, name), "|"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := fields(head, "X-Request-ID"); len(got) != 1 || got[0] == "mine" {
		t.Errorf("X-Request-ID: %q", got)
	}
	if got := fields(head, "Via"); !slices.Equal(got, []string{"1.0 fred", "1.1 pyserve"}) {
		t.Errorf("Via: %q", got)
	}
}

func TestForwardedHeadersOfTrustedProxiesAreExtended(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := startWith(t, settings{trusted: []string{"127.0.0.0/8", "10.0.0.0/8"}}, whole(b.Port()))
	for _, c := range []struct{ sent, chain, real string }{
		{"", "127.0.0.1", "127.0.0.1"},
		{"X-Forwarded-For: 1.2.3.4\r\n", "1.2.3.4, 127.0.0.1", "1.2.3.4"},
		{"X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.1.1.1\r\n", "6.6.6.6, 1.2.3.4, 10.1.1.1, 127.0.0.1", "1.2.3.4"},
		{"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 1.2.3.4\r\n", "6.6.6.6, 1.2.3.4, 127.0.0.1", "1.2.3.4"},
		{"X-Forwarded-For: 10.2.2.2, 10.1.1.1\r\n", "10.2.2.2, 10.1.1.1, 127.0.0.1", "10.2.2.2"},
		{"X-Forwarded-For: 1.2.3.4, nonsense, 10.1.1.1\r\n", "1.2.3.4, nonsense, 10.1.1.1, 127.0.0.1", "10.1.1.1"},
		{"X-Forwarded-For: 1.2.3.4:55\r\n", "1.2.3.4:55, 127.0.0.1", "1.2.3.4"},
		{"X-Forwarded-For: [2001:db8::1]:443\r\n", "[2001:db8::1]:443, 127.0.0.1", "2001:db8::1"},
		{"X-Forwarded-For: ::ffff:10.9.9.9\r\n", "::ffff:10.9.9.9, 127.0.0.1", "10.9.9.9"},
		{"X-Real-IP: 1.2.3.4\r\n", "127.0.0.1", "127.0.0.1"},
	} {
		p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+c.sent+
			"X-Forwarded-Proto: https\r\nX-Forwarded-Host: public.example\r\nX-Forwarded-Port: 443\r\nX-Request-ID: abc-123\r\n\r\n")
		head := b.Head(t)
		for name, want := range map[string]string{
			"X-Forwarded-For": c.chain, "X-Real-IP": c.real, "X-Forwarded-Proto": "https",
			"X-Forwarded-Host": "public.example", "X-Forwarded-Port": "443", "X-Request-ID": "abc-123",
		} {
			if got := strings.Join(fields(head, name), "|"); got != want {
				t.Errorf("%q: %s %q, want %q", c.sent, name, got, want)
			}
		}
	}
}

func TestRequestIDsThatAreNotBelieved(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := startWith(t, settings{trusted: []string{"127.0.0.1/32"}}, whole(b.Port()))
	for _, sent := range []string{"", "a b", "<script>", "a\"b", strings.Repeat("a", maxRequestID+1), "é"} {
		p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-ID: "+sent+"\r\n\r\n")
		if got := fields(b.Head(t), "X-Request-ID"); len(got) != 1 || len(got[0]) != 32 {
			t.Errorf("%q: forwarded %q", sent, got)
		}
	}
}

func TestALoopEnds(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	via := strings.TrimSuffix(strings.Repeat("1.1 pyserve, ", maxLaps), ", ")
	if answer := p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nVia: "+via+"\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 508 ") {
		t.Error(answer)
	}
}

func TestMaxForwardsIsCountedDown(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	for _, c := range []struct{ line, sent, want string }{
		{"OPTIONS / HTTP/1.1", "3", "2"}, {"GET / HTTP/1.1", "3", "3"},
	} {
		p.exchange(t, c.line+"\r\nHost: x\r\nConnection: close\r\nMax-Forwards: "+c.sent+"\r\n\r\n")
		if got := fields(b.Head(t), "Max-Forwards"); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s: %q, want %s", c.line, got, c.want)
		}
	}
	if answer := p.exchange(t, "TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nMax-Forwards: 0\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 501 ") {
		t.Error(answer)
	}
}

func TestRouteByHost(t *testing.T) {
	a, b := nodetest.NewRecorder(t, emptyAnswer), nodetest.NewRecorder(t, emptyAnswer)
	named := whole(a.Port())
	named.route.Hosts = []string{"a.example"}
	p := start(t, named, to("/x", b.Port()))
	for host, want := range map[string]*nodetest.Recorder{"A.Example.:8080": a, "b.example": b} {
		p.exchange(t, "GET /x HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		want.Head(t)
	}
	// The authority of the absolute form counts, not the Host header (RFC 9112 section 3.2.2).
	p.exchange(t, "GET http://a.example/x HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n")
	if got := fields(a.Head(t), "X-Forwarded-Host"); !slices.Equal(got, []string{"a.example"}) {
		t.Errorf("X-Forwarded-Host: %q", got)
	}
}

func TestNothingServedIs503(t *testing.T) {
	p := start(t)
	p.table = nil
	res, _ := get(t, client(t, nil), p.url("/"))
	if res.StatusCode != http.StatusServiceUnavailable {
		t.Error(res.Status)
	}
}

func TestAnAnnouncedClientIsWhoAsks(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	ask := func(announced string, field string) string {
		p := startWith(t, settings{trusted: []string{"127.0.0.0/8", "10.0.0.0/8"}, client: netip.MustParseAddr(announced)}, whole(b.Port()))
		p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.9\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n")
		return strings.Join(fields(b.Head(t), field), "|")
	}
	for _, c := range []struct{ announced, field, want string }{
		// Nobody who is trusted: what it says of others is not believed, though the proxy that speaks for it is.
		{"203.0.113.7", "X-Forwarded-For", "203.0.113.7"},
		{"203.0.113.7", "X-Real-IP", "203.0.113.7"},
		{"203.0.113.7", "X-Forwarded-Proto", "http"},
		{"2001:db8::7", "X-Real-IP", "2001:db8::7"},
		// Another proxy.
		{"10.0.0.1", "X-Forwarded-For", "198.51.100.9, 10.0.0.1"},
		{"10.0.0.1", "X-Real-IP", "198.51.100.9"},
		{"10.0.0.1", "X-Forwarded-Proto", "https"},
	} {
		if got := ask(c.announced, c.field); got != c.want {
			t.Errorf("%s of %s: %q, want %q", c.field, c.announced, got, c.want)
		}
	}
}

func TestAnAnnouncedClientIsWhoAsksOverHTTP2(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := startWith(t, settings{client: netip.MustParseAddr("203.0.113.7")}, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, true, ordinary("GET", "/")...)
	if o := c.await(1); o.status != "200" {
		t.Fatalf("%v", o)
	}
	if got := fields(b.Head(t), "X-Forwarded-For"); !slices.Equal(got, []string{"203.0.113.7"}) {
		t.Errorf("X-Forwarded-For: %q", got)
	}
}
