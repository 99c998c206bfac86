package cluster

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pyserve/pyserve/cluster/gossip"
	"github.com/pyserve/pyserve/cluster/gossiptest"
	"github.com/pyserve/pyserve/cluster/state"
	"github.com/pyserve/pyserve/proto/voucher"
)

// memberlist waits for nobody when it shuts down; a probe under way ends within a few probe intervals.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

var key = bytes.Repeat([]byte{1}, 32)

// journal is a log that tests read.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) count(text string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.buf.String(), text)
}

// world is a network in memory and the members on it.
type world struct {
	t       *testing.T
	network *gossiptest.Network
	log     *journal
}

func newWorld(t *testing.T) *world {
	return &world{t: t, network: gossiptest.NewNetwork(1), log: &journal{}}
}

// control's key, as all members of the tests know it.
var issuer = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

var farOff = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)

// vouch gives a member a key and a voucher, unless it has them.
func vouch(t *testing.T, o *Options) {
	t.Helper()
	if o.Issuer == nil {
		o.Issuer = issuer.Public().(ed25519.PublicKey)
	}
	if o.Key != nil {
		return
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o.Key, o.Voucher = private, voucherFor(t, *o, private, farOff)
}

// voucherFor is control's word that the key belongs to the name in o.
func voucherFor(t *testing.T, o Options, key crypto.Signer, ends time.Time) []byte {
	t.Helper()
	packed, err := voucher.KeyOf(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := voucher.Issue(issuer, o.ClusterID, state.WireName(o.Role, o.Name), packed, ends)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func address(i int) string { return fmt.Sprintf("10.0.0.%d:7946", i) }

// start starts the node n<i> at address(i), with change to its options.
func (w *world) start(i int, change ...func(*Options)) *Cluster {
	w.t.Helper()
	options := Options{
		Name:      fmt.Sprint("n", i),
		Role:      RoleNode,
		ClusterID: "test",
		Keys:      [][]byte{key},
		Logger:    slog.New(slog.NewTextHandler(w.log, nil)),
	}
	for _, f := range change {
		f(&options)
	}
	vouch(w.t, &options)
	if options.Transport == nil {
		transport, err := w.network.Listen(address(i))
		if err != nil {
			w.t.Fatal(err)
		}
		options.Transport = transport
	}
	c, err := New(options)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { stop(w.t, c) })
	return c
}

func seeds(numbers ...int) func(*Options) {
	return func(o *Options) {
		for _, i := range numbers {
			o.Seeds = append(o.Seeds, address(i))
		}
	}
}

func named(name string) func(*Options) { return func(o *Options) { o.Name = name } }

func stop(t *testing.T, c *Cluster) {
	t.Helper()
	if err := c.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

// kill ends a member without its goodbye.
func kill(t *testing.T, c *Cluster) {
	t.Helper()
	c.lifecycle.Lock()
	defer c.lifecycle.Unlock()
	c.stopped = true
	c.cancel()
	if err := c.gossip.Shutdown(); err != nil {
		t.Error(err)
	}
	c.loops.Wait()
}

// view writes what a member sees: "n1 alive, n2 dead".
func view(c *Cluster) string {
	var parts []string
	for _, m := range c.Members() {
		parts = append(parts, m.Name+" "+m.State.String())
	}
	return strings.Join(parts, ", ")
}

// await waits until a condition holds. On a Network time is fake; on sockets it is not.
func await(t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ticker.C:
		case <-deadline.C:
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

func awaitView(t *testing.T, within time.Duration, c *Cluster, want string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for view(c) != want {
		if time.Now().After(deadline) {
			t.Fatalf("%s sees after %s: %s\nwant: %s", c.options.Name, within, view(c), want)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestMembersSeeOneAnother(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		control := w.start(1, func(o *Options) { o.Name, o.Role = "c", RoleControl })
		a, b := w.start(2, seeds(1)), w.start(3, seeds(1))
		for _, c := range []*Cluster{control, a, b} {
			awaitView(t, 2*time.Second, c, "c alive, n2 alive, n3 alive")
		}
		got := b.Members()
		if got[0].Role != RoleControl || got[0].Address != address(1) || got[1].Role != RoleNode || got[1].Address != address(2) {
			t.Errorf("n3 sees %+v", got)
		}
		if b.Address() != address(3) {
			t.Errorf("its address is %s", b.Address())
		}
	})
}

func TestAControlAndANodeMayHaveTheSameName(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		control := w.start(1, named("host"), func(o *Options) { o.Role = RoleControl })
		node := w.start(2, named("host"), seeds(1))
		awaitView(t, 2*time.Second, control, "host alive, host alive")
		awaitView(t, 2*time.Second, node, "host alive, host alive")
	})
}

func TestFactsReachTheOthers(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.start(1)
		b := w.start(2, seeds(1))
		awaitView(t, 2*time.Second, a, "n1 alive, n2 alive")
		for revision := range uint64(20) {
			b.Update(Facts{Revision: revision})
		}
		want := Facts{Epoch: 1, Revision: 42, DigestPrefix: [8]byte{1, 2, 3}, Draining: true}
		b.Update(want)
		await(t, 3*time.Second, "the facts", func() bool {
			<-a.Changed()
			return a.Members()[1].Facts == want
		})
	})
}

func TestAnotherKeyDoesNotJoinAndIsTold(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.start(1)
		b := w.start(2, seeds(1), func(o *Options) { o.Keys = [][]byte{bytes.Repeat([]byte{2}, 32)} })
		time.Sleep(5 * time.Minute)
		if view(a) != "n1 alive" || view(b) != "n2 alive" {
			t.Errorf("they see %s and %s", view(a), view(b))
		}
		if got := w.log.count("cannot join 10.0.0.1:7946: it encrypts with another gossip key"); got != 1 {
			t.Errorf("told %d times, want once, in\n%s", got, w.log.buf.String())
		}
	})
}

func TestAnotherClusterDoesNotJoinAndIsTold(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.start(1)
		b := w.start(2, seeds(1), func(o *Options) { o.ClusterID = "another" })
		time.Sleep(5 * time.Minute)
		if view(a) != "n1 alive" || view(b) != "n2 alive" {
			t.Errorf("they see %s and %s", view(a), view(b))
		}
		if got := w.log.count("cannot join 10.0.0.1:7946: it closed the connection, as a member of another"); got != 1 {
			t.Errorf("told %d times, want once, in\n%s", got, w.log.buf.String())
		}
	})
}

func TestAKilledMemberIsDead(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.start(1), w.start(2, seeds(1))
		w.start(3, seeds(1))
		awaitView(t, 2*time.Second, a, "n1 alive, n2 alive, n3 alive")
		kill(t, b)
		awaitView(t, 17*time.Second, a, "n1 alive, n2 dead, n3 alive")
		died := a.Members()[1].Since
		time.Sleep(10 * time.Minute)
		if got := a.Members()[1]; got.State != state.Dead || !got.Since.Equal(died) {
			t.Errorf("later: %+v, want dead since %s", got, died)
		}
	})
}

func TestAStoppedMemberLeft(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.start(1), w.start(2, seeds(1))
		awaitView(t, 2*time.Second, a, "n1 alive, n2 alive")
		stop(t, b)
		awaitView(t, time.Second, a, "n1 alive, n2 left")
		time.Sleep(time.Hour)
		awaitView(t, 0, a, "n1 alive, n2 left")
		if w.log.count("member is dead") > 0 {
			t.Errorf("it is called dead:\n%s", w.log.buf.String())
		}
	})
}

// The goodbye of memberlist must not overtake the word that we leave, which nobody takes after it. Up to three others are
// told directly; of more, one may get it wrong now and then.
func TestALeaveIsNotTakenForADeath(t *testing.T) {
	for n, wrong := range map[int]int{2: 0, 3: 0, 4: 0, 16: 2} {
		t.Run(fmt.Sprint(n, " members"), func(t *testing.T) {
			gossiptest.Run(t, func(t *testing.T) {
				w := newWorld(t)
				w.network.SetLatency(2 * time.Millisecond)
				all := []*Cluster{w.start(1)}
				for i := 2; i <= n; i++ {
					all = append(all, w.start(i, seeds(1)))
				}
				time.Sleep(30 * time.Second)
				begun := time.Now()
				stop(t, all[n-1])
				if took := time.Since(begun); took > 1100*time.Millisecond {
					t.Errorf("Stop took %s", took)
				}
				time.Sleep(5 * time.Second)
				left := 0
				for _, c := range all[:n-1] {
					left += strings.Count(view(c), "left")
				}
				if left < n-1-wrong {
					t.Errorf("%d of %d say that it left, in\n%s", left, n-1, w.log.buf.String())
				}
			})
		})
	}
}

func TestALeaveIsToldWhereNoPacketArrives(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.start(1), w.start(2, seeds(1))
		awaitView(t, 2*time.Second, a, "n1 alive, n2 alive")
		time.Sleep(5 * time.Second)
		w.network.SetLoss(1)
		stop(t, b)
		awaitView(t, 20*time.Second, a, "n1 alive, n2 left")
	})
}

func TestStopWhileFactsAreBeingTold(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.start(1), w.start(2, seeds(1))
		awaitView(t, 2*time.Second, a, "n1 alive, n2 alive")
		time.Sleep(5 * time.Second)
		b.Update(Facts{Revision: 7, Draining: true})
		time.Sleep(10 * time.Millisecond)
		begun := time.Now()
		stop(t, b)
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("Stop took %s", took)
		}
		awaitView(t, time.Second, a, "n1 alive, n2 left")
		if got, want := a.Members()[1].Facts, (Facts{Revision: 7, Draining: true, Leaving: true}); got != want {
			t.Errorf("its last facts are %+v, want %+v", got, want)
		}
	})
}

func TestALoneMemberStopsAtOnce(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		a := newWorld(t).start(1)
		begun := time.Now()
		stop(t, a)
		if took := time.Since(begun); took > 0 {
			t.Errorf("Stop took %s", took)
		}
	})
}

func TestAMemberThatLeftIsBack(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.start(1), w.start(2, seeds(1))
		awaitView(t, 2*time.Second, a, "n1 alive, n2 alive")
		stop(t, b)
		awaitView(t, time.Second, a, "n1 alive, n2 left")
		again := w.start(2, seeds(1))
		await(t, 5*time.Second, "n2 alive and not leaving", func() bool {
			m := a.Members()[1]
			return m.State == state.Alive && !m.Facts.Leaving
		})
		kill(t, again)
		awaitView(t, 20*time.Second, a, "n1 alive, n2 dead")
	})
}

func TestANameComesBackAtAnotherAddress(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *Cluster){"after a stop": stop, "after a kill": kill} {
		t.Run(name, func(t *testing.T) {
			gossiptest.Run(t, func(t *testing.T) {
				w := newWorld(t)
				a, b := w.start(1), w.start(2, seeds(1))
				awaitView(t, 2*time.Second, a, "n1 alive, n2 alive")
				end(t, b)
				w.start(3, named("n2"), seeds(1))
				await(t, time.Minute, "n2 at its new address", func() bool {
					m := a.Members()[1]
					return m.Address == address(3) && m.State == state.Alive
				})
			})
		})
	}
}

func TestAMemberRestartedAtItsAddressIsBackAtOnce(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.start(1), w.start(2, seeds(1))
		awaitView(t, 2*time.Second, a, "n1 alive, n2 alive")
		kill(t, b)
		awaitView(t, 20*time.Second, a, "n1 alive, n2 dead")
		w.start(2, seeds(1))
		awaitView(t, 2*time.Second, a, "n1 alive, n2 alive")
	})
}

func TestANameTakenIsToldOnce(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.start(1)
		w.start(2, seeds(1))
		awaitView(t, 2*time.Second, a, "n1 alive, n2 alive")
		before := w.log.count("")
		w.start(3, named("n2"), seeds(1))
		time.Sleep(5 * time.Minute)
		text := "two members have the same name; the second is ignored until the first is gone, so give it another name"
		if got := w.log.count(text); got != 1 {
			t.Errorf("told %d times, want once, in\n%s", got, w.log.buf.String()[before-1:])
		}
		if w.log.count("another member has our name") == 0 {
			t.Error("the members with one name are not told")
		}
	})
}

func TestMembersThatJoinAtOnceThroughOneSeedSeeAllSoon(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		all := []*Cluster{w.start(1)}
		for i := 2; i <= 6; i++ {
			all = append(all, w.start(i, seeds(1)))
		}
		for _, c := range all {
			awaitView(t, 5*time.Second, c, "n1 alive, n2 alive, n3 alive, n4 alive, n5 alive, n6 alive")
		}
	})
}

func TestAPartitionLongerThanTheDeadAreRememberedHeals(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		var all []*Cluster
		for i := 1; i <= 6; i++ {
			all = append(all, w.start(i))
		}
		// They met through each other, and nobody has a seed: what heals is what they remember.
		for _, c := range all[1:] {
			c.SetSeeds([]string{address(1)})
		}
		whole := "n1 alive, n2 alive, n3 alive, n4 alive, n5 alive, n6 alive"
		for _, c := range all {
			awaitView(t, 10*time.Second, c, whole)
			c.SetSeeds(nil)
		}
		w.network.Partition(address(4), address(5), address(6))
		time.Sleep(5 * time.Minute)
		awaitView(t, 0, all[0], "n1 alive, n2 alive, n3 alive, n4 dead, n5 dead, n6 dead")
		awaitView(t, 0, all[5], "n1 dead, n2 dead, n3 dead, n4 alive, n5 alive, n6 alive")
		w.network.Heal()
		for _, c := range all {
			awaitView(t, 30*time.Second, c, whole)
		}
	})
}

func TestALoneMemberTriesControlsSeedsAtOnce(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.start(1), w.start(2)
		time.Sleep(time.Hour)
		b.SetSeeds([]string{"nonsense", address(1)})
		awaitView(t, 100*time.Millisecond, a, "n1 alive, n2 alive")
		if w.log.count("seed=nonsense") != 1 {
			t.Errorf("the seed that is none is not told of:\n%s", w.log.buf.String())
		}
	})
}

func TestASeedThatComesLateIsJoined(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		b := w.start(2, seeds(1))
		time.Sleep(3 * time.Second)
		w.start(1)
		awaitView(t, 8*time.Second, b, "n1 alive, n2 alive")
		if got := w.log.count("cannot join 10.0.0.1:7946: connection refused"); got != 1 {
			t.Errorf("the seed's absence is told %d times, want once, in\n%s", got, w.log.buf.String())
		}
	})
}

func TestAStartWithoutControlFindsRememberedPeers(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		file := filepath.Join(t.TempDir(), "peers")
		remember := func(o *Options) { o.RememberFile = file }
		a, b := w.start(1), w.start(2, seeds(1), remember)
		awaitView(t, 2*time.Second, a, "n1 alive, n2 alive")
		stop(t, b)
		again := w.start(3, remember)
		awaitView(t, 2*time.Second, again, "n1 alive, n3 alive")
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
			t.Errorf("the file: %v, %v", info.Mode(), err)
		}
	})
}

func TestManyMembersOnALossyNetworkConverge(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		w.network.SetLoss(0.05)
		w.network.SetLatency(5 * time.Millisecond)
		const n = 24
		var all []*Cluster
		for i := 1; i <= n; i++ {
			all = append(all, w.start(i, seeds(1, 2, 3)))
		}
		await(t, time.Minute, "all see all", func() bool {
			for _, c := range all {
				if strings.Count(view(c), "alive") != n {
					return false
				}
			}
			return true
		})
	})
}

// onSockets gives options for real sockets, with short times.
func onSockets(t *testing.T, name string) Options {
	t.Helper()
	options := Options{
		Name:      name,
		Role:      RoleNode,
		ClusterID: "test",
		Bind:      "127.0.0.1:0",
		Keys:      [][]byte{key},
		Timing:    gossip.Timing{ProbeInterval: 200 * time.Millisecond, GossipInterval: 20 * time.Millisecond},
	}
	vouch(t, &options)
	return options
}

func startOnSockets(t *testing.T, options Options) *Cluster {
	t.Helper()
	c, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, c) })
	return c
}

func TestMembersMeetOnSockets(t *testing.T) {
	a := startOnSockets(t, onSockets(t, "a"))
	options := onSockets(t, "b")
	_, port, err := net.SplitHostPort(a.Address())
	if err != nil {
		t.Fatal(err)
	}
	options.Bind, options.Advertise, options.Seeds = "localhost:0", "127.0.0.1", []string{"localhost:" + port}
	b := startOnSockets(t, options)
	for _, c := range []*Cluster{a, b} {
		await(t, 10*time.Second, "a and b alive", func() bool { return view(c) == "a alive, b alive" })
	}
	stop(t, b)
	await(t, 10*time.Second, "b left", func() bool { return view(a) == "a alive, b left" })
}

func TestAPortInUseIsOneSentence(t *testing.T) {
	a := startOnSockets(t, onSockets(t, "a"))
	options := onSockets(t, "b")
	options.Bind = a.Address()
	b, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	want := "cannot listen on " + a.Address() + ": address already in use"
	if err := b.Start(); err == nil || err.Error() != want {
		t.Errorf("Start: %v, want %s", err, want)
	}
	if got := b.Address(); got != "" {
		t.Errorf("it has the address %s", got)
	}
	stop(t, b)
}

func TestStopEndsAJoinUnderWay(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	options := onSockets(t, "a")
	options.Seeds = []string{silent.Addr().String()}
	options.Timing.StreamTimeout = time.Hour
	a := startOnSockets(t, options)
	conn, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begun := time.Now()
	stop(t, a)
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("Stop took %s", took)
	}
}

func TestLifecycle(t *testing.T) {
	c, err := New(onSockets(t, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Address() != "" || len(c.Members()) != 0 {
		t.Errorf("before the start: %s, %v", c.Address(), c.Members())
	}
	c.Update(Facts{Revision: 1})
	c.SetSeeds(nil)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if got := c.Members(); len(got) != 1 || got[0].Facts.Revision != 1 || got[0].Address != c.Address() {
		t.Errorf("after the start: %+v at %s", got, c.Address())
	}
	if c.Start() == nil {
		t.Error("it starts twice")
	}
	stop(t, c)
	stop(t, c)
	if c.Start() == nil {
		t.Error("it starts after its stop")
	}
	c.Update(Facts{Revision: 2})
	c.SetSeeds([]string{"127.0.0.1:1"})
}

func TestStopWithoutTimeSaysThatNobodyWasTold(t *testing.T) {
	c, err := New(onSockets(t, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Stop(ctx); err == nil {
		t.Error("Stop gives no error")
	}
}

func TestNewNamesTheOption(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"option Name":                   func(o *Options) { o.Name = "a/b" },
		"option Role":                   func(o *Options) { o.Role = 0 },
		"option ClusterID":              func(o *Options) { o.ClusterID = "" },
		"option Keys: ":                 func(o *Options) { o.Keys = nil },
		"option Keys[1]":                func(o *Options) { o.Keys = [][]byte{key, key[:16]} },
		"option Key: ":                  func(o *Options) { o.Key = nil },
		"option Issuer":                 func(o *Options) { o.Issuer = nil },
		"option Voucher":                func(o *Options) { o.Voucher = bytes.Repeat([]byte{1}, voucher.Size) },
		"another key":                   func(o *Options) { o.Key = issuer },
		"option Seeds[0]":               func(o *Options) { o.Seeds = []string{"10.0.0.1"} },
		"option RejoinInterval":         func(o *Options) { o.RejoinInterval = -1 },
		"option Bind":                   func(o *Options) { o.Bind = "127.0.0.1" },
		"option Bind: \"a:x\"":          func(o *Options) { o.Bind = "a:x" },
		"option Advertise: is needed":   func(o *Options) { o.Bind = ":7946" },
		"option Advertise: \"0.0.0.0\"": func(o *Options) { o.Advertise = "0.0.0.0" },
		"option Advertise: \"a:1\"":     func(o *Options) { o.Advertise = "a:1" },
	} {
		options := onSockets(t, "a")
		change(&options)
		if _, err := New(options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New: %v, want something on %s", err, want)
		}
	}
}
