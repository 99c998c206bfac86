package health

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/pyserve/pyserve/node/certtest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

func webSocketCheck(path string) *resourcev1.HealthCheck {
	return &resourcev1.HealthCheck{
		Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_WEBSOCKET, Path: path, Timeout: durationpb.New(5 * time.Second),
	}
}

// echoes is a WebSocket server that says how the client closed.
func echoes(closes chan<- error) http.Handler {
	var upgrader websocket.Upgrader
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/chat room" {
			http.Error(w, "not here", http.StatusTeapot)
			return
		}
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for i := range 100 {
			c.WriteMessage(websocket.TextMessage, fmt.Append(nil, "news ", i))
		}
		for err == nil {
			_, _, err = c.ReadMessage()
		}
		closes <- err
	})
}

func TestWebSocketProbePingsAndClosesInOrder(t *testing.T) {
	closes := make(chan error, 1)
	s := httptest.NewServer(echoes(closes))
	defer s.Close()
	if got := try(t, s.Listener.Addr().String(), webSocketCheck("/chat%20room?probe=1"), nil); got != "" {
		t.Fatalf("%q", got)
	}
	var closed *websocket.CloseError
	if err := <-closes; !errors.As(err, &closed) || closed.Code != websocket.CloseNormalClosure {
		t.Errorf("the backend saw %v, want a close with 1000", err)
	}
}

func TestWebSocketProbeAsksAsWritten(t *testing.T) {
	got := make(chan *http.Request, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got <- r; w.WriteHeader(403) }))
	defer s.Close()
	address := s.Listener.Addr().String()
	if reason := try(t, address, webSocketCheck(""), nil); reason != "status 403, expected 101" {
		t.Error(reason)
	}
	r := <-got
	if r.RequestURI != "/" || r.Host != address || r.UserAgent() != userAgent || !websocket.IsWebSocketUpgrade(r) || r.Header.Get("Origin") != "" {
		t.Errorf("the backend saw %s, Host %s, %v", r.RequestURI, r.Host, r.Header)
	}
}

func TestWebSocketProbeOverTLS(t *testing.T) {
	authority := certtest.New(t)
	closes := make(chan error, 1)
	s := httptest.NewUnstartedServer(echoes(closes))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS}}
	s.StartTLS()
	defer s.Close()
	address := s.Listener.Addr().String()
	if got := try(t, address, webSocketCheck("/chat%20room"), &resourcev1.BackendTls{CaPem: authority.PEM}); got != "" {
		t.Fatalf("%q", got)
	}
	<-closes
	stranger := &resourcev1.BackendTls{CaPem: certtest.New(t).PEM}
	if got := try(t, address, webSocketCheck("/chat%20room"), stranger); got != "certificate signed by unknown authority" {
		t.Errorf("%q", got)
	}
}

// shakes answers the handshake by hand and then goes on with the connection.
func shakes(then func(c net.Conn, in *bufio.Reader)) func(net.Conn) {
	return func(c net.Conn) {
		in := bufio.NewReader(c)
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
			base64.StdEncoding.EncodeToString(sum[:]))
		then(c, in)
	}
}

// frames writes bytes and reads on until the client has gone.
func frames(bytes string) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, in *bufio.Reader) { io.WriteString(c, bytes); io.Copy(io.Discard, in) }
}

func TestWebSocketProbeOfOddBackends(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const pong = "\x8a\x07" + pingData
	cases := map[string]struct{ address, want string }{
		"nobody":              {closed.Addr().String(), "connection refused"},
		"no WebSocket":        {listen(t, says("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")), "status 404, expected 101"},
		"redirect":            {listen(t, says("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")), "status 302, expected 101"},
		"another upgrade":     {listen(t, says("HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\n")), "the answer to the handshake is not that of a WebSocket"},
		"another protocol":    {listen(t, says("SSH-2.0-OpenSSH_9.6\r\n")), "the answer is not HTTP"},
		"nothing":             {listen(t, says("")), "connection closed without an answer"},
		"endless head":        {listen(t, says("HTTP/1.1 101 Switching Protocols\r\nA: "+strings.Repeat("a", 100<<10))), "the answer's head is over 64 KiB"},
		"hangs up":            {listen(t, shakes(func(c net.Conn, in *bufio.Reader) { c.(*net.TCPConn).CloseWrite(); io.Copy(io.Discard, in) })), "connection closed before the pong"},
		"closes":              {listen(t, shakes(frames("\x88\x02\x03\xf3"))), "closed with 1011 before the pong"},
		"wrong pong":          {listen(t, shakes(frames("\x8a\x01x\x88\x02\x03\xe8"))), "closed with 1000 before the pong"},
		"bad frame":           {listen(t, shakes(frames("\xff\x00"))), "websocket: "},
		"pong, then hangs up": {listen(t, shakes(func(c net.Conn, in *bufio.Reader) { io.CopyN(io.Discard, in, 13); io.WriteString(c, pong) })), ""},
		"pong, then nonsense": {listen(t, shakes(frames(pong+"\xff\xff"))), ""},
		"large messages":      {listen(t, shakes(frames("\x82\x7f\x00\x00\x00\x00\x00\x10\x00\x00"+strings.Repeat("z", 1<<20)+pong+"\x88\x02\x03\xe8"))), ""},
	}
	closed.Close() // last: the servers above might have been given its port
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := try(t, c.address, webSocketCheck("/"), nil)
			if got != c.want && !(strings.HasSuffix(c.want, ": ") && strings.HasPrefix(got, c.want)) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestWebSocketProbeTimesOut(t *testing.T) {
	over := make(chan struct{})
	defer close(over)
	probe := func(address string, timeout time.Duration) string {
		check := webSocketCheck("/")
		check.Timeout = durationpb.New(timeout)
		return try(t, address, check, nil)
	}
	if got := probe(listen(t, func(net.Conn) { <-over }), 50*time.Millisecond); got != "timeout after 50ms" {
		t.Errorf("without an answer: %q", got)
	}
	address := listen(t, shakes(func(net.Conn, *bufio.Reader) { <-over }))
	// On a busy machine the handshake itself may take longer than the first of these.
	timeout := 50 * time.Millisecond
	got := probe(address, timeout)
	for got == "timeout after "+timeout.String() && timeout < time.Minute {
		timeout *= 4
		got = probe(address, timeout)
	}
	if got != "no pong after "+timeout.String() {
		t.Errorf("without a pong: %q", got)
	}
}

// A backend that leaves our Close without an answer is healthy, and holds the probe up for no longer than closeWait.
func TestUnansweredCloseIsCut(t *testing.T) {
	address := listen(t, shakes(frames("\x8a\x07"+pingData)))
	check := webSocketCheck("/")
	check.Timeout = durationpb.New(time.Hour)
	begin := time.Now()
	if got := try(t, address, check, nil); got != "" {
		t.Errorf("%q", got)
	}
	if took := time.Since(begin); took < closeWait || took > closeWait+10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestEndOfTheWatchEndsAWebSocketProbe(t *testing.T) {
	for name, then := range map[string]func(started chan<- struct{}) func(net.Conn){
		"in the handshake": func(started chan<- struct{}) func(net.Conn) {
			return func(c net.Conn) { http.ReadRequest(bufio.NewReader(c)); close(started); io.Copy(io.Discard, c) }
		},
		"before the pong": func(started chan<- struct{}) func(net.Conn) {
			return shakes(func(_ net.Conn, in *bufio.Reader) { in.ReadByte(); close(started); io.Copy(io.Discard, in) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			started := make(chan struct{})
			l, err := net.ResolveTCPAddr("tcp", listen(t, then(started)))
			if err != nil {
				t.Fatal(err)
			}
			check := webSocketCheck("/")
			check.Timeout = durationpb.New(time.Hour)
			target := targetOf(t, l, check)
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-started; cancel() }()
			if got, _ := target.try(ctx); got == "" {
				t.Error("healthy")
			}
		})
	}
}
