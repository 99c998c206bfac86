package forward

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// again is s with retries; without any statuses it is all that are tried again unless a document says otherwise.
func again(r *resourcev1.Retries, s site) site {
	if r.Statuses == nil {
		r.Statuses, r.ConnectFailure = []uint32{502, 503, 504}, true
	}
	s.route.Retries = r
	return s
}

func upTo(attempts uint32) *resourcev1.Retries {
	return &resourcev1.Retries{Attempts: attempts, BudgetPercent: 1000}
}

// answers is a backend that reads a request to its end and answers with status, and counts.
func answers(t testing.TB, status int) (uint32, *atomic.Int64) {
	t.Helper()
	n := new(atomic.Int64)
	return portOf(backend(t, func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Status", fmt.Sprint(status))
		w.WriteHeader(status)
		w.Write(body)
	})), n
}

func wantRetries(t *testing.T, p *proxy, retried, denied int) {
	t.Helper()
	if got := metric(t, p, "pyserve_retries_total", "route", "/"); got != float64(retried) {
		t.Errorf("%v retries, want %d", got, retried)
	}
	if got := metric(t, p, "pyserve_retries_denied_total", "route", "/"); got != float64(denied) {
		t.Errorf("%v retries were denied, want %d", got, denied)
	}
}

func TestAStatusIsTriedAgainOnAnotherBackend(t *testing.T) {
	for _, c := range []struct {
		method, body string
		status       int
		want         int
	}{
		{"GET", "", 503, 200}, {"HEAD", "", 502, 200}, {"PUT", "body", 504, 200}, {"DELETE", "", 503, 200},
		{"POST", "body", 503, 503}, {"PATCH", "", 503, 503}, // perhaps the backend did it
		{"GET", "", 500, 500}, {"GET", "", 404, 404}, {"GET", "", 599, 599},
	} {
		t.Run(fmt.Sprint(c.method, c.status), func(t *testing.T) {
			bad, asked := answers(t, c.status)
			good, _ := answers(t, 200)
			p := start(t, again(upTo(1), whole(bad, good)))
			res, body := send(t, p, c.method, c.body)
			if res.StatusCode != c.want || c.method != "HEAD" && body != c.body {
				t.Errorf("%s %q, want %d", res.Status, body, c.want)
			}
			if asked.Load() != 1 {
				t.Errorf("the bad backend was asked %d times", asked.Load())
			}
		})
	}
}

func TestTheLastAnswerIsPassedOnAsItIs(t *testing.T) {
	var asked []*atomic.Int64
	var ports []uint32
	for range 4 {
		port, n := answers(t, 503)
		ports, asked = append(ports, port), append(asked, n)
	}
	p := start(t, again(upTo(2), whole(ports...)))
	res, body := send(t, p, "PUT", "x")
	if res.StatusCode != 503 || res.Header.Get("X-Status") != "503" || body != "x" {
		t.Errorf("%s %v %q", res.Status, res.Header, body)
	}
	for i, n := range asked {
		if want := int64(1); i < 3 && n.Load() != want || i == 3 && n.Load() != 0 {
			t.Errorf("backend %d was asked %d times", i, n.Load())
		}
	}
	wantRetries(t, p, 2, 0)
}

func TestTheOnlyBackendIsAskedAgainAfterAStatus(t *testing.T) {
	var n atomic.Int64
	b := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	p := start(t, again(upTo(2), whole(portOf(b))))
	if res, _ := send(t, p, "GET", ""); res.StatusCode != 200 || n.Load() != 3 {
		t.Errorf("%s, asked %d times", res.Status, n.Load())
	}
}

func TestAnswersThatAreDiscardedLeaveTheirConnectionsFit(t *testing.T) {
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for i := 0; ; i++ {
			if _, err := nodetest.ReadHead(r); err != nil {
				return
			}
			status := "503 Service Unavailable"
			if i%2 == 1 {
				status = "200 OK"
			}
			io.WriteString(c, "HTTP/1.1 "+status+"\r\nContent-Length: 3\r\n\r\nabc")
		}
	})
	p := start(t, again(upTo(1), whole(b.Port())))
	for range 3 {
		if res, body := send(t, p, "GET", ""); res.StatusCode != 200 || body != "abc" {
			t.Fatalf("%s %q", res.Status, body)
		}
		// The client has its answer before the connection is given back.
		nodetest.Eventually(t, "an idle connection", func() bool { return p.backends[0].Counters().Idle == 1 })
	}
	if c := p.backends[0].Counters(); c.Opened != 1 {
		t.Errorf("%d connections were opened, want 1", c.Opened)
	}
}

func TestAnAnswerThatHasNotComeWholeIsDiscardedWithItsConnection(t *testing.T) {
	var n atomic.Int64
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		if _, err := nodetest.ReadHead(bufio.NewReader(c)); err != nil {
			return
		}
		if n.Add(1) == 1 {
			io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 30\r\n\r\nHTTP/1.1 ")
			io.Copy(io.Discard, c)
			return
		}
		io.WriteString(c, sized("fine"))
	})
	p := start(t, again(upTo(1), whole(b.Port())))
	if res, body := send(t, p, "GET", ""); res.StatusCode != 200 || body != "fine" {
		t.Errorf("%s %q", res.Status, body)
	}
}

func TestConnectionsThatFailAreTriedUpToTheAttempts(t *testing.T) {
	good, _ := answers(t, 200)
	p := start(t, again(upTo(3), whole(closedPort(t), closedPort(t), closedPort(t), good)))
	for _, method := range []string{"GET", "POST"} { // nothing was sent
		if res, _ := send(t, p, method, ""); res.StatusCode != 200 {
			t.Error(method, res.Status)
		}
	}
}

func TestAConnectionThatDiesIsAConnectFailure(t *testing.T) {
	for _, c := range []struct {
		method  string
		retries *resourcev1.Retries
		want    int
	}{
		{"GET", &resourcev1.Retries{Attempts: 1, ConnectFailure: true, Statuses: []uint32{}}, 200},
		{"GET", &resourcev1.Retries{Attempts: 1, Statuses: []uint32{502}}, 200}, // which the proxy would answer
		{"GET", &resourcev1.Retries{Attempts: 1, Statuses: []uint32{503}}, 502},
		{"POST", &resourcev1.Retries{Attempts: 1, ConnectFailure: true, Statuses: []uint32{502}}, 502},
	} {
		bad, _ := counting(t, func(c net.Conn) { nodetest.ReadHead(bufio.NewReader(c)) })
		good, _ := answers(t, 200)
		p := start(t, again(c.retries, whole(bad.Port(), good)))
		if res, _ := send(t, p, c.method, ""); res.StatusCode != c.want {
			t.Errorf("%s %v: %s, want %d", c.method, c.retries, res.Status, c.want)
		}
	}
}

func TestNoAttemptsSendNothingTwice(t *testing.T) {
	good, _ := answers(t, 200)
	p := start(t, again(upTo(0), whole(closedPort(t), good)))
	if res, _ := send(t, p, "GET", ""); res.StatusCode != http.StatusBadGateway {
		t.Error(res.Status)
	}
	wantRetries(t, p, 0, 0)
}

func TestNoAttemptsDoNotRenewAKeptConnection(t *testing.T) {
	var n atomic.Int64
	second := make(chan struct{})
	b := nodetest.NewRawBackend(t, func(c net.Conn) { // answers once, and closes when it has got another request
		r := bufio.NewReader(c)
		n.Add(1)
		nodetest.ReadHead(r)
		io.WriteString(c, sized("fine"))
		nodetest.ReadHead(r)
		close(second)
	})
	p := start(t, again(upTo(0), whole(b.Port())))
	if res, _ := send(t, p, "GET", ""); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	nodetest.Eventually(t, "an idle connection", func() bool { return p.backends[0].Counters().Idle == 1 })
	if res, _ := send(t, p, "GET", ""); res.StatusCode != http.StatusBadGateway || n.Load() != 1 {
		t.Errorf("%s, %d connections", res.Status, n.Load())
	}
	<-second
}

// silent is a backend that takes requests and answers none, and counts them.
func silent(t testing.TB) (uint32, *atomic.Int64) {
	t.Helper()
	n := new(atomic.Int64)
	return nodetest.NewRawBackend(t, func(c net.Conn) {
		if _, err := nodetest.ReadHead(bufio.NewReader(c)); err == nil {
			n.Add(1)
			io.Copy(io.Discard, c)
		}
	}).Port(), n
}

func TestAnAttemptThatTakesTooLongIsTriedElsewhere(t *testing.T) {
	hangs, asked := silent(t)
	good, _ := answers(t, 200)
	r := upTo(10)
	r.PerTryTimeout = durationpb.New(300 * time.Millisecond)
	p := start(t, again(r, whole(hangs, good)))
	if res, body := send(t, p, "PUT", "body"); res.StatusCode != 200 || body != "body" {
		t.Errorf("%s %q", res.Status, body)
	}
	if asked.Load() == 0 {
		t.Error("the slow backend was not asked")
	}
}

func TestAttemptsThatTakeTooLongAreAnsweredInTheEnd(t *testing.T) {
	hangs, _ := silent(t)
	r := upTo(2)
	r.PerTryTimeout = durationpb.New(50 * time.Millisecond)
	p := start(t, again(r, whole(hangs)))
	for range 2 { // the connection goes on
		if res, _ := send(t, p, "GET", ""); res.StatusCode != http.StatusGatewayTimeout {
			t.Error(res.Status)
		}
	}
	wantRetries(t, p, 4, 0)
}

func TestAPostIsNotTriedAgainAfterATimeout(t *testing.T) {
	hangs, asked := silent(t)
	good, _ := answers(t, 200)
	p := start(t, answersWithin(50*time.Millisecond, again(upTo(2), whole(hangs, good))))
	if res, _ := send(t, p, "POST", "x"); res.StatusCode != http.StatusGatewayTimeout || asked.Load() != 1 {
		t.Errorf("%s, asked %d times", res.Status, asked.Load())
	}
}

func TestTheRequestsTimeBoundsAllAttempts(t *testing.T) {
	hangs, asked := silent(t)
	r := upTo(10)
	r.PerTryTimeout = durationpb.New(time.Minute)
	s := again(r, whole(hangs))
	s.route.Timeouts = &resourcev1.Timeouts{Request: durationpb.New(100 * time.Millisecond)}
	p := start(t, s)
	if res, _ := send(t, p, "GET", ""); res.StatusCode != http.StatusGatewayTimeout || asked.Load() > 1 {
		t.Errorf("%s, asked %d times", res.Status, asked.Load())
	}
	wantRetries(t, p, 0, 0)
}

func TestNothingIsTriedAgainAfterAnInterimAnswer(t *testing.T) {
	bad, _ := counting(t, once("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"))
	good, _ := answers(t, 200)
	p := start(t, again(upTo(2), whole(bad.Port(), good)))
	if res, _ := send(t, p, "GET", ""); res.StatusCode != 503 {
		t.Error(res.Status)
	}
}

// uploads are bodies that come after their heads, with whether they can be sent again.
var uploads = []struct {
	size    int
	chunked bool
	want    int
}{
	{1, false, 200}, {maxKept, false, 200}, {maxKept + 1, false, 503}, {1 << 20, false, 503},
	{1000, true, 200}, {maxKept + 1, true, 503},
}

func TestABodyIsSentAgainUpToABound(t *testing.T) {
	for _, u := range uploads {
		t.Run(fmt.Sprint(u.size, u.chunked), func(t *testing.T) {
			begun := make(chan struct{}, 1)
			bad := backend(t, func(w http.ResponseWriter, r *http.Request) {
				begun <- struct{}{}
				io.Copy(io.Discard, r.Body)
				w.WriteHeader(http.StatusServiceUnavailable)
			})
			good, _ := answers(t, 200)
			p := start(t, again(upTo(1), whole(portOf(bad), good)))
			body := strings.Repeat("x", u.size)
			w := connect(t, p)
			if u.chunked {
				w.say("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
			} else {
				w.say(fmt.Sprintf("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", u.size))
			}
			<-begun
			if u.chunked {
				w.say(fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", u.size, body))
			} else {
				w.say(body)
			}
			res, err := http.ReadResponse(w.in, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != u.want || res.StatusCode == 200 && string(got) != body {
				t.Errorf("%s with %d bytes %v, want %d", res.Status, len(got), err, u.want)
			}
		})
	}
}

func TestABodyThatTheBackendDidNotWantIsSentAgain(t *testing.T) {
	answered := make(chan struct{})
	bad := nodetest.NewRawBackend(t, func(c net.Conn) {
		nodetest.ReadHead(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		close(answered)
	})
	good, _ := answers(t, 200)
	p := start(t, again(upTo(1), whole(bad.Port(), good)))
	w := connect(t, p)
	w.say("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
	<-answered
	p.backends[0].SetVerdict(upstream.Verdict{State: upstream.Unhealthy})
	w.say("bodyGET / HTTP/1.1\r\nHost: a\r\n\r\n") // and the client's connection goes on
	for _, want := range []string{"body", ""} {
		res, err := http.ReadResponse(w.in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 200 || string(got) != want {
			t.Fatalf("%s %q %v", res.Status, got, err)
		}
	}
}

func TestABodyThatBreaksOffIsNotSentAgain(t *testing.T) {
	answered := make(chan struct{})
	bad := nodetest.NewRawBackend(t, func(c net.Conn) {
		nodetest.ReadHead(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
		close(answered)
		io.Copy(io.Discard, c)
	})
	good, asked := answers(t, 200)
	p := start(t, again(upTo(1), whole(bad.Port(), good)))
	w := connect(t, p)
	w.say("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo")
	<-answered
	w.Conn.Close()
	nodetest.Eventually(t, "the request's end", func() bool {
		return metric(t, p, "pyserve_requests_in_flight") == 0 && p.backends[0].Counters().Open == 0
	})
	if asked.Load() != 0 {
		t.Error("half a body was sent to another backend")
	}
}

func TestHTTP2ABodyIsSentAgain(t *testing.T) {
	for _, size := range []int{1, 1000, maxKept, maxKept + 1} {
		bad, _ := answers(t, 503)
		good, asked := answers(t, 200)
		_, c, base := startHTTP2(t, again(upTo(1), whole(bad, good)))
		body := strings.Repeat("x", size)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, base+"/", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, got := do(t, c, req)
		want := 200
		if size > maxKept {
			want = 503
		}
		if res.StatusCode != want || got != body || asked.Load() != int64((503-want)/303) {
			t.Errorf("%d bytes: %s with %d bytes", size, res.Status, len(got))
		}
	}
}

func TestABudgetOutlivesItsRoute(t *testing.T) {
	before, err := NewRoute("/", &resourcev1.Route{Retries: upTo(1)}, upstream.NewPool(nil, upstream.PoolOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	next, err := NewRoute("/", &resourcev1.Route{Retries: upTo(2)}, upstream.NewPool(nil, upstream.PoolOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	next.Inherit(nil)
	next.Inherit(before)
	if next.retries.budget != before.retries.budget || next.retries.attempts != 2 {
		t.Error("the next route begins with a budget of its own")
	}
	plain, err := NewRoute("/", &resourcev1.Route{}, upstream.NewPool(nil, upstream.PoolOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	plain.Inherit(before)
	if next.Inherit(plain); plain.retries != nil || next.retries.budget == nil {
		t.Error("a route without retries got or took a budget")
	}
}

func TestRetriesCostARequestNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	a := newAskerOf(t, loads[0], again(budgeted(20), site{route: &resourcev1.Route{}}))
	if n := testing.AllocsPerRun(1000, func() {
		if err := a.ask(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A body that is kept is kept in memory that the next request uses as well.
func TestWhatIsKeptOfBodiesIsBounded(t *testing.T) {
	var k keptBody
	k.on = true
	for range 100 {
		k.keep(make([]byte, 1<<10), false)
	}
	if k.on || len(k.wire) > maxKept || k.whole.Load() {
		t.Errorf("%d bytes are kept", len(k.wire))
	}
	k.reset()
	if cap(k.wire) > inSize {
		t.Errorf("%d bytes are held after the request", cap(k.wire))
	}
}
