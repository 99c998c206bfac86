package forward

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/nodetest"
)

// breakOff ends w in order, or with a RST.
func breakOff(w *wire, reset bool) {
	if reset {
		w.Conn.(*net.TCPConn).SetLinger(0)
	}
	w.Close()
}

func TestAnAnswerThatBreaksOffLooksCompleteToNobody(t *testing.T) {
	front, config := secure(t)
	answers := []struct {
		name, head, part string
		reset            bool
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "abc", false},
		{"length, nothing of it", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "", false},
		{"length, reset", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "abc", true},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\n", false},
		{"chunks, nothing of them", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "", false},
		{"chunks, reset", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\n", true},
		{"half a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "9\r\nabc", false},
		{"half a last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\n0\r\n", false},
		{"half a trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\n0\r\nX-T: 1\r\n", false},
		{"bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\nzz\r\n", false},
		{"overrun chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabcdef\r\n0\r\n\r\n", false},
		{"bare LF in a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\n0\n\n", false},
		{"until close, reset", "HTTP/1.1 200 OK\r\n\r\n", "abc", true},
	}
	clients := []struct {
		name, request string
		tls           bool
	}{
		{"HTTP/1.1", ask("/"), false},
		{"HTTP/1.1 over TLS", ask("/"), true},
		{"HTTP/1.1 with more behind", ask("/") + ask("/"), false},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", false},
		{"HTTP/1.0 over TLS", "GET / HTTP/1.0\r\n\r\n", true},
		{"HTTP/1.0 with more behind", "GET / HTTP/1.0\r\n\r\nmore", false},
		{"HTTP/1.0 over TLS with more behind", "GET / HTTP/1.0\r\n\r\nmore", true},
		{"HTTP/1.0 in an upload", "POST / HTTP/1.0\r\nContent-Length: 10\r\n\r\nabc", false},
	}
	for _, a := range answers {
		for _, c := range clients {
			t.Run(a.name+" to "+c.name, func(t *testing.T) {
				received := make(chan struct{})
				b, _ := scripted(t, func(w *wire) {
					nodetest.ReadHead(w.in)
					io.WriteString(w, a.head)
					<-received // the head, so that it is no 502
					io.WriteString(w, a.part)
					breakOff(w, a.reset)
				})
				s := settings{}
				if c.tls {
					s.tls = front
				}
				p := startWith(t, s, whole(b.Port()))
				w := connect(t, p)
				if c.tls {
					w = connectTLS(t, p, config)
				}
				w.say(c.request)
				res, err := http.ReadResponse(w.in, nil)
				close(received)
				if err != nil {
					t.Fatal(err)
				}
				if body, err := io.ReadAll(res.Body); err == nil {
					t.Errorf("%q looks complete", body)
				}
			})
		}
	}
}

// answersThatAreNone are refused, each by the rule that it breaks: RFC and section, or CVE.
var answersThatAreNone = map[string]string{
	"nothing":                                       "",
	"half a status line":                            "HTTP/1.1 20",
	"half a head":                                   "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n",
	"9112-4 nonsense":                               "nonsense\r\n\r\n",
	"9112-4 HTTP/0.9":                               "<html></html>",
	"9112-4 HTTP/2":                                 "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
	"9112-4 empty line before":                      "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
	"9112-4 status of four digits":                  "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
	"9112-4 CR in the reason":                       "HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
	"9112-6.3 length and chunks":                    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"9112-6.3 chunks and a length of 0":             "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
	"9112-6.3 two lengths":                          "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
	"9110-8.6 two lengths in a list":                "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nabcdef",
	"9110-8.6 signed length":                        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nabcde",
	"9110-8.6 negative length":                      "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabcde",
	"9110-8.6 length in hexadecimal":                "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nabcde",
	"9110-8.6 length of 2^64+5":                     "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551621\r\n\r\nabcde",
	"9112-6.1 unknown coding":                       "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabcde",
	"9112-6.1 coding that is nearly chunked":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
	"9112-6.1 quoted coding":                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
	"9112-6.1 vertical tab before the coding":       "HTTP/1.1 200 OK\r\nTransfer-Encoding:\vchunked\r\n\r\n0\r\n\r\n",
	"9112-6.1 two codings":                          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
	"9112-6.1 chunked twice":                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
	"9112-6.1 chunks in HTTP/1.0":                   "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"9112-5.1 space before the colon of the coding": "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"9112-2.2 bare CR":                              "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: evil=1\r\nContent-Length: 0\r\n\r\n",
	"9112-2.2 bare LF":                              "HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: evil=1\r\nContent-Length: 0\r\n\r\n",
	"9112-2.2 bare LF all over":                     "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
	"9112-5.2 folded line":                          "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
	"9112-5.1 space before the colon":               "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nabcde",
	"9110-5.1 name that is no token":                "HTTP/1.1 200 OK\r\nX\x00: a\r\nContent-Length: 0\r\n\r\n",
	"9110-5.5 NUL":                                  "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
	"9110-15.2 hint with a body":                    "HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
	"9110-15.2.2 101 that nobody asked for":         "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	"9110-15.2.2 101 to nothing":                    "HTTP/1.1 101 Switching Protocols\r\n\r\n",
	"9112-7.1 bad chunk at once":                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
	"9112-7.1 signed chunk size":                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
	"9112-7.1 chunk size with 0x":                   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
	"9112-7.1 chunk size of 2^64+3":                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
	"9112-7.1 space after the chunk size":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
	"CVE-2025-22871 bare LF after the chunk size":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
	"9112-7.1.1 bare LF in a chunk extension":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n",
}

func TestAnAnswerThatIsNoneIs502(t *testing.T) {
	for name, answer := range answersThatAreNone {
		t.Run(name, func(t *testing.T) {
			ended := make(chan struct{})
			b, _ := scripted(t, func(w *wire) {
				w.request()
				io.WriteString(w, answer)
				w.Conn.(*net.TCPConn).CloseWrite()
				silence(ended)(w)
			}, func(w *wire) {
				w.request()
				io.WriteString(w, answer)
			})
			p := start(t, whole(b.Port()))
			w := connect(t, p)
			w.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
			if res, body, err := w.answer("POST"); err != nil || res.StatusCode != 502 || res.Close || res.Header.Get("Set-Cookie") != "" {
				t.Error(res, body, err)
			}
			wait(t, "the backend's connection ends", ended)
			w.say("GET /none HTTP/1.0\r\n\r\n") // the client's goes on
			w.head("HTTP/1.1 502 ")
		})
	}
}

// TestARequestThatIsNoneReachesNobody has for each rule of http1 that is broken in a well-known way a whole request, and another
// one behind it: neither must get through. Names are RFC and section, or CVE.
func TestARequestThatIsNoneReachesNobody(t *testing.T) {
	post := func(fields, body string) string { return "POST / HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n\r\n" + body }
	const chunks = "0\r\n\r\n"
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"9112-2.2 bare CR in a value":                      {"GET / HTTP/1.1\r\nHost: x\r\nX: a\rX-Evil: 1\r\n\r\n", 400},
		"9112-2.2 bare LF in a value":                      {"GET / HTTP/1.1\r\nHost: x\r\nX: a\nX-Evil: 1\r\n\r\n", 400},
		"9112-2.2 bare LF all over":                        {"GET / HTTP/1.1\nHost: x\n\n", 400},
		"9110-5.5 NUL in a value":                          {"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n", 400},
		"9112-5.2 folded line":                             {"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", 400},
		"9112-5.2 folded line before the first":            {"GET / HTTP/1.1\r\n X: a\r\nHost: x\r\n\r\n", 400},
		"9112-5.1 space before the colon":                  {"GET / HTTP/1.1\r\nHost: x\r\nX : a\r\n\r\n", 400},
		"9112-5 no colon":                                  {"GET / HTTP/1.1\r\nHost: x\r\nX-Evil\r\n\r\n", 400},
		"9112-3 CR in the target":                          {"GET /\rX-Evil: HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		"9112-3 space in the target":                       {"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		"9112-3 tab in the request line":                   {"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		"9110-9.1 method that is none":                     {"GE(T / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		"9112-3.2 host with a space":                       {"GET / HTTP/1.1\r\nHost: x y\r\n\r\n", 400},
		"9112-3.2 host with a path":                        {"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400},
		"9112-3.2 host with an address":                    {"GET / HTTP/1.1\r\nHost: user@x\r\n\r\n", 400},
		"9112-3.2 no host":                                 {"GET / HTTP/1.1\r\n\r\n", 400},
		"9112-3.2 no host, absolute-form":                  {"GET http://x/ HTTP/1.1\r\n\r\n", 400},
		"9112-3.2 two hosts":                               {"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400},
		"9112-3.2 two hosts, absolute-form":                {"GET http://x/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
		"9112-3.2 space before the colon of a second host": {"GET / HTTP/1.1\r\nHost: x\r\nHost : y\r\n\r\n", 400},
		"9112-3.2 folded second host":                      {"GET / HTTP/1.1\r\nHost: x\r\n Host: y\r\n\r\n", 400},
		"9110-4.2.4 userinfo in absolute-form":             {"GET http://x@y/ HTTP/1.1\r\nHost: y\r\n\r\n", 400},
		"9112-6.3 CL.TE":                                   {post("Content-Length: 5\r\nTransfer-Encoding: chunked", chunks), 400},
		"9112-6.3 TE.CL":                                   {post("Transfer-Encoding: chunked\r\nContent-Length: 5", chunks), 400},
		"9112-6.3 TE.CL with a length of 0":                {post("Transfer-Encoding: chunked\r\nContent-Length: 0", chunks), 400},
		"9112-6.3 two lengths":                             {post("Content-Length: 5\r\nContent-Length: 6", "abcdef"), 400},
		"9112-6.3 two lengths of one value":                {post("Content-Length: 5\r\nContent-Length: 05", "abcde"), 400},
		"9110-8.6 length with a plus":                      {post("Content-Length: +5", "abcde"), 400},
		"9110-8.6 length with a minus":                     {post("Content-Length: -5", "abcde"), 400},
		"9110-8.6 list of lengths":                         {post("Content-Length: 5, 5", "abcde"), 400},
		"9110-8.6 length in hexadecimal":                   {post("Content-Length: 0x5", "abcde"), 400},
		"9110-8.6 length with a space":                     {post("Content-Length: 5 0", "abcde"), 400},
		"9110-8.6 no length":                               {post("Content-Length:", "abcde"), 400},
		"9110-8.6 length of 2^64+5":                        {post("Content-Length: 18446744073709551621", "abcde"), 400},
		"9110-8.6 length of 2^63":                          {post("Content-Length: 9223372036854775808", "abcde"), 400},
		"9112-6.1 TE.TE space before the colon":            {post("Transfer-Encoding : chunked", chunks), 400},
		"9112-6.1 TE.TE tab before the colon":              {post("Transfer-Encoding\t: chunked", chunks), 400},
		"9112-6.1 TE.TE vertical tab before the colon":     {post("Transfer-Encoding\v: chunked", chunks), 400},
		"9112-6.1 TE.TE vertical tab":                      {post("Transfer-Encoding:\vchunked", chunks), 400},
		"9112-6.1 TE.TE form feed behind":                  {post("Transfer-Encoding: chunked\f", chunks), 400},
		"9112-6.1 TE.TE NUL behind":                        {post("Transfer-Encoding: chunked\x00", chunks), 400},
		"9112-6.1 TE.TE quoted":                            {post("Transfer-Encoding: \"chunked\"", chunks), 400},
		"9112-6.1 TE.TE comma":                             {post("Transfer-Encoding: ,chunked", chunks), 400},
		"9112-6.1 TE.TE semicolon":                         {post("Transfer-Encoding: chunked;x", chunks), 400},
		"9112-6.1 TE.TE twice":                             {post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", chunks), 400},
		"9112-6.1 TE.TE twice, in another case":            {post("Transfer-Encoding: chunked\r\ntransfer-encoding: identity", chunks), 400},
		"9112-6.1 TE.TE in one list":                       {post("Transfer-Encoding: chunked, identity", chunks), 400},
		"9112-6.1 TE.TE hidden by a CR":                    {post("X: a\rTransfer-Encoding: chunked", chunks), 400},
		"9112-6.1 TE.TE hidden by a LF":                    {post("X: a\nTransfer-Encoding: chunked", chunks), 400},
		"9112-6.1 TE.TE in a folded line":                  {post("X: a\r\n Transfer-Encoding: chunked", chunks), 400},
		"9112-6.1 TE.TE folded":                            {post("Transfer-Encoding:\r\n chunked", chunks), 400},
		"9112-6.1 TE.TE empty":                             {post("Transfer-Encoding:", chunks), 400},
		"9112-6.1 unknown coding":                          {post("Transfer-Encoding: gzip, chunked", chunks), 501},
		"9112-6.1 TE.TE nearly chunked":                    {post("Transfer-Encoding: xchunked", chunks), 501},
		"9112-6.1 TE.TE identity":                          {post("Transfer-Encoding: identity", chunks), 501},
		"9112-6.1 chunks in HTTP/1.0":                      {"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"9112-6.1 chunks in HTTP/1.0 that is kept":         {"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"9110-10.1.1 expectation that only looks like one": {post("Expect: y 100-continue\r\nContent-Length: 5", "abcde"), 417},
		"9110-7.6.1 option that is none":                   {post("Connection: close;x\r\nContent-Length: 5", "abcde"), 400},
		"9112-3 HTTP/0.9":                                  {"GET /\r\n\r\n", 400},
		"9110-2.5 HTTP/3":                                  {"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505},
		"9112-3 long target":                               {"GET /" + strings.Repeat("a", http1.MaxTarget) + " HTTP/1.1\r\nHost: x\r\n\r\n", 414},
		"9112-3 long method":                               {strings.Repeat("M", http1.MaxMethod+1) + " / HTTP/1.1\r\nHost: x\r\n\r\n", 501},
		"6585-5 many fields":                               {"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", http1.MaxFields) + "\r\n", 431},
		"TLS":                                              {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400},
	} {
		t.Run(name, func(t *testing.T) {
			b := nodetest.NewRecorder(t, emptyAnswer)
			p := start(t, whole(b.Port()))
			w := connect(t, p)
			w.say(c.request + ask("/smuggled"))
			res, body, err := w.answer("GET")
			if err != nil || res.StatusCode != c.status || !res.Close || !strings.Contains(body, res.Header.Get("X-Request-ID")) {
				t.Error(res, body, err)
			}
			w.ended()
			if n := b.Requests(); n != 0 {
				t.Errorf("the backend was sent %d requests", n)
			}
		})
	}
}

func TestWhatIsEncodedStaysEncoded(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say("GET /%0d%0aX-Evil:%201?%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: x\r\n\r\n")
	w.head("HTTP/1.1 200 ")
	if head := b.Head(t); lines(head)[0] != "GET /%0D%0AX-Evil:%201?%0d%0aX-Evil:%201 HTTP/1.1" || fields(head, "X-Evil") != nil {
		t.Errorf("%q", head)
	}
}

// A backend must never take a request for whole whose body was not.
func TestABrokenUploadNeverLooksCompleteToTheBackend(t *testing.T) {
	for name, c := range map[string]struct{ head, first, rest string }{
		"bad chunk":           {"Transfer-Encoding: chunked", "3\r\nabc\r\n", "zz\r\n\r\n0\r\n\r\n"},
		"bad chunk at once":   {"Transfer-Encoding: chunked", "", "3\r\nabc\r\nzz\r\n"},
		"overrun":             {"Transfer-Encoding: chunked", "3\r\nabc\r\n", "3\r\nabcdef\r\n0\r\n\r\n"},
		"bare LF":             {"Transfer-Encoding: chunked", "3\r\nabc\r\n", "0\n\n"},
		"space before size":   {"Transfer-Encoding: chunked", "3\r\nabc\r\n", " 0\r\n\r\n"},
		"size overflow":       {"Transfer-Encoding: chunked", "3\r\nabc\r\n", "ffffffffffffffff1\r\nabc"},
		"bare CR in trailers": {"Transfer-Encoding: chunked", "3\r\nabc\r\n", "0\r\nX: a\rb\r\n\r\n"},
		"broken off in chunk": {"Transfer-Encoding: chunked", "3\r\nabc\r\n", "5\r\nab"},
		"broken off at chunk": {"Transfer-Encoding: chunked", "3\r\nabc\r\n", ""},
		"broken off at last":  {"Transfer-Encoding: chunked", "3\r\nabc\r\n", "0\r\n"},
		"broken off length":   {"Content-Length: 10", "abc", "def"},
	} {
		t.Run(name, func(t *testing.T) {
			arrived, ended := make(chan struct{}, 2), make(chan struct{})
			b, _ := scripted(t, func(w *wire) {
				defer close(ended)
				r, err := http.ReadRequest(w.in)
				if err != nil {
					return
				}
				arrived <- struct{}{}
				if body, err := io.ReadAll(r.Body); err == nil {
					t.Errorf("%q looks complete", body)
				}
			})
			p := start(t, whole(b.Port()))
			w := connect(t, p)
			w.say("POST / HTTP/1.1\r\nHost: x\r\n" + c.head + "\r\n\r\n" + c.first)
			if c.first != "" {
				<-arrived
			}
			w.say(c.rest)
			w.Conn.(*net.TCPConn).CloseWrite()
			if res, body, err := w.answer("POST"); err == nil && (res.StatusCode != 400 || !res.Close) {
				t.Error(res, body)
			}
			if p.backends[0].Counters().Opened > 0 {
				wait(t, "the backend's connection ends", ended)
			}
		})
	}
}

func TestAHeadThatIsNoneIsAnsweredInTheFormThatItAsksFor(t *testing.T) {
	p := start(t, whole(mirror(t).Port()))
	for name, c := range map[string]struct {
		head, kind string
		status     int
	}{
		"too long, JSON":       {"GET / HTTP/1.1\r\nHost: x\r\naccept: application/json\r\nX: " + strings.Repeat("x", http1.MaxHead) + "\r\n\r\n", "application/json", 431},
		"too long, HTML":       {"\r\nGET / HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\nX: " + strings.Repeat("x", http1.MaxHead) + "\r\n\r\n", "text/html; charset=utf-8", 431},
		"too long, none":       {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", http1.MaxHead) + "\r\n\r\n", "text/plain; charset=utf-8", 431},
		"malformed":            {"GET / HTTP/1.1\r\nHost : x\r\nAccept: application/json\r\n\r\n", "application/json", 400},
		"of the next, not its": {"GET / HTTP/1.1\r\nHost : x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n", "text/plain; charset=utf-8", 400},
	} {
		w := connect(t, p)
		go io.WriteString(w, c.head) // the answer may come before all was taken
		res, body, err := w.answer("GET")
		if err != nil || res.StatusCode != c.status || res.Header.Get("Content-Type") != c.kind || !strings.Contains(body, res.Header.Get("X-Request-Id")) {
			t.Errorf("%s: %v, %q, %v", name, res, body, err)
		}
	}
}

func TestAHeadOf64KiBPassesAndNotAByteMore(t *testing.T) {
	filled := func(begin string, size int) string {
		const field = "X-Filling: "
		filling := size - len(begin) - len(field) - len("\r\n\r\n")
		return begin + field + strings.Repeat("x", filling) + "\r\n\r\n"
	}
	p := start(t, whole(mirror(t).Port()))
	for _, c := range []struct{ size, status int }{{http1.MaxHead, 200}, {http1.MaxHead + 1, 431}} {
		for _, atRandom := range []bool{false, true} {
			w := connect(t, p)
			head := filled("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n", c.size)
			go sendPieces(w, head+"abc"+head+"def", atRandom)
			for _, body := range []string{"abc", "def"} {
				res, got, err := w.answer("POST")
				if err != nil || res.StatusCode != c.status || c.status == 200 && got != "POST / "+body {
					t.Errorf("a head of %d bytes: %v %q %v", c.size, res, got, err)
				}
				if c.status != 200 {
					break
				}
			}
		}
	}
	for _, c := range []struct{ size, status int }{{http1.MaxHead, 200}, {http1.MaxHead + 1, 502}} {
		head := filled("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n", c.size)
		p := start(t, whole(answering(t, head+"abc").Port()))
		w := connect(t, p)
		for range 2 {
			w.say(ask("/"))
			if res, body, err := w.answer("GET"); err != nil || res.StatusCode != c.status || c.status == 200 && body != "abc" {
				t.Errorf("an answer's head of %d bytes: %v %q %v", c.size, res, body, err)
			}
		}
	}
}

// The first attempt's write fails, and what came of its body must go with the second, and the rest behind it.
func TestAnUploadWhoseFirstConnectionWasResetIsSentWhole(t *testing.T) {
	b := mirror(t)
	first := true
	p := startWith(t, settings{dial: dialing(func(c net.Conn) net.Conn {
		if !first {
			return c
		}
		first = false
		return deaf{c}
	})}, whole(b.Port()))
	w := connect(t, p)
	w.say("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
	nodetest.Eventually(t, "the second attempt begins", func() bool { return p.backends[0].Counters().Opened == 2 })
	w.say("def")
	w.want("PUT", 200, "PUT / abcdef")
}
