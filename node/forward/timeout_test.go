package forward

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyserve/pyserve/node/meter"
	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/tunnel"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// silence reads for ever, and tells when the connection ends.
func silence(ended chan<- struct{}) step {
	return func(w *wire) {
		io.Copy(io.Discard, w.in)
		close(ended)
	}
}

// wait is for what has to happen, and soon.
func wait(t testing.TB, what string, happened <-chan struct{}) {
	t.Helper()
	timer := time.NewTimer(20 * time.Second)
	defer timer.Stop()
	select {
	case <-happened:
	case <-timer.C:
		t.Fatalf("never came true: %s", what)
	}
}

func TestABackendThatIsTooSlowEndsNoConnectionOfTheClient(t *testing.T) {
	ended := make(chan struct{})
	b, _ := scripted(t, silence(ended), serve(sized("fast")))
	p := start(t, answersWithin(short, whole(b.Port())))
	w := connect(t, p)
	w.say(ask("/") + ask("/"))
	if res, body, err := w.answer("GET"); err != nil || res.StatusCode != 504 || res.Close || !strings.Contains(body, "did not answer in time") {
		t.Fatal(res, body, err)
	}
	wait(t, "the backend's connection ends", ended)
	w.want("GET", 200, "fast")
}

func TestTheTimeForAnAnswerBeginsWhenTheRequestHasEnded(t *testing.T) {
	ended := make(chan struct{})
	b, _ := scripted(t, silence(ended))
	p := start(t, answersWithin(short, whole(b.Port())))
	w := connect(t, p)
	w.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
	begun := time.Now()
	nodetest.Eventually(t, "the limit would be over", func() bool { return time.Since(begun) > 2*short })
	select {
	case <-ended:
		t.Fatal("the request had not ended")
	default:
	}
	w.say("ab")
	if res, _, err := w.answer("POST"); err != nil || res.StatusCode != 504 {
		t.Error(res, err)
	}
	wait(t, "the backend's connection ends", ended)
}

func TestAnUploadThatStandsStillIs408(t *testing.T) {
	for name, body := range map[string]string{
		"nothing": "Content-Length: 10\r\n\r\n", "some": "Content-Length: 10\r\n\r\nabc",
		"no chunk": "Transfer-Encoding: chunked\r\n\r\n", "half a chunk": "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
		"no last chunk": "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", "half a trailer": "Transfer-Encoding: chunked\r\n\r\n0\r\nX-T: a",
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan struct{})
			b, conns := scripted(t, silence(ended))
			p := start(t, within(&resourcev1.Timeouts{Idle: seconds(short)}, whole(b.Port())))
			w := connect(t, p)
			w.say("PUT / HTTP/1.1\r\nHost: x\r\n" + body)
			if res, text, err := w.answer("PUT"); err != nil || res.StatusCode != 408 || !res.Close {
				t.Error(res, text, err)
			}
			w.ended()
			wait(t, "the backend's connection ends", ended)
			if n := conns(); n != 1 {
				t.Errorf("%d connections: a request whose body did not come is not repeated", n)
			}
			if n := metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "client"); n != 1 {
				t.Errorf("%v failures of clients", n)
			}
		})
	}
}

func TestABackendThatDoesNotTakeTheUploadIs504(t *testing.T) {
	release := make(chan struct{})
	b, _ := scripted(t, func(*wire) { <-release })
	t.Cleanup(func() { close(release) })
	p := start(t, within(&resourcev1.Timeouts{Idle: seconds(short)}, whole(b.Port())))
	w := connect(t, p)
	const size = 1 << 30 // more than all sockets between hold
	w.say(fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		io.CopyN(w, &zeros{left: size}, size) // until the proxy has had enough
	}()
	if res, text, err := w.answer("POST"); err != nil || res.StatusCode != 504 || !res.Close {
		t.Error(res, text, err)
	}
	w.Close()
	wait(t, "the client ends", sent)
}

func TestABackendThatDoesNotTakeTheUploadEndsNoConnectionOfTheClient(t *testing.T) {
	asked := make(chan struct{})
	pipes := make(chan step, 2)
	pipes <- func(w *wire) {
		nodetest.ReadHead(w.in)
		close(asked)
		<-t.Context().Done() // a pipe holds nothing: what is not read was not written
	}
	pipes <- serve(sized("next"))
	var backends sync.WaitGroup
	t.Cleanup(backends.Wait)
	p := startWith(t, settings{dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		backends.Go(func() { (<-pipes)(newWire(t, theirs)) })
		return ours, nil
	}}, within(&resourcev1.Timeouts{Idle: seconds(short)}, whole(1)))
	w := connect(t, p)
	w.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
	wait(t, "the backend is asked", asked)
	w.say("abc")
	if res, _, err := w.answer("POST"); err != nil || res.StatusCode != 504 || res.Close {
		t.Fatal(res, err)
	}
	w.say(ask("/"))
	w.want("GET", 200, "next")
}

func TestAnAnswerThatStandsStillIsCut(t *testing.T) {
	for name, answer := range map[string]string{
		"length": "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "some": "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "until close": "HTTP/1.1 200 OK\r\n\r\nabc",
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan struct{})
			b, _ := scripted(t, func(w *wire) {
				w.request()
				io.WriteString(w, answer)
				silence(ended)(w)
			})
			p := start(t, within(&resourcev1.Timeouts{Idle: seconds(short)}, whole(b.Port())))
			w := connect(t, p)
			w.say(ask("/"))
			if res, body, err := w.answer("GET"); res == nil || err == nil {
				t.Errorf("%q looks complete", body)
			}
			wait(t, "the backend's connection ends", ended)
			nodetest.Eventually(t, "the backend's failure is counted", func() bool {
				return metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "upstream_after_bytes") == 1
			})
		})
	}
}

func TestAClientThatDoesNotReadIsCut(t *testing.T) {
	ended := make(chan struct{})
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
	wait(t, "the backend's connection ends", ended)
	nodetest.Eventually(t, "it is counted as the client's doing", func() bool {
		return metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "client") == 1
	})
}

// A client that does not read a 1xx was waited for without an end, and by a drain as well.
func TestAClientThatDoesNotReadAnInterimAnswerIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newPipedFront(t, func(w *wire) {
			nodetest.ReadHead(w.in)
			io.WriteString(w, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
			io.Copy(io.Discard, w)
		}, nil)
		ours, theirs := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			f.Serve(theirs, nil, netip.Addr{}, nil)
		}()
		io.WriteString(ours, ask("/"))
		begun := time.Now()
		select {
		case <-served:
		case <-time.After(time.Hour):
			t.Error("it is waited for")
			ours.Close()
			<-served
		}
		if took := time.Since(begun); took < writeTimeout || took > 2*writeTimeout {
			t.Errorf("cut after %v, want %v", took, writeTimeout)
		}
	})
}

// newPipedFront is a front without sockets, as a bubble of synctest needs it, with the steps of its backend's connections and the
// limits of its one route.
func newPipedFront(t *testing.T, backend step, limits *resourcev1.Timeouts) *Front {
	table, _ := newTable(t, settings{dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go backend(newWire(t, theirs))
		return ours, nil
	}}, []site{within(limits, whole(1))})
	metrics, err := meter.NewSet(meter.Options{Classes: Classes(), RejectReasons: RejectReasons()})
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Options{Source: &proxy{table: table}, Tunnels: tunnel.NewSet(tunnel.Options{}), Meter: metrics})
	if err != nil {
		t.Fatal(err)
	}
	f := p.NewFront()
	t.Cleanup(func() { f.Drain(t.Context()) })
	return f
}

func TestARequestThatTakesTooLong(t *testing.T) {
	limits := &resourcev1.Timeouts{Request: seconds(short)}
	t.Run("before the answer is 504", func(t *testing.T) {
		ended := make(chan struct{})
		b, _ := scripted(t, silence(ended), serve(sized("fast")))
		p := start(t, within(limits, whole(b.Port())))
		w := connect(t, p)
		w.say(ask("/") + ask("/"))
		if res, _, err := w.answer("GET"); err != nil || res.StatusCode != 504 {
			t.Fatal(res, err)
		}
		wait(t, "the backend's connection ends", ended)
		w.want("GET", 200, "fast") // the next request has its own time
	})
	t.Run("in the answer is cut", func(t *testing.T) {
		b, _ := scripted(t, func(w *wire) {
			w.request()
			io.WriteString(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			for { // it never stands still
				if _, err := io.WriteString(w, "1\r\nx\r\n"); err != nil {
					return
				}
			}
		})
		p := start(t, within(limits, whole(b.Port())))
		w := connect(t, p)
		w.say(ask("/"))
		if res, body, err := w.answer("GET"); res == nil || err == nil {
			t.Errorf("%d bytes look complete", len(body))
		}
	})
	t.Run("in the upload is answered", func(t *testing.T) {
		ended := make(chan struct{})
		b, _ := scripted(t, silence(ended))
		p := start(t, within(limits, whole(b.Port())))
		w := connect(t, p)
		w.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
		if res, _, err := w.answer("POST"); err != nil || res.StatusCode != 504 || !res.Close {
			t.Error(res, err)
		}
		wait(t, "the backend's connection ends", ended)
	})
}

func TestAConnectIsGivenItsTime(t *testing.T) {
	var limit time.Duration
	p := startWith(t, settings{dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		deadline, _ := ctx.Deadline()
		limit = time.Until(deadline)
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}}, within(&resourcev1.Timeouts{Connect: seconds(short)}, whole(1)))
	w := connect(t, p)
	w.say(ask("/"))
	if res, _, err := w.answer("GET"); err != nil || res.StatusCode != http.StatusGatewayTimeout {
		t.Error(res, err)
	}
	if limit <= 0 || limit > short {
		t.Errorf("the connect had %v, want %v", limit, short)
	}
}

func TestAConnectEndsWithTheRequest(t *testing.T) {
	for name, c := range map[string]struct {
		limits *resourcev1.Timeouts
		gone   bool
	}{
		"its time":   {&resourcev1.Timeouts{Request: seconds(short)}, false},
		"its client": {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			begun, ended := make(chan struct{}), make(chan struct{})
			p := startWith(t, settings{dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				close(begun)
				<-ctx.Done()
				close(ended)
				return nil, context.Cause(ctx)
			}}, within(c.limits, whole(1)))
			w := connect(t, p)
			w.say(ask("/"))
			wait(t, "the connect begins", begun)
			if c.gone {
				w.Close()
			} else if res, _, err := w.answer("GET"); err != nil || res.StatusCode != 504 {
				t.Error(res, err)
			}
			wait(t, "the connect ends", ended)
		})
	}
}

func TestAHeadThatTakesTooLongIs408(t *testing.T) {
	front, client := secure(t)
	for name, s := range map[string]settings{"plain": {}, "TLS": {tls: front}} {
		t.Run(name, func(t *testing.T) {
			s.options.HeadTimeout = short
			p := startWith(t, s, whole(mirror(t).Port()))
			for _, before := range []string{"", ask("/1")} {
				for _, part := range []string{"G", "\r\n", "GET / HTTP/1.1\r\nHost: x\r\nX-Half"} {
					w := connect(t, p)
					if s.tls != nil {
						w = connectTLS(t, p, client)
					}
					w.say(before + part)
					if before != "" {
						w.want("GET", 200, "GET /1")
					}
					if res, _, err := w.answer("GET"); err != nil || res.StatusCode != 408 || !res.Close {
						t.Errorf("%q: %v %v", part, res, err)
					}
					w.ended()
				}
			}
		})
	}
}

func TestAnAnswerThatWasLateSaysNothingAboutTheNextHead(t *testing.T) {
	ended := make(chan struct{})
	b, _ := scripted(t, silence(ended))
	p := start(t, answersWithin(short, whole(b.Port())))
	w := connect(t, p)
	w.say(ask("/"))
	if res, _, err := w.answer("GET"); err != nil || res.StatusCode != 504 {
		t.Fatal(res, err)
	}
	w.say("GET / HT")
	w.Conn.(*net.TCPConn).CloseWrite()
	w.ended() // without a 408: it was not too slow, it has gone
}

func TestAnIdleConnectionIsClosedWithoutAWord(t *testing.T) {
	front, client := secure(t)
	for name, s := range map[string]settings{"plain": {}, "TLS": {tls: front}} {
		t.Run(name, func(t *testing.T) {
			s.options.IdleTimeout = short
			p := startWith(t, s, whole(mirror(t).Port()))
			for _, before := range []string{"", ask("/1")} {
				w := connect(t, p)
				if s.tls != nil {
					w = connectTLS(t, p, client)
					if err := w.Conn.(interface{ Handshake() error }).Handshake(); err != nil {
						t.Fatal(err)
					}
				}
				w.say(before)
				if before != "" {
					w.want("GET", 200, "GET /1")
				}
				w.ended()
			}
		})
	}
}

func TestAConnectionIsIdleForLongAndGoesOn(t *testing.T) {
	// Longer than it takes to be taken for idle and looked at seldom.
	p := start(t, whole(mirror(t).Port()))
	w := connect(t, p)
	for i := range 2 {
		w.say(ask("/"))
		w.want("GET", 200, "GET /")
		if i == 0 {
			begun := p.front.now.Load()
			nodetest.Eventually(t, "some sweeps are over", func() bool { return p.front.now.Load()-begun > int64(4*sweepInterval) })
		}
	}
}

func TestAnUpgradedConnectionHasItsOwnIdleTime(t *testing.T) {
	ended := make(chan struct{})
	b, _ := scripted(t, func(w *wire) {
		w.request()
		io.WriteString(w, switched)
		silence(ended)(w)
	})
	limits := &resourcev1.Timeouts{Request: seconds(time.Hour), WebsocketIdle: seconds(short)}
	p := start(t, within(limits, whole(b.Port())))
	w := connect(t, p)
	w.say(raw)
	w.head("HTTP/1.1 101 ")
	w.ended()
	wait(t, "the backend's connection ends", ended)
}
