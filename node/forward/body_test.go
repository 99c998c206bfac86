package forward

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pyserve/pyserve/node/nodetest"
)

// sizes are those around the edges of buffers: of the engine's own, of what one read may bring, and of chunk sizes' digits.
var sizes = []int{
	0, 1, 2, 15, 16, 255, 256, 4095, 4096, 4097, inSize - 1000, inSize - 1, inSize, inSize + 1,
	backSize - headroom - 1, backSize - headroom, backSize - headroom + 1, backSize - 1, backSize, backSize + 1,
	64<<10 - 1, 64 << 10, 64<<10 + 1, 1 << 20,
}

// pieces writes body as it is or in chunks, in pieces of random sizes.
type pieces struct {
	random  *rand.Rand
	chunked bool
	odd     bool // chunks are written in odd but valid ways: extensions, leading zeros, capitals
}

func (p pieces) write(w io.Writer, body []byte) error {
	out := bufio.NewWriterSize(w, 1+p.random.IntN(20000)) // so that writes end anywhere
	for len(body) > 0 {
		n := min(len(body), 1+p.random.IntN(1<<(1+p.random.IntN(17))))
		if p.chunked {
			out.WriteString(p.line(n))
		}
		out.Write(body[:n])
		if p.chunked {
			out.WriteString("\r\n")
		}
		body = body[n:]
		if p.random.IntN(4) == 0 {
			out.Flush()
		}
	}
	if p.chunked {
		out.WriteString("0\r\n\r\n")
	}
	return out.Flush()
}

// line is what begins a chunk of n bytes.
func (p pieces) line(n int) string {
	if !p.odd {
		return fmt.Sprintf("%x\r\n", n)
	}
	switch p.random.IntN(4) {
	case 0:
		return fmt.Sprintf("%X\r\n", n)
	case 1:
		return fmt.Sprintf("000%x\r\n", n)
	case 2:
		return fmt.Sprintf("%x;name=value;other=\"a quoted; string\"\r\n", n)
	}
	return fmt.Sprintf("%x;x\r\n", n)
}

// reflect sends each request's body back, framed as X-Answer says.
func reflect(t testing.TB) *nodetest.RawBackend {
	t.Helper()
	seed := new(atomic.Uint64)
	return nodetest.NewRawBackend(t, func(c net.Conn) {
		random := rand.New(rand.NewPCG(3, seed.Add(1)))
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			head := fmt.Sprintf("HTTP/1.1 200 OK\r\nX-Sum: %x\r\n", sha256.Sum256(body))
			how := r.Header.Get("X-Answer")
			switch how {
			case "length":
				head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
			case "chunked":
				head += "Transfer-Encoding: chunked\r\n"
			}
			if _, err := io.WriteString(c, head+"\r\n"); err != nil {
				return
			}
			if (pieces{random, how == "chunked", random.IntN(2) == 0}).write(c, body) != nil || how == "close" {
				return
			}
		}
	})
}

func TestBodiesPassAsTheyAre(t *testing.T) {
	p := start(t, whole(reflect(t).Port()))
	random := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, slices.Max(sizes))
	for i := range content {
		content[i] = byte(random.Uint32())
	}
	for _, framing := range []string{"length", "chunked", "odd chunks"} {
		for _, answer := range []string{"length", "chunked", "close"} {
			t.Run(framing+" and "+answer, func(t *testing.T) {
				w := connect(t, p)
				for _, size := range sizes {
					body := content[len(content)-size:]
					head := "PUT / HTTP/1.1\r\nHost: x\r\nX-Answer: " + answer + "\r\n"
					if framing == "length" {
						head += fmt.Sprintf("Content-Length: %d\r\n", size)
					} else {
						head += "Transfer-Encoding: chunked\r\n"
					}
					sent := make(chan error, 1)
					go func() {
						_, err := io.WriteString(w, head+"\r\n")
						if err == nil {
							err = (pieces{random, framing != "length", framing == "odd chunks"}).write(w, body)
						}
						sent <- err
					}()
					res, got, err := w.answer("PUT")
					if err != nil || got != string(body) || res.Header.Get("X-Sum") != fmt.Sprintf("%x", sha256.Sum256(body)) {
						t.Fatalf("%d bytes: %v, got %d, %v", size, res, len(got), err)
					}
					if err := <-sent; err != nil || res.Close {
						t.Fatalf("%d bytes: %v, close %t", size, err, res.Close)
					}
				}
			})
		}
	}
}

func TestChunkExtensionsEndHere(t *testing.T) {
	const body = "3;a=b\r\nabc\r\n0002;c=\"d;e\"\r\nde\r\n0;last\r\n\r\n"
	got := make(chan string, 1)
	b, _ := scripted(t, func(w *wire) {
		head, _ := nodetest.ReadHead(w.in)
		_ = head
		got <- w.read(len("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
		io.WriteString(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
		w.request()
	})
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
	const want = "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
	w.head("HTTP/1.1 200 ")
	if answer := w.read(len(want)); answer != want {
		t.Errorf("the client got %q", answer)
	}
	if request := <-got; request != want {
		t.Errorf("the backend got %q", request)
	}
}

func TestTrailersThatMustNotPass(t *testing.T) {
	const dropped = "X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\nAuthorization: Basic eA==\r\nCookie: a=b\r\n" +
		"Connection: close\r\nUpgrade: x\r\nX-Named: 1\r\nContent-Type: text/html\r\nVia: 1.0 fred\r\n"
	got := make(chan string, 1)
	b, _ := scripted(t, func(w *wire) {
		nodetest.ReadHead(w.in)
		w.read(len("3\r\nabc\r\n0\r\n"))
		trailers, _ := nodetest.ReadHead(w.in)
		got <- trailers
		io.WriteString(w, "HTTP/1.1 200 OK\r\nConnection: x-named\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"+dropped+"X-Kept: 2\r\n\r\n")
		w.request()
	})
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say("POST / HTTP/1.1\r\nHost: x\r\nConnection: x-named\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + dropped + "X-Kept: 1\r\n\r\n")
	w.head("HTTP/1.1 200 ")
	w.read(len("3\r\nabc\r\n0\r\n"))
	trailers, err := nodetest.ReadHead(w.in)
	for who, trailers := range map[string]string{"client": trailers, "backend": <-got} {
		trailers = strings.ReplaceAll(trailers, "Via: 1.0 fred\r\n", "") // nothing is said of it
		if err != nil || !strings.HasPrefix(trailers, "X-Kept: ") || len(lines(trailers)) != 1 {
			t.Errorf("the %s got %q %v", who, trailers, err)
		}
	}
}

func TestTrailersThatWouldFrameAnewAreRefused(t *testing.T) {
	for _, trailer := range []string{"Content-Length: 5", "Transfer-Encoding: chunked", "Host: y", "X: a\x00b", "X : y", " folded", "X: a\rb"} {
		b, _ := scripted(t, func(w *wire) {
			if _, body, ok := w.request(); ok {
				t.Errorf("%q: the backend got a complete request with %q", trailer, body)
			}
		})
		p := start(t, whole(b.Port()))
		w := connect(t, p)
		w.say("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + trailer + "\r\n\r\n" + ask("/next"))
		if res, _, err := w.answer("POST"); err != nil || res.StatusCode != 400 || !res.Close {
			t.Errorf("%q: %v %v", trailer, res, err)
		}
		w.ended()
		// The same from a backend.
		p = start(t, whole(answering(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"+trailer+"\r\n\r\n").Port()))
		w = connect(t, p)
		w.say(ask("/"))
		if res, body, err := w.answer("GET"); err == nil && res.StatusCode != 502 {
			t.Errorf("%q: %q looks complete", trailer, body)
		}
	}
}

// TestAnswersToHTTP10 is RFC 9112 section 9.3: such a connection is kept only where the end of the body can be told without chunks.
func TestAnswersToHTTP10(t *testing.T) {
	for name, c := range map[string]struct {
		request, answer, want string
		closes                bool
	}{
		"length":               {"", sized("abc"), "abc", true},
		"length, keep-alive":   {"Connection: keep-alive\r\n", sized("abc"), "abc", false},
		"chunks":               {"", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n2\r\nbc\r\n0\r\nX-T: 1\r\n\r\n", "abc", true},
		"chunks, keep-alive":   {"Connection: keep-alive\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "abc", true},
		"until close":          {"", "HTTP/1.1 200 OK\r\n\r\nabc", "abc", true},
		"until close, kept":    {"Connection: keep-alive\r\n", "HTTP/1.1 200 OK\r\n\r\nabc", "abc", true},
		"nothing, keep-alive":  {"Connection: keep-alive\r\n", emptyAnswer, "", false},
		"204, keep-alive":      {"Connection: keep-alive\r\n", "HTTP/1.1 204 No Content\r\n\r\n", "", false},
		"empty chunks, closed": {"Connection: keep-alive\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, whole(answering(t, c.answer).Port()))
			w := connect(t, p)
			request := "GET / HTTP/1.0\r\n" + c.request + "\r\n"
			w.say(request)
			head := w.head("HTTP/1.1 20")
			if fields(head, "Transfer-Encoding") != nil {
				t.Errorf("HTTP/1.0 knows no chunks: %q", head)
			}
			want := []string{"close"}
			if !c.closes {
				want = []string{"keep-alive"}
			}
			if got := fields(head, "Connection"); !slices.Equal(got, want) {
				t.Errorf("Connection: %q, want %q", got, want)
			}
			if got := w.read(len(c.want)); got != c.want {
				t.Errorf("%q", got)
			}
			if c.closes {
				w.ended()
				return
			}
			w.say(request)
			w.head("HTTP/1.1 20")
		})
	}
}

func TestABodyUntilCloseBecomesChunks(t *testing.T) {
	for _, body := range []string{"", "a", strings.Repeat("b", 100<<10)} {
		p := start(t, whole(answering(t, "HTTP/1.1 200 OK\r\n\r\n"+body).Port()))
		w := connect(t, p)
		for range 2 {
			w.say(ask("/"))
			if res := w.want("GET", 200, body); !slices.Equal(res.TransferEncoding, []string{"chunked"}) || res.Close {
				t.Errorf("%d bytes: %q, close %t", len(body), res.TransferEncoding, res.Close)
			}
		}
	}
}

func TestASlowReaderGetsEverything(t *testing.T) {
	const size = 32 << 20
	var sent atomic.Int64
	content := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	b, _ := scripted(t, func(w *wire) {
		w.request()
		fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
		for sent.Load() < size {
			n, err := w.Write(content)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	})
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say(ask("/"))
	last, still := int64(-1), 0
	nodetest.Eventually(t, "the backend cannot send more", func() bool {
		now := sent.Load()
		if now > 0 && now == last {
			still++
		} else {
			last, still = now, 0
		}
		return still > 20
	})
	if sent.Load() == size {
		t.Error("all of it is somewhere between backend and client")
	}
	res, err := http.ReadResponse(w.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	sum, want := sha256.New(), sha256.New()
	for range size / len(content) {
		want.Write(content)
	}
	if n, err := io.Copy(sum, res.Body); err != nil || n != size || !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
		t.Errorf("%d bytes: %v", n, err)
	}
}

func TestAnEarlyAnswerOutlivesTheBackendThatDoesNotReadOn(t *testing.T) {
	// It closes with bytes of the body unread, so that what was sent is followed by a RST.
	b, _ := scripted(t, func(w *wire) {
		nodetest.ReadHead(w.in)
		io.WriteString(w, "HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nbig\n")
	})
	p := start(t, whole(b.Port()))
	for range 20 {
		w := connect(t, p)
		w.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			io.CopyN(w, &zeros{left: 1e8}, 1e8)
		}()
		if res, body, err := w.answer("POST"); err != nil || res.StatusCode != 413 || body != "big\n" || !res.Close {
			t.Errorf("%v %q %v", res, body, err)
		}
		w.Close()
		<-sent
	}
}
