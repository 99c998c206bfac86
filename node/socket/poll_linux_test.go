package socket

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newPoll(t testing.TB) *Poll {
	t.Helper()
	p, err := NewPoll("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	p.SetDeadline(time.Now().Add(10 * time.Second))
	return p
}

func descriptor(t testing.TB, c *Conn) (fd int) {
	t.Helper()
	if err := c.raw.Control(func(of uintptr) { fd = int(of) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

// next waits for one event.
func next(t testing.TB, p *Poll) unix.EpollEvent {
	t.Helper()
	events := make([]unix.EpollEvent, 1)
	if err := p.Wait(func(uintptr) bool { return p.Take(events) == 1 }); err != nil {
		t.Fatal(err)
	}
	return events[0]
}

func TestAPollTellsOfWhatComes(t *testing.T) {
	p := newPoll(t)
	c, peer := pair(t)
	for _, when := range []struct {
		name    string
		happens func()
	}{
		{"bytes that were there", func() { say(t, peer, "x"); arrived(t, c) }},
		{"bytes that come", func() { time.AfterFunc(time.Millisecond, func() { peer.Write([]byte("x")) }) }},
		{"the end of reading on this side", func() { c.CloseRead() }},
	} {
		when.happens()
		if err := p.Add(descriptor(t, c), unix.EpollEvent{Events: unix.EPOLLIN, Fd: 7}); err != nil {
			t.Fatal(err)
		}
		if e := next(t, p); e.Fd != 7 || e.Events&unix.EPOLLIN == 0 {
			t.Errorf("%s: %+v", when.name, e)
		}
		c.Read(make([]byte, 1))
		if err := p.Remove(descriptor(t, c)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPollTellsNothingOfWhatWasRemoved(t *testing.T) {
	p := newPoll(t)
	gone, peer := pair(t)
	stays, other := pair(t)
	for i, c := range []*Conn{gone, stays} {
		if err := p.Add(descriptor(t, c), unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Remove(descriptor(t, gone)); err != nil {
		t.Fatal(err)
	}
	say(t, peer, "x")
	arrived(t, gone)
	say(t, other, "x")
	if e := next(t, p); e.Fd != 1 {
		t.Errorf("%+v", e)
	}
}

func TestAPollIsEndedByItsDeadlineAndByClose(t *testing.T) {
	p := newPoll(t)
	never := func(uintptr) bool { return false }
	p.SetDeadline(time.Unix(1, 0))
	if err := p.Wait(never); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	p.SetDeadline(time.Time{})
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		first := true
		ended <- p.Wait(func(uintptr) bool {
			if first {
				close(began)
			}
			first = false
			return false
		})
	}()
	<-began
	p.Close()
	if err := <-ended; err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("close: %v", err)
	}
}

func TestAPollThatIsClosedTakesNothing(t *testing.T) {
	p := newPoll(t)
	c, peer := pair(t)
	if err := p.Add(descriptor(t, c), unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		t.Fatal(err)
	}
	say(t, peer, "x")
	arrived(t, c)
	p.Close()
	if n := p.Take(make([]unix.EpollEvent, 1)); n != 0 {
		t.Errorf("%d events", n)
	}
	if p.Add(descriptor(t, c), unix.EpollEvent{Events: unix.EPOLLIN}) == nil || p.Remove(descriptor(t, c)) == nil {
		t.Error("it can be changed")
	}
}
