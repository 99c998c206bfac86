package forward

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// short is a limit that is meant to be reached.
const short = 150 * time.Millisecond

// within is s with these timeouts.
func within(timeouts *resourcev1.Timeouts, s site) site {
	s.route.Timeouts = timeouts
	return s
}

func seconds(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

// wire is a connection that is spoken over by hand.
type wire struct {
	net.Conn
	t  testing.TB
	in *bufio.Reader
}

func newWire(t testing.TB, c net.Conn) *wire { return &wire{Conn: c, t: t, in: bufio.NewReader(c)} }

// connect is a client's connection to p.
func connect(t testing.TB, p *proxy) *wire {
	t.Helper()
	return newWire(t, nodetest.Dial(t, p.address))
}

// connectTLS is one over TLS, HTTP/1.1.
func connectTLS(t testing.TB, p *proxy, config *tls.Config) *wire {
	t.Helper()
	return newWire(t, tls.Client(nodetest.Dial(t, p.address), config))
}

// secure is both sides' settings of a front that speaks TLS.
func secure(t testing.TB) (front, client *tls.Config) {
	t.Helper()
	authority := certtest.New(t)
	front = &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS}, NextProtos: []string{"http/1.1"}}
	return front, &tls.Config{RootCAs: authority.Pool(), ServerName: "127.0.0.1"}
}

// say sends text.
func (w *wire) say(text string) {
	w.t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		w.t.Fatalf("send %.60q: %v", text, err)
	}
}

// head is the next head as it came; it must begin so.
func (w *wire) head(begin string) string {
	w.t.Helper()
	head, err := nodetest.ReadHead(w.in)
	if err != nil || !strings.HasPrefix(head, begin) {
		w.t.Fatalf("head %q %v, want %q", head, err, begin)
	}
	return head
}

// read is the next n bytes.
func (w *wire) read(n int) string {
	w.t.Helper()
	b := make([]byte, n)
	if got, err := io.ReadFull(w.in, b); err != nil {
		w.t.Fatalf("%q, then %v", b[:got], err)
	}
	return string(b)
}

// answer reads an answer to its end, as net/http understands it.
func (w *wire) answer(method string) (*http.Response, string, error) {
	res, err := http.ReadResponse(w.in, &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

// want is answer, which must be complete.
func (w *wire) want(method string, status int, body string) *http.Response {
	w.t.Helper()
	res, got, err := w.answer(method)
	if err != nil || res.StatusCode != status || got != body {
		w.t.Fatalf("%v %q %v, want %d %q", res, got, err, status, body)
	}
	return res
}

// ended wants the connection to end without another byte, whether in order or not.
func (w *wire) ended() {
	w.t.Helper()
	rest, err := io.ReadAll(w.in)
	if len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Errorf("want the connection to end, got %q %v", rest, err)
	}
}

// ask is a GET of path.
func ask(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" }

// sized is an answer with a body of known length.
func sized(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// mirror answers every request with "METHOD target body", and "trailer" if there was one.
func mirror(t testing.TB) *nodetest.RawBackend {
	t.Helper()
	return nodetest.NewRawBackend(t, func(c net.Conn) {
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
			text := strings.TrimSpace(r.Method + " " + r.RequestURI + " " + string(body) + " " + r.Trailer.Get("X-T"))
			if _, err := io.WriteString(c, sized(text)); err != nil {
				return
			}
		}
	})
}

// step is what a scripted backend does on one connection.
type step func(*wire)

// scripted gives each connection its steps, in the order that they come; the last ones for all that come later. The test's
// failures are reported from the backend's goroutine, so steps must not use what ends it.
func scripted(t testing.TB, conns ...step) (*nodetest.RawBackend, func() int) {
	t.Helper()
	turn := make(chan int, 1)
	turn <- 0
	b := nodetest.NewRawBackend(t, func(c net.Conn) {
		n := <-turn
		turn <- n + 1
		conns[min(n, len(conns)-1)](newWire(t, c))
	})
	return b, func() int {
		n := <-turn
		turn <- n
		return n
	}
}

// request reads a request with its body; false where there is none.
func (w *wire) request() (*http.Request, string, bool) {
	r, err := http.ReadRequest(w.in)
	if err != nil {
		return nil, "", false
	}
	body, err := io.ReadAll(r.Body)
	return r, string(body), err == nil
}

// serve answers each request with answer until the connection ends.
func serve(answer string) step {
	return func(w *wire) {
		for {
			if _, _, ok := w.request(); !ok {
				return
			}
			io.WriteString(w, answer)
		}
	}
}

// dialing connects as net does, and gives what wrap makes of it.
func dialing(wrap func(net.Conn) net.Conn) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return wrap(c), nil
	}
}

// deaf is a connection that the other side has reset.
type deaf struct{ net.Conn }

func (deaf) Write([]byte) (int, error) { return 0, syscall.ECONNRESET }
func (deaf) Read([]byte) (int, error)  { return 0, syscall.ECONNRESET }
