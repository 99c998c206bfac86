package http1

import (
	"math"
	"strconv"
	"strings"
	"testing"
)

// What may come over HTTP/2 and would be two lines here (RFC 9113 section 10.3).
var injections = []string{
	"a\r\nB: c", "a\nB: c", "a\rB", "a\x00b", "\r\n\r\nGET / HTTP/1.1", "a\x7f", "a\x1b[m", "a\v", " a", "a ", "\ta", "a\t",
}

func TestAppendField(t *testing.T) {
	for value, want := range map[string]string{"b": "A: b\r\n", "": "A: \r\n", "b \tc": "A: b \tc\r\n", "\xff": "A: \xff\r\n"} {
		for _, write := range []func() ([]byte, error){
			func() ([]byte, error) { return AppendField([]byte("-"), "A", value) },
			func() ([]byte, error) { return AppendField([]byte("-"), []byte("A"), []byte(value)) },
		} {
			if out, err := write(); string(out) != "-"+want || err != nil {
				t.Errorf("%q: %q, %v", value, out, err)
			}
		}
	}
	for _, value := range injections {
		if out, err := AppendField([]byte("-"), "A", value); string(out) != "-" || err != ControlInValue {
			t.Errorf("%q: %q, %v", value, out, err)
		}
	}
	for name, want := range map[string]error{
		"": EmptyName, "a b": BadName, "a:": BadName, ":path": BadName, "a\r\nb": BadName, "a\x00": BadName, "a\xc3\xa9": BadName, "a ": BadName,
	} {
		if out, err := AppendField([]byte("-"), name, "a"); string(out) != "-" || err != want {
			t.Errorf("%q: %q, %v", name, out, err)
		}
	}
}

func TestAppendRequestLine(t *testing.T) {
	for _, c := range []struct {
		method, path, query string
		hasQuery            bool
		want                string
		err                 error
	}{
		{"GET", "/", "", false, "GET / HTTP/1.1\r\n", nil},
		{"GET", "/a", "", true, "GET /a? HTTP/1.1\r\n", nil},
		{"M-SEARCH", "*", "b?c", true, "M-SEARCH *?b?c HTTP/1.1\r\n", nil},
		{"GET", "/\xff", "\xff", true, "GET /\xff?\xff HTTP/1.1\r\n", nil},
		{"GET", "", "", false, "", BadTarget},
		{"", "/", "", false, "", BadMethod},
		{"G T", "/", "", false, "", BadMethod},
		{"GET\r\nX:", "/", "", false, "", BadMethod},
		{strings.Repeat("A", MaxMethod+1), "/", "", false, "", MethodTooLong},
		{"GET", "/a b", "", false, "", ControlInTarget},
		{"GET", "/ HTTP/1.1\r\nA: b\r\n\r\n", "", false, "", ControlInTarget},
		{"GET", "/", "a\nb", true, "", ControlInTarget},
		{"GET", "/", "a b", true, "", ControlInTarget},
		{"GET", "/", "a\x00", true, "", ControlInTarget},
		{"GET", "/a#b", "", false, "", FragmentInTarget},
		{"GET", "/a", "#", true, "", FragmentInTarget},
		{"GET", "/a\x7f", "", false, "", ControlInTarget},
	} {
		out, err := AppendRequestLine([]byte("-"), c.method, []byte(c.path), c.query, c.hasQuery)
		if string(out) != "-"+c.want || err != c.err {
			t.Errorf("%q %q %q: %q, %v", c.method, c.path, c.query, out, err)
		}
	}
}

func TestAppendStatusLine(t *testing.T) {
	for _, c := range []struct {
		status int
		phrase string
		want   string
		err    error
	}{
		{200, "OK", "HTTP/1.1 200 OK\r\n", nil},
		{100, "", "HTTP/1.1 100 \r\n", nil},
		{999, "a \t\xff", "HTTP/1.1 999 a \t\xff\r\n", nil},
		{99, "", "", BadStatus}, {1000, "", "", BadStatus}, {0, "", "", BadStatus}, {-200, "", "", BadStatus},
		{200, "OK\r\nA: b", "", BadStatusLine}, {200, "\n", "", BadStatusLine}, {200, "\x00", "", BadStatusLine},
	} {
		if out, err := AppendStatusLine([]byte("-"), c.status, c.phrase); string(out) != "-"+c.want || err != c.err {
			t.Errorf("%d %q: %q, %v", c.status, c.phrase, out, err)
		}
	}
}

func TestAppendContentLength(t *testing.T) {
	for _, n := range []int64{0, 1, 9, 10, 12345, math.MaxInt64} {
		if out := AppendContentLength(nil, n); string(out) != "Content-Length: "+strconv.FormatInt(n, 10)+"\r\n" {
			t.Errorf("%q", out)
		}
	}
	if out := AppendContentLength(nil, -1); string(out) != "Content-Length: 0\r\n" {
		t.Errorf("%q", out)
	}
}

func TestChunkHeaders(t *testing.T) {
	for _, size := range []int64{1, 9, 10, 15, 16, 17, 255, 256, 4095, 4096, 65536, 1 << 31, 1 << 32, math.MaxInt64 - 1, math.MaxInt64} {
		want := strconv.FormatInt(size, 16) + "\r\n"
		if out := AppendChunkHeader([]byte("-"), size); string(out) != "-"+want {
			t.Errorf("%d: %q", size, out)
		}
		space := make([]byte, MaxChunkHeader)
		if at := PutChunkHeader(space, size); string(space[at:]) != want {
			t.Errorf("%d: %q", size, space[at:])
		}
		if got, n, plain, r := chunkLine([]byte(want)); got != size || n != len(want) || !plain || r != none {
			t.Errorf("%q is read as %d, %d, %t, %q", want, got, n, plain, r)
		}
	}
	// No size may end the body by chance.
	for _, size := range []int64{0, -1} {
		space := make([]byte, MaxChunkHeader)
		if out, at := AppendChunkHeader(nil, size), PutChunkHeader(space, size); len(out) != 0 || at != len(space) {
			t.Errorf("%d: %q, %d", size, out, at)
		}
	}
}

func TestWrittenChunksAreRead(t *testing.T) {
	var out []byte
	for _, piece := range []string{"hello", strings.Repeat("x", 300)} {
		out = AppendChunkHeader(out, int64(len(piece)))
		out = AppendChunkEnd(append(out, piece...))
	}
	out, err := AppendField(AppendLastChunk(out), "A", "b")
	if err != nil {
		t.Fatal(err)
	}
	out = AppendHeadEnd(out)
	if d := decode(t, chunked, out); d.data != "hello"+strings.Repeat("x", 300) || !d.done || d.trailers != "0 false \"A\": \"b\"\n" {
		t.Errorf("%+v", d)
	}
}

func TestReasons(t *testing.T) {
	texts := map[string]Reason{}
	for r := Reason(1); int(r) < NumReasons; r++ {
		text := r.String()
		if first, seen := texts[text]; seen || text == "" || strings.ContainsAny(text, "\"\\\n") {
			t.Errorf("reason %d is %q, like %d", r, text, first)
		}
		texts[text] = r
		switch r.Status() {
		case 400, 413, 414, 417, 431, 501, 505:
		default:
			t.Errorf("%q has status %d", text, r.Status())
		}
		if r.Error() != "http1: "+text {
			t.Errorf("%q", r.Error())
		}
	}
	for r, want := range map[Reason]int{
		HeadTooLong: 431, TooManyFields: 431, TargetTooLong: 414, UnknownCoding: 501, MethodTooLong: 501, UnsupportedVersion: 505,
		HTTP2Preface: 505, UnknownExpectation: 417, BareCR: 400,
	} {
		if r.Status() != want {
			t.Errorf("%q has status %d", r, r.Status())
		}
	}
	if r := Reason(200); r.String() != "unknown" || r.Status() != 400 {
		t.Errorf("%q %d", r, r.Status())
	}
}

// None of what a request costs may be garbage.
func TestNothingIsAllocated(t *testing.T) {
	var req Request
	var res Response
	var body Body
	browser, answer, out := []byte(browserGet), []byte(apiResponse), make([]byte, 0, 8<<10)
	bad := []byte(get("Transfer-Encoding: chunked", "Content-Length: 5"))
	named := []byte(get("Connection: X-A, Upgrade, TE", "X-a: 1", "Upgrade: websocket", "TE: trailers", "Expect: 100-continue", "Transfer-Encoding: chunked"))
	chunks := []byte("5;a=b\r\nhello\r\n400\r\n" + strings.Repeat("x", 1024) + "\r\n0\r\nA: b\r\nX-A: c\r\n\r\n")
	for name, f := range map[string]func(){
		"browser's request": func() {
			req.Reset()
			if n, err := req.Parse(browser); n == 0 || err != nil {
				t.Error(n, err)
			}
			out = forward(out[:0], &req)
		},
		"answer": func() {
			res.Reset()
			if n, err := res.Parse(answer, GET); n == 0 || err != nil {
				t.Error(n, err)
			}
			out, _ = AppendStatusLine(out[:0], res.Status, res.ReasonPhrase())
			out = AppendContentLength(out, res.ContentLength)
		},
		"refusal": func() {
			req.Reset()
			if _, err := req.Parse(bad); err == nil {
				t.Error("not refused")
			}
		},
		"chunked body behind a head with options": func() {
			req.Reset()
			if _, err := req.Parse(named); err != nil {
				t.Error(err)
			}
			body.Reset(&req.Head)
			for buf := chunks; !body.Done(); {
				data, n, err := body.Next(buf)
				if err != nil {
					t.Error(err)
				}
				out = AppendChunkHeader(out[:0], int64(len(data)))
				buf = buf[n:]
			}
			for i := range body.Trailer().List() {
				out = body.Trailer().AppendLine(out, i)
			}
		},
		"raw chunks": func() {
			body.Reset(&req.Head)
			for buf := chunks; !body.Done(); {
				_, n, err := body.NextRaw(buf)
				if err != nil {
					t.Error(err)
				}
				buf = buf[n:]
			}
		},
		"checks": func() {
			if CheckValue("a b") != nil || CheckName(browser[:3]) != nil || CheckValue("a\nb") == nil || body.EOF() != nil {
				t.Error("checks")
			}
		},
	} {
		f() // warms up
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
