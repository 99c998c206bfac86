package forward

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/gorilla/websocket"

	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// bounded is s with a circuit breaker.
func bounded(c *resourcev1.CircuitBreaker, s site) site {
	if c.MaxPending > 0 && c.PendingTimeout == nil {
		c.PendingTimeout = durationpb.New(time.Minute)
	}
	s.picks.CircuitBreaker = c
	return s
}

// gate is a backend that answers a request once it is told to.
type gate struct {
	port    uint32
	reached chan string // paths
	open    chan struct{}
}

func newGate(t testing.TB) *gate {
	g := &gate{reached: make(chan string, 100), open: make(chan struct{})}
	g.port = portOf(backend(t, func(w http.ResponseWriter, r *http.Request) {
		g.reached <- r.URL.Path
		select {
		case <-g.open:
			io.WriteString(w, "through")
		case <-r.Context().Done():
		}
	}))
	return g
}

// begin sends a request, whose status comes by the channel; 0 is that it failed.
func begin(t testing.TB, ctx context.Context, c *http.Client, url string) <-chan int {
	t.Helper()
	status := make(chan int, 1)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		res, err := c.Do(req)
		if err != nil {
			status <- 0
			return
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		status <- res.StatusCode
	}()
	return status
}

// occupancy is that of the only route's pool.
func (p *proxy) occupancy() upstream.Occupancy {
	return p.onlyRoute().pool.Occupancy()
}

func waitForOccupancy(t testing.TB, p *proxy, want upstream.Occupancy) {
	t.Helper()
	nodetest.Eventually(t, "what is under way", func() bool { return p.occupancy() == want })
}

func TestWhatIsOverTheLimitIsAnswered503AtOnce(t *testing.T) {
	g := newGate(t)
	p := start(t, bounded(&resourcev1.CircuitBreaker{MaxRequests: 1}, whole(g.port)))
	first := begin(t, t.Context(), client(t, nil), p.url("/1"))
	<-g.reached
	res, body := get(t, client(t, nil), p.url("/2"))
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "1" || !strings.Contains(body, "too many requests under way") {
		t.Errorf("%s, Retry-After %q: %s", res.Status, res.Header.Get("Retry-After"), body)
	}
	close(g.open)
	if got := <-first; got != 200 {
		t.Errorf("the first: %d", got)
	}
	waitForOccupancy(t, p, upstream.Occupancy{Refused: 1})
	if res, _ := get(t, client(t, nil), p.url("/3")); res.StatusCode != 200 {
		t.Errorf("once there was room again: %s", res.Status)
	}
}

// overEach are clients that speak one protocol each.
var overEach = map[string]func(testing.TB) *http.Client{
	"HTTP/1": func(t testing.TB) *http.Client { return client(t, nil) },
	"HTTP/2": func(t testing.TB) *http.Client {
		c := client(t, nil)
		c.Transport.(*http.Transport).Protocols = new(http.Protocols)
		c.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
		return c
	},
}

func TestARequestWaitsForItsTurn(t *testing.T) {
	for name, over := range overEach {
		t.Run(name, func(t *testing.T) {
			g := newGate(t)
			p := start(t, bounded(&resourcev1.CircuitBreaker{MaxConnections: 1, MaxPending: 1}, whole(g.port)))
			c := over(t)
			first := begin(t, t.Context(), c, p.url("/1"))
			<-g.reached
			second := begin(t, t.Context(), c, p.url("/2"))
			waitForOccupancy(t, p, upstream.Occupancy{Requests: 1, Pending: 1})
			if res, _ := get(t, c, p.url("/3")); res.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("a third: %s", res.Status)
			}
			close(g.open)
			if a, b := <-first, <-second; a != 200 || b != 200 {
				t.Errorf("%d and %d", a, b)
			}
			if path := <-g.reached; path != "/2" {
				t.Errorf("%s came second", path)
			}
			waitForOccupancy(t, p, upstream.Occupancy{Refused: 1})
		})
	}
}

func TestAWaitHasItsLimits(t *testing.T) {
	g := newGate(t)
	s := bounded(&resourcev1.CircuitBreaker{MaxRequests: 1, MaxPending: 2, PendingTimeout: durationpb.New(time.Millisecond)}, whole(g.port))
	p := start(t, s)
	first := begin(t, t.Context(), client(t, nil), p.url("/1"))
	<-g.reached
	res, body := get(t, client(t, nil), p.url("/2"))
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "1" || !strings.Contains(body, "waited in vain") {
		t.Errorf("%s: %s", res.Status, body)
	}
	waitForOccupancy(t, p, upstream.Occupancy{Requests: 1, Expired: 1})
	close(g.open)
	<-first
}

func TestAWaitEndsWithTheRequest(t *testing.T) {
	g := newGate(t)
	s := bounded(&resourcev1.CircuitBreaker{MaxRequests: 1, MaxPending: 2}, whole(g.port))
	s.route.Timeouts = &resourcev1.Timeouts{Request: durationpb.New(100 * time.Millisecond)}
	p := start(t, s)
	first := begin(t, t.Context(), client(t, nil), p.url("/1"))
	<-g.reached
	if got := <-begin(t, t.Context(), client(t, nil), p.url("/2")); got != http.StatusGatewayTimeout {
		t.Errorf("after the whole request's time: %d", got)
	}
	<-first
	waitForOccupancy(t, p, upstream.Occupancy{})
}

func TestAWaitEndsWithItsClient(t *testing.T) {
	for name, over := range overEach {
		t.Run(name, func(t *testing.T) {
			g := newGate(t)
			p := start(t, bounded(&resourcev1.CircuitBreaker{MaxRequests: 1, MaxPending: 2}, whole(g.port)))
			first := begin(t, t.Context(), client(t, nil), p.url("/1"))
			<-g.reached
			ctx, cancel := context.WithCancel(t.Context())
			second := begin(t, ctx, over(t), p.url("/2"))
			waitForOccupancy(t, p, upstream.Occupancy{Requests: 1, Pending: 1})
			cancel()
			<-second
			waitForOccupancy(t, p, upstream.Occupancy{Requests: 1})
			close(g.open)
			if got := <-first; got != 200 {
				t.Errorf("the first: %d", got)
			}
			select {
			case path := <-g.reached:
				t.Errorf("%s reached the backend though its client had gone", path)
			default:
			}
		})
	}
}

func TestATunnelKeepsItsPlaceUntilItEnds(t *testing.T) {
	p := start(t, bounded(&resourcev1.CircuitBreaker{MaxConnections: 1}, whole(portOf(backend(t, echo)))))
	c, _ := dial(t, websocket.DefaultDialer, "ws://"+p.address+"/", nil)
	waitForOccupancy(t, p, upstream.Occupancy{Requests: 1})
	if res, _ := get(t, client(t, nil), p.url("/")); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("beside the tunnel: %s", res.Status)
	}
	c.Close()
	waitForOccupancy(t, p, upstream.Occupancy{Refused: 1})
	if c, res, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+p.address+"/", nil); err != nil {
		t.Errorf("after it: %v %v", err, res)
	} else {
		c.Close()
	}
	waitForOccupancy(t, p, upstream.Occupancy{Refused: 1})
}

func TestARetryTakesAPlaceWithItsBackend(t *testing.T) {
	bad, _ := answers(t, 503)
	g := newGate(t)
	p := start(t, bounded(&resourcev1.CircuitBreaker{MaxConnections: 1, MaxRequests: 2, MaxPending: 5}, again(upTo(1), whole(bad, g.port))))
	first := begin(t, t.Context(), client(t, nil), p.url("/1"))
	<-g.reached
	if r, b := p.occupancy(), p.backends[0]; r.Requests != 1 || b.InFlight() != 0 {
		t.Errorf("%+v while the second attempt is under way, %d with the first backend", r, b.InFlight())
	}
	// The other backend is full: the answer that there is counts, and nobody waits for a retry.
	if res, _ := get(t, client(t, nil), p.url("/2")); res.StatusCode != 503 || res.Header.Get("X-Status") != "503" {
		t.Errorf("%s, not the backend's own", res.Status)
	}
	close(g.open)
	if got := <-first; got != 200 {
		t.Errorf("the first: %d", got)
	}
	waitForOccupancy(t, p, upstream.Occupancy{})
}

func TestAClientWhoseBackendIsFullComesBackToIt(t *testing.T) {
	g := newGate(t)
	other, _ := answers(t, 200)
	s := bounded(&resourcev1.CircuitBreaker{MaxConnections: 1}, whole(g.port, other))
	s.route.Sticky = &resourcev1.Sticky{Cookie: "at"}
	p := start(t, s)
	cookie := make(chan string, 1)
	go func() {
		res, _ := get(t, client(t, nil), p.url("/1"))
		cookie <- res.Header.Get("Set-Cookie")
	}()
	<-g.reached
	g.open <- struct{}{}
	mine, _, _ := strings.Cut(<-cookie, ";")
	waitForOccupancy(t, p, upstream.Occupancy{})

	busy := make(chan *http.Response, 1)
	go func() {
		res, _ := get(t, client(t, nil), p.url("/2"), "Cookie", mine)
		busy <- res
	}()
	if path := <-g.reached; path != "/2" {
		t.Errorf("%s reached the client's backend", path)
	}
	res, _ := get(t, client(t, nil), p.url("/3"), "Cookie", mine)
	if res.StatusCode != 200 || res.Header.Get("X-Status") != "200" || res.Header.Get("Set-Cookie") != "" {
		t.Errorf("%s with %q, want the other backend and no other cookie", res.Status, res.Header.Get("Set-Cookie"))
	}
	close(g.open)
	if res := <-busy; res.StatusCode != 200 || res.Header.Get("Set-Cookie") != "" {
		t.Errorf("%s with %q", res.Status, res.Header.Get("Set-Cookie"))
	}
}
