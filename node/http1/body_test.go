package http1

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"
)

// A decoded body: its data, how many bytes it took, its trailers described.
type decoded struct {
	data     string
	n        int
	done     bool
	trailers string
	reason   Reason
}

// decode feeds text in pieces that end at the given offsets; what is not consumed comes again with the next piece, in a
// place of its own.
func decode(t testing.TB, h *Head, text []byte, ends ...int) decoded {
	t.Helper()
	var b Body
	b.Reset(h)
	return decodeWith(t, &b, b.Next, text, ends...)
}

func decodeWith(t testing.TB, b *Body, next func([]byte) ([]byte, int, error), text []byte, ends ...int) (d decoded) {
	t.Helper()
	var data bytes.Buffer
	for _, end := range append(ends, len(text)) {
		buf := bytes.Clone(text[d.n:max(end, d.n)])
		for !b.Done() {
			span, n, err := next(buf)
			if d.reason = reasonOf(t, err); err != nil {
				d.data = data.String()
				return d
			}
			data.Write(span)
			if n == 0 {
				break
			}
			d.n += n
			buf = buf[n:]
		}
		if b.Done() {
			break
		}
		for i := range buf {
			buf[i] = 'x' // what was not consumed is not relied on
		}
	}
	var trailers strings.Builder
	if d.done = b.Done(); d.done {
		describeFields(&trailers, b.Trailer())
	}
	d.data, d.trailers = data.String(), trailers.String()
	return d
}

var chunked = &Head{Framing: Chunked}

var acceptedChunks = []struct{ rule, body, data string }{
	{"9112-7.1 nothing", "0\r\n\r\n", ""},
	{"9112-7.1 one chunk", "5\r\nhello\r\n0\r\n\r\n", "hello"},
	{"9112-7.1 two chunks", "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", "hello world"},
	{"9112-7.1 hexadecimal in both cases", "a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"},
	{"9112-7.1 leading zeros", "0005\r\nhello\r\n000\r\n\r\n", "hello"},
	{"9112-7.1 sixteen digits", "0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", "hello"},
	{"9112-7.1 data that looks like framing", "7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", "\r\n0\r\n\r\n"},
	{"9112-7.1.1 extensions", "5;a;b=c;d=\"e\"\r\nhello\r\n0;f\r\n\r\n", "hello"},
	{"9112-7.1.1 quoted extension", "1;a=\"\";b=\";\\\"\t ,\xff\\\\\"\r\nx\r\n0\r\n\r\n", "x"},
	{"9112-7.1.1 longest line", "1;a=" + strings.Repeat("b", MaxChunkLine-6) + "\r\nx\r\n0\r\n\r\n", "x"},
	{"9112-7.1.2 trailer", "1\r\nx\r\n0\r\nA: b\r\n\r\n", "x"},
	{"9112-7.1.2 trailers", "0\r\nA: b\r\nC:d\r\nGrpc-Status: 0\r\n\r\n", ""},
	{"9112-7.1.2 trailers that are dropped", "0;x\r\nSet-Cookie: b\r\nAuthorization: c\r\n\r\n", ""},
	{"9112-7.1.2 longest trailers", "0\r\nA: " + strings.Repeat("b", MaxTrailer-7) + "\r\n\r\n", ""},
	{"9112-7.1.2 most trailers", "0\r\n" + strings.Repeat("A:\r\n", MaxTrailers) + "\r\n", ""},
	{"many small chunks", strings.Repeat("1\r\nx\r\n", 5000) + "0\r\n\r\n", strings.Repeat("x", 5000)},
}

func TestChunkedBodies(t *testing.T) {
	for _, c := range acceptedChunks {
		t.Run(c.rule, func(t *testing.T) {
			for _, next := range []string{"", "GET / HTTP/1.1\r\n", "0\r\n\r\n", "\r\n"} {
				d := decode(t, chunked, []byte(c.body+next))
				if d.reason != none || !d.done || d.data != c.data || d.n != len(c.body) {
					t.Fatalf("%q behind it: %q, %d of %d bytes, done %t, %q", next, d.data, d.n, len(c.body), d.done, d.reason)
				}
			}
			want := decode(t, chunked, []byte(c.body))
			for at := 0; at < len(c.body); at += 1 + len(c.body)/300 {
				if d := decode(t, chunked, []byte(c.body[:at])); d.reason != none || d.done {
					t.Fatalf("prefix of %d bytes: done %t, %q", at, d.done, d.reason)
				}
				if d := decode(t, chunked, []byte(c.body), at); d != want {
					t.Fatalf("split at %d: %+v, want %+v", at, d, want)
				}
			}
			if d := decode(t, chunked, []byte(c.body), everyByte(len(c.body))...); d != want {
				t.Errorf("dripped: %+v, want %+v", d, want)
			}
		})
	}
}

func everyByte(n int) []int {
	ends := make([]int, n)
	for i := range ends {
		ends[i] = i
	}
	return ends
}

var refusedChunks = []struct {
	rule, body string
	reason     Reason
}{
	{"9112-7.1 no size", "\r\n\r\n", BadChunkSize},
	{"9112-7.1 not hexadecimal", "g\r\n", BadChunkSize},
	{"9112-7.1 0x", "0x5\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 h after", "5h\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 negative", "-5\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 plus", "+5\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 underscore", "1_0\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 comma", "5,5\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 space before", " 5\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 space after", "5 \r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 tab after", "5\t\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 NUL after", "5\x00\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 form feed after", "5\f\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 empty line before", "\r\n5\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1 2^63", "8000000000000000\r\n", ChunkSizeOverflow},
	{"9112-7.1 2^64-1", "ffffffffffffffff\r\n", ChunkSizeOverflow},
	{"9112-7.1 2^64+5", "10000000000000005\r\nhello\r\n0\r\n\r\n", ChunkSizeOverflow},
	{"9112-7.1 seventeen digits", "00000000000000005\r\nhello\r\n0\r\n\r\n", ChunkSizeOverflow},
	{"9112-7.1 bare LF after the size", "5\nhello\r\n0\r\n\r\n", BareLF},
	{"9112-7.1 bare CR after the size", "5\rhello\r\n0\r\n\r\n", BareCR},
	{"9112-7.1 data too long", "5\r\nhello!\r\n0\r\n\r\n", ChunkOverrun},
	{"9112-7.1 data too short", "5\r\nhell\r\n0\r\n\r\n", BareLF},
	{"9112-7.1 bare LF after the data", "5\r\nhello\n0\r\n\r\n", BareLF},
	{"9112-7.1 bare CR after the data", "5\r\nhello\r0\r\n\r\n", BareCR},
	{"9112-7.1 two bytes of any kind after the data", "5\r\nhelloab0\r\n\r\n", ChunkOverrun},
	{"9112-7.1 no last chunk", "5\r\nhello\r\n\r\n", BadChunkSize},
	{"9112-7.1.1 bare LF in an extension", "5;a\nhello\r\n0\r\n\r\n", BareLF},
	{"CVE-2025-22871 bare LF ends an extension", "5;\n0\r\n\r\n", BareLF},
	{"9112-7.1.1 bare LF in a value", "5;a=b\nhello\r\n0\r\n\r\n", BareLF},
	{"9112-7.1.1 bare LF in quotes", "5;a=\"b\nc\"\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 CRLF in quotes", "5;a=\"b\r\nc\"\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 quoted LF", "5;a=\"\\\n\"\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 bare CR", "5;a\rb\r\nhello\r\n0\r\n\r\n", BareCR},
	{"9112-7.1.1 no name", "5;\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 two semicolons", "5;;a\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 value without name", "5;=a\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 no value", "5;a=\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 two values", "5;a=b=c\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 space before", "5 ;a\r\nhello\r\n0\r\n\r\n", BadChunkSize},
	{"9112-7.1.1 space after", "5; a\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 space behind the name", "5;a \r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 quotes not closed", "5;a=\"b\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 text after quotes", "5;a=\"b\"c\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 NUL", "5;a=\x00\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 NUL in quotes", "5;a=\"\x00\"\r\nhello\r\n0\r\n\r\n", BadChunkExtension},
	{"9112-7.1.1 line too long", "5;a=" + strings.Repeat("b", MaxChunkLine), ChunkLineTooLong},
	{"9112-7.1.1 line too long by one", "1;a=" + strings.Repeat("b", MaxChunkLine-5) + "\r\nx\r\n0\r\n\r\n", ChunkLineTooLong},
	{"CVE-2023-39326 far more extensions than data", strings.Repeat("1;a="+strings.Repeat("b", 900)+"\r\nx\r\n", 100), ChunkOverhead},
	{"9112-7.1.2 bare LF for the last line", "0\r\n\n", BareLF},
	{"9112-7.1.2 bare CR for the last line", "0\r\n\rx\r\n", BareCR},
	{"9112-7.1.2 bare LF in trailers", "0\r\nA: b\n\r\n", BareLF},
	{"9112-7.1.2 space before the colon", "0\r\nA : b\r\n\r\n", SpaceBeforeColon},
	{"9112-7.1.2 obs-fold", "0\r\nA: b\r\n c\r\n\r\n", ObsFold},
	{"9112-7.1.2 obs-fold of the first", "0\r\n A: b\r\n\r\n", ObsFold},
	{"9112-7.1.2 no colon", "0\r\nA\r\n\r\n", NoColon},
	{"9112-7.1.2 the next request for a trailer", "0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", SpaceBeforeColon},
	{"9112-7.1.2 NUL", "0\r\nA: \x00\r\n\r\n", ControlInValue},
	{"9110-6.5.1 Content-Length", "0\r\nContent-Length: 5\r\n\r\n", ForbiddenTrailer},
	{"9110-6.5.1 Transfer-Encoding", "0\r\nA: b\r\ntransfer-encoding: chunked\r\n\r\n", ForbiddenTrailer},
	{"9110-6.5.1 Host", "0\r\nHOST: b\r\n\r\n", ForbiddenTrailer},
	{"9112-7.1.2 trailers too long", "0\r\nA: " + strings.Repeat("b", MaxTrailer), TrailerTooLong},
	{"9112-7.1.2 trailers too long by one", "0\r\nA: " + strings.Repeat("b", MaxTrailer-6) + "\r\n\r\n", TrailerTooLong},
	{"9112-7.1.2 too many trailers", "0\r\n" + strings.Repeat("A:\r\n", MaxTrailers+1) + "\r\n", TooManyTrailers},
}

func TestRefusedChunks(t *testing.T) {
	for _, c := range refusedChunks {
		t.Run(c.rule, func(t *testing.T) {
			step := 1 + len(c.body)/300
			for at := 0; at < len(c.body); at += step {
				if d := decode(t, chunked, []byte(c.body), at); d.reason != c.reason || d.done {
					t.Fatalf("split at %d: %+v, want %q", at, d, c.reason)
				}
				var b Body
				b.Reset(chunked)
				if d := decodeWith(t, &b, b.NextRaw, []byte(c.body), at); d.reason != c.reason || d.done {
					t.Fatalf("raw, split at %d: %+v, want %q", at, d, c.reason)
				}
			}
			if d := decode(t, chunked, []byte(c.body), everyByte(len(c.body))...); d.reason != c.reason {
				t.Errorf("dripped: %+v, want %q", d, c.reason)
			}
		})
	}
}

// What NextRaw hands on is itself a chunked body of the same data without extensions, however it is fed.
func TestRawChunks(t *testing.T) {
	for _, c := range acceptedChunks {
		t.Run(c.rule, func(t *testing.T) {
			step := 1 + len(c.body)/200
			for at := 0; at <= len(c.body); at += step {
				var b Body
				b.Reset(chunked)
				raw := decodeWith(t, &b, b.NextRaw, []byte(c.body+"GET / HTTP/1.1\r\n"), at, at+step/2)
				checkRaw(t, &b, raw, len(c.body), c.data)
			}
		})
	}
}

// checkRaw reads again what NextRaw gave for a body of n bytes.
func checkRaw(t testing.TB, b *Body, raw decoded, n int, data string) {
	t.Helper()
	if !raw.done || raw.reason != none || raw.n != n {
		t.Fatalf("%d of %d bytes, done %t, %q", raw.n, n, raw.done, raw.reason)
	}
	sent := []byte(raw.data)
	if b.Trailer().Len() > 0 {
		sent = AppendHeadEnd(AppendLastChunk(sent))
	}
	again := decode(t, chunked, sent)
	if !again.done || again.data != data || again.n != len(sent) {
		t.Fatalf("%q is read as %+v, want %q", sent, again, data)
	}
	if strings.Contains(strings.ReplaceAll(string(sent), data, ""), ";") {
		t.Errorf("extensions are passed on: %.100q", sent)
	}
}

// In the plain case raw is what came in, in one piece.
func TestRawChunksAreNotCopied(t *testing.T) {
	body := []byte("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
	var b Body
	b.Reset(chunked)
	raw, n, err := b.NextRaw(append(body, "next"...))
	if string(raw) != string(body) || n != len(body) || err != nil || !b.Done() {
		t.Errorf("%q, %d, %v, done %t", raw, n, err, b.Done())
	}
	b.Reset(chunked)
	raw, n, err = b.NextRaw([]byte("5;a=b\r\nhello\r\n"))
	if string(raw) != "5\r\n" || n != len("5;a=b\r\n") || err != nil {
		t.Errorf("%q, %d, %v", raw, n, err)
	}
}

func TestTrailers(t *testing.T) {
	head := request(t, get("Transfer-Encoding: chunked", "Connection: x-secret, close, Server, X_Y", "X-Secret: 1"))
	var b Body
	b.Reset(&head.Head)
	head.Reset() // the body does not need it
	text := []byte("1\r\nx\r\n0\r\nX-Checksum:  abc \r\nX-SECRET: a\r\nServer: b\r\nx_y: c\r\nVia: d\r\nCookie: e\r\nX_Forwarded_For: f\r\n" +
		"Connection: g\r\nTrailer: h\r\nX-Forwarded-Foo: i\r\nContent-Encoding: j\r\nETag: k\r\n\r\n")
	if d := decodeWith(t, &b, b.Next, text, 12); !d.done || d.n != len(text) {
		t.Fatalf("%+v", d)
	}
	var kept []byte
	for i, f := range b.Trailer().List() {
		if !f.Hop {
			kept = b.Trailer().AppendLine(kept, i)
		}
	}
	if want := "X-Checksum: abc\r\nVia: d\r\nETag: k\r\n"; string(kept) != want {
		t.Errorf("%q, want %q", kept, want)
	}
	b.Reset(chunked)
	if b.Trailer().Len() != 0 {
		t.Error("the trailers of an earlier body are still there")
	}
}

func TestLengthBodies(t *testing.T) {
	h := &Head{Framing: Length, ContentLength: 5}
	for at := range 9 {
		d := decode(t, h, []byte("helloGET"), min(at, 8))
		if d.data != "hello" || d.n != 5 || !d.done || d.reason != none {
			t.Errorf("split at %d: %+v", at, d)
		}
	}
	var b Body
	b.Reset(h)
	if data, n, err := b.Next([]byte("hell")); string(data) != "hell" || n != 4 || err != nil || b.Done() || b.Left() != 1 {
		t.Errorf("%q %d %v, %d left", data, n, err, b.Left())
	}
	if data, n, err := b.Next(nil); len(data) != 0 || n != 0 || err != nil {
		t.Errorf("%q %d %v of nothing", data, n, err)
	}
	if err := b.EOF(); err != Truncated {
		t.Errorf("at the end of the connection: %v", err)
	}
	b.Reset(&Head{Framing: Length, ContentLength: math.MaxInt64})
	if _, n, err := b.Next(make([]byte, 100)); n != 100 || err != nil || b.Left() != math.MaxInt64-100 {
		t.Error(n, err, b.Left())
	}
}

func TestNoBody(t *testing.T) {
	var zero, b Body
	b.Reset(&Head{Framing: None, ContentLength: 5}) // HEAD
	for _, b := range []*Body{&zero, &b} {
		if data, n, err := b.Next([]byte("GET")); !b.Done() || len(data) != 0 || n != 0 || err != nil || b.Left() != 0 {
			t.Errorf("%q %d %v, done %t, %d left", data, n, err, b.Done(), b.Left())
		}
		if err := b.EOF(); err != nil {
			t.Error(err)
		}
	}
}

func TestBodyUntilClose(t *testing.T) {
	var b Body
	b.Reset(&Head{Framing: UntilClose, ContentLength: -1})
	for _, piece := range []string{"a", "", "0\r\n\r\n"} {
		if data, n, err := b.NextRaw([]byte(piece)); string(data) != piece || n != len(piece) || err != nil || b.Done() || b.Left() != -1 {
			t.Errorf("%q %d %v, done %t, %d left", data, n, err, b.Done(), b.Left())
		}
	}
	b.Skip(1 << 40)
	if err := b.EOF(); err != nil || !b.Done() {
		t.Errorf("%v, done %t", err, b.Done())
	}
}

// A body that ends early never looks complete, wherever it is cut (RFC 9112 section 8).
func TestTruncatedBodies(t *testing.T) {
	text := "5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n"
	for at := range len(text) {
		for _, raw := range []bool{false, true} {
			var b Body
			b.Reset(chunked)
			next := b.Next
			if raw {
				next = b.NextRaw
			}
			if d := decodeWith(t, &b, next, []byte(text[:at])); d.done {
				t.Fatalf("done after %q", text[:at])
			}
			if err := b.EOF(); err != Truncated {
				t.Errorf("cut at %d: %v", at, err)
			}
		}
	}
}

// Data may go another way, by splice.
func TestSkip(t *testing.T) {
	var b Body
	b.Reset(&Head{Framing: Length, ContentLength: 1 << 40})
	b.Skip(1<<40 - 1)
	if b.Done() || b.Left() != 1 {
		t.Errorf("done %t, %d left", b.Done(), b.Left())
	}
	b.Skip(1)
	if !b.Done() {
		t.Error("not done")
	}
	b.Reset(chunked)
	if _, n, err := b.NextRaw([]byte("10000\r\nx")); n != 8 || err != nil || b.Left() != 0xffff {
		t.Error(n, err, b.Left())
	}
	b.Skip(0xffff)
	if raw, n, err := b.NextRaw([]byte("\r\n0\r\n\r\n")); string(raw) != "\r\n0\r\n\r\n" || n != 7 || err != nil || !b.Done() {
		t.Errorf("%q %d %v, done %t", raw, n, err, b.Done())
	}
	b.Skip(1) // means nothing
	if !b.Done() {
		t.Error("not done")
	}
}

// A client that sends single bytes with small chunks is no attack.
func TestSmallChunksAreNoOverhead(t *testing.T) {
	var b Body
	b.Reset(chunked)
	text := []byte("1;a=bcdefghi\r\nx\r\n") // 16 bytes beside the data, and those twice
	for i := range 100_000 {
		for rest := text; len(rest) > 0; {
			_, n, err := b.Next(rest)
			if err != nil || n == 0 {
				t.Fatalf("chunk %d: %d, %v", i, n, err)
			}
			rest = rest[n:]
		}
	}
}

func ExampleBody() {
	var b Body
	b.Reset(&Head{Framing: Chunked})
	buf := []byte("5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nChecksum: 1\r\n\r\nGET /next")
	for !b.Done() {
		data, n, err := b.Next(buf)
		if err != nil || n == 0 {
			break // wrong, or more is needed
		}
		fmt.Printf("%s", data)
		buf = buf[n:]
	}
	fmt.Printf("\n%s: %s\n%s\n", b.Trailer().Name(0), b.Trailer().Value(0), buf)
	// Output:
	// hello!
	// Checksum: 1
	// GET /next
}

func TestALimitRefusesAChunkByItsSize(t *testing.T) {
	for _, c := range []struct {
		body string
		most int64
		want error
	}{
		{"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n", 10, nil},
		{"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n", 9, BodyTooLong},
		{"6\r\n", 5, BodyTooLong},
		{"7fffffffffffffff\r\n", 1 << 62, BodyTooLong},
		{"0\r\nX-Trailer: longer than that\r\n\r\n", 1, nil},
	} {
		for name, next := range map[string]func(*Body, []byte) ([]byte, int, error){"Next": (*Body).Next, "NextRaw": (*Body).NextRaw} {
			var b Body
			b.Reset(&Head{Framing: Chunked})
			b.Limit(c.most)
			var err error
			for rest := []byte(c.body); err == nil && !b.Done(); {
				var n int
				if _, n, err = next(&b, rest); n == 0 && err == nil {
					break
				}
				rest = rest[n:]
			}
			if err != c.want || c.want == nil && !b.Done() {
				t.Errorf("%s of %q with at most %d: %v, want %v", name, c.body, c.most, err, c.want)
			}
		}
	}
}
