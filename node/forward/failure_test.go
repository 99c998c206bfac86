package forward

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// metric reads one series; 0 where it does not exist.
func metric(t testing.TB, p *proxy, name string, labels ...string) float64 {
	t.Helper()
	families, err := p.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
	series:
		for _, m := range family.GetMetric() {
			for i := 0; i+1 < len(labels); i += 2 {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
				}
				if !found {
					continue series
				}
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return 0
}

// counting is a raw backend that counts the connections it was given.
func counting(t testing.TB, serve func(net.Conn)) (*nodetest.RawBackend, *atomic.Int64) {
	t.Helper()
	n := new(atomic.Int64)
	return nodetest.NewRawBackend(t, func(c net.Conn) {
		n.Add(1)
		serve(c)
	}), n
}

func send(t testing.TB, p *proxy, method, body string) (*http.Response, string) {
	t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, p.url("/"), reader)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, client(t, nil), req)
}

func TestARefusedConnectionIsTriedElsewhereWhateverTheMethod(t *testing.T) {
	good := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	p := start(t, whole(closedPort(t), portOf(good)))
	for range 6 { // the dead one's turn comes in at least half of them
		for _, c := range []struct{ method, body string }{{"GET", ""}, {"POST", "once"}, {"PATCH", "only"}} {
			if res, body := send(t, p, c.method, c.body); res.StatusCode != 200 || body != c.body {
				t.Errorf("%s: %s %q", c.method, res.Status, body)
			}
		}
	}
	if n := metric(t, p, "pyserve_retries_total", "route", "/"); n < 9 {
		t.Errorf("%v retries counted", n)
	}
}

func TestARequestIsTriedTwiceAtMost(t *testing.T) {
	p := start(t, whole(closedPort(t), closedPort(t), closedPort(t)))
	if res, _ := send(t, p, "GET", ""); res.StatusCode != http.StatusBadGateway {
		t.Error(res.Status)
	}
	if n := metric(t, p, "pyserve_retries_total", "route", "/"); n != 1 {
		t.Errorf("%v retries", n)
	}
}

func TestAConnectionThatDiesBeforeTheAnswer(t *testing.T) {
	for _, c := range []struct {
		method, body string
		status       int
	}{
		{"GET", "", 200}, {"HEAD", "", 200}, {"OPTIONS", "", 200}, {"DELETE", "", 200}, {"PUT", "", 200},
		{"POST", "", 502}, {"PATCH", "", 502}, // perhaps the backend did it
		{"PUT", "body", 200}, // it came with its head, and is still there
	} {
		t.Run(c.method+c.body, func(t *testing.T) {
			bad, asked := counting(t, func(c net.Conn) { nodetest.ReadHead(bufio.NewReader(c)) })
			good := backend(t, func(w http.ResponseWriter, r *http.Request) {})
			p := start(t, whole(bad.Port(), portOf(good)))
			res, _ := send(t, p, c.method, c.body)
			if res.StatusCode != c.status {
				t.Errorf("%s, want %d", res.Status, c.status)
			}
			if asked.Load() != 1 {
				t.Errorf("the bad backend was asked %d times", asked.Load())
			}
		})
	}
}

func TestTheOnlyBackendIsAskedAgainOnANewConnection(t *testing.T) {
	var n atomic.Int64
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		if n.Add(1) > 1 {
			once(emptyAnswer)(c)
			return
		}
		nodetest.ReadHead(bufio.NewReader(c))
	})
	p := start(t, whole(b.Port()))
	if res, _ := send(t, p, "GET", ""); res.StatusCode != 200 {
		t.Error(res.Status)
	}
}

func TestNothingIsRepeatedAfterAByteOfAnAnswer(t *testing.T) {
	for _, answer := range []string{"H", "HTTP/1.1 2", "nonsense\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"} {
		bad, asked := counting(t, once(answer))
		good, other := counting(t, once(emptyAnswer))
		p := start(t, whole(bad.Port(), good.Port()))
		if res, _ := send(t, p, "GET", ""); res.StatusCode != http.StatusBadGateway {
			t.Errorf("%q: %s", answer, res.Status)
		}
		if asked.Load() != 1 || other.Load() != 0 {
			t.Errorf("%q: asked %d and %d times", answer, asked.Load(), other.Load())
		}
	}
}

func TestKillingABackendUnderLoadIsNotSeen(t *testing.T) {
	good := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
	dying, _ := counting(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			if _, err := nodetest.ReadHead(in); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	p := start(t, whole(dying.Port(), portOf(good)))
	const clients, each = 8, 50
	failed := make(chan string, clients*each)
	halfway := make(chan struct{}, clients)
	done := make(chan struct{}, clients)
	for range clients {
		go func() {
			defer func() { done <- struct{}{} }()
			c := client(t, nil)
			for i := range each {
				if i == each/2 {
					halfway <- struct{}{}
				}
				res, err := c.Get(p.url("/"))
				if err != nil {
					failed <- err.Error()
					continue
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode != 200 || string(body) != "ok" {
					failed <- res.Status
				}
			}
		}()
	}
	<-halfway
	dying.Close()
	for range clients {
		<-done
	}
	close(failed)
	for f := range failed {
		t.Error(f)
	}
}

func TestABackendThatIsTooSlow(t *testing.T) {
	release := make(chan struct{})
	slow, asked := counting(t, func(c net.Conn) {
		nodetest.ReadHead(bufio.NewReader(c))
		<-release
	})
	t.Cleanup(func() { close(release) })
	other, others := counting(t, once(emptyAnswer))
	p := start(t, answersWithin(100*time.Millisecond, whole(slow.Port(), other.Port())))
	if res, body := send(t, p, "GET", ""); res.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("%s %s", res.Status, body)
	}
	if asked.Load() != 1 || others.Load() != 0 {
		t.Errorf("asked %d and %d times: asking twice does not help a backend that is too slow", asked.Load(), others.Load())
	}
}

func TestNoBackendTakesTraffic(t *testing.T) {
	p := start(t, whole())
	res, body := send(t, p, "GET", "")
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "1" {
		t.Errorf("%s %v", res.Status, res.Header)
	}
	if !strings.HasPrefix(body, "No backend is healthy for this request. (request ") {
		t.Error(body)
	}
}

func TestABodyThatTheClientBreaksOffIsNotTheBackendsFault(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	p := start(t, whole(portOf(b)))
	c := nodetest.Dial(t, p.address)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nzz\r\n")
	if head, err := nodetest.ReadHead(bufio.NewReader(c)); err != nil || !strings.HasPrefix(head, "HTTP/1.1 400 ") {
		t.Errorf("%q %v", head, err)
	}
	nodetest.Eventually(t, "it is counted as the client's, which is after the answer", func() bool {
		return metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "client") == 1
	})
}

func TestErrorsNeverNameTheBackend(t *testing.T) {
	ports := []uint32{closedPort(t), answering(t, "").Port(), answering(t, "junk\r\n\r\n").Port(), answering(t, "HTTP/1.1 999999 x\r\n\r\n").Port()}
	for _, port := range ports {
		for _, accept := range []string{"*/*", "application/json", "text/html"} {
			p := start(t, whole(port))
			res, body := get(t, client(t, nil), p.url("/"), "Accept", accept)
			if res.StatusCode != http.StatusBadGateway {
				t.Errorf("%s", res.Status)
			}
			if text := body + strings.Join(res.Header["X-Request-Id"], ""); strings.Contains(text, itoa(port)) || strings.Contains(text, "127.0.0.1") {
				t.Errorf("%q", body)
			}
		}
	}
}

func TestErrorBodies(t *testing.T) {
	p := start(t)
	for _, c := range []struct{ accept, kind, holds string }{
		{"", "text/plain; charset=utf-8", "No route matches this request. (request ID)\n"},
		{"application/json", "application/json", `{"status":404,"error":"No route matches this request.","request_id":"ID"}` + "\n"},
		{"text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8", "<p>No route matches this request.</p><p><small>Request ID</small></p>"},
	} {
		var header []string
		if c.accept != "" {
			header = []string{"Accept", c.accept}
		}
		res, body := get(t, client(t, nil), p.url("/"), header...)
		id := res.Header.Get("X-Request-Id")
		if want := strings.ReplaceAll(c.holds, "ID", id); res.StatusCode != 404 || id == "" || res.Header.Get("Content-Type") != c.kind || !strings.Contains(body, want) {
			t.Errorf("%s: %s %q %q", c.accept, res.Status, res.Header, body)
		}
		if c.kind == "application/json" && !json.Valid([]byte(body)) {
			t.Errorf("not JSON: %s", body)
		}
	}
	res, err := client(t, nil).Head(p.url("/"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 404 || res.ContentLength <= 0 {
		t.Errorf("HEAD: %s, length %d", res.Status, res.ContentLength)
	}
}

func TestAPanicIsOneRequestsFailure(t *testing.T) {
	p := start(t)
	p.table = &Table{} // no routes: the lookup panics
	res, _ := get(t, client(t, nil), p.url("/"))
	if res.StatusCode != http.StatusInternalServerError {
		t.Error(res.Status)
	}
	nodetest.Eventually(t, "it is not in flight any more", func() bool { return metric(t, p, "pyserve_requests_in_flight") == 0 })
}

// trapped is a connection that panics when it is read for the second time.
type trapped struct {
	net.Conn
	reads int
}

func (c *trapped) Read(p []byte) (int, error) {
	if c.reads++; c.reads > 1 {
		panic("out of cheese")
	}
	return c.Conn.Read(p)
}

func TestAPanicBehindTheHeadIsOneRequestsFailure(t *testing.T) {
	ended := make(chan struct{})
	b, _ := scripted(t, silence(ended))
	p := start(t, whole(b.Port()))
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		p.front.Serve(&trapped{Conn: theirs}, nil, netip.Addr{}, nil)
	}()
	w := newWire(t, ours)
	w.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
	if res, _, err := w.answer("POST"); err != nil || res.StatusCode != http.StatusInternalServerError || !res.Close {
		t.Error(res, err)
	}
	wait(t, "the backend's connection ends", ended)
	ours.Close()
	wait(t, "the connection ends", served)
}

// TestFailuresAreCountedAgainstABackend: those that are its own doing.
func TestFailuresAreCountedAgainstABackend(t *testing.T) {
	post := "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"
	silent := func(w *wire) { io.Copy(io.Discard, w.in) }
	says := func(answer string) step {
		return func(w *wire) {
			if _, _, ok := w.request(); ok {
				io.WriteString(w, answer)
			}
		}
	}
	for name, c := range map[string]struct {
		backend  step
		timeouts *resourcev1.Timeouts
		request  string
		status   string
		failures uint64
	}{
		"an answer":                {says(sized("good")), nil, post, "200", 0},
		"an answer that refuses":   {says("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"), nil, post, "500", 0},
		"no answer":                {says(""), nil, post, "502", 1},
		"nonsense":                 {says("nonsense\r\n\r\n"), nil, post, "502", 1},
		"no answer in time":        {silent, &resourcev1.Timeouts{ResponseHeader: seconds(short)}, post, "504", 1},
		"a request without an end": {silent, &resourcev1.Timeouts{Request: seconds(short)}, post, "504", 1},
		"a body that is not taken": {
			func(w *wire) { nodetest.ReadHead(w.in) }, nil,
			"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 50000000\r\n\r\n" + strings.Repeat("x", 60<<10), "502", 1,
		},
		"a body that cannot be": {
			silent, nil, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nx", "400", 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := scripted(t, c.backend)
			p := start(t, within(c.timeouts, whole(b.Port())))
			w := connect(t, p)
			w.say(c.request)
			w.head("HTTP/1.1 " + c.status)
			nodetest.Eventually(t, "it has ended", func() bool { return metric(t, p, "pyserve_requests_in_flight") == 0 })
			if n := p.backends[0].Counters(); n.Failures != c.failures || n.ConnectFailures != 0 {
				t.Errorf("%d failures, %d of connects, want %d", n.Failures, n.ConnectFailures, c.failures)
			}
		})
	}
	p := start(t, whole(closedPort(t)))
	p.exchange(t, post)
	if n := p.backends[0].Counters(); n.Requests != 0 || n.Failures != 0 || n.ConnectFailures != 1 {
		t.Errorf("refused: %+v", n)
	}
}

// pinned is a source that counts who holds its table.
type pinned struct {
	table *Table
	holds atomic.Int64
}

func (p *pinned) Pin() (*Table, func()) {
	p.holds.Add(1)
	return p.table, func() { p.holds.Add(-1) }
}

// TestAPanicOnTheWayOutHoldsNothing: what a request took is given back wherever a defect shows, here where it is counted.
func TestAPanicOnTheWayOutHoldsNothing(t *testing.T) {
	for name, c := range map[string]struct{ request, answer string }{
		"after an answer":    {ask("/"), sized("good")},
		"at a failure":       {ask("/"), "nonsense\r\n\r\n"},
		"in a broken answer": {ask("/"), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\nx"},
		"during an upload": {
			"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\nx",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := scripted(t, func(w *wire) {
				nodetest.ReadHead(w.in)
				io.WriteString(w, c.answer)
				io.Copy(io.Discard, w.in)
			})
			p := start(t, whole(b.Port()))
			source := &pinned{table: p.table}
			p.proxy.source = source
			route, ok, _ := p.table.Routes.Lookup([]byte("x"), rootPath, nil)
			if !ok {
				t.Fatal("no route")
			}
			route.counted.Do(func() {}) // has no counters, and so a nil one is counted with
			ours, theirs := net.Pipe()
			panicked := make(chan any)
			go func() {
				defer func() { panicked <- recover() }()
				p.front.Serve(theirs, nil, netip.Addr{}, nil)
			}()
			go io.Copy(io.Discard, ours)
			io.WriteString(ours, c.request)
			if <-panicked == nil {
				t.Fatal("it did not panic")
			}
			if n := source.holds.Load(); n != 0 {
				t.Errorf("the table is held %d times", n)
			}
			if n := metric(t, p, "pyserve_requests_in_flight"); n != 0 {
				t.Errorf("%v requests are in flight", n)
			}
			if n := p.backends[0].Counters(); n.Open != n.Idle {
				t.Errorf("%d connections are open, %d idle", n.Open, n.Idle)
			}
		})
	}
}

func TestAConnectThatTakesTooLongIs504(t *testing.T) {
	p := startWith(t, settings{dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
	}}, whole(1))
	if res, _ := send(t, p, "GET", ""); res.StatusCode != http.StatusGatewayTimeout {
		t.Error(res.Status)
	}
}

func TestRequestsAreCounted(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) })
	p := start(t, to("/tea", portOf(b)))
	get(t, client(t, nil), p.url("/tea"))
	get(t, client(t, nil), p.url("/none"))
	// The count comes after the answer's last byte.
	nodetest.Eventually(t, "both are counted", func() bool {
		return metric(t, p, "pyserve_requests_total", "route", "/tea", "code_class", "4xx") == 1 &&
			metric(t, p, "pyserve_requests_total", "route", noRoute, "code_class", "4xx") == 1 &&
			metric(t, p, "pyserve_request_seconds", "route", "/tea") == 1 && metric(t, p, "pyserve_requests_in_flight") == 0
	})
	p.proxy.meter.Forget("/tea")
	if n := metric(t, p, "pyserve_request_seconds", "route", "/tea"); n != 0 {
		t.Error("a route that is gone still has its series")
	}
}
