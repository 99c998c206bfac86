package accesslog

import (
	"bytes"
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// typical is a request as most are.
func typical() Entry {
	return Entry{
		Time:   time.Date(2026, 11, 23, 19, 1, 43, 123_456_789, time.UTC),
		Client: netip.MustParseAddr("192.0.2.7"), Method: []byte("GET"), Host: []byte("example.com"),
		Target: []byte("/a?b=1"), Proto: "HTTP/1.1", Status: 200, Received: 3, Sent: 512,
		Took: 1_234_567 * time.Nanosecond, UpstreamTook: 1100 * time.Microsecond, Route: "/a", Backend: "10.0.0.1:3000",
		RequestID: []byte("0f1e2d3c"), UserAgent: []byte("curl/8.9"), Referer: []byte("https://example.com/"), Retries: 1, Part: 2,
	}
}

// line is what becomes of an entry.
func line(e *Entry, f Format, limit int) string {
	var r record
	r.decode(e.encode(make([]byte, 0, e.size(limit)), limit))
	formatter := newFormatter(f)
	return string(formatter.append(nil, &r))
}

func newLog(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// target is named by its number, to be found in the log.
func logTarget(l *Log, target string) {
	e := typical()
	e.Target = []byte(target)
	l.Log(&e)
}

// disk is a Writer that takes what it is told to.
type disk struct {
	mu     sync.Mutex
	data   bytes.Buffer
	writes int
	room   int // bytes that it takes; below 0: any
	err    error
	hangs  chan struct{} // not nil: each write waits until it is closed
}

func (d *disk) Write(p []byte) (int, error) {
	if d.hangs != nil {
		<-d.hangs
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes++
	if d.err == nil {
		d.data.Write(p)
		return len(p), nil
	}
	n := min(len(p), d.room)
	d.data.Write(p[:n])
	d.room -= n
	if n < len(p) {
		return n, d.err
	}
	return n, nil
}

func (d *disk) fill(room int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room, d.err = room, err
}

func (d *disk) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.data.String()
}

func (d *disk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes
}
