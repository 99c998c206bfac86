//lint:file-ignore SA1019 http.Transport does not let :protocol pass, which CONNECT needs.

package main

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"

	"golang.org/x/net/http2"

	_ "github.com/pyserve/pyserve/node/forward/xconnect" // the library's client needs it as its server does
)

// streams carry WebSockets over HTTP/2 (RFC 8441), many on one connection, so that such a client takes no descriptor of its own.
type streams struct {
	transport *http2.Transport
	ctx       context.Context
	cancel    context.CancelFunc
	group     sync.WaitGroup
}

// newStreams opens nothing yet. close must be called.
func newStreams() *streams {
	s := &streams{transport: &http2.Transport{
		AllowHTTP: true, DisableCompression: true,
		DialTLSContext: func(ctx context.Context, network, address string, _ *tls.Config) (net.Conn, error) { // without TLS
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// close ends all that there are.
func (s *streams) close() {
	s.cancel()
	s.group.Wait()
	s.transport.CloseIdleConnections()
}

// dial is for a websocket.Dialer, which speaks HTTP/1.1 over what it gives.
func (s *streams) dial(_ context.Context, _, address string) (net.Conn, error) {
	near, far := net.Pipe()
	s.group.Go(func() {
		defer far.Close()
		s.carry(far, address)
	})
	return near, nil
}

// carry makes a stream of what a client of HTTP/1.1 says, handshake and all that follows.
func (s *streams) carry(client net.Conn, address string) {
	in := bufio.NewReaderSize(client, 512)
	asked, err := http.ReadRequest(in)
	if err != nil {
		return // it has given up
	}
	stream := (&http.Request{
		Method: http.MethodConnect, URL: &url.URL{Scheme: "http", Host: address, Path: asked.URL.Path}, Host: asked.Host, Body: io.NopCloser(in),
		Header: http.Header{":protocol": {"websocket"}, "Sec-Websocket-Version": asked.Header["Sec-Websocket-Version"]},
	}).WithContext(s.ctx)
	answer, err := s.transport.RoundTrip(stream)
	if err != nil {
		return
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		answer.Write(client)
		return
	}
	fmt.Fprintf(client, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		acceptOf(asked.Header.Get("Sec-Websocket-Key")))
	io.Copy(client, answer.Body)
}

// acceptOf proves that a key was read (RFC 6455 section 4.2.2), which over HTTP/2 nobody is asked for.
func acceptOf(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}
