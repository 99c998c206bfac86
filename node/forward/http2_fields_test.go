package forward

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/nodetest"
)

// openLong begins and ends a request in as many frames as it needs.
func (c *framed) openLong(stream uint32, pairs ...string) {
	block := c.fields(pairs...)
	part := block[:min(len(block), maxFrame)]
	// An error: it was refused already.
	c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: part, EndStream: true, EndHeaders: len(part) == len(block)})
	for block = block[len(part):]; len(block) > 0; block = block[len(part):] {
		part = block[:min(len(block), maxFrame)]
		c.WriteContinuation(stream, len(part) == len(block), part)
	}
}

// A head that is too long is answered as all that the proxy answers itself, and is no matter of the other requests.
func TestHTTP2HeadsThatAreTooLong(t *testing.T) {
	accept := []string{"accept", "application/json"}
	for name, c := range map[string]struct {
		fields []string
		reason http1.Reason
	}{
		"one long field":                    {append(accept, "cookie", strings.Repeat("a", maxHeaderBytes)), http1.HeadTooLong},
		"one field that is far too long":    {append(accept, "cookie", strings.Repeat("a", maxHeaderBytes*3/2)), http1.HeadTooLong},
		"many fields":                       {append(accept, many(maxHeaderBytes/100, "x-a", strings.Repeat("a", 100))...), http1.HeadTooLong},
		"a long field before Accept":        {append([]string{"x-a", strings.Repeat("a", maxHeaderBytes)}, accept...), http1.HeadTooLong},
		"short fields, but too many":        {append(many(http1.MaxFields, "x-a", ""), accept...), http1.TooManyFields},
		"short fields that fill the memory": {append(many(maxHeaderBytes/2, "a", ""), accept...), http1.TooManyFields},
	} {
		t.Run(name, func(t *testing.T) {
			b := nodetest.NewRecorder(t, emptyAnswer)
			p := start(t, whole(b.Port()))
			conn := connectFrames(t, p)
			conn.openLong(1, ordinary("GET", "/long", c.fields...)...)
			o := conn.await(1)
			var body struct {
				Status    int
				Error     string
				RequestID string `json:"request_id"`
			}
			if err := json.Unmarshal([]byte(o.body), &body); err != nil || o.status != "431" || !o.ended {
				t.Fatalf("%v %q %v", o, o.body, err)
			}
			if body.Status != 431 || !strings.Contains(body.Error, c.reason.String()) || body.RequestID != o.header["x-request-id"][0] {
				t.Errorf("%+v", body)
			}
			nodetest.Eventually(t, "it is counted", func() bool { // the client may be quicker
				return rejected(t, p, c.reason) == 1 && metric(t, p, "pyserve_requests_total", "route", noRoute, "code_class", "4xx") == 1
			})
			conn.open(3, true, ordinary("GET", "/next")...)
			if o := conn.await(3); o.status != "200" {
				t.Errorf("the next request: %v", o)
			}
			if head := b.Head(t); !strings.HasPrefix(head, "GET /next ") {
				t.Errorf("the backend got %.100q", head)
			}
		})
	}
}

// RFC 9113 section 6.5.2: 32 bytes for each field beside its name and value.
func TestHTTP2AHeadIsTooLongByOneByte(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	pairs := ordinary("GET", "/", "x-a", "")
	size := 0
	for i := 0; i < len(pairs); i += 2 {
		size += len(pairs[i]) + len(pairs[i+1]) + 32
	}
	for i, status := range []string{"200", "431"} {
		pairs[len(pairs)-1] = strings.Repeat("a", maxHeaderBytes-size+i)
		stream := uint32(2*i + 1)
		c.openLong(stream, pairs...)
		if o := c.await(stream); o.status != status {
			t.Errorf("%d bytes: %v", maxHeaderBytes+i, o)
		}
	}
}

// What comes after fields that are too long is read only for the table, and not without an end.
func TestHTTP2FieldsBeyondWhatIsReadEndTheConnection(t *testing.T) {
	for name, pairs := range map[string][]string{
		"one field":   {"x-a", strings.Repeat("#", maxBlock+1)},                            // which no code makes shorter
		"many fields": many(maxBlock/headerTable, "x-a", strings.Repeat("#", headerTable)), // too long for the table
	} {
		t.Run(name, func(t *testing.T) {
			b := nodetest.NewRecorder(t, emptyAnswer)
			p := start(t, whole(b.Port()))
			c := connectFrames(t, p)
			go c.openLong(1, ordinary("GET", "/", pairs...)...)
			if o := c.await(1); o.status != "" || o.goAway == nil {
				t.Errorf("%v %q", o, o.body)
			}
			served(t, p)
			if n := b.Requests(); n != 1 { // that of served
				t.Errorf("%d requests reached the backend", n)
			}
		})
	}
}

// The table goes on from request to request, whatever becomes of them.
func TestHTTP2TheTableOutlivesWhatIsRefused(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	long := append(many(maxHeaderBytes/1000, "x-long", strings.Repeat("l", 1000)), "x-late", "in the table")
	c.openLong(1, ordinary("GET", "/", long...)...)
	if o := c.await(1); o.status != "431" {
		t.Fatal(o)
	}
	c.open(3, true, ordinary("GET", "/", "X-Bad", "1", "x-later", "in it, too")...)
	if o := c.await(3); o.reset == nil {
		t.Fatal(o)
	}
	c.open(5, true, ordinary("GET", "/", "x-late", "in the table", "x-later", "in it, too")...)
	if o := c.await(5); o.status != "200" {
		t.Fatal(o)
	}
	if head := b.Head(t); fields(head, "X-Late")[0] != "in the table" || fields(head, "X-Later")[0] != "in it, too" {
		t.Errorf("%q", head)
	}
}

// A frame of another kind among those of a request's fields is an error of the connection (RFC 9113 section 6.2), which the server
// finds, whatever intake has kept back.
func TestHTTP2AnotherFrameAmongFields(t *testing.T) {
	for name, other := range map[string]func(*http2.Framer){
		"data":                     func(f *http2.Framer) { f.WriteData(1, false, []byte("x")) },
		"settings":                 func(f *http2.Framer) { f.WriteSettings() },
		"another stream's fields":  func(f *http2.Framer) { f.WriteContinuation(3, true, nil) },
		"fields from the start":    func(f *http2.Framer) { f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true}) },
		"a frame that is too long": func(f *http2.Framer) { f.WriteContinuation(1, true, bytes.Repeat([]byte{0}, maxFrame+1)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := connectFrames(t, start(t, whole(mirror(t).Port())))
			c.sent(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(ordinary("GET", "/")...), EndStream: true}))
			other(c.Framer)
			want := http2.ErrCodeProtocol
			if name == "a frame that is too long" {
				want = http2.ErrCodeFrameSize
			}
			if o := c.await(1); o.goAway == nil || *o.goAway != want {
				t.Errorf("%v, want GOAWAY %v", o, want)
			}
		})
	}
}
