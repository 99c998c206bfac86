package main

import (
	"fmt"
	"hash/crc32"
	"net/http"
	"slices"
	"strings"
)

const (
	mediumSize  = 16 << 10
	largeSize   = 1 << 20
	uploadSize  = 64 << 10
	messageSize = 128

	// connections are kept busy, each with one exchange at a time; over HTTP/2 as many streams, on fewer connections.
	connections      = 32
	http2Connections = 8
	http2Streams     = connections / http2Connections
	// idleConnections are opened, used once, and then left alone.
	idleConnections = 5000
	// manyRoutes is how many routes PyServe's configuration has in the scenario about them, in place of one.
	manyRoutes = 10_000

	// hostName is what clients ask for. The certificate is for it and for 127.0.0.1.
	hostName = "shop.example.com"
)

func smallBody() []byte { return []byte("hello, world\n") }

// scenario is one kind of traffic.
type scenario struct {
	name, about string
	// Clients speak TLS to the proxy.
	tls   bool
	http2 bool
	// How many routes PyServe's configuration has beside the one for everything; 0: that one alone.
	routes int
	// The proxies balance by requests under way, change headers and limit rates. The others know no rates.
	policies bool
	// The proxies that are measured; none: all.
	only []string
	// The scenario that has to cost the same; empty: there is none.
	like string
	exchange
	workers int
	// work makes the load of one worker; nil where open is set.
	work worker
	// open makes one connection that then idles; nil where work is set.
	open opener
}

// exchange is a request and the body that must come back.
type exchange struct {
	method, path string
	header       []field
	body         []byte
	want         []byte
}

type field struct{ name, value string }

// scenarios are all kinds of traffic, in the order in which they are measured and shown.
func scenarios() []scenario {
	small := exchange{method: http.MethodGet, path: smallPath, want: smallBody()}
	browser := small
	browser.header = browserHeader()
	medium := exchange{method: http.MethodGet, path: mediumPath, want: pattern(mediumSize)}
	large := exchange{method: http.MethodGet, path: largePath, want: pattern(largeSize)}
	body := pattern(uploadSize)
	sum := crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli))
	upload := exchange{method: http.MethodPost, path: uploadPath, body: body, want: receipt(uploadSize, sum),
		header: []field{{"Content-Type", "application/octet-stream"}, {"Content-Length", fmt.Sprint(uploadSize)}}}
	closing := small
	closing.header = []field{{"Connection", "close"}}
	message := exchange{path: echoPath, body: pattern(messageSize)}
	return []scenario{
		{name: "small", about: "GET, 13 bytes back, keep-alive", exchange: small, workers: connections, work: keepAlive},
		{name: "routes", about: fmt.Sprintf("the same, one of %d routes", manyRoutes), exchange: small, workers: connections, work: keepAlive,
			routes: manyRoutes - 1, only: []string{pyservePeer}, like: "small"},
		{name: "browser", about: "the small GET with a browser's head, 20 fields", exchange: browser, workers: connections, work: keepAlive},
		{name: "policies", about: "the small GET with least_request, header operations and a rate limit", exchange: small, workers: connections, work: keepAlive,
			policies: true, only: []string{nginxPeer, haproxyPeer, pyservePeer}},
		{name: "16k", about: "GET, 16 KiB back", exchange: medium, workers: connections, work: keepAlive},
		{name: "1m", about: "GET, 1 MiB back", exchange: large, workers: connections, work: keepAlive},
		{name: "upload", about: "POST, 64 KiB", exchange: upload, workers: connections, work: keepAlive},
		{name: "connection", about: "GET, a new connection each", exchange: closing, workers: connections, work: newConnection},
		{name: "tls", about: "GET over TLS, keep-alive", tls: true, exchange: small, workers: connections, work: keepAlive},
		{name: "handshake", about: "GET over TLS, a new connection each", tls: true, exchange: closing, workers: connections, work: newConnection},
		{name: "http2", about: "GET over HTTP/2 and TLS", tls: true, http2: true, exchange: small, workers: http2Connections, work: streams},
		{name: "websocket", about: "echo of 128 bytes", exchange: message, workers: connections, work: echoes},
		{name: "idle-websocket", about: "an idle WebSocket", exchange: message, workers: connections, open: openWebSocket},
		{name: "idle-keepalive", about: "an idle keep-alive connection", exchange: small, workers: connections, open: openKeepAlive},
	}
}

// measures says whether a proxy takes part.
func (s scenario) measures(p peer) bool { return len(s.only) == 0 || slices.Contains(s.only, p.name) }

// browserHeader is about what a browser sends when it is sent on within a site: 20 fields with the Host, 1.2 KiB.
func browserHeader() []field {
	return []field{
		{"Connection", "keep-alive"},
		{"Cache-Control", "max-age=0"},
		{"sec-ch-ua", `"Chromium";v="140", "Not=A?Brand";v="24", "Example";v="140"`},
		{"sec-ch-ua-mobile", "?0"},
		{"sec-ch-ua-platform", `"Linux"`},
		{"Upgrade-Insecure-Requests", "1"},
		{"User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"},
		{"Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"},
		{"Sec-Fetch-Site", "same-origin"},
		{"Sec-Fetch-Mode", "navigate"},
		{"Sec-Fetch-User", "?1"},
		{"Sec-Fetch-Dest", "document"},
		{"Referer", "http://shop.example.com/catalogue/garden/chairs?page=3&sort=price"},
		{"Accept-Encoding", "gzip, deflate, br, zstd"},
		{"Accept-Language", "en-GB,en;q=0.9,de;q=0.8"},
		{"Cookie", "session=" + strings.Repeat("0123456789abcdef", 16) + "; theme=dark; consent=all; basket=" + strings.Repeat("42,", 20)},
		{"If-None-Match", `"5f3a9c1e-3039"`},
		{"DNT", "1"},
		{"Priority", "u=0, i"},
	}
}
