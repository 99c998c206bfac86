package agent

import (
	"context"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node/peer"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// neighbour is another node, as its peers see it.
type neighbour struct {
	Peer
	heads atomic.Int32 // connections that came
}

// neighbour gives a node that serves a bundle as a release, to whoever connects.
func (s *script) neighbour(t *testing.T, name string, release *fleetv1.Release, b *bundle.Bundle) *neighbour {
	t.Helper()
	keyPEM, request, err := newKey(name)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := s.authority.IssueNode(name, request)
	if err != nil {
		t.Fatal(err)
	}
	id, err := received(name, keyPEM, issued)
	if err != nil {
		t.Fatal(err)
	}
	server := peer.NewServer(peer.ServerOptions{
		Identity: func() peer.Identity {
			return peer.Identity{ClusterID: id.ClusterID, Certificate: id.pair, Authorities: id.pool, ReleaseKey: id.ReleaseKey}
		},
		Holding: func() (*fleetv1.Release, *bundle.Bundle) { return release, b },
		Logger:  slog.New(slog.DiscardHandler), Now: s.clock.now,
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &neighbour{Peer: Peer{Name: name, Address: l.Addr().String(), Epoch: release.GetEpoch(), Revision: release.GetRevision()}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			n.heads.Add(1)
			server.Take(conn)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		if err := server.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
}

func among(neighbours ...*neighbour) func() []Peer {
	return func() []Peer {
		var out []Peer
		for _, n := range neighbours {
			out = append(out, n.Peer)
		}
		return out
	}
}

// nobody is an address where no control answers.
func nobody(t *testing.T) []string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return []string{l.Addr().String()}
}

// isAlone makes a rig whose control is gone, that serves what dir holds, among peers.
func isAlone(t *testing.T, s *script, dir string, peers func() []Peer) *rig {
	t.Helper()
	return newRig(t, s, rigOptions{dir: dir, controls: nobody(t), now: s.clock.now, peers: peers})
}

// holds makes a data directory whose node serves a bundle, which has stood its trial.
func holds(t *testing.T, release *fleetv1.Release, b *bundle.Bundle) (dir string) {
	t.Helper()
	dir = t.TempDir()
	directory, err := bundle.OpenDirectory(dir + "/bundles")
	if err != nil {
		t.Fatal(err)
	}
	staged, err := directory.Stage(release, b, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := staged.Commit(false); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestANodeWithoutABundleGetsItFromAPeer(t *testing.T) {
	s := newScript(t)
	b := bundleOf(t, "/1")
	n2 := s.neighbour(t, "n2", s.sign(3, 7, b), b)
	r := isAlone(t, s, "", among(n2)).run()
	eventually(t, "revision 7 from a peer", func() bool { s.clock.advance(100 * time.Millisecond); return r.revision() == 7 })
	eventually(t, "it is counted", func() bool { return r.FromPeers()["served"] == 1 })
	if release, held := r.Holding(); release.GetEpoch() != 3 || held.Digest() != b.Digest() {
		t.Errorf("it holds %v", release)
	}
	again := boot(t, s, r.crash(t))
	if again.revision() != 7 {
		t.Errorf("after a restart it serves revision %d", again.revision())
	}
}

func TestANewerRevisionComesFromAPeerWhenControlHasBeenGoneForLong(t *testing.T) {
	s := newScript(t)
	a, b := bundleOf(t, "/1"), bundleOf(t, "/2")
	n2 := s.neighbour(t, "n2", s.sign(1, 2, b), b)
	r := isAlone(t, s, holds(t, s.sign(1, 1, a), a), among(n2)).run()
	if r.revision() != 1 {
		t.Fatalf("it begins with revision %d", r.revision())
	}
	s.clock.advance(awayTime - time.Second)
	eventually(t, "control is tried", func() bool { return r.log.has("no stream to control") })
	if n2.heads.Load() > 0 {
		t.Error("the peer is asked too soon")
	}
	s.clock.advance(time.Second)
	eventually(t, "revision 2", func() bool { return r.revision() == 2 })
	if !r.marked() {
		t.Error("it is not on trial")
	}
}

func TestWhileControlIsThereNoPeerIsAsked(t *testing.T) {
	s := newScript(t)
	a, b := bundleOf(t, "/1"), bundleOf(t, "/2")
	n2 := s.neighbour(t, "n2", s.sign(1, 2, b), b)
	r := newRig(t, s, rigOptions{dir: holds(t, s.sign(1, 1, a), a), now: s.clock.now, peers: among(n2)}).run()
	w := s.welcomed(t)
	w.status(t, "revision 1", func(m *fleetv1.Status) bool { return m.GetApplied().GetRevision() == 1 })
	s.clock.advance(time.Minute)
	for range 3 { // a second apart
		w.status(t, "anything", func(*fleetv1.Status) bool { return true })
	}
	if n2.heads.Load() > 0 || r.revision() != 1 {
		t.Errorf("the peer was asked %d times; revision %d is served", n2.heads.Load(), r.revision())
	}
}

// A node that was revoked has a good certificate still, and only control knows better.
func TestANodeThatHasAControlGivesNothingToPeers(t *testing.T) {
	s := newScript(t)
	a := bundleOf(t, "/1")
	r := newRig(t, s, rigOptions{dir: holds(t, s.sign(1, 1, a), a), now: s.clock.now})
	if release, _ := r.Holding(); release.GetRevision() != 1 {
		t.Errorf("without a control it gives %v", release)
	}
	r.run()
	w := s.welcomed(t)
	eventually(t, "nothing is given", func() bool {
		release, _ := r.Holding()
		return release == nil
	})
	w.end <- nil
	eventually(t, "it is given again", func() bool {
		release, _ := r.Holding()
		return release.GetRevision() == 1
	})
}

func TestStatusSaysThatARevisionCameFromAPeer(t *testing.T) {
	s := newScript(t)
	b := bundleOf(t, "/1")
	n2 := s.neighbour(t, "n2", s.sign(1, 7, b), b)
	r := isAlone(t, s, "", among(n2))
	r.mu.Lock()
	if r.gone.IsZero() {
		t.Error("a control is thought to be there")
	}
	r.mu.Unlock()
	r.run()
	eventually(t, "revision 7", func() bool { s.clock.advance(100 * time.Millisecond); return r.revision() == 7 })
	eventually(t, "a note", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		notes := r.notes()
		return len(notes) == 1 && notes[0] == "revision 7 is from peer n2: no control was there when it came"
	})
}

func TestPeersThatGiveWhatIsNotToBeTakenAreRefusedAndCounted(t *testing.T) {
	s, stranger := newScript(t), newScript(t)
	a, b := bundleOf(t, "/1"), bundleOf(t, "/2")
	claimed := func(n *neighbour, epoch, revision uint64) *neighbour {
		n.Epoch, n.Revision = epoch, revision // whatever its head says
		return n
	}
	for result, n := range map[string]*neighbour{
		"unsigned":    s.neighbour(t, "n2", stranger.sign(1, 9, b), b),
		"older":       claimed(s.neighbour(t, "n2", s.sign(1, 4, b), b), 1, 9),
		"other_epoch": claimed(s.neighbour(t, "n2", s.sign(2, 9, b), b), 1, 9),
		"damaged":     s.neighbour(t, "n2", s.sign(1, 9, b), a), // a manifest of another digest
		"unanswered":  claimed(&neighbour{Peer: Peer{Name: "n2", Address: nobody(t)[0]}}, 1, 9),
	} {
		t.Run(result, func(t *testing.T) {
			if result == "damaged" { // the server gives nothing that it does not serve, so it has to believe that it does
				n.Revision = 9
			}
			r := isAlone(t, s, holds(t, s.sign(1, 5, a), a), among(n)).run()
			s.clock.advance(awayTime)
			eventually(t, "it is counted", func() bool { s.clock.advance(100 * time.Millisecond); return r.FromPeers()[result] > 0 })
			if r.revision() != 5 || r.FromPeers()["served"] > 0 {
				t.Errorf("it serves revision %d", r.revision())
			}
		})
	}
}

// What a member says of itself in gossip is no proof: one that claims ever newer revisions and has none is asked less and less,
// and so is one that says the same for ever.
func TestAPeerThatClaimsWhatItHasNotIsAskedLessAndLess(t *testing.T) {
	s := newScript(t)
	a := bundleOf(t, "/1")
	liar := Peer{Name: "n2", Epoch: 1, Revision: 9}
	r := isAlone(t, s, holds(t, s.sign(1, 5, a), a), func() []Peer { return []Peer{liar} })
	f := &follower{agent: r.Agent, distrusted: make(map[string]distrust)}
	begun, asked := s.clock.now(), 0
	for s.clock.now().Sub(begun) < 24*time.Hour {
		for _, node := range f.newer(s.clock.now()) {
			asked++
			f.failed(node, errOlder)
			liar.Revision += uint64(asked % 2)
		}
		s.clock.advance(10 * time.Second)
	}
	if asked < 24 || asked > 30 {
		t.Errorf("it was asked %d times in a day, want about once an hour", asked)
	}
	s.clock.advance(3 * time.Hour) // it claims nothing that is newer
	f.failed(peer.Node{Name: "n2"}, errOlder)
	s.clock.advance(distrustTime)
	if len(f.newer(s.clock.now())) != 1 {
		t.Error("it is not forgiven")
	}
}

func TestAPeerOfAnotherEpochOrAnOlderRevisionIsNotEvenAsked(t *testing.T) {
	s := newScript(t)
	a, b := bundleOf(t, "/1"), bundleOf(t, "/2")
	old, epoch, newer := s.neighbour(t, "n2", s.sign(1, 4, b), b), s.neighbour(t, "n3", s.sign(2, 9, b), b), s.neighbour(t, "n4", s.sign(1, 6, b), b)
	r := isAlone(t, s, holds(t, s.sign(1, 5, a), a), among(old, epoch, newer)).run()
	s.clock.advance(awayTime)
	eventually(t, "revision 6", func() bool { return r.revision() == 6 })
	if old.heads.Load() > 0 || epoch.heads.Load() > 0 {
		t.Errorf("asked: the older %d times, the one of another epoch %d times", old.heads.Load(), epoch.heads.Load())
	}
}

func TestAReleaseThatCannotBeServedIsFetchedOnceAWhile(t *testing.T) {
	s := newScript(t)
	bad, err := bundle.New([]bundle.Resource{{Key: bundle.Key{Kind: "unheard-of", Name: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	n2 := s.neighbour(t, "n2", s.sign(1, 7, bad), bad)
	r := isAlone(t, s, "", among(n2)).run()
	s.clock.advance(emptyAwayTime)
	eventually(t, "a refusal", func() bool { return r.FromPeers()["refused"] == 1 })
	asked := n2.heads.Load()
	eventually(t, "it is asked again", func() bool { s.clock.advance(10 * time.Millisecond); return n2.heads.Load() > asked })
	if n := r.FromPeers()["refused"]; n != 1 {
		t.Errorf("it was fetched %d times", n)
	}
	eventually(t, "it is tried again", func() bool { s.clock.advance(time.Second); return r.FromPeers()["refused"] == 2 })
}

func TestManyPeersWithTheSameCostOneFetch(t *testing.T) {
	s := newScript(t)
	b := bundleOf(t, "/1")
	release := s.sign(1, 7, b)
	var all []*neighbour
	for _, name := range []string{"n2", "n3", "n4", "n5", "n6"} {
		all = append(all, s.neighbour(t, name, release, b))
	}
	r := isAlone(t, s, "", among(all...)).run()
	eventually(t, "revision 7", func() bool { s.clock.advance(100 * time.Millisecond); return r.revision() == 7 })
	eventually(t, "it is counted", func() bool { return r.FromPeers()["served"] == 1 })
	var asked int32
	for _, n := range all {
		asked += n.heads.Load()
	}
	if asked != askedAtOnce {
		t.Errorf("%d peers were asked, want %d", asked, askedAtOnce)
	}
}

func TestAReleaseThatEndedTheProcessIsNotTakenFromAPeer(t *testing.T) {
	s := newScript(t)
	a, b := bundleOf(t, "/1"), bundleOf(t, "/2")
	bad := s.sign(1, 2, b)
	dir := holds(t, s.sign(1, 1, a), a)
	directory, err := bundle.OpenDirectory(dir + "/bundles")
	if err != nil {
		t.Fatal(err)
	}
	if err := directory.SaveTrial(bundle.Trial{Release: bad, Tries: maxCrashes}); err != nil {
		t.Fatal(err)
	}
	r := isAlone(t, s, dir, among(s.neighbour(t, "n2", bad, b))).run()
	s.clock.advance(awayTime)
	eventually(t, "a refusal", func() bool { return r.FromPeers()["refused"] == 1 })
	if r.revision() != 1 {
		t.Errorf("it serves revision %d", r.revision())
	}
}
