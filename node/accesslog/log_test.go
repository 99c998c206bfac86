package accesslog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var errFull = errors.New("no space left on device")

// small is a queue that few entries fill: one of 8 KiB takes 16 of logTarget's.
func small(w io.Writer) Options { return Options{Writer: w, Queue: 8 << 10, MaxValue: 100} }

func TestEntriesAreWrittenTogetherAfterTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		l := newLog(t, Options{Writer: d, FlushInterval: 200 * time.Millisecond})
		defer closeLog(t, l)
		for i := range 100 {
			logTarget(l, fmt.Sprint("/", i))
		}
		time.Sleep(199 * time.Millisecond)
		synctest.Wait()
		if d.count() != 0 {
			t.Error("written before the interval is over")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if n := strings.Count(d.String(), "\n"); d.count() != 1 || n != 100 || l.Written() != 100 {
			t.Errorf("%d writes, %d lines, Written %d, want 1, 100 and 100", d.count(), n, l.Written())
		}
		for i, line := range strings.Split(strings.TrimSpace(d.String()), "\n") {
			if !strings.Contains(line, fmt.Sprintf(`"GET /%d HTTP/1.1"`, i)) {
				t.Fatalf("line %d is %s", i, line)
			}
		}
	})
}

func TestHalfFullQueueIsWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		o := small(d)
		o.FlushInterval = time.Hour
		l := newLog(t, o)
		defer closeLog(t, l)
		const entries = 200
		for range entries {
			logTarget(l, "/")
			synctest.Wait()
		}
		if l.Dropped() != 0 || l.Written() < entries-16 {
			t.Errorf("%d written and %d dropped without the clock", l.Written(), l.Dropped())
		}
	})
}

func TestFullQueueDropsAndNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{hangs: make(chan struct{})}
		l := newLog(t, small(d))
		logTarget(l, "/first")
		time.Sleep(time.Second) // the writer hangs in its write
		synctest.Wait()
		begun := time.Now()
		for range 1000 {
			logTarget(l, "/")
		}
		if time.Since(begun) != 0 {
			t.Error("logging has waited")
		}
		if l.Dropped() < 900 || l.Written() != 0 {
			t.Errorf("%d dropped, %d written", l.Dropped(), l.Written())
		}
		close(d.hangs)
		closeLog(t, l)
		if sum := l.Dropped() + l.Written(); sum != 1001 {
			t.Errorf("%d entries are dropped or written, want 1001", sum)
		}
		if n := strings.Count(d.String(), "\n"); uint64(n) != l.Written() {
			t.Errorf("%d lines, Written %d", n, l.Written())
		}
	})
}

func TestCloseWritesWhatIsLeft(t *testing.T) {
	d := &disk{}
	l := newLog(t, Options{Writer: d, FlushInterval: time.Hour})
	logTarget(l, "/last")
	closeLog(t, l)
	if !strings.Contains(d.String(), "/last") {
		t.Error("an entry was lost")
	}
	logTarget(l, "/late")
	closeLog(t, l)
	if l.Written() != 1 || l.Dropped() != 1 {
		t.Errorf("%d written, %d dropped, want one each", l.Written(), l.Dropped())
	}
}

func TestCloseGivesUpOnAWriteThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{hangs: make(chan struct{})}
		l := newLog(t, small(d))
		logTarget(l, "/")
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the deadline", err)
		}
		close(d.hangs)
		closeLog(t, l)
		if l.Written() != 1 {
			t.Errorf("%d written", l.Written())
		}
	})
}

func TestEveryEntryIsWrittenOrDropped(t *testing.T) {
	const workers, entries = 8, 2000
	d := &disk{}
	l := newLog(t, Options{Writer: d, Queue: 64 << 10, MaxValue: 200, FlushInterval: time.Millisecond})
	var logging sync.WaitGroup
	for worker := range workers {
		logging.Go(func() {
			for i := range entries {
				// Of many lengths, so that records end everywhere in the ring.
				logTarget(l, fmt.Sprintf("/%d/%d/%s.", worker, i, strings.Repeat("x", (i*37+worker)%190)))
				if i == entries/2 && worker == 0 {
					go l.Close(context.Background())
				}
			}
		})
	}
	logging.Wait()
	closeLog(t, l)
	if sum := l.Written() + l.Dropped(); sum != workers*entries {
		t.Errorf("%d are written or dropped, want %d", sum, workers*entries)
	}
	checkOrder(t, d.String(), l.Written(), workers)
}

// checkOrder looks whether each worker's entries are whole and in the order in which they were logged.
func checkOrder(t *testing.T, log string, want uint64, workers int) {
	t.Helper()
	last := make([]int, workers)
	var lines uint64
	for line := range strings.Lines(log) {
		lines++
		_, target, _ := strings.Cut(line, `"GET /`)
		var worker, i int
		if _, err := fmt.Sscanf(target, "%d/%d/", &worker, &i); err != nil || textLine.FindString(line) == "" {
			t.Fatalf("%v: %q", err, line)
		}
		if i < last[worker] {
			t.Fatalf("entry %d of worker %d after %d", i, worker, last[worker])
		}
		last[worker] = i
	}
	if lines != want {
		t.Errorf("%d lines, want %d", lines, want)
	}
}

func TestFailingWritesAreCountedAndReportedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports bytes.Buffer
		d := &disk{}
		d.fill(0, errFull)
		o := small(d)
		o.ReportInterval, o.Logger = time.Minute, slog.New(slog.NewTextHandler(&reports, nil))
		l := newLog(t, o)
		for range 90 {
			logTarget(l, "/")
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if l.Dropped() != 90 || l.Written() != 0 {
			t.Errorf("%d dropped, %d written", l.Dropped(), l.Written())
		}
		if n := strings.Count(reports.String(), "access log entries dropped"); n != 2 {
			t.Errorf("%d reports in 90 s, want 2:\n%s", n, &reports)
		}
		if !strings.Contains(reports.String(), "no space left") {
			t.Errorf("the reports do not say why:\n%s", &reports)
		}
		closeLog(t, l)
		var sum uint64
		for line := range strings.Lines(reports.String()) {
			_, failed, _ := strings.Cut(line, "write_failed=")
			var n uint64
			fmt.Sscan(failed, &n)
			sum += n
		}
		if sum != 90 {
			t.Errorf("%d entries are reported, want 90, the rest when the log is closed:\n%s", sum, &reports)
		}
	})
}

func TestFullQueueIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports bytes.Buffer
		o := small(&disk{})
		o.Logger = slog.New(slog.NewTextHandler(&reports, nil))
		l := newLog(t, o)
		for range 100 {
			logTarget(l, "/") // the writer has no turn in between
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		want := fmt.Sprintf("queue_full=%d write_failed=0", l.Dropped())
		if l.Dropped() == 0 || !strings.Contains(reports.String(), want) {
			t.Errorf("no report with %s: %s", want, &reports)
		}
		closeLog(t, l)
	})
}

// A disk that becomes full in the middle of a line and has room again later.
func TestLineThatWasTornIsCompleted(t *testing.T) {
	for _, room := range []int{0, 1, 300, 500} {
		synctest.Test(t, func(t *testing.T) {
			d := &disk{}
			l := newLog(t, small(d))
			d.fill(room, errFull)
			for i := range 3 {
				logTarget(l, fmt.Sprint("/full/", i))
			}
			time.Sleep(time.Second)
			logTarget(l, "/still full")
			time.Sleep(time.Second)
			synctest.Wait()
			d.fill(0, nil)
			logTarget(l, "/room")
			closeLog(t, l)
			lines := strings.Split(strings.TrimSuffix(d.String(), "\n"), "\n")
			for _, line := range lines {
				if textLine.FindString(line+"\n") == "" {
					t.Errorf("room for %d bytes: %q", room, line)
				}
			}
			if !strings.Contains(lines[len(lines)-1], "/room") {
				t.Errorf("room for %d bytes: the last line is %s", room, lines[len(lines)-1])
			}
			if l.Written() != uint64(len(lines)) || l.Written()+l.Dropped() != 5 {
				t.Errorf("room for %d bytes: %d lines, %d written, %d dropped", room, len(lines), l.Written(), l.Dropped())
			}
		})
	}
}

func TestTornLineThatIsNeverCompletedIsDropped(t *testing.T) {
	d := &disk{}
	d.fill(10, errFull)
	l := newLog(t, small(d))
	logTarget(l, "/")
	closeLog(t, l)
	if l.Dropped() != 1 || l.Written() != 0 {
		t.Errorf("%d dropped, %d written", l.Dropped(), l.Written())
	}
}

// shortWriter breaks io.Writer's promise of an error.
type shortWriter struct{ disk }

func (w *shortWriter) Write(p []byte) (int, error) {
	n, _ := w.disk.Write(p[:len(p)/2])
	return n, nil
}

func TestShortWriteIsAFailure(t *testing.T) {
	w := &shortWriter{}
	l := newLog(t, small(w))
	logTarget(l, "/")
	closeLog(t, l)
	if l.Dropped() != 1 {
		t.Errorf("%d dropped", l.Dropped())
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "Options.Writer"},
		{Options{Writer: io.Discard, Format: 7}, "Options.Format"},
		{Options{Writer: io.Discard, MaxValue: -1}, "Options.MaxValue"},
		{Options{Writer: io.Discard, MaxValue: 1 << 15}, "Options.MaxValue"},
		{Options{Writer: io.Discard, Queue: 4096}, "Options.Queue"},
		{Options{Writer: io.Discard, Queue: 2 << 30}, "Options.Queue"},
		{Options{Writer: io.Discard, FlushInterval: -1}, "Options.FlushInterval"},
		{Options{Writer: io.Discard, ReportInterval: -1}, "Options.ReportInterval"},
	} {
		if _, err := New(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want an error that names %s", c.o, err, c.want)
		}
	}
}

func TestLongestEntryFitsTheSmallestQueue(t *testing.T) {
	const limit = maxMaxValue
	least := minEntries * (recordFixed + recordValues*limit)
	d := &disk{}
	l := newLog(t, Options{Writer: d, Queue: least, MaxValue: limit, Format: JSON})
	long := bytes.Repeat([]byte{1}, limit+1)
	e := Entry{
		Method: long, Host: long, Target: long, Proto: string(long), Route: string(long), Backend: string(long), RequestID: long,
		UserAgent: long, Referer: long, Class: string(long),
	}
	l.Log(&e)
	l.Log(&e)
	closeLog(t, l)
	if l.Written() != 2 {
		t.Errorf("%d written", l.Written())
	}
}

func TestLoggingDoesNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	l := newLog(t, Options{Writer: io.Discard, FlushInterval: time.Hour})
	defer closeLog(t, l)
	method, host, target, agent := []byte("GET"), []byte("example.com"), []byte("/a"), bytes.Repeat([]byte("long "), 1000)
	client := typical().Client
	allocs := testing.AllocsPerRun(1000, func() {
		e := Entry{Time: time.Now(), Client: client, Method: method, Host: host, Target: target, UserAgent: agent, Proto: "HTTP/1.1"}
		l.Log(&e)
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestFormattingDoesNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	for _, format := range []Format{Text, JSON} {
		e := typical()
		e.UserAgent = []byte("\x00é\u2028\xff\"")
		encoded, lines, f := e.encode(nil, 100), make([]byte, 0, 4096), newFormatter(format)
		var r record
		second := int64(0)
		allocs := testing.AllocsPerRun(100, func() {
			r.decode(encoded)
			r.seconds = second
			second++
			lines = f.append(lines[:0], &r)
		})
		if allocs != 0 {
			t.Errorf("format %d: %v allocations", format, allocs)
		}
	}
}
