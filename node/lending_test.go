package node

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/node/limit"
	"github.com/pyserve/pyserve/node/nodetest"
	peerv1 "github.com/pyserve/pyserve/proto/pyserve/peer/v1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// together is a route that lets so many requests of all nodes through, and the next after an hour.
func together(burst uint32, ports ...uint32) *nodetest.Build {
	b := limited(burst, ports...)
	b.Routes["/"].RateLimit.Key, b.Routes["/"].RateLimit.Scope = resourcev1.RateKey_RATE_KEY_ROUTE, resourcev1.RateScope_RATE_SCOPE_CLUSTER
	return b
}

// theLimit is that of a node's only route.
func theLimit(t *testing.T, n *Node) *limit.Shared {
	t.Helper()
	for _, s := range n.lending.live() {
		return s
	}
	t.Fatal("the node has no shared limit")
	return nil
}

// counted adds up a counter's series.
func counted(t *testing.T, r *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func TestRequestsDoNotWaitForAnOwner(t *testing.T) {
	var asked atomic.Int32
	n := newNode(t, Options{Name: "n1", AskLender: func(ctx context.Context, _ string, _ *peerv1.LendRequest) (*peerv1.LendResponse, error) {
		asked.Add(1)
		<-ctx.Done() // it never answers
		return nil, ctx.Err()
	}})
	apply(t, n, 1, together(60, newMoody(t, http.StatusOK).port))
	other := "n2" // who owns the limit's only key
	for ; n.lending.lenders.Owner(theLimit(t, n).ID()) == "n1"; other += "x" {
		n.SetMembers([]string{other})
	}
	passed := 0
	for range 60 {
		if get(t, n) == http.StatusOK {
			passed++
		}
	}
	if passed < 29 || passed > 60 {
		t.Errorf("%d of 60 pass, want a node's share at least", passed)
	}
	nodetest.Eventually(t, "the owner is passed over", func() bool { return asked.Load() > 0 && n.lending.lenders.Away() == 1 })
}

func TestWhatAnOwnerAnswersWrongIsNotBelieved(t *testing.T) {
	for name, of := range map[string]*peerv1.LendResponse{
		"nothing":             nil,
		"no limits":           {},
		"too many limits":     {Limits: []*peerv1.LimitGrants{{}, {}}},
		"the limit unknown":   {Limits: []*peerv1.LimitGrants{{}}},
		"the key not its own": {Limits: []*peerv1.LimitGrants{{Lent: []bool{false}, Allowed: []uint32{9}, Levels: []uint64{0}}}},
		"too many keys":       {Limits: []*peerv1.LimitGrants{{Lent: []bool{true, true}, Allowed: []uint32{9, 9}, Levels: []uint64{0, 0}}}},
		"no levels":           {Limits: []*peerv1.LimitGrants{{Lent: []bool{true}, Allowed: []uint32{9}}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := limit.NewShared(1, limit.Rate{Requests: 1, Per: time.Hour, Burst: 3})
			s.SetNodes(2)
			s.Allow(1, 0)
			b := &batch{}
			for _, a := range s.Turn(0, nil) {
				b.add(s, a)
			}
			b.take(of, 0)
			if again := s.Turn(0, nil); len(again) != 1 || again[0].Used != 1 {
				t.Errorf("%+v is told next", again)
			}
		})
	}
}

func TestAnOwnerAnswersForItsOwnKeysAlone(t *testing.T) {
	n := newNode(t, Options{Name: "n1", AskLender: func(context.Context, string, *peerv1.LendRequest) (*peerv1.LendResponse, error) {
		return &peerv1.LendResponse{}, nil
	}})
	apply(t, n, 1, together(60, newMoody(t, http.StatusOK).port))
	n.SetMembers([]string{"n2"})
	id := theLimit(t, n).ID()
	own, other := uint64(0), uint64(0)
	for ; n.lending.lenders.Owner(own) != "n1"; own++ {
	}
	for ; n.lending.lenders.Owner(other) != "n2"; other++ {
	}
	ask := func(limit uint64, keys ...uint64) *peerv1.LimitAsks {
		a := &peerv1.LimitAsks{Limit: limit, Keys: keys}
		for range keys {
			a.Wants, a.Used, a.Levels = append(a.Wants, 5), append(a.Used, 0), append(a.Levels, 0)
		}
		return a
	}
	m, err := n.Lend("n2", &peerv1.LendRequest{Limits: []*peerv1.LimitAsks{ask(id, own, other), ask(id+1, own)}})
	if err != nil || len(m.GetLimits()) != 2 || len(m.GetLimits()[1].GetLent()) != 0 {
		t.Fatalf("%v %v", m, err)
	}
	if g := m.GetLimits()[0]; !g.GetLent()[0] || g.GetAllowed()[0] == 0 || g.GetLent()[1] || g.GetAllowed()[1] != 0 {
		t.Errorf("%v", g)
	}
	if m, err := n.Lend("n2", &peerv1.LendRequest{}); err != nil || len(m.GetLimits()) != 0 {
		t.Errorf("whether it is there: %v %v", m, err)
	}
	short := ask(id, own, other)
	short.Used = short.Used[:1]
	for want, m := range map[string]*peerv1.LendRequest{
		"has 2 keys, with 2, 1 and 2 numbers": {Limits: []*peerv1.LimitAsks{short}},
		"has 0 keys":                          {Limits: []*peerv1.LimitAsks{{Limit: id}}},
		"more than 4096 keys":                 {Limits: []*peerv1.LimitAsks{ask(id, make([]uint64, mostAsks)...), ask(id, own)}},
	} {
		if m, err := n.Lend("n2", m); !errors.Is(err, ErrLend) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v %v, want %s", m, err, want)
		}
	}
}

func TestOneCallIsForSoManyKeys(t *testing.T) {
	s := limit.NewShared(1, limit.Rate{Requests: 1, Per: time.Hour, Burst: 3})
	for key := range uint64(mostAsks + 100) {
		s.Allow(key, 0)
	}
	b := &batch{}
	for _, a := range s.Turn(0, nil) {
		b.add(s, a)
	}
	m := b.request()
	if n := len(m.GetLimits()[0].GetKeys()); n != mostAsks || checkLend(m) != nil || proto.Size(m) > 256<<10 {
		t.Errorf("%d keys, %d bytes: %v", n, proto.Size(m), checkLend(m))
	}
	if rest := s.Turn(0, nil); len(rest) != 100 {
		t.Errorf("%d are asked for in the next turn", len(rest))
	}
}

func TestAnApplyLeavesWhatIsLentAlone(t *testing.T) {
	metrics := prometheus.NewRegistry()
	n := newNode(t, Options{Name: "n1", Registerer: metrics})
	a, b := newMoody(t, http.StatusOK), newMoody(t, http.StatusOK)
	apply(t, n, 1, together(3, a.port))
	get(t, n)
	get(t, n)
	apply(t, n, 2, together(3, a.port, b.port)) // another pool, so another route
	if first, second := get(t, n), get(t, n); first != http.StatusOK || second != http.StatusTooManyRequests {
		t.Errorf("after an apply: %d, %d", first, second)
	}
	if got := counted(t, metrics, "pyserve_rate_limit_shared_requests_total"); got != 3 {
		t.Errorf("%v requests have passed", got)
	}
	nodetest.Eventually(t, "all that has passed is told to the owner, which is the node itself", func() bool {
		return counted(t, metrics, "pyserve_rate_limit_lent_requests_total") == 3
	})
	if got := gauge(t, metrics, "pyserve_rate_limit_owners_away"); got != 0 {
		t.Errorf("%v owners are away", got)
	}
	apply(t, n, 3, together(4, a.port, b.port)) // another rate
	if status := get(t, n); status != http.StatusOK {
		t.Errorf("with another rate: %d", status)
	}
	apply(t, n, 4, limited(4, a.port))
	if len(n.lending.live()) != 0 {
		t.Error("a limit of this node alone is shared")
	}
}

// FuzzLend: whatever comes over the wire is refused or answered in its shape, and whatever is answered leaves the borrower able to ask.
func FuzzLend(f *testing.F) {
	seed := func(m proto.Message) {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	seed(&peerv1.LendRequest{Limits: []*peerv1.LimitAsks{{Limit: 1, Keys: []uint64{1, 2}, Wants: []uint32{9, 1 << 31}, Used: []uint32{1 << 31, 0}, Levels: []uint64{1 << 63, 5}}}})
	seed(&peerv1.LendResponse{Limits: []*peerv1.LimitGrants{{Lent: []bool{true}, Allowed: []uint32{1 << 31}, Levels: []uint64{1 << 63}}}})
	f.Fuzz(func(t *testing.T, raw []byte) {
		l := newLending("n1", nil)
		s := limit.NewShared(1, limit.Rate{Requests: 1, Per: 24 * time.Hour, Burst: 30})
		l.limits = map[uint64]*limit.Shared{1: s}
		if m := (&peerv1.LendRequest{}); proto.Unmarshal(raw, m) == nil {
			out, err := l.answer("n2", m)
			if err == nil && len(out.GetLimits()) != len(m.GetLimits()) {
				t.Fatalf("%d answers to %d limits", len(out.GetLimits()), len(m.GetLimits()))
			}
			for i, g := range out.GetLimits() {
				if n := len(m.GetLimits()[i].GetKeys()); len(g.GetLent()) != 0 && (len(g.GetLent()) != n || len(g.GetAllowed()) != n || len(g.GetLevels()) != n) {
					t.Fatalf("%d keys are answered by %v", n, g)
				}
			}
		}
		if m := (&peerv1.LendResponse{}); proto.Unmarshal(raw, m) == nil {
			s.SetNodes(2)
			s.Allow(7, time.Second)
			b := &batch{}
			for _, a := range s.Turn(time.Second, nil) {
				b.add(s, a)
			}
			b.take(m, time.Second)
			passed := 0
			for range 100 {
				if _, ok := s.Allow(7, time.Second); ok {
					passed++
				}
			}
			if asks := s.Turn(2*time.Second, nil); passed > 30 || len(asks) != 1 {
				t.Fatalf("%d pass of a burst of 30, then %+v is asked", passed, asks)
			}
		}
	})
}
