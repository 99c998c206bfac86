package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// world is a prober and a registry over a network that answers as told, in fake time: the schedule is seen by when dials
// arrive.
type world struct {
	prober   *Prober
	registry *upstream.Registry

	mu    sync.Mutex
	hosts []string // a host's address is 10.0.0.0 and its place here
	dials map[string][]time.Time
	down  error         // what dials end with; nil: they succeed
	delay time.Duration // and after how long
}

// newWorld is called inside a synctest bubble, and close before it ends.
func newWorld(random func(time.Duration) time.Duration) *world {
	w := &world{prober: NewProber(Options{Random: random}), dials: make(map[string][]time.Time)}
	w.registry = upstream.NewRegistry(upstream.Options{Added: w.prober.Watch, Removed: w.prober.Unwatch, DialContext: w.dial, ConnectTimeout: time.Hour})
	return w
}

func (w *world) close() {
	w.registry.Close()
	w.prober.Close()
}

func (w *world) dial(ctx context.Context, _, address string) (net.Conn, error) {
	w.mu.Lock()
	ip := netip.MustParseAddrPort(address)
	address = fmt.Sprintf("%s:%d", w.hosts[ip.Addr().As4()[3]], ip.Port())
	w.dials[address] = append(w.dials[address], time.Now())
	down, delay := w.down, w.delay
	w.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(delay):
	}
	if down != nil {
		return nil, down
	}
	conn, other := net.Pipe()
	other.Close()
	return conn, nil
}

func (w *world) set(down error, delay time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down, w.delay = down, delay
}

// probes are the moments at which an address was dialled, counted from begin.
func (w *world) probes(address string, begin time.Time) []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var at []time.Duration
	for _, d := range w.dials[address] {
		at = append(at, d.Sub(begin))
	}
	return at
}

func (w *world) acquire(t *testing.T, host string, c *resourcev1.HealthCheck) *upstream.Backend {
	t.Helper()
	w.mu.Lock()
	place := slices.Index(w.hosts, host)
	if place < 0 {
		place = len(w.hosts)
		w.hosts = append(w.hosts, host)
	}
	w.mu.Unlock()
	b, err := w.registry.Acquire(upstream.Spec{Host: fmt.Sprintf("10.0.0.%d", place), Port: 1, Check: c})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// wait lets fake time pass.
func wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func tcpCheck() *resourcev1.HealthCheck {
	return &resourcev1.HealthCheck{
		Type:               resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP,
		Interval:           durationpb.New(5 * time.Second),
		Timeout:            durationpb.New(2 * time.Second),
		HealthyThreshold:   2,
		UnhealthyThreshold: 3,
	}
}

func middle(n time.Duration) time.Duration { return n / 2 }

func TestProbesComeAtTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, begin := newWorld(middle), time.Now()
		defer w.close()
		w.acquire(t, "a", tcpCheck())
		wait(16 * time.Second)
		want := []time.Duration{500 * time.Millisecond, 5500 * time.Millisecond, 10500 * time.Millisecond, 15500 * time.Millisecond}
		if got := w.probes("a:1", begin); !slices.Equal(got, want) {
			t.Errorf("probes at %v, want %v", got, want)
		}
	})
}

func TestShortIntervalBeginsWithinItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, begin := newWorld(middle), time.Now()
		defer w.close()
		c := tcpCheck()
		c.Interval = durationpb.New(100 * time.Millisecond)
		w.acquire(t, "a", c)
		wait(60 * time.Millisecond)
		if got := w.probes("a:1", begin); !slices.Equal(got, []time.Duration{50 * time.Millisecond}) {
			t.Errorf("probes at %v, want one at 50ms", got)
		}
	})
}

func TestJitterStaysWithinATenth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, begin := newWorld(nil), time.Now()
		defer w.close()
		hosts := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
		for _, h := range hosts {
			w.acquire(t, h, tcpCheck())
		}
		wait(10 * time.Minute)
		seen := make(map[time.Duration]bool)
		for _, h := range hosts {
			at := w.probes(h+":1", begin)
			if len(at) < 100 || at[0] > time.Second {
				t.Fatalf("%s was probed %d times, first after %v", h, len(at), at[0])
			}
			seen[at[0]] = true
			for i := 1; i < len(at); i++ {
				gap := at[i] - at[i-1]
				if seen[gap] = true; gap < 4500*time.Millisecond || gap > 5500*time.Millisecond {
					t.Errorf("%s was probed %v after the last time", h, gap)
				}
			}
		}
		if len(seen) < 100 {
			t.Errorf("only %d different gaps", len(seen))
		}
	})
}

func TestProbesOfOneBackendDoNotOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, begin := newWorld(middle), time.Now()
		defer w.close()
		w.set(nil, 7*time.Second)
		c := tcpCheck()
		c.Timeout = durationpb.New(10 * time.Second)
		w.acquire(t, "a", c)
		wait(15 * time.Second)
		want := []time.Duration{500 * time.Millisecond, 7500 * time.Millisecond, 14500 * time.Millisecond}
		if got := w.probes("a:1", begin); !slices.Equal(got, want) {
			t.Errorf("probes at %v, want %v", got, want)
		}
	})
}

func TestBackendLeavesRotationAndReturnsByItsThresholds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		b := w.acquire(t, "a", tcpCheck())
		pool := upstream.NewPool([]upstream.Member{{Backend: b, Weight: 1}}, upstream.PoolOptions{})
		defer pool.Close()
		check := func(when string, state upstream.State, reason string) {
			t.Helper()
			if v := b.Verdict(); v.State != state || v.Reason != reason {
				t.Errorf("%s: %v %q, want %v %q", when, v.State, v.Reason, state, reason)
			}
			if picked := pool.Pick(0, nil) != nil; picked != (state != upstream.Unhealthy) {
				t.Errorf("%s: picked: %v", when, picked)
			}
		}
		check("before the first probe", upstream.Unknown, "")
		wait(time.Second)
		check("after the first probe", upstream.Healthy, "")
		w.set(syscall.ECONNREFUSED, 0)
		wait(10 * time.Second)
		check("after two failures", upstream.Healthy, "")
		wait(5 * time.Second)
		check("after three", upstream.Unhealthy, "connection refused")
		since := b.Verdict().Since
		w.set(nil, time.Hour)
		wait(7 * time.Second)
		check("after a failure of another kind", upstream.Unhealthy, "timeout after 2s")
		if !b.Verdict().Since.Equal(since) {
			t.Error("another reason for the same state began it anew")
		}
		w.set(nil, 0)
		wait(3 * time.Second) // the fifth probe
		check("after one success", upstream.Unhealthy, "timeout after 2s")
		wait(5 * time.Second)
		check("after two", upstream.Healthy, "")
	})
}

func TestFirstFailureDecides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		w.set(errors.New("no such luck"), 0)
		b := w.acquire(t, "a", tcpCheck())
		wait(time.Second)
		if v := b.Verdict(); v.State != upstream.Unhealthy || v.Reason != "no such luck" {
			t.Errorf("%v %q after one failure", v.State, v.Reason)
		}
	})
}

// What an apply does: the new generation acquires before the old one releases.
func TestApplyForgetsNoVerdictAndStartsNoSecondProbing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, begin := newWorld(middle), time.Now()
		defer w.close()
		w.set(syscall.ECONNREFUSED, 0)
		b := w.acquire(t, "a", tcpCheck())
		wait(time.Second)
		for range 5 {
			next := w.acquire(t, "a", tcpCheck())
			b.Release()
			b = next
		}
		if v := b.Verdict(); v.State != upstream.Unhealthy {
			t.Errorf("%v after the apply, want unhealthy", v.State)
		}
		wait(10 * time.Second)
		if got := w.probes("a:1", begin); len(got) != 3 {
			t.Errorf("probes at %v, want three", got)
		}
	})
}

func TestRemovedBackendIsProbedNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, begin := newWorld(middle), time.Now()
		defer w.close()
		gone := w.acquire(t, "gone", tcpCheck())
		w.acquire(t, "kept", tcpCheck())
		wait(time.Second)
		gone.Release()
		wait(time.Hour)
		if n := len(w.probes("gone:1", begin)); n != 1 {
			t.Errorf("%d probes of the removed backend, want the one before", n)
		}
		if n := len(w.probes("kept:1", begin)); n < 700 {
			t.Errorf("%d probes of the other one in an hour", n)
		}
	})
}

// Unwatch returns at once although a probe is under way, and that probe's end is no result.
func TestUnwatchCutsTheProbeUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, begin := newWorld(middle), time.Now()
		defer w.close()
		w.set(nil, time.Hour)
		b := w.acquire(t, "a", tcpCheck())
		wait(time.Second) // the probe began at 0.5 s and would time out at 2.5 s
		b.Release()
		if took := time.Since(begin); took != time.Second {
			t.Errorf("the release waited %v", took-time.Second)
		}
		if v := b.Verdict(); v.State != upstream.Unknown {
			t.Errorf("a probe that was cut made the backend %v: %s", v.State, v.Reason)
		}
	})
}

func TestTwoChecksOfOneAddressAreJudgedApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		quick := tcpCheck()
		quick.UnhealthyThreshold = 1
		a, b := w.acquire(t, "a", tcpCheck()), w.acquire(t, "a", quick)
		wait(time.Second)
		w.set(syscall.ECONNREFUSED, 0)
		wait(5 * time.Second)
		if a.Verdict().State != upstream.Healthy || b.Verdict().State != upstream.Unhealthy {
			t.Errorf("%v by three failures, %v by one", a.Verdict().State, b.Verdict().State)
		}
	})
}

func TestTheLogTellsChecksOfOneAddressApart(t *testing.T) {
	for want, c := range map[string]*resourcev1.HealthCheck{
		"tcp":           {Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP, Path: "/unused"},
		"http /healthz": {Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_HTTP, Path: "/healthz"},
		"grpc":          {Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_GRPC},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(middle)
			defer w.close()
			var log bytes.Buffer
			p := NewProber(Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			defer p.Close()
			b := w.acquire(t, "a", c)
			p.tell(b, upstream.Verdict{}, upstream.Verdict{State: upstream.Unhealthy}, Majority)
			p.tell(b, upstream.Verdict{}, upstream.Verdict{State: upstream.Healthy}, Majority)
			if n := strings.Count(log.String(), fmt.Sprintf("check=%q", want)) + strings.Count(log.String(), "check="+want+" "); n != 2 {
				t.Errorf("%d of two lines name the check %s:\n%s", n, want, &log)
			}
		})
	}
}

func TestWithoutCheckABackendIsHealthyAndNotProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, begin := newWorld(middle), time.Now()
		defer w.close()
		for host, c := range map[string]*resourcev1.HealthCheck{
			"none":  {Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_NONE},
			"unset": nil,
		} {
			b := w.acquire(t, host, c)
			if v := b.Verdict(); v.State != upstream.Healthy || v.Reason != "" {
				t.Errorf("%s: %v %q, want healthy", host, v.State, v.Reason)
			}
			wait(time.Minute)
			if n := len(w.probes(host+":1", begin)); n != 0 {
				t.Errorf("%s: %d probes", host, n)
			}
		}
	})
}

func TestCheckWithoutNumbersHasDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, begin := newWorld(middle), time.Now()
		defer w.close()
		w.set(nil, time.Hour)
		b := w.acquire(t, "a", &resourcev1.HealthCheck{Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP})
		wait(6 * time.Second)
		if got := w.probes("a:1", begin); len(got) != 2 || b.Verdict().Reason != "timeout after 2s" {
			t.Errorf("probes at %v, reason %q", got, b.Verdict().Reason)
		}
	})
}

func TestClosedProberWatchesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, begin := newWorld(middle), time.Now()
		b := w.acquire(t, "a", tcpCheck())
		w.prober.Watch(b) // a second time: nothing
		wait(time.Second)
		w.prober.Close()
		w.prober.Close()
		w.acquire(t, "b", tcpCheck())
		wait(time.Minute)
		if a, b := w.probes("a:1", begin), w.probes("b:1", begin); len(a) != 1 || len(b) != 0 {
			t.Errorf("%d and %d probes, want 1 and 0", len(a), len(b))
		}
		w.registry.Close()
	})
}

// slow is a resolver whose answer, that there is no such host, takes its time.
type slow time.Duration

func (s slow) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	select {
	case <-time.After(time.Duration(s)):
		return nil, &net.DNSError{Err: "no such host", Name: host, Server: "10.0.0.53:53", IsNotFound: true}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestNameThatCannotBeResolvedIsTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProber(Options{Random: middle})
		r := upstream.NewRegistry(upstream.Options{Added: p.Watch, Removed: p.Unwatch, Resolver: slow(4 * time.Second)})
		b, err := r.Acquire(upstream.Spec{Host: "api.internal", Port: 1, Check: tcpCheck()})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"cannot resolve api.internal: lookup timed out", "cannot resolve api.internal: no such host"} {
			wait(3 * time.Second) // probes at 0.5 s and, after a timeout of 2 s, at 5 s
			if v := b.Verdict(); v.State != upstream.Unhealthy || v.Reason != want {
				t.Errorf("the verdict is %s, %q; want unhealthy, %q", v.State, v.Reason, want)
			}
		}
		r.Close()
		p.Close()
	})
}

func TestReasons(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&upstream.ResolveError{Host: "x.internal", Err: &net.DNSError{Err: "no such host", Name: "x", Server: "10.0.0.53:53", IsNotFound: true}}, "cannot resolve x.internal: no such host"},
		{&upstream.ResolveError{Host: "x.internal", Err: context.DeadlineExceeded}, "cannot resolve x.internal: lookup timed out"},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, "connection refused"},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, "connection reset"},
		{&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}, "no route to host"},
		{&net.OpError{Op: "dial", Err: context.DeadlineExceeded}, "connection timed out"},
		{io.ErrUnexpectedEOF, "connection closed without an answer"},
		{errors.New("odd\r\n\x1b[31m " + strings.Repeat("ü", 200)), "odd   [31m " + strings.Repeat("ü", 74) + "…"},
	} {
		if got := reasonFor(&upstream.DialError{Address: "10.0.0.1:80", Err: c.err}, time.Now()); got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}
