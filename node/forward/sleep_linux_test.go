package forward

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pyserve/pyserve/node/nodetest"
)

// untilReadable stands in for the listener's wait for connections that sleep.
func untilReadable(tcp *net.TCPConn) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}, 0)
		return n > 0 || err != nil
	})
}

var sleepy = settings{asleep: untilReadable}

// listed is how many of p's connections are in a list, and in a phase.
func listed(p *proxy, list int, in phase) (n int) {
	p.eachWatch(func(w *watch) {
		if w.list == list && phase(w.main.due.Load()&phaseMask) == in {
			n++
		}
	})
	return n
}

// eachWatch calls do for each connection, with its shard's lock held.
func (p *proxy) eachWatch(do func(*watch)) {
	for i := range p.front.shards {
		shard := &p.front.shards[i]
		shard.mu.Lock()
		for _, list := range shard.lists {
			for _, w := range append([]*watch(nil), list...) {
				do(w)
			}
		}
		shard.mu.Unlock()
	}
}

// lullAll asks every connection that is idle to sleep, as the sweeper does after a while.
func (p *proxy) lullAll() {
	p.eachWatch(func(w *watch) {
		if w.list == hot {
			p.front.park(w.shard, w)
		}
		if w.list == idle {
			p.front.sleep(w.shard, w)
		}
	})
}

// used is a connection that had an answer.
func used(t *testing.T, p *proxy) *wire {
	t.Helper()
	w := connect(t, p)
	w.say(ask("/"))
	w.want("GET", 200, "GET /")
	return w
}

// lulled waits until n connections sleep, which they are asked to.
func lulled(t *testing.T, p *proxy, n int) {
	t.Helper()
	nodetest.Eventually(t, "they sleep", func() bool {
		p.lullAll()
		return listed(p, asleep, phaseAsleep) == n
	})
}

func TestAnIdleConnectionFallsAsleepAndIsServedOn(t *testing.T) {
	t.Parallel()
	p := startWith(t, sleepy, whole(mirror(t).Port()))
	w := used(t, p)
	for range 2 {
		nodetest.Eventually(t, "it sleeps", func() bool { return listed(p, asleep, phaseAsleep) == 1 })
		w.say(ask("/"))
		w.want("GET", 200, "GET /")
	}
	if n := metric(t, p, "pyserve_client_connections"); n != 1 {
		t.Errorf("%v connections are counted", n)
	}
	if n := metric(t, p, "pyserve_client_connections_total"); n != 1 {
		t.Errorf("%v connections were counted", n)
	}
}

// unhurried is a connection whose deadlines wake nobody.
type unhurried struct{}

func (unhurried) SetReadDeadline(time.Time) error  { return nil }
func (unhurried) SetWriteDeadline(time.Time) error { return nil }

// watched is n idle connections of one shard that had a request each, and their sweeper, which stands still.
func watched(n int) (*sweeper, *shard) {
	s := new(sweeper)
	s.start()
	for range n {
		w := &watch{client: unhurried{}, sleeper: new(net.TCPConn)}
		s.watch(w, 0)
		w.begin()
		w.main.set(phaseIdle, never)
	}
	return s, &s.shards[0]
}

func TestWhoIsIdleForASecondSleeps(t *testing.T) {
	s, shard := watched(1)
	for range sleepLooks*idleSweeps - 1 {
		s.sweep()
	}
	if len(shard.lists[idle]) != 1 {
		t.Error("it is not left awake for a second")
	}
	s.sweep()
	if len(shard.lists[asleep]) != 1 {
		t.Error("it does not sleep")
	}
}

// Those that are awake have a stack each.
func TestOnlySoManyIdleConnectionsStayAwake(t *testing.T) {
	s, shard := watched(maxAwake + 8)
	for range 2 { // the first sees their requests
		s.sweep()
	}
	if awake, sleep := len(shard.lists[idle]), len(shard.lists[asleep]); awake != maxAwake || sleep != 8 {
		t.Errorf("%d awake, %d asleep", awake, sleep)
	}
}

func TestWhoComesBackWithinASecondStaysAwake(t *testing.T) {
	s, shard := watched(maxAwake + 2)
	for range 2 {
		s.sweep()
	}
	soon, late := shard.lists[asleep][0], shard.lists[asleep][1]
	request := func(w *watch) {
		w.unpark()
		w.begin()
		w.main.set(phaseIdle, never)
	}
	request(soon)
	for range 2 {
		s.sweep()
	}
	if soon.list != idle {
		t.Errorf("that which came back soon is in list %d", soon.list)
	}
	for range sleepLooks * idleSweeps {
		s.sweep()
	}
	_, crowd := watched(maxAwake) // all of the others sleep by now
	for _, w := range crowd.lists[hot] {
		shard.add(w, idle)
	}
	request(late)
	for range 2 {
		s.sweep()
	}
	if late.list != asleep {
		t.Errorf("that which came back late is in list %d", late.list)
	}
}

func TestSleepDoesNotLengthenTheIdleLimit(t *testing.T) {
	p := startWith(t, sleepy, whole(mirror(t).Port()))
	used(t, p)
	var before, after int64
	nodetest.Eventually(t, "it is idle", func() bool {
		p.eachWatch(func(w *watch) { before = w.main.due.Load() })
		return phase(before&phaseMask) == phaseIdle
	})
	lulled(t, p, 1)
	p.eachWatch(func(w *watch) { after = w.main.due.Load() })
	if before>>phaseBits != after>>phaseBits {
		t.Errorf("due at %v, and asleep at %v", before>>phaseBits, after>>phaseBits)
	}
}

func TestWhoSleepsTooLongIsClosed(t *testing.T) {
	p := startWith(t, sleepy, whole(mirror(t).Port()))
	w := used(t, p)
	lulled(t, p, 1)
	p.eachWatch(func(w *watch) { w.main.set(phaseAsleep, 1) }) // the limit is long over
	w.ended()
	nodetest.Eventually(t, "it is not counted any more", func() bool { return metric(t, p, "pyserve_client_connections") == 0 })
}

func TestASleepersEndIsSeen(t *testing.T) {
	for name, end := range map[string]func(*net.TCPConn){
		"closed": func(c *net.TCPConn) { c.Close() },
		"reset":  func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			p := startWith(t, sleepy, whole(mirror(t).Port()))
			w := used(t, p)
			lulled(t, p, 1)
			end(w.Conn.(*net.TCPConn))
			nodetest.Eventually(t, "it is not counted any more", func() bool { return p.front.connections() == 0 })
		})
	}
}

func TestADrainLetsSleepersComeByOnceMore(t *testing.T) {
	p := startWith(t, sleepy, whole(mirror(t).Port()))
	comes, sleeps := used(t, p), used(t, p)
	lulled(t, p, 2)
	end := drained(p, time.Minute)
	nodetest.Eventually(t, "the drain begins", p.front.leaving.Load)
	comes.say(ask("/"))
	if res := comes.want("GET", 200, "GET /"); !res.Close {
		t.Error("the answer does not say close")
	}
	comes.ended()
	sleeps.ended()
	if got := <-end; got.err != nil || got.took < goodBye {
		t.Errorf("%v after %v: the good-bye is %v", got.err, got.took, goodBye)
	}
}

func TestADrainThatIsOverCutsSleepers(t *testing.T) {
	p := startWith(t, sleepy, whole(mirror(t).Port()))
	w := used(t, p)
	lulled(t, p, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.front.Drain(ctx); err == nil {
		t.Error("it says that nothing was cut")
	}
	w.ended()
}

func TestConnectionsThatMustBeReadStayAwake(t *testing.T) {
	front, client := secure(t)
	s := sleepy
	s.tls = front
	p := startWith(t, s, whole(mirror(t).Port()))
	w := connectTLS(t, p, client)
	w.say(ask("/"))
	w.want("GET", 200, "GET /")
	nodetest.Eventually(t, "it is idle", func() bool {
		p.lullAll()
		return listed(p, hot, phaseIdle)+listed(p, idle, phaseIdle) == 1
	})
	w.say(ask("/"))
	w.want("GET", 200, "GET /")
}

// A request that comes while its connection is asked to sleep is served as any other.
func TestARequestAndSleepMeet(t *testing.T) {
	p := startWith(t, sleepy, whole(mirror(t).Port()))
	over := make(chan struct{})
	var lulling, clients sync.WaitGroup
	lulling.Go(func() {
		tick := time.NewTicker(20 * time.Microsecond) // not without end, or where there is one processor nobody looks for requests
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
				p.lullAll()
			}
		}
	})
	for range 4 {
		w := connect(t, p)
		clients.Go(func() {
			for i := range 300 {
				two := ask("/") + ask("/")
				if cut := i % len(two); i%2 == 0 { // in two pieces, or at once
					io.WriteString(w, two[:cut])
					two = two[cut:]
				}
				io.WriteString(w, two)
				for range 2 {
					if res, body, err := w.answer("GET"); err != nil || res.StatusCode != 200 || body != "GET /" {
						t.Errorf("round %d: %v %q %v", i, res, body, err)
						return
					}
				}
			}
		})
	}
	clients.Wait()
	close(over)
	lulling.Wait()
}
