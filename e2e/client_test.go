package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// newClient gives a client with connections of its own, which takes answers as they come. config is for https.
func newClient(t *testing.T, config *tls.Config, http2 bool) *http.Client {
	t.Helper()
	// net/http writes the protocols that it offers into the configuration.
	transport := &http.Transport{DisableCompression: true, TLSClientConfig: config.Clone(), ForceAttemptHTTP2: http2}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: 2 * patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   string
	proto  string
}

// seen is what the backend says that it was sent.
func (r reply) seen(t *testing.T) seen {
	t.Helper()
	var s seen
	if r.status != http.StatusOK {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	if err := json.Unmarshal([]byte(r.body), &s); err != nil {
		t.Fatalf("the answer is not a backend's: %v: %s", err, r.body)
	}
	return s
}

// get asks for a URL with some headers; a Host header is sent as the Host.
func get(t *testing.T, client *http.Client, url string, headers ...string) reply {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for pair := range slices.Chunk(headers, 2) {
		if pair[0] == "Host" {
			request.Host = pair[1]
			continue
		}
		request.Header.Add(pair[0], pair[1])
	}
	return do(t, client, request)
}

func do(t *testing.T, client *http.Client, request *http.Request) reply {
	t.Helper()
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s %s: read the answer: %v", request.Method, request.URL, err)
	}
	return reply{response.StatusCode, response.Header, string(body), response.Proto}
}

// dialWebSocket opens a WebSocket that ends with the test.
func dialWebSocket(t *testing.T, url string, config *tls.Config) *websocket.Conn {
	t.Helper()
	dialer := websocket.Dialer{
		HandshakeTimeout: patience, TLSClientConfig: config, Subprotocols: []string{"chat.v2", "chat.v1"}, EnableCompression: true,
	}
	conn, response, err := dialer.DialContext(t.Context(), url, nil)
	if err != nil {
		if response != nil {
			err = fmt.Errorf("%w: status %s", err, response.Status)
		}
		t.Fatalf("WebSocket %s: %v", url, err)
	}
	t.Cleanup(func() { conn.Close() })
	deadline := time.Now().Add(patience)
	conn.SetReadDeadline(deadline)
	conn.SetWriteDeadline(deadline)
	return conn
}

// load sends GET requests over kept connections, one after the other on each, and counts exactly: a request is either
// answered with 200 or a failure. Nothing is ever sent again.
type load struct {
	path   string
	budget atomic.Int64 // how many requests may still begin
	sent   atomic.Int64
	good   atomic.Int64
	// untilClosed ends a worker when its server has said that it takes no other request.
	untilClosed atomic.Bool
	stopped     chan struct{}
	once        sync.Once
	workers     sync.WaitGroup

	mu       sync.Mutex // guards what follows
	failed   int
	failures []string       // the first few
	backends map[string]int // answers by X-Backend
}

// startLoad begins to send requests for path to the addresses, with a number of workers for each: most many in all, or,
// where most is 0, until finish is called.
func startLoad(t *testing.T, addresses []string, path string, workers int, most int64) *load {
	t.Helper()
	l := &load{path: path, stopped: make(chan struct{}), backends: map[string]int{}}
	if most == 0 {
		most = 1 << 40
	}
	l.budget.Store(most)
	for _, address := range addresses {
		for range workers {
			l.workers.Go(func() { l.work(address) })
		}
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	l.once.Do(func() { close(l.stopped) })
	l.workers.Wait()
}

// reaches waits until n more requests were answered well.
func (l *load) reaches(t *testing.T, n int64) {
	t.Helper()
	goal := l.good.Load() + n
	eventually(t, fmt.Sprintf("the load gets %d more answers", n), func() string {
		if have := l.good.Load(); have < goal {
			return fmt.Sprintf("%d are missing; failures: %v", goal-have, l.complaints())
		}
		return ""
	})
}

// finish lets the workers come to an end, at once if endless, and checks that nothing failed.
func (l *load) finish(t *testing.T) {
	t.Helper()
	if l.budget.Load() > 1<<30 {
		l.once.Do(func() { close(l.stopped) })
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.workers.Wait()
	}()
	timeout := time.NewTimer(3 * patience)
	defer timeout.Stop()
	select {
	case <-done:
	case <-timeout.C:
		t.Fatalf("the load does not come to its end: %d of %d requests were answered", l.good.Load(), l.sent.Load())
	}
	if complaints := l.complaints(); complaints != nil || l.good.Load() != l.sent.Load() {
		t.Errorf("%d of %d requests failed: %v", l.sent.Load()-l.good.Load(), l.sent.Load(), complaints)
	}
}

func (l *load) complaints() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.failures)
}

// answeredBy is how many answers a backend gave so far.
func (l *load) answeredBy(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.backends[name]
}

func (l *load) work(address string) {
	var conn net.Conn
	var reader *bufio.Reader
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	for l.budget.Add(-1) >= 0 {
		select {
		case <-l.stopped:
			return
		default:
		}
		l.sent.Add(1)
		if conn == nil {
			var err error
			if conn, err = net.DialTimeout("tcp", address, patience); err != nil {
				l.fail(address, err)
				conn = nil
				continue
			}
			reader = bufio.NewReader(conn)
		}
		closes, err := l.exchange(conn, reader, address)
		if err != nil {
			l.fail(address, err)
		} else {
			l.good.Add(1)
		}
		if err != nil || closes {
			conn.Close()
			conn = nil
		}
		if closes && l.untilClosed.Load() {
			return
		}
	}
}

// exchange is one request and its answer. closes says that the server will take no other on this connection.
func (l *load) exchange(conn net.Conn, reader *bufio.Reader, address string) (closes bool, err error) {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", l.path, address); err != nil {
		return true, err
	}
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return true, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return true, err
	}
	if response.StatusCode != http.StatusOK {
		return response.Close, fmt.Errorf("status %d: %s", response.StatusCode, body)
	}
	l.mu.Lock()
	l.backends[response.Header.Get("X-Backend")]++
	l.mu.Unlock()
	return response.Close, nil
}

func (l *load) fail(address string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed++; len(l.failures) < 5 {
		l.failures = append(l.failures, fmt.Sprintf("%s: %v", address, err))
	}
}
