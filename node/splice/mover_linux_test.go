package splice

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// random is size bytes that do not repeat.
func random(seed uint64, size int) []byte {
	b := make([]byte, size)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(b)
	return b
}

// mover begins a transfer that the test ends.
func (r *relayed) mover(t testing.TB) *Mover {
	t.Helper()
	m, err := Start(r.dst, r.src)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// fill is a Fill that must succeed.
func fill(t testing.TB, m *Mover, limit int64) int64 {
	t.Helper()
	n, err := m.Fill(limit)
	if err != nil || n == 0 || n != m.Held() {
		t.Fatalf("Fill(%d) = %d, %v; %d held", limit, n, err, m.Held())
	}
	return n
}

// readsAll gives what comes out of the sink until it ends.
func (r *relayed) readsAll(t testing.TB) func() []byte {
	var got []byte
	var reading sync.WaitGroup
	reading.Go(func() {
		var err error
		if got, err = io.ReadAll(r.sink); err != nil {
			t.Error(err)
		}
	})
	return func() []byte {
		reading.Wait()
		return got
	}
}

// pump moves until the source ends, with steps of at most limit bytes.
func pump(m *Mover, limit int64) (read, written int64, err error) {
	for {
		n, err := m.Fill(limit)
		if err == io.EOF {
			return read, written, nil
		}
		if err != nil {
			return read, written, err
		}
		for read += n; m.Held() > 0; written += n {
			if n, err = m.Drain(); err != nil {
				return read, written, err
			}
		}
	}
}

func TestWhatGoesInComesOut(t *testing.T) {
	sizes := rand.New(rand.NewPCG(1, 2))
	for _, limit := range []int64{-1, 1000, 70000} {
		for i := range 8 {
			size := sizes.IntN(4 << 20 >> (2 * i % 12))
			t.Run(fmt.Sprintf("%d bytes by %d", size, limit), func(t *testing.T) {
				r := newRelayed(t)
				moves(t, r, random(uint64(i), size), limit)
				// And back.
				back := &relayed{source: r.sink, src: r.dst, dst: r.src, sink: r.source}
				moves(t, back, random(uint64(i+100), size), limit)
			})
		}
	}
}

// moves sends body through r to its end.
func moves(t *testing.T, r *relayed, body []byte, limit int64) {
	t.Helper()
	got := r.readsAll(t)
	var writing sync.WaitGroup
	writing.Go(func() {
		if _, err := r.source.Write(body); err != nil {
			t.Error(err)
		}
		r.source.CloseWrite()
	})
	m := r.mover(t)
	defer m.Stop()
	read, written, err := pump(m, limit)
	if err != nil || read != int64(len(body)) || written != read {
		t.Errorf("read %d, wrote %d, %v; want %d", read, written, err, len(body))
	}
	r.dst.CloseWrite()
	writing.Wait()
	if sha256.Sum256(got()) != sha256.Sum256(body) {
		t.Error("the bytes differ")
	}
}

func TestFillTakesNoMoreThanItMay(t *testing.T) {
	r := newRelayed(t)
	r.source.Write([]byte("bodynext"))
	m := r.mover(t)
	defer m.Stop()
	if n := fill(t, m, 4); n != 4 {
		t.Errorf("Fill(4) = %d", n)
	}
	if _, err := m.Fill(4); !errors.Is(err, errHeld) {
		t.Errorf("Fill with something held: %v", err)
	}
	if n, err := m.Drain(); n != 4 || err != nil {
		t.Errorf("Drain() = %d, %v", n, err)
	}
	for _, step := range []func() (int64, error){m.Drain, func() (int64, error) { return m.Fill(0) }} {
		if n, err := step(); n != 0 || err != nil {
			t.Errorf("nothing to do: %d, %v", n, err)
		}
	}
	rest := make([]byte, 4)
	if _, err := io.ReadFull(r.src, rest); err != nil || string(rest) != "next" {
		t.Errorf("left in the source: %q, %v", rest, err)
	}
}

func TestSlowReaderMakesManySmallDrains(t *testing.T) {
	r := newRelayed(t)
	r.dst.SetWriteBuffer(32 << 10)
	r.sink.SetReadBuffer(32 << 10)
	body := random(7, 1<<20)
	var ends sync.WaitGroup
	ends.Go(func() { r.source.Write(body) })
	var got bytes.Buffer
	ends.Go(func() {
		piece := make([]byte, 1000)
		for got.Len() < len(body) {
			n, err := r.sink.Read(piece)
			if err != nil {
				t.Error(err)
				return
			}
			got.Write(piece[:n])
		}
	})
	m := r.mover(t)
	defer m.Stop()
	fills, drains := 0, 0
	for left := int64(len(body)); left > 0; fills++ {
		for left -= fill(t, m, left); m.Held() > 0; drains++ {
			r.dst.SetWriteDeadline(time.Now().Add(10 * time.Second)) // as every step has its own time
			if _, err := m.Drain(); err != nil {
				t.Fatal(err)
			}
		}
	}
	ends.Wait()
	if !bytes.Equal(got.Bytes(), body) {
		t.Error("the bytes differ")
	}
	if drains <= fills {
		t.Errorf("%d drains for %d fills: a caller could not see the progress", drains, fills)
	}
}

func TestSlowWriterIsPassedOnAtOnce(t *testing.T) {
	r := newRelayed(t)
	m := r.mover(t)
	defer m.Stop()
	var moving sync.WaitGroup
	moving.Go(func() {
		if read, written, err := pump(m, -1); err != nil || read != written {
			t.Errorf("read %d, wrote %d, %v", read, written, err)
		}
	})
	for i := range 100 {
		said := fmt.Sprintf("event %d\n", i)
		r.source.Write([]byte(said))
		heard := make([]byte, len(said))
		if _, err := io.ReadFull(r.sink, heard); err != nil || string(heard) != said {
			t.Fatalf("heard %q, %v", heard, err)
		}
	}
	r.source.CloseWrite()
	moving.Wait()
}

func TestNoPipeIsHeldWhileTheSourceIsWaitedFor(t *testing.T) {
	r := newRelayed(t)
	m := r.mover(t)
	defer m.Stop()
	r.src.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	if n, err := m.Fill(-1); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Fill() = %d, %v", n, err)
	}
	if m.pipe != nil {
		t.Error("a pipe is held")
	}
	r.src.SetReadDeadline(time.Time{})
	r.source.Write([]byte("x"))
	fill(t, m, -1)
	if _, err := m.Drain(); err != nil {
		t.Error(err)
	}
}

func TestEndAndBreakOfTheSourceDiffer(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(*net.TCPConn)
		want error
	}{
		"end":   {func(c *net.TCPConn) { c.CloseWrite() }, io.EOF},
		"reset": {func(c *net.TCPConn) { c.SetLinger(0); c.Close() }, syscall.ECONNRESET},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelayed(t)
			m := r.mover(t)
			defer m.Stop()
			r.source.Write([]byte("half"))
			fill(t, m, 8)
			if n, err := m.Drain(); n != 4 || err != nil {
				t.Errorf("Drain() = %d, %v", n, err)
			}
			test.end(r.source)
			if n, err := m.Fill(4); n != 0 || !errors.Is(err, test.want) {
				t.Errorf("Fill() = %d, %v; want %v", n, err, test.want)
			}
		})
	}
}

func TestBreakOfTheDestination(t *testing.T) {
	r := newRelayed(t)
	m := r.mover(t)
	defer m.Stop()
	r.sink.SetLinger(0)
	r.sink.Close()
	var err error
	for err == nil { // the reset has to come by
		r.source.Write([]byte("lost"))
		fill(t, m, -1)
		_, err = m.Drain()
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Drain: %v", err)
	}
}

func TestClosedConnections(t *testing.T) {
	r := newRelayed(t)
	m := r.mover(t)
	defer m.Stop()
	r.source.Write([]byte("held"))
	fill(t, m, -1)
	r.dst.Close()
	if _, err := m.Drain(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Drain: %v", err)
	}
	other := newRelayed(t)
	m = other.mover(t)
	defer m.Stop()
	other.src.Close()
	if _, err := m.Fill(-1); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Fill: %v", err)
	}
}

func TestAPipeThatHoldsSomethingIsNotUsedAgain(t *testing.T) {
	CloseIdle()
	before := Open()
	r := newRelayed(t)
	m := r.mover(t)
	r.source.Write([]byte("secret of a stranger"))
	fill(t, m, -1)
	r.dst.SetDeadline(time.Unix(1, 0))
	if n, err := m.Drain(); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Drain() = %d, %v", n, err)
	}
	if Open() != before+1 {
		t.Errorf("%d pipes are open, want %d", Open(), before+1)
	}
	m.Stop()
	if Open() != before {
		t.Errorf("%d pipes are open, want %d", Open(), before)
	}
}

func TestInterruptedWhileTheDestinationIsFull(t *testing.T) {
	r := newRelayed(t)
	var writing sync.WaitGroup
	writing.Go(func() {
		for {
			if _, err := r.source.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	m := r.mover(t)
	r.dst.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	read, written, err := pump(m, -1)
	if !errors.Is(err, os.ErrDeadlineExceeded) || m.Held() != read-written || m.Held() == 0 {
		t.Errorf("read %d, wrote %d, %d held, %v", read, written, m.Held(), err)
	}
	m.Stop()
	r.source.Close()
	writing.Wait()
}

func TestConcurrentTransfers(t *testing.T) {
	var transfers sync.WaitGroup
	for i := range 16 {
		r := newRelayed(t)
		transfers.Go(func() { moves(t, r, random(uint64(i), 300<<10+i), -1) })
	}
	transfers.Wait()
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestDescriptorsAreClosed(t *testing.T) {
	CloseIdle()
	before := descriptors(t)
	t.Run("transfers", func(t *testing.T) {
		TestConcurrentTransfers(t)
		TestInterruptedWhileTheDestinationIsFull(t)
		TestAPipeThatHoldsSomethingIsNotUsedAgain(t)
		if TestConcurrentTransfers(t); Open() == 0 {
			t.Error("no pipe was kept")
		}
	})
	CloseIdle()
	if after := descriptors(t); after != before || Open() != 0 {
		t.Errorf("%d descriptors, %d before; %d pipes", after, before, Open())
	}
}

func TestPipesAreBounded(t *testing.T) {
	CloseIdle()
	r := newRelayed(t)
	var all []*Mover
	for range maxPipes {
		all = append(all, r.mover(t))
	}
	if m, err := Start(r.dst, r.src); !errors.Is(err, ErrUnavailable) {
		t.Errorf("one more than there may be: %v, %v", m, err)
	}
	all[0].Stop()
	all[0] = r.mover(t)
	for _, m := range all {
		m.Stop()
	}
	if Open() != maxIdle {
		t.Errorf("%d pipes are kept, want %d", Open(), maxIdle)
	}
	CloseIdle()
}

// odd is a connection whose descriptor is no socket.
type odd struct {
	syscall.RawConn
	fd int
}

func (o odd) Read(f func(uintptr) bool) error {
	f(uintptr(o.fd))
	return nil
}

func TestWhatCannotBeSplicedIsRemembered(t *testing.T) {
	defer pipes.unsupported.Store(false)
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r := newRelayed(t)
	m := r.mover(t)
	defer m.Stop()
	m.src = odd{fd: fd}
	if _, err := m.Fill(1); !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Fill: %v", err)
	}
	if _, err := Start(r.dst, r.src); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Start: %v", err)
	}
}

func TestStepsDoNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	r := newRelayed(t)
	m := r.mover(t)
	defer m.Stop()
	said, heard := make([]byte, 10000), make([]byte, 10000)
	if n := testing.AllocsPerRun(200, func() {
		r.source.Write(said)
		for read := int64(0); read < int64(len(said)); {
			n, _ := m.Fill(-1)
			for read += n; m.Held() > 0; {
				m.Drain()
			}
		}
		io.ReadFull(r.sink, heard)
	}); n != 0 {
		t.Errorf("%v allocations a step", n)
	}
}
