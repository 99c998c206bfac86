package forward

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
	"golang.org/x/net/http2"

	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// onlyRoute is that of a proxy with one.
func (p *proxy) onlyRoute() *Route {
	r, _, _ := p.table.Routes.Lookup(nil, []byte("/"), nil)
	return r
}

// boundedPool is a pool of one backend.
func boundedPool(t testing.TB, b *upstream.Backend, weight uint32, c *resourcev1.CircuitBreaker) *upstream.Pool {
	t.Helper()
	p := upstream.NewPool([]upstream.Member{{Backend: b, Weight: weight}}, upstream.PoolOptions{CircuitBreaker: c})
	t.Cleanup(p.Close)
	return p
}

// occupied takes a place, which is given back by the function that it returns.
func occupied(t testing.TB, p *upstream.Pool, b *upstream.Backend) (leave func()) {
	t.Helper()
	place, full := p.EnterAt(b)
	if full {
		t.Fatal("no place")
	}
	return func() { place.Leave(upstream.Place{}) }
}

// cookieFor is what a client has that b was given.
func (p *proxy) cookieFor(b *upstream.Backend) string {
	s := p.onlyRoute().sticky
	token := s.known(p.proxy.secrets.Load()).of[b]
	return s.cookie + "=" + base64.RawURLEncoding.EncodeToString(token[:])
}

// The answer of one part is not the doing of another that had no place for a retry.
func TestARetryThatFindsNoPlaceStaysWithItsPart(t *testing.T) {
	bad, _ := answers(t, 503)
	good, asked := answers(t, 200)
	p := start(t, again(upTo(1), whole(bad, good)))
	one := &resourcev1.CircuitBreaker{MaxConnections: 1}
	pools := []*upstream.Pool{boundedPool(t, p.backends[0], 1, one), boundedPool(t, p.backends[1], 1, one)}
	r := p.onlyRoute()
	r.Split([]*resourcev1.Part{{Weight: 1000}, {Weight: 1}}, pools)
	defer occupied(t, pools[1], p.backends[1])()
	if res, _ := get(t, client(t, nil), p.url("/")); res.Header.Get("X-Status") != "503" || asked.Load() != 0 {
		t.Errorf("%s, and the full part was asked %d times", res.Status, asked.Load())
	}
	ended := func(part, class int) uint64 { return r.split.parts[part].counts[class].Load() }
	nodetest.Eventually(t, "the request is counted", func() bool { return ended(0, 5)+ended(1, 5) > 0 })
	if ended(1, 5) > 0 {
		t.Error("it counts as the part's that had no place for it")
	}
}

// A backend of weight 0 goes on with its clients, and may be all that there is.
func TestAClientWhoseOnlyBackendIsFullIsToldSo(t *testing.T) {
	port, _ := answers(t, 200)
	s := whole(port)
	s.route.Sticky = &resourcev1.Sticky{Cookie: "at"}
	p := start(t, s)
	r := p.onlyRoute()
	r.pool = boundedPool(t, p.backends[0], 0, &resourcev1.CircuitBreaker{MaxConnections: 1})
	r.sticky.pools = []*upstream.Pool{r.pool}
	leave := occupied(t, r.pool, p.backends[0])
	res, body := get(t, client(t, nil), p.url("/"), "Cookie", p.cookieFor(p.backends[0]))
	if res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "too many requests under way") {
		t.Errorf("%s: %s", res.Status, body)
	}
	leave()
	if res, _ := get(t, client(t, nil), p.url("/"), "Cookie", p.cookieFor(p.backends[0])); res.StatusCode != 200 {
		t.Errorf("once it has room: %s", res.Status)
	}
	waitForOccupancy(t, p, upstream.Occupancy{Refused: 1})
}

func TestACookieOfTheKeyBeforeOutlivesAFullBackend(t *testing.T) {
	port, _ := answers(t, 200)
	other, asked := answers(t, 200)
	s := bounded(&resourcev1.CircuitBreaker{MaxConnections: 1}, whole(port, other))
	s.route.Sticky = &resourcev1.Sticky{Cookie: "at"}
	p := start(t, s)
	older, newer := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	if err := p.proxy.SetStickySecrets([][]byte{older}); err != nil {
		t.Fatal(err)
	}
	mine := p.cookieFor(p.backends[0])
	if err := p.proxy.SetStickySecrets([][]byte{newer, older}); err != nil {
		t.Fatal(err)
	}
	leave := occupied(t, p.onlyRoute().pool, p.backends[0])
	if res, _ := get(t, client(t, nil), p.url("/"), "Cookie", mine); asked.Load() != 1 || res.Header.Get("Set-Cookie") != "" {
		t.Errorf("the other was asked %d times, and the client given %q", asked.Load(), res.Header.Get("Set-Cookie"))
	}
	leave()
	res, _ := get(t, client(t, nil), p.url("/"), "Cookie", mine)
	if set, _, _ := strings.Cut(res.Header.Get("Set-Cookie"), ";"); asked.Load() != 1 || set != p.cookieFor(p.backends[0]) {
		t.Errorf("the other was asked %d times, and the client given %q once its own had room", asked.Load(), set)
	}
}

func TestRequestsThatAreTurnedAwayEarnNoRetries(t *testing.T) {
	port, _ := answers(t, 200)
	p := start(t, bounded(&resourcev1.CircuitBreaker{MaxRequests: 1}, again(budgeted(20), whole(port))))
	r := p.onlyRoute()
	earned := func() (sum uint64) { // whenever that was
		for i := range r.retries.budget.cells {
			for j := range r.retries.budget.cells[i].halves {
				sum += r.retries.budget.cells[i].halves[j].Load() & (1<<32 - 1)
			}
		}
		return sum
	}
	leave := occupied(t, r.pool, p.backends[0])
	for range 5 {
		if res, _ := get(t, client(t, nil), p.url("/")); res.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s", res.Status)
		}
	}
	if n := earned(); n != 0 {
		t.Errorf("%d requests that no backend got count", n)
	}
	leave()
	if res, _ := get(t, client(t, nil), p.url("/")); res.StatusCode != 200 || earned() != 1 {
		t.Errorf("%s, and %d requests count", res.Status, earned())
	}
}

func TestATunnelThatIsNotBegunKeepsNoPlace(t *testing.T) {
	p := start(t, bounded(&resourcev1.CircuitBreaker{MaxConnections: 1}, whole(portOf(backend(t, echo)))))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	p.tunnels.Close(ended)
	for range 2 {
		c, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+p.address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.ReadMessage(); err == nil {
			t.Error("there is a tunnel")
		}
		c.Close()
		waitForOccupancy(t, p, upstream.Occupancy{})
	}
}

// A stream ends in more ways than a connection.
func TestATunnelOverHTTP2GivesItsPlaceBack(t *testing.T) {
	for name, end := range map[string]func(*framed){
		"reset":           func(c *framed) { c.sent(c.WriteRSTStream(1, http2.ErrCodeCancel)) },
		"ended":           func(c *framed) { c.sent(c.WriteData(1, true, nil)) },
		"without its end": func(c *framed) { c.nc.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := scripted(t, upgrades(echoes))
			p := start(t, bounded(&resourcev1.CircuitBreaker{MaxConnections: 1}, whole(b.Port())))
			c := connectFrames(t, p)
			c.open(1, false, webSocketConnect("/")...)
			c.next(http2.FrameHeaders, 1)
			waitForOccupancy(t, p, upstream.Occupancy{Requests: 1})
			end(c)
			waitForOccupancy(t, p, upstream.Occupancy{})
		})
	}
	t.Run("not begun", func(t *testing.T) {
		b, _ := scripted(t, upgrades(echoes), upgrades(echoes))
		p := start(t, bounded(&resourcev1.CircuitBreaker{MaxConnections: 1}, whole(b.Port())))
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		p.tunnels.Close(ended)
		c := connectFrames(t, p)
		for _, stream := range []uint32{1, 3} {
			c.open(stream, false, webSocketConnect("/")...)
			c.next(http2.FrameHeaders, stream)
			waitForOccupancy(t, p, upstream.Occupancy{})
		}
	})
}

// A drain lets those who wait have their turn, until it has no more time.
func TestADrainEndsWaits(t *testing.T) {
	for name, over := range overEach {
		t.Run(name, func(t *testing.T) {
			g := newGate(t)
			p := start(t, bounded(&resourcev1.CircuitBreaker{MaxRequests: 1, MaxPending: 2}, whole(g.port)))
			first := begin(t, t.Context(), over(t), p.url("/1"))
			<-g.reached
			second := begin(t, t.Context(), over(t), p.url("/2"))
			waitForOccupancy(t, p, upstream.Occupancy{Requests: 1, Pending: 1})
			ctx, cut := context.WithCancel(t.Context())
			drained := make(chan error, 1)
			go func() { drained <- p.front.Drain(ctx) }()
			g.open <- struct{}{}
			if got := <-first; got != 200 {
				t.Errorf("the first: %d", got)
			}
			<-g.reached
			third, err := p.onlyRoute().pool.Queue(0) // another front's
			if err != nil {
				t.Fatal(err)
			}
			cut()
			if got := <-second; got != 0 {
				t.Errorf("one that was under way at the end: %d", got)
			}
			if err := <-drained; err == nil {
				t.Error("nothing was cut")
			}
			if _, err := third.Wait(t.Context()); err != nil {
				t.Errorf("the place that was given back: %v", err)
			}
		})
	}
}

func TestACutEndsAWait(t *testing.T) {
	for name, over := range overEach {
		t.Run(name, func(t *testing.T) {
			port, asked := answers(t, 200)
			p := start(t, bounded(&resourcev1.CircuitBreaker{MaxRequests: 1, MaxPending: 2}, whole(port)))
			leave := occupied(t, p.onlyRoute().pool, p.backends[0])
			waits := begin(t, t.Context(), over(t), p.url("/"))
			waitForOccupancy(t, p, upstream.Occupancy{Requests: 1, Pending: 1})
			ended, cut := context.WithCancel(t.Context())
			cut()
			if err := p.front.Drain(ended); err == nil {
				t.Error("nothing was cut")
			}
			if got := <-waits; got == 200 {
				t.Error("it was answered")
			}
			waitForOccupancy(t, p, upstream.Occupancy{Requests: 1})
			leave()
			if asked.Load() != 0 {
				t.Error("the backend was asked")
			}
		})
	}
}
