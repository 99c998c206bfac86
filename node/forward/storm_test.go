package forward

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/splice"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

const (
	stormClients = 16
	stormRounds  = 30 // connections of each client
	stormLimit   = 100 * time.Millisecond
)

// storm is clients that break off and backends that die, at random, and what must hold all the same: who is told that a message
// is complete was sent exactly that message, and no other's.
type storm struct {
	testing.TB
	proxy    *proxy
	tls      *tls.Config // of clients; nil: plain
	complete atomic.Int64
	served   atomic.Int64
}

// filling is the body that belongs to an id.
func filling(id string, size int) string {
	return strings.Repeat(id+".", size/(len(id)+1)+1)[:size]
}

// target is what the request of an id asks for: a body of size in the answer.
func target(id string, size int) string { return "/" + id + "/" + strconv.Itoa(size) }

func sizeOf(target string) (id string, size int) {
	id, number, _ := strings.Cut(strings.TrimPrefix(target, "/"), "/")
	size, _ = strconv.Atoi(number)
	return id, size
}

// oddSize is mostly small, sometimes several buffers.
func oddSize(r *rand.Rand) int { return r.IntN(1 << r.IntN(18)) }

// backend serves one connection until it dies.
func (s *storm) backend(c net.Conn, r *rand.Rand) {
	w := newWire(s, c)
	for {
		if r.IntN(20) == 0 {
			breakOff(w, r.IntN(2) == 0) // perhaps while it is idle
			return
		}
		req, err := http.ReadRequest(w.in)
		if err != nil {
			return
		}
		id, size := sizeOf(req.RequestURI)
		if req.Header.Get("X-Id") != id {
			s.Errorf("%q asks for %s", req.Header, req.RequestURI)
		}
		if r.IntN(10) > 0 {
			body, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			if want := filling(id, len(body)); string(body) != want {
				s.Errorf("%s: %d bytes that were never sent", id, len(body))
			}
			if told := req.Header.Get("X-Size"); told != "" && told != strconv.Itoa(len(body)) {
				s.Errorf("%s: %d bytes look complete, %s were meant", id, len(body), told)
			}
		} else {
			req.Close = true // an answer without reading on
		}
		s.served.Add(1)
		if !s.answer(w, r, id, size) || req.Close {
			return
		}
	}
}

// answer answers in one of many ways, and reports whether the connection lives.
func (s *storm) answer(w *wire, r *rand.Rand, id string, size int) bool {
	body := filling(id, size)
	head, framed := s.framed(r, body)
	switch r.IntN(24) {
	case 0:
		breakOff(w, r.IntN(2) == 0)
		return false
	case 1:
		whole := head + framed
		io.WriteString(w, whole[:r.IntN(len(whole))])
		breakOff(w, r.IntN(2) == 0)
		return false
	case 2:
		io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length : 4\r\n\r\nevil")
		return true
	case 3:
		if size < 1000 { // in one segment
			io.WriteString(w, head+framed+"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
			return true
		}
	case 4:
		io.WriteString(w, "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n")
	case 5:
		io.Copy(io.Discard, w.in) // says nothing
		return false
	case 6:
		head, framed = "HTTP/1.1 200 OK\r\n\r\n", body
		io.WriteString(w, head+framed)
		return false
	}
	if _, err := io.WriteString(w, head); err != nil {
		return false
	}
	_, err := io.WriteString(w, framed)
	return err == nil
}

func (s *storm) framed(r *rand.Rand, body string) (head, framed string) {
	if r.IntN(2) == 0 {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(body)), body
	}
	var out strings.Builder
	pieces{r, true, r.IntN(2) == 0}.write(&out, []byte(body))
	return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", out.String()
}

// request is a request of an id, as text.
func (s *storm) request(r *rand.Rand, id string) (method, text string) {
	to := target(id, oddSize(r))
	about := "Host: x\r\nX-Id: " + id + "\r\n"
	body := filling(id, oddSize(r))
	sized := about + "X-Size: " + strconv.Itoa(len(body)) + "\r\n"
	switch r.IntN(6) {
	case 0:
		return "PUT", fmt.Sprintf("PUT %s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s", to, sized, len(body), body)
	case 1:
		var out strings.Builder
		pieces{r, true, true}.write(&out, []byte(body))
		return "POST", "POST " + to + " HTTP/1.1\r\n" + sized + "Transfer-Encoding: chunked\r\n\r\n" + out.String()
	case 2:
		return "HEAD", "HEAD " + to + " HTTP/1.1\r\n" + about + "\r\n"
	case 3:
		return "GET", "GET " + to + " HTTP/1.0\r\nConnection: keep-alive\r\n" + about + "\r\n"
	}
	return "GET", "GET " + to + " HTTP/1.1\r\n" + about + "\r\n"
}

// client is a connection with some requests, which may break off anywhere.
func (s *storm) client(r *rand.Rand, name string) {
	c, err := net.Dial("tcp", s.proxy.address)
	if err != nil {
		s.Error(err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	w := newWire(s, c)
	if s.tls != nil {
		w = newWire(s, tls.Client(c, s.tls))
	}
	count := 1 + r.IntN(4)
	var methods, ids []string
	var text strings.Builder
	for i := range count {
		id := name + "-" + strconv.Itoa(i)
		method, request := s.request(r, id)
		methods, ids = append(methods, method), append(ids, id)
		text.WriteString(request)
	}
	out, broken := text.String(), r.IntN(2) == 0
	if broken {
		out = out[:r.IntN(len(out))]
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		io.WriteString(w, out)
	}()
	if broken && r.IntN(2) == 0 {
		io.CopyN(io.Discard, w.in, int64(r.IntN(1000)))
	} else {
		for i := range count {
			if !s.check(w, methods[i], ids[i]) {
				break
			}
		}
	}
	if r.IntN(2) == 0 {
		c.(*net.TCPConn).SetLinger(0)
	}
	c.Close()
	<-sent
}

// check reads an answer, and reports whether another follows.
func (s *storm) check(w *wire, method, id string) bool {
	for {
		res, body, err := w.answer(method)
		if err != nil {
			return false
		}
		if res.StatusCode == http.StatusEarlyHints {
			continue
		}
		if res.StatusCode == 200 {
			s.complete.Add(1)
			if want := filling(id, len(body)); body != want || res.ContentLength > 0 && method != "HEAD" && int(res.ContentLength) != len(body) {
				s.Errorf("%s %s got the answer %.60q", method, id, body)
			}
		}
		return !res.Close
	}
}

func (s *storm) rage() {
	var clients sync.WaitGroup
	for i := range stormClients {
		clients.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			for k := range stormRounds {
				s.client(r, fmt.Sprintf("%d-%d", i, k))
			}
		})
	}
	clients.Wait()
}

// holdings is what a process has at a moment.
type holdings struct {
	goroutines, descriptors int
	heap                    uint64
}

func held(t testing.TB) holdings {
	t.Helper()
	var m runtime.MemStats
	splice.CloseIdle()
	for range 3 { // pools are emptied by the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil && runtime.GOOS == "linux" {
		t.Fatal(err)
	}
	return holdings{runtime.NumGoroutine(), len(open), m.HeapAlloc}
}

func TestAStormLeavesNothingBehind(t *testing.T) {
	const allowance = 8 << 20 // what the runtime and the test keep
	front, config := secure(t)
	start(t).exchange(t, ask("/")+"GET / HTTP/1.0\r\n\r\n") // opens what the runtime keeps, for its poller
	for name, over := range map[string]*tls.Config{"plain": nil, "TLS": front} {
		t.Run(name, func(t *testing.T) {
			before := held(t)
			t.Run("storm", func(t *testing.T) { rageOnce(t, over, config) })
			now := held(t)
			nodetest.Eventually(t, "goroutines and descriptors are back", func() bool {
				now = held(t)
				return now.goroutines <= before.goroutines && now.descriptors <= before.descriptors
			})
			if now.heap > before.heap+allowance {
				t.Errorf("the heap grew from %d to %d KiB", before.heap>>10, now.heap>>10)
			}
		})
	}
}

func rageOnce(t *testing.T, front, client *tls.Config) {
	s := &storm{TB: t}
	if front != nil {
		s.tls = client
	}
	var conns atomic.Uint64
	serve := func(c net.Conn) { s.backend(c, rand.New(rand.NewPCG(conns.Add(1), 9))) }
	one, two := nodetest.NewRawBackend(t, serve), nodetest.NewRawBackend(t, serve)
	limits := &resourcev1.Timeouts{ResponseHeader: seconds(stormLimit), Idle: seconds(stormLimit)}
	off := Options{Logger: slog.New(slog.DiscardHandler), HeadTimeout: stormLimit, IdleTimeout: stormLimit}
	s.proxy = startWith(t, settings{tls: front, options: off}, within(limits, whole(one.Port(), two.Port())))
	s.rage()
	if s.complete.Load() < stormClients*stormRounds/2 || s.served.Load() < stormClients*stormRounds/2 {
		t.Errorf("%d complete answers, %d requests served: no storm", s.complete.Load(), s.served.Load())
	}
	nodetest.Eventually(t, "the clients' connections have ended", func() bool { return s.proxy.front.connections() == 0 })
	if n := metric(t, s.proxy, "pyserve_requests_in_flight"); n != 0 {
		t.Errorf("%v requests in flight", n)
	}
	for _, b := range s.proxy.backends {
		nodetest.Eventually(t, "the backends' connections are idle or closed", func() bool {
			n := b.Counters()
			return n.Open == n.Idle
		})
	}
	if n := s.proxy.tunnels.Len(); n != 0 {
		t.Errorf("%d tunnels", n)
	}
}
