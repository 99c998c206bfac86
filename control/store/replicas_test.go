package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

func TestJoinedStoreHoldsEverything(t *testing.T) {
	c := newTrio(t, "c1")
	first := c.get("c1")
	for _, text := range []string{"one", "two", "three"} {
		mustCommit(t, first, map[string]string{"a": text}, text)
	}
	if err := first.PutNode(t.Context(), Node{Name: "n1", Enrolled: someTime}); err != nil {
		t.Fatal(err)
	}
	c.join("c2")
	c.join("c3")
	for _, name := range []string{"c2", "c3"} {
		s := c.get(name)
		if s.Active().Number != 3 || string(s.Active().Document) != "three" || len(s.Nodes()) != 1 || len(s.Revisions()) != 3 {
			t.Errorf("%s is at %+v", name, s.Active())
		}
		if leader, ok := s.Leader(); !ok || leader.Name != "c1" || leader.Endpoint != "c1:2" {
			t.Errorf("%s says that %+v leads", name, leader)
		}
	}
	if voters := c.leader().Voters(); len(voters) != 3 {
		t.Errorf("the voters are %v", voters)
	}
}

// TestJoinAndReturnBySnapshot has more history than the log keeps: a joiner, and one that was away, are sent the state.
func TestJoinAndReturnBySnapshot(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	c.stop("c3")
	for i := range 3 * snapshotEntries {
		c.commit(map[string]string{"a": fmt.Sprint(i)}, fmt.Sprint(i))
	}
	leader := c.leader()
	if err := leader.engine.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if first, err := leader.storage.FirstIndex(); err != nil || first < snapshotEntries {
		t.Fatalf("the log still begins at %d, %v", first, err)
	}
	last := leader.Active().Number
	fresh := c.join("c4")
	if fresh.Active() == nil || fresh.Active().Number != last || len(fresh.Servers()) != 4 {
		t.Errorf("the joiner is at %+v with %v", fresh.Active(), fresh.Servers())
	}
	back := c.open("c3", "")
	eventually(t, "c3 has caught up", func() bool { return back.Active() != nil && back.Active().Number == last })
	// What came by a snapshot is there after a start, too.
	c.stop("c4")
	again := c.open("c4", "")
	eventually(t, "c4 is as it was", func() bool { return again.Active() != nil && again.Active().Number == last })
	c.commit(map[string]string{"a": "more"}, "more")
	eventually(t, "c4 follows", func() bool { return again.Active().Number == last+1 })
}

func TestWriteAtAFollowerIsDoneByTheLeader(t *testing.T) {
	c := newTrio(t, "c1", "c2")
	if err := c.get("c2").PutNode(t.Context(), Node{Name: "n1", Enrolled: someTime}); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.get("c1").Node("n1"); !ok {
		t.Error("the leader does not know the node")
	}
}

func TestAnotherLeadsWhenTheLeaderIsGone(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	c.commit(map[string]string{"a": "one"}, "one")
	c.stop("c1")
	next := c.leader()
	if next.Active().Number != 1 {
		t.Fatalf("the new leader is at %+v", next.Active())
	}
	c.commit(map[string]string{"a": "two"}, "two")
	back := c.open("c1", "")
	eventually(t, "c1 caught up", func() bool { return back.Active() != nil && back.Active().Number == 2 })
	if back.Leads() {
		t.Error("who came back leads")
	}
}

func TestHandOverLeavesAtOnce(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	old := c.get("c1")
	if err := old.HandOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	if next := c.leader(); next == old {
		t.Error("the same one leads")
	}
	if err := old.HandOver(t.Context()); err != nil {
		t.Errorf("who does not lead: %v", err)
	}
}

func TestHandOverFindsWhoeverIsThere(t *testing.T) {
	for _, gone := range []string{"c2", "c3"} {
		t.Run(gone, func(t *testing.T) {
			c := newTrio(t, "c1", "c2", "c3")
			c.commit(map[string]string{"a": "one"}, "one")
			old := c.get("c1")
			c.stop(gone)
			if err := old.HandOver(t.Context()); err != nil {
				t.Fatal(err)
			}
			if next := c.leader(); next == old {
				t.Error("the same one leads")
			}
		})
	}
}

func TestWithoutAMajorityReadsGoOnAndWritesFail(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	c.commit(map[string]string{"a": "one"}, "one")
	eventually(t, "c2 has it", func() bool { return c.get("c2").Active() != nil })
	c.stop("c1")
	c.stop("c3")
	left := c.get("c2")
	eventually(t, "c2 knows that nobody leads", func() bool { _, ok := left.Leader(); return !ok })
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := left.PutNode(ctx, Node{Name: "n1", Enrolled: someTime})
	if err == nil || !strings.Contains(err.Error(), "no control leads, so nothing was changed") {
		t.Errorf("got %v", err)
	}
	if left.Active().Number != 1 {
		t.Errorf("it is at %+v", left.Active())
	}
}

func TestFreshDiskReplacesTheServerOfItsName(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	old := c.get("c3").ID()
	c.stop("c3")
	delete(c.dirs, "c3")
	fresh := c.join("c3")
	if fresh.ID() == old {
		t.Error("an empty disk votes as the one that was lost")
	}
	if servers := c.leader().Servers(); len(servers) != 3 {
		t.Errorf("the servers are %+v", servers)
	}
	if voters := c.leader().Voters(); len(voters) != 3 {
		t.Errorf("the voters are %v", voters)
	}
}

func TestRemovedServerNoLongerCounts(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	leader := c.leader()
	c.stop("c2")
	c.stop("c3")
	c.open("c2", "")
	eventually(t, "c3 is removed", func() bool { return c.leader().Remove(t.Context(), "c3") == nil })
	if err := c.leader().Remove(t.Context(), "c3"); !errors.Is(err, ErrNoServer) {
		t.Errorf("a second time: %v", err)
	}
	if err := leader.Remove(t.Context(), c.nameOf(c.leader())); err == nil {
		t.Error("the leader removed itself")
	}
	if voters := c.leader().Voters(); len(voters) != 2 {
		t.Errorf("the voters are %v", voters)
	}
}

func TestOneNameIsOneServer(t *testing.T) {
	c := newTrio(t, "c1")
	err := c.get("c1").PutServer(t.Context(), c.server("c1", "other"))
	if err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("got %v", err)
	}
}

func TestRestartOfOneOfSeveralNeedsNoToken(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	for name := range c.dirs {
		c.stop(name)
	}
	done := make(chan struct{})
	for name := range c.dirs {
		go func() {
			defer func() { done <- struct{}{} }()
			c.open(name, "")
		}()
	}
	for range c.dirs {
		<-done
	}
	c.commit(map[string]string{"a": "one"}, "one")
}

func TestTakenAddressStopsTheJoinAndNothingElse(t *testing.T) {
	c := newTrio(t, "c1")
	l, err := c.fabric.network("c1:1").Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := c.get("c1").Admit(t.Context(), c.server("c2", "c2/1")); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v", err)
	}
	mustCommit(t, c.get("c1"), map[string]string{"a": "one"}, "one")
}

func TestSameRequestCommitsOnce(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	p := proposal(c.leader(), routes(t, map[string]string{"a": "one"}), "one")
	p.Request = NewRequestID()
	first, err := c.leader().Commit(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	c.commit(map[string]string{"a": "two"}, "two")
	c.stop(c.nameOf(c.leader()))
	again, err := c.leader().Commit(t.Context(), p)
	if err != nil || again.Number != first.Number || again.Active {
		t.Errorf("got %+v, %v", again, err)
	}
	if n := len(c.leader().Revisions()); n != 2 {
		t.Errorf("there are %d revisions", n)
	}
}

func TestResultsAreForgottenByCount(t *testing.T) {
	var r results
	first := NewRequestID()
	r.add(result{first, 1})
	r.add(result{first, 2})
	if r.known[first] != 1 || len(r.order) != 1 {
		t.Errorf("an id that was known is kept as %d", r.known[first])
	}
	for i := range maxResults {
		r.add(result{NewRequestID(), uint64(i)})
	}
	if _, known := r.known[first]; known || len(r.order) != maxResults || len(r.known) != maxResults {
		t.Errorf("%d are kept, the first among them: %v", len(r.order), known)
	}
}

func TestServersAndResultsSurviveASnapshot(t *testing.T) {
	s := newState()
	for _, name := range []string{"c1", "c2"} {
		server := Server{ID: name + "/1", Name: name, RaftAddress: "a:1", Endpoint: "a:2", GossipAddress: "a:3", Version: "v", Joined: someTime}
		if err := s.putServer(server.toProto()); err != nil {
			t.Fatal(err)
		}
	}
	done := result{NewRequestID(), 7}
	s.results.add(done)
	back, err := readSnapshot(bytes.NewReader(written(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	if len(back.servers) != 2 || back.servers["c2/1"] != s.servers["c2/1"] {
		t.Errorf("the servers are %+v", back.servers)
	}
	if back.results.known[done.id] != 7 || len(back.results.order) != 1 {
		t.Errorf("the results are %+v", back.results)
	}
}

func TestAloneIsTheWayOutOfALostMajority(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	c.commit(map[string]string{"a": "one"}, "one")
	eventually(t, "c2 has it", func() bool { return c.get("c2").Active() != nil })
	for _, name := range []string{"c1", "c2", "c3"} {
		c.stop(name)
	}
	o := c.options("c2", "")
	o.Alone = true
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	c.stores["c2"] = s
	if voters := s.Voters(); len(voters) != 1 || voters[0] != s.ID() {
		t.Errorf("the voters are %v", voters)
	}
	err = s.RaiseEpoch(t.Context(), func(epoch uint64, active *Snapshot) *fleetv1.Release {
		return releaseOf(epoch, active.Number, active.Bundle)
	})
	if err != nil {
		t.Fatal(err)
	}
	if active := s.Active(); active.Release.GetEpoch() != 2 || active.Number != 1 {
		t.Errorf("active is %+v", active.Release)
	}
	mustCommit(t, s, map[string]string{"a": "two"}, "two")
	// Those that are left join again with empty disks.
	delete(c.dirs, "c1")
	if fresh := c.join("c1"); fresh.Active().Number != 2 {
		t.Errorf("c1 is at %+v", fresh.Active())
	}
}

func TestEpochIsOnlyRaised(t *testing.T) {
	s := newState()
	b := routes(t, map[string]string{"a": "one"})
	if err := s.apply(commitOf(t, s, b, "")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*storev1.RaiseEpoch{
		"the same":       {Epoch: 1, Release: releaseOf(1, 1, b)},
		"no release":     {Epoch: 2},
		"another one":    {Epoch: 2, Release: releaseOf(2, 2, b)},
		"another bundle": {Epoch: 2, Release: releaseOf(2, 1, routes(t, nil))},
		"of another":     {Epoch: 2, Release: releaseOf(3, 1, b)},
	} {
		if err := s.apply(&storev1.Command{Action: &storev1.Command_RaiseEpoch{RaiseEpoch: c}}); err == nil {
			t.Errorf("%s: raised", name)
		}
	}
	if s.epoch != 1 || s.active.Release.GetEpoch() != 1 {
		t.Errorf("the epoch is %d", s.epoch)
	}
}

// slowDisk takes as long for a write as it is told.
type slowDisk struct {
	disk
	takes time.Duration
}

func (d *slowDisk) SetUint64([]byte, uint64) error {
	time.Sleep(d.takes)
	return nil
}

func (d *slowDisk) GetUint64([]byte) (uint64, error) { return 0, errors.New("not found") }
func (d *slowDisk) Close() error                     { return nil }

// writeSlowly writes often to a disk that takes so long, and gives what was told of it.
func writeSlowly(t *testing.T, takes time.Duration) (told []error) {
	synctest.Test(t, func(t *testing.T) {
		s := newStorage(&slowDisk{takes: takes}, Options{Hung: func(err error) { told = append(told, err) }, HungAfter: 10 * time.Second})
		for range 10 {
			if err := s.SetUint64([]byte("LastVoteTerm"), 1); err != nil {
				t.Error(err)
			}
		}
		close(s.closing)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return told
}

func TestDiskThatHangsIsToldOnce(t *testing.T) {
	told := writeSlowly(t, 12*time.Second)
	if len(told) != 1 || !strings.Contains(told[0].Error(), "has not taken a write for 10s") {
		t.Errorf("told %v", told)
	}
}

func TestDiskThatIsSlowIsNotTold(t *testing.T) {
	if told := writeSlowly(t, 9*time.Second); len(told) > 0 {
		t.Errorf("told %v", told)
	}
}

func TestStartWithoutALeaderShowsWhatWasCommitted(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	mustCommit(t, c.leader(), map[string]string{"a": "one"}, "one")
	if err := c.leader().PutNode(t.Context(), Node{Name: "n1", Enrolled: someTime}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c3 has it", func() bool { _, ok := c.get("c3").Node("n1"); return ok })
	for _, name := range []string{"c1", "c2", "c3"} {
		c.stop(name)
	}
	o := c.options("c3", "")
	o.Logger = slog.New(slog.DiscardHandler)
	s := &Store{options: o, now: o.Now, logger: o.Logger}
	defer s.Close()
	nobodyLeads, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.open(nobodyLeads); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, known := s.Node("n1"); !known || s.Active() == nil || s.Active().Number != 1 {
		t.Errorf("it shows %v, and the node %t", s.Active(), known)
	}
}
