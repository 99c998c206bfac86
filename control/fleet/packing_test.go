package fleet

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/rollout"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

func TestADeltaIsMadeOnceForAllNodes(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		one, two := newTarget(t, 1, map[string]string{"/": "1"}), newTarget(t, 2, map[string]string{"/": "2"})
		f.SetTarget(one)
		a, b := open(t, f, "a", one.Release), open(t, f, "b", one.Release)
		f.SetTarget(two)
		headA, deltaA := hearParts(t, a)
		headB, deltaB := hearParts(t, b)
		if headA.GetNonce() == headB.GetNonce() || deltaA[0].GetNonce() != headA.GetNonce() || deltaB[0].GetNonce() != headB.GetNonce() {
			t.Errorf("nonces %d and %d, and %d and %d in the parts", headA.GetNonce(), headB.GetNonce(), deltaA[0].GetNonce(), deltaB[0].GetNonce())
		}
		if deltaA[0].Upserted[0] != deltaB[0].Upserted[0] {
			t.Error("each node has a delta made for itself")
		}
		a.Break()
		b.Break()
	})
}

func TestWhatIsCutForNodesGoesWithItsUse(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		packed := func() int {
			f.mu.Lock()
			defer f.mu.Unlock()
			return len(f.packed)
		}
		a := &fleettest.Node{Name: "a"}
		connect(f, a)
		for revision := range uint64(4) {
			target := newTarget(t, revision+1, map[string]string{"/": fmt.Sprint(revision)})
			f.Propose(target)
			synctest.Wait()
			f.SetTarget(target)
			checkProgress(t, f, "a", target, rollout.Committed)
			// The first bundle goes whole, and is not kept; of the deltas, that to the target is, for nodes to come.
			if want := min(int(revision), 1); packed() != want {
				t.Errorf("revision %d: %d packings are held, want %d", revision+1, packed(), want)
			}
		}
	})
}

// hearParts takes a whole offer in as it was sent.
func hearParts(t *testing.T, c *fleettest.Conn) (*fleetv1.Offer, []*fleetv1.OfferPart) {
	t.Helper()
	head := c.Hear().GetOffer()
	if head == nil {
		t.Fatal("no offer came")
	}
	var parts []*fleetv1.OfferPart
	for {
		part := c.Hear().GetOfferPart()
		if part == nil {
			t.Fatal("the offer does not end")
		}
		if parts = append(parts, part); part.GetLast() {
			return head, parts
		}
	}
}

// BenchmarkOneRouteOf10kTo1000Nodes proposes a bundle to nodes that agree to everything, and has them serve it. What a
// stream costs beyond memory is not in it.
func BenchmarkOneRouteOf10kTo1000Nodes(b *testing.B) {
	const nodes, routes = 1000, 10_000
	f := newFleet(Options{})
	defer f.Close()
	revision := uint64(0)
	next := func() *Target {
		revision++
		bodies := make([]bundle.Resource, 0, 2*routes)
		for i := range routes {
			name, body := fmt.Sprintf("/service/%06d", i), []byte("the body of a route")
			if i == routes/2 {
				body = fmt.Append(body, revision)
			}
			bodies = append(bodies, bundle.Resource{Key: bundle.Key{Kind: config.KindPool, Name: name}, Body: body},
				bundle.Resource{Key: bundle.Key{Kind: config.KindRoute, Name: name}, Body: body})
		}
		made, err := bundle.New(bodies)
		if err != nil {
			b.Fatal(err)
		}
		return &Target{Release: bundle.Sign(releaseKey, 1, revision, made.Digest()), Bundle: made}
	}
	target := next()
	f.SetTarget(target)
	names := make([]string, nodes)
	for i := range names {
		names[i] = fmt.Sprintf("node-%04d", i)
		c := fleettest.Open(f.server(names[i]))
		c.Say(fleettest.Hello(names[i], target.Release))
		go agree(c)
		defer c.Wait()
		defer c.Break()
	}
	changed, stop := f.Watch()
	defer stop()
	// Looks at all nodes are not what is measured: there is one when the last answer is in, and few before it.
	await := func(t *Target, want rollout.State) {
		for left := names; len(left) > 0; {
			if state, _ := f.Progress(left[0], t); state == want {
				left = left[1:]
				continue
			}
			<-changed
		}
	}
	for b.Loop() {
		b.StopTimer()
		target = next()
		b.StartTimer()
		f.Propose(target)
		await(target, rollout.Prepared)
		f.SetTarget(target)
		await(target, rollout.Committed)
	}
}

// agree answers as a node does that can serve everything.
func agree(c *fleettest.Conn) {
	var release *fleetv1.Release
	for m := c.Hear(); m != nil; m = c.Hear() {
		if head := m.GetOffer(); head != nil {
			release = head.GetRelease()
		}
		if part := m.GetOfferPart(); part.GetLast() {
			c.Say(fleettest.Prepared(part.GetNonce()))
		}
		if commit := m.GetCommit(); commit != nil {
			c.Say(fleettest.Committed(commit.GetNonce(), release))
		}
	}
}
