package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/pyserve/pyserve/node/certtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// joined is a tunnel with both outer ends in the test's hands.
type joined struct {
	client, backend net.Conn // the outer ends
	done            chan error
	passed          Totals // once done
}

func join(t *testing.T, s *Set, client, backend, near, far net.Conn, early []byte) *joined {
	t.Helper()
	return joinAs(t, s, Tunnel{Client: near, Backend: far, FromClient: early}, client, backend)
}

func joinAs(t testing.TB, s *Set, tunnel Tunnel, client, backend net.Conn) *joined {
	t.Helper()
	j := &joined{client: client, backend: backend, done: make(chan error, 1)}
	tunnel.Ended = func(sum Summary) {
		j.passed = sum.Totals
		j.done <- sum.Err
	}
	if err := s.Start(tunnel); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); backend.Close() })
	return j
}

// tcpPair is two ends of one connection over the loopback.
func tcpPair(t testing.TB) (dialled, accepted net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if dialled, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if accepted, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return dialled, accepted
}

func tlsPair(t testing.TB) (dialled, accepted net.Conn) {
	t.Helper()
	a, b := tcpPair(t)
	authority := certtest.New(t)
	server := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS}})
	client := tls.Client(a, &tls.Config{RootCAs: authority.Pool(), ServerName: "127.0.0.1"})
	handshaken := make(chan error, 1)
	go func() { handshaken <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-handshaken); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func TestBytesPassBothWaysAndEachSideMayEndFirst(t *testing.T) {
	for name, pair := range map[string]func(testing.TB) (net.Conn, net.Conn){"tcp": tcpPair, "tls": tlsPair} {
		t.Run(name, func(t *testing.T) {
			eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
				client, near := pair(t)
				backend, far := pair(t)
				j := join(t, newSet(Options{}), client, backend, near, far, []byte("early "))
				question, answer := make([]byte, 300<<10), make([]byte, 500<<10)
				rand.Read(question)
				rand.Read(answer)
				go func() {
					client.Write(question)
					client.(interface{ CloseWrite() error }).CloseWrite()
				}()
				got, err := io.ReadAll(backend)
				if err != nil || !bytes.Equal(got, append([]byte("early "), question...)) {
					t.Fatalf("backend got %d bytes, %v", len(got), err)
				}
				// The client has ended; the backend still may speak.
				go func() {
					backend.Write(answer)
					backend.Close()
				}()
				if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, answer) {
					t.Fatalf("client got %d bytes, %v", len(got), err)
				}
				if err := <-j.done; err != nil {
					t.Fatal(err)
				}
				want := Totals{ToBackend: Traffic{Bytes: uint64(len(question)) + 6}, ToClient: Traffic{Bytes: uint64(len(answer))}}
				if j.passed != want {
					t.Errorf("passed %v, want %v", j.passed, want)
				}
			})
		})
	}
}

func TestAResetEndsBothSides(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		client, near := tcpPair(t)
		backend, far := tcpPair(t)
		j := join(t, newSet(Options{}), client, backend, near, far, nil)
		client.(*net.TCPConn).SetLinger(0)
		client.Close()
		if _, err := io.ReadAll(backend); err != nil {
			t.Fatal(err)
		}
		if err := <-j.done; err == nil {
			t.Error("a reset is no orderly end")
		}
	})
}

// TestAResetBehindBytesEndsBothSides: the kernel tells of both at once, and of the reset no second time.
func TestAResetBehindBytesEndsBothSides(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		client, near := tcpPair(t)
		backend, far := tcpPair(t)
		client.Write([]byte("last words"))
		client.(*net.TCPConn).SetLinger(0)
		client.Close()
		j := join(t, newSet(Options{}), client, backend, near, far, nil)
		if got, err := io.ReadAll(backend); err != nil || string(got) != "last words" {
			t.Errorf("got %q, %v", got, err)
		}
		if err := <-j.done; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestASideWithoutHalfCloseEndsTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, near := net.Pipe()
		backend, far := net.Pipe()
		j := join(t, NewSet(Options{}), client, backend, near, far, nil)
		client.Close()
		if _, err := backend.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("backend read: %v", err)
		}
		if err := <-j.done; err != nil {
			t.Error(err)
		}
	})
}

func TestIdleCountsBothDirections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, near := net.Pipe()
		backend, far := net.Pipe()
		start := time.Now()
		j := join(t, NewSet(Options{Idle: time.Hour}), client, backend, near, far, nil)
		for range 3 {
			<-time.After(40 * time.Minute)
			go client.Write([]byte("x"))
			if _, err := io.ReadFull(backend, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-j.done; !errors.Is(err, ErrIdle) {
			t.Errorf("ended with %v", err)
		}
		if age := time.Since(start); age != 3*time.Hour {
			t.Errorf("ended after %v, want one hour after the last byte", age)
		}
	})
}

func TestCloseWaitsThenCutsEvenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{})
		start := time.Now()
		var mu sync.Mutex
		var ends []time.Duration
		var all sync.WaitGroup
		for range 9 {
			client, near := net.Pipe()
			backend, far := net.Pipe()
			j := join(t, s, client, backend, near, far, nil)
			all.Go(func() {
				if err := <-j.done; !errors.Is(err, ErrEnded) {
					t.Errorf("ended with %v", err)
				}
				mu.Lock()
				ends = append(ends, time.Since(start))
				mu.Unlock()
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if cut := s.Close(ctx); cut != 9 {
			t.Errorf("%d cut, want 9", cut)
		}
		all.Wait()
		for i, at := range ends {
			if want := 10*time.Second + time.Duration(i+1)*time.Second; at != want {
				t.Errorf("cut %d after %v, want %v", i, at, want)
			}
		}
	})
}

func TestCloseReturnsWhenTheLastEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{})
		client, near := net.Pipe()
		backend, far := net.Pipe()
		j := join(t, s, client, backend, near, far, nil)
		synctest.Wait()
		start := time.Now()
		time.AfterFunc(3*time.Second, func() { client.Close() })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if cut := s.Close(ctx); cut != 0 || time.Since(start) != 3*time.Second {
			t.Errorf("%d cut after %v", cut, time.Since(start))
		}
		if err := <-j.done; err != nil {
			t.Error(err)
		}
	})
}

func TestCloseWithoutDeadlineCutsWhenCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Options{})
		client, near := net.Pipe()
		backend, far := net.Pipe()
		j := join(t, s, client, backend, near, far, nil)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(5*time.Second, cancel)
		if cut := s.Close(ctx); cut != 1 {
			t.Errorf("%d cut, want 1", cut)
		}
		if err := <-j.done; !errors.Is(err, ErrEnded) {
			t.Error(err)
		}
		if err := s.Start(Tunnel{Client: client, Backend: backend}); !errors.Is(err, ErrClosed) {
			t.Errorf("join after close: %v", err)
		}
		if s.Len() != 0 {
			t.Error("tunnels left")
		}
	})
}
