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

		time.Sleep(30 * time.Second)
		want := Facts{Epoch: 1, Revision: 42, DigestPrefix: [8]byte{1}}
		all[size/2].Update(want)
		took(t, 2*time.Second, all, "a change of one's facts is known to all", func(c *Cluster) bool {
			return stateOf(c, all[size/2].options.Name).Facts == want
		})

		time.Sleep(30 * time.Second)
		killed := all[size-1]
		kill(t, killed)
		rest := all[:size-1]
		took(t, 6*time.Second, rest, "a killed member is dead to all", func(c *Cluster) bool {
			return stateOf(c, killed.options.Name).State == state.Dead
		})
	})
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
		if n := w.log.count("member is dead"); n > 0 {
			t.Errorf("%d times somebody was called dead", n)
		}
		for i, c := range all {
			if n := alive(c); n != size {
				t.Errorf("member %d sees %d of %d alive after %s", i, n, size, long)
			}
		}
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
