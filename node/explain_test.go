package node

import (
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/nodetest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func ask(n *Node, host, target string) *fleetv1.Answer {
	return n.Explain(&fleetv1.Question{Id: 7, Head: []byte("GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n")})
}

func TestExplainNamesRouteBackendsAndReason(t *testing.T) {
	n := newNode(t, Options{})
	if a := ask(n, "a", "/api"); a.GetStatus() != 503 || a.GetId() != 7 || !strings.Contains(a.GetReason(), "This node serves nothing at the moment") {
		t.Errorf("before the first bundle: %v", a)
	}
	b := nodetest.NewBuild().Route("/api", 3001, 3002).Route("/", 3001)
	b.Routes["a.example.com /exact"] = &resourcev1.Route{
		Path: "/exact", Match: resourcev1.PathMatch_PATH_MATCH_EXACT, Hosts: []string{"a.example.com"}, PreserveHost: true, Pool: "/api",
	}
	b.Routes["~ ^/v[0-9]"] = &resourcev1.Route{
		Path: "^/v[0-9]", Match: resourcev1.PathMatch_PATH_MATCH_REGEX, Hosts: []string{"b.example.com"}, Pool: "/api", Order: 1,
	}
	apply(t, n, 3, b)
	for _, tt := range []struct{ host, target, route, path, sent, reason string }{
		{"x", "/api/u?q", "/api", "/u?q", "127.0.0.1:3001", "/api is the longest prefix of the path among the routes for every host"},
		{"x", "/else", "/", "/else", "127.0.0.1:3001", "/ is the longest prefix"},
		{"A.example.com", "/exact", "a.example.com /exact", "/exact", "A.example.com", "the path is exactly /exact among the routes for a.example.com"},
		{"a.example.com", "/api", "/api", "/", "127.0.0.1:3001", "every host; those for a.example.com do not have the path"},
		{"b.example.com", "/v1", "~ ^/v[0-9]", "/v1", "127.0.0.1:3001", "no exact path or prefix matches, and ^/v[0-9] is the first expression that does, among the routes for b.example.com"},
	} {
		a := ask(n, tt.host, tt.target)
		f := a.GetForward()
		if a.GetRoute() != tt.route || f.GetMethod() != "GET" || f.GetPath() != tt.path || f.GetHost() != tt.sent || a.GetRevision() != 3 || !strings.Contains(a.GetReason(), tt.reason) {
			t.Errorf("%s%s: %v", tt.host, tt.target, a)
		}
	}
	if a := ask(n, "x", "/api"); a.GetBackendCount() != 2 || len(a.GetBackends()) != 2 || a.GetBackends()[1].GetAddress() != "127.0.0.1:3002" {
		t.Errorf("the backends are %v", a.GetBackends())
	}
}

func TestExplainSaysHowNearARequestCame(t *testing.T) {
	n := newNode(t, Options{})
	b := nodetest.NewBuild().Route("/api", 3001)
	b.Routes["/api"].Hosts = []string{"*.example.com"}
	apply(t, n, 1, b)
	check := func(host, target, reason string) {
		t.Helper()
		if a := ask(n, host, target); a.GetStatus() != 404 || a.GetRoute() != "" || a.GetForward() != nil || a.GetReason() != reason {
			t.Errorf("%s%s: %v", host, target, a)
		}
	}
	check("a.org", "/api", "no route matches /api: no route is for the host a.org, and none is for every host")
	check("", "/api", "no route matches /api: no route is for every host, and the request names none")
	check("x.example.com", "/b/../apix", "no route matches /apix: there are routes for *.example.com, but none has the path")
	check("x.example.com", "/API/x", "no route matches /API/x: there are routes for *.example.com, but none has the path; /api would take it in lower case: paths are compared with case")
	b = nodetest.NewBuild().Route("/api", 3001)
	apply(t, n, 2, b)
	check("a.org", "/b", "no route matches /b: no route is for the host a.org, and none of those for every host has the path")
	check("", "/b", "no route matches /b: there are routes for every host, but none has the path")
}

func TestExplainSaysWhichConditionDecides(t *testing.T) {
	n := newNode(t, Options{})
	b := nodetest.NewBuild().Route("/api", 3001).Route("/api [GET]", 3002).Route("/api [POST x-version=\"2\"]", 3003).Route("/shop [?beta=present]", 3004)
	b.Routes["/api [GET]"].Path, b.Routes["/api [GET]"].Methods = "/api", []string{"GET"}
	version := &resourcev1.FieldMatch{Name: "x-version", Condition: &resourcev1.FieldMatch_Exact{Exact: "2"}}
	post := b.Routes["/api [POST x-version=\"2\"]"]
	post.Path, post.Methods, post.Headers = "/api", []string{"POST"}, []*resourcev1.FieldMatch{version}
	beta := &resourcev1.FieldMatch{Name: "beta", Condition: &resourcev1.FieldMatch_Present{Present: true}}
	b.Routes["/shop [?beta=present]"].Path, b.Routes["/shop [?beta=present]"].Query = "/shop", []*resourcev1.FieldMatch{beta}
	b.Routes["/shop [?beta=present]"].Hosts = []string{"shop.example.com"}
	apply(t, n, 1, b)
	for _, tt := range []struct{ head, route, reason string }{
		{"GET /api", "/api [GET]", `/api is the longest prefix of the path among the routes for every host, and its conditions hold (GET); ` +
			`those for shop.example.com do not have the path; /api [POST x-version="2"] comes before it, but the method is not POST`},
		{"POST /api", "/api", `/api is the longest prefix of the path among the routes for every host; ` +
			`those for shop.example.com do not have the path; /api [POST x-version="2"] comes before it, but the header x-version is not "2"; ` +
			`/api [GET] comes before it, but the method is not GET`},
		{"GET /shop", "", "no route matches /shop: /shop [?beta=present] has the path, but the query's beta is not there"},
	} {
		a := n.Explain(&fleetv1.Question{Head: []byte(tt.head + " HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")})
		if a.GetRoute() != tt.route || a.GetReason() != tt.reason {
			t.Errorf("%s: %q because %q", tt.head, a.GetRoute(), a.GetReason())
		}
	}
}

func TestExplainSaysWhyTheProxyAnswersItself(t *testing.T) {
	n := newNode(t, Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint32(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	b := nodetest.NewBuild().Route("/", port)
	b.Pools["/"].HealthCheck = &resourcev1.HealthCheck{
		Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP, Interval: durationpb.New(10 * time.Millisecond), Timeout: durationpb.New(time.Second),
		HealthyThreshold: 1, UnhealthyThreshold: 1,
	}
	apply(t, n, 1, b)
	nodetest.Eventually(t, "the backend is unhealthy", func() bool {
		return n.Backends()[0].GetState() == fleetv1.BackendState_BACKEND_STATE_UNHEALTHY
	})
	a := ask(n, "x", "/y")
	if a.GetStatus() != 503 || a.GetForward().GetPath() != "/y" || !strings.HasSuffix(a.GetReason(), "; the answer is the proxy's own, 503: No backend is healthy for this request") {
		t.Errorf("got %v", a)
	}
	if at := "127.0.0.1:" + strconv.Itoa(int(port)); a.GetBackends()[0].GetAddress() != at || a.GetBackends()[0].GetReason() != "connection refused" {
		t.Errorf("the backends are %v", a.GetBackends())
	}
	for target, reason := range map[string]string{
		"/../x": "the answer is the proxy's own, 400: The path of the request is not valid: the path climbs above the root",
		"/a b":  "the answer is the proxy's own, 400: The request was not understood: ",
	} {
		if a := ask(n, "x", target); a.GetStatus() != 400 || !strings.HasPrefix(a.GetReason(), reason) || strings.Contains(a.GetReason(), "http1") {
			t.Errorf("%s: %v", target, a)
		}
	}
}

func TestExplainNamesNotAllBackendsOfALargePool(t *testing.T) {
	n := newNode(t, Options{})
	b := nodetest.NewBuild().Route("/")
	for i := range uint32(maxExplained + 5) {
		b.Pools["/"].Backends = append(b.Pools["/"].Backends, &resourcev1.Backend{Host: "127.0.0.1", Port: 1 + i, Weight: 1})
	}
	apply(t, n, 1, b)
	if a := ask(n, "x", "/"); len(a.GetBackends()) != maxExplained || a.GetBackendCount() != maxExplained+5 {
		t.Errorf("%d of %d backends", len(a.GetBackends()), a.GetBackendCount())
	}
}

func TestExplainSaysHowTheBackendIsPicked(t *testing.T) {
	n := newNode(t, Options{})
	b := nodetest.NewBuild().Route("/least", 3001, 3002).Route("/hash", 3001, 3002).Route("/sticky", 3001).Route("/both", 3001)
	b.Pools["/least"].LoadBalancing = &resourcev1.LoadBalancing{Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_LEAST_REQUEST}
	b.Pools["/hash"].LoadBalancing = &resourcev1.LoadBalancing{
		Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_MAGLEV, HashOn: resourcev1.HashOn_HASH_ON_PATH,
	}
	b.Pools["/both"].LoadBalancing = &resourcev1.LoadBalancing{
		Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_RING_HASH, HashOn: resourcev1.HashOn_HASH_ON_CLIENT_IP,
	}
	b.Routes["/sticky"].Sticky = &resourcev1.Sticky{Cookie: "lane"}
	b.Routes["/both"].Sticky = &resourcev1.Sticky{Cookie: "lane"}
	apply(t, n, 1, b)
	for target, want := range map[string]string{
		"/least":  "; least_request picks the backend",
		"/hash":   "; maglev picks 127.0.0.1:",
		"/sticky": "; backends are picked in turn, and the cookie lane keeps the client there",
		"/both":   "; ring_hash picks the backend by the client's address, and the cookie lane keeps the client there",
	} {
		if got := ask(n, "x", target).GetReason(); !strings.Contains(got, want) {
			t.Errorf("%s: %q does not say %q", target, got, want)
		}
	}
	to := make(map[string]bool)
	for i := range 20 {
		a := ask(n, "x", "/hash/"+strconv.Itoa(i))
		to[a.GetForward().GetHost()] = true
		if want := "; maglev picks " + a.GetForward().GetHost() + " by the path"; !strings.Contains(a.GetReason(), want) {
			t.Errorf("%q does not say %q", a.GetReason(), want)
		}
	}
	if len(to) != 2 {
		t.Errorf("20 paths go to %v", to)
	}
}

func TestExplainTellsOfPoliciesAndThePart(t *testing.T) {
	n := newNode(t, Options{})
	b := splitBuild(3001, 3002)
	b.Routes["/"].Split[0].Weight = 0
	b.Routes["/"].Retries = &resourcev1.Retries{Attempts: 2, ConnectFailure: true}
	b.Pools["/ [part 2]"].LoadBalancing = &resourcev1.LoadBalancing{Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_RANDOM}
	apply(t, n, 1, b)
	a := ask(n, "x", "/y")
	all := strings.Join(a.GetPolicies(), "\n")
	for _, want := range []string{"timeouts: connect 5s, ", "retries: attempts 2, connect_failure true", "load_balancing: policy random"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not told: %s", want, all)
		}
	}
	if a.GetPart() != 2 {
		t.Errorf("part %d", a.GetPart())
	}
}
