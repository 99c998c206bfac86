package forward

import (
	"bytes"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/pyserve/pyserve/node/nodetest"
)

// startEarly has a backend that answers without waiting for a request's body.
func startEarly(t *testing.T) *framed {
	t.Helper()
	b, _ := scripted(t, func(w *wire) {
		nodetest.ReadHead(w.in)
		io.WriteString(w, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
	})
	return connectFrames(t, start(t, whole(b.Port())))
}

// TestHTTP2TrailersBehindAnEarlyAnswerEndNoOtherRequest: a client may have them on their way when the answer comes (RFC 9113
// section 5.1, closed).
func TestHTTP2TrailersBehindAnEarlyAnswerEndNoOtherRequest(t *testing.T) {
	c := startEarly(t)
	c.open(1, false, ordinary("POST", "/", "trailer", "x-t")...)
	c.sent(c.WriteData(1, false, bytes.Repeat([]byte("x"), 1000)))
	c.next(http2.FrameHeaders, 1) // the answer's
	if f := c.next(http2.FrameData, 1).(*http2.DataFrame); string(f.Data()) != "big" {
		t.Errorf("the answer's body is %q", f.Data())
	}
	c.open(1, true, "x-t", "late")
	c.open(3, true, ordinary("GET", "/", "x-t", "late")...)
	if o := c.await(3); o.status != "413" || o.body != "big" {
		t.Errorf("the other request: %v", o)
	}
}

// TestHTTP2AnUploadWithoutEndIsNotWaitedForLong, though it has announced trailers.
func TestHTTP2AnUploadWithoutEndIsNotWaitedForLong(t *testing.T) {
	c := startEarly(t)
	began := time.Now()
	c.open(1, false, ordinary("POST", "/", "trailer", "x-t")...)
	if o := c.await(1); o.status != "413" || o.body != "big" || !o.ended {
		t.Errorf("%v %q", o, o.body)
	}
	if took := time.Since(began); took < endTimeout || took > 10*endTimeout {
		t.Errorf("it took %s to end", took)
	}
}
