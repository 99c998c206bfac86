package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// TestThreeNodesForwardAlike is the main job: a control, three nodes, one apply, and then every node does the same.
func TestThreeNodesForwardAlike(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3")
	api, users, docs, socket := newBackend(t, "api"), newBackend(t, "users"), newBackend(t, "docs"), newBackend(t, "socket")
	heavy, light := newBackend(t, "heavy"), newBackend(t, "light")

	r := c.mustApply(fmt.Sprintf(`
server:
  reverse_proxy:
    - {path: /, host: 127.0.0.1, port: %[1]d}
    - {path: /api/users/special, match: exact, host: 127.0.0.1, port: %[1]d, strip_path: false}
    - {path: /api, host: 127.0.0.1, port: %[1]d}
    - {path: /api/users, host: 127.0.0.1, port: %[2]d}
    - {path: /docs, host: 127.0.0.1, port: %[3]d, strip_path: false, preserve_host: true}
    - {path: "^/v[0-9]+/", match: regex, host: 127.0.0.1, port: %[3]d}
    - {path: /ws, host: 127.0.0.1, port: %[4]d, websocket: true}
    - path: /weighted
      backends:
        - {host: 127.0.0.1, port: %[5]d, weight: 3}
        - {host: 127.0.0.1, port: %[6]d}
    - {path: /gone, host: 127.0.0.1, port: %[7]d, health_check: {type: none}}
    - {path: /, hosts: [docs.example.com, "*.docs.example.com"], host: 127.0.0.1, port: %[3]d}
`, api.port, users.port, docs.port, socket.port, heavy.port, light.port, freePort(t)))
	for _, want := range []string{
		"+ route /api created", "node n1: serving", "node n2: serving", "node n3: serving", "applied: revision 1", "served by 3 nodes",
		"warning: is no longer used",
	} {
		r.wants(t, 0, want)
	}

	s := c.status()
	if !s.Converged || s.Revision != 1 || len(s.Digest) < 12 || len(s.Nodes) != 3 {
		t.Fatalf("right after apply the status is %+v", s)
	}
	for _, n := range c.nodes {
		if got := s.row(n.name); got.State != "ready" || got.Revision != 1 || got.Digest != s.Digest || got.Listen != n.listen {
			t.Errorf("the row of %s is %+v", n.name, got)
		}
	}

	client := newClient(t, nil, false)
	for _, n := range c.nodes {
		url := "http://" + n.listen
		t.Run(n.name, func(t *testing.T) {
			t.Run("routes by longest prefix", func(t *testing.T) { checkRouting(t, client, url) })
			t.Run("tells the backend who the client is", func(t *testing.T) { checkForwardedHeaders(t, client, url, n.listen) })
			t.Run("replaces what a stranger says of himself", func(t *testing.T) { checkSpoofing(t, client, url) })
			t.Run("rewrites redirects to the public path", func(t *testing.T) {
				r := get(t, client, url+"/api/users/elsewhere")
				if got, want := r.header.Get("Location"), url+"/api/users/found?x=1"; r.status != http.StatusFound || got != want {
					t.Errorf("status %d, Location %q, want %q", r.status, got, want)
				}
			})
			t.Run("answers for a dead backend without naming it", func(t *testing.T) {
				r := get(t, client, url+"/gone/x")
				if r.status != http.StatusBadGateway || strings.Contains(r.body, "127.0.0.1") || r.header.Get("X-Request-Id") == "" {
					t.Errorf("status %d, headers %v: %s", r.status, r.header, r.body)
				}
			})
			t.Run("refuses a path above the root", func(t *testing.T) {
				request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
				if err != nil {
					t.Fatal(err)
				}
				request.URL.Opaque = "/api/../../etc"
				if r := do(t, client, request); r.status != http.StatusBadRequest {
					t.Errorf("status %d: %s", r.status, r.body)
				}
			})
			t.Run("echoes WebSocket messages", func(t *testing.T) { checkWebSocket(t, "ws://"+n.listen+"/ws/room?id=7", socket) })
			t.Run("streams events", func(t *testing.T) { checkEvents(t, client, url+"/api/events", api) })
			t.Run("streams an upload", func(t *testing.T) { checkUpload(t, client, url+"/api/sum", 16<<20) })
			t.Run("keeps to the weights", func(t *testing.T) { checkWeights(t, client, url+"/weighted") })
		})
	}
	t.Run("a large upload passes in constant memory", func(t *testing.T) {
		n := c.nodes[0]
		before := metric(t, n.admin, "process_resident_memory_bytes")
		checkUpload(t, client, "http://"+n.listen+"/api/sum", 1<<30)
		if grown := metric(t, n.admin, "process_resident_memory_bytes") - before; grown > 64<<20 {
			t.Errorf("the node grew by %.0f MiB", grown/(1<<20))
		}
	})
}

func checkRouting(t *testing.T, client *http.Client, url string) {
	for _, test := range []struct{ path, host, backend, forwarded string }{
		{"/api/users/7?b=2&a=1&a=%20", "", "users", "/7?b=2&a=1&a=%20"},
		{"/api/users", "", "users", "/"},
		{"/api/users/special", "", "api", "/api/users/special"},
		{"/api/usersx", "", "api", "/usersx"},
		{"/api", "", "api", "/"},
		{"/apix", "", "api", "/apix"},
		{"/api/a%2Fb//c", "", "api", "/a%2Fb//c"},
		{"/api/x/../users/7", "", "users", "/7"},
		{"/docs/intro", "", "docs", "/docs/intro"},
		{"/v12/x", "", "api", "/v12/x"}, // "/" is a prefix, and prefixes come before expressions
		{"/x", "docs.example.com", "docs", "/x"},
		{"/x", "a.docs.example.com:8080", "docs", "/x"},
		{"/x", "example.com", "api", "/x"},
	} {
		var headers []string
		if test.host != "" {
			headers = []string{"Host", test.host}
		}
		s := get(t, client, url+test.path, headers...).seen(t)
		if s.Backend != test.backend || s.URI != test.forwarded {
			t.Errorf("%s%s: %s got %s, want %s to get %s", test.host, test.path, s.Backend, s.URI, test.backend, test.forwarded)
		}
	}
}

func checkForwardedHeaders(t *testing.T, client *http.Client, url, listen string) {
	s := get(t, client, url+"/api/x", "X-Own", "1", "X-Own", "2", "Connection", "X-Hop", "X-Hop", "1", "TE", "trailers").seen(t)
	for name, want := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": listen, "X-Real-Ip": "127.0.0.1",
		"Via": "1.1 pyserve", "X-Own": "1, 2", "X-Hop": "", "Te": "trailers",
	} {
		if got := strings.Join(s.Header[name], ", "); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if id := s.Header.Get("X-Request-Id"); len(id) < 16 {
		t.Errorf("X-Request-ID: %q", id)
	}
	if strings.Contains(listen, s.Host) || s.Host == "" {
		t.Errorf("Host: %q, want the backend's", s.Host)
	}
	kept := get(t, client, url+"/docs/x", "Host", "shop.example.com").seen(t)
	if kept.Host != "shop.example.com" || kept.Header.Get("X-Forwarded-Host") != "shop.example.com" {
		t.Errorf("preserve_host: Host %q, X-Forwarded-Host %q", kept.Host, kept.Header.Get("X-Forwarded-Host"))
	}
}

func checkSpoofing(t *testing.T, client *http.Client, url string) {
	s := get(t, client, url+"/api/x", "X-Forwarded-For", "203.0.113.9", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "bank.example.com",
		"X-Real-IP", "203.0.113.9", "X-Request-ID", "mine").seen(t)
	for name, value := range map[string]string{
		"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "bank.example.com", "X-Real-Ip": "203.0.113.9", "X-Request-Id": "mine",
	} {
		if got := strings.Join(s.Header[name], ", "); strings.Contains(got, value) || got == "" {
			t.Errorf("%s: %q was believed", name, got)
		}
	}
}

// checkWebSocket talks text, binary, ping, pong and close through a node.
func checkWebSocket(t *testing.T, url string, b *backend) {
	t.Helper()
	conn := dialWebSocket(t, url, nil)
	if conn.Subprotocol() != "chat.v1" {
		t.Errorf("subprotocol %q, want the one that the backend speaks", conn.Subprotocol())
	}
	if s := b.last(t); s.URI != "/room?id=7" || s.Header.Get("X-Forwarded-For") != "127.0.0.1" {
		t.Errorf("the backend's handshake: %+v", s)
	}
	binary := bytes.Repeat([]byte{0, 1, 2, 0xFF}, 100_000)
	exchange(t, conn, websocket.TextMessage, []byte("grüß dich"))
	exchange(t, conn, websocket.BinaryMessage, binary)

	pongs := make(chan string, 1)
	conn.SetPongHandler(func(data string) error { pongs <- data; return nil })
	pings := make(chan string, 1)
	conn.SetPingHandler(func(data string) error {
		pings <- data
		return conn.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(patience))
	})
	if err := conn.WriteControl(websocket.PingMessage, []byte("hello"), time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if err := conn.WriteMessage(websocket.TextMessage, []byte("ping me")); err != nil {
		t.Fatal(err)
	}
	exchange(t, conn, websocket.TextMessage, []byte("after the pings")) // frames come in order: so have they
	if got := <-pongs; got != "hello" {
		t.Errorf("the pong holds %q", got)
	}
	if got := <-pings; got != "are you there" {
		t.Errorf("the backend's ping holds %q", got)
	}

	if err := conn.WriteMessage(websocket.TextMessage, []byte("close 4001")); err != nil {
		t.Fatal(err)
	}
	_, _, err := conn.ReadMessage()
	closed, ok := errors.AsType[*websocket.CloseError](err)
	if !ok || closed.Code != 4001 || closed.Text != "as you wish" {
		t.Errorf("the backend's close frame: %v", err)
	}

	leaving := dialWebSocket(t, url, nil)
	for drained := false; !drained; {
		select {
		case <-b.closes:
		default:
			drained = true
		}
	}
	message := websocket.FormatCloseMessage(4002, "bye")
	if err := leaving.WriteControl(websocket.CloseMessage, message, time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := leaving.ReadMessage(); !websocket.IsCloseError(err, 4002) {
		t.Errorf("the answer to a close frame: %v", err)
	}
	select {
	case code := <-b.closes:
		if code != 4002 {
			t.Errorf("the backend read close code %d, want 4002", code)
		}
	case <-time.After(patience):
		t.Error("the backend was not told of the close")
	}
}

// exchange sends a message and wants it back.
func exchange(t *testing.T, conn *websocket.Conn, kind int, message []byte) {
	t.Helper()
	if err := conn.WriteMessage(kind, message); err != nil {
		t.Fatal(err)
	}
	gotKind, got, err := conn.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	if gotKind != kind || !bytes.Equal(got, message) {
		t.Fatalf("echo of kind %d with %d bytes, want kind %d with %d", gotKind, len(got), kind, len(message))
	}
}

// checkEvents takes each event before the backend sends the next.
func checkEvents(t *testing.T, client *http.Client, url string, b *backend) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if kind := response.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Fatalf("Content-Type %q", kind)
	}
	reader := bufio.NewReader(response.Body)
	for i := range 5 {
		select {
		case b.events <- strconv.Itoa(i):
		case <-time.After(patience):
			t.Fatal("the backend does not take an event")
		}
		line, err := reader.ReadString('\n')
		if err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("event %d: %q, %v", i, line, err)
		}
		if _, err := reader.Discard(1); err != nil {
			t.Fatal(err)
		}
	}
	response.Body.Close()
	eventually(t, "the backend is told that the client has gone", func() (complaint string) {
		if n := b.streaming.Load(); n > 0 {
			return fmt.Sprintf("%d answers go on", n)
		}
		return ""
	})
}

// checkUpload sends a body of size bytes without saying how long it is.
func checkUpload(t *testing.T, client *http.Client, url string, size int64) {
	t.Helper()
	sum := sha256.New()
	body := io.TeeReader(io.LimitReader(&pattern{}, size), sum)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, io.NopCloser(body))
	if err != nil {
		t.Fatal(err)
	}
	r := do(t, client, request)
	if want := fmt.Sprintf("%d %s", size, hex.EncodeToString(sum.Sum(nil))); r.status != http.StatusOK || r.body != want {
		t.Errorf("status %d: %s, want %s", r.status, r.body, want)
	}
}

// pattern is an endless body that repeats late.
type pattern struct{ next byte }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = p.next
		p.next = p.next*5 + 1
	}
	return len(b), nil
}

func checkWeights(t *testing.T, client *http.Client, url string) {
	t.Helper()
	counts := map[string]int{}
	for range 40 {
		counts[get(t, client, url).seen(t).Backend]++
	}
	if counts["heavy"] != 30 || counts["light"] != 10 {
		t.Errorf("of 40 requests by weights 3 and 1: %v", counts)
	}
}

// metric reads one unlabelled metric off an admin address.
func metric(t *testing.T, admin, name string) float64 {
	t.Helper()
	r := get(t, newClient(t, nil, false), "http://"+admin+"/metrics")
	for line := range strings.Lines(r.body) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("%s/metrics has no %s", admin, name)
	return 0
}

// TestOrderOfTheFileDecidesNothing applies the same routes in two orders, and with a list of entries for one path.
func TestOrderOfTheFileDecidesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	short, long, twin := newBackend(t, "short"), newBackend(t, "long"), newBackend(t, "twin")
	client := newClient(t, nil, false)
	entries := []string{
		fmt.Sprintf("    - {path: /a, host: 127.0.0.1, port: %d}\n", short.port),
		fmt.Sprintf("    - {path: /a/b, host: 127.0.0.1, port: %d}\n", long.port),
		fmt.Sprintf("    - {path: /a/b, host: 127.0.0.1, port: %d}\n", twin.port),
	}
	head := "server:\n  reverse_proxy:\n"
	c.mustApply(head + entries[0] + entries[1] + entries[2])
	check := func() {
		t.Helper()
		if s := get(t, client, "http://"+c.nodes[0].listen+"/a/x").seen(t); s.Backend != "short" {
			t.Errorf("/a/x went to %s", s.Backend)
		}
		counts := map[string]int{}
		for range 10 {
			counts[get(t, client, "http://"+c.nodes[0].listen+"/a/b/x").seen(t).Backend]++
		}
		if counts["long"] != 5 || counts["twin"] != 5 {
			t.Errorf("entries of one path are one pool, by turns: %v", counts)
		}
	}
	check()
	c.apply(head+entries[1]+entries[0]+entries[2]).wants(t, 0, "unchanged: revision 1")
	c.apply(head+entries[2]+entries[1]+entries[0]).wants(t, 0)
	check()
}
