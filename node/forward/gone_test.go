package forward

import (
	"io"
	"net"
	"testing"

	"github.com/pyserve/pyserve/node/nodetest"
)

func TestAClientThatGoesEndsTheBackendsConnection(t *testing.T) {
	front, config := secure(t)
	for name, c := range map[string]struct {
		tls    bool
		sent   string
		answer string // what of the answer came before
	}{
		"before the answer":          {false, ask("/"), ""},
		"with requests behind":       {false, ask("/1") + ask("/2") + ask("/3"), ""},
		"with half a request behind": {false, ask("/1") + "GET", ""},
		"in a POST":                  {false, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", ""},
		"in the answer":              {false, ask("/"), "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"},
		"in a stream":                {false, ask("/"), "HTTP/1.1 200 OK\r\n\r\nabc"},
		"between hints and answer":   {false, ask("/"), "HTTP/1.1 103 Early Hints\r\n\r\n"},
		"over TLS":                   {true, ask("/"), ""},
		"over TLS, requests behind":  {true, ask("/1") + ask("/2"), ""},
		"over TLS, in the answer":    {true, ask("/"), "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"},
		"in an upload":               {false, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", ""},
		"in a chunked upload":        {false, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", ""},
		"over TLS, in an upload":     {true, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", ""},
		"in an answered upload":      {false, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", "HTTP/1.1 200 OK\r\n\r\nabc"},
		"while it waits for 100":     {false, "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			arrived, ended := make(chan struct{}), make(chan struct{})
			b, _ := scripted(t, func(w *wire) {
				nodetest.ReadHead(w.in)
				io.WriteString(w, c.answer)
				close(arrived)
				silence(ended)(w)
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
			w.say(c.sent)
			wait(t, "the backend is asked", arrived)
			w.Close()
			wait(t, "the backend's connection ends", ended)
			nodetest.Eventually(t, "it is counted as the client's doing", func() bool {
				return metric(t, p, "pyserve_request_failures_total", "route", "/", "class", "client") == 1
			})
			if n := p.backends[0].Counters().Failures; n != 0 {
				t.Errorf("%d failures of the backend", n)
			}
		})
	}
}

func TestAClientThatIsResetEndsTheBackendsConnection(t *testing.T) {
	arrived, ended := make(chan struct{}), make(chan struct{})
	b, _ := scripted(t, func(w *wire) {
		w.request()
		close(arrived)
		silence(ended)(w)
	})
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say(ask("/"))
	wait(t, "the backend is asked", arrived)
	w.Conn.(*net.TCPConn).SetLinger(0)
	w.Close()
	wait(t, "the backend's connection ends", ended)
}

func TestALongPollIsNotTakenForAClientThatHasGone(t *testing.T) {
	release := make(chan struct{})
	b, _ := scripted(t, func(w *wire) {
		for {
			if _, _, ok := w.request(); !ok {
				return
			}
			<-release
			io.WriteString(w, sized("event"))
		}
	})
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say(ask("/"))
	begun := p.front.now.Load()
	nodetest.Eventually(t, "it was looked at many times, and seldom", func() bool {
		return p.front.now.Load()-begun > int64((slowAfter+2*slowSweeps)*sweepInterval)
	})
	close(release)
	w.want("GET", 200, "event")
	w.say(ask("/"))
	w.want("GET", 200, "event")
}
