package forward

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// startSecure is a front over TLS that speaks HTTP/2, and what a client needs to believe it.
func startSecure(t testing.TB, sites ...site) (*proxy, *tls.Config) {
	t.Helper()
	front, config := secure(t)
	front.NextProtos = []string{"h2"}
	return startWith(t, settings{tls: front}, sites...), config
}

// startHTTP2 is a front over TLS and a client that speaks HTTP/2 to it.
func startHTTP2(t testing.TB, sites ...site) (*proxy, *http.Client, string) {
	t.Helper()
	p, config := startSecure(t, sites...)
	transport := &http.Transport{TLSClientConfig: config, DisableCompression: true, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return p, &http.Client{Transport: transport, Timeout: time.Minute}, "https://" + p.address
}

// framed is a client's connection of which every frame is written by hand.
type framed struct {
	*http2.Framer
	t      testing.TB
	nc     net.Conn
	block  bytes.Buffer
	encode *hpack.Encoder
	server map[http2.SettingID]uint32
}

// connectFrames speaks HTTP/2 with prior knowledge.
func connectFrames(t testing.TB, p *proxy) *framed {
	t.Helper()
	return newFramed(t, nodetest.Dial(t, p.address))
}

func newFramed(t testing.TB, nc net.Conn, settings ...http2.Setting) *framed {
	t.Helper()
	c := &framed{Framer: http2.NewFramer(nc, nc), t: t, nc: nc, server: make(map[http2.SettingID]uint32)}
	c.AllowIllegalWrites = true
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.encode = hpack.NewEncoder(&c.block)
	if _, err := io.WriteString(nc, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	c.sent(c.WriteSettings(settings...))
	f, err := c.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	f.(*http2.SettingsFrame).ForeachSetting(func(s http2.Setting) error {
		c.server[s.ID] = s.Val
		return nil
	})
	c.sent(c.WriteSettingsAck())
	return c
}

func (c *framed) sent(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// fields encodes pairs of name and value.
func (c *framed) fields(pairs ...string) []byte {
	c.block.Reset()
	for i := 0; i+1 < len(pairs); i += 2 {
		c.encode.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(c.block.Bytes())
}

// open begins a stream.
func (c *framed) open(stream uint32, end bool, pairs ...string) {
	c.t.Helper()
	c.sent(c.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: c.fields(pairs...), EndStream: end, EndHeaders: true,
	}))
}

// ordinary are the pseudo headers of a request.
func ordinary(method, path string, more ...string) []string {
	return append([]string{":method", method, ":scheme", "http", ":authority", "x", ":path", path}, more...)
}

// outcome is what became of a stream.
type outcome struct {
	status  string
	header  map[string][]string
	body    string
	trailer map[string][]string
	interim []string
	ended   bool           // by END_STREAM
	reset   *http2.ErrCode // of the stream
	goAway  *http2.ErrCode
	leaving bool // a GOAWAY without an error came before that
	closed  bool
}

func (o outcome) String() string {
	switch {
	case o.reset != nil:
		return fmt.Sprintf("%s reset %v after %q", o.status, *o.reset, o.body)
	case o.goAway != nil:
		return fmt.Sprintf("%s goaway %v after %q", o.status, *o.goAway, o.body)
	case o.closed:
		return fmt.Sprintf("%s closed after %q", o.status, o.body)
	}
	return o.status
}

// refused says that no answer came but a 4xx, or an error of HTTP/2.
func (o outcome) refused() bool {
	return strings.HasPrefix(o.status, "4") || o.status == "" && (o.reset != nil || o.goAway != nil || o.closed)
}

// await reads until the stream has ended in whatever way. A GOAWAY without an error ends none.
func (c *framed) await(stream uint32) (o outcome) {
	for !o.ended && o.reset == nil && !o.closed {
		f, err := c.ReadFrame()
		if err != nil {
			o.closed = true
			break
		}
		if g, ok := f.(*http2.GoAwayFrame); ok && g.ErrCode != http2.ErrCodeNo {
			code := g.ErrCode
			o.goAway = &code
		} else if ok {
			o.leaving = true
		}
		if f.Header().StreamID == stream {
			o.take(f)
		}
	}
	return o
}

func (o *outcome) take(f http2.Frame) {
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		o.takeFields(f)
	case *http2.DataFrame:
		o.body += string(f.Data())
		o.ended = f.StreamEnded()
	case *http2.RSTStreamFrame:
		code := f.ErrCode
		o.reset = &code
	}
}

func (o *outcome) takeFields(f *http2.MetaHeadersFrame) {
	fields := make(map[string][]string)
	for _, field := range f.RegularFields() {
		fields[field.Name] = append(fields[field.Name], field.Value)
	}
	o.ended = f.StreamEnded()
	switch status := f.PseudoValue("status"); {
	case status == "":
		o.trailer = fields
	case status[0] == '1':
		o.interim = append(o.interim, status)
	default:
		o.status, o.header = status, fields
	}
}

// next reads frames until one of a type on a stream.
func (c *framed) next(kind http2.FrameType, stream uint32) http2.Frame {
	c.t.Helper()
	for {
		f, err := c.ReadFrame()
		if err != nil {
			c.t.Fatalf("no %v frame: %v", kind, err)
		}
		if f.Header().Type == kind && f.Header().StreamID == stream {
			return f
		}
	}
}

// served wants an ordinary request on a connection of its own to be answered 200.
func served(t testing.TB, p *proxy) {
	t.Helper()
	c := connectFrames(t, p)
	defer c.nc.Close()
	c.open(1, true, ordinary("GET", "/served")...)
	if o := c.await(1); o.status != "200" {
		t.Fatalf("another connection: %v", o)
	}
}

func TestHTTP2HeadersBothWays(t *testing.T) {
	b := nodetest.NewRecorder(t, "HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nX-A: 1\r\nX-A: 2\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n"+
		"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 1\r\nUpgrade: h2c\r\n\r\nok")
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, true, ordinary("GET", "/p?q=1&r=%20", "accept", "a", "accept", "b", "cookie", "x=1", "cookie", "y=2", "te", "trailers",
		"x-empty", "", "expect", "100-continue")...)
	o := c.await(1)
	head := b.Head(t)
	if lines(head)[0] != "GET /p?q=1&r=%20 HTTP/1.1" {
		t.Error(head)
	}
	for name, want := range map[string][]string{
		"Host": {"127.0.0.1:" + itoa(b.Port())}, "Accept": {"a", "b"}, "Cookie": {"x=1; y=2"}, "TE": {"trailers"}, "Connection": {"TE"},
		"X-Empty": {""}, "X-Forwarded-Host": {"x"}, "X-Forwarded-Proto": {"http"}, "Via": {"2.0 pyserve"},
		"Content-Length": nil, "Transfer-Encoding": nil, "Expect": nil, "Trailer": nil, trailerKey: nil, expectKey: nil, streamKey: nil,
	} {
		if got := fields(head, name); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if o.status != "200" || o.body != "ok" || !o.ended || len(o.header["date"]) != 1 {
		t.Errorf("%v %v", o, o.header)
	}
	for name, want := range map[string][]string{
		"x-a": {"1", "2"}, "set-cookie": {"a=b", "c=d"}, "content-length": {"2"},
		"connection": nil, "x-hop": nil, "keep-alive": nil, "upgrade": nil, "content-type": nil, "transfer-encoding": nil,
	} {
		if got := o.header[name]; !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// The scheme that is told is what was spoken, not what the client writes into :scheme.
func TestHTTP2SchemeIsThatOfTheConnection(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	front, config := secure(t)
	front.NextProtos, config.NextProtos = []string{"h2"}, []string{"h2"}
	p := startWith(t, settings{tls: front}, whole(b.Port()))
	c := newFramed(t, tls.Client(nodetest.Dial(t, p.address), config))
	for i, scheme := range []string{"http", "https"} {
		stream := uint32(2*i + 1)
		c.open(stream, true, ":method", "GET", ":scheme", scheme, ":authority", "x", ":path", "/")
		if o := c.await(stream); o.status != "200" {
			t.Fatal(o)
		}
		if got := fields(b.Head(t), "X-Forwarded-Proto"); !slices.Equal(got, []string{"https"}) {
			t.Errorf("%s: %q", scheme, got)
		}
	}
}

func TestHTTP2TrailersBothWays(t *testing.T) {
	received := make(chan http.Header, 1)
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		body, _ := io.ReadAll(r.Body)
		received <- r.Trailer
		w.Write(body)
		w.Header().Set("X-Announced", "1")
		w.Header().Set(http.TrailerPrefix+"X-Sudden", "2")
	})
	p := start(t, whole(portOf(b)))
	c := connectFrames(t, p)
	c.open(1, false, ordinary("POST", "/", "trailer", "x-sum", "te", "trailers")...)
	c.sent(c.WriteData(1, false, []byte("body")))
	c.open(1, true, "x-sum", "abc", "x-unannounced", "1", "x-unannounced", "2")
	got := <-received
	if got.Get("X-Sum") != "abc" || !slices.Equal(got["X-Unannounced"], []string{"1", "2"}) || len(got) != 2 {
		t.Errorf("the backend got %v", got)
	}
	o := c.await(1)
	if o.body != "body" || !o.ended || len(o.trailer) != 2 || o.trailer["x-announced"][0] != "1" || o.trailer["x-sudden"][0] != "2" {
		t.Errorf("%v, trailers %v", o, o.trailer)
	}
}

// The head's fields are not said again behind the body, whatever they announce.
func TestHTTP2TrailersOfNamesThatTheHeadHas(t *testing.T) {
	b := answering(t, "HTTP/1.1 200 OK\r\nTrailer: X-Both, X-Real-IP, X-Head\r\nX-Both: 1\r\nX-Real-IP: 1\r\nX-Head: 1\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"3\r\nabc\r\n0\r\nX-Both: 2\r\nX-Real-IP: 2\r\n\r\n")
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, true, ordinary("GET", "/")...)
	o := c.await(1)
	if o.body != "abc" || !o.ended || !slices.Equal(o.trailer["x-both"], []string{"2"}) || len(o.trailer) != 1 {
		t.Errorf("%v, trailers %v", o, o.trailer)
	}
}

// An answer without a body may have trailers all the same, as gRPC's do.
func TestHTTP2TrailersWithoutABody(t *testing.T) {
	b := answering(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGrpc-Status: 5\r\nX-T: a\r\nX-T: b\r\n\r\n")
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, true, ordinary("GET", "/")...)
	if o := c.await(1); o.status != "200" || !o.ended || !slices.Equal(o.trailer["x-t"], []string{"a", "b"}) || o.trailer["grpc-status"][0] != "5" {
		t.Errorf("%v, trailers %v", o, o.trailer)
	}
}

func TestHTTP2EarlyHintsPass(t *testing.T) {
	proceed := make(chan struct{})
	b, _ := scripted(t, func(w *wire) {
		w.request()
		io.WriteString(w, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Early: 1\r\n\r\n")
		<-proceed
		io.WriteString(w, sized("late"))
	})
	_, client, url := startHTTP2(t, whole(b.Port()))
	var link string
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		link = fmt.Sprint(code, h.Get("Link"))
		close(proceed) // the final answer did not have to be there for it
		return nil
	}}
	req, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", url, nil)
	res, body := do(t, client, req)
	if link != "103</a>" || body != "late" || res.Header.Get("X-Early") != "" {
		t.Errorf("%q %q %v", link, body, res.Header)
	}
}

// The client waits, so the backend must be asked first, and its word must come through.
func TestHTTP2ContinueIsAskedOfTheBackend(t *testing.T) {
	asked := make(chan string, 1)
	proceed := make(chan struct{})
	b, _ := scripted(t, func(w *wire) {
		head, _ := nodetest.ReadHead(w.in)
		asked <- head
		<-proceed
		io.WriteString(w, "HTTP/1.1 100 Continue\r\n\r\n")
		body := make([]byte, 4)
		io.ReadFull(w.in, body)
		io.WriteString(w, sized("got "+string(body)))
	})
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, false, ordinary("POST", "/", "expect", "100-continue", "content-length", "4")...)
	if got := fields(<-asked, "Expect"); !slices.Equal(got, []string{"100-continue"}) {
		t.Errorf("the backend was sent Expect %q", got)
	}
	close(proceed)
	if f := c.next(http2.FrameHeaders, 1).(*http2.MetaHeadersFrame); f.PseudoValue("status") != "100" {
		t.Fatal(f)
	}
	c.sent(c.WriteData(1, true, []byte("body")))
	if o := c.await(1); o.status != "200" || o.body != "got body" || o.interim != nil {
		t.Errorf("%v %q", o, o.body)
	}
}

func TestHTTP2ARefusedExpectationSendsNoBody(t *testing.T) {
	b := answering(t, "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno")
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, false, ordinary("POST", "/", "expect", "100-continue", "content-length", "4")...)
	if o := c.await(1); o.status != "417" || o.body != "no" || o.interim != nil {
		t.Errorf("%v %q after %v", o, o.body, o.interim)
	}
}

func TestHTTP2AnEarlyAnswerDoesNotWaitForTheUpload(t *testing.T) {
	b, _ := scripted(t, func(w *wire) {
		nodetest.ReadHead(w.in)
		io.WriteString(w, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
	})
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, false, ordinary("POST", "/")...)
	c.sent(c.WriteData(1, false, bytes.Repeat([]byte("x"), 1000)))
	if o := c.await(1); o.status != "413" || o.body != "big" || !o.ended {
		t.Fatalf("%v %q", o, o.body)
	}
	// RFC 9113 section 8.1: the rest of the body is not wanted, without this being an error.
	if f := c.next(http2.FrameRSTStream, 1).(*http2.RSTStreamFrame); f.ErrCode != http2.ErrCodeNo {
		t.Error(f.ErrCode)
	}
	c.open(3, true, ordinary("GET", "/")...)
	if o := c.await(3); o.status != "413" {
		t.Errorf("the connection cannot be used: %v", o)
	}
}

func TestHTTP2UploadAndAnswerFlowAtTheSameTime(t *testing.T) {
	b, _ := scripted(t, func(w *wire) {
		nodetest.ReadHead(w.in)
		io.WriteString(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		io.Copy(w, w.in) // the chunks come back as they are, the last one included
	})
	_, client, url := startHTTP2(t, whole(b.Port()))
	body, feed := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", url, body)
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for _, word := range []string{"one", "two", "three"} {
		io.WriteString(feed, word)
		echoed := make([]byte, len(word))
		if _, err := io.ReadFull(res.Body, echoed); err != nil || string(echoed) != word {
			t.Fatalf("%q %v, want %q", echoed, err, word)
		}
	}
	feed.Close()
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
		t.Errorf("%q %v", rest, err)
	}
}

func TestHTTP2LargeBodiesComeThroughWhole(t *testing.T) {
	const size = 20 << 20
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex() // or it would read a part of the body away
		w.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
		if r.ContentLength > 0 {
			w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
		}
		io.Copy(w, r.Body)
	})
	_, client, url := startHTTP2(t, whole(portOf(b)))
	for _, length := range []int64{size, -1} {
		sum := sha256.New()
		req, _ := http.NewRequestWithContext(t.Context(), "PUT", url, io.TeeReader(&pattern{left: size}, sum))
		req.ContentLength = length
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		back := sha256.New()
		n, err := io.Copy(back, res.Body)
		res.Body.Close()
		if err != nil || n != size || !bytes.Equal(sum.Sum(nil), back.Sum(nil)) {
			t.Errorf("length %d: %d bytes came back, %v", length, n, err)
		}
		if res.ContentLength != length || res.Header.Get("X-Length") != fmt.Sprint(length) {
			t.Errorf("length %d: the backend was told %s, the client %d", length, res.Header.Get("X-Length"), res.ContentLength)
		}
	}
}

// pattern is a body that no two pieces of are alike.
type pattern struct {
	left int
	seed uint32
}

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	b = b[:min(len(b), p.left)]
	for i := range b {
		p.seed = p.seed*1664525 + 1013904223
		b[i] = byte(p.seed >> 24)
	}
	p.left -= len(b)
	return len(b), nil
}

func TestHTTP2AnswersWithoutBody(t *testing.T) {
	for _, c := range []struct{ method, answer, status, length string }{
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", "200", "12345"},
		{"HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "200", ""},
		{"GET", "HTTP/1.1 204 No Content\r\n\r\n", "204", ""},
		{"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: x\r\n\r\n", "304", "77"},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200", "0"},
	} {
		p := start(t, whole(answering(t, c.answer).Port()))
		f := connectFrames(t, p)
		f.open(1, true, ordinary(c.method, "/")...)
		o := f.await(1)
		if o.status != c.status || !o.ended || o.body != "" || strings.Join(o.header["content-length"], ",") != c.length {
			t.Errorf("%s, %q: %v %q %v", c.method, c.answer, o, o.body, o.header)
		}
	}
}

func TestHTTP2ABodyOfNoBytes(t *testing.T) {
	heads := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(heads.Port()))
	c := connectFrames(t, p)
	c.open(1, true, ordinary("POST", "/", "content-length", "0")...)
	c.await(1)
	if head := heads.Head(t); !slices.Equal(fields(head, "Content-Length"), []string{"0"}) {
		t.Errorf("declared: %q", head)
	}
	c.open(3, true, ordinary("POST", "/")...)
	c.await(3)
	if head := heads.Head(t); fields(head, "Content-Length") != nil || fields(head, "Transfer-Encoding") != nil {
		t.Errorf("not declared: %q", head)
	}
}

// A connection has ended only when its requests have: the server does not wait for them.
func TestHTTP2ADrainWaitsForRequestsWhoseConnectionIsGone(t *testing.T) {
	for range 20 {
		const count = 10
		reached := make(chan struct{}, count)
		b, _ := scripted(t, func(w *wire) {
			nodetest.ReadHead(w.in)
			reached <- struct{}{}
			silence(make(chan struct{}))(w)
		})
		p := start(t, whole(b.Port()))
		c := connectFrames(t, p)
		for i := range uint32(count) {
			c.open(2*i+1, true, ordinary("GET", "/")...)
		}
		for range count {
			<-reached
		}
		c.nc.Close()
		if err := p.front.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "client"); n != count {
			t.Fatalf("%v of %d requests had ended", n, count)
		}
	}
}

func TestHTTP2AStreamThatIsResetEndsTheBackendsConnection(t *testing.T) {
	for name, begin := range map[string]string{"before the answer": "", "within it": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"} {
		t.Run(name, func(t *testing.T) {
			reached, ended := make(chan struct{}), make(chan struct{})
			b, conns := scripted(t, func(w *wire) {
				nodetest.ReadHead(w.in)
				io.WriteString(w, begin)
				close(reached)
				silence(ended)(w)
			}, serve(sized("again")))
			p := start(t, whole(b.Port()))
			c := connectFrames(t, p)
			c.open(1, true, ordinary("GET", "/")...)
			<-reached
			if begin != "" {
				c.next(http2.FrameData, 1)
			}
			c.sent(c.WriteRSTStream(1, http2.ErrCodeCancel))
			wait(t, "the backend's connection ends", ended)
			c.open(3, true, ordinary("GET", "/")...)
			if o := c.await(3); o.body != "again" {
				t.Error(o)
			}
			if conns() != 2 {
				t.Errorf("%d connections", conns())
			}
			nodetest.Eventually(t, "it is counted as the client's failure", func() bool { // after the backend's connection has ended
				return metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "client") == 1
			})
		})
	}
}

func TestHTTP2AnUploadThatIsResetIsNotComplete(t *testing.T) {
	reached, failed := make(chan struct{}), make(chan error, 1)
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.ReadFull(r.Body, make([]byte, 4))
		close(reached)
		_, err := io.ReadAll(r.Body)
		failed <- err
	})
	p := start(t, whole(portOf(b)))
	c := connectFrames(t, p)
	c.open(1, false, ordinary("POST", "/")...)
	c.sent(c.WriteData(1, false, []byte("half")))
	<-reached
	c.sent(c.WriteRSTStream(1, http2.ErrCodeCancel))
	if err := <-failed; err == nil {
		t.Error("the backend saw a complete body")
	}
}

func TestHTTP2AnAnswerThatBreaksOffDoesNotLookComplete(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: cut",
	} {
		p := start(t, whole(answering(t, answer).Port()))
		c := connectFrames(t, p)
		c.open(1, true, ordinary("GET", "/")...)
		if o := c.await(1); o.ended || o.reset == nil {
			t.Errorf("%q: %v", answer, o)
		}
		c.open(3, true, ordinary("OPTIONS", "*")...)
		if o := c.await(3); o.status != "200" {
			t.Errorf("%q: the connection ended as well: %v", answer, o)
		}
	}
}

func TestHTTP2TimeoutsOfTheRoute(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
	for _, c := range []struct {
		name     string
		timeouts *resourcev1.Timeouts
		begin    string
		upload   bool
		status   string
	}{
		{"no answer", &resourcev1.Timeouts{ResponseHeader: seconds(short)}, "", false, "504"},
		{"an answer that stands still", &resourcev1.Timeouts{Idle: seconds(short)}, head, false, "reset"},
		{"an upload that stands still", &resourcev1.Timeouts{Idle: seconds(short)}, "", true, "408"},
		{"all of it, before the answer", &resourcev1.Timeouts{Request: seconds(short)}, "", false, "504"},
		{"all of it, within the answer", &resourcev1.Timeouts{Request: seconds(short)}, head, false, "reset"},
		{"all of it, within the upload", &resourcev1.Timeouts{Request: seconds(short)}, "", true, "504"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ended := make(chan struct{})
			b, _ := scripted(t, func(w *wire) {
				nodetest.ReadHead(w.in)
				io.WriteString(w, c.begin)
				silence(ended)(w)
			}, serve(sized("next")))
			p := start(t, within(c.timeouts, whole(b.Port())))
			f := connectFrames(t, p)
			f.open(1, !c.upload, ordinary("POST", "/")...)
			o := f.await(1)
			if c.status == "reset" && (o.reset == nil || o.ended) || c.status != "reset" && (o.status != c.status || !o.ended) {
				t.Errorf("%v, want %s", o, c.status)
			}
			wait(t, "the backend's connection ends", ended)
			f.open(3, true, ordinary("GET", "/")...)
			if o := f.await(3); o.body != "next" {
				t.Errorf("the connection cannot be used: %v", o)
			}
		})
	}
}

// CVE-2019-9517: a client that lets its window run dry holds a stream, a backend's connection and a piece of the answer. It may
// for as long as the route lets a body stand still.
func TestHTTP2AClientThatDoesNotReadIsCut(t *testing.T) {
	ended := make(chan struct{})
	b, _ := scripted(t, func(w *wire) {
		nodetest.ReadHead(w.in)
		io.WriteString(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		chunk := "1000\r\n" + strings.Repeat("x", 0x1000) + "\r\n"
		for {
			if _, err := io.WriteString(w, chunk); err != nil {
				close(ended)
				return
			}
		}
	}, serve(sized("next")))
	p := start(t, within(&resourcev1.Timeouts{Idle: seconds(short)}, whole(b.Port())))
	c := newFramed(t, nodetest.Dial(t, p.address), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	c.open(1, true, ordinary("GET", "/")...)
	if o := c.await(1); o.reset == nil || len(o.body) != 10 {
		t.Error(o)
	}
	wait(t, "the backend's connection ends", ended)
	served(t, p)
}

func TestHTTP2DrainSaysGoAwayAndLetsStreamsEnd(t *testing.T) {
	reached, proceed := make(chan struct{}), make(chan struct{})
	b, _ := scripted(t, func(w *wire) {
		w.request()
		io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
		close(reached)
		<-proceed
		io.WriteString(w, "def")
	})
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	c.open(1, true, ordinary("GET", "/")...)
	<-reached
	drained := make(chan error, 1)
	go func() { drained <- p.front.Drain(t.Context()) }()
	if f := c.next(http2.FrameGoAway, 0).(*http2.GoAwayFrame); f.ErrCode != http2.ErrCodeNo {
		t.Error(f.ErrCode)
	}
	close(proceed)
	if o := c.await(1); !o.ended || !strings.HasSuffix(o.body, "def") {
		t.Errorf("%v %q", o, o.body)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
	if o := c.await(3); !o.closed || o.goAway != nil {
		t.Errorf("the connection goes on: %v", o)
	}
}

func TestHTTP2DrainEndsIdleConnections(t *testing.T) {
	p := start(t)
	c := connectFrames(t, p)
	c.open(1, true, ordinary("OPTIONS", "*")...)
	c.await(1)
	drained := make(chan error, 1)
	go func() { drained <- p.front.Drain(t.Context()) }()
	c.next(http2.FrameGoAway, 0)
	if o := c.await(3); !o.closed {
		t.Error(o)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

func TestHTTP2WhatIsLeftIsCutWhenADrainIsOver(t *testing.T) {
	ended := make(chan struct{})
	b, _ := scripted(t, silence(ended))
	front, config := secure(t)
	front.NextProtos, config.NextProtos = []string{"h2"}, []string{"h2"}
	p := startWith(t, settings{tls: front}, whole(b.Port()))
	c := newFramed(t, tls.Client(nodetest.Dial(t, p.address), config))
	c.open(1, true, ordinary("GET", "/")...)
	nodetest.Eventually(t, "the request is under way", func() bool { return metric(t, p, "pyserve_requests_in_flight") == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.front.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wait(t, "the backend's connection ends", ended)
	if o := c.await(1); o.ended || o.status != "" {
		t.Errorf("the client saw an answer: %v", o)
	}
}

func TestHTTP2AStaleConnectionIsLeftInOrder(t *testing.T) {
	b := nodetest.NewRecorder(t, sized("ok"))
	p := start(t, whole(b.Port()))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var stale atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := l.Accept()
		if err == nil {
			p.front.Serve(nc, nc.(*net.TCPConn), netip.Addr{}, stale.Load)
		}
	}()
	c := newFramed(t, nodetest.Dial(t, l.Addr().String()))
	c.open(1, true, ordinary("GET", "/")...)
	if o := c.await(1); o.body != "ok" || len(o.header["connection"]) > 0 {
		t.Fatal(o)
	}
	stale.Store(true)
	c.open(3, true, ordinary("GET", "/")...)
	o := c.await(3)
	if o.body != "ok" || len(o.header["connection"]) > 0 {
		t.Errorf("%v %v", o, o.header)
	}
	if !o.leaving {
		c.next(http2.FrameGoAway, 0)
	}
	wait(t, "the connection ends", done)
}

func TestHTTP2RefusalsAreOurs(t *testing.T) {
	p, client, url := startHTTP2(t, to("/here", closedPort(t)))
	for path, status := range map[string]int{"/there": 404, "/here": 502, "/%2e%2e/x": 400} {
		res, body := get(t, client, url+path, "Accept", "application/json")
		if res.StatusCode != status || res.Header.Get("X-Request-Id") == "" || !strings.Contains(body, `"request_id"`) || res.ProtoMajor != 2 {
			t.Errorf("%s: %v %q", path, res, body)
		}
	}
	nodetest.Eventually(t, "all are counted", func() bool {
		return metric(t, p, "pyserve_requests_total", "route", noRoute, "code_class", "4xx") == 2 && metric(t, p, "pyserve_requests_in_flight") == 0
	})
}

func TestHTTP2ManyStreamsAtOnce(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.URL.Path, body)
	})
	_, client, url := startHTTP2(t, whole(portOf(b)))
	const clients, each = 16, 40
	failures := make(chan string, clients*each)
	done := make(chan struct{}, clients)
	for i := range clients {
		go func() {
			defer func() { done <- struct{}{} }()
			for k := range each {
				path, text := fmt.Sprintf("/%d/%d", i, k), strings.Repeat("b", k*100)
				res, err := client.Post(url+path, "text/plain", strings.NewReader(text))
				if err != nil {
					failures <- err.Error()
					continue
				}
				got, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || string(got) != path+" "+text {
					failures <- fmt.Sprintf("%s: %.40q %v", path, got, err)
				}
			}
		}()
	}
	for range clients {
		<-done
	}
	close(failures)
	for f := range failures {
		t.Error(f)
	}
}

// HTTP/2 cannot begin behind a request of HTTP/1: that would let a body's end be taken for requests.
func TestHTTP2BeginsAtAConnectionsBeginning(t *testing.T) {
	p := start(t)
	w := connect(t, p)
	w.say("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
	w.want("OPTIONS", 200, "")
	w.say(http2.ClientPreface)
	if head := w.head("HTTP/1.1 "); strings.HasPrefix(head, "HTTP/1.1 2") {
		t.Error(head)
	}
}

// TestABeginningInAnUnknownProtocol is about RFC 9113 section 3.4: a bad preface is an error of the connection. What is closed
// without an answer is only what cannot have been meant as HTTP/1.
func TestABeginningInAnUnknownProtocol(t *testing.T) {
	front, config := secure(t)
	plain, secured := start(t, whole(mirror(t).Port())), startWith(t, settings{tls: front})
	for _, c := range []struct {
		name, begin string
		p           *proxy
		want        string // empty: nothing
	}{
		{"a preface of something", "INVALID CONNECTION PREFACE\r\n\r\n", plain, ""},
		{"a preface of something, and more", "INVALID CONNECTION PREFACE\r\n\r\n" + strings.Repeat("x", 100_000), plain, ""},
		{"a request of something", "GET / GOPHER\r\n\r\n", plain, ""},
		{"a preface over TLS", "INVALID CONNECTION PREFACE\r\n\r\n", secured, "HTTP/1.1 400 "},
		{"a preface behind a request", ask("/1") + "INVALID CONNECTION PREFACE\r\n\r\n", plain, "HTTP/1.1 200 "},
		{"a preface behind an empty line", "\r\nINVALID CONNECTION PREFACE\r\n\r\n", plain, "HTTP/1.1 400 "},
		{"four words", "AN INVALID CONNECTION PREFACE\r\n\r\n", plain, "HTTP/1.1 400 "},
		{"no version", "GET /\r\n\r\n", plain, "HTTP/1.1 400 "},
		{"the version of another protocol", "GET / FOO/1.1\r\n\r\n", plain, "HTTP/1.1 400 "},
		{"a version in lower case", "GET / http/1.1\r\n\r\n", plain, "HTTP/1.1 400 "},
		{"a version without a slash", "GET / HTTP1.1\r\n\r\n", plain, "HTTP/1.1 400 "},
		{"a version that we do not speak", "GET / HTTP/9.9\r\n\r\n", plain, "HTTP/1.1 505 "},
		{"a preface with the wrong version", "PRI * HTTP/3.0\r\n\r\n", plain, "HTTP/1.1 505 "},
		{"a line that ends in LF", "INVALID CONNECTION PREFACE\n\n", plain, "HTTP/1.1 400 "},
		{"no words", "\x00\x01\x02\r\n\r\n", plain, "HTTP/1.1 400 "},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := connect(t, c.p)
			if c.p == secured {
				w = connectTLS(t, c.p, config)
			}
			before := rejected(t, c.p, http1.UnknownProtocol)
			io.WriteString(w, c.begin) // an error: it was cut off
			if c.want == "" {
				w.ended()
				if n := rejected(t, c.p, http1.UnknownProtocol) - before; n != 1 {
					t.Errorf("it was counted %v times", n)
				}
				return
			}
			w.head(c.want)
			if strings.HasSuffix(c.want, "200 ") {
				w.read(len("GET /1"))
				w.head("HTTP/1.1 400 ")
			}
		})
	}
}

// rejected is how many messages of clients were refused for a reason.
func rejected(t testing.TB, p *proxy, reason http1.Reason) float64 {
	return metric(t, p, "pyserve_rejected_messages_total", "side", "client", "reason", reason.String())
}

// A setting that comes twice counts as it comes last (RFC 9113 section 6.5.3).
func TestHTTP2SettingsThatRepeat(t *testing.T) {
	b := answering(t, sized("0123456789"))
	p := start(t, whole(b.Port()))
	c := newFramed(t, nodetest.Dial(t, p.address), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100},
		http2.Setting{ID: http2.SettingEnablePush, Val: 0}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 3})
	c.open(1, true, ordinary("GET", "/")...)
	if f := c.next(http2.FrameData, 1).(*http2.DataFrame); string(f.Data()) != "012" {
		t.Errorf("%q", f.Data())
	}
}

func TestHTTP2PaddedFieldsInSeveralFrames(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	block := c.fields(ordinary("GET", "/padded", "x-long", strings.Repeat("l", 30000), "x-last", "1")...)
	c.sent(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:16000], EndStream: true, PadLength: 100,
		Priority: http2.PriorityParam{StreamDep: 7, Weight: 3}}))
	c.sent(c.WriteContinuation(1, false, block[16000:16001]))
	c.sent(c.WriteContinuation(1, false, nil))
	c.sent(c.WriteContinuation(1, true, block[16001:]))
	if o := c.await(1); o.status != "200" {
		t.Fatal(o)
	}
	head := b.Head(t)
	if lines(head)[0] != "GET /padded HTTP/1.1" || len(fields(head, "X-Long")[0]) != 30000 || fields(head, "X-Last")[0] != "1" {
		t.Errorf("%.100q", head)
	}
}
