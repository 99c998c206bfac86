package cluster

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pyserve/pyserve/cluster/gossiptest"
)

// listeners gives members that hear all that the last of them publishes.
func listeners(w *world, n int) (all []*Cluster, boxes []*mailbox) {
	for i := 1; i <= n; i++ {
		box := newMailbox()
		boxes = append(boxes, box)
		all = append(all, w.start(i, seeds(1), box.open))
	}
	return all, boxes
}

func TestTheKeyIsChangedWhileEverybodyTalks(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		all, boxes := listeners(w, 4)
		next := bytes.Repeat([]byte{2}, 32)
		took(t, 10*time.Second, all, "all are there", func(c *Cluster) bool { return alive(c) == len(all) })
		// One member at a time takes each step: add, use, remove.
		for step, keys := range [][][]byte{{key, next}, {next, key}, {next}} {
			for i, c := range all {
				if err := c.SetKeys(keys); err != nil {
					t.Fatal(err)
				}
				text := string(rune('a'+step)) + string(rune('a'+i))
				publish(t, all[3], text)
				time.Sleep(5 * time.Second)
				for b, box := range boxes[:3] {
					if box.got("node n4 1 "+text) != 1 {
						t.Errorf("step %d at member %d: member %d hears nothing", step, i+1, b+1)
					}
				}
			}
			for _, m := range all[0].Members() {
				if m.KeyMark != keyMark(keys[0]) {
					t.Errorf("step %d: %s is seen to use another key", step, m.Name)
				}
			}
		}
		if n := w.log.count("member is dead"); n > 0 {
			t.Errorf("%d times somebody was called dead", n)
		}
		outsider := w.start(9, seeds(1)) // with the old key
		time.Sleep(30 * time.Second)
		if alive(outsider) != 1 || alive(all[0]) != 4 {
			t.Errorf("who has the old key alone sees %d, and is seen by %d", alive(outsider), alive(all[0]))
		}
		// It was away, and gets the key from control before it is heard.
		if err := outsider.SetKeys([][]byte{next}); err != nil {
			t.Fatal(err)
		}
		took(t, 30*time.Second, append(all, outsider), "all and the one that was away are there", func(c *Cluster) bool { return alive(c) == 5 })
	})
}

func TestKeysThatAreNoneAreNotTaken(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		a := newWorld(t).start(1)
		for _, keys := range [][][]byte{nil, {key[:16]}, {key, nil}} {
			if a.SetKeys(keys) == nil {
				t.Errorf("%d keys are taken", len(keys))
			}
		}
	})
}

// TestNobodyIsLostWhileAKeyTakesAnothersPlace has members of a lossy network take each step in any order and at any time of
// it, and looks at what everybody sees all the while.
func TestNobodyIsLostWhileAKeyTakesAnothersPlace(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		all, _ := listeners(w, 10)
		took(t, 20*time.Second, all, "all are there", func(c *Cluster) bool { return alive(c) == len(all) })
		w.network.SetLoss(0.02)
		random := rand.New(rand.NewPCG(1, 2))
		next := bytes.Repeat([]byte{2}, 32)
		for step, keys := range [][][]byte{{key, next}, {next, key}, {next}} {
			for _, i := range random.Perm(len(all)) {
				time.Sleep(time.Duration(random.Int64N(int64(3 * time.Second))))
				if err := all[i].SetKeys(keys); err != nil {
					t.Fatal(err)
				}
				for j, c := range all {
					if alive(c) != len(all) {
						t.Fatalf("step %d, when member %d took it: member %d sees %d of %d", step, i+1, j+1, alive(c), len(all))
					}
				}
			}
		}
		if n := w.log.count("member is dead"); n > 0 {
			t.Errorf("%d times somebody was called dead", n)
		}
	})
}

// TestAMemberWaitsForNewerKeysBeforeItJoins: it was away while the key was changed, and is told of the new one a moment after
// its start; or is not told, and joins by what it has.
func TestAMemberWaitsForNewerKeysBeforeItJoins(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.start(1)
		next := bytes.Repeat([]byte{2}, 32)
		if err := a.SetKeys([][]byte{next}); err != nil {
			t.Fatal(err)
		}
		late := w.start(2, seeds(1), func(o *Options) { o.JoinDelay = 10 * time.Second })
		time.Sleep(9 * time.Second)
		if err := late.SetKeys([][]byte{next}); err != nil {
			t.Fatal(err)
		}
		if n := w.log.count("another gossip key"); n > 0 {
			t.Errorf("it tried %d times with the key that it had", n)
		}
		late.SetSeeds([]string{host(1)})
		took(t, 500*time.Millisecond, []*Cluster{a, late}, "both are there", func(c *Cluster) bool { return alive(c) == 2 })
		alone := w.start(3, func(o *Options) { o.JoinDelay, o.Seeds, o.Keys = 10*time.Second, []string{host(1)}, [][]byte{next} })
		time.Sleep(9 * time.Second)
		if alive(alone) != 1 {
			t.Error("it did not wait")
		}
		took(t, 5*time.Second, []*Cluster{a, late, alone}, "all are there", func(c *Cluster) bool { return alive(c) == 3 })
	})
}
