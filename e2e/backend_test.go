package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// seen is what a backend was sent. It is also what it answers, unless the path asks for something else.
type seen struct {
	Backend    string
	Method     string
	URI        string
	Host       string
	Proto      string
	Header     http.Header
	TLS        bool
	ServerName string // of the TLS handshake
}

// backend is a server behind the nodes, in this process.
type backend struct {
	name string
	port int
	// events are sent, one for each value, by a request for /events; closing the channel ends the answer.
	events chan string
	// streaming is how many answers take events. One whose client has gone takes them until the proxy tells.
	streaming atomic.Int32
	// held gets a value for each request for /held that has arrived; it is answered when release is closed.
	held    chan struct{}
	release chan struct{}
	// closes gets the close code that a WebSocket client sent, as the backend read it.
	closes chan int

	mu       sync.Mutex // guards what follows
	requests []seen
	sick     bool // /healthz says 500
}

// newBackend starts a backend that ends with the test.
func newBackend(t *testing.T, name string) *backend {
	t.Helper()
	return startBackend(t, name, nil)
}

// newTLSBackend starts a backend that speaks TLS.
func newTLSBackend(t *testing.T, name string, certificate tls.Certificate) *backend {
	t.Helper()
	return startBackend(t, name, &tls.Config{Certificates: []tls.Certificate{certificate}})
}

func startBackend(t *testing.T, name string, config *tls.Config) *backend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{
		name: name, port: l.Addr().(*net.TCPAddr).Port,
		events: make(chan string), held: make(chan struct{}, 1000), release: make(chan struct{}), closes: make(chan int, 100),
	}
	if config != nil {
		l = tls.NewListener(l, config)
	}
	// Probes that open a connection and close it are no news, nor are handshakes that a test has fail.
	server := &http.Server{Handler: b, ReadHeaderTimeout: patience, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return b
}

func (b *backend) address() string { return local(b.port) }

// ServeHTTP answers as the path asks.
func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/healthz" {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.sick {
			w.WriteHeader(http.StatusInternalServerError)
		}
		return
	}
	s := b.see(r)
	switch {
	case websocket.IsWebSocketUpgrade(r):
		b.echo(w, r)
	case r.URL.Path == "/events":
		b.stream(w, r)
	case r.URL.Path == "/held":
		b.held <- struct{}{}
		select {
		case <-b.release:
			answer(w, s)
		case <-r.Context().Done():
		}
	case r.URL.Path == "/sum":
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%d %s", n, hex.EncodeToString(sum.Sum(nil)))
	case r.URL.Path == "/elsewhere":
		http.Redirect(w, r, fmt.Sprintf("http://%s/found?x=1", r.Host), http.StatusFound)
	default:
		answer(w, s)
	}
}

func answer(w http.ResponseWriter, s seen) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Backend", s.Backend)
	json.NewEncoder(w).Encode(s)
}

func (b *backend) see(r *http.Request) seen {
	s := seen{Backend: b.name, Method: r.Method, URI: r.RequestURI, Host: r.Host, Proto: r.Proto, Header: r.Header.Clone()}
	if r.TLS != nil {
		s.TLS, s.ServerName = true, r.TLS.ServerName
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, s)
	return s
}

func (b *backend) last(t *testing.T) seen {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requests) == 0 {
		t.Fatalf("backend %s was sent nothing", b.name)
	}
	return b.requests[len(b.requests)-1]
}

// holds waits until n more requests for /held have arrived.
func (b *backend) holds(t *testing.T, n int) {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for i := range n {
		select {
		case <-b.held:
		case <-timeout.C:
			t.Fatalf("of %d requests to hold, %d arrived", n, i)
		}
	}
}

// setSick makes /healthz say 500, or 200 again.
func (b *backend) setSick(sick bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sick = sick
}

// stream sends an event for each value that the test gives, and nothing else in between.
func (b *backend) stream(w http.ResponseWriter, r *http.Request) {
	b.streaming.Add(1)
	defer b.streaming.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	if flush() != nil {
		return
	}
	for {
		select {
		case event, more := <-b.events:
			if !more {
				return
			}
			fmt.Fprintf(w, "data: %s\n\n", event)
			if flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// echo sends every message back. "ping me" is answered by a ping, "close N" by a close frame with that code.
func (b *backend) echo(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{
		Subprotocols: []string{"chat.v1"}, EnableCompression: true, CheckOrigin: func(*http.Request) bool { return true },
	}
	conn, err := upgrader.Upgrade(w, r, http.Header{"X-Backend": {b.name}})
	if err != nil {
		return // Upgrade has answered
	}
	defer conn.Close()
	for {
		kind, message, err := conn.ReadMessage()
		if closed, ok := errors.AsType[*websocket.CloseError](err); ok {
			b.closes <- closed.Code
		}
		if err != nil {
			return
		}
		code := 0
		switch {
		case string(message) == "ping me":
			err = conn.WriteControl(websocket.PingMessage, []byte("are you there"), time.Now().Add(patience))
		case scan(string(message), &code):
			err = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, "as you wish"), time.Now().Add(patience))
		default:
			err = conn.WriteMessage(kind, message)
		}
		if err != nil {
			return
		}
	}
}

func scan(message string, code *int) bool {
	n, err := fmt.Sscanf(message, "close %d", code)
	return n == 1 && err == nil
}

// The environment that makes a backend of the test binary.
const (
	backendNameVariable    = "PYSERVE_E2E_BACKEND_NAME"
	backendAddressVariable = "PYSERVE_E2E_BACKEND_ADDRESS"
)

// backendProcess starts a backend that can be killed with -9, in a process of its own, and waits until it listens.
func backendProcess(t *testing.T, name string, port int) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := launch(t, command{name: name, program: self, env: []string{
		backendNameVariable + "=" + name, backendAddressVariable + "=" + local(port),
	}})
	eventually(t, name+" listens", func() string {
		switch {
		case strings.Contains(p.stdout.String(), "listening"):
			return ""
		case p.hasEnded():
			t.Fatalf("%s ended: %s", name, p.stderr.String())
		}
		return "not yet"
	})
	return p
}

// serveAsBackend is what the test binary does in that process.
func serveAsBackend(name, address string) int {
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("listening")
	fmt.Fprintln(os.Stderr, http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Backend", name)
		fmt.Fprintln(w, name)
	})))
	return 1
}
