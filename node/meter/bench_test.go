package meter

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What a request costs that is counted on the shard of its core.
func BenchmarkEnded(b *testing.B) {
	s := newSet(b, Options{})
	r := s.Route("/")
	var workers atomic.Uint32
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		shard := workers.Add(1)
		for pb.Next() {
			r.Ended(shard, 200, 1200*time.Microsecond, 0, 512)
		}
	})
}

// The same where all cores use one shard.
func BenchmarkEndedOneShard(b *testing.B) {
	s := newSet(b, Options{})
	r := s.Route("/")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Ended(0, 200, 1200*time.Microsecond, 0, 512)
		}
	})
}

// What Ended replaces: the vectors of Prometheus, their series looked up once. It does not count bytes.
func BenchmarkPrometheus(b *testing.B) {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "r"}, []string{"route", "code_class"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "s", Buckets: boundsInSeconds[:]}, []string{"route"})
	counter, histogram := requests.WithLabelValues("/", "2xx"), seconds.WithLabelValues("/")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			counter.Inc()
			histogram.Observe((1200 * time.Microsecond).Seconds())
		}
	})
}

func BenchmarkInFlight(b *testing.B) {
	s := newSet(b, Options{})
	var workers atomic.Uint32
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		shard := workers.Add(1)
		for pb.Next() {
			s.InFlight(shard, 1)
			s.InFlight(shard, -1)
		}
	})
}

// A scrape of 1000 routes that are in use.
func BenchmarkCollect(b *testing.B) {
	s := newSet(b, Options{})
	for i := range 1000 {
		s.Route(fmt.Sprintf("/%d", i)).Ended(uint32(i), 200, time.Millisecond, 0, 0)
	}
	b.ReportAllocs()
	for b.Loop() {
		out := make(chan prometheus.Metric, 100)
		go func() { s.Collect(out); close(out) }()
		for range out {
		}
	}
}
