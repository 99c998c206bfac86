package forward

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// unwilling is a backend's connection that cannot be written to, and has an answer all the same.
type unwilling struct {
	net.Conn
	answer io.Reader
	block  chan struct{} // not nil: writes wait until a deadline wakes them
	woken  sync.Once
}

func newUnwilling(answer string) *unwilling {
	here, there := net.Pipe()
	there.Close()
	return &unwilling{Conn: here, answer: strings.NewReader(answer)}
}

func (c *unwilling) Read(p []byte) (int, error) { return c.answer.Read(p) }

func (c *unwilling) Write([]byte) (int, error) {
	if c.block == nil {
		return 0, syscall.ECONNRESET
	}
	<-c.block
	return 0, os.ErrDeadlineExceeded
}

func (c *unwilling) SetDeadline(at time.Time) error {
	if c.block != nil && at.Equal(longAgo) {
		c.woken.Do(func() { close(c.block) })
	}
	return nil
}

func gives(c net.Conn) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) { return c, nil }
}

const tooLarge = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig"

// TestAnAnswerCountsAlthoughTheRequestCouldNotBeWritten: a backend that refuses a body says so and closes.
func TestAnAnswerCountsAlthoughTheRequestCouldNotBeWritten(t *testing.T) {
	p := startWith(t, settings{dial: gives(newUnwilling(tooLarge))}, whole(1))
	if res, body := send(t, p, "POST", "body"); res.StatusCode != http.StatusRequestEntityTooLarge || body != "big" {
		t.Errorf("%s %q", res.Status, body)
	}
	nodetest.Eventually(t, "the connection is not kept", func() bool { return p.backends[0].Counters().Open == 0 })
}

func TestARequestThatCouldNotBeWrittenNorWasAnsweredIsABackendsFailure(t *testing.T) {
	p := startWith(t, settings{dial: gives(newUnwilling(""))}, whole(1))
	if res, _ := send(t, p, "POST", "body"); res.StatusCode != http.StatusBadGateway {
		t.Error(res.Status)
	}
	if n := p.backends[0].Counters(); n.Requests != 1 || n.Failures != 1 {
		t.Errorf("%d requests, %d failures", n.Requests, n.Failures)
	}
}

// TestAnInterruptedWriteIsNotAskedForAnAnswer: what would be read then was said too late, or to nobody.
func TestAnInterruptedWriteIsNotAskedForAnAnswer(t *testing.T) {
	c := newUnwilling(sized("late"))
	c.block = make(chan struct{})
	p := startWith(t, settings{dial: gives(c)}, within(&resourcev1.Timeouts{Idle: seconds(short)}, whole(1)))
	if res, body := send(t, p, "POST", "body"); res.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("%s %q", res.Status, body)
	}
	if n := p.backends[0].Counters(); n.Failures != 1 {
		t.Errorf("%d failures of the backend", n.Failures)
	}
}

// TestAKeptConnectionThatCannotBeWrittenToIsWaitedForAsForAnAnswer: no longer, since nothing is on its way.
func TestAKeptConnectionThatCannotBeWrittenToIsWaitedForAsForAnAnswer(t *testing.T) {
	b, _ := scripted(t, func(w *wire) {
		w.request()
		io.WriteString(w, sized("good"))
		io.Copy(io.Discard, w.in)
		<-t.Context().Done()
	})
	limited := within(&resourcev1.Timeouts{ResponseHeader: seconds(short), Idle: seconds(time.Minute)}, whole(b.Port()))
	p := start(t, to("/unlimited", b.Port()), limited)
	w := connect(t, p)
	w.say(ask("/unlimited"))
	w.want("GET", 200, "good")
	nodetest.Eventually(t, "the connection is kept", func() bool { return p.backends[0].Counters().Idle == 1 })
	c := p.backends[0].Take()
	c.CloseWrite()
	c.Keep()
	w.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	w.SetReadDeadline(time.Now().Add(20 * time.Second))
	if res, _, err := w.answer("POST"); err != nil || res.StatusCode != http.StatusGatewayTimeout {
		t.Error(res, err)
	}
}

// overdue is a client's connection whose request's time is up with the last byte that is written to it.
type overdue struct {
	net.Conn
	front *Front
	once  sync.Once
}

func (c *overdue) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.once.Do(func() {
		for i := range c.front.shards {
			c.expire(&c.front.shards[i])
		}
	})
	return n, err
}

// expire is what the sweeper does.
func (c *overdue) expire(s *shard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, list := range s.lists {
		for _, w := range list {
			w.expire(&w.main, w.main.due.Load(), causeTimeout)
		}
	}
}

// TestALimitReachedWithTheLastByteSpoilsOnlyTheBackendsConnection: that was woken, and has a deadline of the past.
func TestALimitReachedWithTheLastByteSpoilsOnlyTheBackendsConnection(t *testing.T) {
	b, conns := scripted(t, serve("HTTP/1.1 204 No Content\r\n\r\n"))
	p := start(t, whole(b.Port()))
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		p.front.Serve(&overdue{Conn: theirs, front: p.front}, nil, netip.Addr{}, nil)
	}()
	w := newWire(t, ours)
	for range 3 {
		w.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n") // is not repeated
		w.want("POST", 204, "")
	}
	if n := conns(); n != 2 {
		t.Errorf("%d connections to the backend, want a second one for the second request and the third", n)
	}
	ours.Close()
	wait(t, "the connection ends", served)
}
