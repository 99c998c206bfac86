package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
)

// answering is a backend that answers everything with raw bytes and closes.
func answering(t testing.TB, answer string) *nodetest.RawBackend {
	t.Helper()
	return nodetest.NewRawBackend(t, once(answer))
}

func TestAnswerReachesTheClientAsItCame(t *testing.T) {
	body := "\x1f\x8b not really gzip"
	b := answering(t, "HTTP/1.1 203 Whatever\r\nDate: Mon, 01 Jan 2001 00:00:00 GMT\r\nServer: theirs\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"+
		"Content-Encoding: gzip\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\n"+
		fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body))
	p := start(t, whole(b.Port()))
	answer := p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	head, got, _ := strings.Cut(answer, "\r\n\r\n")
	if got != body {
		t.Errorf("body %q", got)
	}
	rest := lines(head)
	want := []string{
		"HTTP/1.1 203 Whatever", "Date: Mon, 01 Jan 2001 00:00:00 GMT", "Server: theirs", "Set-Cookie: a=1", "Set-Cookie: b=2",
		"Content-Encoding: gzip", fmt.Sprintf("Content-Length: %d", len(body)), "Connection: close",
	}
	if !slices.Equal(rest, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(rest, "\n"), strings.Join(want, "\n"))
	}
}

func TestContentTypeIsNotGuessed(t *testing.T) {
	b := answering(t, "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>")
	p := start(t, whole(b.Port()))
	answer := p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if strings.Contains(answer, "Content-Type") || strings.Contains(answer, "X-Request-Id") {
		t.Error(answer)
	}
}

func TestAnswersWithoutBody(t *testing.T) {
	for _, c := range []struct{ method, answer, want string }{
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", "Content-Length: 1234"},
		{"HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ""},
		{"GET", "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", "X-A: b"},
		{"GET", "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n", "Etag: \"x\""},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "Content-Length: 0"},
	} {
		b := answering(t, c.answer)
		p := start(t, whole(b.Port()))
		answer := p.exchange(t, c.method+" / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		head, body, ok := strings.Cut(answer, "\r\n\r\n")
		if !ok || body != "" || !strings.Contains(head, c.want) {
			t.Errorf("%s of %q: %q", c.method, c.answer, answer)
		}
		if c.want != "Content-Length: 0" && c.want != "Content-Length: 1234" && strings.Contains(head, "Content-Length") {
			t.Errorf("%s of %q: a length was invented: %q", c.method, c.answer, answer)
		}
	}
}

func TestABodyOfUnknownLengthStaysSo(t *testing.T) {
	b := answering(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
	p := start(t, whole(b.Port()))
	answer := p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if !strings.Contains(answer, "Transfer-Encoding: chunked") || !strings.HasSuffix(answer, "3\r\nabc\r\n0\r\n\r\n") {
		t.Errorf("%q", answer)
	}
	// HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
	answer = p.exchange(t, "GET / HTTP/1.0\r\nHost: x\r\n\r\n")
	if strings.Contains(answer, "chunked") || !strings.HasSuffix(answer, "\r\n\r\nabc") {
		t.Errorf("%q", answer)
	}
}

func TestTrailersPassBothWays(t *testing.T) {
	var got http.Header
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		io.Copy(w, r.Body)
		got = r.Trailer
		w.Header().Set("X-Sum", "42")
		w.Header().Set(http.TrailerPrefix+"X-Late", "43")
	})
	p := start(t, whole(portOf(b)))
	for _, announced := range []string{"Trailer: X-In, X-Forwarded-For\r\n", ""} {
		answer := p.exchange(t, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"+announced+
			"\r\n3\r\nabc\r\n0\r\nX-In: 41\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
		head, body, _ := strings.Cut(answer, "\r\n\r\n")
		if got := fields(head, "Trailer"); !slices.Equal(got, []string{"X-Sum"}) {
			t.Errorf("Trailer: %q", got)
		}
		for _, want := range []string{"abc", "0\r\n", "X-Sum: 42\r\n", "X-Late: 43\r\n"} {
			if !strings.Contains(body, want) {
				t.Errorf("body %q lacks %q", body, want)
			}
		}
		if got.Get("X-In") != "41" || got.Get("X-Forwarded-For") != "" {
			t.Errorf("the backend's trailers: %v", got)
		}
	}
}

func TestEarlyHintsPass(t *testing.T) {
	b := answering(t, "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n"+
		"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Final: 1\r\n\r\nok")
	p := start(t, whole(b.Port()))
	var codes []int
	var links []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		codes = append(codes, code)
		links = append(links, h["Link"]...)
		if h.Get("X-Hop") != "" || h.Get("X-Final") != "" {
			t.Errorf("%d: %v", code, h)
		}
		return nil
	}})
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, p.url("/"), nil)
	res, body := do(t, client(t, nil), req)
	if !slices.Equal(codes, []int{103, 102}) || !slices.Equal(links, []string{"</a.css>"}) {
		t.Errorf("codes %v, links %v", codes, links)
	}
	if body != "ok" || res.Header.Get("X-Final") != "1" || res.Header.Get("Link") != "" {
		t.Errorf("%q %v", body, res.Header)
	}
	if answer := p.exchange(t, "GET / HTTP/1.0\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
		t.Errorf("HTTP/1.0 knows no 1xx: %q", answer)
	}
}

func TestContinueIsAskedOfTheBackend(t *testing.T) {
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		head, err := nodetest.ReadHead(in)
		if err != nil {
			return
		}
		if !slices.Equal(fields(head, "Expect"), []string{"100-continue"}) {
			io.WriteString(c, "HTTP/1.1 500 No Expect\r\nContent-Length: 0\r\n\r\n")
			return
		}
		io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		body := make([]byte, 3)
		io.ReadFull(in, body)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n%s", body)
	})
	p := start(t, whole(b.Port()))
	c := nodetest.Dial(t, p.address)
	in := bufio.NewReader(c)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
	if head, err := nodetest.ReadHead(in); err != nil || head != "HTTP/1.1 100 Continue\r\n\r\n" {
		t.Fatalf("%q %v", head, err)
	}
	io.WriteString(c, "abc")
	if head, err := nodetest.ReadHead(in); err != nil || !strings.HasPrefix(head, "HTTP/1.1 200 ") {
		t.Fatalf("%q %v", head, err)
	}
}

func TestEventsArriveOneByOne(t *testing.T) {
	next := make(chan string)
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		rc := http.NewResponseController(w)
		rc.Flush()
		for event := range next {
			io.WriteString(w, event)
			rc.Flush()
		}
	})
	p := start(t, whole(portOf(b)))
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url("/"), nil)
	res, err := client(t, nil).Do(req) // returns before the first event: the head does not wait for it
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for i := range 5 {
		event := fmt.Sprintf("data: %d\n\n", i)
		next <- event
		got := make([]byte, len(event))
		if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != event {
			t.Fatalf("%q %v", got, err)
		}
	}
	close(next)
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) != 0 {
		t.Errorf("%q %v", rest, err)
	}
}

func TestABodyOfKnownLengthDoesNotWaitForItsEnd(t *testing.T) {
	proceed := make(chan struct{})
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		nodetest.ReadHead(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
		<-proceed
		io.WriteString(c, "def")
	})
	p := start(t, whole(b.Port()))
	c := nodetest.Dial(t, p.address)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	in := bufio.NewReader(c)
	nodetest.ReadHead(in)
	first := make([]byte, 3)
	if _, err := io.ReadFull(in, first); err != nil || string(first) != "abc" {
		t.Fatalf("%q %v", first, err)
	}
	close(proceed)
	if rest, err := io.ReadAll(in); err != nil || string(rest) != "def" {
		t.Errorf("%q %v", rest, err)
	}
}

// zeros is a body of n bytes that nobody holds.
type zeros struct{ left int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), z.left))
	z.left -= int64(n)
	return n, nil
}

func TestLargeBodiesTakeConstantMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("moves half a gigabyte")
	}
	const size, allowance = 256 << 20, 32 << 20
	var peak uint64
	measure := func() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapInuse)
	}
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		measure()
		n, err := io.Copy(io.Discard, r.Body)
		measure()
		if err != nil || n != size {
			t.Errorf("the backend got %d bytes: %v", n, err)
		}
		io.CopyN(w, &zeros{left: size}, size)
	})
	p := start(t, whole(portOf(b)))
	runtime.GC()
	measure()
	before := peak
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, p.url("/"), &zeros{left: size})
	req.ContentLength = size
	res, err := client(t, nil).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || n != size {
		t.Errorf("the client got %d bytes: %v", n, err)
	}
	measure()
	if peak > before+allowance {
		t.Errorf("the heap grew from %d to %d KiB", before>>10, peak>>10)
	}
}

func TestAnAnswerDoesNotWaitForTheUpload(t *testing.T) {
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		nodetest.ReadHead(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nbig\n")
		io.Copy(io.Discard, c) // goes on reading, as a polite server does
	})
	p := start(t, whole(b.Port()))
	for _, framing := range []string{"Content-Length: 100000000\r\n\r\nfirst", "Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"} {
		c := nodetest.Dial(t, p.address)
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\n"+framing)
		in := bufio.NewReader(c)
		head, err := nodetest.ReadHead(in)
		if err != nil || !strings.HasPrefix(head, "HTTP/1.1 413 ") {
			t.Fatalf("%q %v", head, err)
		}
		if got := fields(head, "Connection"); !slices.Equal(got, []string{"close"}) {
			t.Errorf("Connection: %q: what is left of the body must not be read as a request", got)
		}
		body := make([]byte, 4)
		if _, err := io.ReadFull(in, body); err != nil || string(body) != "big\n" {
			t.Errorf("%q %v", body, err)
		}
		c.Close()
	}
}

func TestUploadAndAnswerFlowAtTheSameTime(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		rc.Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			rc.Flush()
			if err != nil {
				return
			}
		}
	})
	p := start(t, whole(portOf(b)))
	reader, writer := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url("/"), reader)
	res, err := client(t, nil).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for i := range 3 {
		line := fmt.Sprintf("line %d\n", i)
		io.WriteString(writer, line)
		got := make([]byte, len(line))
		if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != line {
			t.Fatalf("%q %v", got, err)
		}
	}
	writer.Close()
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) != 0 {
		t.Errorf("%q %v", rest, err)
	}
}

func TestAnAnswerThatBreaksOffDoesNotLookComplete(t *testing.T) {
	for name, answer := range map[string]string{
		"length":        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
		"chunks":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
		"chunk":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
		"chunk garbage": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nzz\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, whole(answering(t, answer).Port()))
			res, err := client(t, nil).Get(p.url("/"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if body, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("the client took %q for the whole", body)
			}
		})
	}
}

func TestAClientThatGoesCancelsTheRequest(t *testing.T) {
	arrived, cancelled := make(chan struct{}), make(chan struct{})
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
		close(cancelled)
	})
	p := start(t, whole(portOf(b)))
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, p.url("/"), nil)
	var ended sync.WaitGroup
	ended.Go(func() {
		if _, err := client(t, nil).Do(req); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-arrived
	cancel()
	<-cancelled
	ended.Wait()
	nodetest.Eventually(t, "the failure is counted as the client's", func() bool {
		return metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "client") == 1 &&
			metric(t, p, "pyserve_requests_total", "route", "/", "code_class", "none") == 1
	})
}

func TestStreamingStopsWhenTheClientGoes(t *testing.T) {
	ended := make(chan struct{})
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		for {
			if _, err := io.WriteString(w, strings.Repeat("x", 1<<16)); err != nil {
				return
			}
		}
	})
	p := start(t, whole(portOf(b)))
	res, err := client(t, nil).Get(p.url("/"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the backend still sends")
	}
}

func TestLocationIsMadePublic(t *testing.T) {
	var port string
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", strings.ReplaceAll(r.Header.Get("X-Location"), "PORT", port))
		w.Header().Set("Content-Location", w.Header().Get("Location"))
		w.WriteHeader(http.StatusFound)
	})
	port = itoa(portOf(b))
	keep := to("/keep", portOf(b))
	keep.route.StripPath, keep.route.PreserveHost = false, true
	p := start(t, to("/api", portOf(b)), keep)
	for _, c := range []struct{ path, sent, want string }{
		{"/api/x", "/login", "/api/login"},
		{"/api/x", "/", "/api/"},
		{"/api/x", "http://127.0.0.1:PORT/login?a=b#c", "http://public:8080/api/login?a=b#c"},
		{"/api/x", "login", "login"},
		{"/api/x", "https://elsewhere.example/login", "https://elsewhere.example/login"},
		{"/keep/x", "/keep/login", "/keep/login"},
		{"/keep/x", "http://127.0.0.1:PORT/keep/y", "http://public:8080/keep/y"},
		{"/keep/x", "http://public:8080/keep/y", "http://public:8080/keep/y"},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url(c.path), nil)
		req.Host = "public:8080"
		req.Header.Set("X-Location", c.sent)
		res, _ := do(t, client(t, nil), req)
		for _, name := range []string{"Location", "Content-Location"} {
			if got := res.Header.Get(name); got != c.want {
				t.Errorf("%s: %s %q is %q, want %q", c.path, name, c.sent, got, c.want)
			}
		}
	}
}

func TestConnectionsAreReused(t *testing.T) {
	var mu sync.Mutex
	peers := make(map[string]bool)
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		peers[r.RemoteAddr] = true
	})
	p := start(t, whole(portOf(b)))
	c := client(t, nil)
	for range 20 {
		get(t, c, p.url("/"))
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url("/"), strings.NewReader("body"))
		if res, _ := do(t, c, req); res.Close {
			t.Error("the client's connection is closed after a body")
		}
	}
	if len(peers) != 1 {
		t.Errorf("40 requests took %d connections to the backend", len(peers))
	}
}
