package fleet

import (
	"bytes"
	"testing"
	"testing/synctest"

	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/keyring"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

func ringOf(first ...byte) (r keyring.Ring) {
	for _, b := range first {
		r.Keys = append(r.Keys, bytes.Repeat([]byte{b}, keyring.KeyBytes))
	}
	return r
}

func TestNodesAreToldOfOtherKeysOnceWithinTheirStream(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		n1 := open(t, f, "n1", nil)
		defer n1.Break()
		silent(t, n1)
		for _, next := range []keyring.Ring{ringOf(1), ringOf(1, 2), ringOf(2, 1), ringOf(2)} {
			f.SetGossipKeys(next.Keys)
			f.SetGossipKeys(next.Keys)
			if m := n1.Hear(); !sameKeys(m.GetGossipKeys().GetKeys(), next.Keys) {
				t.Fatalf("got %v", m)
			}
			silent(t, n1)
			n1.Say(fleettest.Status(&fleetv1.Status{GossipKeys: next.Digest()}))
			synctest.Wait()
			if n, _ := f.Node("n1"); !bytes.Equal(n.GossipKeys, next.Digest()) {
				t.Errorf("what it uses is known as %x", n.GossipKeys)
			}
		}
		n1.Say(fleettest.Status(&fleetv1.Status{GossipKeys: []byte("no digest")}))
		synctest.Wait()
		if n, _ := f.Node("n1"); n.GossipKeys != nil {
			t.Errorf("nonsense is kept: %x", n.GossipKeys)
		}
	})
}

func TestTheLeaderHearsWhichKeysAFollowerAndItsNodesUse(t *testing.T) {
	pair(t, func(t *testing.T, leader, follower *Fleet, _ *link) {
		n1 := &fleettest.Node{Name: "n1", Keys: func([][]byte) bool { return true }}
		connectTo(follower, n1)
		defer n1.Close()
		for _, ring := range []keyring.Ring{ringOf(1), ringOf(1, 2)} {
			follower.SetGossipKeys(ring.Keys)
			pass(2 * attendInterval)
			settle()
			if followers := leader.Followers(); len(followers) != 1 || !bytes.Equal(followers[0].GossipKeys, ring.Digest()) {
				t.Errorf("the followers are %+v", followers)
			}
			if n, _ := leader.Node("n1"); !bytes.Equal(n.GossipKeys, ring.Digest()) {
				t.Errorf("the node uses %x", n.GossipKeys)
			}
		}
	})
}
