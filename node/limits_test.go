package node

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// limited is a route that lets three requests through, and the next after an hour.
func limited(burst uint32, ports ...uint32) *nodetest.Build {
	b := nodetest.NewBuild().Route("/", ports...)
	b.Routes["/"].RateLimit = &resourcev1.RateLimit{Requests: 1, Per: durationpb.New(time.Hour), Burst: burst, Key: resourcev1.RateKey_RATE_KEY_CLIENT_IP}
	return b
}

func TestAnApplyLeavesTheCountsOfRateLimitsAlone(t *testing.T) {
	metrics := prometheus.NewRegistry()
	n := newNode(t, Options{Registerer: metrics})
	a, b := newMoody(t, http.StatusOK), newMoody(t, http.StatusOK)
	apply(t, n, 1, limited(3, a.port))
	get(t, n)
	get(t, n)
	apply(t, n, 2, limited(3, a.port, b.port)) // another pool, so another route
	if first, second := get(t, n), get(t, n); first != http.StatusOK || second != http.StatusTooManyRequests {
		t.Errorf("after an apply: %d, %d", first, second)
	}
	if got := gauge(t, metrics, "pyserve_rate_limit_keys"); got != 1 {
		t.Errorf("%v keys", got)
	}
	apply(t, n, 3, limited(4, a.port, b.port)) // another rate
	if status := get(t, n); status != http.StatusOK {
		t.Errorf("with another rate: %d", status)
	}
}

func TestAnApplyCountsOnWhatIsUnderWay(t *testing.T) {
	n := newNode(t, Options{})
	reached, open := make(chan bool), make(chan bool)
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		reached <- true
		<-open
	}))
	t.Cleanup(s.Close)
	other := newMoody(t, http.StatusOK)
	port := uint32(s.Listener.Addr().(*net.TCPAddr).Port)
	bounded := func(requests uint32, ports ...uint32) *nodetest.Build {
		b := nodetest.NewBuild().Route("/", ports...)
		b.Pools["/"].CircuitBreaker = &resourcev1.CircuitBreaker{MaxRequests: requests, MaxConnections: 1}
		return b
	}
	apply(t, n, 1, bounded(1, port))
	status := make(chan int)
	go func() { status <- get(t, n) }()
	<-reached
	apply(t, n, 2, bounded(1, port, other.port))
	if got := get(t, n); got != http.StatusServiceUnavailable {
		t.Errorf("with as many under way as may be: %d", got)
	}
	apply(t, n, 3, bounded(2, port, other.port))
	if got := get(t, n); got != http.StatusOK { // the backend that is busy is not asked
		t.Errorf("with room at another backend: %d", got)
	}
	for _, r := range n.live.Load().bounded {
		for _, p := range r.EachPool {
			if o := p.Occupancy(); o.Refused != 1 || o.Requests == 0 {
				t.Errorf("%+v after two applies, want the request that is held and one refused", o)
			}
		}
	}
	close(open)
	if got := <-status; got != http.StatusOK {
		t.Errorf("the one that was under way: %d", got)
	}
}

// Who waits when an apply gives more room must not wait for the place that there was before.
func TestAnApplyWithMoreRoomLetsInWhoWaits(t *testing.T) {
	n := newNode(t, Options{})
	reached, open := make(chan bool), make(chan bool)
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		reached <- true
		<-open
	}))
	t.Cleanup(s.Close)
	upTo := func(requests uint32) *nodetest.Build {
		b := nodetest.NewBuild().Route("/", uint32(s.Listener.Addr().(*net.TCPAddr).Port))
		b.Pools["/"].CircuitBreaker = &resourcev1.CircuitBreaker{MaxRequests: requests, MaxPending: 1, PendingTimeout: durationpb.New(time.Hour)}
		return b
	}
	apply(t, n, 1, upTo(1))
	status := make(chan int)
	ask := func() { go func() { status <- get(t, n) }() }
	ask()
	<-reached
	ask()
	nodetest.Eventually(t, "one waits", func() bool {
		pending := 0
		for _, p := range n.live.Load().bounded[0].EachPool {
			pending += p.Occupancy().Pending
		}
		return pending == 1
	})
	apply(t, n, 2, upTo(3))
	ask()
	for range 2 {
		<-reached
	}
	close(open)
	for range 3 {
		if got := <-status; got != http.StatusOK {
			t.Errorf("status %d", got)
		}
	}
}
