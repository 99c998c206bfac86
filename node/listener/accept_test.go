package listener

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
)

// record is a log that tests read while it is written.
type record struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

// lines are those that hold what.
func (r *record) lines(what string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := strings.Split(r.text.String(), "\n")
	return slices.DeleteFunc(all, func(line string) bool { return !strings.Contains(line, what) })
}

func (r *record) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestAcceptErrorsAreSatOut(t *testing.T) {
	// The kernel's queue has no place in fake time, so none of its connections is taken here.
	l := bound(t, Options{})
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS} {
		synctest.Test(t, func(t *testing.T) {
			var log record
			var at []time.Duration
			start := time.Now()
			l := newListener(l.socket, Options{Front: &front{}, Logger: log.logger(), MaxConnections: 1}.withDefaults())
			l.take = func() (*net.TCPConn, error) {
				at = append(at, time.Since(start))
				return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", errno)}
			}
			l.Start()
			time.Sleep(25 * time.Second) // of the bubble's time
			close(l.leaving)
			l.accepts.Wait()
			want := []time.Duration{0, 5, 15, 35, 75, 155, 315, 635, 1275, 2275, 3275}
			for i := range want {
				want[i] *= time.Millisecond
			}
			if len(at) < len(want) || !slices.Equal(at[:len(want)], want) || len(at) > 40 {
				t.Errorf("%v: asked %d times, at %v", errno, len(at), at)
			}
			lines := log.lines("accepting a connection failed")
			if len(lines) != 3 || !strings.Contains(lines[0], "times=1") || !strings.Contains(lines[2], "times=10") {
				t.Errorf("%q", lines)
			}
			if len(l.slots) != 0 {
				t.Error("a failed accept keeps its slot")
			}
		})
	}
	l.Close()
}

func TestAcceptGoesOnAfterAnError(t *testing.T) {
	l := bound(t, Options{})
	take, failed := l.take, false
	l.take = func() (*net.TCPConn, error) {
		if !failed {
			failed = true
			return nil, os.NewSyscallError("accept4", syscall.EMFILE)
		}
		return take()
	}
	l.Start()
	defer drain(t, l)
	if answer := get(t, l); !strings.Contains(answer, " 200 OK") {
		t.Error(answer)
	}
}

func TestAtTheLimitConnectionsWait(t *testing.T) {
	var log record
	f := &front{}
	l := started(t, Options{Front: f, Logger: log.logger(), MaxConnections: 2})
	first, second := nodetest.Dial(t, l.Address()), nodetest.Dial(t, l.Address())
	nodetest.Eventually(t, "both are served", func() bool { return f.connections() == 2 })
	third := nodetest.Dial(t, l.Address())
	io.WriteString(third, request)
	nodetest.Eventually(t, "the limit is logged", func() bool { return len(log.lines("limit=2")) == 1 })
	if n := f.connections(); n != 2 {
		t.Errorf("%d connections are served", n)
	}
	first.Close()
	if answer, err := io.ReadAll(third); err != nil || !strings.Contains(string(answer), " 200 OK") {
		t.Errorf("%q %v", answer, err)
	}
	second.Close()
	if lines := log.lines("limit of connections"); len(lines) != 1 {
		t.Errorf("%q", lines)
	}
}

func TestDrainEndsTheWaitAtTheLimit(t *testing.T) {
	var log record
	l := bound(t, Options{Logger: log.logger(), MaxConnections: 1})
	l.Start()
	c := nodetest.Dial(t, l.Address())
	nodetest.Eventually(t, "the limit is reached", func() bool { return len(log.lines("limit of connections")) == 1 })
	ended := draining(t, l, t.Context())
	io.WriteString(c, request)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestTheDefaultLimitLeavesDescriptorsForBackends(t *testing.T) {
	o := Options{Front: &front{}}.withDefaults()
	if all := descriptors(); o.MaxConnections < 1 || o.MaxConnections > all*3/4 {
		t.Errorf("%d connections of %d descriptors", o.MaxConnections, all)
	}
}

func TestANoticeIsGivenOnceInAWhile(t *testing.T) {
	n := notice{every: time.Minute}
	var start time.Time
	start = start.Add(time.Hour)
	for _, step := range []struct {
		after time.Duration
		times int
		due   bool
	}{{0, 1, true}, {time.Second, 0, false}, {59 * time.Second, 0, false}, {time.Minute, 3, true}, {2 * time.Minute, 1, true}} {
		if times, due := n.due(start.Add(step.after)); times != step.times || due != step.due {
			t.Errorf("after %v: %d, %t", step.after, times, due)
		}
	}
}

func TestAPanicEndsItsConnectionAlone(t *testing.T) {
	var log record
	f := &front{http1: func(net.Conn, *net.TCPConn, func() bool) bool { panic("out of cheese") }}
	l := started(t, Options{Front: f, Logger: log.logger(), MaxConnections: 1})
	for range 2 { // the second needs the first one's slot
		c := nodetest.Dial(t, l.Address())
		if got, err := io.ReadAll(c); err != nil || len(got) != 0 {
			t.Errorf("%q %v", got, err)
		}
	}
	lines := log.lines("out of cheese")
	if len(lines) != 2 || !strings.Contains(lines[0], "level=ERROR") || !strings.Contains(lines[0], t.Name()) {
		t.Errorf("%q", lines)
	}
}
