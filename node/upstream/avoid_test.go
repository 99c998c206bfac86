package upstream

import (
	"context"
	"errors"
	"net"
	"slices"
	"syscall"
	"testing"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func TestAvoidedBackendIsPassedOverAsLongAsThereIsAnother(t *testing.T) {
	p, backends := poolOf(t, 1, 1, 1)
	backends[0].Avoid(true)
	if got := share(p, backends, 300); !slices.Equal(got, []int{0, 150, 150}) {
		t.Errorf("shares %v, want none of the first", got)
	}
	backends[1].SetVerdict(Verdict{State: Unhealthy})
	backends[2].Avoid(true)
	if got := share(p, backends, 300); !slices.Equal(got, []int{150, 0, 150}) {
		t.Errorf("shares %v with no other left, want those that are not unhealthy", got)
	}
	backends[0].Avoid(false)
	if got := share(p, backends, 300); !slices.Equal(got, []int{300, 0, 0}) {
		t.Errorf("shares %v when one is back", got)
	}
}

func TestFailedTellsOfConnectionsThatSayMoreThanOfOurselves(t *testing.T) {
	var next error
	var told []error
	r := newRegistry(t, Options{
		Failed:      func(_ *Backend, err error) { told = append(told, err) },
		DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, next },
	})
	b := acquire(t, r, Spec{Host: "10.0.0.1", Port: 1})
	for _, next = range []error{syscall.EMFILE, syscall.EADDRNOTAVAIL, context.Canceled, syscall.ECONNREFUSED, context.DeadlineExceeded} {
		if _, err := b.Open(t.Context()); err == nil {
			t.Fatal("opened")
		}
	}
	if len(told) != 2 || !errors.Is(told[0], syscall.ECONNREFUSED) || !errors.Is(told[1], context.DeadlineExceeded) {
		t.Errorf("told of %v", told)
	}
}

func TestIdentityIsTheSameOnEveryNodeAndOfAllThatABackendIs(t *testing.T) {
	seen := make(map[[16]byte]bool)
	for _, s := range identitySpecs() {
		a, b := acquire(t, newRegistry(t, Options{}), s), acquire(t, newRegistry(t, Options{}), s)
		if a.Identity() != b.Identity() {
			t.Errorf("%v has two identities", s)
		}
		seen[a.Identity()] = true
	}
	if len(seen) != len(identitySpecs()) {
		t.Errorf("%d identities of %d backends", len(seen), len(identitySpecs()))
	}
}

func identitySpecs() []Spec {
	tcp := &resourcev1.HealthCheck{Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP}
	http := &resourcev1.HealthCheck{Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_HTTP}
	return []Spec{
		{Host: "10.0.0.1", Port: 80, Check: tcp},
		{Host: "10.0.0.1", Port: 81, Check: tcp},
		{Host: "10.0.0.1", Port: 80, Check: http},
		{Host: "10.0.0.1", Port: 80, Check: tcp, TLS: &resourcev1.BackendTls{}},
		{Host: "10.0.0.1", Port: 80},
	}
}
