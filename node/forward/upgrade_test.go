package forward

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// echo is a WebSocket server that sends everything back, and says who asked.
func echo(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{Subprotocols: []string{"chat.v2"}, CheckOrigin: func(*http.Request) bool { return true }, EnableCompression: true}
	c, err := upgrader.Upgrade(w, r, http.Header{"X-Path": {r.URL.Path}, "X-From": r.Header["X-Forwarded-For"]})
	if err != nil {
		return
	}
	defer c.Close()
	for {
		kind, message, err := c.ReadMessage()
		var closed *websocket.CloseError
		if errors.As(err, &closed) {
			return // the close frame was answered by gorilla, with the same code
		}
		if err != nil || c.WriteMessage(kind, message) != nil {
			return
		}
	}
}

func dial(t testing.TB, d *websocket.Dialer, url string, header http.Header) (*websocket.Conn, *http.Response) {
	t.Helper()
	c, res, err := d.DialContext(t.Context(), url, header)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	return c, res
}

// talk sends messages of both kinds, a ping, and a close with a code, and wants all of it back.
func talk(t testing.TB, c *websocket.Conn) {
	t.Helper()
	for _, m := range []struct {
		kind int
		text string
	}{{websocket.TextMessage, "grüezi"}, {websocket.BinaryMessage, "\x00\xff"}, {websocket.BinaryMessage, strings.Repeat("long", 100<<10)}, {websocket.TextMessage, ""}} {
		if err := c.WriteMessage(m.kind, []byte(m.text)); err != nil {
			t.Fatal(err)
		}
		kind, got, err := c.ReadMessage()
		if err != nil || kind != m.kind || string(got) != m.text {
			t.Fatalf("kind %d, %d bytes, %v", kind, len(got), err)
		}
	}
	pong := ""
	c.SetPongHandler(func(data string) error { pong = data; return nil })
	if err := c.WriteControl(websocket.PingMessage, []byte("are you there"), time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	c.WriteMessage(websocket.TextMessage, []byte("after ping"))
	if _, _, err := c.ReadMessage(); err != nil || pong != "are you there" {
		t.Errorf("pong %q, %v", pong, err)
	}
	closing := websocket.FormatCloseMessage(4321, "done")
	if err := c.WriteControl(websocket.CloseMessage, closing, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	var closed *websocket.CloseError
	if _, _, err := c.ReadMessage(); !errors.As(err, &closed) || closed.Code != 4321 {
		t.Errorf("close: %v", err)
	}
}

func TestWebSocket(t *testing.T) {
	b := backend(t, echo)
	p := start(t, to("/ws", portOf(b)))
	d := &websocket.Dialer{Subprotocols: []string{"chat.v1", "chat.v2"}, EnableCompression: true}
	c, res := dial(t, d, "ws://"+p.address+"/ws/room?x=1", http.Header{"Origin": {"http://elsewhere"}})
	if c.Subprotocol() != "chat.v2" || res.Header.Get("X-Path") != "/room" || res.Header.Get("X-From") != "127.0.0.1" {
		t.Errorf("subprotocol %q, header %v", c.Subprotocol(), res.Header)
	}
	if !strings.Contains(res.Header.Get("Sec-Websocket-Extensions"), "permessage-deflate") {
		t.Errorf("extensions: %v", res.Header)
	}
	talk(t, c)
	c.Close()
	nodetest.Eventually(t, "the tunnel ends", func() bool { return p.tunnels.Len() == 0 })
	if n := metric(t, p, "pyserve_requests_total", "route", "/ws", "code_class", "1xx"); n != 1 {
		t.Errorf("%v upgrades counted", n)
	}
}

func TestWebSocketOverTLSInFrontAndBehind(t *testing.T) {
	authority := certtest.New(t)
	b := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	b.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	b.TLS = &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS}}
	b.StartTLS()
	t.Cleanup(b.Close)
	s := to("/", portOf(b))
	s.backends[0].TLS = &resourcev1.BackendTls{CaPem: authority.PEM}
	front := &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS}, NextProtos: []string{"h2", "http/1.1"}}
	p := startWith(t, settings{tls: front}, s)
	d := &websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: authority.Pool()}}
	c, _ := dial(t, d, "wss://"+p.address+"/", nil)
	talk(t, c)
}

func TestBackendsAreVerified(t *testing.T) {
	authority, other := certtest.New(t), certtest.New(t)
	b := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	b.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	b.TLS = &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS}}
	b.StartTLS()
	t.Cleanup(b.Close)
	s := site{route: whole().route, backends: []upstream.Spec{{Host: "127.0.0.1", Port: portOf(b), TLS: &resourcev1.BackendTls{CaPem: other.PEM}}}}
	p := start(t, s)
	_, res, err := new(websocket.Dialer).DialContext(t.Context(), "ws://"+p.address+"/", nil)
	if err == nil || res == nil || res.StatusCode != http.StatusBadGateway {
		t.Errorf("upgrade: %v %v", res, err)
	}
	if res, _ := send(t, p, "GET", ""); res.StatusCode != http.StatusBadGateway {
		t.Errorf("request: %s", res.Status)
	}
}

func TestARefusedUpgradeReachesTheClientAsItIs(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Sec-Websocket-Version", "13, 8")
		w.WriteHeader(http.StatusUpgradeRequired)
		io.WriteString(w, "not like this")
	})
	p := start(t, whole(portOf(b)))
	_, res, err := new(websocket.Dialer).DialContext(t.Context(), "ws://"+p.address+"/", nil)
	if !errors.Is(err, websocket.ErrBadHandshake) {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	if res.StatusCode != 426 || string(body) != "not like this" || res.Header.Get("Upgrade") != "websocket" || res.Header.Get("Sec-Websocket-Version") != "13, 8" {
		t.Errorf("%s %q %v", res.Status, body, res.Header)
	}
}

func TestAnAnswerThatAsksForAnUpgradeSaysWhatBecomesOfTheConnection(t *testing.T) {
	p := start(t, whole(answering(t, "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: x/1\r\nContent-Length: 0\r\n\r\n").Port()))
	for request, want := range map[string]string{
		ask("/"): "Upgrade",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n": "close, Upgrade",
		"GET / HTTP/1.0\r\n\r\n":                                 "close, Upgrade",
		"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n":       "keep-alive, Upgrade",
	} {
		w := connect(t, p)
		w.say(request)
		head := w.head("HTTP/1.1 426 ")
		if got := fields(head, "Connection"); !slices.Equal(got, []string{want}) || fields(head, "Upgrade") == nil {
			t.Errorf("%q is answered %q, want Connection: %s", request, head, want)
		}
	}
}

// raw is the request of a protocol that is not WebSocket.
const raw = "GET /x HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade, X-Hop\r\nUpgrade: chat/1.0\r\nX-Hop: 1\r\nSec-WebSocket-Key: abc==\r\n\r\n"

const switched = "HTTP/1.1 101 Let us chat\r\nConnection: Upgrade\r\nUpgrade: chat/1.0\r\nX-Own: 1\r\n\r\n"

func TestAnyUpgradeIsATunnelWithHalfClose(t *testing.T) {
	heads := make(chan string, 1)
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		head, _ := nodetest.ReadHead(in)
		heads <- head
		io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"+switched+"early from backend\n")
		everything, err := io.ReadAll(in) // until the client has ended
		fmt.Fprintf(c, "%d bytes, %v: %s", len(everything), err, everything)
	})
	p := start(t, whole(b.Port()))
	c := nodetest.Dial(t, p.address)
	io.WriteString(c, raw+"early from client, ")
	in := bufio.NewReader(c)
	if head, err := nodetest.ReadHead(in); err != nil || !strings.HasPrefix(head, "HTTP/1.1 103 ") {
		t.Fatalf("%q %v", head, err)
	}
	head, err := nodetest.ReadHead(in)
	if err != nil || lines(head)[0] != "HTTP/1.1 101 Let us chat" || !slices.Equal(fields(head, "Upgrade"), []string{"chat/1.0"}) ||
		!slices.Equal(fields(head, "Connection"), []string{"Upgrade"}) || fields(head, "X-Own") == nil {
		t.Fatalf("%q %v", head, err)
	}
	io.WriteString(c, "late from client")
	c.(*net.TCPConn).CloseWrite()
	rest, err := io.ReadAll(in)
	want := "early from backend\n35 bytes, <nil>: early from client, late from client"
	if err != nil || string(rest) != want {
		t.Errorf("%q %v, want %q", rest, err, want)
	}
	sent := <-heads
	if !slices.Equal(fields(sent, "Connection"), []string{"Upgrade"}) || !slices.Equal(fields(sent, "Upgrade"), []string{"chat/1.0"}) ||
		fields(sent, "X-Hop") != nil || fields(sent, "X-Forwarded-For") == nil || !slices.Equal(fields(sent, "Sec-WebSocket-Key"), []string{"abc=="}) {
		t.Errorf("the backend was sent %q", sent)
	}
}

func TestAnUpgradeIsTriedElsewhere(t *testing.T) {
	silent := nodetest.NewRawBackend(t, func(c net.Conn) { nodetest.ReadHead(bufio.NewReader(c)) })
	good := nodetest.NewRawBackend(t, once(switched))
	for name, port := range map[string]uint32{"refused connection": closedPort(t), "closed without an answer": silent.Port()} {
		p := start(t, whole(port, good.Port()))
		for range 2 {
			if answer := p.exchange(t, raw); !strings.HasPrefix(answer, "HTTP/1.1 101 ") {
				t.Errorf("%s: %q", name, answer)
			}
		}
	}
}

func TestAnUpgradeThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		serve  func(net.Conn)
		status string
	}{
		"nonsense":        {once("nonsense\r\n\r\n"), "502"},
		"half a head":     {once("HTTP/1.1 101 Sw"), "502"},
		"odd status":      {once("HTTP/1.1 042 What\r\n\r\n"), "502"},
		"head too long":   {once("HTTP/1.1 101 x\r\nX: " + strings.Repeat("y", http1.MaxHead) + "\r\n\r\n"), "502"},
		"endless hints":   {once(strings.Repeat("HTTP/1.1 103 x\r\n\r\n", maxInterims+1)), "103"},
		"never an answer": {func(c net.Conn) { io.Copy(io.Discard, c) }, "504"},
	} {
		t.Run(name, func(t *testing.T) {
			b := nodetest.NewRawBackend(t, c.serve)
			p := start(t, answersWithin(200*time.Millisecond, whole(b.Port())))
			conn := nodetest.Dial(t, p.address)
			io.WriteString(conn, raw)
			head, err := nodetest.ReadHead(bufio.NewReader(conn))
			if err != nil || !strings.HasPrefix(head, "HTTP/1.1 "+c.status+" ") {
				t.Errorf("%q %v", head, err)
			}
		})
	}
}

func TestAnUpgradeWithABody(t *testing.T) {
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		nodetest.ReadHead(in)
		body := make([]byte, 4)
		io.ReadFull(in, body)
		io.WriteString(c, switched+"got "+string(body)+"\n")
		io.Copy(c, in)
	})
	p := start(t, whole(b.Port()))
	c := nodetest.Dial(t, p.address)
	io.WriteString(c, "POST /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 4\r\n\r\nbodytunnel")
	in := bufio.NewReader(c)
	if head, err := nodetest.ReadHead(in); err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 ") {
		t.Fatalf("%q %v", head, err)
	}
	c.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(in); err != nil || string(rest) != "got body\ntunnel" {
		t.Errorf("%q %v", rest, err)
	}
}

func TestAnUpgradeRefusedBeforeItsBodyIsThrough(t *testing.T) {
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		nodetest.ReadHead(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
		io.Copy(io.Discard, c)
	})
	p := start(t, whole(b.Port()))
	c := nodetest.Dial(t, p.address)
	io.WriteString(c, "POST /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 1000\r\n\r\nsome")
	in := bufio.NewReader(c)
	head, err := nodetest.ReadHead(in)
	if err != nil || !strings.HasPrefix(head, "HTTP/1.1 403 ") || !slices.Equal(fields(head, "Connection"), []string{"close"}) {
		t.Fatalf("%q %v", head, err)
	}
}

func TestUpgradesThatAreNone(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUpgrade: websocket\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
		"GET / HTTP/1.0\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		if answer := p.exchange(t, request); !strings.Contains(answer, " 200 OK\r\n") {
			t.Errorf("%q: %q", request, answer)
		}
		head := b.Head(t)
		if fields(head, "Upgrade") != nil || fields(head, "Connection") != nil || fields(head, "HTTP2-Settings") != nil {
			t.Errorf("%q was forwarded as %q", request, head)
		}
	}
	p.exchange(t, strings.NewReplacer("keep-alive", "close", "Upgrade: chat/1.0", "Upgrade: h2c, chat/1.0").Replace(raw))
	if got := fields(b.Head(t), "Upgrade"); !slices.Equal(got, []string{"chat/1.0"}) {
		t.Errorf("Upgrade: %q", got)
	}
}

func TestAClientThatGoesEndsItsHandshake(t *testing.T) {
	asked, ended := make(chan struct{}), make(chan struct{})
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		nodetest.ReadHead(bufio.NewReader(c))
		close(asked)
		io.Copy(io.Discard, c)
		close(ended)
	})
	p := start(t, whole(b.Port()))
	c := nodetest.Dial(t, p.address)
	io.WriteString(c, raw)
	<-asked
	c.Close()
	<-ended
}

func TestHTTP2InFront(t *testing.T) {
	authority := certtest.New(t)
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s %s %s", r.Proto, r.Method, r.RequestURI, r.Header.Get("X-Forwarded-Proto"), r.Header.Get("Via"), body)
		w.Header().Set("X-Sum", "1")
	})
	front := &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS}, NextProtos: []string{"h2", "http/1.1"}}
	p := startWith(t, settings{tls: front}, to("/api", portOf(b)))
	c := client(t, &tls.Config{RootCAs: authority.Pool()})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+p.address+"/api//x?y=%2F", strings.NewReader("body"))
	res, body := do(t, c, req)
	if res.ProtoMajor != 2 || body != "HTTP/1.1 POST //x?y=%2F https 2.0 pyserve body" || res.Trailer.Get("X-Sum") != "1" {
		t.Errorf("%s %q %v", res.Proto, body, res.Trailer)
	}
	// An answer that breaks off is a reset stream, not an end.
	cut := answering(t, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
	p = startWith(t, settings{tls: front}, whole(cut.Port()))
	res, err := c.Get("https://" + p.address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("%q looks complete", got)
	}
}
