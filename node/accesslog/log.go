package accesslog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultQueue          = 4 << 20
	maxQueue              = 1 << 30
	defaultMaxValue       = 2048
	maxMaxValue           = 16 << 10
	defaultFlushInterval  = 100 * time.Millisecond
	defaultReportInterval = time.Minute
	// minEntries is how many of the longest entries a queue has room for: at the end of the ring one is lost to skipping.
	minEntries = 4
)

// Options of a Log.
type Options struct {
	// Where lines go, many with each call, from one goroutine. Required. It stays the caller's, who closes it after Close. A
	// *File is opened again when it has been moved away.
	Writer io.Writer
	Format Format
	// Bytes of the queue, rounded up to a power of two; an ordinary entry takes 300 to 500. It has to last while a write hangs.
	// 0: 4 MiB. At most 1 GiB.
	Queue int
	// Bytes of a value beyond which it is cut. 0: 2048. At most 16 KiB.
	MaxValue int
	// How long an entry may wait for others to be written with it. 0: 100 ms.
	FlushInterval time.Duration
	// How often at most the Logger is told that entries were dropped, or that a File cannot be opened again. 0: a minute.
	ReportInterval time.Duration
	// Nil: nobody is told.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	o.Queue = withDefault(o.Queue, defaultQueue)
	o.MaxValue = withDefault(o.MaxValue, defaultMaxValue)
	o.FlushInterval = withDefault(o.FlushInterval, defaultFlushInterval)
	o.ReportInterval = withDefault(o.ReportInterval, defaultReportInterval)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func withDefault[T int | time.Duration](given, otherwise T) T {
	if given == 0 {
		return otherwise
	}
	return given
}

// validate is asked once the defaults are in their places.
func (o Options) validate() error {
	least := minEntries * (recordFixed + recordValues*o.MaxValue)
	switch {
	case o.Writer == nil:
		return errors.New("accesslog: Options.Writer is missing")
	case o.Format > JSON:
		return fmt.Errorf("accesslog: Options.Format is %d, want Text or JSON", o.Format)
	case o.MaxValue < 0 || o.MaxValue > maxMaxValue:
		return fmt.Errorf("accesslog: Options.MaxValue is %d, want 0 to %d", o.MaxValue, maxMaxValue)
	case o.Queue < least || o.Queue > maxQueue:
		return fmt.Errorf("accesslog: Options.Queue is %d bytes, want %d to %d with values of up to %d", o.Queue, least, maxQueue,
			o.MaxValue)
	case o.FlushInterval < 0:
		return fmt.Errorf("accesslog: Options.FlushInterval is %v, want 0 or more", o.FlushInterval)
	case o.ReportInterval < 0:
		return fmt.Errorf("accesslog: Options.ReportInterval is %v, want 0 or more", o.ReportInterval)
	}
	return nil
}

// Log is an access log. Its methods may be called concurrently.
type Log struct {
	queue      ring
	maxValue   int
	pressed    chan struct{} // the queue is half full; capacity 1
	overflowed atomic.Uint64 // entries for which the queue had no room
	failed     atomic.Uint64 // entries that could not be written
	written    atomic.Uint64

	closing sync.Once
	closed  chan struct{} // closed with the queue
	done    chan struct{} // closed when everything is written
}

// New makes a Log and starts its goroutine, which Close ends. The error names the option that is wrong.
func New(o Options) (*Log, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	l := &Log{maxValue: o.MaxValue, pressed: make(chan struct{}, 1), closed: make(chan struct{}), done: make(chan struct{})}
	l.queue.init(1 << bits.Len(uint(o.Queue/blockSize-1)))
	go newWriter(l, o).run()
	return l, nil
}

// Log takes a copy of e to be written soon, and keeps nothing of e itself. It neither blocks nor allocates: where there is
// no room, or after Close, the entry is dropped and counted.
func (l *Log) Log(e *Entry) {
	blocks := blocksFor(e.size(l.maxValue))
	at, pressed, ok := l.queue.reserve(blocks)
	if !ok {
		l.overflowed.Add(1)
		return
	}
	e.encode(l.queue.bytes(at, blocks)[:0], l.maxValue)
	l.queue.commit(at, blocks)
	if pressed {
		select {
		case l.pressed <- struct{}{}:
		default:
		}
	}
}

// Dropped is how many entries were not written: the queue was full, writing failed, or the log was closed. With Written it
// makes up all entries that were logged, once they have left the queue.
func (l *Log) Dropped() uint64 { return l.overflowed.Load() + l.failed.Load() }

// Written is how many entries the writer has taken.
func (l *Log) Written() uint64 { return l.written.Load() }

// Close takes no more entries, and waits until those of before are written, or dropped because that fails. The error is
// ctx's: a write hangs. The goroutine then ends with that write, and Close may be called again to wait for it.
func (l *Log) Close(ctx context.Context) error {
	l.closing.Do(func() {
		l.queue.close()
		close(l.closed)
	})
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("write what is left of the access log: %w", ctx.Err())
	}
}
