package limit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	// travels is how long a call is under way, and patience when it is given up.
	travels  = time.Millisecond
	patience = 3 * Turn
	// learns is when the first node knows by gossip that another has died; the last knows after twice that.
	learns = 5 * time.Second
)

// fleet are nodes in virtual time, which goes by the millisecond. They ask and answer as package node does it.
type fleet struct {
	rate   Rate
	nodes  []*member
	now    time.Duration
	random *rand.Rand
	posts  []post
	key    uint64
	passed []int // in each millisecond, of all nodes
	wanted []int
}

// member is a node with what it knows of the others.
type member struct {
	name     string
	shared   *Shared
	lenders  *Lenders
	turns    int
	calling  map[string]bool
	dead     bool
	cutOff   string // whom it cannot reach
	vanished bool   // and calls of it are not refused but never answered
	greedy   bool   // asks for everything in each turn, whatever it needs
	phase    time.Duration
	passed   int
}

type post struct {
	due  time.Duration
	open func()
}

func newFleet(n int, r Rate) *fleet {
	f := &fleet{rate: r, random: rand.New(rand.NewPCG(1, 2)), key: 0x9e3779b97f4a7c15}
	for i := range n {
		f.add(fmt.Sprintf("n%d", i+1))
	}
	for _, m := range f.nodes {
		m.learn(f.names())
	}
	return f
}

// owned makes name the owner of the key.
func (f *fleet) owned(name string) *member {
	for ; f.nodes[0].lenders.Owner(f.key) != name; f.key++ {
	}
	return f.member(name)
}

func (f *fleet) add(name string) *member {
	m := &member{name: name, shared: NewShared(1, f.rate), lenders: NewLenders(name), calling: map[string]bool{},
		phase: time.Duration(f.random.IntN(int(Turn/time.Millisecond))) * time.Millisecond}
	f.nodes = append(f.nodes, m)
	return m
}

func (m *member) learn(names []string) {
	m.lenders.Set(names)
	m.shared.SetNodes(m.lenders.Count())
}

func (f *fleet) names() (names []string) {
	for _, m := range f.nodes {
		if !m.dead {
			names = append(names, m.name)
		}
	}
	return names
}

func (f *fleet) member(name string) *member {
	return f.nodes[slices.IndexFunc(f.nodes, func(m *member) bool { return m.name == name })]
}

// learn makes every living node know who lives, the first after so long, the last after twice that.
func (f *fleet) learn(after time.Duration) {
	names := f.names()
	for i, m := range f.nodes {
		f.after(after+after*time.Duration(i)/time.Duration(len(f.nodes)), func() { m.learn(names) })
	}
}

func (f *fleet) after(d time.Duration, do func()) { f.posts = append(f.posts, post{f.now + d, do}) }

// run offers so many requests a second in all, each node its part by weights, at random moments; of the dead, the living share them.
func (f *fleet) run(lasts time.Duration, offered float64, weights ...float64) {
	for end := f.now + lasts; f.now < end; f.now += time.Millisecond {
		f.deliver()
		passed, wanted := 0, 0
		for i, m := range f.nodes {
			if m.dead {
				continue
			}
			for range f.poisson(offered / 1000 * f.part(i, weights)) {
				wanted++
				if _, ok := m.shared.Allow(f.key, f.now); ok {
					passed++
					m.passed++
				}
			}
			if f.now%Turn == m.phase {
				f.turn(m)
			}
		}
		f.passed, f.wanted = append(f.passed, passed), append(f.wanted, wanted)
	}
}

func (f *fleet) part(i int, weights []float64) float64 {
	living, dead := 0, 0.0
	for j, m := range f.nodes {
		switch {
		case !m.dead:
			living++
		case j < len(weights):
			dead += weights[j]
		}
	}
	part := dead / float64(living)
	if i < len(weights) {
		part += weights[i]
	}
	return part
}

func (f *fleet) poisson(mean float64) (n int) {
	for left := mean - f.random.ExpFloat64(); left > 0; left -= f.random.ExpFloat64() {
		n++
	}
	return n
}

func (f *fleet) deliver() {
	due := f.posts
	f.posts = nil
	for _, p := range due {
		if p.due > f.now {
			f.posts = append(f.posts, p)
			continue
		}
		p.open()
	}
}

func (f *fleet) turn(m *member) {
	m.turns++
	for _, a := range m.shared.Turn(f.now, nil) {
		if m.greedy {
			a.Want = 1 << 31
		}
		f.call(m, m.lenders.Owner(a.Key), &a)
	}
	for _, name := range m.lenders.Doubted(m.turns%10 == 0) {
		f.call(m, name, nil)
	}
}

// call asks an owner, or asks it for nothing, to hear whether it is there.
func (f *fleet) call(m *member, name string, a *Ask) {
	owner := f.member(name)
	switch {
	case owner == m:
		m.take(a, owner, f.now)
		return
	case m.calling[name]:
		if a != nil {
			m.shared.Deferred(*a)
		}
		return
	}
	m.calling[name] = true
	under := 2 * travels
	if owner.vanished {
		under = patience
	}
	f.after(travels, func() {
		answered := !owner.dead && m.cutOff != name
		var grant Grant
		var lent bool
		if answered && a != nil && owner.lenders.Owns(a.Key) {
			grant, lent = owner.shared.Lend(newLender(m.name).hash, *a, f.now)
		}
		f.after(under-travels, func() {
			delete(m.calling, name)
			m.lenders.Heard(name, answered)
			switch {
			case a == nil:
			case lent:
				m.shared.Granted(*a, grant, f.now)
			default:
				m.shared.Failed(*a)
			}
		})
	})
}

func (m *member) take(a *Ask, owner *member, now time.Duration) {
	if g, ok := owner.shared.Lend(newLender(m.name).hash, *a, now); ok {
		m.shared.Granted(*a, g, now)
	} else {
		m.shared.Failed(*a)
	}
}

// off is by how much what passed from one moment to another is off what should have, in percent.
func (f *fleet) off(from, to time.Duration) float64 {
	passed, wanted := 0, 0
	for ms := from / time.Millisecond; ms < to/time.Millisecond; ms++ {
		passed, wanted = passed+f.passed[ms], wanted+f.wanted[ms]
	}
	should := min(float64(wanted), (to-from).Seconds()/f.rate.Per.Seconds()*float64(f.rate.Requests))
	return 100 * (float64(passed)/should - 1)
}

var traffics = []struct {
	name    string
	weights []float64
}{
	{"even", []float64{.25, .25, .25, .25}}, {"90/10", []float64{.9, .1, 0, 0}}, {"one node", []float64{1, 0, 0, 0}},
}

// story is by how much a fleet is off when nothing happens, and in the seconds of what happens to the owner of the key.
type story struct{ steady, killed, killed2, vanished, vanished2, born float64 }

func tell(rate Rate, offered float64, weights []float64) (s story) {
	death := func(vanishes bool) (first, second float64) {
		f := newFleet(4, rate)
		owner := f.owned("n4") // not the one that has all of the traffic
		f.run(12*time.Second, offered, weights...)
		s.steady = f.off(4*time.Second, f.now)
		owner.dead, owner.vanished = true, vanishes
		died := f.now
		f.learn(learns)
		f.run(3*learns, offered, weights...)
		first, second = f.off(died, died+time.Second), f.off(died+time.Second, died+2*time.Second)
		born := f.now
		f.birth()
		f.run(3*time.Second, offered, weights...)
		s.born = f.off(born, born+time.Second)
		return first, second
	}
	s.vanished, s.vanished2 = death(true)
	s.killed, s.killed2 = death(false)
	return s
}

// birth adds a node that takes the key over. It knows of the others at once, and they of it after a while.
func (f *fleet) birth() {
	for i := 5; ; i++ {
		name := fmt.Sprintf("n%d", i)
		l := NewLenders(name)
		l.Set(f.names())
		if l.Owner(f.key) != name {
			continue
		}
		f.add(name).learn(f.names())
		f.learn(100 * time.Millisecond)
		return
	}
}

func TestFleetKeepsToTheLimit(t *testing.T) {
	var table strings.Builder
	for _, burst := range []uint32{100, 1000} {
		rate := Rate{Requests: 1000, Per: time.Second, Burst: burst}
		fmt.Fprintf(&table, "limit 1000/s, burst %d, 4 nodes; off the limit in %%\n%-10s %8s %8s %8s %8s %9s %9s %8s\n", burst, "traffic", "offered",
			"steady", "killed", "+1 s", "vanished", "+1 s", "born")
		for _, traffic := range traffics {
			for _, offered := range []float64{800, 2000, 10_000} {
				s := tell(rate, offered, traffic.weights)
				fmt.Fprintf(&table, "%-10s %8.0f %+8.1f %+8.1f %+8.1f %+9.1f %+9.1f %+8.1f\n", traffic.name, offered, s.steady, s.killed, s.killed2,
					s.vanished, s.vanished2, s.born)
				if s.steady > 5 || s.steady < -5 {
					t.Errorf("%s, %.0f offered, burst %d: %.1f %% off when nothing happens", traffic.name, offered, burst, s.steady)
				}
				for what, off := range map[string]float64{"is killed": s.killed, "was killed": s.killed2, "vanishes": s.vanished,
					"has vanished": s.vanished2, "is born": s.born} {
					if off > 20 || off < -20 {
						t.Errorf("%s, %.0f offered, burst %d: %.1f %% off in the second in which the owner %s", traffic.name, offered, burst, off, what)
					}
				}
			}
		}
	}
	t.Log("\n" + table.String())
}

// A node that asks for everything gets its share, and the others theirs.
func TestAGreedyNodeStarvesNobodyForLong(t *testing.T) {
	f := newFleet(4, Rate{Requests: 1000, Per: time.Second, Burst: 100})
	f.owned("n4")
	f.nodes[0].greedy = true
	f.run(2*time.Second, 4000, .25, .25, .25, .25)
	before := make([]int, len(f.nodes))
	for i, m := range f.nodes {
		before[i] = m.passed
	}
	f.run(10*time.Second, 4000, .25, .25, .25, .25)
	for i, m := range f.nodes {
		t.Logf("%s: %d of 10,000 in 10 s", m.name, m.passed-before[i])
		if n := m.passed - before[i]; n < 2000 || n > 3000 {
			t.Errorf("%s lets %d through, want about 2,500", m.name, n)
		}
	}
	if off := f.off(2*time.Second, f.now); off > 5 {
		t.Errorf("together %.1f %% too much", off)
	}
}

// What the others do not want, one that wants more may have.
func TestASmallDemandIsMetBesideALargeOne(t *testing.T) {
	f := newFleet(4, Rate{Requests: 1000, Per: time.Second, Burst: 100})
	f.run(12*time.Second, 3000, .97, .01, .01, .01)
	passed := f.nodes[1].passed + f.nodes[2].passed + f.nodes[3].passed
	if wanted := 12 * 90; passed < wanted*8/10 {
		t.Errorf("of about %d requests of three small nodes %d pass", wanted, passed)
	}
}

// What a slow client is allowed on one node is not lost to it on the next.
func TestASlowClientGetsAllThatIsHis(t *testing.T) {
	f := newFleet(3, Rate{Requests: 60, Per: time.Hour, Burst: 60})
	ask := func(node int) bool {
		_, ok := f.nodes[node%3].shared.Allow(f.key, f.now)
		f.run(10*time.Second, 0)
		return ok
	}
	passed := 0
	for i := range 90 { // in 15 minutes, in which 15 come back
		if ask(i * i) {
			passed++
		}
	}
	if passed < 71 || passed > 76 { // two are left to others where none has the owner's word
		t.Errorf("%d pass, want about 75", passed)
	}
	for i := range 30 {
		ask(i)
	}
	passed = 0
	for i := range 180 { // with nothing in hand
		if ask(i) {
			passed++
		}
	}
	if passed < 26 || passed > 31 {
		t.Errorf("%d pass in half an hour, want about 30", passed)
	}
}

// All requests at once pass as long as they are no more than are left, on nodes that have not heard of the key as on those that have.
func TestBurstsPassWhereverTheyCome(t *testing.T) {
	f := newFleet(3, Rate{Requests: 60, Per: time.Hour, Burst: 60})
	burst := func(node, n int) (passed int) {
		for range n {
			if _, ok := f.nodes[node].shared.Allow(f.key, f.now); ok {
				passed++
			}
		}
		return passed
	}
	if n := burst(0, 1); n != 1 {
		t.Fatal("the first request does not pass")
	}
	f.run(100*time.Millisecond, 0)
	if n := burst(0, 30); n != 30 {
		t.Errorf("%d of 30 pass where the owner has answered", n)
	}
	f.run(2*time.Second, 0)
	if n := burst(0, 8); n != 8 {
		t.Errorf("%d of 8 pass after a pause, of 29 that are left", n)
	}
	if n := burst(1, 20); n != 20 {
		t.Errorf("%d of 20 pass where the key is new", n)
	}
	f.run(time.Second, 0)
	if n := burst(0, 30) + burst(1, 30); n > 7 { // a third of what was left when the first node last heard
		t.Errorf("%d more pass of what is used up", n)
	}
}

// An owner that comes new to a key knows from its borrowers what was used before it.
func TestWhatWasUsedOutlivesTheOwner(t *testing.T) {
	f := newFleet(3, Rate{Requests: 60, Per: time.Hour, Burst: 60})
	owner := f.owned("n3")
	for range 10 {
		for range 10 {
			f.nodes[0].shared.Allow(f.key, f.now)
		}
		f.run(100*time.Millisecond, 0)
	}
	owner.dead = true
	passed := 0
	for range 20 {
		if _, ok := f.nodes[0].shared.Allow(f.key, f.now); ok {
			passed++
		}
		f.run(100*time.Millisecond, 0)
	}
	if passed > 1 {
		t.Errorf("%d pass after the owner's death, of none that are left", passed)
	}
	if f.nodes[0].lenders.Owner(f.key) == "n3" {
		t.Error("the dead owner is still asked")
	}
}

// Nodes that disagree about one that does not answer do not lend twice what there is.
func TestANodeLendsOnlyWhatIsItsOwn(t *testing.T) {
	f := newFleet(3, Rate{Requests: 1000, Per: time.Second, Burst: 200})
	f.nodes[0].cutOff = "n3"
	two := NewLenders("n1")
	two.Set([]string{"n2"})
	for f.owned("n3"); two.Owner(f.key) != "n2"; f.owned("n3") { // or the one would lend to itself
		f.key++
	}
	f.run(5*time.Second, 6000, .34, .33, .33)
	if off := f.off(time.Second, f.now); off > 35 { // the share of the one, beside all that there is for the others
		t.Errorf("%.1f %% too much pass", off)
	}
}

func TestANodeThatIsAloneLetsTheWholeRateThrough(t *testing.T) {
	rate := Rate{Requests: 100, Per: time.Second, Burst: 50}
	f := newFleet(1, rate)
	twin, passed, want := New(rate), 0, 0
	for range 4000 {
		f.run(time.Millisecond, 0)
		if f.random.IntN(5) == 0 {
			for range f.random.IntN(4) {
				if _, ok := f.nodes[0].shared.Allow(f.key, f.now); ok {
					passed++
				}
				if _, ok := twin.Allow(1, f.now); ok {
					want++
				}
			}
		}
	}
	if passed < want-10 || passed > want+10 {
		t.Errorf("%d pass, with scope node %d", passed, want)
	}
}
