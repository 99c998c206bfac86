package gossip

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// atDoor runs a doorman and gives where connections arrive.
func atDoor(t *testing.T, takeTLS func(net.Conn)) (*doorman, chan<- net.Conn) {
	t.Helper()
	arrivals, stopped := make(chan net.Conn), make(chan struct{})
	d := newDoorman(arrivals, takeTLS)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.run(ctx, stopped)
	}()
	t.Cleanup(func() {
		cancel()
		close(stopped)
		<-done
	})
	return d, arrivals
}

func TestTheFirstByteTellsWhomAConnectionIsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tls := make(chan net.Conn, 1)
		d, arrivals := atDoor(t, func(c net.Conn) { tls <- c })
		for _, text := range []string{"\x16hello", "\xf4label"} {
			ours, theirs := net.Pipe()
			arrivals <- theirs
			go func() {
				_, _ = io.WriteString(ours, text)
				_ = ours.Close()
			}()
			var got net.Conn
			if text[0] == tlsHandshake {
				got = <-tls
			} else {
				got = <-d.streams
			}
			whole, err := io.ReadAll(got)
			if err != nil || string(whole) != text {
				t.Errorf("%q arrived as %q, %v", text, whole, err)
			}
			_ = got.Close()
		}
	})
}

// closedAfter tells how long it takes until the other side hangs up.
func closedAfter(t *testing.T, conn net.Conn) time.Duration {
	t.Helper()
	begun := time.Now()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("something came")
	}
	_ = conn.Close()
	return time.Since(begun)
}

func TestConnectionsThatSayNothingAreClosedAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, arrivals := atDoor(t, nil)
		var silent []net.Conn
		for range maxUnknown {
			ours, theirs := net.Pipe()
			arrivals <- theirs
			silent = append(silent, ours)
		}
		ours, theirs := net.Pipe()
		arrivals <- theirs
		if took := closedAfter(t, ours); took != 0 || d.refused.Load() != 1 {
			t.Errorf("one too many was closed after %s, %d counted", took, d.refused.Load())
		}
		for _, conn := range silent {
			if took := closedAfter(t, conn); took > firstByteWait {
				t.Fatalf("closed after %s", took)
			}
		}
	})
}

func TestTLSThatNobodyTakesIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, arrivals := atDoor(t, nil)
		ours, theirs := net.Pipe()
		arrivals <- theirs
		if _, err := ours.Write([]byte{tlsHandshake}); err != nil {
			t.Fatal(err)
		}
		if took := closedAfter(t, ours); took != 0 || d.refused.Load() != 1 {
			t.Errorf("closed after %s, %d counted", took, d.refused.Load())
		}
	})
}

func TestAConnectionThatWaitsEndsWithTheTransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arrivals, stopped := make(chan net.Conn), make(chan struct{})
		d := newDoorman(arrivals, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			d.run(ctx, stopped)
		}()
		silent, first := net.Pipe()
		unread, second := net.Pipe()
		arrivals <- first
		arrivals <- second
		if _, err := unread.Write([]byte{0xf4}); err != nil { // for memberlist, which takes nothing
			t.Fatal(err)
		}
		synctest.Wait()
		cancel()
		close(stopped)
		<-done
		for _, conn := range []net.Conn{silent, unread} {
			if took := closedAfter(t, conn); took != 0 {
				t.Errorf("closed after %s", took)
			}
		}
	})
}
