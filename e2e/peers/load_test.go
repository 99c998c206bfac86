package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, test := range []struct {
		values []time.Duration
		p      int
		want   time.Duration
	}{{nil, 50, 0}, {hundred[:1], 99, 1}, {hundred[:2], 50, 1}, {hundred[:3], 50, 2}, {hundred, 50, 50}, {hundred, 99, 99}, {hundred[:50], 99, 50}} {
		if got := percentile(test.values, test.p); got != test.want {
			t.Errorf("%d%% of %d values: %d, want %d", test.p, len(test.values), got, test.want)
		}
	}
}

// loadOn makes a short load on an address, this process standing for the proxy.
func loadOn(t *testing.T, scenario, address string) result {
	t.Helper()
	if _, err := memoryOf(os.Getpid()); err != nil {
		t.Skip("this is no Linux:", err)
	}
	r, err := runLoad(t.Context(), job{Scenario: scenario, Address: address, PID: os.Getpid(), Root: os.Getpid(), Seconds: 0.1, Idle: 10})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTheBackendAnswersTheLoad without a proxy between them.
func TestTheBackendAnswersTheLoad(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- newBackend().serve(ctx, l) }()
	for _, s := range scenarios() {
		if s.tls {
			continue
		}
		r := loadOn(t, s.name, l.Addr().String())
		if len(r.Errors) > 0 || s.work != nil && r.Requests == 0 {
			t.Errorf("%s: %+v", s.name, r)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestWrongAnswersAreErrors and never requests.
func TestWrongAnswersAreErrors(t *testing.T) {
	t.Parallel()
	for want, handler := range map[string]http.HandlerFunc{
		"502 Bad Gateway":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) },
		"body is wrong":     func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.ToUpper(string(smallBody()))) },
		"Content-Length 3":  func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "yes") },
		"read the answer: ": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		server := httptest.NewServer(handler)
		r := loadOn(t, "small", server.Listener.Addr().String())
		server.Close()
		wantsOnlyErrors(t, r, want)
	}
}

// TestWrongAnswersOverHTTP2 are errors as well.
func TestWrongAnswersOverHTTP2(t *testing.T) {
	t.Parallel()
	for want, handler := range map[string]http.HandlerFunc{
		"not 200 with 13 bytes": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) },
		"body is wrong":         func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "something else, and longer") },
		"a stream was reset":    func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		server := httptest.NewUnstartedServer(handler)
		server.EnableHTTP2 = true
		server.StartTLS()
		r := loadOn(t, "http2", server.Listener.Addr().String())
		server.Close()
		wantsOnlyErrors(t, r, want)
	}
}

// TestRefusedConnectionsAreOneKindOfError, however many there are.
func TestRefusedConnectionsAreOneKindOfError(t *testing.T) {
	t.Parallel()
	address, err := newPorts().take()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"small", "connection", "websocket", "idle-websocket"} {
		r := loadOn(t, name, address)
		if len(r.Errors) != 1 || r.Requests > 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func wantsOnlyErrors(t *testing.T, r result, want string) {
	t.Helper()
	if r.Requests > 0 || len(r.Errors) == 0 {
		t.Errorf("%s: %+v", want, r)
	}
	for text := range r.Errors {
		wantsText(t, text, want)
	}
}

func wantsText(t *testing.T, text, want string) {
	t.Helper()
	if !strings.Contains(text, want) {
		t.Errorf("%q does not hold %q", text, want)
	}
}
