//lint:file-ignore SA1019 http.Transport does not let :protocol pass, which CONNECT needs.

package forward

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/net/http2"

	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// webSocketConnect are the fields that open a WebSocket (RFC 8441 section 5.1).
func webSocketConnect(path string, more ...string) []string {
	return append([]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "x", ":path", path,
		"sec-websocket-version", "13"}, more...)
}

// acceptOf is the answer to a key, counted by the book.
func acceptOf(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// upgrades reads a handshake, says 101 to it, and goes on.
func upgrades(then step) step {
	return func(w *wire) {
		r, _, ok := w.request()
		if !ok {
			return
		}
		fmt.Fprintf(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n",
			acceptOf(r.Header.Get("Sec-Websocket-Key")))
		then(w)
	}
}

// echoes sends back what comes, and a last word when that has ended.
func echoes(w *wire) {
	io.Copy(w, w.in)
	io.WriteString(w, "bye")
}

// The init of package xconnect has to come before that of the library.
func TestHTTP2ExtendedConnectIsAnnounced(t *testing.T) {
	c := connectFrames(t, start(t))
	if c.server[http2.SettingEnableConnectProtocol] != 1 {
		t.Errorf("settings: %v", c.server)
	}
}

// overHTTP2 lets a client of WebSocket over HTTP/1.1 speak over a stream: it takes the handshake apart.
func overHTTP2(t *testing.T, transport *http2.Transport, address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		near, far := net.Pipe()
		t.Cleanup(func() { near.Close() })
		go func() {
			defer far.Close()
			in := bufio.NewReader(far)
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			key := r.Header.Get("Sec-Websocket-Key")
			out := &http.Request{Method: "CONNECT", URL: &url.URL{Scheme: "https", Host: address, Path: r.URL.Path, RawQuery: r.URL.RawQuery},
				Header: r.Header, Body: io.NopCloser(in), Host: r.Host}
			for _, name := range []string{"Upgrade", "Connection", "Sec-Websocket-Key"} {
				out.Header.Del(name)
			}
			out.Header[":protocol"] = []string{"websocket"}
			res, err := transport.RoundTrip(out)
			if err != nil {
				return
			}
			defer res.Body.Close()
			if res.StatusCode == http.StatusOK {
				res.Status, res.StatusCode, res.ContentLength = "", http.StatusSwitchingProtocols, 0
				fmt.Fprintf(far, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n", acceptOf(key))
				res.Header.Write(far)
				io.WriteString(far, "\r\n")
				io.Copy(far, res.Body)
				return
			}
			res.Write(far)
		}()
		return near, nil
	}
}

func TestHTTP2WebSocket(t *testing.T) {
	b := backend(t, echo)
	p, config := startSecure(t, to("/ws", portOf(b)))
	transport := &http2.Transport{TLSClientConfig: config, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	d := &websocket.Dialer{NetDialContext: overHTTP2(t, transport, p.address), Subprotocols: []string{"chat.v1", "chat.v2"}, EnableCompression: true}
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
	if n := metric(t, p, "pyserve_requests_total", "route", "/ws", "code_class", "2xx"); n != 1 {
		t.Errorf("%v upgrades counted", n)
	}
}

func TestHTTP2WebSocketHandshakeOfTheBackend(t *testing.T) {
	heads := make(chan string, 1)
	b, _ := scripted(t, func(w *wire) {
		head, _ := nodetest.ReadHead(w.in)
		heads <- head
		fmt.Fprintf(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n"+
			"Sec-WebSocket-Protocol: chat\r\nX-Own: 1\r\n\r\nearly", acceptOf(fields(head, "Sec-WebSocket-Key")[0]))
		echoes(w)
	})
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, false, webSocketConnect("/room?x=1", "sec-websocket-protocol", "chat", "sec-websocket-key", "theirs", "origin", "https://y", "te", "trailers")...)
	head := <-heads
	if lines(head)[0] != "GET /room?x=1 HTTP/1.1" || len(fields(head, "Sec-WebSocket-Key")) != 1 || len(fields(head, "Sec-WebSocket-Key")[0]) != 24 {
		t.Errorf("%q", head)
	}
	for name, want := range map[string][]string{
		"Upgrade": {"websocket"}, "Connection": {"Upgrade, TE"}, "Sec-WebSocket-Version": {"13"}, "Sec-WebSocket-Protocol": {"chat"},
		"Origin": {"https://y"}, "X-Forwarded-Host": {"x"}, "Via": {"2.0 pyserve"}, "Transfer-Encoding": nil, "Content-Length": nil, "Trailer": nil,
		":protocol": nil,
	} {
		if got := fields(head, name); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	c.sent(c.WriteData(1, false, []byte(", then ")))
	c.sent(c.WriteData(1, true, []byte("late, ")))
	o := c.await(1)
	if o.status != "200" || o.body != "early, then late, bye" || !o.ended {
		t.Errorf("%v %q", o, o.body)
	}
	for name, want := range map[string][]string{
		"sec-websocket-protocol": {"chat"}, "x-own": {"1"}, "upgrade": nil, "connection": nil, "sec-websocket-accept": nil, "content-type": nil,
	} {
		if got := o.header[name]; !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	nodetest.Eventually(t, "the tunnel ends", func() bool { return p.tunnels.Len() == 0 })
}

func TestHTTP2WebSocketsThatAreRefused(t *testing.T) {
	for _, c := range []struct{ name, answer, status, body string }{
		{"by the backend", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "403", "no"},
		{"for its version", "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\nContent-Length: 0\r\n\r\n", "426", ""},
		{"to another place", "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "302", ""},
		// A 2xx to the client would be a WebSocket that has begun.
		{"by an answer", sized("a page"), "502", ""},
		{"by no content", "HTTP/1.1 204 No Content\r\n\r\n", "502", ""},
		{"by a 101 without a proof", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "502", ""},
		{"by a 101 with another's proof", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n", "502", ""},
		{"by a 101 to something else", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n", "502", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, whole(answering(t, c.answer).Port()))
			f := connectFrames(t, p)
			f.open(1, false, webSocketConnect("/")...)
			o := f.await(1)
			if o.status != c.status || c.body != "" && o.body != c.body || len(o.header["upgrade"]) > 0 {
				t.Errorf("%v %q %v", o, o.body, o.header)
			}
			served := uint32(3)
			f.open(served, true, ordinary("OPTIONS", "*")...)
			if o := f.await(served); o.status != "200" {
				t.Errorf("the connection ended as well: %v", o)
			}
		})
	}
}

func TestHTTP2OtherUsesOfConnect(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, false, ":method", "CONNECT", ":authority", "example.com:443")
	if o := c.await(1); o.status != "501" {
		t.Error(o)
	}
	c.open(3, false, ":method", "CONNECT", ":protocol", "connect-udp", ":scheme", "https", ":authority", "x", ":path", "/")
	if o := c.await(3); o.status != "501" {
		t.Error(o)
	}
	if b.Requests() > 0 {
		t.Error("the backend was asked")
	}
}

func TestHTTP2WebSocketEnds(t *testing.T) {
	for _, c := range []struct {
		name    string
		backend step
		client  func(*framed)
		want    func(outcome) bool
	}{
		{"the backend closes", upgrades(func(w *wire) { io.WriteString(w, "last") }), nil,
			func(o outcome) bool { return o.ended && o.body == "last" }},
		{"the backend breaks off", upgrades(func(w *wire) {
			w.read(1)
			w.Conn.(*net.TCPConn).SetLinger(0)
		}), func(c *framed) { c.WriteData(1, false, []byte("x")) },
			func(o outcome) bool { return !o.ended && o.reset != nil }},
		{"the client half-closes", upgrades(echoes), func(c *framed) { c.WriteData(1, true, []byte("x")) },
			func(o outcome) bool { return o.ended && o.body == "xbye" }},
		{"the client resets", upgrades(echoes), func(c *framed) { c.WriteRSTStream(1, http2.ErrCodeCancel) }, nil},
		{"the client's connection ends", upgrades(echoes), func(c *framed) { c.nc.Close() }, nil},
		{"nobody says anything", upgrades(echoes), nil,
			func(o outcome) bool { return !o.ended && o.reset != nil }},
		{"the client does not read", upgrades(func(w *wire) { io.Copy(w, &zeros{left: 1 << 30}) }), nil,
			func(o outcome) bool { return !o.ended && o.reset != nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ended := make(chan struct{})
			b, _ := scripted(t, func(w *wire) {
				c.backend(w)
				w.Close()
				close(ended)
			})
			p := start(t, within(&resourcev1.Timeouts{WebsocketIdle: seconds(2 * short)}, whole(b.Port())))
			f := connectFrames(t, p)
			f.open(1, false, webSocketConnect("/")...)
			f.next(http2.FrameHeaders, 1)
			if c.client != nil {
				c.client(f)
			}
			if c.want != nil {
				if o := f.await(1); !c.want(o) {
					t.Errorf("%v, ended %v, %q", o, o.ended, o.body)
				}
			}
			nodetest.Eventually(t, "the tunnel ends", func() bool { return p.tunnels.Len() == 0 })
			wait(t, "the backend's connection ends", ended)
		})
	}
}

// closeFrame is a WebSocket's, as the proxy sends it to a client.
var closeFrame = string([]byte{0x88, 2, 1001 >> 8, 1001 & 0xff})

func TestHTTP2WebSocketIsEndedInOrder(t *testing.T) {
	closed := make(chan uint16, 1)
	b, _ := scripted(t, upgrades(func(w *wire) {
		head := make([]byte, 8)
		io.ReadFull(w.in, head)
		for i := range 2 {
			head[6+i] ^= head[2+i]
		}
		closed <- binary.BigEndian.Uint16(head[6:])
		w.Write([]byte{0x88, 2, 1001 >> 8, 1001 & 0xff})
	}))
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, false, webSocketConnect("/")...)
	c.next(http2.FrameHeaders, 1)
	nodetest.Eventually(t, "the tunnel has begun", func() bool { return p.tunnels.Len() == 1 }) // the answer is sent before
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	count := make(chan int, 1)
	go func() { count <- p.tunnels.Close(ctx) }()
	if f := c.next(http2.FrameData, 1).(*http2.DataFrame); string(f.Data()) != closeFrame {
		t.Errorf("%x", f.Data())
	}
	c.sent(c.WriteData(1, false, []byte{0x88, 0x82, 0, 0, 0, 0, 1001 >> 8, 1001 & 0xff}))
	if o := c.await(1); !o.ended || o.reset != nil {
		t.Error(o)
	}
	if code := <-closed; code != 1001 {
		t.Errorf("the backend was sent %d", code)
	}
	if n := <-count; n != 1 {
		t.Errorf("%d ended", n)
	}
}

func TestHTTP2WebSocketsBesideRequests(t *testing.T) {
	b, _ := scripted(t, func(w *wire) {
		r, _, ok := w.request()
		switch {
		case !ok:
		case r.Header.Get("Upgrade") == "":
			io.WriteString(w, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
		default:
			fmt.Fprintf(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n",
				acceptOf(r.Header.Get("Sec-Websocket-Key")))
			echoes(w)
		}
	})
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	for i := range uint32(10) {
		c.open(4*i+1, false, webSocketConnect("/")...)
		c.next(http2.FrameHeaders, 4*i+1)
		c.open(4*i+3, true, ordinary("GET", "/")...)
		if o := c.await(4*i + 3); o.body != "ok" {
			t.Fatal(o)
		}
	}
	for i := range uint32(10) {
		c.sent(c.WriteData(4*i+1, true, []byte{'0' + byte(i)}))
		if o := c.await(4*i + 1); o.body != fmt.Sprintf("%dbye", i) {
			t.Errorf("%d: %v %q", i, o, o.body)
		}
	}
	nodetest.Eventually(t, "the tunnels end", func() bool { return p.tunnels.Len() == 0 })
}

// The tunnels come before the front where a node drains: the connection ends when they have.
func TestHTTP2DrainWaitsForWebSockets(t *testing.T) {
	b, _ := scripted(t, upgrades(echoes))
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, false, webSocketConnect("/")...)
	c.next(http2.FrameHeaders, 1)
	drained := make(chan error, 1)
	go func() { drained <- p.front.Drain(t.Context()) }()
	c.next(http2.FrameGoAway, 0)
	c.sent(c.WriteData(1, true, []byte("x")))
	if o := c.await(1); o.body != "xbye" || !o.ended {
		t.Errorf("%v %q", o, o.body)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}
