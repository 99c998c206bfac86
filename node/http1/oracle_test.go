package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// The oracle is net/http: what we accept, it must read the same: method, target, host, status, fields, framing, body, trailers,
// and where the next message begins. differences are all the exceptions.

// A difference is a message that net/http and this package read differently, on purpose.
type difference struct {
	name, why string
	message   string
	response  bool
	// What we say: none if we accept it.
	reason Reason
	// theyAccept is that net/http does; the difference is then in what it reads.
	theyAccept bool
}

var differences = []difference{
	// Accepted by us, and read otherwise by net/http. The oracle makes up for each of these, see comparable and its users.
	{"empty lines before", "RFC 9112 section 2.2 asks servers to skip at least one", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", false, none, false},
	{"bad percent-encoding in the path", "the path is judged where it is normalised", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", false, none, false},
	{"HTTP/1.2", "RFC 9110 section 2.5: it is read as HTTP/1.1; net/http reports 1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", false, none, true},
	{"Pragma", "net/http adds Cache-Control", get("Pragma: no-cache"), false, none, true},
	{"Trailer that names framing", "it only announces; as a trailer the field is refused", get("Transfer-Encoding: chunked", "Trailer: Content-Length"), false, none, false},
	{"Trailer", "net/http moves it from the header to Request.Trailer", get("Transfer-Encoding: chunked", "Trailer: A") + "0\r\n\r\n", false, none, true},
	{"204 with a length", "read alike, but the connection is not used again", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", true, none, true},

	// Refused by us, accepted by net/http.
	{"bare LF", "RFC 9112 section 2.2 says MAY accept; who does not sees another message", "GET / HTTP/1.1\nHost: a\n\n", false, BareLF, true},
	{"obs-fold", "RFC 9112 section 5.2: MUST reject or replace", get("A: b", " c"), false, ObsFold, true},
	{"te with cl", "RFC 9112 section 6.1: ought to be handled as an error", get("Transfer-Encoding: chunked", "Content-Length: 5") + "0\r\n\r\n", false, CodingWithLength, true},
	{"te in HTTP/1.0", "RFC 9112 section 6.1: MUST treat as faulty", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", false, CodingInHTTP10, true},
	{"fragment", "not part of a target (RFC 9112 section 3.2)", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", false, FragmentInTarget, true},
	{"asterisk of GET", "RFC 9112 section 3.2.4: OPTIONS only", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", false, BadTarget, true},
	{"scheme that is not http", "we have no such resource", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", false, BadTarget, true},
	{"userinfo", "RFC 9110 section 4.2.4: ought to be treated as an error", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", false, BadAuthority, true},
	{"path of CONNECT", "RFC 9112 section 3.2.3; net/rpc uses it", "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", false, BadAuthority, true},
	{"no Host", "RFC 9112 section 3.2: MUST be 400; net/http's server does it later", "GET / HTTP/1.1\r\n\r\n", false, MissingHost, true},
	{"bad Host", "RFC 9112 section 3.2: MUST be 400; net/http's server allows more", "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", false, BadHost, true},
	{"percent-encoding in Host", "some decode it", "GET / HTTP/1.1\r\nHost: %61\r\n\r\n", false, BadHost, true},
	{"HTTP/2.0", "another protocol", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", false, UnsupportedVersion, true},
	{"HTTP/2 preface", "its own reason, for who serves both", "PRI * HTTP/2.0\r\n\r\n", false, HTTP2Preface, true},
	{"option that is no token", "RFC 9110 section 7.6.1: some see an option in it, others do not", get("Connection: close;x"), false, BadConnection, true},
	{"protocol that is no token", "RFC 9110 section 7.8", get("Upgrade: a b"), false, BadUpgrade, true},
	{"expectation", "417; net/http's server does it later", get("Expect: x"), false, UnknownExpectation, true},
	{"long target", "414", "GET /" + strings.Repeat("a", MaxTarget) + " HTTP/1.1\r\nHost: a\r\n\r\n", false, TargetTooLong, true},
	{"long method", "501", strings.Repeat("A", MaxMethod+1) + " / HTTP/1.1\r\nHost: a\r\n\r\n", false, MethodTooLong, true},
	{"long head", "431; net/http's server has a limit of its own", get("A: " + strings.Repeat("b", MaxHead)), false, HeadTooLong, true},
	{"too many fields", "431", get(strings.Repeat("A:\r\n", MaxFields)), false, TooManyFields, true},
	{"bare LF in a response", "as in requests", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", true, BareLF, true},
	{"two spaces before the status", "RFC 9112 section 4", "HTTP/1.1  200 OK\r\n\r\n", true, BadStatus, true},
	{"control character in the phrase", "RFC 9112 section 4", "HTTP/1.1 200 O\x01K\r\n\r\n", true, BadStatusLine, true},
	{"status 099", "RFC 9110 section 15", "HTTP/1.1 099 OK\r\n\r\n", true, BadStatus, true},
	{"signed status", "not three digits", "HTTP/1.1 +20 OK\r\n\r\n", true, BadStatus, true},
	{"HTTP/2.0 of a response", "another protocol", "HTTP/2.0 200 OK\r\n\r\n", true, UnsupportedVersion, true},
	{"100 with a length", "RFC 9110 section 15.2: it says that a body follows, and none does", "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n", true, BodyOnInterim, true},
	{"101 without Upgrade", "RFC 9110 section 15.2.2", "HTTP/1.1 101 X\r\n\r\n", true, UpgradeNotNamed, true},
	{"whitespace after a chunk size", "some read another size", chunkedPost + "1 \r\nx\r\n0\r\n\r\n", false, BadChunkSize, true},
	{"extension that is none", "RFC 9112 section 7.1.1", chunkedPost + "1;;=\r\nx\r\n0\r\n\r\n", false, BadChunkExtension, true},
	{"long chunk line", "net/http allows 4096 bytes", chunkedPost + "1;a=" + strings.Repeat("b", MaxChunkLine) + "\r\nx\r\n0\r\n\r\n", false, ChunkLineTooLong, true},
	{"framing as a trailer", "RFC 9110 section 6.5.1; net/http refuses only its announcement", chunkedPost + "0\r\nContent-Length: 5\r\n\r\n", false, ForbiddenTrailer, true},
	{"bare LF in trailers", "as in heads", chunkedPost + "0\r\nA: b\nC: d\r\n\r\n", false, BareLF, true},
	{"too many trailers", "as many as nobody needs", chunkedPost + "0\r\n" + strings.Repeat("A:\r\n", MaxTrailers+1) + "\r\n", false, TooManyTrailers, true},
}

const chunkedPost = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

// A difference that has gone is to be taken from the list.
func TestDifferencesAreAsWritten(t *testing.T) {
	for _, d := range differences {
		t.Run(d.name, func(t *testing.T) {
			var ours reading
			var err error
			if d.response {
				ours = readResponse(t, []byte(d.message), GET)
				_, _, err = theirResponse([]byte(d.message), GET)
			} else {
				ours = readRequest(t, []byte(d.message))
				_, _, err = theirRequest([]byte(d.message))
			}
			if ours.reason != d.reason {
				t.Errorf("we say %q, want %q", ours.reason, d.reason)
			}
			if (err == nil) != d.theyAccept {
				t.Errorf("net/http says %v", err)
			}
		})
	}
}

// A reading is a whole message as one side sees it.
type reading struct {
	reason    Reason // of ours
	undecided bool   // the head is not complete
	first     string // the first line
	fields    map[string][]string
	body      string
	trailers  map[string][]string
	truncated bool
	close     bool
	rest      int // bytes left behind the message
}

func readRequest(t testing.TB, data []byte) (out reading) {
	var r Request
	r.Reset()
	n, err := r.Parse(data)
	if out.reason = reasonOf(t, err); n == 0 {
		out.undecided = err == nil
		return out
	}
	out.first = fmt.Sprintf("%s %s 1.%d %s", r.MethodName(), r.RawTarget(), r.Minor, r.Authority())
	readRest(t, &out, &r.Head, data[n:])
	delete(out.fields, "Host")
	return out
}

func readResponse(t testing.TB, data []byte, method Method) (out reading) {
	var r Response
	r.Reset()
	n, err := r.Parse(data, method)
	if out.reason = reasonOf(t, err); n == 0 {
		out.undecided = err == nil
		return out
	}
	out.first = fmt.Sprintf("%d %s 1.%d", r.Status, r.ReasonPhrase(), r.Minor)
	readRest(t, &out, &r.Head, data[n:])
	delete(out.fields, "Connection") // net/http takes it away where it says close
	if out.close = out.close || r.Status == 204 && r.ContentLength > 0; r.Status == 204 {
		out.close = false // a difference
	}
	return out
}

func readRest(t testing.TB, out *reading, h *Head, data []byte) {
	out.fields, out.close = fieldMap(&h.Fields), !h.KeepAlive
	comparable(out.fields, h.Has(TransferEncoding))
	var b Body
	b.Reset(h)
	d := decodeWith(t, &b, b.Next, data)
	if out.reason = d.reason; out.reason != none {
		return
	}
	out.truncated = b.EOF() != nil
	out.body, out.rest = d.data, len(data)-d.n
	if d.done {
		out.trailers = fieldMap(b.Trailer())
	}
}

func fieldMap(f *Fields) map[string][]string {
	m := map[string][]string{}
	for i := range f.List() {
		name := textproto.CanonicalMIMEHeaderKey(string(f.Name(i)))
		m[name] = append(m[name], string(f.Value(i)))
	}
	return m
}

// comparable takes from a header what the two sides keep elsewhere or not at all.
func comparable(h map[string][]string, chunked bool) {
	for _, name := range []string{"Content-Length", "Transfer-Encoding"} {
		delete(h, name)
	}
	if chunked {
		delete(h, "Trailer")
	}
	if pragma := h["Pragma"]; len(pragma) > 0 && pragma[0] == "no-cache" {
		delete(h, "Cache-Control")
	}
}

func theirRequest(data []byte) (*http.Request, *source, error) {
	s := newSource(data)
	r, err := http.ReadRequest(s.Reader)
	if err != nil {
		return nil, s, err
	}
	_, err = s.readBody(r.Body)
	return r, s, err
}

func theirResponse(data []byte, method Method) (*http.Response, *source, error) {
	name := "GET"
	if method == HEAD {
		name = "HEAD"
	}
	s := newSource(data)
	r, err := http.ReadResponse(s.Reader, &http.Request{Method: name})
	if err != nil {
		return nil, s, err
	}
	_, err = s.readBody(r.Body)
	return r, s, err
}

// source counts what is left behind a message.
type source struct {
	*bufio.Reader
	data *bytes.Reader
	body []byte
}

func newSource(data []byte) *source {
	r := bytes.NewReader(data)
	return &source{Reader: bufio.NewReaderSize(r, 128<<10), data: r}
}

func (s *source) left() int { return s.Buffered() + s.data.Len() }

// readBody gives io.ErrUnexpectedEOF where the body is only not complete.
func (s *source) readBody(body io.Reader) (n int, err error) {
	s.body, err = io.ReadAll(body)
	return len(s.body), err
}

// compareRequest holds our reading of a message against net/http's.
func compareRequest(t testing.TB, data []byte) {
	ours := readRequest(t, data)
	if ours.undecided || ours.reason != none {
		return
	}
	data = bytes.TrimLeft(data, "\r\n") // a difference
	theirs, s, err := theirRequest(data)
	if err != nil && !ours.truncated {
		if excusedRequest(ours, err) {
			return
		}
		t.Fatalf("%q\nwe accept it, net/http says %v", data, err)
	}
	if ours.truncated {
		if err == nil {
			t.Fatalf("%q\nwe find it truncated, net/http complete", data)
		}
		return
	}
	want := reading{
		first:  fmt.Sprintf("%s %s 1.%d %s", theirs.Method, theirs.RequestURI, min(theirs.ProtoMinor, 1), theirs.Host),
		fields: theirs.Header, body: string(s.body), trailers: theirs.Trailer, close: theirs.Close, rest: s.left(),
	}
	compare(t, data, ours, want, theirs.TransferEncoding != nil)
}

// excusedRequest says whether net/http refuses a request for one of the differences.
func excusedRequest(ours reading, err error) bool {
	var escape url.EscapeError
	switch {
	case strings.Contains(err.Error(), "bad trailer key"):
		return true
	case asURLError(err, &escape):
		return true
	}
	return false
}

func asURLError(err error, escape *url.EscapeError) bool {
	u, ok := err.(*url.Error)
	if !ok {
		return false
	}
	*escape, ok = u.Err.(url.EscapeError)
	return ok
}

func compareResponse(t testing.TB, data []byte, method Method) {
	ours := readResponse(t, data, method)
	if ours.undecided || ours.reason != none {
		return
	}
	theirs, s, err := theirResponse(data, method)
	if ours.truncated {
		if err == nil {
			t.Fatalf("%q\nwe find it truncated, net/http complete", data)
		}
		return
	}
	if err != nil {
		if strings.Contains(err.Error(), "bad trailer key") {
			return
		}
		t.Fatalf("%q\nwe accept it, net/http says %v", data, err)
	}
	status, phrase, _ := strings.Cut(theirs.Status, " ")
	want := reading{
		first:  fmt.Sprintf("%s %s 1.%d", status, phrase, min(theirs.ProtoMinor, 1)),
		fields: theirs.Header, body: string(s.body), trailers: theirs.Trailer, close: theirs.Close && theirs.StatusCode != 204, rest: s.left(),
	}
	delete(want.fields, "Connection")
	compare(t, data, ours, want, theirs.TransferEncoding != nil)
}

func compare(t testing.TB, data []byte, ours, theirs reading, chunked bool) {
	comparable(theirs.fields, chunked)
	maps.DeleteFunc(theirs.trailers, func(_ string, values []string) bool { return values == nil }) // announced, not sent
	switch {
	case ours.first != theirs.first:
		t.Fatalf("%q\nfirst line: we read %q, net/http %q", data, ours.first, theirs.first)
	case !maps.EqualFunc(ours.fields, theirs.fields, slices.Equal):
		t.Fatalf("%q\nfields: we read %q, net/http %q", data, ours.fields, theirs.fields)
	case ours.body != theirs.body:
		t.Fatalf("%q\nbody: we read %q, net/http %q", data, ours.body, theirs.body)
	case !maps.EqualFunc(ours.trailers, theirs.trailers, slices.Equal):
		t.Fatalf("%q\ntrailers: we read %q, net/http %q", data, ours.trailers, theirs.trailers)
	case ours.close != theirs.close:
		t.Fatalf("%q\nclose: we say %t, net/http %t", data, ours.close, theirs.close)
	case ours.rest != theirs.rest:
		t.Fatalf("%q\nbehind it: we leave %d bytes, net/http %d", data, ours.rest, theirs.rest)
	}
}

// pieces is what generated messages are made of: each list has the good before the bad.
var pieces = struct{ methods, targets, versions, statuses, names, values, separators, ends, chunks []string }{
	methods:    []string{"GET", "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "X-Y", "get", "G T", ""},
	targets:    []string{"/", "/a/b?c=d", "/a%20b", "//a/../b", "/?", "*", "http://a/", "http://A:80", "a:80", "/%zz", "/é", "/a#b", "HTTP://a/?b", "", "https://u@a/"},
	versions:   []string{"HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.10", ""},
	statuses:   []string{"200 OK", "200 ", "200", "204 No Content", "304 Not Modified", "100 Continue", "101 Switching Protocols", "404 Not  Found", "999 x", "099 x", " 200 OK", "20 OK"},
	names:      []string{"Content-Length", "Transfer-Encoding", "Connection", "Host", "X-A", "x-a", "Trailer", "TE", "Expect", "Upgrade", "Pragma", "Cookie", "Content_Length", "A B", "", "X\x00"},
	values:     []string{"5", "0", "chunked", "Chunked", "close", "keep-alive", "a", "a:80", "x, y", "100-continue", "websocket", "no-cache", "", "é", "a\tb", "5, 5", "+5", "0x5", "05", "identity", "chunked, chunked", "gzip, chunked", "chun\x00ked", "\"a\""},
	separators: []string{": ", ": ", ": ", ":", ":\t ", " : ", "", ":\v"},
	ends:       []string{"\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", " \t\r\n", "\n", "\r", "\r\n ", "\r\r\n"},
	chunks:     []string{"5\r\nhello\r\n", "0\r\n", "0\r\n", "\r\n", "\r\n", "1;a=b\r\nx\r\n", "00005\r\nhello\r\n", "A: b\r\n", "A\r\n", "5 \r\nhello\r\n", "5\nhello\r\n", "5\r\nhello", "0x5\r\nhello\r\n", "g\r\n", "hello", "Content-Length: 5\r\n"},
}

// mostly picks from a list, the beginning more often.
func mostly(r *rand.Rand, from []string) string {
	return from[min(r.IntN(len(from)), r.IntN(len(from)), r.IntN(len(from)+2))]
}

// generate makes a message that is often valid.
func generate(r *rand.Rand, first string) []byte {
	var b bytes.Buffer
	if r.IntN(20) == 0 {
		b.WriteString(mostly(r, pieces.ends))
	}
	b.WriteString(first + mostly(r, pieces.ends))
	if r.IntN(10) > 0 {
		b.WriteString("Host: a\r\n")
	}
	for range r.IntN(4) {
		b.WriteString(pieces.names[r.IntN(len(pieces.names))] + mostly(r, pieces.separators) + pieces.values[r.IntN(len(pieces.values))] + mostly(r, pieces.ends))
	}
	if r.IntN(3) == 0 {
		b.WriteString("Transfer-Encoding: chunked\r\n")
	}
	b.WriteString(mostly(r, pieces.ends[:len(pieces.ends)-4]))
	for range r.IntN(6) {
		b.WriteString(mostly(r, pieces.chunks))
	}
	if r.IntN(2) == 0 {
		b.WriteString("0\r\n\r\n")
	}
	return b.Bytes()
}

// TestOracle reads many generated messages with both. The seeds are fixed.
func TestOracle(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 10_000
	}
	var accepted int
	for i := range n {
		r := rand.New(rand.NewPCG(1, uint64(i)))
		if i%2 == 0 {
			data := generate(r, mostly(r, pieces.methods)+" "+mostly(r, pieces.targets)+" "+mostly(r, pieces.versions))
			compareRequest(t, data)
			if ours := readRequest(t, data); ours.reason == none && !ours.undecided && !ours.truncated {
				accepted++
			}
			continue
		}
		method := []Method{GET, GET, HEAD}[r.IntN(3)]
		data := generate(r, mostly(r, pieces.versions)+" "+mostly(r, pieces.statuses))
		compareResponse(t, data, method)
		if ours := readResponse(t, data, method); ours.reason == none && !ours.undecided && !ours.truncated {
			accepted++
		}
	}
	if accepted < n/10 {
		t.Errorf("of %d messages only %d were valid: too few to say much", n, accepted)
	}
}
