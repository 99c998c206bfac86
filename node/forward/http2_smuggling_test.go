package forward

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/nodetest"
)

// witness is a backend that tells which requests have reached it whole, as another parser than ours reads them.
type witness struct {
	*nodetest.RawBackend
	whole chan *http.Request
}

func newWitness(t testing.TB) *witness {
	t.Helper()
	whole := make(chan *http.Request, 1000)
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if _, err := io.ReadAll(r.Body); err != nil {
				return
			}
			whole <- r
			if _, err := io.WriteString(c, emptyAnswer); err != nil {
				return
			}
		}
	})
	return &witness{b, whole}
}

// reached is what has come whole, before a harmless request that is sent now.
func (w *witness) reached(t testing.TB, p *proxy) (requests []*http.Request) {
	t.Helper()
	served(t, p)
	for r := range w.whole {
		if r.URL.Path == "/served" {
			break
		}
		requests = append(requests, r)
	}
	return requests
}

// attack is one stream's fields and data.
type attack struct {
	name     string
	fields   []string
	data     []string // nil: END_STREAM comes with the fields
	trailers []string // nil: none
}

// run plays the attack and one harmless request after it, and returns what came of it and what had reached the backend before
// the harmless one.
func (a *attack) run(t *testing.T, p *proxy, w *witness) (outcome, []*http.Request) {
	t.Helper()
	c := connectFrames(t, p)
	defer c.nc.Close()
	c.open(1, a.data == nil && a.trailers == nil, a.fields...)
	for i, piece := range a.data {
		c.WriteData(1, i == len(a.data)-1 && a.trailers == nil, []byte(piece)) // an error: it was refused already
	}
	if a.trailers != nil {
		c.open(1, true, a.trailers...)
	}
	return c.await(1), w.reached(t, p)
}

// TestHTTP2WhatCannotBeSaidInHTTP1 is about requests that would be something else, or several, where they are written down as
// HTTP/1.1. The client gets a 4xx or an error of the stream or connection, and the backend sees no request.
func TestHTTP2WhatCannotBeSaidInHTTP1(t *testing.T) {
	w := newWitness(t)
	p := start(t, whole(w.Port()))
	smuggled := "\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	field := func(name, value string) []string { return ordinary("GET", "/", name, value) }
	post := func(pairs ...string) []string { return ordinary("POST", "/", pairs...) }
	for _, a := range []attack{
		// RFC 9113 section 8.2.1, field validity; section 10.3, what an intermediary makes of it.
		{name: "8.2.1: CR LF in a value", fields: field("x-a", "1\r\nx-b: 2")},
		{name: "8.2.1: a request in a value (CVE-2021-33193)", fields: field("x-a", "1"+smuggled)},
		{name: "8.2.1: CR in a value", fields: field("x-a", "1\rx-b: 2")},
		{name: "8.2.1: LF in a value", fields: field("x-a", "1\nx-b: 2")},
		{name: "8.2.1: NUL in a value", fields: field("x-a", "1\x002")},
		{name: "10.3: another control character in a value", fields: field("x-a", "1\x012")},
		{name: "10.3: DEL in a value", fields: field("x-a", "1\x7f2")},
		{name: "8.2.1: a space before a value", fields: field("x-a", " 1")},
		{name: "8.2.1: a space after a value", fields: field("x-a", "1 ")},
		{name: "8.2.1: a tab after a value", fields: field("x-a", "1\t")},
		{name: "8.2.1: CR LF in a name", fields: field("x-a: 1\r\nx-b", "2")},
		{name: "8.2.1: a colon in a name (CVE-2020-11080 and others)", fields: field("transfer-encoding: chunked\r\nx", "1")},
		{name: "8.2.1: a colon at a name's end", fields: field("transfer-encoding:", "chunked")},
		{name: "8.2.1: a space at a name's end", fields: field("transfer-encoding ", "chunked")},
		{name: "8.2.1: a space before a name", fields: field(" x-a", "1")},
		{name: "8.2.1: upper case in a name", fields: field("X-A", "1")},
		{name: "8.2.1: a byte above 0x7f in a name", fields: field("x-\xff", "1")},
		{name: "8.2.1: an empty name", fields: field("", "1")},
		// Section 8.2.2, fields of the connection.
		{name: "8.2.2: transfer-encoding (H2.TE)", fields: post("transfer-encoding", "chunked"), data: []string{"0" + smuggled}},
		{name: "8.2.2: transfer-encoding beside content-length", fields: post("transfer-encoding", "chunked", "content-length", "5"), data: []string{"abcde"}},
		{name: "8.2.2: connection", fields: field("connection", "x-forwarded-for")},
		{name: "8.2.2: connection: close", fields: field("connection", "close")},
		{name: "8.2.2: keep-alive", fields: field("keep-alive", "timeout=5")},
		{name: "8.2.2: proxy-connection", fields: field("proxy-connection", "keep-alive")},
		{name: "8.2.2: upgrade (CVE-2021-21295's kind)", fields: field("upgrade", "websocket")},
		{name: "8.2.2: upgrade: h2c (h2c smuggling)", fields: field("upgrade", "h2c")},
		{name: "8.2.2: te: gzip", fields: field("te", "gzip")},
		{name: "8.2.2: te: trailers, gzip", fields: field("te", "trailers, gzip")},
		{name: "8.2.2: te twice", fields: ordinary("GET", "/", "te", "trailers", "te", "gzip")},
		// Section 8.1.1, content-length and the sum of the DATA frames (H2.CL).
		{name: "8.1.1: more data than declared (CVE-2021-21295)", fields: post("content-length", "3"), data: []string{"abc" + smuggled}},
		{name: "8.1.1: less data than declared", fields: post("content-length", "10"), data: []string{"abc"}},
		{name: "8.1.1: no data where some is declared (CVE-2021-21409)", fields: post("content-length", "3")},
		{name: "8.1.1: no data, in a frame of its own", fields: post("content-length", "3"), data: []string{""}},
		{name: "8.1.1: less data, then trailers", fields: post("content-length", "10"), data: []string{"abc"}, trailers: []string{"x-t", "1"}},
		{name: "8.1.1: two lengths that differ", fields: post("content-length", "3", "content-length", "5"), data: []string{"abc"}},
		{name: "8.1.1: two lengths that differ, the other way round", fields: post("content-length", "5", "content-length", "3"), data: []string{"abc"}},
		{name: "8.1.1: a list of lengths", fields: post("content-length", "3, 3"), data: []string{"abc"}},
		{name: "8.1.1: a length with a sign", fields: post("content-length", "+3"), data: []string{"abc"}},
		{name: "8.1.1: a negative length", fields: post("content-length", "-3"), data: []string{"abc"}},
		{name: "8.1.1: a length that is empty", fields: post("content-length", ""), data: []string{"abc"}},
		{name: "8.1.1: a length that is too large", fields: post("content-length", "18446744073709551619"), data: []string{"abc"}},
		{name: "8.1.1: a length in hexadecimal", fields: post("content-length", "0x3"), data: []string{"abc"}},
		// Section 8.3.1, request pseudo headers.
		{name: "8.3.1: a space in the path", fields: ordinary("GET", "/ HTTP/1.1\r\nx: y")},
		{name: "8.3.1: CR LF in the path", fields: ordinary("GET", "/\r\nx: y")},
		{name: "8.3.1: a version in the path", fields: ordinary("GET", "/ HTTP/1.1")},
		{name: "8.3.1: a tab in the path", fields: ordinary("GET", "/\tx")},
		{name: "8.3.1: NUL in the path", fields: ordinary("GET", "/\x00")},
		{name: "8.3.1: DEL in the path", fields: ordinary("GET", "/\x7f")},
		{name: "8.3.1: a fragment in the path", fields: ordinary("GET", "/a#b")},
		{name: "8.3.1: a space in the query", fields: ordinary("GET", "/?a b")},
		{name: "8.3.1: an absolute URL as the path", fields: ordinary("GET", "http://other/x")},
		{name: "8.3.1: an empty path", fields: ordinary("GET", "")},
		{name: "8.3.1: a path that does not begin with a slash", fields: ordinary("GET", "x")},
		{name: "8.3.1: a path like userinfo", fields: ordinary("GET", "@other/")},
		{name: "8.3.1: an asterisk, not with OPTIONS", fields: ordinary("GET", "*")},
		{name: "8.3.1: a path above the root", fields: ordinary("GET", "/../x")},
		{name: "8.3.1: a space in the method", fields: ordinary("GET / HTTP/1.1\r\nx:", "/")},
		{name: "8.3.1: a request in the method", fields: ordinary("GET /smuggled HTTP/1.1\r\n\r\nGET", "/")},
		{name: "8.3.1: an empty method", fields: ordinary("", "/")},
		{name: "8.3.1: no method", fields: []string{":scheme", "http", ":authority", "x", ":path", "/"}},
		{name: "8.3.1: no path", fields: []string{":method", "GET", ":scheme", "http", ":authority", "x"}},
		{name: "8.3.1: no scheme", fields: []string{":method", "GET", ":authority", "x", ":path", "/"}},
		{name: "8.3.1: another scheme", fields: []string{":method", "GET", ":scheme", "ftp", ":authority", "x", ":path", "/"}},
		{name: "8.3.1: a URL in the scheme (CVE-2021-39155's kind)", fields: []string{":method", "GET", ":scheme", "http://other/?", ":authority", "x", ":path", "/"}},
		{name: "8.3.1: host is not the authority", fields: field("host", "other")},
		{name: "8.3.1: two hosts", fields: ordinary("GET", "/", "host", "x", "host", "x")},
		{name: "8.3.1: userinfo in the authority", fields: []string{":method", "GET", ":scheme", "http", ":authority", "me@x", ":path", "/"}},
		{name: "8.3.1: a path in the authority", fields: []string{":method", "GET", ":scheme", "http", ":authority", "x/y", ":path", "/"}},
		{name: "8.3.1: CR LF in the authority", fields: []string{":method", "GET", ":scheme", "http", ":authority", "x\r\nx: y", ":path", "/"}},
		{name: "8.3.1: a list as the authority", fields: []string{":method", "GET", ":scheme", "http", ":authority", "x, y", ":path", "/"}},
		{name: "8.3.1: neither authority nor host", fields: []string{":method", "GET", ":scheme", "http", ":path", "/"}},
		{name: "8.3: a pseudo header behind a field", fields: []string{":method", "GET", ":scheme", "http", ":authority", "x", "x-a", "1", ":path", "/"}},
		{name: "8.3: an unknown pseudo header", fields: field(":other", "1")},
		{name: "8.3: a pseudo header of responses", fields: []string{":status", "200", ":method", "GET", ":scheme", "http", ":authority", "x", ":path", "/"}},
		{name: "8.3: a pseudo header twice", fields: []string{":method", "GET", ":method", "POST", ":scheme", "http", ":authority", "x", ":path", "/"}},
		{name: "8.3: a path twice", fields: []string{":method", "GET", ":scheme", "http", ":authority", "x", ":path", "/", ":path", "/b"}},
		// Section 8.1, trailers; RFC 9110 section 6.5.1.
		{name: "8.1: a pseudo header in the trailers", fields: post(), data: []string{"abc"}, trailers: []string{":path", "/b"}},
		{name: "8.1: content-length in the trailers", fields: post(), data: []string{"abc"}, trailers: []string{"content-length", "5"}},
		{name: "8.1: transfer-encoding in the trailers", fields: post(), data: []string{"abc"}, trailers: []string{"transfer-encoding", "chunked"}},
		{name: "8.1: host in the trailers", fields: post(), data: []string{"abc"}, trailers: []string{"host", "other"}},
		{name: "8.1: connection in the trailers", fields: post(), data: []string{"abc"}, trailers: []string{"connection", "close"}},
		{name: "8.1: authorization in the trailers", fields: post(), data: []string{"abc"}, trailers: []string{"authorization", "x"}},
		{name: "8.1: CR LF in a trailer", fields: post(), data: []string{"abc"}, trailers: []string{"x-t", "1" + smuggled}},
		{name: "8.1: CR LF in a trailer's name", fields: post(), data: []string{"abc"}, trailers: []string{"x-t: 1\r\nx", "1"}},
		{name: "8.1: upper case in a trailer", fields: post(), data: []string{"abc"}, trailers: []string{"X-T", "1"}},
		// Our own.
		{name: "an expectation that nobody knows", fields: post("expect", "miracles", "content-length", "3"), data: []string{"abc"}},
		// RFC 8441 section 4, and CONNECT, which we are no forward proxy for.
		{name: "CONNECT with a request in it", fields: []string{":method", "CONNECT", ":authority", "x HTTP/1.1\r\nx: y"}},
		{name: "CONNECT with a path", fields: []string{":method", "CONNECT", ":authority", "x", ":scheme", "http", ":path", "/"}},
		{name: "8441: a protocol without CONNECT", fields: ordinary("GET", "/", ":protocol", "websocket")},
		{name: "8441: a request in the protocol", fields: []string{":method", "CONNECT", ":protocol", "websocket\r\nx: y", ":scheme", "http", ":authority", "x", ":path", "/"}},
		{name: "8441: a space in the path", fields: []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "x", ":path", "/ HTTP/1.1"}},
	} {
		t.Run(a.name, func(t *testing.T) {
			o, reached := a.run(t, p, w)
			if !o.refused() {
				t.Errorf("the client got %v", o)
			}
			for _, r := range reached {
				t.Errorf("the backend got %s %s %v", r.Method, r.URL, r.Header)
			}
		})
	}
}

// TestHTTP2WhatLooksDangerousAndIsNot passes as exactly one request.
func TestHTTP2WhatLooksDangerousAndIsNot(t *testing.T) {
	w := newWitness(t)
	p := start(t, whole(w.Port()))
	for _, c := range []struct {
		attack
		seen func(*http.Request) string
		want string
	}{
		{attack{name: "a body that is a request", fields: ordinary("POST", "/"), data: []string{"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"}},
			func(r *http.Request) string { return strings.Join(r.TransferEncoding, ",") }, "chunked"},
		{attack{name: "a declared body that is a request", fields: ordinary("POST", "/", "content-length", "7"), data: []string{"GET /\r\n"}},
			func(r *http.Request) string { return fmt.Sprint(r.ContentLength, r.TransferEncoding) }, "7 []"},
		{attack{name: "a length twice, the same", fields: ordinary("POST", "/", "content-length", "3", "content-length", "3"), data: []string{"abc"}},
			func(r *http.Request) string { return fmt.Sprint(r.ContentLength, len(r.Header["Content-Length"])) }, "3 1"},
		{attack{name: "te: trailers", fields: ordinary("GET", "/", "te", "trailers")},
			func(r *http.Request) string { return r.Header.Get("Te") }, "trailers"},
		{attack{name: "host without an authority", fields: []string{":method", "GET", ":scheme", "http", ":path", "/", "host", "other"}},
			func(r *http.Request) string { return r.Header.Get("X-Forwarded-Host") }, "other"},
		{attack{name: "host and the same authority", fields: ordinary("GET", "/", "host", "x")},
			func(r *http.Request) string { return r.Header.Get("X-Forwarded-Host") }, "x"},
		{attack{name: "an encoded end of line in the path", fields: ordinary("GET", "/%0d%0aX-A:%201")},
			func(r *http.Request) string { return r.RequestURI }, "/%0D%0AX-A:%201"},
		{attack{name: "two slashes", fields: ordinary("GET", "//other/x")},
			func(r *http.Request) string { return r.RequestURI }, "//other/x"},
		{attack{name: "a value with a tab and bytes above 0x7f", fields: ordinary("GET", "/", "x-a", "a\tb\xc3\xbc")},
			func(r *http.Request) string { return r.Header.Get("X-A") }, "a\tb\xc3\xbc"},
		{attack{name: "a field that the proxy's own server is told of", fields: ordinary("GET", "/", noteProtocol, "websocket", noteHead, "000")},
			func(r *http.Request) string { return fmt.Sprint(r.Header[protocolKey], r.Header[headKey], r.URL) }, "[websocket] [000] /"},
		{attack{name: "a trailer that the proxy's own server is told of", fields: ordinary("POST", "/"), data: []string{"abc"},
			trailers: []string{noteTrailer, "host: other"}},
			func(r *http.Request) string { return fmt.Sprint(r.Host != "other", r.Trailer) }, "true map[Pyserve-Trailer:[host: other]]"},
		{attack{name: "forwarded fields of a stranger", fields: ordinary("GET", "/", "x-forwarded-for", "1.2.3.4", "x_forwarded_for", "1.2.3.4")},
			func(r *http.Request) string {
				return fmt.Sprint(r.Header["X-Forwarded-For"], r.Header["X_forwarded_for"])
			}, "[127.0.0.1] []"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, reached := c.run(t, p, w)
			if o.status != "200" || len(reached) != 1 {
				t.Fatalf("%v, %d requests", o, len(reached))
			}
			if got := c.seen(reached[0]); got != c.want {
				t.Errorf("the backend saw %q, want %q", got, c.want)
			}
		})
	}
}

// What a backend says must not become anything else either: nothing that HTTP/1 refuses is said in HTTP/2.
func TestHTTP2AnswersThatCannotBeSaid(t *testing.T) {
	for name, answer := range answersThatAreNone {
		t.Run(name, func(t *testing.T) {
			p := start(t, whole(answering(t, answer).Port()))
			c := connectFrames(t, p)
			c.open(1, true, ordinary("GET", "/")...)
			o := c.await(1)
			if broken := o.status == "" && o.reset != nil; o.status != "502" && !broken || strings.HasPrefix(o.body, "abc") {
				t.Error(o)
			}
		})
	}
}

// A malformed request is that stream's error alone, as long as nothing follows on it.
func TestHTTP2AMalformedRequestEndsNoOther(t *testing.T) {
	release := make(chan struct{})
	b := backend(t, func(w http.ResponseWriter, r *http.Request) { <-release })
	p := start(t, whole(portOf(b)))
	c := connectFrames(t, p)
	c.open(1, true, ordinary("GET", "/")...)
	for i, bad := range [][]string{{"connection", "close"}, {"X-A", "1"}, {"x-a", "\r\n"}, {"te", "gzip"}} {
		stream := uint32(2*i + 3)
		c.open(stream, true, ordinary("GET", "/", bad...)...)
		if o := c.await(stream); o.reset == nil || slices.Contains(o.interim, "100") {
			t.Errorf("%q: %v", bad, o)
		}
	}
	close(release)
	if o := c.await(1); o.status != "200" {
		t.Error(o)
	}
}
