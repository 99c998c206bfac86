package cluster

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pyserve/pyserve/cluster/gossiptest"
	"github.com/pyserve/pyserve/cluster/state"
)

// The clusters of this file run in fake time, so what is measured is the protocol, whatever the machine does meanwhile. What
// costs real time is their size. Under the race detector, which multiplies it by five, they are small; CLUSTER_SIZE sets it.
func sizeOr(t *testing.T, plain, raced int) int {
	t.Helper()
	if text := os.Getenv("CLUSTER_SIZE"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 4 {
			t.Fatalf("CLUSTER_SIZE is %q, not a number of 4 and more", text)
		}
		return n
	}
	if raceDetector {
		return raced
	}
	return plain
}

// host is the address of member i of many.
func host(i int) string { return fmt.Sprintf("10.0.%d.%d:7946", i/250, i%250+1) }

// fleet starts members at once, each with the same three seeds.
func (w *world) fleet(n int, change ...func(*Options)) []*Cluster {
	w.t.Helper()
	all := make([]*Cluster, n)
	for i := range all {
		transport, err := w.network.Listen(host(i))
		if err != nil {
			w.t.Fatal(err)
		}
		all[i] = w.start(1000+i, append(change, func(o *Options) {
			o.Transport, o.Seeds = transport, []string{host(0), host(1), host(2)}
		})...)
	}
	return all
}

// sent tells what was sent in a while by each of n members.
func (w *world) sent(n int, over time.Duration) (packets, bytes float64) {
	before := w.network.Traffic()
	time.Sleep(over)
	traffic := w.network.Traffic().Since(before)
	seconds := over.Seconds() * float64(n)
	return float64(traffic.Packets) / seconds, float64(traffic.Bytes()) / seconds
}

// took tells in fake time how long it takes until a condition holds of every member, looking ten times a second.
func took(t *testing.T, within time.Duration, all []*Cluster, what string, holds func(*Cluster) bool) time.Duration {
	t.Helper()
	begun := time.Now()
	for i := 0; i < len(all); {
		if holds(all[i]) {
			i++ // those before may change their minds, which the last look at all finds
			continue
		}
		if time.Since(begun) > within {
			t.Fatalf("not within %s: %s; member %d of %d sees %d alive", within, what, i, len(all), alive(all[i]))
		}
		time.Sleep(100 * time.Millisecond)
	}
	for i, c := range all {
		if !holds(c) {
			t.Fatalf("no longer so at member %d: %s", i, what)
		}
	}
	d := time.Since(begun)
	t.Logf("%s: %s", what, d)
	return d
}

func alive(c *Cluster) (n int) {
	for _, m := range c.Members() {
		if m.State == state.Alive {
			n++
		}
	}
	return n
}

// stateOf is what a member thinks of another.
func stateOf(c *Cluster, name string) Member {
	for _, m := range c.Members() {
		if m.Name == name {
			return m
		}
	}
	return Member{}
}

func TestALargeClusterComesTogetherAndNoticesWhatHappens(t *testing.T) {
	size := sizeOr(t, 128, 24)
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		w.network.SetLatency(time.Millisecond)
		all := w.fleet(size)
		took(t, 10*time.Second, all, fmt.Sprint(size, " members that join at once see one another"), func(c *Cluster) bool { return alive(c) == size })

		w.changes(all, 10, w.rest(all))

		killed := all[size-1]
		kill(t, killed)
		rest := all[:size-1]
		took(t, 6*time.Second, rest, "a killed member is dead to all", func(c *Cluster) bool {
			return stateOf(c, killed.options.Name).State == state.Dead
		})
	})
}

// changes lets members change their facts, one after the other, and tells how long the slowest change takes to be known to all.
func (w *world) changes(all []*Cluster, n int, rest float64) {
	w.t.Helper()
	const over = 5 * time.Second
	var slowest time.Duration
	var bytes float64
	for i := range n {
		member := all[i*len(all)/n]
		want := Facts{Epoch: 1, Revision: uint64(i + 1), DigestPrefix: [8]byte{1}}
		begun, before := time.Now(), w.network.Traffic()
		member.Update(want)
		for _, c := range all {
			await(w.t, over, "the change at "+c.options.Name, func() bool { return stateOf(c, member.options.Name).Facts == want })
		}
		slowest = max(slowest, time.Since(begun))
		time.Sleep(time.Until(begun.Add(over)))
		bytes += float64(w.network.Traffic().Since(before).Bytes()) - rest*float64(len(all))*over.Seconds()
	}
	w.t.Logf("a change of one's facts is known to all, the slowest of %d: %s; each costs %.1f KB by every member", n, slowest, bytes/float64(n*len(all))/1000)
	if slowest > time.Second {
		w.t.Errorf("it took %s", slowest)
	}
}

// rest tells how many bytes a second each member sends while nothing happens.
func (w *world) rest(all []*Cluster) float64 {
	w.t.Helper()
	time.Sleep(time.Minute)
	packets, bytes := w.sent(len(all), 2*time.Minute)
	w.t.Logf("%d members at rest: each sends %.1f packets and %.0f bytes a second", len(all), packets, bytes)
	if bytes > 4000 {
		w.t.Error("that is more than 4 KB")
	}
	return bytes
}

func TestALargeClusterIsQuietAtRest(t *testing.T) {
	for _, size := range []int{10, sizeOr(t, 50, 20)} {
		gossiptest.Run(t, func(t *testing.T) {
			w := newWorld(t)
			w.network.SetLatency(time.Millisecond)
			all := w.fleet(size)
			took(t, 10*time.Second, all, fmt.Sprint(size, " members that join at once see one another"), func(c *Cluster) bool { return alive(c) == size })
			w.rest(all)
		})
	}
}

func TestALargeClusterThatFellApartComesTogetherAgain(t *testing.T) {
	size := sizeOr(t, 32, 12)
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		w.network.SetLatency(time.Millisecond)
		all := w.fleet(size)
		took(t, 10*time.Second, all, "all are there", func(c *Cluster) bool { return alive(c) == size })
		var half []string
		for i := range size / 2 {
			half = append(half, host(2*i))
		}
		w.network.Partition(half...)
		time.Sleep(5 * time.Minute)
		for i, c := range all {
			if n := alive(c); n != size/2 {
				t.Fatalf("member %d sees %d alive in its half", i, n)
			}
		}
		w.network.Heal()
		took(t, 20*time.Second, all, "halves that were apart for 5 min see one another", func(c *Cluster) bool { return alive(c) == size })
	})
}

// An hour of 128 members takes minutes: `make bench-cluster` does that.
func TestLossKillsNobody(t *testing.T) {
	size, long := sizeOr(t, 12, 6), time.Hour
	if raceDetector {
		long = 5 * time.Minute
	}
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		w.network.SetLatency(time.Millisecond)
		all := w.fleet(size)
		took(t, 10*time.Second, all, "all are there", func(c *Cluster) bool { return alive(c) == size })
		w.network.SetLoss(0.05)
		time.Sleep(long)
		n := w.log.count("member is dead")
		t.Logf("%d members, of whose packets one in twenty is lost: %d false deaths in %s", size, n, long)
		if n > 0 {
			t.Errorf("%d times somebody was called dead", n)
		}
		for i, c := range all {
			if n := alive(c); n != size {
				t.Errorf("member %d sees %d of %d alive after %s", i, n, size, long)
			}
		}
		killed := all[size-1]
		kill(t, killed)
		took(t, 10*time.Second, all[:size-1], "with that loss, a killed member is dead to all", func(c *Cluster) bool {
			return stateOf(c, killed.options.Name).State == state.Dead
		})
	})
}

func TestALargeClusterKeepsStrangersOut(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		all := []*Cluster{w.start(1)}
		for i := 2; i <= 12; i++ {
			all = append(all, w.start(i, seeds(1)))
		}
		took(t, 10*time.Second, all, "all are there", func(c *Cluster) bool { return alive(c) == len(all) })
		w.intruder(200, "node:evil", said(t, all[3]))
		time.Sleep(time.Minute)
		for _, c := range all {
			if strings.Contains(view(c), "evil") || alive(c) != len(all) {
				t.Errorf("%s sees %s", c.options.Name, view(c))
			}
		}
	})
}
