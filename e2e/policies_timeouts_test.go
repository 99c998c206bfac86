package e2e

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// timeoutPolicies are the rows of TestPolicies about times, and about what a health check wants to read.
var timeoutPolicies = []policy{{
	name: "timeouts",
	document: `
    - {path: /head, $a, timeouts: {response_header: 100ms}}
    - {path: /whole, $a, timeouts: {request: 100ms}}
    - {path: /still, $a, timeouts: {idle: 100ms, websocket_idle: 100ms}}
    - {path: /free, $b, timeouts: {response_header: 0s, request: 0s, idle: 0s, websocket_idle: 0s, connect: 1s}}`,
	asks: []ask{
		{path: "/head/held", status: 504, says: "The backend did not answer in time."},
		{path: "/whole/held", status: 504, says: "The request was not answered in time."},
		{path: "/head/x", by: "a"}, {path: "/whole/x", by: "a"}, {path: "/still/x", by: "a"}, {path: "/free/x", by: "b"},
	},
	also: func(t *testing.T, _ bench, n *daemon) {
		client := newClient(t, nil, false)
		for _, path := range []string{"/still/events", "/whole/events"} {
			response, err := client.Get("http://" + n.listen + path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, response.Body); err == nil || response.StatusCode != http.StatusOK {
				t.Errorf("%s: %s, and its body ends with %v, want that it is cut off", path, response.Status, err)
			}
			response.Body.Close()
		}
		conn, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+n.listen+"/still/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetReadDeadline(time.Now().Add(patience))
		if _, message, err := conn.ReadMessage(); err == nil || websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			t.Errorf("a WebSocket that says nothing: %q, %v, want that it is cut off", message, err)
		}
	},
}, {
	name: "expected_body",
	document: `
    - path: /
      backends: [{$a}, {$b}]
      health_check: {type: http, path: /state, expected_body: '"Backend":"a"', interval: 1s, timeout: 1s, unhealthy_threshold: 1}`,
	also: func(t *testing.T, b bench, n *daemon) {
		b.backendShows(b.backends["b"].address(), "unhealthy")
		client := newClient(t, nil, false)
		eventually(t, n.name+" asks the one that says what is expected alone", func() string {
			for range 6 {
				r := get(t, client, "http://"+n.listen+"/x")
				if r.status != http.StatusOK {
					return fmt.Sprint("status ", r.status)
				}
				if by := r.seen(t).Backend; by != "a" {
					return fmt.Sprint(by, " was asked")
				}
			}
			return ""
		})
	},
}}
