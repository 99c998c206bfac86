package accesslog

import (
	"io"
	"testing"
)

// What a request pays for its line. What the writer has no time for is dropped, and said.
func BenchmarkLog(b *testing.B) {
	for _, c := range []struct {
		name   string
		format Format
	}{{"text", Text}, {"json", JSON}} {
		b.Run(c.name, func(b *testing.B) {
			l := newLog(b, Options{Writer: io.Discard, Format: c.format})
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				e := typical()
				for pb.Next() {
					l.Log(&e)
				}
			})
			closeLog(b, l)
			b.ReportMetric(float64(l.Dropped())/float64(b.N), "dropped/op")
		})
	}
}

// What a request pays where the queue is full.
func BenchmarkLogFull(b *testing.B) {
	d := &disk{hangs: make(chan struct{})}
	l := newLog(b, small(d))
	e := typical()
	b.ReportAllocs()
	for b.Loop() {
		l.Log(&e)
	}
	close(d.hangs)
	closeLog(b, l)
}

// What the writer pays for a line.
func BenchmarkLine(b *testing.B) {
	for _, c := range []struct {
		name   string
		format Format
	}{{"text", Text}, {"json", JSON}} {
		b.Run(c.name, func(b *testing.B) {
			e := typical()
			encoded, lines, f := e.encode(nil, defaultMaxValue), make([]byte, 0, 4096), newFormatter(c.format)
			var r record
			b.ReportAllocs()
			for b.Loop() {
				r.decode(encoded)
				lines = f.append(lines[:0], &r)
			}
			b.SetBytes(int64(len(lines)))
		})
	}
}

// Copying an entry into the queue and out of it, without formatting.
func BenchmarkQueue(b *testing.B) {
	l := &Log{maxValue: defaultMaxValue}
	l.queue.init(1 << 16)
	e := typical()
	b.ReportAllocs()
	for b.Loop() {
		l.Log(&e)
		if _, ok := l.queue.next(); !ok {
			b.Fatal("no record")
		}
		l.queue.release()
	}
}
