package health

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	"github.com/pyserve/pyserve/node/vote"
)

// fleet is many nodes' probers in one bubble, over a bus that loses, delays and reorders as gossip does, and a network whose
// every way can be cut.
type fleet struct {
	t *testing.T

	mu     sync.Mutex // guards what follows
	random *rand.Rand
	// How often one telling is lost. Members tell a message again and again, as gossip's do.
	loss  float64
	nodes map[string]*fleetNode
	// Whether a node reaches an address, and whether two nodes hear each other.
	reaches func(node, address string) bool
	hears   func(from, to string) bool
	errno   syscall.Errno // of a node that does not reach an address; 0: ECONNREFUSED
	dials   []dial

	cancel context.CancelFunc
}

type fleetNode struct {
	name     string
	prober   *Prober
	registry *upstream.Registry
	backends []*upstream.Backend
	// Guarded by fleet.mu.
	downs []time.Time // when one of its backends became unhealthy
	gone  bool
}

type dial struct {
	node, address string
	at            time.Time
}

const (
	tell     = 200 * time.Millisecond // between two tellings
	exchange = 10 * time.Second       // between two full exchanges of a node
	lifetime = 6 * time.Second        // until a node that is cut off is taken for dead
)

// inFleet runs f in a bubble with n nodes that all watch the same backends, each with a check of 5 s and 3 failures.
func inFleet(t *testing.T, seed uint64, n int, backends []string, f func(fl *fleet)) {
	t.Helper()
	// As gossiptest.Run: more processors crash the race detector's view of a bubble's timers (Go 1.26).
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, func(t *testing.T) {
		fl := &fleet{
			t: t, random: rand.New(rand.NewPCG(seed, 1)), loss: 0.2, nodes: make(map[string]*fleetNode),
			reaches: everywhere, hears: everywhere,
		}
		var ctx context.Context
		ctx, fl.cancel = context.WithCancel(context.Background())
		defer fl.close()
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprint("n", i)
		}
		for _, name := range names {
			fl.start(ctx, name, names, backends...)
		}
		f(fl)
	})
}

func (fl *fleet) close() {
	fl.cancel()
	for _, name := range fl.names() {
		fl.stop(name)
	}
	wait(time.Minute) // for what is still on the bus
}

// names are those of the nodes that run.
func (fl *fleet) names() []string {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.running()
}

// running is called with mu held.
func (fl *fleet) running() (names []string) {
	for name, n := range fl.nodes {
		if !n.gone {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// start starts a node that knows of members.
func (fl *fleet) start(ctx context.Context, name string, members []string, backends ...string) *fleetNode {
	n := &fleetNode{name: name}
	n.prober = NewProber(Options{
		Self: name, Publish: func(message []byte) string { return fl.tell(name, message) },
		Random: fl.below,
	})
	n.registry = upstream.NewRegistry(upstream.Options{
		Added: n.prober.Watch, Removed: n.prober.Unwatch, Failed: n.prober.Failed,
		Changed: func(b *upstream.Backend) {
			if b.Verdict().State == upstream.Unhealthy {
				fl.mu.Lock()
				defer fl.mu.Unlock()
				n.downs = append(n.downs, time.Now())
			}
		},
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			if !fl.dialled(name, address) {
				return nil, cmp.Or(fl.errno, syscall.ECONNREFUSED)
			}
			conn, other := net.Pipe()
			other.Close()
			return conn, nil
		},
	})
	n.prober.SetMembers(members)
	fl.mu.Lock()
	fl.nodes[name] = n
	fl.mu.Unlock()
	for _, address := range backends {
		n.watch(fl.t, address)
	}
	go fl.exchange(ctx, n)
	return n
}

// below is a random duration.
func (fl *fleet) below(d time.Duration) time.Duration {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return time.Duration(fl.random.Int64N(int64(d)))
}

// dialled notes a dial, and says whether it leads anywhere.
func (fl *fleet) dialled(name, address string) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.dials = append(fl.dials, dial{name, address, time.Now()})
	return fl.reaches(name, address)
}

// network replaces who reaches which address.
func (fl *fleet) network(reaches func(node, address string) bool) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.reaches = reaches
}

// bus replaces who hears whom.
func (fl *fleet) bus(hears func(from, to string) bool) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.hears = hears
}

// connected says whether a word comes from one node to the other now.
func (fl *fleet) connected(from, to string) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return !fl.nodes[from].gone && !fl.nodes[to].gone && fl.hears(from, to)
}

// downs takes how often a node has found a backend dead.
func (fl *fleet) downs() map[string][]time.Time {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	downs := make(map[string][]time.Time)
	for name, n := range fl.nodes {
		if len(n.downs) > 0 {
			downs[name] = n.downs
		}
		n.downs = nil
	}
	return downs
}

func everywhere(string, string) bool { return true }
func nowhere(string, string) bool    { return false }

func (n *fleetNode) watch(t *testing.T, address string) *upstream.Backend {
	b, err := n.registry.Acquire(upstream.Spec{Host: address, Port: 80, Check: tcpCheck()})
	if err != nil {
		t.Fatal(err)
	}
	n.backends = append(n.backends, b)
	return b
}

func (fl *fleet) stop(name string) {
	n := fl.nodes[name]
	fl.mu.Lock()
	n.gone = true
	fl.mu.Unlock()
	n.registry.Close()
	n.prober.Close()
}

// signed stands for the message of a node with its signature.
func signed(from string, message []byte) string { return from + " " + string(message) }

// heard is what signed stands for.
func heard(text string, age time.Duration) Heard {
	from, message, _ := strings.Cut(text, " ")
	return Heard{From: from, Message: []byte(message), Age: age, Signed: text}
}

// tell brings a message to all others: each telling to each may be lost, and the next comes after a while.
func (fl *fleet) tell(from string, message []byte) string {
	text := signed(from, message)
	if len(message) > MaxMessage {
		fl.t.Errorf("%s tells %d bytes", from, len(message))
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for _, name := range fl.running() {
		if name == from {
			continue
		}
		delay := time.Duration(fl.random.Int64N(int64(tell)))
		for fl.random.Float64() < fl.loss {
			delay += tell
		}
		time.AfterFunc(delay, func() {
			if !fl.connected(from, name) {
				return
			}
			if err := fl.nodes[name].prober.Hear(heard(text, 0)); err != nil {
				fl.t.Error(err)
			}
		})
	}
	return text
}

// exchange has a node exchange all that is known with another one, again and again.
func (fl *fleet) exchange(ctx context.Context, n *fleetNode) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(fl.below(2 * exchange)):
		}
		names := fl.names()
		if len(names) == 0 {
			return
		}
		other := fl.nodes[names[fl.below(time.Duration(len(names)))]]
		if other == n || !fl.connected(n.name, other.name) || !fl.connected(other.name, n.name) {
			continue
		}
		for _, way := range [][2]*Prober{{n.prober, other.prober}, {other.prober, n.prober}} {
			for text, age := range way[0].State() {
				if err := way[1].Hear(heard(text, age)); err != nil {
					fl.t.Error(err)
				}
			}
		}
	}
}

// members tells all nodes who there is, as gossip would after a round.
func (fl *fleet) members(names ...string) {
	for _, name := range names {
		time.AfterFunc(fl.below(tell), func() { fl.nodes[name].prober.SetMembers(names) })
	}
}

// probes counts the dials to an address since a moment, by node.
func (fl *fleet) probes(address string, since time.Time) (all int, by map[string]int) {
	by = make(map[string]int)
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for _, d := range fl.dials {
		if d.address == address+":80" && !d.at.Before(since) {
			all++
			by[d.node]++
		}
	}
	return all, by
}

// rank gives the nodes in their order for the first backend.
func (fl *fleet) rank() []string {
	names := fl.names()
	b := fl.nodes[names[0]].backends[0]
	return vote.NewMembers(names).First(b.Identity(), len(names))
}

func (fl *fleet) all(what string, state upstream.State) {
	fl.t.Helper()
	for _, name := range fl.names() {
		for _, b := range fl.nodes[name].backends {
			if v := b.Verdict(); v.State != state {
				fl.t.Errorf("%s: %s says that %s is %v (%s), want %v", what, name, b.Address(), v.State, v.Reason, state)
			}
		}
	}
}

const backend = "10.0.0.1"

func TestProbesOfABackendDoNotGrowWithTheNodes(t *testing.T) {
	for _, n := range []int{1, 3, 10, 30, 100} {
		inFleet(t, uint64(n), n, []string{backend}, func(fl *fleet) {
			wait(20 * time.Second)
			begin := time.Now()
			wait(50 * time.Second)
			all, by := fl.probes(backend, begin)
			probers := min(n, vote.Probers)
			t.Logf("%3d nodes: %.2f probes a second at one backend, by %d nodes", n, float64(all)/50, len(by))
			if want := 10 * probers; all < want-2*probers || all > want+2*probers || len(by) != probers {
				t.Errorf("%d nodes: %d probes in ten intervals, by %d nodes; want %d, by %d", n, all, len(by), want, probers)
			}
			fl.all("in peace", upstream.Healthy)
		})
	}
}

func TestProbersOfABackendComeAtEvenDistances(t *testing.T) {
	inFleet(t, 1, 10, []string{backend}, func(fl *fleet) {
		wait(time.Minute)
		begin := time.Now()
		wait(time.Minute)
		fl.mu.Lock()
		defer fl.mu.Unlock()
		for i := range fl.dials {
			if i == 0 || fl.dials[i-1].at.Before(begin) {
				continue
			}
			if gap := fl.dials[i].at.Sub(fl.dials[i-1].at); gap < 1100*time.Millisecond || gap > 2200*time.Millisecond {
				t.Errorf("a probe comes %v after the last, want about a third of 5 s", gap)
			}
		}
	})
}

func TestKilledBackendIsKnownToAllInTime(t *testing.T) {
	const limit = 3*5*time.Second + time.Second // threshold × interval + 1 s
	for n, rounds := range map[int]int{2: 8, 3: 8, 10: 8, 100: 2} {
		inFleet(t, uint64(n), n, []string{backend}, func(fl *fleet) {
			var last time.Duration
			for round := range rounds {
				wait(30*time.Second + time.Duration(round)*700*time.Millisecond)
				fl.all("before", upstream.Healthy)
				killed := time.Now()
				fl.network(nowhere)
				wait(limit)
				fl.all("after a death", upstream.Unhealthy)
				for _, downs := range fl.downs() {
					for _, at := range downs {
						last = max(last, at.Sub(killed))
					}
				}
				fl.network(everywhere)
			}
			t.Logf("%3d nodes: the last of them stops within %v of a death", n, last.Round(time.Millisecond))
		})
	}
}

// Each prober in turn, and then a node that only listens, cannot reach the backend.
func TestOneNodeThatIsCutOffFromABackendEjectsItForNobody(t *testing.T) {
	inFleet(t, 1, 10, []string{backend}, func(fl *fleet) {
		wait(time.Minute)
		for _, cut := range fl.rank()[:4] {
			fl.network(func(node, _ string) bool { return node != cut })
			wait(2 * time.Minute)
			fl.network(everywhere)
			wait(time.Minute)
		}
		for name, downs := range fl.downs() {
			t.Errorf("%s took the backend for dead %d times", name, len(downs))
		}
	})
}

// Nodes that are out of descriptors are no majority.
func TestNodesThatCannotProbeEjectABackendForNobody(t *testing.T) {
	inFleet(t, 1, 5, []string{backend}, func(fl *fleet) {
		fl.errno = syscall.EMFILE
		wait(time.Minute)
		starving := fl.rank()[:3]
		fl.network(func(node, _ string) bool { return !slices.Contains(starving, node) })
		since := time.Now()
		wait(2 * time.Minute)
		for name, downs := range fl.downs() {
			t.Errorf("%s took the backend for dead %d times", name, len(downs))
		}
		if _, by := fl.probes(backend, since); by[fl.rank()[3]] == 0 || by[fl.rank()[4]] == 0 {
			t.Errorf("nobody stands in for nodes that cannot probe: %v", by)
		}
		fl.network(func(string, string) bool { return false })
		wait(time.Minute)
		for name, downs := range fl.downs() {
			t.Errorf("all starve, and %s took the backend for dead %d times", name, len(downs))
		}
	})
}

func TestDutiesMoveAtOnceWhenAMemberLeaves(t *testing.T) {
	inFleet(t, 1, 6, []string{backend}, func(fl *fleet) {
		wait(time.Minute)
		rank := fl.rank()
		fl.stop(rank[0])
		fl.members(fl.names()...)
		left := time.Now()
		wait(tell + firstProbe)
		if _, by := fl.probes(backend, left); by[rank[3]] == 0 {
			t.Errorf("the next in the rank, %s, has not begun: %v", rank[3], by)
		}
		wait(time.Minute)
		settled := time.Now()
		wait(time.Minute)
		all, by := fl.probes(backend, settled)
		if all < 33 || all > 39 || len(by) != 3 || by[rank[4]] > 0 {
			t.Errorf("%d probes in 12 intervals: %v", all, by)
		}
		for name := range fl.downs() {
			t.Errorf("%s took the backend for dead", name)
		}
	})
}

// A newcomer that comes first takes a duty from who was third, and that one goes on for two intervals and no longer.
func TestOldProberOverlapsTwoIntervals(t *testing.T) {
	inFleet(t, 1, 5, []string{backend}, func(fl *fleet) {
		wait(time.Minute)
		old := fl.rank()[2]
		newcomer := ""
		for i := 0; newcomer == ""; i++ {
			name := fmt.Sprint("new", i)
			if place, _ := vote.NewMembers(append(fl.names(), name)).Place(fl.nodes[old].backends[0].Identity(), name); place == 0 {
				newcomer = name
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		fl.start(ctx, newcomer, nil, backend)
		fl.members(fl.names()...)
		came := time.Now()
		wait(time.Minute)
		_, by := fl.probes(backend, came)
		if by[old] < 1 || by[old] > 3 || by[newcomer] < 11 {
			t.Errorf("in twelve intervals: %v, want one to three of %s, all of %s", by, old, newcomer)
		}
		fl.all("after the newcomer", upstream.Healthy)
	})
}

func TestBothSidesOfAPartitionProbe(t *testing.T) {
	inFleet(t, 1, 8, []string{backend}, func(fl *fleet) {
		wait(time.Minute)
		rank := fl.rank()
		side := func(name string) bool { return slices.Index(rank, name)%2 == 0 }
		fl.bus(func(from, to string) bool { return side(from) == side(to) })
		var sides [2][]string
		for i, name := range rank {
			sides[i%2] = append(sides[i%2], name)
		}
		wait(lifetime)
		fl.members(sides[0]...)
		fl.members(sides[1]...)
		wait(time.Minute)
		begin := time.Now()
		wait(time.Minute)
		_, by := fl.probes(backend, begin)
		for i, names := range sides {
			n := 0
			for _, name := range names {
				n += by[name]
			}
			if n < 33 || n > 39 {
				t.Errorf("side %d has probed %d times in twelve intervals: %v", i, n, by)
			}
		}
		fl.network(func(node, _ string) bool { return side(node) })
		wait(16 * time.Second)
		for i, names := range sides {
			for _, name := range names {
				if v := fl.nodes[name].backends[0].Verdict(); (v.State == upstream.Healthy) != (i == 0) {
					t.Errorf("%s, on side %d, says %v", name, i, v.State)
				}
			}
		}
		fl.bus(everywhere)
		fl.network(everywhere)
		fl.members(fl.names()...)
		wait(time.Minute)
		fl.all("healed", upstream.Healthy)
	})
}

func TestIsolatedNodeProbesForItself(t *testing.T) {
	inFleet(t, 1, 8, []string{backend}, func(fl *fleet) {
		wait(time.Minute)
		lost := fl.rank()[7]
		fl.bus(func(from, to string) bool { return from != lost && to != lost })
		wait(lifetime)
		fl.nodes[lost].prober.SetMembers(nil)
		fl.network(func(node, _ string) bool { return node != lost })
		wait(17 * time.Second) // its probes are as many of a node alone: the interval may be a tenth longer
		for name, n := range fl.nodes {
			if v := n.backends[0].Verdict(); (v.State == upstream.Unhealthy) != (name == lost) {
				t.Errorf("%s says %v", name, v.State)
			}
		}
	})
}

// Two of the three whose duty it is say nothing, as those do that have not got the revision yet, and gossip does not know: the
// next in the rank stand in, and not everybody.
func TestNodesStandInForProbersThatAreSilent(t *testing.T) {
	inFleet(t, 1, 30, nil, func(fl *fleet) {
		ghosts := vote.NewMembers(fl.names()).First(keyOf(t), 2)
		for name, n := range fl.nodes {
			if !slices.Contains(ghosts, name) {
				n.watch(t, backend)
			}
		}
		wait(time.Minute)
		begin := time.Now()
		wait(time.Minute)
		all, by := fl.probes(backend, begin)
		if len(by) < 3 || len(by) > 5 {
			t.Errorf("%d nodes probe: %v (%d)", len(by), by, all)
		}
		fl.all("without two probers", upstream.Healthy)
		fl.network(nowhere)
		wait(16 * time.Second)
		fl.all("after a death", upstream.Unhealthy)
		// They come back to their duties, and those who stood in stand down.
		fl.network(everywhere)
		for _, name := range ghosts {
			fl.nodes[name].watch(t, backend)
		}
		wait(2 * time.Minute)
		begin = time.Now()
		wait(time.Minute)
		if _, by := fl.probes(backend, begin); len(by) != 3 {
			t.Errorf("with all back: %v", by)
		}
	})
}

// keyOf is the key of the backend of these tests' checks.
func keyOf(t *testing.T) vote.Key {
	r := upstream.NewRegistry(upstream.Options{})
	defer r.Close()
	b, err := r.Acquire(upstream.Spec{Host: backend, Port: 80, Check: tcpCheck()})
	if err != nil {
		t.Fatal(err)
	}
	return b.Identity()
}

// A node that reaches nothing at all does not accuse anybody.
func TestNodeWhoseProbesAllFailDistrustsItself(t *testing.T) {
	inFleet(t, 1, 4, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"}, func(fl *fleet) {
		wait(time.Minute)
		fl.network(func(node, _ string) bool { return node != "n0" })
		wait(time.Minute)
		unsure := 0
		for _, b := range fl.nodes["n1"].backends {
			for _, word := range fl.nodes["n1"].prober.Evidence(b).Votes {
				switch {
				case word.Origin != "n0" || time.Now().After(word.FreshUntil()):
				case word.State == vote.Unsure && !word.Counted:
					unsure++
				default:
					t.Errorf("n0 says that %s is %v, counted: %v", b.Address(), word.State, word.Counted)
				}
			}
		}
		if unsure < 2 {
			t.Errorf("n0 is unsure of %d backends", unsure)
		}
		fl.all("one node is blind", upstream.Healthy)
		// With n0 unsure, the two others that probe a backend are the quorum.
		fl.network(func(node, address string) bool { return node != "n0" && address != "10.0.0.1:80" })
		wait(16 * time.Second)
		for name, n := range fl.nodes {
			if v := n.backends[0].Verdict(); v.State != upstream.Unhealthy {
				t.Errorf("%s says of a dead backend that it is %v", name, v.State)
			}
			if v := n.backends[1].Verdict(); v.State != upstream.Healthy {
				t.Errorf("%s says of a backend that is alive: %v", name, v.State)
			}
		}
		fl.network(everywhere)
		wait(time.Minute)
		for _, b := range fl.nodes["n1"].backends {
			for _, word := range fl.nodes["n1"].prober.Evidence(b).Votes {
				if word.State != vote.Healthy {
					t.Errorf("%s says that %s is %v after its return", word.Origin, b.Address(), word.State)
				}
			}
		}
	})
}

func TestRestartedNodeIsBelievedThoughItsClockWentBack(t *testing.T) {
	inFleet(t, 1, 3, []string{backend}, func(fl *fleet) {
		ahead := vote.Vote{
			Key: fl.nodes["n0"].backends[0].Identity(), Origin: "n0", Sequence: uint64(time.Now().Add(time.Hour).UnixMicro()),
			State: vote.Unhealthy, Repeat: 5 * time.Second, Heard: time.Now(),
		}
		message, _ := vote.Encode([]vote.Vote{ahead}, MaxMessage)
		for _, n := range fl.nodes {
			if err := n.prober.Hear(Heard{From: "n0", Message: message}); err != nil {
				t.Error(err)
			}
		}
		wait(20 * time.Second)
		for name, n := range fl.nodes {
			for _, word := range n.prober.Evidence(n.backends[0]).Votes {
				if word.State != vote.Healthy || word.Origin == "n0" && word.Sequence <= ahead.Sequence {
					t.Errorf("%s has heard of %s: %v, sequence %d", name, word.Origin, word.State, word.Sequence)
				}
			}
		}
	})
}

// addresses are so many backends.
func addresses(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("10.1.%d.%d", i/250, i%250)
	}
	return all
}

func TestDeathOfAllBackendsIsKnownToAllInTime(t *testing.T) {
	for _, n := range []int{3, 10} {
		inFleet(t, uint64(n), n, addresses(40), func(fl *fleet) {
			wait(2 * time.Minute)
			fl.network(nowhere)
			wait(3*5*time.Second + 2*time.Second)
			fl.all("after a death", upstream.Unhealthy)
			wait(time.Minute)
			for name, node := range fl.nodes {
				for _, b := range node.backends {
					for _, word := range node.prober.Evidence(b).Votes {
						if word.State == vote.Unsure {
							t.Fatalf("%s has heard of %s that it is unsure of %s", name, word.Origin, b.Address())
						}
					}
				}
			}
		})
	}
}

// Two nodes of four behind one broken switch are two of three probers for half of all backends.
func TestNodesThatAreBlindTogetherAccuseNobody(t *testing.T) {
	inFleet(t, 1, 4, addresses(60), func(fl *fleet) {
		wait(time.Minute)
		fl.network(func(node, _ string) bool { return node != "n0" && node != "n1" })
		wait(time.Minute)
		fl.network(everywhere)
		for name := range fl.downs() {
			if name != "n0" && name != "n1" {
				t.Errorf("%s took a backend for dead", name)
			}
		}
	})
}

// Nothing but its own probes tells a node that it distrusts itself no longer, and it may have none to make any more.
func TestNodeThatHasNothingToProbeAnyMoreDoesNotDistrustItself(t *testing.T) {
	inFleet(t, 1, 4, addresses(4), func(fl *fleet) {
		wait(time.Minute)
		fl.network(func(node, _ string) bool { return node != "n0" })
		wait(time.Minute)
		n := fl.nodes["n0"]
		for _, b := range n.backends {
			b.Release()
		}
		n.backends = nil
		key := vote.Key{1}
		other := fl.nodes["n1"].prober
		other.Listen(key, func() {})
		n.prober.Accuse(key, "3 failures in a row", time.Minute)
		wait(2 * time.Second)
		if nodes, _ := other.Accusers(key); nodes != 1 {
			t.Errorf("%d nodes are heard to accuse, want one", nodes)
		}
	})
}

// Two of three nodes restart and reach nothing. They come to the third when they have found everything dead already, and would be a
// majority.
func TestNodesThatFoundEverythingDeadAloneHearOthersBeforeTheyAccuse(t *testing.T) {
	inFleet(t, 1, 3, addresses(20), func(fl *fleet) {
		wait(time.Minute)
		names, blind := fl.names(), []string{"n0", "n1"}
		fl.network(func(node, _ string) bool { return !slices.Contains(blind, node) })
		for _, name := range blind {
			fl.stop(name)
		}
		fl.members("n2")
		wait(20 * time.Second)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		for _, name := range blind {
			fl.start(ctx, name, nil, addresses(20)...)
		}
		wait(2 * time.Second)
		for _, name := range blind {
			if v := fl.nodes[name].backends[0].Verdict(); v.State != upstream.Unhealthy {
				t.Errorf("%s, which is blind and alone, says %v", name, v.State)
			}
		}
		fl.downs()
		fl.members(names...)
		wait(time.Minute)
		if downs := fl.downs()["n2"]; len(downs) > 0 {
			t.Errorf("n2 took a healthy backend for dead %d times", len(downs))
		}
		dead := addresses(20)[0]
		fl.network(func(node, address string) bool { return address != dead+":80" })
		wait(30 * time.Second)
		for _, name := range fl.names() {
			for i, b := range fl.nodes[name].backends {
				if v := b.Verdict(); (v.State == upstream.Unhealthy) != (i == 0) {
					t.Errorf("%s says of %s that it is %v, the first being dead", name, b.Address(), v.State)
				}
			}
		}
	})
}
