package forward

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/splice"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// incompressible is size bytes that do not repeat; the same for the same seed.
func incompressible(seed byte, size int) string {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return string(b)
}

// kept closes the pipes that nobody uses and gives what tells whether one was used and kept since.
func kept(t testing.TB) (pipes func() int) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("there is no splice(2) here")
	}
	nodetest.Eventually(t, "the pipes of the tests before are closed", func() bool {
		splice.CloseIdle()
		return splice.Open() == 0
	})
	t.Cleanup(splice.CloseIdle)
	return splice.Open
}

// chunk is body as one chunk.
func chunk(body string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(body), body) }

const largeSize = 1 << 20

func TestLargeAnswersAreSpliced(t *testing.T) {
	large := incompressible(1, largeSize)
	length := func(body string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(body))
	}
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	const close = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
	for name, c := range map[string]struct {
		request string // ask("/") if empty
		head    string
		sent    string
		body    string // sent if empty
		spliced bool
	}{
		"by length":               {head: length(large), sent: large, spliced: true},
		"a large chunk":           {head: chunked, sent: chunk("abc") + chunk(large) + chunk("d") + "0\r\n\r\n", body: "abc" + large + "d", spliced: true},
		"large chunks, trailer":   {head: chunked, sent: chunk(large) + chunk(large) + "0\r\nX-T: a\r\n\r\n", body: large + large, spliced: true},
		"chunks to HTTP/1.0":      {request: "GET / HTTP/1.0\r\nHost: x\r\n\r\n", head: chunked, sent: chunk(large) + "0\r\n\r\n", body: large, spliced: true},
		"until close to HTTP/1.0": {request: "GET / HTTP/1.0\r\nHost: x\r\n\r\n", head: close, sent: large, spliced: true},
		"until close, in chunks":  {head: close, sent: large},
		"a small one":             {head: length(large[:spliceLeast-1]), sent: large[:spliceLeast-1]},
		"small chunks":            {head: chunked, sent: strings.Repeat(chunk(large[:1000]), 300) + "0\r\n\r\n", body: strings.Repeat(large[:1000], 300)},
	} {
		t.Run(name, func(t *testing.T) {
			pipes := kept(t)
			b, _ := scripted(t, func(w *wire) {
				for range 2 {
					if _, _, ok := w.request(); !ok {
						return
					}
					io.WriteString(w, c.head)
					io.WriteString(w, c.sent)
					if c.head == close {
						return
					}
				}
			})
			p := start(t, whole(b.Port()))
			w := connect(t, p)
			request, want := c.request, c.body
			if request == "" {
				request = ask("/")
			}
			if want == "" {
				want = c.sent
			}
			for range 2 {
				w.say(request)
				res, got, err := w.answer("GET")
				if err != nil || sha256.Sum256([]byte(got)) != sha256.Sum256([]byte(want)) {
					t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
				}
				if strings.Contains(c.sent, "X-T") && res.Trailer.Get("X-T") != "a" {
					t.Errorf("trailers %v", res.Trailer)
				}
				if res.Close {
					w.ended()
					w = connect(t, p)
				}
			}
			nodetest.Eventually(t, "all of it is counted", func() bool {
				return metric(t, p, "pyserve_request_bytes_total", "route", "/", "direction", "sent") >= float64(2*len(want))
			})
			if c.spliced {
				nodetest.Eventually(t, "a pipe was used", func() bool { return pipes() > 0 })
			} else if n := pipes(); n != 0 {
				t.Errorf("%d pipes were used", n)
			}
		})
	}
}

func TestLargeUploadsAreSpliced(t *testing.T) {
	large := incompressible(2, largeSize)
	for name, c := range map[string]struct {
		sent, body string
		spliced    bool
	}{
		"by length":     {fmt.Sprintf("Content-Length: %d\r\n\r\n%s", largeSize, large), large, true},
		"large chunks":  {"Transfer-Encoding: chunked\r\n\r\n" + chunk("ab") + chunk(large) + chunk(large) + "0\r\n\r\n", "ab" + large + large, true},
		"with trailers": {"Transfer-Encoding: chunked\r\n\r\n" + chunk(large) + "0\r\nX-T: a\r\n\r\n", large, true},
		"a small one":   {fmt.Sprintf("Content-Length: %d\r\n\r\n%s", spliceLeast-1, large[:spliceLeast-1]), large[:spliceLeast-1], false},
	} {
		t.Run(name, func(t *testing.T) {
			pipes := kept(t)
			b, conns := scripted(t, func(w *wire) {
				for {
					r, body, ok := w.request()
					if !ok {
						return
					}
					io.WriteString(w, sized(fmt.Sprintf("%x%s", sha256.Sum256([]byte(body)), r.Trailer.Get("X-T"))))
				}
			})
			p := start(t, whole(b.Port()))
			w := connect(t, p)
			want := fmt.Sprintf("%x", sha256.Sum256([]byte(c.body)))
			if strings.Contains(c.sent, "X-T") {
				want += "a"
			}
			for range 3 {
				w.say("POST / HTTP/1.1\r\nHost: x\r\n" + c.sent)
				if res := w.want("POST", 200, want); res.Close {
					t.Error("the connection does not go on")
				}
			}
			if n := conns(); n != 1 {
				t.Errorf("%d connections to the backend, want one that is kept", n)
			}
			if used := pipes() > 0; used != c.spliced {
				t.Errorf("a pipe was used: %t, want %t", used, c.spliced)
			}
			nodetest.Eventually(t, "all of it is counted", func() bool {
				return metric(t, p, "pyserve_request_bytes_total", "route", "/", "direction", "received") >= float64(3*len(c.body))
			})
		})
	}
}

func TestWhatIsNoPlainTCPIsCopied(t *testing.T) {
	large := incompressible(3, largeSize)
	front, config := secure(t)
	for name, s := range map[string]settings{
		"TLS of the client": {tls: front},
		"a dialer's own":    {dial: dialWrapped},
	} {
		t.Run(name, func(t *testing.T) {
			pipes := kept(t)
			b, _ := scripted(t, echoing)
			p := startWith(t, s, whole(b.Port()))
			w := connect(t, p)
			if s.tls != nil {
				w = connectTLS(t, p, config)
			}
			w.say(fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", largeSize, large))
			w.want("POST", 200, large)
			if n := pipes(); n != 0 {
				t.Errorf("%d pipes were used", n)
			}
		})
	}
}

// wrapped is a connection that is not known to be TCP.
type wrapped struct{ net.Conn }

func dialWrapped(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return wrapped{c}, nil
}

// reset ends w's connection as a crash does.
func (w *wire) reset() {
	w.Conn.(*net.TCPConn).SetLinger(0)
	w.Close()
}

func TestASplicedAnswerThatBreaksOffLooksBroken(t *testing.T) {
	large := incompressible(4, largeSize)
	ask10 := "GET / HTTP/1.0\r\nHost: x\r\n\r\n"
	for name, c := range map[string]struct {
		request, head string
		end           func(*wire)
	}{
		"by length, end":     {ask("/"), fmt.Sprintf("Content-Length: %d\r\n\r\n", 2*largeSize), func(w *wire) { w.Close() }},
		"by length, reset":   {ask("/"), fmt.Sprintf("Content-Length: %d\r\n\r\n", 2*largeSize), (*wire).reset},
		"chunk, end":         {ask("/"), fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n", 2*largeSize), func(w *wire) { w.Close() }},
		"chunk, HTTP/1.0":    {ask10, fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n", 2*largeSize), func(w *wire) { w.Close() }},
		"until close, reset": {ask10, "\r\n", (*wire).reset},
	} {
		t.Run(name, func(t *testing.T) {
			pipes, read := kept(t), make(chan struct{})
			b, _ := scripted(t, func(w *wire) {
				w.request()
				io.WriteString(w, "HTTP/1.1 200 OK\r\n"+c.head)
				io.WriteString(w, large)
				<-read // a reset destroys what was not read
				c.end(w)
			})
			p := start(t, whole(b.Port()))
			w := connect(t, p)
			w.say(c.request)
			w.head("HTTP/1.1 200 ")
			got := w.read(largeSize)
			close(read)
			if rest, err := io.ReadAll(w.in); !strings.Contains(got+string(rest), large[:1000]) || strings.Contains(c.request, "1.0") && err == nil {
				t.Errorf("the end looks like one: %v", err)
			}
			nodetest.Eventually(t, "it is counted as the backend's doing", func() bool {
				return metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "upstream_after_bytes") == 1
			})
			nodetest.Eventually(t, "a pipe was used", func() bool { return pipes() > 0 })
		})
	}
}

func TestAClientThatResetsASplicedAnswer(t *testing.T) {
	pipes, ended := kept(t), make(chan struct{})
	b, _ := scripted(t, func(w *wire) {
		defer close(ended)
		w.request()
		fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", int64(1)<<40)
		io.CopyN(w, &zeros{left: 1 << 40}, 1<<40)
	})
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say(ask("/"))
	w.head("HTTP/1.1 200 ")
	w.read(largeSize)
	if pipes() == 0 {
		t.Error("no pipe is used")
	}
	w.reset()
	wait(t, "the backend's connection ends", ended)
	nodetest.Eventually(t, "it is counted as the client's doing", func() bool {
		return metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "client") == 1
	})
}

func TestAPipeThatIsInterruptedWithBytesInItIsClosed(t *testing.T) {
	pipes, ended := kept(t), make(chan struct{})
	b, _ := scripted(t, func(w *wire) {
		defer close(ended)
		w.request()
		fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", int64(1)<<40)
		io.CopyN(w, &zeros{left: 1 << 40}, 1<<40)
	})
	p := start(t, within(&resourcev1.Timeouts{Idle: seconds(short)}, whole(b.Port())))
	w := connect(t, p)
	w.say(ask("/"))
	w.head("HTTP/1.1 200 ")
	if w.read(200 << 10); pipes() == 0 {
		t.Error("no pipe is used")
	}
	wait(t, "the backend's connection ends", ended) // the client does not read on
	nodetest.Eventually(t, "the pipe is closed", func() bool { return pipes() == 0 })
	nodetest.Eventually(t, "it is counted as the client's doing", func() bool {
		return metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "client") == 1
	})
}

func TestSplicedUploadsThatDoNotComeToTheirEnd(t *testing.T) {
	large := incompressible(5, largeSize)
	for name, c := range map[string]struct {
		end    func(*wire)
		status int // 0: there is no answer
	}{
		"closed": {func(w *wire) { w.Close() }, 0},
		"reset":  {(*wire).reset, 0},
		"stood":  {func(*wire) {}, 408},
	} {
		t.Run(name, func(t *testing.T) {
			pipes, took, ended := kept(t), make(chan struct{}), make(chan struct{})
			b, _ := scripted(t, func(w *wire) {
				defer close(ended)
				nodetest.ReadHead(w.in)
				io.CopyN(io.Discard, w.in, largeSize)
				close(took)
				io.Copy(io.Discard, w.in)
			})
			p := start(t, within(&resourcev1.Timeouts{Idle: seconds(3 * short)}, whole(b.Port())))
			w := connect(t, p)
			w.say(fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", 2*largeSize, large))
			wait(t, "the backend has half of it", took)
			if c.end(w); c.status != 0 {
				if res, _, err := w.answer("POST"); err != nil || res.StatusCode != c.status || !res.Close {
					t.Error(res, err)
				}
			}
			wait(t, "the backend's connection ends", ended)
			nodetest.Eventually(t, "it is counted as the client's doing", func() bool {
				return metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "client") == 1
			})
			nodetest.Eventually(t, "a pipe was used", func() bool { return pipes() > 0 })
		})
	}
}

func TestABackendThatAnswersInTheMiddleOfASplicedUpload(t *testing.T) {
	kept(t)
	b, _ := scripted(t, func(w *wire) {
		nodetest.ReadHead(w.in)
		io.CopyN(io.Discard, w.in, largeSize)
		io.WriteString(w, sized("enough"))
		io.Copy(io.Discard, w.in)
	})
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say(fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", int64(1)<<40))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		io.CopyN(w, &zeros{left: 1 << 40}, 1<<40)
	}()
	if res := w.want("POST", 200, "enough"); !res.Close {
		t.Error("the connection is to go on")
	}
	w.Close()
	wait(t, "the client ends", sent)
}

// paced writes body in pieces, one each interval.
func paced(w io.Writer, body string, pieces int, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for size := len(body) / pieces; len(body) > 0; {
		n := min(size, len(body))
		if _, err := io.WriteString(w, body[:n]); err != nil {
			return err
		}
		body = body[n:]
		<-tick.C
	}
	return nil
}

func TestWhatIsSlowButSteadyIsSplicedToItsEnd(t *testing.T) {
	const idle, pieces, interval = 400 * time.Millisecond, 16, 60 * time.Millisecond // 0.96 s together
	large := incompressible(6, largeSize)
	for name, slow := range map[string]struct{ up, down bool }{"client": {up: true}, "backend": {down: true}} {
		t.Run(name, func(t *testing.T) {
			pipes := kept(t)
			b, _ := scripted(t, func(w *wire) {
				_, body, _ := w.request()
				fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(body))
				if slow.down {
					paced(w, body, pieces, interval)
				} else {
					io.WriteString(w, body)
				}
			})
			p := start(t, within(&resourcev1.Timeouts{Idle: seconds(idle), ResponseHeader: seconds(10 * time.Second)}, whole(b.Port())))
			w := connect(t, p)
			w.say(fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", largeSize))
			if slow.up {
				if err := paced(w, large, pieces, interval); err != nil {
					t.Error(err)
				}
			} else {
				w.say(large)
			}
			w.want("POST", 200, large)
			nodetest.Eventually(t, "a pipe was used", func() bool { return pipes() > 0 })
		})
	}
}

func TestAClientThatReadsSlowlyButSteadilyGetsEverything(t *testing.T) {
	const size, idle, interval, piece = 24 << 20, 2 * time.Second, 20 * time.Millisecond, 128 << 10 // 3.8 s together
	pipes := kept(t)
	body := incompressible(7, size)
	b, _ := scripted(t, func(w *wire) {
		w.request()
		io.WriteString(w, sized(body))
	})
	p := start(t, within(&resourcev1.Timeouts{Idle: seconds(idle)}, whole(b.Port())))
	w := connect(t, p)
	w.say(ask("/"))
	w.head("HTTP/1.1 200 ")
	tick := time.NewTicker(interval)
	defer tick.Stop()
	sum := sha256.New()
	for left := int64(size); left > 0; <-tick.C {
		n, err := io.CopyN(sum, w.in, min(left, piece))
		if left -= n; err != nil {
			t.Fatalf("%d bytes before the end: %v", left, err)
		}
	}
	if want := sha256.Sum256([]byte(body)); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("the bytes differ")
	}
	nodetest.Eventually(t, "a pipe was used", func() bool { return pipes() > 0 })
}

// echoing sends each request's body back.
func echoing(w *wire) {
	for {
		_, body, ok := w.request()
		if !ok {
			return
		}
		io.WriteString(w, sized(body))
	}
}

func TestConcurrentSplicesDoNotMix(t *testing.T) {
	pipes := kept(t)
	b, _ := scripted(t, echoing)
	p := start(t, whole(b.Port()))
	before := descriptors(t)
	var clients sync.WaitGroup
	for i := range 12 {
		w := connect(t, p)
		clients.Go(func() {
			defer w.Close()
			sizes := rand.New(rand.NewPCG(8, uint64(i)))
			for round := range 6 {
				if err := w.echoed(incompressible(byte(6*i+round), sizes.IntN(2<<20))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	if clients.Wait(); pipes() == 0 {
		t.Error("no pipe was used")
	}
	splice.CloseIdle()
	// What is left are idle connections to the backend, both ends of which are in this process.
	nodetest.Eventually(t, "the descriptors are closed", func() bool { return descriptors(t) <= before+2*12 })
	if n := pipes(); n != 0 {
		t.Errorf("%d pipes are open", n)
	}
}

// echoed sends body and wants it back, both at once.
func (w *wire) echoed(body string) error {
	sent := make(chan error, 1)
	go func() {
		_, err := fmt.Fprintf(w, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		sent <- err
	}()
	res, got, err := w.answer("PUT")
	if err == nil && (got != body || res.Close) {
		err = fmt.Errorf("%d bytes came back of %d, close %t", len(got), len(body), res.Close)
	}
	return errors.Join(err, <-sent)
}

// descriptors is how many the process has open.
func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// BenchmarkLargeAnswer has both ways that a body may go: a connection that is not known to be TCP is copied from.
func BenchmarkLargeAnswer(b *testing.B) {
	for _, size := range []int{128 << 10, largeSize, 16 << 20} {
		b.Run(fmt.Sprintf("%dKiB/copy", size>>10), func(b *testing.B) { benchmarkAnswer(b, size, settings{dial: dialWrapped}) })
		b.Run(fmt.Sprintf("%dKiB/splice", size>>10), func(b *testing.B) { benchmarkAnswer(b, size, settings{}) })
	}
}

func benchmarkAnswer(b *testing.B, size int, s settings) {
	answer := []byte(sized(string(make([]byte, size))))
	question := []byte(ask("/"))
	back, _ := scripted(b, func(w *wire) {
		asked := make([]byte, 4<<10)
		for {
			if _, err := w.Read(asked); err != nil { // all of it: it is short
				return
			}
			if _, err := w.Write(answer); err != nil {
				return
			}
		}
	})
	s.options.Logger = slog.New(slog.DiscardHandler)
	w := connect(b, startWith(b, s, whole(back.Port())))
	w.Write(question)
	length := int64(len(w.head("HTTP/1.1 200 ")) + size)
	w.read(size)
	into := make([]byte, 256<<10)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		w.SetDeadline(time.Now().Add(time.Minute))
		w.Write(question)
		for left := length; left > 0; {
			n, err := w.Conn.Read(into)
			if left -= int64(n); err != nil {
				b.Fatal(err)
			}
		}
	}
}
