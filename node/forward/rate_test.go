package forward

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// slowRate lets two requests through and the next after an hour.
func slowRate(key resourcev1.RateKey, header string) *resourcev1.RateLimit {
	return &resourcev1.RateLimit{Requests: 1, Per: durationpb.New(time.Hour), Burst: 2, Key: key, Header: header}
}

func TestRequestsOverTheRateAreRefused(t *testing.T) {
	for name, scope := range map[string]resourcev1.RateScope{"of the node": resourcev1.RateScope_RATE_SCOPE_NODE,
		"of all nodes, where there is one": resourcev1.RateScope_RATE_SCOPE_CLUSTER} {
		t.Run(name, func(t *testing.T) { overTheRate(t, scope) })
	}
}

func overTheRate(t *testing.T, scope resourcev1.RateScope) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	s := whole(b.Port())
	s.route.RateLimit = slowRate(resourcev1.RateKey_RATE_KEY_CLIENT_IP, "")
	s.route.RateLimit.Scope = scope
	p := start(t, s)
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	answers := heads(p.exchange(t, strings.Repeat(request, 3)+"GET / HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nConnection: close\r\n\r\n"))
	if len(answers) != 4 {
		t.Fatalf("%d answers: %q", len(answers), answers)
	}
	for i, want := range []string{"r=1;t=3600", "r=0;t=3600", "r=0;t=3600", "r=0;t=3600"} {
		if got := fields(answers[i], "RateLimit"); len(got) != 1 || got[0] != `"default";`+want {
			t.Errorf("answer %d: RateLimit %q, want %s", i+1, got, want)
		}
		if got := fields(answers[i], "RateLimit-Policy"); len(got) != 1 || got[0] != `"default";q=1;w=3600` {
			t.Errorf("answer %d: RateLimit-Policy %q", i+1, got)
		}
		status, retry := "200 OK", ""
		if i >= 2 {
			status, retry = "429 Too Many Requests", "3600"
		}
		if got := strings.Join(fields(answers[i], "Retry-After"), ","); got != retry || !strings.HasPrefix(answers[i], "HTTP/1.1 "+status) {
			t.Errorf("answer %d: %q with Retry-After %q, want %s with %q", i+1, lines(answers[i])[0], got, status, retry)
		}
	}
	if n := b.Requests(); n != 2 {
		t.Errorf("%d requests have reached the backend, want 2", n)
	}
}

// heads cuts what came over one connection into answers.
func heads(all string) []string {
	var answers []string
	for i, part := range strings.Split(all, "HTTP/1.1 ") {
		if i > 0 {
			answers = append(answers, "HTTP/1.1 "+part)
		}
	}
	return answers
}

func TestTheValueOfAHeaderIsAKeyOfItsOwn(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	s := whole(b.Port())
	s.route.RateLimit = slowRate(resourcev1.RateKey_RATE_KEY_HEADER, "x-key")
	p := start(t, s)
	statuses := ""
	for _, key := range []string{"a", "a", "a", "b", "b", "b", "", "", ""} {
		answer := p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nX-KEY: "+key+"\r\nConnection: close\r\n\r\n")
		statuses += answer[len("HTTP/1.1 "):][:3] + " "
	}
	if statuses != strings.Repeat("200 200 429 ", 3) {
		t.Error(statuses)
	}
}

func TestRateKeys(t *testing.T) {
	key := func(address string, by resourcev1.RateKey) uint64 {
		x := &exchange{}
		x.origin.real = netip.MustParseAddr(address)
		return x.rateKey(&resourcev1.RateLimit{Key: by})
	}
	const ip, route = resourcev1.RateKey_RATE_KEY_CLIENT_IP, resourcev1.RateKey_RATE_KEY_ROUTE
	for _, c := range []struct {
		a, b string
		by   resourcev1.RateKey
		same bool
	}{
		{"10.0.0.1", "10.0.0.1", ip, true}, {"10.0.0.1", "10.0.0.2", ip, false}, {"10.0.0.1", "::ffff:10.0.0.1", ip, true},
		{"2001:db8::1", "2001:db8::2", ip, true}, {"2001:db8::1", "2001:db8:0:1::1", ip, false},
		{"10.0.0.1", "2001:db8::1", route, true},
	} {
		if same := key(c.a, c.by) == key(c.b, c.by); same != c.same {
			t.Errorf("%s and %s, %v: one key %v, want %v", c.a, c.b, c.by, same, c.same)
		}
	}
}

// Every node counts a client by the same number, which differs from limit to limit.
func TestSharedRateKeys(t *testing.T) {
	key := func(route, address string, by resourcev1.RateKey) uint64 {
		r := slowRate(by, "x-key")
		r.Scope = resourcev1.RateScope_RATE_SCOPE_CLUSTER
		made, err := newRate(route, r)
		if err != nil {
			t.Fatal(err)
		}
		x := &exchange{}
		x.origin.real = netip.MustParseAddr(address)
		return x.sharedKey(made.shared.ID(), r)
	}
	const ip, route = resourcev1.RateKey_RATE_KEY_CLIENT_IP, resourcev1.RateKey_RATE_KEY_ROUTE
	if got := key("/a", "10.0.0.1", ip); got != 0xa43ddededfeee7a0 {
		t.Errorf("a client is %#x, and nodes of other versions would not know it", got)
	}
	if got := key("/a", "10.0.0.1", route); got != 0x38e8ee78a2be88b6 {
		t.Errorf("a route is %#x, and nodes of other versions would not know it", got)
	}
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"10.0.0.1", "10.0.0.2", false}, {"10.0.0.1", "::ffff:10.0.0.1", true}, {"2001:db8::1", "2001:db8::2", true}, {"2001:db8::1", "2001:db8:0:1::1", false},
	} {
		if same := key("/a", c.a, ip) == key("/a", c.b, ip); same != c.same {
			t.Errorf("%s and %s: one key %v, want %v", c.a, c.b, same, c.same)
		}
	}
	if key("/a", "10.0.0.1", ip) == key("/b", "10.0.0.1", ip) {
		t.Error("a client is the same for two routes")
	}
}

func TestARouteInheritsWhatIsCountedWithItsRate(t *testing.T) {
	made := func(burst uint32) *Route {
		rate := slowRate(resourcev1.RateKey_RATE_KEY_ROUTE, "")
		rate.Burst = burst
		r, err := NewRoute("/", &resourcev1.Route{Path: "/", Match: resourcev1.PathMatch_PATH_MATCH_PREFIX, RateLimit: rate}, upstream.NewPool(nil, upstream.PoolOptions{}))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	before, same, other := made(2), made(2), made(3)
	same.Inherit(before)
	other.Inherit(before)
	if same.rate != before.rate || other.rate == before.rate || !same.IsLimited() {
		t.Error("the same rate has to be the same limiter, and no other")
	}
	same.Inherit(nil)
	(&Route{}).Inherit(before)
}

func TestARedirectIsLimitedToo(t *testing.T) {
	s := whole(1)
	s.route.RateLimit = slowRate(resourcev1.RateKey_RATE_KEY_ROUTE, "")
	s.route.Redirect = &resourcev1.Redirect{To: "/there", Status: http.StatusFound}
	p := start(t, s)
	answers := heads(p.exchange(t, strings.Repeat("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 2)+"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
	if len(answers) != 3 || !strings.HasPrefix(answers[1], "HTTP/1.1 302") || !strings.HasPrefix(answers[2], "HTTP/1.1 429") ||
		len(fields(answers[1], "RateLimit")) != 1 {
		t.Errorf("%q", answers)
	}
}

func TestARateThatIsNotKnownHereIsRefused(t *testing.T) {
	for _, change := range []func(*resourcev1.RateLimit){
		func(r *resourcev1.RateLimit) { r.Scope = resourcev1.RateScope_RATE_SCOPE_CLUSTER + 1 },
		func(r *resourcev1.RateLimit) { r.Requests = 0 },
		func(r *resourcev1.RateLimit) { r.Burst = 0 },
		func(r *resourcev1.RateLimit) { r.Per = nil },
	} {
		rate := slowRate(resourcev1.RateKey_RATE_KEY_ROUTE, "")
		change(rate)
		if made, err := newRate("/", rate); err == nil || !strings.HasPrefix(err.Error(), "rate_limit: ") {
			t.Errorf("%v: %v %v", rate, made, err)
		}
	}
}

func TestASharedRateAllocatesNothingForARequest(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	r := slowRate(resourcev1.RateKey_RATE_KEY_CLIENT_IP, "")
	r.Scope, r.Burst = resourcev1.RateScope_RATE_SCOPE_CLUSTER, 100_000
	made, err := newRate("/", r)
	if err != nil {
		t.Fatal(err)
	}
	made.shared.SetNodes(3)
	x := &exchange{route: &Route{rate: made}, begun: time.Now()}
	x.origin.real = netip.MustParseAddr("2001:db8::1")
	if n := testing.AllocsPerRun(1000, func() {
		if x.limit() != nil {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
