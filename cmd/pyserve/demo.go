package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
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
	return demoDocument(ports), nil, nil
}

//go:embed demo.yaml
var demoSource string

// demoDocument puts the backends' ports into the shipped document.
func demoDocument(ports [2]int) []byte {
	return []byte(strings.NewReplacer("port: 3001", fmt.Sprint("port: ", ports[0]), "port: 3002", fmt.Sprint("port: ", ports[1])).Replace(demoSource))
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
