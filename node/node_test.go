package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/nodetest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newNode(t *testing.T, o Options) *Node {
	t.Helper()
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(n, 200*time.Millisecond) })
	return n
}

func stop(n *Node, within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return n.Stop(ctx)
}

func release(revision uint64) *fleetv1.Release { return &fleetv1.Release{Revision: revision} }

func apply(t *testing.T, n *Node, revision uint64, b *nodetest.Build) *Generation {
	t.Helper()
	g, err := n.Prepare(release(revision), b.Bundle(t))
	if err != nil {
		t.Fatal(err)
	}
	n.Apply(g)
	return g
}

// saying is a backend that answers with its word.
func saying(t testing.TB, word string) uint32 {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, word+" "+r.URL.Path) }))
	t.Cleanup(s.Close)
	return uint32(s.Listener.Addr().(*net.TCPAddr).Port)
}

func client(t *testing.T, config *tls.Config) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func fetch(c *http.Client, url string) (string, error) {
	res, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return string(body), err
}

func wantBody(t *testing.T, url, want string) {
	t.Helper()
	if got, err := fetch(client(t, nil), url); err != nil || got != want {
		t.Errorf("%s: %q %v, want %q", url, got, err, want)
	}
}

func refusals(t *testing.T, err error) Refusals {
	t.Helper()
	var r Refusals
	if !errors.As(err, &r) || len(r) == 0 {
		t.Fatalf("not refused: %v", err)
	}
	return r
}

func TestANodeServesWhatWasApplied(t *testing.T) {
	n := newNode(t, Options{Name: "n1"})
	if n.Ready() || n.Applied() != nil || n.ListenAddress() != "" || n.Backends() != nil {
		t.Error("a fresh node claims to serve")
	}
	b := nodetest.NewBuild().Route("/a", saying(t, "a")).Route("/", saying(t, "root"))
	g, err := n.Prepare(release(1), b.Bundle(t))
	if err != nil {
		t.Fatal(err)
	}
	if n.Ready() || n.Applied() != nil {
		t.Error("prepared is not applied")
	}
	n.Apply(g)
	if !n.Ready() || n.Applied().GetRevision() != 1 {
		t.Error("applied, but not ready")
	}
	<-n.Changed()
	wantBody(t, "http://"+n.ListenAddress()+"/a/x", "a /x")
	wantBody(t, "http://"+n.ListenAddress()+"/b", "root /b")
	if err := stop(n, 20*time.Second); err != nil {
		t.Error(err)
	}
	if n.Ready() || n.Applied() != nil || !n.Draining() {
		t.Error("stopped, but still ready")
	}
}

func TestARequestEndsOnTheGenerationThatItBeganWith(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-leave
		io.WriteString(w, "old")
	}))
	t.Cleanup(s.Close)
	n := newNode(t, Options{})
	old := apply(t, n, 1, nodetest.NewBuild().Route("/", uint32(s.Listener.Addr().(*net.TCPAddr).Port)))
	address := n.ListenAddress()
	answer := make(chan string, 1)
	go func() {
		body, err := fetch(client(t, nil), "http://"+address+"/")
		answer <- fmt.Sprint(body, err)
	}()
	<-entered
	apply(t, n, 2, nodetest.NewBuild().Route("/new", saying(t, "new")))
	if n.ListenAddress() != address {
		t.Error("the same address is a new socket")
	}
	wantBody(t, "http://"+address+"/new", "new /")
	if old.refs.Load() != 1 {
		t.Errorf("the old generation has %d references, want the request's", old.refs.Load())
	}
	close(leave)
	if got := <-answer; got != "old<nil>" {
		t.Errorf("the old request got %s", got)
	}
	nodetest.Eventually(t, "the old generation is released", func() bool { return old.refs.Load() == 0 })
}

func TestASwapUnderLoadLosesNothing(t *testing.T) {
	ports := []uint32{saying(t, "x"), saying(t, "x")}
	n := newNode(t, Options{Registerer: prometheus.NewRegistry()})
	apply(t, n, 1, nodetest.NewBuild().Route("/", ports...))
	url := "http://" + n.ListenAddress() + "/"
	c := client(t, nil)
	var done atomic.Bool
	var load sync.WaitGroup
	var requests atomic.Int64
	for range 8 {
		load.Go(func() {
			for !done.Load() {
				if got, err := fetch(c, url); err != nil || got != "x /" {
					t.Errorf("%q %v", got, err)
					return
				}
				requests.Add(1)
			}
		})
	}
	for revision := range uint64(100) {
		b := nodetest.NewBuild().Route("/", ports[revision%2])
		if revision%3 == 0 {
			b.Route("/", ports...).Route("/extra", ports...)
		}
		apply(t, n, revision+2, b)
		before := requests.Load()
		nodetest.Eventually(t, "requests go on", func() bool { return requests.Load() > before+8 || t.Failed() })
	}
	done.Store(true)
	load.Wait()
}

func TestVerdictsAreCarriedOver(t *testing.T) {
	n := newNode(t, Options{})
	dead := nodetest.NewRawBackend(t, func(net.Conn) {})
	alive, other := saying(t, "alive"), saying(t, "other")
	dead.Close() // last, or its port might be given to one of them
	check := &resourcev1.HealthCheck{
		Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP, Interval: durationpb.New(50 * time.Millisecond), Timeout: durationpb.New(time.Second),
		HealthyThreshold: 1, UnhealthyThreshold: 1,
	}
	probed := func() *nodetest.Build {
		b := nodetest.NewBuild().Route("/", dead.Port(), alive)
		b.Pools["/"].HealthCheck = check
		return b
	}
	apply(t, n, 1, probed())
	unhealthy := func() bool {
		for _, s := range n.Backends() {
			if s.GetState() == fleetv1.BackendState_BACKEND_STATE_UNHEALTHY {
				return s.GetReason() == "connection refused" && s.GetRoute() == "/" && strings.HasPrefix(s.GetAddress(), "127.0.0.1:")
			}
		}
		return false
	}
	nodetest.Eventually(t, "the dead backend is unhealthy", unhealthy)
	apply(t, n, 2, probed().Route("/other", other))
	if !unhealthy() {
		t.Errorf("forgotten: %v", n.Backends())
	}
	states := n.Backends()
	if len(states) != 3 || states[2].GetRoute() != "/other" || states[2].GetState() != fleetv1.BackendState_BACKEND_STATE_HEALTHY {
		t.Errorf("%v", states)
	}
}

func TestABackendThatIsListedTwiceIsToldOnce(t *testing.T) {
	n := newNode(t, Options{})
	b := nodetest.NewBuild().Route("/", 2, 1, 2)
	b.Pools["/"].Backends[0].Weight = 0
	apply(t, n, 1, b)
	s := n.Backends()
	if len(s) != 2 || s[0].GetAddress() != "127.0.0.1:1" || s[1].GetState() != fleetv1.BackendState_BACKEND_STATE_HEALTHY {
		t.Errorf("%v", s)
	}
}

func TestABackendOfWeight0Drains(t *testing.T) {
	n := newNode(t, Options{})
	b := nodetest.NewBuild().Route("/", saying(t, "x"))
	b.Pools["/"].Backends[0].Weight = 0
	apply(t, n, 1, b)
	if s := n.Backends(); len(s) != 1 || s[0].GetState() != fleetv1.BackendState_BACKEND_STATE_DRAINING {
		t.Errorf("%v", s)
	}
	res, err := client(t, nil).Get("http://" + n.ListenAddress() + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable {
		t.Error(res.Status)
	}
}

func TestAPortInUseIsRefused(t *testing.T) {
	taken := nodetest.NewRawBackend(t, func(net.Conn) {})
	address := fmt.Sprintf("127.0.0.1:%d", taken.Port())
	reason := "cannot listen on " + address + ": address already in use"
	configured := nodetest.NewBuild().Route("/", saying(t, "x"))
	configured.Listener.Port = taken.Port()
	_, err := newNode(t, Options{}).Prepare(release(1), configured.Bundle(t))
	if r := refusals(t, err); len(r) != 1 || r[0] != (Refusal{"server.port", reason}) {
		t.Errorf("%q", r)
	}
	overridden := newNode(t, Options{Listen: address})
	_, err = overridden.Prepare(release(1), nodetest.NewBuild().Route("/", saying(t, "x")).Bundle(t))
	if r := refusals(t, err); len(r) != 1 || r[0] != (Refusal{"--listen", reason}) {
		t.Errorf("%q", r)
	}
	// The refusal left nothing behind: when the port is free, the same node serves.
	taken.Close()
	apply(t, overridden, 1, nodetest.NewBuild().Route("/", saying(t, "x")))
	if got := overridden.ListenAddress(); got != address {
		t.Error(got)
	}
}

func TestBundlesThatAreRefused(t *testing.T) {
	n := newNode(t, Options{})
	live := nodetest.NewBuild().Route("/", saying(t, "live"))
	apply(t, n, 1, live)
	one, other := certtest.New(t).Issue(t, "x"), certtest.New(t).Issue(t, "x")
	for name, c := range map[string]struct {
		change func(*nodetest.Build)
		want   Refusal
	}{
		"key of another certificate": {func(b *nodetest.Build) { b.Serve(one.ChainPEM, other.KeyPEM) },
			Refusal{"ssl.key_file", "private key does not match public key"}},
		"no certificate": {func(b *nodetest.Build) { b.Serve([]byte("x"), one.KeyPEM) },
			Refusal{"ssl.cert_file", "failed to find any PEM data in certificate input"}},
		"certificate that is not there": {func(b *nodetest.Build) { b.Listener.Certificate = "lost" },
			Refusal{"ssl.cert_file", `the bundle has no certificate "lost"`}},
		"pool that is not there": {func(b *nodetest.Build) { b.Routes["/"].Pool = "lost" },
			Refusal{"server.reverse_proxy", `route /: the bundle has no pool "lost"`}},
		"trusted proxies": {func(b *nodetest.Build) { b.Listener.TrustedProxies = []string{"10.0.0.0"} },
			Refusal{"server.trusted_proxies", `"10.0.0.0" is not a network in CIDR form`}},
		"health check of a newer control": {func(b *nodetest.Build) { b.Pools["/"].HealthCheck.Type = 99 },
			Refusal{"server.reverse_proxy", "pool /, health_check: type 99 is not known here: bring this node to the version of control"}},
		"stripped regex": {func(b *nodetest.Build) { b.Routes["/"].Match = resourcev1.PathMatch_PATH_MATCH_REGEX },
			Refusal{"server.reverse_proxy", "route /: strip_path: a regular expression cannot be stripped from a path"}},
		"host to listen on": {func(b *nodetest.Build) { b.Listener.Host = "192.0.2.1" },
			Refusal{"server.host", "cannot listen on 192.0.2.1:0: cannot assign requested address"}},
		"no listener": {func(b *nodetest.Build) { b.Listener = nil }, Refusal{"server", "the bundle has no listener"}},
		"defect":      {func(b *nodetest.Build) { b.Routes["/"] = nil; b.Pools[""] = nil; b.Certificates = nil }, Refusal{}},
	} {
		t.Run(name, func(t *testing.T) {
			b := nodetest.NewBuild().Route("/", saying(t, "new"))
			c.change(b)
			_, err := n.Prepare(release(2), b.Bundle(t))
			if r := refusals(t, err); c.want != (Refusal{}) && (len(r) != 1 || r[0] != c.want) {
				t.Errorf("%q, want %q", r, c.want)
			}
			wantBody(t, "http://"+n.ListenAddress()+"/", "live /")
			if n.Applied().GetRevision() != 1 {
				t.Error("the live generation was touched")
			}
		})
	}
}

func TestEveryReasonIsGiven(t *testing.T) {
	b := nodetest.NewBuild().Route("/", saying(t, "x"))
	b.Listener.TrustedProxies = []string{"a", "b"}
	b.Routes["/"].Pool = "lost"
	b.Pools["/"].Backends = append(b.Pools["/"].Backends, &resourcev1.Backend{Host: "x", Port: 70000})
	_, err := newNode(t, Options{}).Prepare(release(1), b.Bundle(t))
	if r := refusals(t, err); len(r) != 4 {
		t.Errorf("%q", r)
	}
	var many Refusals
	for i := range 1000 {
		many.addf("x", "%d", i)
	}
	if len(many) != maxRefusals+1 || many[maxRefusals].Reason != "and more" {
		t.Errorf("%d refusals", len(many))
	}
}

func TestAPanicInTheCompilerIsARefusal(t *testing.T) {
	n := newNode(t, Options{})
	n.registry = nil // a defect
	_, err := n.Prepare(release(1), nodetest.NewBuild().Route("/", 1).Bundle(t))
	if r := refusals(t, err); !strings.HasPrefix(r[0].Reason, "a defect in this node's compiler: ") {
		t.Errorf("%q", r)
	}
	n.generations.Wait()
	m := newNode(t, Options{})
	n.registry = m.registry
}

func TestWhatIsNotAppliedIsReleased(t *testing.T) {
	n := newNode(t, Options{})
	b := nodetest.NewBuild().Route("/", saying(t, "x"))
	g, err := n.Prepare(release(1), b.Bundle(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Prepare(release(2), b.Bundle(t)); !errors.Is(err, ErrPrepared) {
		t.Errorf("a second one: %v", err)
	}
	address := g.listener.Address()
	n.Discard(g)
	n.Discard(g)
	n.Discard(nil)
	n.generations.Wait()
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("its socket is still open")
	}
	n.Apply(g) // is ignored
	if n.Ready() {
		t.Error("a discarded generation is served")
	}
	apply(t, n, 3, b)
}

func TestStopDiscardsWhatIsPrepared(t *testing.T) {
	n := newNode(t, Options{})
	b := nodetest.NewBuild().Route("/", saying(t, "x"))
	g, err := n.Prepare(release(1), b.Bundle(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stop(n, time.Second); err != nil {
		t.Error(err)
	}
	n.Apply(g)
	if n.Ready() {
		t.Error("a stopped node serves")
	}
	_, err = n.Prepare(release(2), b.Bundle(t))
	refusals(t, err)
}

func TestAnotherPortIsBoundBesideTheOld(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(entered)
			<-leave
		}
		io.WriteString(w, "done")
	}))
	t.Cleanup(s.Close)
	port := uint32(s.Listener.Addr().(*net.TCPAddr).Port)
	n := newNode(t, Options{})
	apply(t, n, 1, nodetest.NewBuild().Route("/", port))
	old := n.ListenAddress()
	answer := make(chan string, 1)
	go func() {
		body, err := fetch(client(t, nil), "http://"+old+"/slow")
		answer <- fmt.Sprint(body, err)
	}()
	<-entered
	free := nodetest.NewRawBackend(t, func(net.Conn) {})
	free.Close()
	moved := nodetest.NewBuild().Route("/", port)
	moved.Listener.Port = free.Port()
	apply(t, n, 2, moved)
	if want := fmt.Sprintf("127.0.0.1:%d", free.Port()); n.ListenAddress() != want {
		t.Errorf("listens on %s, want %s", n.ListenAddress(), want)
	}
	wantBody(t, "http://"+n.ListenAddress()+"/", "done")
	nodetest.Eventually(t, "the old port is closed", func() bool {
		c, err := net.Dial("tcp", old)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(leave)
	if got := <-answer; got != "done<nil>" {
		t.Errorf("the request on the old port got %s", got)
	}
}

func TestTLSIsTurnedOnAndOffOnTheSamePort(t *testing.T) {
	authority := certtest.New(t)
	first, second := authority.Issue(t, "127.0.0.1"), authority.Issue(t, "127.0.0.1", "second.example")
	port := saying(t, "x")
	n := newNode(t, Options{})
	apply(t, n, 1, nodetest.NewBuild().Route("/", port))
	address := n.ListenAddress()
	wantBody(t, "http://"+address+"/", "x /")
	for revision, pair := range []certtest.Pair{first, second} {
		apply(t, n, uint64(revision)+2, nodetest.NewBuild().Route("/", port).Serve(pair.ChainPEM, pair.KeyPEM))
		res, err := client(t, &tls.Config{RootCAs: authority.Pool()}).Get("https://" + address + "/")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if shown := res.TLS.PeerCertificates[0]; !shown.Equal(pair.TLS.Leaf) {
			t.Errorf("revision %d shows another certificate", revision+2)
		}
	}
	apply(t, n, 4, nodetest.NewBuild().Route("/", port))
	wantBody(t, "http://"+address+"/", "x /")
}

// An expired certificate is the client's to refuse, and not every client does: a node that did not serve would serve nobody.
func TestCertificateThatHasExpiredIsServed(t *testing.T) {
	pair := certtest.New(t).IssueUntil(t, time.Now().Add(-time.Hour), "127.0.0.1")
	n := newNode(t, Options{})
	apply(t, n, 1, nodetest.NewBuild().Route("/", saying(t, "x")).Serve(pair.ChainPEM, pair.KeyPEM))
	res, err := client(t, &tls.Config{InsecureSkipVerify: true}).Get("https://" + n.ListenAddress() + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if !res.TLS.PeerCertificates[0].Equal(pair.TLS.Leaf) {
		t.Error("another certificate is shown")
	}
}

// upgrading is a backend that echoes WebSocket messages, and tells how the reading of each connection ended.
func upgrading(t *testing.T) (port uint32, ends chan error) {
	t.Helper()
	ends = make(chan error, 64)
	var upgrader websocket.Upgrader
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, message, err := c.ReadMessage()
			if err == nil {
				err = c.WriteMessage(kind, message)
			}
			if err != nil {
				ends <- err
				return
			}
		}
	}))
	t.Cleanup(s.Close)
	return uint32(s.Listener.Addr().(*net.TCPAddr).Port), ends
}

func echoes(t *testing.T, c *websocket.Conn) {
	t.Helper()
	if err := c.WriteMessage(websocket.TextMessage, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, got, err := c.ReadMessage(); err != nil || string(got) != "hello" {
		t.Fatalf("%q %v", got, err)
	}
}

func dialWebSocket(t *testing.T, n *Node, path string) *websocket.Conn {
	t.Helper()
	c, _, err := websocket.DefaultDialer.Dial("ws://"+n.ListenAddress()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	return c
}

// wantGoingAway reads until the Close frame of a proxy that ends the tunnel.
func wantGoingAway(t *testing.T, c *websocket.Conn) {
	t.Helper()
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("ended with %v, want a Close 1001", err)
	}
}

func TestTunnelsOutliveSwapsAndEndWithTheDrain(t *testing.T) {
	registry := prometheus.NewRegistry()
	n := newNode(t, Options{Registerer: registry})
	port, ends := upgrading(t)
	apply(t, n, 1, nodetest.NewBuild().Route("/ws", port))
	c := dialWebSocket(t, n, "/ws")
	echoes(t, c)
	apply(t, n, 2, nodetest.NewBuild().Route("/ws", port).Route("/x", port))
	moved := nodetest.NewBuild().Route("/ws", port)
	moved.Listener.Host = "localhost"
	apply(t, n, 3, moved)
	echoes(t, c)
	if got := gauge(t, registry, "pyserve_tunnels"); got != 1 {
		t.Errorf("pyserve_tunnels is %v", got)
	}
	if got := gauge(t, registry, "pyserve_revision"); got != 3 {
		t.Errorf("pyserve_revision is %v", got)
	}
	if got := gauge(t, registry, "pyserve_backend_up"); got != 1 {
		t.Errorf("pyserve_backend_up is %v", got)
	}
	// "hello" twice: a head of 2 bytes, and of 6 where it is masked.
	for _, want := range []struct {
		name, direction string
		value           float64
	}{
		{"pyserve_tunnel_bytes_total", "to_backend", 22}, {"pyserve_tunnel_bytes_total", "to_client", 14},
		{"pyserve_websocket_messages_total", "to_backend", 2}, {"pyserve_websocket_messages_total", "to_client", 2},
	} {
		nodetest.Eventually(t, want.name+" "+want.direction, func() bool {
			return counter(t, registry, want.name, want.direction) == want.value
		})
	}
	stopped := make(chan error, 1)
	go func() { stopped <- stop(n, 2*time.Second) }()
	wantGoingAway(t, c)
	if err := <-ends; !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the backend's side ended with %v, want a Close 1001", err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if families, err := registry.Gather(); err != nil || len(families) != 0 {
		t.Errorf("metrics of a stopped node: %v %v", families, err)
	}
}

func TestTunnelsEndWithTheirRouteOrBackend(t *testing.T) {
	n := newNode(t, Options{})
	gone, goneEnds := upgrading(t)
	stays, _ := upgrading(t)
	apply(t, n, 1, nodetest.NewBuild().Route("/ws", gone).Route("/left", stays).Route("/other", stays))
	onGone, onLeft, onOther := dialWebSocket(t, n, "/ws"), dialWebSocket(t, n, "/left"), dialWebSocket(t, n, "/other")
	for _, c := range []*websocket.Conn{onGone, onLeft, onOther} {
		echoes(t, c)
	}
	// The first loses its backend, not its route.
	apply(t, n, 2, nodetest.NewBuild().Route("/ws", stays).Route("/left", stays).Route("/other", stays))
	wantGoingAway(t, onGone)
	if err := <-goneEnds; !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the backend's side ended with %v, want a Close 1001", err)
	}
	echoes(t, onLeft)
	// The second loses its route; the backend is still another route's.
	apply(t, n, 3, nodetest.NewBuild().Route("/ws", stays).Route("/other", stays))
	wantGoingAway(t, onLeft)
	echoes(t, onOther)
	nodetest.Eventually(t, "one tunnel is left", func() bool { return n.tunnels.Len() == 1 })
}

func TestATunnelOutlivesWhatDoesNotConcernIt(t *testing.T) {
	n := newNode(t, Options{})
	port, _ := upgrading(t)
	other := saying(t, "other")
	first := apply(t, n, 1, nodetest.NewBuild().Route("/ws", port))
	c := dialWebSocket(t, n, "/ws")
	for i := range 50 {
		b := nodetest.NewBuild().Route("/ws", port).Route(fmt.Sprintf("/x%d", i), other)
		switch i % 4 {
		case 1:
			b.Pools["/ws"].Backends = append(b.Pools["/ws"].Backends, &resourcev1.Backend{Host: "127.0.0.1", Port: other, Weight: 1})
		case 2:
			b.Pools["/ws"].Backends[0].Weight = 0
		case 3:
			b.Routes["/ws"].PreserveHost = true
			b.Pools["/ws"].HealthCheck = &resourcev1.HealthCheck{
				Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP, Interval: durationpb.New(time.Hour), Timeout: durationpb.New(time.Second),
				HealthyThreshold: 1, UnhealthyThreshold: 3,
			}
		}
		apply(t, n, uint64(i+2), b)
		echoes(t, c)
	}
	if n.tunnels.Len() != 1 {
		t.Error("the tunnel was not counted")
	}
	nodetest.Eventually(t, "the tunnel does not keep its generation", func() bool { return first.refs.Load() == 0 })
}

// TestALoadedEchoIsNeverCorruptedByItsClose: clients that send as fast as they can get back what they sent, in order, up to
// a Close 1001 and nothing else. No more than a few messages are under way at a time: a slow machine would not empty the
// buffers of the sockets in the time that a frame has to be finished.
func TestALoadedEchoIsNeverCorruptedByItsClose(t *testing.T) {
	n := newNode(t, Options{TunnelRemovalTime: 300 * time.Millisecond})
	port, _ := upgrading(t)
	apply(t, n, 1, nodetest.NewBuild().Route("/ws", port))
	var clients sync.WaitGroup
	var messages atomic.Int64
	for i := range 6 {
		c := dialWebSocket(t, n, "/ws")
		seed := [32]byte{byte(i)}
		underWay, over := make(chan struct{}, 4), make(chan struct{})
		clients.Go(func() {
			out := mathrand.NewChaCha8(seed)
			for size := 0; ; size = (size*7 + 1) % 20011 {
				b := make([]byte, size)
				out.Read(b)
				select {
				case underWay <- struct{}{}:
				case <-over:
					return
				}
				if c.WriteMessage(websocket.BinaryMessage, b) != nil {
					return // the reader has closed
				}
			}
		})
		clients.Go(func() {
			defer c.Close()
			defer close(over)
			in := mathrand.NewChaCha8(seed)
			for size := 0; ; size = (size*7 + 1) % 20011 {
				_, got, err := c.ReadMessage()
				if websocket.IsCloseError(err, websocket.CloseGoingAway) {
					return
				}
				want := make([]byte, size)
				in.Read(want)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("client %d: %d bytes, %v, want %d", i, len(got), err, size)
					return
				}
				messages.Add(1)
				<-underWay
			}
		})
	}
	nodetest.Eventually(t, "the load runs", func() bool { return messages.Load() > 200 })
	apply(t, n, 2, nodetest.NewBuild().Route("/x", port))
	clients.Wait()
	nodetest.Eventually(t, "all tunnels have ended", func() bool { return n.tunnels.Len() == 0 })
}

func counter(t *testing.T, r *prometheus.Registry, name, direction string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == direction {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func gauge(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestStopCutsWhatDoesNotEnd(t *testing.T) {
	entered := make(chan struct{})
	stuck := nodetest.NewRawBackend(t, func(c net.Conn) {
		nodetest.ReadHead(bufio.NewReader(c))
		close(entered)
		io.Copy(io.Discard, c)
	})
	n := newNode(t, Options{Logger: slog.New(slog.DiscardHandler)})
	apply(t, n, 1, nodetest.NewBuild().Route("/", stuck.Port()))
	c := nodetest.Dial(t, n.ListenAddress())
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	if err := stop(n, 50*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := stop(n, time.Millisecond); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
}

func TestTwoNodesCannotShareARegisterer(t *testing.T) {
	registry := prometheus.NewRegistry()
	first := newNode(t, Options{Registerer: registry})
	if _, err := New(Options{Registerer: registry}); err == nil {
		t.Error("they can")
	}
	// Both fail the test if the failed node took the first one's metrics with it.
	gauge(t, registry, "pyserve_revision")
	gauge(t, registry, "pyserve_requests_in_flight")
	if err := stop(first, time.Second); err != nil {
		t.Error(err)
	}
	newNode(t, Options{Registerer: registry})
}
