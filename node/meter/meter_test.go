package meter

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

var testClasses = []string{"client", "upstream_before_bytes", "upstream_after_bytes", "ours"}

func newSet(t testing.TB, o Options) *Set {
	t.Helper()
	if o.Classes == nil {
		o.Classes = testClasses
	}
	if o.RejectReasons == nil {
		o.RejectReasons = []string{"none", "bare CR", "obs-fold"}
	}
	s, err := NewSet(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// scrape is what Prometheus is told, without the families of other names where names are given.
func scrape(t testing.TB, g prometheus.Gatherer, names ...string) string {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(g, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("the scrape fails: %s", w.Body)
	}
	var kept strings.Builder
	for line := range strings.Lines(w.Body.String()) {
		of := func(name string) bool {
			rest, _ := strings.CutPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
			end := strings.IndexAny(rest, " {")
			family := rest[:end]
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				family = strings.TrimSuffix(family, suffix)
			}
			return family == name
		}
		if len(names) == 0 || slices.ContainsFunc(names, of) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// registered is a registry that checks what s collects against what it describes.
func registered(t testing.TB, s *Set) *prometheus.Registry {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := s.Register(registry); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Unregister)
	return registry
}

// expect compares the families of those names, all where there are none, with text in the exposition format.
func expect(t *testing.T, s *Set, text string, names ...string) {
	t.Helper()
	if got := scrape(t, registered(t, s), names...); got != strings.TrimPrefix(text, "\n") {
		t.Errorf("exported:\n%s\nwant:%s", got, text)
	}
}

// series counts those of a family, or all of them where name is empty.
func series(t testing.TB, g prometheus.Gatherer, name string) int {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, family := range families {
		if name == "" || family.GetName() == name {
			n += len(family.Metric)
		}
	}
	return n
}

func TestTheTimeOfManyLongRequestsDoesNotWrapAround(t *testing.T) {
	s := newSet(t, Options{Shards: 1})
	const longest, times = time.Duration(math.MaxInt64), 5
	for range times {
		s.Route("/poll").Ended(0, 200, longest, 0, 0)
	}
	families, err := registered(t, s).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "pyserve_request_seconds" {
			continue
		}
		if sum := family.Metric[0].Histogram.GetSampleSum(); math.Abs(sum/longest.Seconds()-times) > 1e-9 {
			t.Errorf("%v s, want %v", sum, times*longest.Seconds())
		}
		return
	}
	t.Error("no time was counted")
}

func TestEndedCountsStatusTimeAndBytesOfAllShards(t *testing.T) {
	s := newSet(t, Options{Shards: 4})
	r := s.Route("/api")
	r.Ended(0, 200, time.Millisecond, 10, 1000)
	r.Ended(1, 204, 1500*time.Microsecond, 5, 0)
	r.Ended(3, 502, 2*time.Minute, 0, 100)
	r.Ended(7, 0, 0, 0, 0) // the same as shard 3
	r.Ended(math.MaxUint32, 999, 30*time.Second, 0, 0)
	expect(t, s, `
# HELP pyserve_request_bytes_total Bytes of bodies that were received from clients and sent to them.
# TYPE pyserve_request_bytes_total counter
pyserve_request_bytes_total{direction="received",route="/api"} 15
pyserve_request_bytes_total{direction="sent",route="/api"} 1100
# HELP pyserve_request_seconds Time from a request's head to the end of its answer, or to its upgrade.
# TYPE pyserve_request_seconds histogram
pyserve_request_seconds_bucket{route="/api",le="0.001"} 2
pyserve_request_seconds_bucket{route="/api",le="0.0025"} 3
pyserve_request_seconds_bucket{route="/api",le="0.005"} 3
pyserve_request_seconds_bucket{route="/api",le="0.01"} 3
pyserve_request_seconds_bucket{route="/api",le="0.025"} 3
pyserve_request_seconds_bucket{route="/api",le="0.05"} 3
pyserve_request_seconds_bucket{route="/api",le="0.1"} 3
pyserve_request_seconds_bucket{route="/api",le="0.25"} 3
pyserve_request_seconds_bucket{route="/api",le="0.5"} 3
pyserve_request_seconds_bucket{route="/api",le="1"} 3
pyserve_request_seconds_bucket{route="/api",le="2.5"} 3
pyserve_request_seconds_bucket{route="/api",le="5"} 3
pyserve_request_seconds_bucket{route="/api",le="10"} 3
pyserve_request_seconds_bucket{route="/api",le="30"} 4
pyserve_request_seconds_bucket{route="/api",le="60"} 4
pyserve_request_seconds_bucket{route="/api",le="+Inf"} 5
pyserve_request_seconds_sum{route="/api"} 150.0025
pyserve_request_seconds_count{route="/api"} 5
# HELP pyserve_requests_total Requests that have ended, by the class of their status.
# TYPE pyserve_requests_total counter
pyserve_requests_total{code_class="1xx",route="/api"} 0
pyserve_requests_total{code_class="2xx",route="/api"} 2
pyserve_requests_total{code_class="3xx",route="/api"} 0
pyserve_requests_total{code_class="4xx",route="/api"} 0
pyserve_requests_total{code_class="5xx",route="/api"} 1
pyserve_requests_total{code_class="none",route="/api"} 2
`, "pyserve_requests_total", "pyserve_request_seconds", "pyserve_request_bytes_total")
}

func TestRetriesAndFailures(t *testing.T) {
	s := newSet(t, Options{Shards: 2})
	r := s.Route("/api")
	r.Retried(0)
	r.Retried(1)
	r.Failed(0, 1)
	r.Failed(1, 1)
	r.Failed(1, 3)
	expect(t, s, `
# HELP pyserve_request_failures_total Requests that were not forwarded to their end, by whose doing it was.
# TYPE pyserve_request_failures_total counter
pyserve_request_failures_total{class="client",route="/api"} 0
pyserve_request_failures_total{class="ours",route="/api"} 1
pyserve_request_failures_total{class="upstream_after_bytes",route="/api"} 0
pyserve_request_failures_total{class="upstream_before_bytes",route="/api"} 2
# HELP pyserve_retries_total Times that requests were sent again, on another backend or connection.
# TYPE pyserve_retries_total counter
pyserve_retries_total{route="/api"} 2
`, "pyserve_request_failures_total", "pyserve_retries_total")
}

func TestWhatIsUnderWay(t *testing.T) {
	s := newSet(t, Options{Shards: 2})
	s.InFlight(0, 1)
	s.InFlight(0, 1)
	s.InFlight(1, -1)
	s.Connected(0, 3)
	s.Connected(1, -2)
	expect(t, s, `
# HELP pyserve_client_connections Connections of clients that are open.
# TYPE pyserve_client_connections gauge
pyserve_client_connections 1
# HELP pyserve_client_connections_total Connections that clients have opened.
# TYPE pyserve_client_connections_total counter
pyserve_client_connections_total 3
# HELP pyserve_requests_in_flight Requests under way, tunnels not counted.
# TYPE pyserve_requests_in_flight gauge
pyserve_requests_in_flight 1
`)
}

func TestRejectedMessagesAreShownWhereThereAreSome(t *testing.T) {
	s := newSet(t, Options{})
	s.Rejected(Client, 1)
	s.Rejected(Client, 1)
	s.Rejected(Backend, 2)
	expect(t, s, `
# HELP pyserve_rejected_messages_total Messages that were refused for what they look like on the wire, by who sent them.
# TYPE pyserve_rejected_messages_total counter
pyserve_rejected_messages_total{reason="bare CR",side="client"} 2
pyserve_rejected_messages_total{reason="obs-fold",side="backend"} 1
`, "pyserve_rejected_messages_total")
}

func TestNumbersWithoutANameAreCountedAsUnknown(t *testing.T) {
	s := newSet(t, Options{Classes: []string{"client"}, RejectReasons: []string{"none"}})
	for _, n := range []int{-1, 1, 1 << 30} {
		s.Rejected(n, n)
		s.Route("/").Failed(0, n)
	}
	expect(t, s, `
# HELP pyserve_rejected_messages_total Messages that were refused for what they look like on the wire, by who sent them.
# TYPE pyserve_rejected_messages_total counter
pyserve_rejected_messages_total{reason="unknown",side="backend"} 1
pyserve_rejected_messages_total{reason="unknown",side="unknown"} 2
# HELP pyserve_request_failures_total Requests that were not forwarded to their end, by whose doing it was.
# TYPE pyserve_request_failures_total counter
pyserve_request_failures_total{class="client",route="/"} 0
pyserve_request_failures_total{class="unknown",route="/"} 3
`, "pyserve_rejected_messages_total", "pyserve_request_failures_total")
}

func TestTimesAndBytesBelowZeroCountAsZero(t *testing.T) {
	s := newSet(t, Options{})
	s.Route("/").Ended(0, -200, -time.Second, -1, math.MinInt64)
	totals := s.Route("/").totals()
	if totals.requests[0] != 1 || totals.buckets[0] != 1 {
		t.Errorf("the request was not counted: %+v", totals)
	}
	if totals.milliseconds|totals.nanoseconds|totals.received|totals.sent != 0 {
		t.Errorf("a counter has fallen: %+v", totals)
	}
}

func TestBucketsAreThoseOfPrometheus(t *testing.T) {
	const help = "Time from a request's head to the end of its answer, or to its upgrade."
	histogram := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "pyserve_request_seconds", Help: help,
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"route"})
	s := newSet(t, Options{})
	r := s.Route("/")
	for _, bound := range bounds {
		for _, d := range []time.Duration{bound - time.Millisecond/2, bound, bound + time.Millisecond/2} {
			histogram.WithLabelValues("/").Observe(d.Seconds())
			r.Ended(0, 200, d, 0, 0)
		}
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(histogram)
	expect(t, s, scrape(t, registry), "pyserve_request_seconds")
}

func TestBoundsBelongToTheirBuckets(t *testing.T) {
	for i, bound := range bounds {
		if got := [3]int{bucket(bound - 1), bucket(bound), bucket(bound + 1)}; got != [3]int{i, i, i + 1} {
			t.Errorf("around %v the buckets are %v, want %v", bound, got, [3]int{i, i, i + 1})
		}
	}
}

func TestForgottenRouteIsNotCounted(t *testing.T) {
	s := newSet(t, Options{Shards: 2})
	old, other := s.Route("/old"), s.Route("/other")
	old.Ended(0, 200, 0, 0, 0)
	other.Retried(0)
	s.Forget("/old")
	s.Forget("/never")
	old.Ended(0, 200, 0, 0, 0)
	old.Ended(1, 200, 0, 0, 0) // on a shard that it was not used on before
	old.Failed(1, 0)
	old.Retried(1)
	if n := series(t, registered(t, s), "pyserve_retries_total"); n != 1 {
		t.Errorf("%d routes are exported, want /other alone", n)
	}
	again := s.Route("/old")
	if again == old {
		t.Fatal("a forgotten route has come back")
	}
	again.Ended(0, 200, 0, 0, 0)
	if totals := again.totals(); totals.requests[2] != 1 {
		t.Errorf("a route that came back counts from %d on, want 0", totals.requests[2]-1)
	}
}

func TestRouteHasNoSeriesBeforeItsFirstRequest(t *testing.T) {
	s := newSet(t, Options{})
	if first, second := s.Route("/"), s.Route("/"); first != second {
		t.Error("two routes of one name")
	}
	if n := series(t, registered(t, s), ""); n != 3 {
		t.Errorf("%d series, want those of requests in flight and connections alone", n)
	}
}

func TestNameThatIsNotUTF8DoesNotBreakTheScrape(t *testing.T) {
	s := newSet(t, Options{})
	s.Route("/\xff").Retried(0)
	expect(t, s, `
# HELP pyserve_retries_total Times that requests were sent again, on another backend or connection.
# TYPE pyserve_retries_total counter
pyserve_retries_total{route="/�"} 1
`, "pyserve_retries_total")
	if s.Forget("/\xff"); len(s.routes) != 0 {
		t.Error("it cannot be forgotten")
	}
}

func TestRegisterIsAllOrNothing(t *testing.T) {
	registry := prometheus.NewRegistry()
	theirs := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pyserve_retries_total", Help: "Times that requests were sent again, on another backend or connection.",
	}, []string{"route"})
	theirs.WithLabelValues("/theirs").Inc()
	registry.MustRegister(theirs)
	s := newSet(t, Options{})
	s.Route("/ours").Retried(0)
	if err := s.Register(registry); err == nil {
		t.Fatal("a name that is taken was registered")
	}
	s.Unregister()
	if n := series(t, registry, ""); n != 1 {
		t.Errorf("%d series, want the other's alone", n)
	}
	registry.Unregister(theirs)
	if err := s.Register(registry); err != nil {
		t.Errorf("after the name was given up: %v", err)
	}
}

func TestUnregister(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	first, second := newSet(t, Options{}), newSet(t, Options{})
	if err := first.Register(registry); err != nil {
		t.Fatal(err)
	}
	if err := first.Register(registry); err == nil {
		t.Error("registered twice")
	}
	if err := second.Register(registry); err == nil {
		t.Error("two sets are registered")
	}
	second.Unregister()
	if n := series(t, registry, ""); n != 3 {
		t.Errorf("a set that was refused took another's series: %d are left", n)
	}
	first.Unregister()
	first.Unregister()
	if n := series(t, registry, ""); n != 0 {
		t.Errorf("%d series are left", n)
	}
	if err := second.Register(registry); err != nil {
		t.Error(err)
	}
	if err := first.Register(nil); err != nil {
		t.Error(err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Shards: -1}, "Options.Shards"},
		{Options{Classes: make([]string, maxClasses+1)}, "Options.Classes"},
		{Options{Classes: []string{"a", "b", "a"}}, "Options.Classes"},
		{Options{Classes: []string{"unknown"}}, "Options.Classes"},
		{Options{RejectReasons: []string{"\xff"}}, "Options.RejectReasons"},
	} {
		if _, err := NewSet(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want an error that names %s", c.o, err, c.want)
		}
	}
}

func TestShardsAreAPowerOfTwo(t *testing.T) {
	for given, want := range map[int]int{1: 1, 2: 2, 3: 4, 8: 8, 9: 16, 32: 32, 33: 32, 1 << 20: 32} {
		if got := shardsFor(given); got != want {
			t.Errorf("%d shards become %d, want %d", given, got, want)
		}
	}
	if got := shardsFor(0); got < min(runtime.GOMAXPROCS(0), maxShards) {
		t.Errorf("%d shards for %d cores", got, runtime.GOMAXPROCS(0))
	}
}

func TestShardsShareNoCacheLine(t *testing.T) {
	const line = 64
	s := newSet(t, Options{Shards: maxShards})
	r := s.Route("/")
	for i := range uint32(maxShards) {
		if address := reflect.ValueOf(r.cell(i)).Pointer(); address%line != 0 {
			t.Errorf("cell %d begins at %#x", i, address)
		}
		if address := reflect.ValueOf(&s.loads[i]).Pointer(); address%line != 0 {
			t.Errorf("load %d begins at %#x", i, address)
		}
	}
	for _, size := range []uintptr{reflect.TypeFor[cell]().Size(), reflect.TypeFor[load]().Size()} {
		if size%line != 0 {
			t.Errorf("a size of %d", size)
		}
	}
}

// Scrapes amid requests: nothing falls, a histogram's count is the sum of its buckets, and gauges are never below 0.
func TestCountingAndCollectingAtATime(t *testing.T) {
	const workers, requests = 8, 2000
	s := newSet(t, Options{Shards: 4})
	registry := registered(t, s)
	var counting sync.WaitGroup
	for worker := range uint32(workers) {
		counting.Go(func() { countAll(s, worker, requests) })
	}
	done := make(chan struct{})
	go func() { counting.Wait(); close(done) }()
	before := map[string]float64{}
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		before = compareScrape(t, registry, before)
	}
	sums := map[string]float64{}
	for name, value := range before {
		family, _, _ := strings.Cut(name, " ")
		sums[family] += value
	}
	for _, family := range []string{"requests_total", "client_connections_total", "retries_total", "request_failures_total"} {
		if got := sums["pyserve_"+family]; got != workers*requests {
			t.Errorf("%s is %v, want %d", family, got, workers*requests)
		}
	}
}

func countAll(s *Set, worker uint32, requests int) {
	for i := range requests {
		r := s.Route(fmt.Sprintf("/%d", i%3))
		s.Connected(worker, 1)
		s.InFlight(worker, 1)
		r.Ended(worker, 100*(i%6), time.Duration(i)*time.Millisecond, 1, 2)
		r.Retried(worker)
		r.Failed(worker, i%4)
		s.Rejected(i%2, i%3)
		s.InFlight(worker+1, -1)
		s.Connected(worker+1, -1)
	}
}

// compareScrape gives the numbers of a scrape that must not fall, by name and labels, once they are found to be right beside
// those before.
func compareScrape(t *testing.T, g prometheus.Gatherer, before map[string]float64) map[string]float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	now := map[string]float64{}
	for _, family := range families {
		for _, m := range family.Metric {
			name := fmt.Sprint(family.GetName(), " ", m.Label)
			switch {
			case m.GetGauge().GetValue() < 0:
				t.Fatalf("%s is %v", name, m.GetGauge().GetValue())
			case m.Counter != nil:
				now[name] = m.GetCounter().GetValue()
			case m.Histogram != nil:
				h, below := m.GetHistogram(), uint64(0)
				for _, b := range h.Bucket {
					// Counts are unsigned: one below the last would be a huge number of its own.
					now[fmt.Sprint(name, b.GetUpperBound())] = float64(b.GetCumulativeCount() - below)
					below = b.GetCumulativeCount()
				}
				if h.GetSampleCount() < below {
					t.Fatalf("%s counts %d, and its buckets %d", name, h.GetSampleCount(), below)
				}
				now[name+" longer"], now[name+" sum"] = float64(h.GetSampleCount()-below), h.GetSampleSum()
			}
		}
	}
	for name, value := range before {
		if now[name] < value {
			t.Fatalf("%s fell from %v to %v", name, value, now[name])
		}
	}
	return now
}

func TestForgettingWhileCounting(t *testing.T) {
	s := newSet(t, Options{Shards: 2})
	registry := registered(t, s)
	var counting sync.WaitGroup
	for worker := range uint32(4) {
		counting.Go(func() {
			for range 500 {
				r := s.Route("/")
				s.Forget("/")
				r.Ended(worker, 200, time.Millisecond, 1, 1)
				series(t, registry, "")
			}
		})
	}
	counting.Wait()
}

func TestCountingDoesNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	s := newSet(t, Options{})
	r := s.Route("/")
	r.Retried(0)
	allocs := testing.AllocsPerRun(1000, func() {
		s.Connected(0, 1)
		s.InFlight(0, 1)
		r.Ended(0, 200, 3*time.Millisecond, 100, 1000)
		r.Retried(0)
		r.Failed(0, 1)
		s.Rejected(Client, 1)
		s.InFlight(0, -1)
		s.Connected(0, -1)
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestRoutesCostWhatIsUsed(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector uses memory of its own")
	}
	const routes, used = 100_000, 1000
	names := make([]string, routes)
	for i := range names {
		names[i] = fmt.Sprintf("/route/%d", i)
	}
	s := newSet(t, Options{Shards: maxShards})
	before := heap()
	for _, name := range names {
		s.Route(name)
	}
	idle := heap()
	for _, name := range names[:used] {
		s.Route(name).Ended(0, 200, 0, 0, 0)
		s.Route(name).Ended(1, 200, 0, 0, 0)
	}
	busy := heap()
	if each := (idle - before) / routes; each > 128 {
		t.Errorf("a route that is not used costs %d bytes", each)
	}
	if each := (busy - idle) / used; each > 1024 {
		t.Errorf("a route that is used on two shards costs %d bytes", each)
	}
	t.Logf("%d bytes unused, %d bytes more when used on two shards", (idle-before)/routes, (busy-idle)/used)
	runtime.KeepAlive(names)
	runtime.KeepAlive(s)
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
