package node

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/health"
	"github.com/pyserve/pyserve/node/nodetest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// moody is a backend that answers with the status that it is told to.
type moody struct {
	port     uint32
	status   atomic.Int32
	requests atomic.Int32
}

func newMoody(t *testing.T, status int) *moody {
	t.Helper()
	m := &moody{}
	m.status.Store(int32(status))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		m.requests.Add(1)
		w.WriteHeader(int(m.status.Load()))
	}))
	t.Cleanup(s.Close)
	m.port = uint32(s.Listener.Addr().(*net.TCPAddr).Port)
	return m
}

// ejecting is a route over backends, whose first ejection lasts as long as it is told.
func ejecting(lasts time.Duration, backends ...*moody) *nodetest.Build {
	var ports []uint32
	for _, m := range backends {
		ports = append(ports, m.port)
	}
	b := nodetest.NewBuild().Route("/", ports...)
	b.Pools["/"].OutlierDetection = &resourcev1.OutlierDetection{
		ConsecutiveFailures: 3, BaseEjectionTime: durationpb.New(lasts), MaxEjectionTime: durationpb.New(lasts),
		Interval: durationpb.New(10 * time.Second), MinimumRequests: 20, MaxEjectionPercent: 50, PanicPercent: 50,
	}
	return b
}

func ejected(n *Node) (reasons []string) {
	for s := range n.EachBackend() {
		if s.State == fleetv1.BackendState_BACKEND_STATE_EJECTED {
			reasons = append(reasons, s.Reason)
		}
	}
	return reasons
}

func get(t *testing.T, n *Node) (status int) {
	t.Helper()
	res, err := client(t, nil).Get("http://" + n.ListenAddress() + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

func TestABackendThatFailsRequestsIsEjectedAndComesBack(t *testing.T) {
	n := newNode(t, Options{})
	bad, good := newMoody(t, http.StatusServiceUnavailable), newMoody(t, http.StatusOK)
	apply(t, n, 1, ejecting(300*time.Millisecond, bad, good))
	for len(ejected(n)) == 0 && bad.requests.Load() < 20 {
		get(t, n)
	}
	if r := ejected(n); len(r) != 1 || r[0] != "3 failures in a row" || bad.requests.Load() != 3 {
		t.Fatalf("%q after %d requests", r, bad.requests.Load())
	}
	nodetest.Eventually(t, "it is back", func() bool { return len(ejected(n)) == 0 })
	bad.status.Store(http.StatusOK)
	nodetest.Eventually(t, "it gets requests again", func() bool { get(t, n); return bad.requests.Load() > 3 })
}

func TestAnEjectedBackendGetsNoRequests(t *testing.T) {
	n := newNode(t, Options{})
	bad, good := newMoody(t, http.StatusInternalServerError), newMoody(t, http.StatusOK)
	apply(t, n, 1, ejecting(time.Hour, bad, good))
	for len(ejected(n)) == 0 {
		get(t, n)
	}
	for range 20 {
		if status := get(t, n); status != http.StatusOK {
			t.Fatal(status)
		}
	}
	// A pool that has changed is another pool, of which the same is known.
	third := newMoody(t, http.StatusOK)
	apply(t, n, 2, ejecting(time.Hour, bad, good, third))
	before := bad.requests.Load()
	for range 20 {
		get(t, n)
	}
	if len(ejected(n)) != 1 || bad.requests.Load() != before || third.requests.Load() == 0 {
		t.Errorf("after an apply: %q, %d requests more", ejected(n), bad.requests.Load()-before)
	}
	apply(t, n, 3, nodetest.NewBuild().Route("/", bad.port, good.port, third.port))
	nodetest.Eventually(t, "without outlier detection it gets requests", func() bool { get(t, n); return bad.requests.Load() > before })
}

func TestABackendThatBreaksItsAnswersOffIsEjected(t *testing.T) {
	n := newNode(t, Options{})
	broken := nodetest.NewRawBackend(t, func(c net.Conn) {
		if _, err := nodetest.ReadHead(bufio.NewReader(c)); err == nil {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
		}
	})
	b := ejecting(time.Hour, newMoody(t, http.StatusOK), &moody{port: broken.Port()})
	apply(t, n, 1, b)
	for range 20 {
		if res, err := client(t, nil).Get("http://" + n.ListenAddress() + "/"); err == nil {
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	}
	nodetest.Eventually(t, "it is ejected", func() bool {
		r := ejected(n)
		return len(r) == 1 && r[0] == "3 failures in a row"
	})
}

// Requests of the generation before may be the ones that eject, and the live pool has to know.
func TestAnEjectionByRequestsOfBeforeReachesTheLivePool(t *testing.T) {
	n := newNode(t, Options{})
	arrived, release := make(chan struct{}, 3), make(chan struct{})
	var asked atomic.Int32
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		arrived <- struct{}{}
		<-release
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(slow.Close)
	hung := &moody{port: uint32(slow.Listener.Addr().(*net.TCPAddr).Port)}
	good, other := newMoody(t, http.StatusOK), newMoody(t, http.StatusOK)
	apply(t, n, 1, ejecting(time.Hour, hung, good))
	var under sync.WaitGroup
	for range 6 { // three of them come to the one that hangs
		under.Go(func() { get(t, n) })
	}
	for range 3 {
		<-arrived
	}
	apply(t, n, 2, ejecting(time.Hour, hung, good, other))
	close(release)
	under.Wait()
	nodetest.Eventually(t, "the live pool passes it over", func() bool {
		before := asked.Load()
		for range 6 {
			get(t, n)
		}
		return asked.Load() == before
	})
}

func TestOfOneBackendNoneIsEjected(t *testing.T) {
	n := newNode(t, Options{})
	bad := newMoody(t, http.StatusInternalServerError)
	apply(t, n, 1, ejecting(time.Hour, bad))
	for range 10 {
		if status := get(t, n); status != http.StatusInternalServerError {
			t.Fatal(status)
		}
	}
}

func TestEjectionsDoNotCountWhereTooFewWouldBeLeft(t *testing.T) {
	n := newNode(t, Options{})
	bad, good := newMoody(t, http.StatusInternalServerError), newMoody(t, http.StatusOK)
	b := ejecting(time.Hour, bad, good)
	b.Pools["/"].OutlierDetection.PanicPercent = 51
	apply(t, n, 1, b)
	for len(ejected(n)) == 0 {
		get(t, n)
	}
	before := bad.requests.Load()
	for range 20 {
		get(t, n)
	}
	if got := bad.requests.Load() - before; got != 10 {
		t.Errorf("it got %d of 20 requests, want its half", got)
	}
}

// sharing makes nodes that hear each other at once.
func sharing(t *testing.T, names ...string) []*Node {
	t.Helper()
	nodes := make([]*Node, len(names))
	said := make(chan func(), 1024)
	for i, name := range names {
		nodes[i] = newNode(t, Options{Name: name, PublishVotes: func(message []byte) string {
			said <- func() {
				for _, other := range nodes {
					if other != nodes[i] {
						other.HearVotes(health.Heard{From: name, Message: message})
					}
				}
			}
			return ""
		}})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for tell := range said {
			if tell == nil {
				return
			}
			tell()
		}
	}()
	t.Cleanup(func() { said <- nil; <-done })
	for _, n := range nodes {
		n.SetMembers(names)
	}
	return nodes
}

func TestNodesShareEjections(t *testing.T) {
	nodes := sharing(t, "a", "b", "c")
	bad, good := newMoody(t, http.StatusServiceUnavailable), newMoody(t, http.StatusOK)
	for _, n := range nodes {
		apply(t, n, 1, ejecting(time.Hour, bad, good))
	}
	for len(ejected(nodes[0])) == 0 {
		get(t, nodes[0])
	}
	if len(ejected(nodes[1])) > 0 || len(ejected(nodes[2])) > 0 {
		t.Fatal("the word of one node has ejected a backend elsewhere")
	}
	heard := func(n *Node) func() bool {
		return func() bool {
			id := nodeBackend(n, bad)
			accusers, _ := n.prober.Accusers(accusable{"/", id}.key())
			n.outliers.settle()
			return accusers == 1
		}
	}
	nodetest.Eventually(t, "b has heard of it", heard(nodes[1]))
	before := bad.requests.Load()
	for len(ejected(nodes[1])) == 0 {
		get(t, nodes[1])
	}
	if got := bad.requests.Load() - before; got != 1 {
		t.Errorf("b has lost %d requests", got)
	}
	before = bad.requests.Load()
	nodetest.Eventually(t, "c goes by what a and b say", func() bool { return len(ejected(nodes[2])) == 1 })
	for range 10 {
		get(t, nodes[2])
	}
	if bad.requests.Load() != before {
		t.Error("c has sent it requests")
	}
}

func nodeBackend(n *Node, m *moody) (id [16]byte) {
	for _, member := range poolOf(n.live.Load().route("/")).Members() {
		if member.Backend.Spec().Port == m.port {
			id = member.Backend.Identity()
		}
	}
	return id
}
