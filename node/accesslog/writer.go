package accesslog

import (
	"bytes"
	"io"
	"log/slog"
	"runtime"
	"time"
)

const (
	// batch is how many bytes of lines are written at once, or a line more.
	batch = 64 << 10
	// upkeepInterval is how often a File's path is looked at.
	upkeepInterval = time.Second
)

// writer empties a Log's queue. It belongs to the Log's goroutine.
type writer struct {
	log            *Log
	to             io.Writer
	file           *File // to, if it is one
	logger         *slog.Logger
	flushInterval  time.Duration
	reportInterval time.Duration
	formatter      formatter
	record         record

	// lines are those to be written. torn says that the first is the rest of one whose beginning was written before the disk
	// was full: with it, once there is room again, the log stays one entry to a line.
	lines []byte
	torn  bool

	upkept     time.Time
	reported   time.Time
	overflowed uint64 // of the entries dropped, what was reported
	failed     uint64
	writeErr   error // of the last write that failed since the last report
	openErr    error // of the last attempt to follow the file that failed since the last report
}

func newWriter(l *Log, o Options) *writer {
	w := &writer{
		log: l, to: o.Writer, logger: o.Logger, flushInterval: o.FlushInterval, reportInterval: o.ReportInterval,
		formatter: newFormatter(o.Format), lines: make([]byte, 0, batch+batch/4),
	}
	w.file, _ = o.Writer.(*File)
	return w
}

// run wakes up by the clock rather than for entries, so that Log has nobody to wake and a write takes many lines.
func (w *writer) run() {
	defer close(w.log.done)
	ticker := time.NewTicker(w.flushInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-w.log.pressed:
		case <-w.log.closed:
			w.finish()
			return
		}
		if now := time.Now(); now.Sub(w.upkept) >= upkeepInterval {
			w.upkept = now
			w.reopen()
			w.report(now)
		}
		w.drain()
	}
}

// finish writes what is left. Nothing can be reserved any more; who has reserved is about to commit.
func (w *writer) finish() {
	w.reopen()
	for w.drain(); w.log.queue.tail.Load() != w.log.queue.reserved(); w.drain() {
		runtime.Gosched()
	}
	w.giveUpTorn()
	w.tell()
}

// drain writes what is in the queue at the moment, or up to an entry that is being copied into it.
func (w *writer) drain() {
	queue := &w.log.queue
	for end := queue.reserved(); queue.tail.Load() < end; {
		b, ok := queue.next()
		if !ok {
			break
		}
		w.record.decode(b)
		w.lines = w.formatter.append(w.lines, &w.record)
		queue.release()
		if len(w.lines) >= batch {
			w.write()
		}
	}
	w.write()
}

// write passes the lines on. Those that are not taken are dropped: kept, they would only move the loss to the entries after
// them.
func (w *writer) write() {
	if len(w.lines) == 0 {
		return
	}
	n, err := w.to.Write(w.lines)
	if n < len(w.lines) && err == nil {
		err = io.ErrShortWrite
	}
	w.log.written.Add(uint64(countLines(w.lines[:n])))
	if err == nil {
		w.lines, w.torn = w.lines[:0], false
		return
	}
	w.writeErr = err
	w.keepTorn(n)
}

// keepTorn drops the lines but for the rest of one of which only the beginning was written, n being what was written of all.
func (w *writer) keepTorn(n int) {
	rest := w.lines[n:]
	if n > 0 {
		w.torn = w.lines[n-1] != '\n'
	}
	end := 0
	if w.torn {
		end = bytes.IndexByte(rest, '\n') + 1
	}
	w.log.failed.Add(uint64(countLines(rest[end:])))
	w.lines = append(w.lines[:0], rest[:end]...)
}

// giveUpTorn drops the rest of a line that cannot be completed any more.
func (w *writer) giveUpTorn() {
	if w.torn {
		w.log.failed.Add(1)
		w.lines, w.torn = w.lines[:0], false
	}
}

func countLines(b []byte) int { return bytes.Count(b, []byte{'\n'}) }

// reopen follows a file that was moved away. If that fails, the old one is as good as any.
func (w *writer) reopen() {
	if w.file == nil {
		return
	}
	reopened, err := w.file.follow()
	if reopened {
		w.giveUpTorn()
	}
	if err != nil {
		w.openErr = err
	}
}

// report tells what went wrong, unless it did so not long ago.
func (w *writer) report(now time.Time) {
	if w.reported.IsZero() || now.Sub(w.reported) >= w.reportInterval {
		if w.tell() {
			w.reported = now
		}
	}
}

// tell says whether there was anything to tell.
func (w *writer) tell() bool {
	overflowed, failed := w.log.overflowed.Load(), w.log.failed.Load()
	dropped := overflowed != w.overflowed || failed != w.failed
	if dropped {
		w.logger.Warn("access log entries dropped", "queue_full", overflowed-w.overflowed, "write_failed", failed-w.failed,
			"error", w.writeErr)
		w.overflowed, w.failed, w.writeErr = overflowed, failed, nil
	}
	stale := w.openErr != nil
	if stale {
		w.logger.Warn("opening the access log again failed", "error", w.openErr)
		w.openErr = nil
	}
	return dropped || stale
}
