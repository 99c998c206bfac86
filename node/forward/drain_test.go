package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
)

// drained runs Drain, whose end is told together with how long it took.
func drained(p *proxy, limit time.Duration) <-chan drainEnd {
	end := make(chan drainEnd, 1)
	begun := time.Now()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		end <- drainEnd{p.front.Drain(ctx), time.Since(begun)}
	}()
	return end
}

type drainEnd struct {
	err  error
	took time.Duration
}

func TestAfterLeaveAnswersSayClose(t *testing.T) {
	front, config := secure(t)
	for name, s := range map[string]settings{"plain": {}, "TLS": {tls: front}} {
		t.Run(name, func(t *testing.T) {
			p := startWith(t, s, to("/x", mirror(t).Port()))
			open := func() *wire {
				if s.tls != nil {
					return connectTLS(t, p, config)
				}
				return connect(t, p)
			}
			kept := open()
			kept.say(ask("/x"))
			if res := kept.want("GET", 200, "GET /"); res.Close {
				t.Error("closed before")
			}
			p.front.Leave()
			kept.say(ask("/x/1") + ask("/x/never"))
			if res := kept.want("GET", 200, "GET /1"); !res.Close {
				t.Error("the answer does not say close")
			}
			kept.ended()
			fresh := open() // the listener may still accept
			fresh.say(ask("/none"))
			if res, _, err := fresh.answer("GET"); err != nil || !res.Close {
				t.Error(res, err)
			}
			fresh.ended()
		})
	}
}

func TestAStaleConnectionSaysClose(t *testing.T) {
	var stale atomic.Bool
	p := startWith(t, settings{stale: stale.Load}, whole(mirror(t).Port()))
	w := connect(t, p)
	w.say(ask("/"))
	if res := w.want("GET", 200, "GET /"); res.Close {
		t.Error("closed before")
	}
	stale.Store(true)
	w.say(ask("/"))
	if res := w.want("GET", 200, "GET /"); !res.Close {
		t.Error("the answer does not say close")
	}
	w.ended()
}

func TestDrainLetsIdleConnectionsComeByOnceMore(t *testing.T) {
	p := start(t, whole(mirror(t).Port()))
	var idle []*wire
	for range 3 {
		w := connect(t, p)
		w.say(ask("/"))
		w.want("GET", 200, "GET /")
		idle = append(idle, w)
	}
	end := drained(p, time.Minute)
	nodetest.Eventually(t, "the drain begins", p.front.leaving.Load)
	idle[0].say(ask("/again"))
	if res := idle[0].want("GET", 200, "GET /again"); !res.Close {
		t.Error("the answer does not say close")
	}
	for _, w := range idle {
		w.ended()
	}
	if got := <-end; got.err != nil || got.took < goodBye {
		t.Errorf("%v after %v: the good-bye is %v", got.err, got.took, goodBye)
	}
}

func TestDrainWaitsForRequests(t *testing.T) {
	arrived, release := make(chan struct{}, 3), make(chan struct{})
	b, _ := scripted(t, func(w *wire) {
		for {
			if _, body, ok := w.request(); ok {
				arrived <- struct{}{}
				<-release
				io.WriteString(w, sized("late"+body))
				continue
			}
			return
		}
	})
	p := start(t, whole(b.Port()))
	waiting, sending := connect(t, p), connect(t, p)
	waiting.say(ask("/"))
	sending.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na")
	<-arrived
	end := drained(p, time.Minute)
	begun := time.Now()
	nodetest.Eventually(t, "the good-bye is over", func() bool { return time.Since(begun) > goodBye+2*sweepInterval })
	sending.say("bc")
	<-arrived
	select {
	case got := <-end:
		t.Fatalf("it did not wait: %v", got)
	default:
	}
	close(release)
	if res := waiting.want("GET", 200, "late"); !res.Close {
		t.Error("the answer does not say close")
	}
	if res := sending.want("POST", 200, "lateabc"); !res.Close {
		t.Error("the answer does not say close")
	}
	waiting.ended()
	sending.ended()
	if got := <-end; got.err != nil {
		t.Error(got.err)
	}
}

func TestDrainCutsWhatIsLeft(t *testing.T) {
	front, config := secure(t)
	const upload = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"
	for _, c := range []struct {
		name, sent, answer string
		head               string // that the client gets before
	}{
		{"idle", "", "", ""},
		{"half a head", "GET / HT", "", ""},
		{"waiting for an answer", ask("/"), "", ""},
		{"in an answer", ask("/"), "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "HTTP/1.1 200 "},
		{"in a stream", ask("/"), "HTTP/1.1 200 OK\r\n\r\nabc", "HTTP/1.1 200 "},
		{"in an upload", upload, "", ""},
		{"in an upload that is answered", upload, "HTTP/1.1 200 OK\r\n\r\nabc", "HTTP/1.1 200 "},
		{"after a refusal, with more to come", "nonsense\r\n\r\n", "", "HTTP/1.1 400 "},
		{"requests behind", ask("/") + ask("/"), "", ""},
	} {
		for _, overTLS := range []bool{false, true} {
			name := c.name
			if overTLS {
				name += ", over TLS"
			}
			t.Run(name, func(t *testing.T) {
				arrived, ended := make(chan struct{}), make(chan struct{})
				b, conns := scripted(t, func(w *wire) {
					nodetest.ReadHead(w.in)
					io.WriteString(w, c.answer)
					close(arrived)
					silence(ended)(w)
				})
				s := settings{}
				if overTLS {
					s.tls = front
				}
				p := startWith(t, s, whole(b.Port()))
				w := connect(t, p)
				if overTLS {
					w = connectTLS(t, p, config)
				}
				w.say(c.sent)
				if c.head != "" {
					w.head(c.head)
				} else if c.sent == ask("/") || c.sent == upload {
					wait(t, "the backend is asked", arrived)
				}
				nodetest.Eventually(t, "the connection is known", func() bool { return p.front.connections() == 1 })
				got := <-drained(p, short)
				if !errors.Is(got.err, context.DeadlineExceeded) || got.took > 10*time.Second {
					t.Errorf("%v after %v", got.err, got.took)
				}
				if _, err := io.ReadAll(w.in); errors.Is(err, context.DeadlineExceeded) {
					t.Error("the client's connection goes on")
				}
				if conns() > 0 {
					wait(t, "the backend's connection ends", ended)
				}
			})
		}
	}
}

func TestDrainOfNothingReturnsAtOnce(t *testing.T) {
	p := start(t, whole())
	if got := <-drained(p, time.Minute); got.err != nil || got.took > goodBye/2 {
		t.Errorf("%v after %v", got.err, got.took)
	}
	w := connect(t, p) // nobody knows of it but the kernel
	w.say(ask("/"))
	if res, _, err := w.answer("GET"); err != nil || !res.Close {
		t.Error(res, err)
	}
	w.ended()
	if got := <-drained(p, time.Minute); got.err != nil {
		t.Error("a second drain:", got.err)
	}
}

func TestConnectionsAreCounted(t *testing.T) {
	p := start(t, whole(mirror(t).Port()))
	var open sync.WaitGroup
	for range 5 {
		open.Go(func() {
			w := connect(t, p)
			defer w.Close()
			w.say(ask("/"))
			if _, body, err := w.answer("GET"); err != nil || body != "GET /" {
				t.Error(body, err)
			}
		})
	}
	open.Wait()
	nodetest.Eventually(t, "all are gone", func() bool { return p.front.connections() == 0 && metric(t, p, "pyserve_client_connections") == 0 })
	p.front.mu.Lock()
	defer p.front.mu.Unlock()
	for i := range p.front.shards {
		for list := range listCount {
			if n := len(p.front.shards[i].lists[list]); n != 0 {
				t.Errorf("the sweeper still looks at %d", n)
			}
		}
	}
}

func TestReasonsHaveTheirOwnSeries(t *testing.T) {
	p := start(t, whole(answering(t, "HTTP/1.1 200 OK\r\nX : a\r\n\r\n").Port()))
	p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n")
	p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	for _, labels := range [][]string{{"side", "client", "reason", "obs-fold"}, {"side", "backend", "reason", "space before colon"}} {
		if n := metric(t, p, "pyserve_rejected_messages_total", labels...); n != 1 {
			t.Errorf("%q: %v", labels, n)
		}
	}
	if !slices.Contains(RejectReasons(), "obs-fold") {
		t.Error(RejectReasons())
	}
}

// defect is a source that panics, outside of what makes a panic one request's failure.
type defect struct{}

func (defect) Pin() (*Table, func()) { panic("out of cheese") }

func TestADrainDoesNotWaitForAConnectionThatPanicked(t *testing.T) {
	ours, theirs := net.Pipe()
	for name, serve := range map[string]func(*Front){
		"HTTP/1": func(f *Front) { f.Serve(theirs, nil, netip.Addr{}, nil) },
		"HTTP/2": func(f *Front) { f.ServeHTTP2(nil, netip.Addr{}, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t)
			p.proxy.source = defect{}
			panicked := make(chan any)
			go func() {
				defer func() { panicked <- recover() }()
				serve(p.front)
			}()
			if name == "HTTP/1" {
				io.WriteString(ours, ask("/"))
			}
			if <-panicked == nil {
				t.Fatal("it did not panic")
			}
			select {
			case end := <-drained(p, time.Minute):
				if end.err != nil {
					t.Error(end.err)
				}
			case <-time.After(10 * time.Second):
				t.Error("it waits")
			}
			if n := metric(t, p, "pyserve_client_connections"); n != 0 {
				t.Errorf("%v connections are counted", n)
			}
		})
	}
	if _, err := ours.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%v: the connection is open", err)
	}
}
