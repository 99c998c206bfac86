package tunnel

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// hesitant is a connection that does something before it takes the deadline which a tunnel that is to be closed sets first.
type hesitant struct {
	*net.TCPConn
	before func()
}

func (c *hesitant) Plain() *net.TCPConn { return c.TCPConn }

func (c *hesitant) SetWriteDeadline(at time.Time) error {
	if c.before != nil {
		c.before()
	}
	return c.TCPConn.SetWriteDeadline(at)
}

// TestADirectionThatIsBusyWhenItIsToLeaveWaitsForTheAnswer: it must not take the deadline that only wakes for the answer's.
func TestADirectionThatIsBusyWhenItIsToLeaveWaitsForTheAnswer(t *testing.T) {
	s := newGoroutineSet(Options{})
	defer closeAtOnce(s)
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	slow := &hesitant{TCPConn: near.(*net.TCPConn)}
	j := joinAs(t, s, Tunnel{Client: slow, Backend: far, WebSocket: true}, client, backend)
	echo(t, client, backend, frame(0x81, true, 1), frame(0x81, false, 1))
	slow.before = func() {
		// The direction wakes for this, and has time to begin to leave, if that is what it does.
		client.Write(frame(0x81, true, 1))
		backend.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := backend.Read(make([]byte, 15)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the backend is told already: %d bytes, %v", n, err)
		}
		backend.SetReadDeadline(time.Time{})
	}
	s.Retain(nobody)
	want(t, client, "client", serverClose)
	wantClose(t, backend)
	backend.Write(frame(0x88, false, 2))
	client.Write(frame(0x88, true, 2))
	wantEnded(t, j)
}

func TestATunnelThatWasCutIsNotTimed(t *testing.T) {
	_, near := tcpPair(t)
	_, far := tcpPair(t)
	l := newLink(NewSet(Options{}), Tunnel{Client: near, Backend: far})
	l.cut(ErrEnded)
	l.watch(time.Hour)
	if l.timer != nil {
		l.timer.Stop()
		t.Error("a timer runs")
	}
}
