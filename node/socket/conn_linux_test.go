package socket

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is the two ends of a connection, one of them a Conn.
func pair(t testing.TB) (*Conn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := New(accepted.(*net.TCPConn))
	t.Cleanup(func() { c.Close(); peer.Close() })
	return c, peer.(*net.TCPConn)
}

func say(t testing.TB, to io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(to, text); err != nil {
		t.Fatal(err)
	}
}

func hear(t testing.TB, from io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(from, got); err != nil || string(got) != want {
		t.Fatalf("%q, %v, want %q", got, err, want)
	}
}

// arrived waits until the kernel has something of the peer's for c, or its end, and takes nothing of it: a read would be told of
// a reset in the place of the one that is tested.
func arrived(t testing.TB, c *Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	err := c.raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Time{})
}

func TestBytesPassBothWays(t *testing.T) {
	c, peer := pair(t)
	say(t, peer, "hello")
	hear(t, c, "hello")
	say(t, c, "and back")
	hear(t, peer, "and back")
}

func TestTheEndIsEOF(t *testing.T) {
	c, peer := pair(t)
	say(t, peer, "last")
	peer.CloseWrite()
	hear(t, c, "last")
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

func TestEmptyReadsAndWritesDoNothing(t *testing.T) {
	c, _ := pair(t)
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("read: %d, %v", n, err)
	}
	if n, err := c.Write(nil); n != 0 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
}

func TestErrorsAreThoseOfNet(t *testing.T) {
	c, peer := pair(t)
	c.SetReadDeadline(time.Unix(1, 0))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("behind a deadline: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	peer.SetLinger(0)
	peer.Close()
	_, err := c.Read(make([]byte, 1))
	var op *net.OpError
	if !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) || op.Op != "read" || op.Source.String() != c.LocalAddr().String() {
		t.Errorf("after a reset: %v", err)
	}
	c.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := c.Write(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
	if _, _, _, err := c.Ask([]byte("x"), make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Ask after Close: %v", err)
	}
}

func TestOneThatWasClosedBeforeIsClosed(t *testing.T) {
	given, _ := pair(t)
	given.TCPConn.Close()
	c := New(given.TCPConn)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if _, wrote, _, err := c.Ask([]byte("x"), make([]byte, 1)); wrote > 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("ask: %d, %v", wrote, err)
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("close: %v", err)
	}
}

func TestCloseWakesWhoReads(t *testing.T) {
	c, peer := pair(t)
	ended := make(chan error, 1)
	began := make(chan struct{})
	go func() {
		close(began)
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	<-began
	c.Close()
	if err := <-ended; err == nil {
		t.Error("the read went on")
	}
	if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the peer sees %d, %v, want the end", n, err)
	}
}

// More than the kernel takes at once has to be waited for.
func TestALargeWriteIsWhole(t *testing.T) {
	c, peer := pair(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	sent := make(chan error, 1)
	go func() {
		n, err := c.Write(want)
		if err == nil && n != len(want) {
			err = io.ErrShortWrite
		}
		c.CloseWrite()
		sent <- err
	}()
	got, err := io.ReadAll(peer)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v, want %d", len(got), err, len(want))
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestAWriteThatIsInterruptedSaysHowFarItCame(t *testing.T) {
	c, peer := pair(t)
	const size = 64 << 20 // more than both sockets hold
	ended := make(chan error, 1)
	go func() {
		n, err := c.Write(make([]byte, size))
		if n == 0 || n == size {
			err = fmt.Errorf("%d bytes, then %v", n, err)
		}
		ended <- err
	}()
	hear(t, peer, "\x00")
	c.SetWriteDeadline(time.Unix(1, 0))
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func TestAskGetsTheAnswer(t *testing.T) {
	c, peer := pair(t)
	answered := make(chan error, 1)
	go func() {
		question := make([]byte, 8)
		_, err := io.ReadFull(peer, question)
		if err == nil {
			_, err = peer.Write([]byte("to " + string(question)))
		}
		answered <- err
	}()
	into := make([]byte, 64)
	quiet, wrote, n, err := c.Ask([]byte("question"), into)
	if !quiet || wrote != 8 || err != nil || string(into[:n]) != "to question" {
		t.Errorf("%v, %d, %q, %v", quiet, wrote, into[:n], err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
	say(t, peer, "more")
	hear(t, c, "more") // an Ask leaves nothing behind
}

func TestWhoSpeaksBeforeHeIsAskedIsNotAsked(t *testing.T) {
	c, peer := pair(t)
	say(t, peer, "HTTP/1.1 408 Request Timeout\r\n\r\n")
	arrived(t, c)
	if quiet, wrote, _, _ := c.Ask([]byte("question"), make([]byte, 64)); quiet || wrote > 0 {
		t.Errorf("quiet %v, wrote %d", quiet, wrote)
	}
	c.Close()
	if sent, err := io.ReadAll(peer); len(sent) > 0 {
		t.Errorf("sent all the same: %q, %v", sent, err)
	}
}

func TestWhoHasEndedIsNotAsked(t *testing.T) {
	for name, end := range map[string]func(*net.TCPConn){
		"closed": func(peer *net.TCPConn) { peer.Close() },
		"reset":  func(peer *net.TCPConn) { peer.SetLinger(0); peer.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c, peer := pair(t)
			end(peer)
			arrived(t, c)
			if quiet, wrote, _, _ := c.Ask([]byte("question"), make([]byte, 64)); quiet || wrote > 0 {
				t.Errorf("quiet %v, wrote %d", quiet, wrote)
			}
		})
	}
}

func TestAnAskThatIsInterruptedBeforeSendsNothing(t *testing.T) {
	c, _ := pair(t)
	c.SetReadDeadline(time.Unix(1, 0))
	quiet, wrote, n, err := c.Ask([]byte("question"), make([]byte, 64))
	if !quiet || wrote != 0 || n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, %d, %d, %v", quiet, wrote, n, err)
	}
}

func TestAnAskThatIsInterruptedWhileItWaitsWasSent(t *testing.T) {
	c, peer := pair(t)
	ended := make(chan error, 1)
	go func() {
		quiet, wrote, n, err := c.Ask([]byte("question"), make([]byte, 64))
		if !quiet || wrote != 8 || n != 0 {
			err = io.ErrShortWrite
		}
		ended <- err
	}()
	hear(t, peer, "question")
	c.SetReadDeadline(time.Unix(1, 0))
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func TestAnAskThatEndsWithoutAnAnswerIsEOF(t *testing.T) {
	c, peer := pair(t)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		io.ReadFull(peer, make([]byte, 8))
		peer.Close()
	}()
	quiet, wrote, n, err := c.Ask([]byte("question"), make([]byte, 64))
	<-heard
	if !quiet || wrote != 8 || n != 0 || err != io.EOF {
		t.Errorf("%v, %d, %d, %v", quiet, wrote, n, err)
	}
}

// A question that the kernel does not take whole is the caller's to go on with.
func TestALongQuestionIsHandedBack(t *testing.T) {
	c, peer := pair(t)
	question := bytes.Repeat([]byte("?"), 64<<20)
	quiet, wrote, n, err := c.Ask(question, make([]byte, 64))
	if !quiet || wrote == 0 || wrote >= len(question) || n != 0 || err != nil {
		t.Fatalf("%v, %d, %d, %v", quiet, wrote, n, err)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(question[wrote:])
		c.CloseWrite()
		sent <- err
	}()
	got, err := io.ReadAll(peer)
	if !bytes.Equal(got, question) || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestNothingIsAllocated(t *testing.T) {
	c, peer := pair(t)
	go io.Copy(peer, peer)
	question, into := []byte("question"), make([]byte, 64)
	if n := testing.AllocsPerRun(100, func() { c.Write(question); c.Read(into) }); n > 0 {
		t.Errorf("write and read: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { c.Ask(question, into) }); n > 0 {
		t.Errorf("ask: %v allocations", n)
	}
	peer.CloseWrite()
}

func BenchmarkExchange(b *testing.B) {
	question, into := []byte("question"), make([]byte, 64)
	for name, exchange := range map[string]func(c *Conn){
		"net":    func(c *Conn) { c.TCPConn.Write(question); c.TCPConn.Read(into) },
		"socket": func(c *Conn) { c.Write(question); c.Read(into) },
		"ask":    func(c *Conn) { c.Ask(question, into) },
	} {
		b.Run(name, func(b *testing.B) {
			c, peer := pair(b)
			go io.Copy(peer, peer)
			b.ReportAllocs()
			for b.Loop() {
				exchange(c)
			}
			peer.CloseWrite()
		})
	}
}
