package node

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// slowly is a route over backends that start slowly.
func slowly(backends ...*moody) *nodetest.Build {
	var ports []uint32
	for _, m := range backends {
		ports = append(ports, m.port)
	}
	b := nodetest.NewBuild().Route("/", ports...)
	b.Pools["/"].SlowStart = durationpb.New(24 * time.Hour)
	return b
}

func TestBackendsOfTheFirstBundleHaveTheirShareAtOnce(t *testing.T) {
	n := newNode(t, Options{})
	a, b := newMoody(t, 200), newMoody(t, 200)
	apply(t, n, 1, slowly(a, b))
	for range 20 {
		get(t, n)
	}
	if a.requests.Load() != 10 || b.requests.Load() != 10 {
		t.Errorf("%d and %d requests, want 10 each", a.requests.Load(), b.requests.Load())
	}
}

func TestABackendThatAnApplyAddsStartsSlowly(t *testing.T) {
	n := newNode(t, Options{})
	a, b := newMoody(t, 200), newMoody(t, 200)
	apply(t, n, 1, slowly(a))
	apply(t, n, 2, slowly(a, b))
	for range 20 {
		get(t, n)
	}
	if a.requests.Load() < 18 {
		t.Errorf("%d requests for the one that was there, %d for the one that came", a.requests.Load(), b.requests.Load())
	}
	apply(t, n, 3, slowly(b)) // and where nobody else is, it gets all
	before := b.requests.Load()
	for range 5 {
		get(t, n)
	}
	if got := b.requests.Load() - before; got != 5 {
		t.Errorf("%d of 5 requests", got)
	}
}

func TestAPolicyThatANodeDoesNotKnowIsRefused(t *testing.T) {
	n := newNode(t, Options{})
	b := nodetest.NewBuild().Route("/", 3001)
	b.Pools["/"].LoadBalancing = &resourcev1.LoadBalancing{Policy: 99}
	_, err := n.Prepare(release(1), b.Bundle(t))
	if r := refusals(t, err); len(r) != 1 || r[0].Field != fieldRoutes || !strings.Contains(r[0].Reason, "load_balancing") {
		t.Errorf("%v", r)
	}
}
