package forward

import (
	"syscall"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/outlier"
	"github.com/pyserve/pyserve/node/upstream"
)

func TestStatusesThatSpeakAgainstABackend(t *testing.T) {
	for status, want := range map[int]outlier.Outcome{
		101: outlier.Fine, 200: outlier.Fine, 404: outlier.Fine, 429: outlier.Fine, 501: outlier.Fine, 505: outlier.Fine,
		500: outlier.Answered, 502: outlier.Answered, 503: outlier.Answered, 504: outlier.Answered, 599: outlier.Answered,
	} {
		if got := outcomeOf(status); got != want {
			t.Errorf("%d: %v, want %v", status, got, want)
		}
	}
}

// One that is out of descriptors would tell all nodes that its backends fail.
func TestWhatThisMachineLacksIsNoFaultOfTheBackend(t *testing.T) {
	r := upstream.NewRegistry(upstream.Options{})
	t.Cleanup(r.Close)
	detector := outlier.New()
	var members []upstream.Member
	var ids []outlier.ID
	for port := range uint32(2) {
		b, err := r.Acquire(upstream.Spec{Host: "10.0.0.1", Port: 1 + port})
		if err != nil {
			t.Fatal(err)
		}
		members, ids = append(members, upstream.Member{Backend: b, Weight: 1}), append(ids, b.Identity())
	}
	detector.Update(outlier.Policy{Consecutive: 1, BaseEjection: time.Hour, MaxEjection: time.Hour, MaxEjectionPercent: 50}, ids)
	pool := upstream.NewPool(members, upstream.PoolOptions{})
	t.Cleanup(pool.Close)
	pool.Guard(detector, 0, func(*upstream.Backend) {})
	x, b := &exchange{pool: pool}, members[0].Backend
	for _, errno := range []error{syscall.EMFILE, syscall.EADDRNOTAVAIL, syscall.ECONNREFUSED} {
		x.observe(b, &failure{class: ClassUpstreamBefore, err: &upstream.DialError{Address: b.Address(), Err: errno}})
		if _, ejected := pool.Ejection(b); ejected != (errno == syscall.ECONNREFUSED) {
			t.Errorf("after %q it is ejected: %t", errno, ejected)
		}
	}
}
