package forward

import (
	"io"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/nodetest"
)

// onceThenSilent answers one request and closes at the next: to the proxy, a kept connection that was closed meanwhile.
func onceThenSilent(w *wire) {
	if _, _, ok := w.request(); ok {
		io.WriteString(w, sized("first"))
		w.request()
	}
}

func TestAStaleKeptConnectionIsReplaced(t *testing.T) {
	b, conns := scripted(t, onceThenSilent, serve(sized("second")))
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say(ask("/"))
	w.want("GET", 200, "first")
	w.say(ask("/"))
	w.want("GET", 200, "second")
	if n := conns(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	if n := metric(t, p, "pyserve_retries_total", "route", "/"); n != 0 {
		t.Errorf("%v retries counted: the backend did nothing wrong", n)
	}
}

func TestAPUTWhoseBodyIsThereIsSentAgain(t *testing.T) {
	b, _ := scripted(t, onceThenSilent, func(w *wire) {
		for {
			_, body, ok := w.request()
			if !ok {
				return
			}
			io.WriteString(w, sized(body))
		}
	})
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say(ask("/"))
	w.want("GET", 200, "first")
	w.say("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n" + ask("/"))
	w.want("PUT", 200, "abcde")
	w.want("GET", 200, "")
}

// What has been read of a body to be passed on is there no more.
func TestABodyThatCameBehindItsHeadIsNotSentAgain(t *testing.T) {
	for name, kept := range map[string]bool{"new connection": false, "kept connection": true} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan struct{})
			b, conns := scripted(t, func(w *wire) {
				if kept {
					w.request()
					io.WriteString(w, sized("first"))
				}
				nodetest.ReadHead(w.in)
				close(asked)
				io.ReadFull(w.in, make([]byte, 3))
			}, serve(sized("second")))
			p := start(t, whole(b.Port()))
			w := connect(t, p)
			if kept {
				w.say(ask("/"))
				w.want("GET", 200, "first")
			}
			w.say("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
			wait(t, "the backend is asked", asked)
			w.say("abc")
			if res, _, err := w.answer("PUT"); err != nil || res.StatusCode != 502 {
				t.Error(res, err)
			}
			if n := conns(); n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

func TestAStaleKeptConnectionIsReplacedOnce(t *testing.T) {
	b, conns := scripted(t, onceThenSilent, func(w *wire) { w.request() })
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say(ask("/"))
	w.want("GET", 200, "first")
	w.say(ask("/"))
	if res, _, err := w.answer("GET"); err != nil || res.StatusCode != 502 {
		t.Error(res, err)
	}
	// The kept one, the one in its place, and the one retry.
	if n := conns(); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
}

func TestAPOSTIsNotRepeatedOnAStaleConnection(t *testing.T) {
	for _, method := range []string{"POST", "PATCH", "LOCK"} {
		b, conns := scripted(t, onceThenSilent, serve(sized("second")))
		p := start(t, whole(b.Port()))
		w := connect(t, p)
		w.say(ask("/"))
		w.want("GET", 200, "first")
		w.say(method + " / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
		if res, _, err := w.answer(method); err != nil || res.StatusCode != 502 {
			t.Errorf("%s: %v %v", method, res, err)
		}
		if n := conns(); n != 1 {
			t.Errorf("%s: %d connections: perhaps the backend did it twice", method, n)
		}
	}
}

func TestAConnectionKnownToBeClosedIsNotUsed(t *testing.T) {
	for _, request := range []string{
		ask("/"), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "PATCH / HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		closed := make(chan struct{})
		b, conns := scripted(t, func(w *wire) {
			w.request()
			io.WriteString(w, sized("first"))
			w.Close()
			close(closed)
		}, serve(sized("second")))
		p := start(t, whole(b.Port()))
		w := connect(t, p)
		w.say(ask("/"))
		w.want("GET", 200, "first")
		<-closed
		w.say(request)
		w.want("POST", 200, "second")
		if n := conns(); n != 2 {
			t.Errorf("%q: %d connections, want 2", request, n)
		}
	}
}

// What a backend sends that nobody asked for must not be the answer to the next request: it may be another client's (RFC
// 9112 section 6.3; known as response queue poisoning).
func TestBytesBehindAnAnswerNeverReachTheNext(t *testing.T) {
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nevil!"
	for name, c := range map[string]struct{ method, answer, behind string }{
		"9112-6.3 behind a length":          {"GET", sized("good"), evil},
		"9112-6.3 behind nothing":           {"GET", sized(""), evil},
		"9112-7.1 behind chunks":            {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n", evil},
		"9112-7.1.2 behind trailers":        {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\nX-T: 1\r\n\r\n", evil},
		"9112-6.3 one byte":                 {"GET", sized("good"), "H"},
		"9112-2.2 empty line":               {"GET", sized("good"), "\r\n"},
		"9110-9.3.2 body of HEAD":           {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 61\r\n\r\n", evil},
		"9110-9.3.2 chunks of HEAD":         {"HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n" + evil},
		"9110-15.3.5 body of 204":           {"GET", "HTTP/1.1 204 No Content\r\n\r\n", evil},
		"9110-15.3.5 announced body of 204": {"GET", "HTTP/1.1 204 No Content\r\nContent-Length: 43\r\n\r\n", evil},
		"9110-15.4.5 body of 304":           {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 43\r\n\r\n", evil},
		"9110-15.5.9 timeout while idle":    {"GET", sized("good"), "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"},
	} {
		for _, late := range []bool{false, true} {
			if late {
				name += ", late"
			}
			t.Run(name, func(t *testing.T) {
				received, sent := make(chan struct{}), make(chan struct{})
				b, conns := scripted(t, func(w *wire) {
					defer close(sent)
					w.request()
					if !late {
						io.WriteString(w, c.answer+c.behind)
					} else {
						io.WriteString(w, c.answer)
						<-received
						io.WriteString(w, c.behind)
						sent <- struct{}{}
					}
					if _, _, ok := w.request(); ok {
						t.Error("it was asked again")
					}
				}, serve(sized("next")))
				p := start(t, whole(b.Port()))
				w := connect(t, p)
				w.say(c.method + " / HTTP/1.1\r\nHost: x\r\n\r\n")
				want := ""
				if strings.Contains(c.answer, "good") {
					want = "good"
				}
				if _, body, err := w.answer(c.method); err != nil || body != want {
					t.Fatalf("%q %v", body, err)
				}
				if late {
					// A request of the same client comes after the connection was kept.
					nodetest.Eventually(t, "it is kept or closed", func() bool {
						n := p.backends[0].Counters()
						return n.Open == n.Idle
					})
					close(received)
					<-sent
				}
				for range 2 {
					w.say(ask("/"))
					w.want("GET", 200, "next")
				}
				if n := conns(); n != 2 {
					t.Errorf("%d connections, want 2", n)
				}
			})
		}
	}
}

func TestAnAnswerThatSaysCloseIsTheLastOfItsConnection(t *testing.T) {
	for name, answer := range map[string]string{
		"close":     "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ngood",
		"among all": "HTTP/1.1 200 OK\r\nConnection: x, CLOSE\r\nContent-Length: 4\r\n\r\ngood",
		"HTTP/1.0":  "HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ngood",
	} {
		t.Run(name, func(t *testing.T) {
			b, conns := scripted(t, func(w *wire) {
				if _, _, ok := w.request(); ok {
					io.WriteString(w, answer)
					if _, _, again := w.request(); again {
						t.Error("it was asked again")
					}
				}
			})
			p := start(t, whole(b.Port()))
			w := connect(t, p)
			for range 3 {
				w.say(ask("/"))
				if res := w.want("GET", 200, "good"); res.Close {
					t.Error("the client's connection is closed with the backend's")
				}
			}
			if n := conns(); n != 3 {
				t.Errorf("%d connections, want 3", n)
			}
		})
	}
	b, conns := scripted(t, serve("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\ngood"))
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	for range 3 {
		w.say(ask("/"))
		w.want("GET", 200, "good")
	}
	if n := conns(); n != 1 {
		t.Errorf("HTTP/1.0 with keep-alive: %d connections, want 1", n)
	}
}
