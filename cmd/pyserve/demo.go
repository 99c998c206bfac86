package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

// startDemo starts two small backends and gives a configuration for them: "/api" is answered in HTTP by either, which
// says what it was sent, and "/ws" echoes WebSocket messages.
func (u *up) startDemo() (document []byte, files map[string][]byte, err error) {
	u.demo = true
	var ports [2]int
	for i := range ports {
		if ports[i], err = u.startDemoBackend(fmt.Sprintf("backend-%d", i+1)); err != nil {
			return nil, nil, err
		}
	}
	return fmt.Appendf(nil, `# Two backends that pyserve up started, for a first look.
server:
  host: 127.0.0.1
  port: 8080
  reverse_proxy:
    - path: /api
      host: 127.0.0.1
      port: %d
    - path: /api          # the same path again: one pool of two backends
      host: 127.0.0.1
      port: %d
    - path: /ws
      host: 127.0.0.1
      port: %d
    - path: /             # everything else
      host: 127.0.0.1
      port: %d
`, ports[0], ports[1], ports[0], ports[1]), nil, nil
}

func (u *up) startDemoBackend(name string) (port int, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("start a demo backend: %w", err)
	}
	server := &http.Server{Handler: demoHandler(name), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			u.logger.Error("a demo backend stopped", "name", name, "error", err)
		}
	}()
	u.undo.add(func(context.Context) error {
		err := server.Close()
		<-done
		return err
	})
	return l.Addr().(*net.TCPAddr).Port, nil
}

// demoHandler answers a WebSocket handshake with an echo, and anything else with what it was sent.
func demoHandler(name string) http.Handler {
	// The page that opens the socket came from a node, not from this address.
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if websocket.IsWebSocketUpgrade(r) {
			demoEcho(&upgrader, w, r)
			return
		}
		headers := map[string]string{}
		for name := range r.Header {
			headers[name] = r.Header.Get(name)
		}
		w.Header().Set("Content-Type", "application/json")
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		encoder.Encode(map[string]any{
			"backend": name, "method": r.Method, "path": r.URL.RequestURI(), "host": r.Host, "headers": headers,
		})
	})
}

func demoEcho(upgrader *websocket.Upgrader, w http.ResponseWriter, r *http.Request) {
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer conn.Close()
	conn.SetReadLimit(1 << 20)
	for {
		kind, message, err := conn.ReadMessage()
		if err != nil || conn.WriteMessage(kind, message) != nil {
			return
		}
	}
}
