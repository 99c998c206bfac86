package http1

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// reasonOf is the Reason that err is; none for nil.
func reasonOf(t testing.TB, err error) Reason {
	t.Helper()
	var r Reason
	if err != nil && !errors.As(err, &r) {
		t.Fatalf("%v is a %T, want a Reason", err, err)
	}
	return r
}

// request parses a head that must be valid and the whole of the text.
func request(t testing.TB, text string) *Request {
	t.Helper()
	r := new(Request)
	r.Reset()
	n, err := r.Parse([]byte(text))
	if err != nil || n != len(text) {
		t.Fatalf("%q: parsed %d of %d bytes: %v", text, n, len(text), err)
	}
	return r
}

func response(t testing.TB, text string, method Method) *Response {
	t.Helper()
	r := new(Response)
	r.Reset()
	n, err := r.Parse([]byte(text), method)
	if err != nil || n != len(text) {
		t.Fatalf("%q: parsed %d of %d bytes: %v", text, n, len(text), err)
	}
	return r
}

// get is a request with some lines more, given without their line ends.
func get(lines ...string) string {
	return "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Join(append(lines, "", ""), "\r\n")
}

func ok(lines ...string) string {
	return "HTTP/1.1 200 OK\r\n" + strings.Join(append(lines, "", ""), "\r\n")
}

// A parse is one way to feed a parser: it gives what Parse gave last, after all of text or the first decision.
type parse func(feed func(buf []byte) (int, error), text []byte) (int, error)

func whole(feed func([]byte) (int, error), text []byte) (int, error) { return feed(text) }

// dripped feeds one byte more at each call, in a new place each time, with the old one overwritten: that the bytes may move is
// promised.
func dripped(feed func([]byte) (int, error), text []byte) (n int, err error) {
	var old []byte
	for i := range text {
		buf := bytes.Clone(text[:i+1])
		if n, err = feed(buf); n != 0 || err != nil {
			return n, err
		}
		for k := range old {
			old[k] = '\n'
		}
		old = buf
	}
	return n, err
}

// splitAt feeds the first part alone and then all.
func splitAt(at int) parse {
	return func(feed func([]byte) (int, error), text []byte) (int, error) {
		if n, err := feed(bytes.Clone(text[:at])); n != 0 || err != nil {
			return n, err
		}
		return feed(bytes.Clone(text))
	}
}

// describe is all that a head says, to be compared.
func describe(h *Head) string {
	var b strings.Builder
	fmt.Fprintf(&b, "1.%d framing=%d length=%d keepalive=%t upgrade=%t ws=%t trailers=%t expect=%t\n", h.Minor, h.Framing, h.ContentLength,
		h.KeepAlive, h.Upgrade, h.WebSocket, h.TakesTrailers, h.ExpectContinue)
	describeFields(&b, &h.Fields)
	return b.String()
}

func describeFields(b *strings.Builder, f *Fields) {
	for i, l := range f.List() {
		fmt.Fprintf(b, "%d %t %q: %q\n", l.ID, l.Hop, f.Name(i), f.Value(i))
	}
}

func describeRequest(r *Request) string {
	query, present := r.Query()
	return fmt.Sprintf("%d %q %q form=%d https=%t %q %q ?%t%q ", r.Method, r.MethodName(), r.RawTarget(), r.Form, r.HTTPS, r.Authority(),
		r.Path(), present, query) + describe(&r.Head)
}

func describeResponse(r *Response) string {
	return fmt.Sprintf("%d %q ", r.Status, r.ReasonPhrase()) + describe(&r.Head)
}
