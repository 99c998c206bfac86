package forward

import (
	"encoding/base64"
	"fmt"
	"math"
	"testing"

	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// splitRoute is a route with a part for each weight, of two backends each; those of the parts in down take no requests.
func splitRoute(t testing.TB, weights []uint32, down ...int) (*Route, map[*upstream.Backend]int) {
	t.Helper()
	registry := upstream.NewRegistry(upstream.Options{})
	t.Cleanup(registry.Close)
	parts, of := make([]*resourcev1.Part, len(weights)), make(map[*upstream.Backend]int)
	pools := make([]*upstream.Pool, len(weights))
	for i, weight := range weights {
		parts[i] = &resourcev1.Part{Weight: weight}
		share := uint32(1)
		for _, d := range down {
			if d == i {
				share = 0
			}
		}
		var members []upstream.Member
		for k := range 2 {
			b, err := registry.Acquire(upstream.Spec{Host: "127.0.0.1", Port: uint32(1 + 2*i + k)})
			if err != nil {
				t.Fatal(err)
			}
			of[b] = i
			members = append(members, upstream.Member{Backend: b, Weight: share})
		}
		pools[i] = upstream.NewPool(members, upstream.PoolOptions{})
	}
	r, err := NewRoute("/", &resourcev1.Route{Path: "/", Match: resourcev1.PathMatch_PATH_MATCH_PREFIX}, pools[0])
	if err != nil {
		t.Fatal(err)
	}
	r.Split(parts, pools)
	return r, of
}

// asking is a request of its own.
func asking(r *Route, path string) *exchange {
	x := newExchange()
	x.route, x.path = r, []byte(path)
	return x
}

func TestPartsGetTheirShares(t *testing.T) {
	for name, c := range map[string]struct {
		weights []uint32
		down    []int
		want    []float64
	}{
		"a canary":               {[]uint32{95, 5}, nil, []float64{0.95, 0.05}},
		"three":                  {[]uint32{1, 2, 5}, nil, []float64{0.125, 0.25, 0.625}},
		"a part of weight 0":     {[]uint32{3, 0, 1}, nil, []float64{0.75, 0, 0.25}},
		"a canary that is down":  {[]uint32{95, 5}, []int{1}, []float64{1, 0}},
		"the other one is down":  {[]uint32{95, 5}, []int{0}, []float64{0, 1}},
		"one of three is down":   {[]uint32{2, 6, 2}, []int{1}, []float64{0.5, 0, 0.5}},
		"weight 0 helps nobody":  {[]uint32{1, 0}, []int{0}, []float64{0, 0}},
		"all weights are 0":      {[]uint32{0, 0}, nil, []float64{0, 0}},
		"the largest of weights": {[]uint32{1000, 1000, 1}, nil, []float64{0.49975, 0.49975, 0.0005}},
	} {
		for _, hashed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, hashed: %t", name, hashed), func(t *testing.T) {
				r, of := splitRoute(t, c.weights, c.down...)
				tolerance := 0.002           // of a sequence; a hash is as chance has it
				if hashed || c.down != nil { // as is who gets the share of another
					tolerance = 0.02
				}
				if hashed {
					r.hashing = &hashing{on: resourcev1.HashOn_HASH_ON_PATH}
				}
				const requests = 10_000
				got := make([]float64, len(c.weights))
				for i := range requests {
					if b := asking(r, fmt.Sprint("/", i)).pick(nil); b != nil {
						got[of[b]]++
					}
				}
				for i, want := range c.want {
					if share := got[i] / requests; math.Abs(share-want) > tolerance || want == 0 && share > 0 {
						t.Errorf("part %d got %.4f of the requests, want %.4f", i+1, share, want)
					}
				}
			})
		}
	}
}

func TestASmallShareComesEvenly(t *testing.T) {
	r, of := splitRoute(t, []uint32{95, 5})
	last, longest := 0, 0
	for i := range 10_000 {
		if of[asking(r, "/").pick(nil)] == 1 {
			longest, last = max(longest, i-last), i
		}
	}
	if longest > 2*20 {
		t.Errorf("%d requests came between two of the part with a twentieth", longest)
	}
}

func TestAHashedClientKeepsItsPart(t *testing.T) {
	hash := &hashing{on: resourcev1.HashOn_HASH_ON_PATH}
	where := func(r *Route, of map[*upstream.Backend]int) (parts []int) {
		r.hashing = hash
		for i := range 2000 {
			parts = append(parts, of[asking(r, fmt.Sprint("/", i)).pick(nil)])
		}
		return parts
	}
	before := where(splitRoute(t, []uint32{90, 5, 5}))
	again := where(splitRoute(t, []uint32{90, 5, 5})) // another node
	down := where(splitRoute(t, []uint32{90, 5, 5}, 1))
	more := where(splitRoute(t, []uint32{80, 15, 5}))
	moved := 0
	for i, part := range before {
		if again[i] != part {
			t.Fatalf("client %d has part %d on one node and %d on another", i, part+1, again[i]+1)
		}
		if part != 1 && down[i] != part {
			t.Fatalf("client %d went from part %d to %d because another is down", i, part+1, down[i]+1)
		}
		if more[i] != part {
			moved++
		}
	}
	if moved < 100 || moved > 300 {
		t.Errorf("%d of 2000 clients moved with a tenth of the weights", moved)
	}
}

func TestARetryStaysInThePartWhileItCan(t *testing.T) {
	r, of := splitRoute(t, []uint32{1, 1})
	x := asking(r, "/")
	var tried []*upstream.Backend
	var parts []int
	for b := x.pick(nil); b != nil; b = x.pick(tried) {
		tried, parts = append(tried, b), append(parts, of[b])
		if x.pool != r.split.parts[of[b]].pool {
			t.Errorf("the pool is not that of part %d", of[b]+1)
		}
	}
	if len(parts) != 4 || parts[0] != parts[1] || parts[2] != parts[3] || parts[0] == parts[2] {
		t.Errorf("the attempts went to parts %v", parts)
	}
}

func TestASplitInheritsItsCounts(t *testing.T) {
	before, _ := splitRoute(t, []uint32{1, 1})
	after, _ := splitRoute(t, []uint32{1, 1, 2})
	plain := &Route{}
	for _, status := range []int{200, 204, 503, 0, 999} {
		before.split.parts[1].ended(status)
	}
	after.Inherit(before)
	after.Inherit(plain)
	plain.Inherit(before)
	for number, counts := range after.EachPart {
		want := [6]uint64{}
		if number == 2 {
			want = [6]uint64{0: 2, 2: 2, 5: 1}
		}
		for class := range counts {
			if got := counts[class].Load(); got != want[class] {
				t.Errorf("part %d has %d of class %d, want %d", number, got, class, want[class])
			}
		}
	}
	for range plain.EachPart {
		t.Error("a route without a split has a part")
	}
}

func TestPickingAPartAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates by itself")
	}
	r, _ := splitRoute(t, []uint32{95, 5})
	x := asking(r, "/")
	if n := testing.AllocsPerRun(100, func() {
		x.part = nil
		x.pick(nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAnExplanationTakesNoPartsTurn(t *testing.T) {
	r, _ := splitRoute(t, []uint32{1, 1})
	x := asking(r, "/")
	for range 3 {
		first, takes := x.upcoming()
		if first == nil || !takes || r.split.picks.Load() != 0 {
			t.Fatal(first, takes, r.split.picks.Load())
		}
	}
	told := x.partNumber()
	x.part = nil
	if x.pick(nil); x.partNumber() != told {
		t.Errorf("part %d was told, and the request went to %d", told, x.partNumber())
	}
}

func TestAStickyClientStaysWithItsPart(t *testing.T) {
	r, of := splitRoute(t, []uint32{0, 1})
	pools := []*upstream.Pool{r.split.parts[0].pool, r.split.parts[1].pool}
	r.sticky = newSticky(&resourcev1.Sticky{Cookie: "stay"}, pools[0])
	r.Split([]*resourcev1.Part{{}, {Weight: 1}}, pools)
	p := &Proxy{}
	p.secrets.Store(ownSecrets())
	for b, i := range of {
		x := asking(r, "/")
		x.Proxy = p
		token := r.sticky.known(p.secrets.Load()).of[b]
		head := "GET / HTTP/1.1\r\nHost: a\r\nCookie: stay=" + base64.RawURLEncoding.EncodeToString(token[:]) + "\r\n\r\n"
		if _, err := x.request.Parse([]byte(head)); err != nil {
			t.Fatal(err)
		}
		if got, f := x.first(); f != nil || got != b || x.pool != pools[i] || x.partNumber() != i+1 {
			t.Errorf("the client of a backend in part %d went to part %d", i+1, x.partNumber())
		}
	}
}
