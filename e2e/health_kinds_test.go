package e2e

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// serveBoth serves HTTP/1.1 and, in plain text with prior knowledge, HTTP/2, until the test ends.
func serveBoth(t *testing.T, h http.Handler) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: patience, ErrorLog: log.New(io.Discard, "", 0), Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().(*net.TCPAddr).Port
}

// TestAGRPCBackendTurnsSickAndWell asks one server about two services: one leaves and returns, the other stays.
func TestAGRPCBackendTurnsSickAndWell(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	service := grpchealth.NewServer()
	service.SetServingStatus("shop.Cart", healthv1.HealthCheckResponse_SERVING)
	calls := grpc.NewServer()
	healthv1.RegisterHealthServer(calls, service)
	port := serveBoth(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			calls.ServeHTTP(w, r)
			return
		}
		io.WriteString(w, "at your service")
	}))
	c.mustApply(fmt.Sprintf(`
server:
  reverse_proxy:
    - path: /cart
      host: 127.0.0.1
      port: %d
      health_check: {type: grpc, path: /shop.Cart, interval: 100ms, timeout: 100ms, unhealthy_threshold: 2}
    - path: /all
      host: 127.0.0.1
      port: %d
      health_check: {type: grpc, interval: 100ms, timeout: 100ms, unhealthy_threshold: 2}
`, port, port))
	client := newClient(t, nil, false)
	answers := func(path string, want int) {
		t.Helper()
		if r := get(t, client, "http://"+c.nodes[0].listen+path); r.status != want {
			t.Errorf("%s: %d %s, want %d", path, r.status, r.body, want)
		}
	}
	c.routeShows("/cart", "healthy")
	c.routeShows("/all", "healthy")
	answers("/cart", http.StatusOK)

	for status, reason := range map[healthv1.HealthCheckResponse_ServingStatus]string{
		healthv1.HealthCheckResponse_NOT_SERVING:     "gRPC health of shop.Cart is NOT_SERVING",
		healthv1.HealthCheckResponse_SERVICE_UNKNOWN: "gRPC health of shop.Cart is SERVICE_UNKNOWN",
	} {
		service.SetServingStatus("shop.Cart", status)
		if row := c.routeShows("/cart", "unhealthy"); row.Reason != reason {
			t.Errorf("the reason is %q, want %q", row.Reason, reason)
		}
		answers("/cart", http.StatusServiceUnavailable)
		c.routeShows("/all", "healthy")
		answers("/all", http.StatusOK)
		service.SetServingStatus("shop.Cart", healthv1.HealthCheckResponse_SERVING)
		c.routeShows("/cart", "healthy")
		answers("/cart", http.StatusOK)
	}
}

// TestAWebSocketBackendTurnsSickAndWell lets a backend refuse handshakes, and leave pings without an answer.
func TestAWebSocketBackendTurnsSickAndWell(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	var refuses, mute atomic.Bool
	var upgrader websocket.Upgrader
	port := serveBoth(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refuses.Load() {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return // which has answered
		}
		defer conn.Close()
		if mute.Load() {
			conn.SetPingHandler(func(string) error { return nil })
		}
		for kind, message := 0, []byte(nil); err == nil; {
			if kind, message, err = conn.ReadMessage(); err == nil {
				err = conn.WriteMessage(kind, message)
			}
		}
	}))
	c.mustApply(fmt.Sprintf(`
server:
  reverse_proxy:
    - path: /chat
      host: 127.0.0.1
      port: %d
      health_check: {type: websocket, path: /ws, interval: 200ms, timeout: 150ms, unhealthy_threshold: 2}
`, port))
	url := "ws://" + c.nodes[0].listen + "/chat"
	c.routeShows("/chat", "healthy")
	open := dialWebSocket(t, url, nil)
	for sickness, reason := range map[*atomic.Bool]string{&refuses: "status 503, expected 101", &mute: "no pong after 150ms"} {
		sickness.Store(true)
		if row := c.routeShows("/chat", "unhealthy"); row.Reason != reason {
			t.Errorf("the reason is %q, want %q", row.Reason, reason)
		}
		exchange(t, open, websocket.TextMessage, []byte("still here"))
		sickness.Store(false)
		c.routeShows("/chat", "healthy")
		exchange(t, dialWebSocket(t, url, nil), websocket.TextMessage, []byte("back"))
	}
}

// routeShows waits until the one backend of a route is in a state.
func (c *cluster) routeShows(route, state string) (row backendRow) {
	c.t.Helper()
	eventually(c.t, route+" "+state, func() string {
		var seen []backendRow
		for _, row = range c.backends() {
			if row.Route == route && row.State == state {
				return ""
			}
			seen = append(seen, row)
		}
		return fmt.Sprintf("%+v", seen)
	})
	return row
}
