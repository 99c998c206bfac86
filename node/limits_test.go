package node

import (
	"net/http"
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
