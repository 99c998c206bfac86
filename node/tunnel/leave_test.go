package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	serverClose = []byte{0x88, 2, 0x03, 0xe9} // 1001
	nobody      = func(any) bool { return false }
)

// webSocket is a live one over TCP.
func webSocket(t *testing.T, s *Set) *joined {
	t.Helper()
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	deadline := time.Now().Add(20 * time.Second)
	client.SetDeadline(deadline)
	backend.SetDeadline(deadline)
	return joinAs(t, s, Tunnel{Client: near, Backend: far, WebSocket: true}, client, backend)
}

// want reads as many bytes as it wants.
func want(t *testing.T, c net.Conn, what string, bytesWanted []byte) {
	t.Helper()
	got := make([]byte, len(bytesWanted))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, bytesWanted) {
		t.Fatalf("%s: got % x, %v, want % x", what, got[:n], err, bytesWanted)
	}
}

// wantClose reads a client's Close frame 1001.
func wantClose(t *testing.T, c net.Conn) {
	t.Helper()
	got := make([]byte, 8)
	if _, err := io.ReadFull(c, got); err != nil || got[0] != 0x88 || got[1] != 0x82 || got[6]^got[2] != 0x03 || got[7]^got[3] != 0xe9 {
		t.Fatalf("got % x, %v, want a masked Close 1001", got, err)
	}
}

func wantEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("got % x, %v, want the end", rest, err)
	}
}

func wantEnded(t *testing.T, j *joined) {
	t.Helper()
	if err := <-j.done; !errors.Is(err, ErrEnded) {
		t.Errorf("ended with %v", err)
	}
}

func TestBothSidesAreToldAndAnswer(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		j := webSocket(t, s)
		j.client.Write(frame(0x81, true, 7))
		want(t, j.backend, "backend", frame(0x81, true, 7))
		j.backend.Write(frame(0x81, false, 300))
		want(t, j.client, "client", frame(0x81, false, 300))
		s.Retain(nobody)
		want(t, j.client, "client", serverClose)
		wantClose(t, j.backend)
		// What is sent after that has no way to go, up to the Close.
		j.client.Write(append(frame(0x82, true, 70000), frame(0x88, true, 2)...))
		j.backend.Write(append(frame(0x81, false, 9), frame(0x88, false, 2)...))
		wantEnded(t, j)
		wantEnd(t, j.client)
		wantEnd(t, j.backend)
		if want := (Totals{ToBackend: Traffic{13, 1}, ToClient: Traffic{304, 1}}); j.passed != want || s.Totals() != want {
			t.Errorf("passed %v, totals %v, want %v", j.passed, s.Totals(), want)
		}
	})
}

func TestAFrameUnderWayIsFinishedFirst(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		j := webSocket(t, s)
		up, down := frame(0x82, true, 70000), frame(0x82, false, 300)
		j.client.Write(up[:5]) // in the middle of the length
		want(t, j.backend, "backend", up[:5])
		j.backend.Write(down[:100])
		want(t, j.client, "client", down[:100])
		s.Retain(nobody)
		waitFor(t, func() bool { return anyTunnel(s, isLeaving) })
		j.client.Write(append(bytes.Clone(up[5:]), frame(0x81, true, 1)...))
		want(t, j.backend, "backend", up[5:])
		wantClose(t, j.backend)
		j.backend.Write(append(bytes.Clone(down[100:]), frame(0x81, false, 1)...))
		want(t, j.client, "client", down[100:])
		want(t, j.client, "client", serverClose)
		j.client.Write(frame(0x88, true, 0))
		j.backend.Write(frame(0x88, false, 0))
		wantEnded(t, j)
		wantEnd(t, j.client)
		wantEnd(t, j.backend)
	})
}

func TestASideThatHasClosedIsLeftToTheOther(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		j := webSocket(t, s)
		theirs := []byte{0x88, 2, 0x0f, 0xa0} // 4000
		j.client.Write(frame(0x88, true, 2))
		want(t, j.backend, "backend", frame(0x88, true, 2))
		// The tunnel knows of it a moment after the bytes are sent.
		waitFor(t, func() bool { return anyTunnel(s, clientHasClosed) })
		s.Retain(nobody)
		last := frame(0x81, false, 10)
		j.backend.Write(append(bytes.Clone(last), theirs...))
		want(t, j.client, "client", append(last, theirs...))
		wantEnded(t, j)
		wantEnd(t, j.client)
		wantEnd(t, j.backend)
	})
}

func anyTunnel(s *Set, is func(live) bool) bool {
	s.mu.Lock()
	all := slices.Collect(maps.Keys(s.live))
	s.mu.Unlock()
	return slices.ContainsFunc(all, is)
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatal("never came true")
		}
	}
}

func TestGarbageIsPassedOnAndThenCut(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		j := webSocket(t, s)
		j.client.Write([]byte("not a frame"))
		want(t, j.backend, "backend", []byte("not a frame"))
		j.backend.Write([]byte("nor this"))
		want(t, j.client, "client", []byte("nor this"))
		s.Retain(nobody)
		wantEnded(t, j)
		wantEnd(t, j.client)
		wantEnd(t, j.backend)
	})
}

func TestATunnelWhoseOwnerWentMeanwhileEndsAtOnce(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		s.Retain(nobody)
		j := webSocket(t, s)
		want(t, j.client, "client", serverClose)
		wantClose(t, j.backend)
		j.client.Close()
		j.backend.Close()
		wantEnded(t, j)
	})
}

func TestHalfOfATunnelIsStillTold(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		j := webSocket(t, s)
		j.backend.(*net.TCPConn).CloseWrite()
		wantEnd(t, j.client)
		s.Retain(nobody)
		wantClose(t, j.backend)
		wantEnded(t, j) // the backend cannot answer: nobody waits for it
	})
}

// TestAnAnswerIsNotAwaitedOfASideThatWasNotTold: the client goes in the middle of its frame, so the backend is told nothing.
func TestAnAnswerIsNotAwaitedOfASideThatWasNotTold(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		j := webSocket(t, s)
		up, down := frame(0x82, true, 1000), frame(0x82, false, 1000)
		j.client.Write(up[:500])
		want(t, j.backend, "backend", up[:500])
		j.backend.Write(down[:500])
		want(t, j.client, "client", down[:500])
		began := time.Now()
		s.Retain(nobody)
		waitFor(t, func() bool { return anyTunnel(s, isLeaving) })
		j.client.(*net.TCPConn).CloseWrite()
		waitFor(t, func() bool { return anyTunnel(s, clientIsHalted) })
		j.backend.Write(down[500:])
		want(t, j.client, "client", down[500:])
		want(t, j.client, "client", serverClose)
		wantEnded(t, j)
		if took := time.Since(began); took >= finishTime+answerTime {
			t.Errorf("ended after %v", took)
		}
	})
}

// TestOtherProtocolsAreCut: nothing is put into what is not a WebSocket.
func TestOtherProtocolsAreCut(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		client, near := tcpPair(t)
		backend, far := tcpPair(t)
		j := join(t, s, client, backend, near, far, nil)
		s.Retain(nobody)
		wantEnded(t, j)
		wantEnd(t, client)
		wantEnd(t, backend)
	})
}

func TestATLSTunnelIsToldInTheMiddleOfARecord(t *testing.T) {
	s := NewSet(Options{})
	client, near := tlsPair(t)
	backend, far := tlsPair(t)
	j := joinAs(t, s, Tunnel{Client: near, Backend: far, WebSocket: true}, client, backend)
	message := frame(0x82, true, 100<<10)
	client.Write(message)
	want(t, backend, "backend", message)
	s.Retain(nobody)
	want(t, client, "client", serverClose)
	wantClose(t, backend)
	client.Write(frame(0x88, true, 2))
	backend.Write(frame(0x88, false, 2))
	wantEnded(t, j)
}

// piped is a WebSocket in fake time, whose peers read and, if polite, answer the Close; at is when the client was told.
func piped(t *testing.T, s *Set, owner any, polite bool, at func(time.Duration)) *joined {
	start := time.Now()
	client, near := net.Pipe()
	backend, far := net.Pipe()
	peer := func(c net.Conn, answer []byte, size int, at func(time.Duration)) {
		got := make([]byte, size)
		if _, err := io.ReadFull(c, got); err != nil {
			return
		}
		at(time.Since(start))
		if polite {
			c.Write(answer)
		}
		io.Copy(io.Discard, c)
	}
	j := joinAs(t, s, Tunnel{Client: near, Backend: far, WebSocket: true, Owner: owner}, client, backend)
	go peer(client, frame(0x88, true, 2), 4, at)
	go peer(backend, frame(0x88, false, 2), 8, func(time.Duration) {})
	return j
}

func TestPeersThatDoNotAnswerAreNotWaitedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{})
		start := time.Now()
		j := piped(t, s, nil, false, func(time.Duration) {})
		s.Retain(nobody)
		wantEnded(t, j)
		if took := time.Since(start); took != finishTime+answerTime {
			t.Errorf("ended after %v", took)
		}
	})
}

func TestAFrameThatNeverEndsIsNotWaitedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{})
		client, near := net.Pipe()
		backend, far := net.Pipe()
		j := joinAs(t, s, Tunnel{Client: near, Backend: far, WebSocket: true}, client, backend)
		half := frame(0x82, true, 1000)[:500]
		go client.Write(half)
		want(t, backend, "backend", half)
		s.Retain(nobody)
		want(t, client, "client", serverClose)
		got, err := io.ReadAll(backend)
		if err != nil || len(got) > 0 {
			t.Errorf("in the middle of a frame the backend got % x, %v", got, err)
		}
		wantEnded(t, j)
	})
}

// TestAFrameUnderWayHasLongerWhereTheOtherSideHasClosed: its Close was under way when the tunnel was to be ended, and the
// two are left to finish it.
func TestAFrameUnderWayHasLongerWhereTheOtherSideHasClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{})
		client, near := net.Pipe()
		backend, far := net.Pipe()
		j := joinAs(t, s, Tunnel{Client: near, Backend: far, WebSocket: true}, client, backend)
		message := frame(0x82, true, 1000)
		go client.Write(message[:500])
		want(t, backend, "backend", message[:500])
		go backend.Write(serverClose[:1])
		want(t, client, "client", serverClose[:1])
		s.Retain(nobody)
		<-time.After(finishTime / 2)
		go backend.Write(serverClose[1:])
		want(t, client, "client", serverClose[1:])
		<-time.After(finishTime)
		rest := append(message[500:], frame(0x88, true, 2)...)
		go client.Write(rest)
		want(t, backend, "backend", rest)
		wantEnded(t, j)
	})
}

func TestADrainTellsWebSocketsEvenlyAndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{})
		told := make(chan time.Duration, 19)
		for range 19 {
			piped(t, s, nil, true, func(at time.Duration) { told <- at })
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		start := time.Now()
		if ended := s.Close(ctx); ended != 19 {
			t.Errorf("%d ended, want 19", ended)
		}
		// 20 s to end by themselves, 5 s at the end for the last to answer: 15 s are for telling 19.
		for i := range 19 {
			if at, want := <-told, 20*time.Second+time.Duration(i+1)*750*time.Millisecond; at != want {
				t.Errorf("%d told after %v, want %v", i, at, want)
			}
		}
		if took := time.Since(start); took != 34250*time.Millisecond {
			t.Errorf("closed after %v", took)
		}
	})
}

func TestADrainEndsInTimeWhateverPeersDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{})
		var all sync.WaitGroup
		for range 50 {
			j := piped(t, s, nil, false, func(time.Duration) {})
			all.Go(func() { wantEnded(t, j) })
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		start := time.Now()
		s.Close(ctx)
		all.Wait()
		if took := time.Since(start); took != 4*time.Second {
			t.Errorf("closed after %v", took)
		}
	})
}

func TestRetiredTunnelsEndEvenlyUntilTheyAreRetained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{Spread: time.Second})
		told := make(chan time.Duration, 8)
		for range 8 {
			piped(t, s, "any", true, func(at time.Duration) { told <- at })
		}
		s.Retire(80*time.Second, nil)
		for i := range 3 {
			if at, want := <-told, time.Duration(i)*10*time.Second; at != want {
				t.Errorf("%d told after %v, want %v", i, at, want)
			}
		}
		piped(t, s, "late", true, func(time.Duration) {}) // is told at once
		synctest.Wait()
		if s.Len() != 5 {
			t.Errorf("%d live, want the 5 whose turn has not come", s.Len())
		}
		s.Retain(func(any) bool { return true })
		<-time.After(5 * time.Minute)
		if s.Len() != 5 {
			t.Errorf("%d live after it was taken back, want 5", s.Len())
		}
		// Those that go for another reason do not wait for the turn that they had.
		s.Retire(time.Hour, nil)
		synctest.Wait()
		s.Retain(nobody)
		<-time.After(10 * time.Second)
		if s.Len() != 0 {
			t.Errorf("%d live, want none", s.Len())
		}
		s.Close(t.Context())
	})
}

// Each story retires forty tunnels over 400 s, one every ten; room is what there is elsewhere, and from when on. Until the last
// tenth of the time nobody is sent away for whom there is no room.
func TestRetiredTunnelsWaitForRoomElsewhere(t *testing.T) {
	for name, c := range map[string]struct {
		room func(time.Duration) int
		want map[time.Duration]int // how many are told by then
	}{
		"plenty":        {func(time.Duration) int { return 1000 }, map[time.Duration]int{9: 1, 199: 20, 399: 40}},
		"none":          {func(time.Duration) int { return 0 }, map[time.Duration]int{359: 0, 369: 10, 379: 20, 399: 40}},
		"less than due": {func(time.Duration) int { return -1 }, map[time.Duration]int{359: 0, 399: 40}},
		"some later": {func(at time.Duration) int {
			if at < 200*time.Second {
				return 0
			}
			return 1000
		}, map[time.Duration]int{199: 0, 209: 2, 299: 20, 399: 40}},
		"little": {func(at time.Duration) int {
			if at < 200*time.Second {
				return 0
			}
			return 1
		}, map[time.Duration]int{209: 1, 359: 16, 399: 40}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := NewSet(Options{})
				var told atomic.Int32
				for range 40 {
					piped(t, s, "any", true, func(time.Duration) { told.Add(1) })
				}
				start := time.Now()
				s.Retire(400*time.Second, func() int { return c.room(time.Since(start)) })
				for _, at := range slices.Sorted(maps.Keys(c.want)) {
					<-time.After(time.Until(start.Add(at * time.Second)))
					if got := int(told.Load()); got != c.want[at] {
						t.Errorf("%d are told within %d s, want %d", got, at, c.want[at])
					}
				}
				s.Close(t.Context())
			})
		})
	}
}

func TestNoMoreAreRetiredInFiveSecondsThanThereIsRoomFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{})
		var told atomic.Int32
		for range 400 {
			piped(t, s, "any", true, func(time.Duration) { told.Add(1) })
		}
		s.Retire(40*time.Second, func() int { return 7 })
		<-time.After(time.Millisecond)
		for second := time.Duration(0); second < 35; second += 5 {
			<-time.After(5*time.Second - 2*time.Millisecond)
			if got, want := int(told.Load()), 7*int(second/5+1); got != want {
				t.Errorf("%d are told within %d s, want %d", got, second+5, want)
			}
			<-time.After(2 * time.Millisecond)
		}
		<-time.After(5 * time.Second)
		if told.Load() != 400 {
			t.Errorf("%d of 400 are told at the end", told.Load())
		}
		s.Close(t.Context())
	})
}

func TestASecondRetireSetsAnotherTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{})
		for range 4 {
			piped(t, s, "any", true, func(time.Duration) {})
		}
		s.Retire(time.Hour, nil)
		<-time.After(time.Second)
		s.Retire(0, nil)
		<-time.After(10 * time.Second)
		if s.Len() != 0 {
			t.Errorf("%d live, want none", s.Len())
		}
		s.Close(t.Context())
	})
}

func TestATunnelThatBeginsWhileTheSetClosesIsEndedInOrder(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		last, closed := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(closed)
			s.CloseAfter(t.Context(), last)
		}()
		<-s.closing
		j := webSocket(t, s)
		want(t, j.client, "client", serverClose)
		wantClose(t, j.backend)
		j.client.Write(frame(0x88, true, 0))
		j.backend.Write(frame(0x88, false, 0))
		wantEnded(t, j)
		select {
		case <-closed:
			t.Error("it has closed, although more could come")
		default:
		}
		close(last)
		<-closed
	})
}

func TestOwnersThatGoAreFollowedEvenlyAndOthersStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{Spread: 8 * time.Second})
		told := make(chan time.Duration, 8)
		for range 4 {
			piped(t, s, "gone", true, func(at time.Duration) { told <- at })
			piped(t, s, "stays", true, func(time.Duration) {})
		}
		keep := func(owner any) bool { return owner == "stays" }
		s.Retain(keep)
		s.Retain(keep) // another apply changes nothing
		for i := range 4 {
			if at, want := <-told, time.Duration(i)*2*time.Second; at != want {
				t.Errorf("%d told after %v, want %v", i, at, want)
			}
		}
		synctest.Wait()
		if s.Len() != 4 {
			t.Errorf("%d left, want 4", s.Len())
		}
		// An owner that comes back saves those whose turn has not come.
		for range 4 {
			piped(t, s, "stays", true, func(time.Duration) {})
		}
		for l := range s.live { // nothing else runs
			l.about().owner = "again"
		}
		s.Retain(keep)
		synctest.Wait()
		if s.Len() != 7 {
			t.Errorf("%d left, want 7: the first goes at once", s.Len())
		}
		s.Retain(func(any) bool { return true })
		<-time.After(time.Minute)
		if s.Len() != 7 {
			t.Errorf("%d left after the owner had come back, want 7", s.Len())
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if cut := s.Close(ctx); cut != 7 {
			t.Errorf("%d cut, want 7", cut)
		}
	})
}

// echo is one message there and back over a tunnel that is measured.
func echo(t testing.TB, client, backend net.Conn, message, answer []byte) {
	if _, err := client.Write(message); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(backend, message); err != nil {
		t.Fatal(err)
	}
	if _, err := backend.Write(answer); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, answer); err != nil {
		t.Fatal(err)
	}
}

func echoed(t testing.TB, s *Set) (once func()) {
	client, near := tcpPair(t)
	backend, far := tcpPair(t)
	joinAs(t, s, Tunnel{Client: near, Backend: far, WebSocket: true}, client, backend)
	message, answer := frame(0x82, true, 128), frame(0x82, false, 128)
	return func() { echo(t, client, backend, message, answer) }
}

func TestAMessageCostsNoAllocation(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector drops what is in pools")
	}
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		once := echoed(t, s)
		once()
		if allocs := testing.AllocsPerRun(2000, once); allocs >= 1 {
			t.Errorf("%v allocations for each message and its answer", allocs)
		}
		if got := s.Totals(); got.ToBackend.Messages < 2001 || got.ToBackend.Bytes != got.ToBackend.Messages*136 {
			t.Errorf("counted %v", got)
		}
	})
}

func BenchmarkEcho(b *testing.B) {
	for name, newSet := range drivers(b) {
		b.Run(name, func(b *testing.B) {
			s := newSet(Options{})
			b.Cleanup(func() { closeAtOnce(s) })
			once := echoed(b, s)
			b.ReportAllocs()
			for b.Loop() {
				once()
			}
		})
	}
}

// TestAClientThatGoesInAFrameKeepsNobodyWaiting: the backend cannot be told in the middle of a frame, so it does not answer.
func TestAClientThatGoesInAFrameKeepsNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{})
		client, near := net.Pipe()
		backend, far := net.Pipe()
		start := time.Now()
		j := joinAs(t, s, Tunnel{Client: near, Backend: far, WebSocket: true}, client, backend)
		half := frame(0x82, true, 1000)[:500]
		go client.Write(half)
		want(t, backend, "backend", half)
		s.Retain(nobody)
		want(t, client, "client", serverClose)
		synctest.Wait() // the backend's answer is being waited for
		client.Close()
		wantEnded(t, j)
		if took := time.Since(start); took != 0 {
			t.Errorf("ended after %v", took)
		}
	})
}
