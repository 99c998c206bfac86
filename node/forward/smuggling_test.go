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

// Attacks that are about more than one message, or about what of a valid one goes on. Those that a single message is refused
// for are in TestARequestThatIsNoneReachesNobody, TestAnAnswerThatIsNoneIs502, TestHTTP2WhatCannotBeSaidInHTTP1 and, rule by
// rule and split at each byte, in http1.

const smuggledRequest = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

// lengthBlind is a backend that does not know that requests have bodies: whatever line in them looks like a request is answered,
// with "answer to" its target. What answers /first goes out with the answer to what is in its body: if that came after the next
// request, nobody could tell it from the answer to that.
func lengthBlind(t testing.TB) *nodetest.RawBackend {
	t.Helper()
	return nodetest.NewRawBackend(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		answers := ""
		for {
			text, err := in.ReadString('\n')
			if err != nil {
				return
			}
			words := strings.Fields(text)
			if len(words) != 3 || words[2] != "HTTP/1.1" {
				continue
			}
			if answers += sized("answer to " + words[1]); words[1] != "/first" {
				io.WriteString(c, answers)
				answers = ""
			}
		}
	})
}

// TestABackendThatIsBlindForBodiesAnswersNobodyElse is CL.0 and its kin: the second answer, to the request in the body, must not
// be the answer to somebody's next request.
func TestABackendThatIsBlindForBodiesAnswersNobodyElse(t *testing.T) {
	sizedBody := fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(smuggledRequest), smuggledRequest)
	for name, request := range map[string]string{
		"9112-6.3 CL.0":        "POST /first HTTP/1.1\r\nHost: x\r\n" + sizedBody,
		"9112-6.3 CL.0 of GET": "GET /first HTTP/1.1\r\nHost: x\r\n" + sizedBody,
		"9112-6.3 TE.0":        fmt.Sprintf("POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(smuggledRequest), smuggledRequest),
		"9110-10.1.1 Expect.0": "POST /first HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" + sizedBody,
		"9110-7.8 Upgrade.0":   "POST /first HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + sizedBody,
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, whole(lengthBlind(t).Port()))
			for range 5 {
				attacker, victim := connect(t, p), connect(t, p)
				attacker.say(request)
				attacker.want("POST", 200, "answer to /first")
				for range 3 {
					victim.say(ask("/victim"))
					victim.want("GET", 200, "answer to /victim")
				}
			}
		})
	}
	t.Run("9113-8.1 the same over HTTP/2", func(t *testing.T) {
		p := start(t, whole(lengthBlind(t).Port()))
		for range 5 {
			attacker, victim := connectFrames(t, p), connect(t, p)
			attacker.open(1, false, ordinary("POST", "/first", "content-length", fmt.Sprint(len(smuggledRequest)))...)
			attacker.sent(attacker.WriteData(1, true, []byte(smuggledRequest)))
			if o := attacker.await(1); o.body != "answer to /first" {
				t.Errorf("the attacker got %v", o)
			}
			for range 3 {
				victim.say(ask("/victim"))
				victim.want("GET", 200, "answer to /victim")
			}
		}
	})
}

// TestAHalfUploadedBodyIsNotFinishedByTheNextRequest is 0.CL: the backend answers and waits for the body, which must not be
// the next request. As many bytes as were declared may still reach it, as what they are: the upload goes on until the answer
// has been sent.
func TestAHalfUploadedBodyIsNotFinishedByTheNextRequest(t *testing.T) {
	for name, head := range map[string]string{
		"9112-6.3 0.CL":        "POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
		"9112-6.3 0.TE":        "POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
		"9110-10.1.1 expected": "POST /first HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			early := func(w *wire) {
				nodetest.ReadHead(w.in)
				io.WriteString(w, sized("early"))
				if rest, _ := io.ReadAll(w.in); strings.Contains(string(rest), "HTTP/1.1") {
					t.Errorf("the backend got %q for the body", rest)
				}
			}
			b, _ := scripted(t, early, serve(sized("next")))
			p := start(t, whole(b.Port()))
			w, other := connect(t, p), connect(t, p)
			w.say(head)
			if res := w.want("POST", 200, "early"); !res.Close {
				t.Error("the connection is kept, though the body is to come")
			}
			w.ended() // or the bytes that were declared could still come in time
			io.WriteString(w, smuggledRequest)
			other.say(ask("/victim"))
			other.want("GET", 200, "next")
		})
	}
}

// TestChunkLinesThatTwoReadDifferently are those of the years 2023 to 2025: who takes a lone LF or CR, or two bytes of any kind,
// for an end of a line, finds another end of the body (RFC 9112 sections 2.2, 7.1 and 7.1.1; CVE-2025-22871 and its kin).
func TestChunkLinesThatTwoReadDifferently(t *testing.T) {
	behind := "0\r\n\r\n" + smuggledRequest
	for name, body := range map[string]string{
		"9112-7.1.1 TERM.EXT LF in an extension":          "2;\nxx\r\n10\r\n" + behind,
		"9112-7.1.1 EXT.TERM LF ends an extension":        "2;a\nxx\r\n" + behind,
		"9112-7.1.1 LF in the value of an extension":      "2;a=b\nxx\r\n" + behind,
		"9112-7.1.1 LF in a quoted value":                 "2;a=\"\n\"\r\nxx\r\n" + behind,
		"9112-7.1.1 CR in an extension":                   "2;a\rxx\r\n" + behind,
		"9112-7.1.1 CR CR LF":                             "2;a\r\r\nxx\r\n" + behind,
		"CVE-2025-22871 LF ends the size":                 "2\nxx\r\n" + behind,
		"9112-7.1 CR ends the size":                       "2\rxx\r\n" + behind,
		"9112-7.1 TERM.SPILL LF ends the data":            "2\r\nxx\n" + behind,
		"9112-7.1 SPILL.TERM bytes behind the data":       "2\r\nxxyy" + behind,
		"9112-7.1 ONE.TWO one byte behind the data":       "2\r\nxx\r" + behind,
		"9112-7.1 TWO.ONE an end of line within the data": "3\r\nxx\r\n" + behind,
		"9112-7.1 ZERO.TWO no end of the data":            "2\r\nxx" + behind,
		"9112-7.1 TWO.ZERO an end of line too many":       "2\r\nxx\r\n\r\n" + behind,
		"9112-7.1 space behind the size":                  "2 \r\nxx\r\n" + behind,
		"9112-7.1 tab behind the size":                    "2\t\r\nxx\r\n" + behind,
		"9112-7.1 letter behind the size":                 "2x\r\nxx\r\n" + behind,
		"9112-7.1 space before the size":                  " 2\r\nxx\r\n" + behind,
		"9112-7.1 plus":                                   "+2\r\nxx\r\n" + behind,
		"9112-7.1 minus":                                  "-2\r\nxx\r\n" + behind,
		"9112-7.1 0x":                                     "0x2\r\nxx\r\n" + behind,
		"9112-7.1 underscore":                             "0_2\r\nxx\r\n" + behind,
		"9112-7.1 size of 2^64+2":                         "10000000000000002\r\nxx\r\n" + behind,
		"9112-7.1 size of 2^63":                           "8000000000000000\r\nxx\r\n" + behind,
		"9112-7.1 size of many zeros":                     strings.Repeat("0", 17) + "2\r\nxx\r\n" + behind,
		"9112-7.1 no size":                                "\r\nxx\r\n" + behind,
		"9112-7.1.2 LF ends the last chunk":               "2\r\nxx\r\n0\n\r\n" + smuggledRequest,
		"9112-7.1.2 LF ends the body":                     "2\r\nxx\r\n0\r\n\n" + smuggledRequest,
		"9112-7.1.2 CR ends the body":                     "2\r\nxx\r\n0\r\n\r" + smuggledRequest,
		"9112-7.1.2 a request for a trailer":              "2\r\nxx\r\n0\r\n" + smuggledRequest,
		"9112-7.1.2 folded trailer":                       "2\r\nxx\r\n0\r\nX: a\r\n b\r\n\r\n" + smuggledRequest,
		"9110-6.5.1 length in the trailers":               "2\r\nxx\r\n0\r\nContent-Length: 5\r\n\r\n" + smuggledRequest,
	} {
		t.Run(name, func(t *testing.T) {
			witness := newWitness(t)
			p := start(t, whole(witness.Port()))
			w := connect(t, p)
			w.say("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
			if res, _, err := w.answer("POST"); err != nil || res.StatusCode != 400 || !res.Close {
				t.Errorf("%v %v", res, err)
			}
			w.ended()
			for _, r := range witness.reached(t, p) {
				t.Errorf("the backend got %s %s", r.Method, r.URL)
			}
		})
		t.Run(name+", in an answer", func(t *testing.T) {
			answer := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.ReplaceAll(body, smuggledRequest, sized("smuggled"))
			b, conns := scripted(t, func(w *wire) {
				w.request()
				io.WriteString(w, answer)
				w.request()
			}, serve(sized("next")))
			p := start(t, whole(b.Port()))
			w, other := connect(t, p), connect(t, p)
			w.say(ask("/"))
			if res, got, err := w.answer("GET"); err == nil && res.StatusCode != 502 {
				t.Errorf("the client took %q for whole", got)
			}
			other.say(ask("/"))
			other.want("GET", 200, "next")
			if n := conns(); n != 2 {
				t.Errorf("%d connections, want 2", n)
			}
		})
	}
}

// TestWhatAClientCannotTakeAway is RFC 9110 section 7.6.1: options of Connection take the client's fields away, but not those that
// the proxy answers for.
func TestWhatAClientCannotTakeAway(t *testing.T) {
	w := newWitness(t)
	p := start(t, whole(w.Port()))
	for name, head := range map[string]string{
		"forwarded fields": "Connection: X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Real-IP, X-Request-ID, Via",
		"framing":          "Connection: Content-Length, Transfer-Encoding, Host",
		"in two lines":     "Connection: X-Forwarded-For\r\nconnection: content-length",
		"Trailer":          "Connection: Trailer, TE",
	} {
		for _, framing := range []string{"Content-Length: 3\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"} {
			c := connect(t, p)
			c.say("POST / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6\r\n" + head + "\r\n" + framing + smuggledRequest)
			c.want("POST", 200, "")
			c.want("GET", 200, "")
			got, next := <-w.whole, <-w.whole
			for field, want := range map[string]string{
				"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "x", "X-Real-Ip": "127.0.0.1", "Via": "1.1 pyserve",
			} {
				if !slices.Equal(got.Header[field], []string{want}) {
					t.Errorf("%s: %s is %q", name, field, got.Header[field])
				}
			}
			if got.Host != "127.0.0.1:"+itoa(w.Port()) || got.ContentLength != 3 && got.TransferEncoding == nil || next.URL.Path != "/smuggled" {
				t.Errorf("%s: %v, then %s", name, got, next.URL)
			}
		}
	}
}

// TestLookalikesOfFramingStay is about backends that make "-" of "_" (RFC 3875 section 4.1.18).
func TestLookalikesOfFramingStay(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent_Length: 5\r\nTransfer_Encoding: chunked\r\nTransfer-encoding_: chunked\r\n\r\n")
	head := b.Head(t)
	for _, name := range []string{"Content_Length", "Transfer_Encoding", "Content-Length", "Transfer-Encoding"} {
		if got := fields(head, name); got != nil {
			t.Errorf("%s was forwarded: %q", name, got)
		}
	}
}

// A length is written anew, so that nobody has to read leading zeros as we do (RFC 9110 section 8.6).
func TestALengthIsWrittenAnew(t *testing.T) {
	for _, sent := range []string{"3", "03", strings.Repeat("0", 100) + "3"} {
		received := make(chan string, 1)
		b, _ := scripted(t, func(w *wire) {
			head, _ := nodetest.ReadHead(w.in)
			w.read(3)
			received <- head
			io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: "+sent+"\r\n\r\ndef")
			w.request()
		})
		p := start(t, whole(b.Port()))
		w := connect(t, p)
		w.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + sent + "\r\n\r\nabc")
		head := w.head("HTTP/1.1 200 ")
		if got := w.read(3); got != "def" {
			t.Errorf("%q", got)
		}
		for who, head := range map[string]string{"backend": <-received, "client": head} {
			if got := fields(head, "Content-Length"); !slices.Equal(got, []string{"3"}) {
				t.Errorf("%q: the %s got %q", sent, who, got)
			}
		}
	}
}

// TestPathsThatTwoReadDifferently is about RFC 3986 section 6.2.2 and what backends make of a path beyond it: what was matched is
// what goes on.
func TestPathsThatTwoReadDifferently(t *testing.T) {
	public, secret := nodetest.NewRecorder(t, emptyAnswer), nodetest.NewRecorder(t, emptyAnswer)
	open, closed := to("/", public.Port()), to("/admin", secret.Port())
	open.route.StripPath, closed.route.StripPath = false, false
	p := start(t, open, closed)
	for _, c := range []struct {
		name, sent string
		to         *nodetest.Recorder // nil: refused
		want       string
	}{
		{"3986-5.2.4 dots", "/a/../admin", secret, "/admin"},
		{"3986-6.2.2.2 encoded dots", "/a/%2e%2E/admin", secret, "/admin"},
		{"3986-6.2.2.2 encoded letters", "/%61dmin", secret, "/admin"},
		{"3986-6.2.2.2 encoded twice", "/%2561dmin", public, "/%2561dmin"},
		{"3986-6.2.2.2 dots that are encoded twice", "/a/%252e%252e/admin", public, "/a/%252e%252e/admin"},
		{"3986-2.2 encoded slash", "/a%2f..%2fadmin", public, "/a%2F..%2Fadmin"},
		{"3986-2.2 encoded slash behind dots", "/a/..%2Fadmin", public, "/a/..%2Fadmin"},
		{"3986-3.3 empty segments", "//admin", public, "//admin"},
		{"3986-3.3 dots behind an empty segment", "/a//../admin", public, "/a/admin"},
		{"3986-3.3 parameters", "/admin;x", public, "/admin;x"},
		{"3986-3.3 dots with parameters", "/a/..;/admin", public, "/a/..;/admin"},
		{"3986-3.3 backslashes", `/a\..\admin`, public, "/a%5C..%5Cadmin"},
		{"3629-3 overlong dots", "/a/%c0%ae%c0%ae/admin", public, "/a/%C0%AE%C0%AE/admin"},
		{"3629-3 overlong slash", "/a/..%c0%afadmin", public, "/a/..%C0%AFadmin"},
		{"3986-2.1 wide slash", "/a/..\uff0fadmin", public, "/a/..%EF%BC%8Fadmin"},
		{"3986-2.1 NUL", "/admin%00.html", public, "/admin%00.html"},
		{"3986-2.1 end of a line", "/a%0d%0aX:%20y", public, "/a%0D%0AX:%20y"},
		{"3986-6.2.2.1 case", "/Admin", public, "/Admin"},
		{"3986-3.3 dot behind", "/admin.", public, "/admin."},
		{"3986-3.4 query", "/a?/../admin", public, "/a?/../admin"},
		{"3986-5.2.4 above the root", "/../admin", nil, ""},
		{"3986-5.2.4 above the root, encoded", "/a/%2e%2e/%2e%2e/admin", nil, ""},
		{"3986-2.1 bad encoding", "/%u0061dmin", nil, ""},
		{"3986-2.1 half an encoding", "/admin%2", nil, ""},
		{"9112-3.2 fragment", "/a#/../admin", nil, ""},
		{"9112-3.2.2 absolute-form", "http://y/a/../admin", secret, "/admin"},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer := p.exchange(t, "GET "+c.sent+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			if c.to == nil {
				if !strings.HasPrefix(answer, "HTTP/1.1 400 ") || public.Requests()+secret.Requests() != 0 {
					t.Errorf("it is answered %q", answer)
				}
				return
			}
			if got := lines(c.to.Head(t))[0]; got != "GET "+c.want+" HTTP/1.1" {
				t.Errorf("the backend got %q", got)
			}
		})
	}
}

// TestARefusedUpgradeIsNoTunnel: what a client sends behind its handshake, as if it had been taken, is a request like any other
// (RFC 9110 section 7.8), and must be where its route leads.
func TestARefusedUpgradeIsNoTunnel(t *testing.T) {
	refusing := nodetest.NewRecorder(t, "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n")
	p := start(t, to("/ws", refusing.Port()))
	for _, version := range []string{"13", "777"} {
		w := connect(t, p)
		w.say("GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: " + version +
			"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + smuggledRequest)
		w.head("HTTP/1.1 426 ")
		w.head("HTTP/1.1 404 ")
		refusing.Head(t)
		if n := refusing.Requests(); n != 0 {
			t.Errorf("%d more requests came to the backend", n)
		}
	}
}

// TestAnAnswerCannotBeSplit is RFC 9112 section 11.1: what a client sent and comes back in a field is still one line.
func TestAnAnswerCannotBeSplit(t *testing.T) {
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 302 Found\r\nLocation: "+r.URL.RawQuery+"\r\nContent-Length: 0\r\n\r\n")
		}
	})
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	for sent, want := range map[string]string{
		"/%0d%0aSet-Cookie:%20a=b":                       "/%0d%0aSet-Cookie:%20a=b",
		"http://127.0.0.1:" + itoa(b.Port()) + "/%0d%0a": "http://x/%0d%0a",
		"/%E5%98%8A%E5%98%8DSet-Cookie:%20a=b":           "/%E5%98%8A%E5%98%8DSet-Cookie:%20a=b",
		"/\u560a\u560dSet-Cookie:a=b":                    "/\u560a\u560dSet-Cookie:a=b", // whose low bytes are LF and CR
	} {
		w.say(ask("/?" + sent))
		head := w.head("HTTP/1.1 302 ")
		if got := fields(head, "Location"); !slices.Equal(got, []string{want}) || fields(head, "Set-Cookie") != nil {
			t.Errorf("%q: %q", sent, head)
		}
	}
}
