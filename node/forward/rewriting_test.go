package forward

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// edits gives edits of texts: "+Name: value" adds, "=Name: value" sets, "-name" removes.
func edits(texts ...string) *resourcev1.FieldEdits {
	m := &resourcev1.FieldEdits{}
	for _, text := range texts {
		name, value, _ := strings.Cut(text[1:], ": ")
		f := &resourcev1.Field{Name: name, Value: value}
		switch text[0] {
		case '+':
			m.Add = append(m.Add, f)
		case '=':
			m.Set = append(m.Set, f)
		default:
			m.Remove = append(m.Remove, name)
		}
	}
	return m
}

func TestEditedHeadToTheBackendIsExactlyThis(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	s := to("/api", b.Port())
	s.route.RequestHeaders = edits("-cookie", "-x-request-id", "=X-Custom: {path} {query}", "=Host: in.{host}:80", "=X-Forwarded-Host: {client_ip}", "+Accept: text/{{")
	p := start(t, s)
	p.exchange(t, "GET /api/users?x=1 HTTP/1.1\r\nHost: Example.com:8080\r\nx-cUSTOM: a\r\nX-Custom:\tb \r\n"+
		"Accept: */*\r\nCookie: k=v\r\nCookie: l=w\r\nCookies: kept\r\nConnection: close\r\n\r\n")
	want := []string{
		"GET /users?x=1 HTTP/1.1", "Host: in.Example.com:80", "Accept: */*", "Cookies: kept",
		"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X-Real-IP: 127.0.0.1", "X-Custom: /api/users x=1",
		"X-Forwarded-Host: 127.0.0.1", "Accept: text/{", "Via: 1.1 pyserve",
	}
	if got := lines(b.Head(t)); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAnEditThatComesToNothingIsAnEmptyField(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	s := whole(b.Port())
	s.route.RequestHeaders = edits("=X-Query: {query} ", "=X-Both:  a {query}")
	p := start(t, s)
	p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if head := b.Head(t); !slices.Equal(fields(head, "X-Query"), []string{""}) || !slices.Equal(fields(head, "X-Both"), []string{"a"}) {
		t.Errorf("%q", head)
	}
}

func TestTheHostOfATrustedProxyIsLookedAt(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	s := whole(b.Port())
	s.route.RequestHeaders = edits("=Host: {host}")
	p := startWith(t, settings{trusted: []string{"127.0.0.0/8"}}, s)
	for sent, want := range map[string]string{"shop.example.com:81": "shop.example.com", "[::1]:81": "[::1]", "a b": "x", "a@b": "x", "a/b": "x"} {
		p.exchange(t, "GET / HTTP/1.1\r\nHost: x:80\r\nX-Forwarded-Host: "+sent+"\r\nConnection: close\r\n\r\n")
		if got := fields(b.Head(t), "Host"); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %q, want %s", sent, got, want)
		}
	}
}

func TestTheBackendsPlaceIsKnownByTheHostThatItIsSent(t *testing.T) {
	b, _ := scripted(t, serve("HTTP/1.1 302 Found\r\nLocation: http://in.example.com/x\r\nContent-Length: 0\r\n\r\n"))
	s := to("/api", b.Port())
	s.route.RequestHeaders = edits("=Host: in.example.com")
	p := start(t, s)
	w := connect(t, p)
	w.say("GET /api HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
	if got := w.want("GET", 302, "").Header.Get("Location"); got != "http://shop.example.com/api/x" {
		t.Errorf("Location: %s", got)
	}
}

func TestAHeadThatEditsMakeTooLongIs431(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	s := whole(b.Port())
	s.route.RequestHeaders = edits("=A: " + strings.Repeat("{path}", 16))
	p := start(t, s)
	w := connect(t, p)
	w.say("GET /" + strings.Repeat("x", 20<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n")
	if res, _, err := w.answer("GET"); err != nil || res.StatusCode != 431 || b.Requests() != 0 {
		t.Errorf("%v, %v; the backend was asked %d times", res, err, b.Requests())
	}
	w.say(ask("/short"))
	w.want("GET", 200, "")
}

func TestInterimAnswersAreNotEdited(t *testing.T) {
	b, _ := scripted(t, serve("HTTP/1.1 103 Early Hints\r\nX-Own: 1\r\n\r\n"+emptyAnswer))
	s := whole(b.Port())
	s.route.ResponseHeaders = edits("=X-Own: 2")
	p := start(t, s)
	w := connect(t, p)
	w.say(ask("/"))
	if head := w.head("HTTP/1.1 103 "); !slices.Equal(fields(head, "X-Own"), []string{"1"}) {
		t.Errorf("%q", head)
	}
	if head := w.head("HTTP/1.1 200 "); !slices.Equal(fields(head, "X-Own"), []string{"2"}) {
		t.Errorf("%q", head)
	}
}

func TestErrorsOfTheProxyAreNotEdited(t *testing.T) {
	s := whole(closedPort(t))
	s.route.ResponseHeaders = edits("=Cache-Control: max-age=3600")
	p := start(t, s)
	w := connect(t, p)
	w.say(ask("/"))
	if res, _, err := w.answer("GET"); err != nil || res.StatusCode != 502 || res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%v, %v", res, err)
	}
}

func TestEditsAllocateNothingForARequest(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	s := site{route: &resourcev1.Route{
		RequestHeaders:  edits("-cookie", "=X-Tenant: {host}", "+X-From: {client_ip} {path}?{query}"),
		ResponseHeaders: edits("-server", "=Cache-Control: no-store"),
	}}
	a := newAskerOf(t, loads[1], s)
	if n := testing.AllocsPerRun(1000, func() {
		if err := a.ask(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkGetEdited(b *testing.B) {
	a := newAskerOf(b, loads[1], site{route: &resourcev1.Route{
		RequestHeaders:  edits("-cookie", "=X-Tenant: {host}", "+X-From: {client_ip} {path}?{query}"),
		ResponseHeaders: edits("-server", "=Cache-Control: no-store"),
	}})
	b.ReportAllocs()
	for b.Loop() {
		if err := a.ask(); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzEdits: whatever a client sends, edited heads have the lines of the unedited one without those that go, and those that
// come: nothing of a request makes a line of its own.
func FuzzEdits(f *testing.F) {
	f.Add("/a%0D%0AX-Evil:%201", "q=\xff&{x}", "example.com", "X-Tenant: a\r\nx-gone: b\r\nOther: c\r\n")
	f.Add("//", "", "[::1]:80", "")
	e, host, err := newFieldEdits("", edits("-x-gone", "=X-Tenant: {host}", "+X-From: {path}?{query}", "=Host: {host}"), &templates{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path, query, authority, more string) {
		x := newExchange()
		raw := "GET " + path + "?" + query + " HTTP/1.1\r\nHost: " + authority + "\r\n" + more + "\r\n"
		if n, err := x.request.Parse([]byte(raw)); err != nil || n != len(raw) {
			return
		}
		x.path, x.origin.host = x.request.Path(), x.request.Authority()
		var head []byte
		var want []string
		for i := range x.request.Len() {
			head = x.request.AppendLine(head, i)
			switch name := strings.ToLower(string(x.request.Name(i))); name {
			case "x-gone", "x-tenant":
			default:
				want = append(want, string(x.request.Name(i))+": "+string(x.request.Value(i)))
			}
		}
		want = append(want, "X-Tenant: "+string(x.publicHost()), "X-From: "+path+"?"+query)
		out, err := x.edit(append([]byte("kept"), head...), len("kept"), e)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(out), "kept"+strings.Join(want, "\r\n")+"\r\n"; got != want {
			t.Fatalf("%q, want %q", got, want)
		}
		if named := x.appendTemplate(nil, host); http1.CheckValue(named) != nil {
			t.Fatalf("the host is %q", named)
		}
	})
}

// answersItself is a site that answers itself.
func answersItself(path string, r *resourcev1.Route) site {
	r.Path, r.Match = path, resourcev1.PathMatch_PATH_MATCH_PREFIX
	return site{route: r}
}

func TestARedirectKeepsTheConnection(t *testing.T) {
	p := start(t, answersItself("/", &resourcev1.Route{Redirect: &resourcev1.Redirect{To: "https://example.com{path}", Status: 308}}))
	w := connect(t, p)
	for range 2 {
		w.say(ask("/a?b"))
		if head := w.head("HTTP/1.1 308 Permanent Redirect\r\n"); len(fields(head, "Date")) != 1 || len(lines(head)) != 4 ||
			!slices.Equal(fields(head, "Location"), []string{"https://example.com/a?b"}) || !slices.Equal(fields(head, "Content-Length"), []string{"0"}) {
			t.Errorf("%q", head)
		}
	}
	w.say("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + ask("/b"))
	w.head("HTTP/1.1 308 ")
	w.head("HTTP/1.1 308 ") // the body that came along was not in the way
	w.say("POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
	if head := w.head("HTTP/1.1 308 "); !slices.Equal(fields(head, "Connection"), []string{"close"}) {
		t.Errorf("%q", head)
	}
	w.ended()
}

func TestLocations(t *testing.T) {
	for _, c := range []struct{ to, target, want string }{
		{"{path}", "//evil.example/", "/evil.example/"},
		{"{path}/", "//evil.example", "/evil.example/"},
		{"/{query}", "/?\\evil.example", "/evil.example"},
		{"/{query}", "/?/\\/evil.example", "/evil.example"},
		{"/a{path}", "//b", "/a//b"},
		{"https://example.com{path}", "//b?c", "https://example.com//b?c"},
		{"https://example.com{path}", "/b?", "https://example.com/b"},
		{"/x?y={query}", "/a?b=c", "/x?y=b=c"},
		{"/x?{query}", "/a", "/x"},
		{"/x?{query}", "/a?b?", "/x?b?"},
		{"/x#y", "/a?b", "/x#y"},
		{"/x?", "/a?b", "/x"},
		{"/x", "/a?b", "/x?b"},
	} {
		p := start(t, answersItself("/", &resourcev1.Route{Redirect: &resourcev1.Redirect{To: c.to, Status: 302}}))
		answer := p.exchange(t, "GET "+c.target+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if got := fields(answer, "Location"); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s for %s: %q, want %q", c.to, c.target, got, c.want)
		}
	}
}

func TestARedirectToTheClientsHostNeedsOne(t *testing.T) {
	p := start(t, answersItself("/", &resourcev1.Route{Redirect: &resourcev1.Redirect{To: "https://{host}{path}", Status: 301}}))
	if answer := p.exchange(t, "GET /a HTTP/1.0\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
		t.Errorf("%q", answer)
	}
}

func TestAnAnswerWithoutContentSaysNoLength(t *testing.T) {
	for range 2 { // the first exchange of a proxy is a new one
		p := start(t, answersItself("/", &resourcev1.Route{Respond: &resourcev1.Respond{Status: 204}}))
		w := connect(t, p)
		w.say(ask("/"))
		if head := w.head("HTTP/1.1 204 No Content\r\n"); len(lines(head)) != 2 || len(fields(head, "Date")) != 1 {
			t.Errorf("%q", head)
		}
	}
}

func TestHTTP2WebSocketIsNotOpenedByAFixedAnswer(t *testing.T) {
	p := start(t, answersItself("/", &resourcev1.Route{Respond: &resourcev1.Respond{Status: 200, Body: "x"}}))
	c := connectFrames(t, p)
	c.open(1, false, webSocketConnect("/")...)
	if o := c.await(1); o.status != "400" {
		t.Errorf("%v", o)
	}
}

const chunks = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

// limited is a site with a limit of bodies.
func limited(most uint64, ports ...uint32) site {
	s := whole(ports...)
	s.route.MaxBodyBytes = most
	return s
}

func TestABodyWithinItsLimitPasses(t *testing.T) {
	b := mirror(t)
	p := start(t, limited(10, b.Port()))
	w := connect(t, p)
	w.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789")
	w.want("POST", 200, "POST / 0123456789")
	w.say(chunks + "5\r\n01234\r\n1;ext=1\r\n5\r\n4\r\n6789\r\n0\r\nX-Trailer: of more than ten bytes\r\n\r\n")
	w.want("POST", 200, "POST / 0123456789")
}

func TestABodyThatSaysThatItIsTooLongReachesNoBackend(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, limited(10, b.Port()))
	for _, raw := range []string{
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n01234567890",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n",
	} {
		w := connect(t, p)
		w.say(raw)
		if res, body, err := w.answer("POST"); err != nil || res.StatusCode != 413 || !strings.HasPrefix(body, "The body of the request is too long. ") {
			t.Errorf("%v %q, %v", res, body, err)
		}
	}
	if n := metric(t, p, "pyserve_rejected_messages_total", "side", "client", "reason", http1.BodyTooLong.String()); b.Requests() != 0 || n != 2 {
		t.Errorf("the backend was asked %d times, and %v bodies were counted", b.Requests(), n)
	}
}

func TestABodyThatTurnsOutToBeTooLongIsCutOff(t *testing.T) {
	got := make(chan string, 1)
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		all, _ := io.ReadAll(c) // until it is closed
		got <- string(all)
	})
	p := start(t, limited(10, b.Port()))
	w := connect(t, p)
	w.say(chunks + "8\r\n01234567\r\n")
	w.say("3\r\n")
	res, body, err := w.answer("POST")
	if err != nil || res.StatusCode != 413 || !res.Close || !strings.HasPrefix(body, "The body of the request is too long. ") {
		t.Errorf("%v %q, %v", res, body, err)
	}
	if all := <-got; strings.HasSuffix(all, "0\r\n\r\n") || strings.Contains(all, "3\r\n") {
		t.Errorf("the backend was sent %q", all)
	}
}

func TestAnAnswerThatHasBegunIsCutOffWithItsBody(t *testing.T) {
	b, _ := scripted(t, func(w *wire) {
		nodetest.ReadHead(w.in)
		io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123")
		io.Copy(io.Discard, w.in)
	})
	p := start(t, limited(10, b.Port()))
	w := connect(t, p)
	w.say(chunks + "1\r\n0\r\n")
	w.head("HTTP/1.1 200 ")
	if got := w.read(4); got != "0123" {
		t.Errorf("%q", got)
	}
	w.say("a\r\n")
	if rest, err := io.ReadAll(w.in); len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestHTTP2BodyThatIsTooLong(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	_, c, url := startHTTP2(t, limited(1<<10, portOf(b)))
	for size, status := range map[int]int{1 << 10: 200, 1<<10 + 1: 413, 1 << 20: 413} {
		for _, known := range []bool{true, false} {
			var body io.Reader = strings.NewReader(strings.Repeat("x", size))
			if !known {
				body = bufio.NewReader(body)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
			if err != nil {
				t.Fatal(err)
			}
			res, err := c.Do(req)
			if err != nil {
				t.Fatalf("%d bytes, length known: %v: %v", size, known, err)
			}
			res.Body.Close()
			if res.StatusCode != status || res.Proto != "HTTP/2.0" {
				t.Errorf("%d bytes, length known: %v: %s %d, want %d", size, known, res.Proto, res.StatusCode, status)
			}
		}
	}
}
