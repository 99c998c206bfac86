package http1

import (
	"strings"
	"testing"
)

var refusedResponses = []struct {
	rule, head string
	reason     Reason
}{
	{"9112-4 empty line before", "\r\nHTTP/1.1 200 OK\r\n\r\n", BadVersion},
	{"9112-4 lower case", "http/1.1 200 OK\r\n\r\n", BadVersion},
	{"9112-4 another protocol", "ICY 200 OK\r\n\r\n", BadVersion},
	{"9112-4 a page alone", "<html>\r\n", BadVersion},
	{"9112-4 two digits", "HTTP/1.10 200 OK\r\n\r\n", BadVersion},
	{"9112-4 version alone", "HTTP/1.1\r\n\r\n", BadVersion},
	{"9112-4 tab", "HTTP/1.1\t200 OK\r\n\r\n", BadVersion},
	{"9110-6.2 HTTP/2.0", "HTTP/2.0 200 OK\r\n\r\n", UnsupportedVersion},
	{"9110-6.2 HTTP/0.9", "HTTP/0.9 200 OK\r\n\r\n", UnsupportedVersion},
	{"9112-4 two spaces", "HTTP/1.1  200 OK\r\n\r\n", BadStatus},
	{"9112-4 two digits of status", "HTTP/1.1 20 OK\r\n\r\n", BadStatus},
	{"9112-4 four digits of status", "HTTP/1.1 2000 OK\r\n\r\n", BadStatusLine},
	{"9112-4 no status", "HTTP/1.1 OK\r\n\r\n", BadStatus},
	{"9112-4 signed status", "HTTP/1.1 +20 OK\r\n\r\n", BadStatus},
	{"9112-4 status with a point", "HTTP/1.1 200.1 OK\r\n\r\n", BadStatusLine},
	{"9112-4 tab after the status", "HTTP/1.1 200\tOK\r\n\r\n", BadStatusLine},
	{"9110-15 status 099", "HTTP/1.1 099 OK\r\n\r\n", BadStatus},
	{"9110-15 status 000", "HTTP/1.1 000 OK\r\n\r\n", BadStatus},
	{"9112-4 NUL in the phrase", "HTTP/1.1 200 O\x00K\r\n\r\n", BadStatusLine},
	{"9112-4 DEL in the phrase", "HTTP/1.1 200 \x7f\r\n\r\n", BadStatusLine},
	{"9112-4 bare CR in the phrase", "HTTP/1.1 200 O\rK\r\n\r\n", BareCR},
	{"9112-2.2 bare LF", "HTTP/1.1 200 OK\nA: b\n\n", BareLF},
	{"9112-2.2 bare LF without phrase", "HTTP/1.1 200\n\n", BareLF},
	{"9112-2.2 bare LF in the version", "HTTP/1.1\n\n", BadVersion},
	{"9112-2.2 bare CR", ok("A: b\rSet-Cookie: c"), BareCR},
	{"9112-5.1 space before the colon", ok("Content-Length : 5"), SpaceBeforeColon},
	{"9112-5.2 obs-fold", ok("A: b", " c"), ObsFold},
	{"9110-5.1 empty name", ok(":"), EmptyName},
	{"9110-5.1 name is no token", ok("A@: b"), BadName},
	{"9112-5 no colon", ok("A"), NoColon},
	{"9110-5.5 NUL", ok("A: \x00"), ControlInValue},
	{"head too long", ok("A: " + strings.Repeat("b", MaxHead)), HeadTooLong},
	{"too many fields", ok(strings.Repeat("A:\r\n", MaxFields+1)), TooManyFields},
	{"9112-6.3 TE with CL", ok("Content-Length: 5", "Transfer-Encoding: chunked"), CodingWithLength},
	{"9112-6.1 TE in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CodingInHTTP10},
	{"9112-6.1 gzip, chunked", ok("Transfer-Encoding: gzip, chunked"), UnknownCoding},
	{"9112-6.1 identity", ok("Transfer-Encoding: identity"), UnknownCoding},
	{"9112-6.1 two lines", ok("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), RepeatedCoding},
	{"9112-6.1 chunked, gzip", ok("Transfer-Encoding: chunked, gzip"), ChunkedNotLast},
	{"9112-6.1 chunked twice", ok("Transfer-Encoding: chunked,chunked"), ChunkedTwice},
	{"9110-8.6 CL as a list", ok("Content-Length: 5, 5"), BadContentLength},
	{"9110-8.6 CL negative", ok("Content-Length: -1"), BadContentLength},
	{"9110-8.6 two CL that differ", ok("Content-Length: 5", "Content-Length: 50"), DifferingContentLengths},
	{"9110-8.6 CL overflow", ok("Content-Length: 99999999999999999999"), ContentLengthOverflow},
	{"9110-7.6.1 option is no token", ok("Connection: close close"), BadConnection},
	{"9110-15.2 100 with a length", "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n", BodyOnInterim},
	{"9110-15.2 103 with chunks", "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n", BodyOnInterim},
	{"9110-15.2.2 101 with chunks", "HTTP/1.1 101 X\r\nUpgrade: a\r\nConnection: upgrade\r\nTransfer-Encoding: chunked\r\n\r\n", BodyOnInterim},
	{"9110-15.2.2 101 without Upgrade", "HTTP/1.1 101 X\r\nConnection: upgrade\r\n\r\n", UpgradeNotNamed},
}

func TestRefusedResponses(t *testing.T) {
	for _, c := range refusedResponses {
		t.Run(c.rule, func(t *testing.T) {
			var r Response
			feed := func(buf []byte) (int, error) { return r.Parse(buf, GET) }
			for at := range min(len(c.head), 1<<10) {
				r.Reset()
				n, err := splitAt(at)(feed, []byte(c.head))
				if got := reasonOf(t, err); got != c.reason || n != 0 {
					t.Fatalf("split at %d: %d, %q, want %q", at, n, got, c.reason)
				}
			}
		})
	}
}

var acceptedResponses = []struct {
	rule, head string
	method     Method
	framing    Framing
	length     int64
	keepAlive  bool
}{
	{"api", apiResponse, GET, Length, 512, true},
	{"9112-6.3 length", ok("Content-Length: 5"), GET, Length, 5, true},
	{"9112-6.3 length of nothing", ok("Content-Length: 0"), GET, None, 0, true},
	{"9112-6.3 two equal lengths", ok("Content-Length: 5", "Content-Length: 5"), GET, Length, 5, true},
	{"9112-6.3 chunked", ok("Transfer-Encoding: chunked"), GET, Chunked, -1, true},
	{"9112-6.3 until close", ok(), GET, UntilClose, -1, false},
	{"9112-6.3 until close, keep-alive", ok("Connection: keep-alive"), GET, UntilClose, -1, false},
	{"9112-6.3 HTTP/1.0 until close", "HTTP/1.0 200 OK\r\n\r\n", GET, UntilClose, -1, false},
	{"9112-9.3 HTTP/1.0 with length", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", GET, Length, 5, false},
	{"9112-9.3 HTTP/1.0 with length, keep-alive", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", GET, Length, 5, true},
	{"9112-9.6 close", ok("Content-Length: 5", "Connection: close"), GET, Length, 5, false},
	{"9112-6.3 HEAD with length", ok("Content-Length: 5"), HEAD, None, 5, true},
	{"9112-6.3 HEAD with chunks", ok("Transfer-Encoding: chunked"), HEAD, None, -1, true},
	{"9112-6.3 HEAD with nothing", ok(), HEAD, None, -1, true},
	{"9112-6.3 204", "HTTP/1.1 204 No Content\r\n\r\n", GET, None, -1, true},
	{"9110-8.6 204 with length 0", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", GET, None, 0, true},
	{"9110-8.6 204 with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", GET, None, 5, false},
	{"9112-6.1 204 with chunks", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", GET, None, -1, false},
	{"9110-15.4.5 304 with a length", "HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", GET, None, 500, true},
	{"9112-6.1 304 with chunks", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", GET, None, -1, true},
	{"9110-15.3.6 205 has a framing", "HTTP/1.1 205 Reset Content\r\nContent-Length: 5\r\n\r\n", GET, Length, 5, true},
	{"9110-15.2.1 100", "HTTP/1.1 100 Continue\r\n\r\n", POST, None, -1, true},
	{"8297-2 103", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", GET, None, -1, true},
	{"9110-15.2 100 with length 0", "HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n", POST, None, 0, true},
	{"9110-15.2.2 101", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", GET, None, -1, true},
	{"9112-6.3 CONNECT", ok("Content-Length: 5"), CONNECT, None, 5, true},
	{"9112-6.3 CONNECT refused", "HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n", CONNECT, Length, 5, true},
	{"9112-4 no phrase", "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", GET, None, 0, true},
	{"9112-4 no phrase and no space", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", GET, None, 0, true},
	{"9112-4 long phrase", "HTTP/1.1 200 " + strings.Repeat("very\tfine ", 100) + "\xff\r\nContent-Length: 0\r\n\r\n", GET, None, 0, true},
	{"9110-15 status 999", "HTTP/1.1 999 No\r\nContent-Length: 5\r\n\r\n", GET, Length, 5, true},
	{"9110-2.5 HTTP/1.2", "HTTP/1.2 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", GET, Chunked, -1, true},
	{"two Hosts mean nothing", ok("Host: a", "Host: b", "Content-Length: 0", "Expect: what"), GET, None, 0, true},
}

func TestAcceptedResponses(t *testing.T) {
	for _, c := range acceptedResponses {
		t.Run(c.rule, func(t *testing.T) {
			r := response(t, c.head, c.method)
			if r.Framing != c.framing || r.ContentLength != c.length || r.KeepAlive != c.keepAlive {
				t.Errorf("framing %d, length %d, keep-alive %t", r.Framing, r.ContentLength, r.KeepAlive)
			}
			want := describeResponse(r)
			feed := func(buf []byte) (int, error) { return r.Parse(buf, c.method) }
			for at := range len(c.head) {
				r.Reset()
				if n, err := r.Parse([]byte(c.head[:at]), c.method); n != 0 || err != nil {
					t.Fatalf("prefix of %d bytes: %d, %v", at, n, err)
				}
				if n, err := r.Parse([]byte(c.head+"HTTP/1.1 200 OK\r\n"), c.method); n != len(c.head) || err != nil || describeResponse(r) != want {
					t.Fatalf("split at %d: %d, %v, %s", at, n, err, describeResponse(r))
				}
			}
			r.Reset()
			if n, err := dripped(feed, []byte(c.head)); n != len(c.head) || err != nil || describeResponse(r) != want {
				t.Errorf("dripped: %d, %v, %s", n, err, describeResponse(r))
			}
		})
	}
}

func TestStatusLine(t *testing.T) {
	for line, want := range map[string]struct {
		status  int
		phrase  string
		interim bool
	}{
		"HTTP/1.1 200 OK":            {200, "OK", false},
		"HTTP/1.1 404 Not  Found ":   {404, "Not  Found ", false},
		"HTTP/1.0 500":               {500, "", false},
		"HTTP/1.1 100 ":              {100, "", true},
		"HTTP/1.1 103 a\tb \xc3\xa9": {103, "a\tb \xc3\xa9", true},
		"HTTP/1.1 200 \t":            {200, "\t", false},
	} {
		r := response(t, line+"\r\n\r\n", GET)
		if r.Status != want.status || string(r.ReasonPhrase()) != want.phrase || r.Interim() != want.interim {
			t.Errorf("%q: %d, %q, %t", line, r.Status, r.ReasonPhrase(), r.Interim())
		}
	}
	if response(t, "HTTP/1.1 101 a\r\nUpgrade: b\r\n\r\n", GET).Interim() {
		t.Error("101 is interim")
	}
}
