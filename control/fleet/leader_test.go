package fleet

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/rollout"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	replicav1 "github.com/pyserve/pyserve/proto/pyserve/replica/v1"
)

var errCut = errors.New("cut")

// link is a follower's stream in memory; each end implements one side of gRPC's.
type link struct {
	up   chan *replicav1.FromFollower
	down chan *replicav1.FromLeader
	ctx  context.Context
	cut  context.CancelCauseFunc
	done chan struct{} // both sides have returned
}

type leaderEnd struct{ *link }

func (e leaderEnd) Context() context.Context { return e.ctx }

func (e leaderEnd) Send(m *replicav1.FromLeader) error {
	select {
	case e.down <- m:
		return nil
	case <-e.ctx.Done():
		return context.Cause(e.ctx)
	}
}

func (e leaderEnd) Recv() (*replicav1.FromFollower, error) {
	select {
	case m := <-e.up:
		return m, nil
	case <-e.ctx.Done():
		return nil, context.Cause(e.ctx)
	}
}

type followerEnd struct{ *link }

func (e followerEnd) Send(m *replicav1.FromFollower) error {
	select {
	case e.up <- m:
		return nil
	case <-e.ctx.Done():
		return context.Cause(e.ctx)
	}
}

func (e followerEnd) Recv() (*replicav1.FromLeader, error) {
	select {
	case m := <-e.down:
		return m, nil
	case <-e.ctx.Done():
		return nil, context.Cause(e.ctx)
	}
}

// attend joins two fleets until break is called.
func attend(leader, follower *Fleet, name string) *link {
	l := &link{up: make(chan *replicav1.FromFollower), down: make(chan *replicav1.FromLeader), done: make(chan struct{})}
	l.ctx, l.cut = context.WithCancelCause(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		l.cut(leader.ServeFollower(name, leaderEnd{l}))
	}()
	go func() {
		defer close(l.done)
		l.cut(follower.Follow(l.ctx, name+"/1", func() uint64 { return 9 }, followerEnd{l}))
		<-served
	}()
	return l
}

func (l *link) end() {
	l.cut(errCut)
	<-l.done
}

// pair runs a test with a leader and a follower that attends.
func pair(t *testing.T, tell func(t *testing.T, leader, follower *Fleet, l *link)) {
	story(t, Options{}, func(t *testing.T, leader *Fleet) {
		follower := newFleet(Options{})
		defer follower.Close()
		l := attend(leader, follower, "c2")
		defer l.end()
		tell(t, leader, follower, l)
	})
}

func connectTo(f *Fleet, nodes ...*fleettest.Node) {
	for _, n := range nodes {
		n.Connect(f.server(n.Name))
	}
	synctest.Wait()
}

// settle lets everything happen that is under way, reports at their pace included.
func settle() {
	pass(20 * time.Millisecond)
	synctest.Wait()
}

func TestNodesOfAFollowerTakePart(t *testing.T) {
	pair(t, func(t *testing.T, leader, follower *Fleet, _ *link) {
		here, there := &fleettest.Node{Name: "here"}, &fleettest.Node{Name: "there"}
		connectTo(leader, here)
		connectTo(follower, there)
		defer here.Close()
		defer there.Close()
		settle()
		one := newTarget(t, 1, map[string]string{"/": "one"})
		if names := leader.Propose(one); !slices.Equal(names, []string{"here", "there"}) {
			t.Fatalf("asked are %v", names)
		}
		settle()
		checkProgress(t, leader, "here", one, rollout.Prepared)
		checkProgress(t, leader, "there", one, rollout.Prepared)
		if there.Applied() != nil {
			t.Error("it serves what is only proposed")
		}
		leader.SetTarget(one)
		follower.SetTarget(&Target{Release: one.Release, Bundle: one.Bundle}) // as the log brings it
		settle()
		checkProgress(t, leader, "there", one, rollout.Committed)
		if log := there.Log(); !slices.Equal(log, []string{"whole", "commit"}) {
			t.Errorf("it was told %v", log)
		}
	})
}

func TestProposalWaitsAtAFollowerForItsBase(t *testing.T) {
	pair(t, func(t *testing.T, leader, follower *Fleet, _ *link) {
		there := &fleettest.Node{Name: "there"}
		connectTo(follower, there)
		defer there.Close()
		settle()
		one, two := newTarget(t, 1, map[string]string{"/": "one"}), newTarget(t, 2, map[string]string{"/": "two"})
		leader.SetTarget(one)
		leader.Propose(two)
		settle()
		checkProgress(t, leader, "there", two, rollout.Offered)
		follower.SetTarget(one)
		settle()
		checkProgress(t, leader, "there", two, rollout.Prepared)
	})
}

func TestRefusalAtAFollowerIsKnownWithItsReason(t *testing.T) {
	pair(t, func(t *testing.T, leader, follower *Fleet, _ *link) {
		there := &fleettest.Node{Name: "there", Refuse: func(*fleetv1.Release) []*fleetv1.Refusal {
			return []*fleetv1.Refusal{fleettest.Refusal("server.port", "in use")}
		}}
		connectTo(follower, there)
		defer there.Close()
		settle()
		one := newTarget(t, 1, map[string]string{"/": "one"})
		leader.Propose(one)
		settle()
		if state, note := leader.Progress("there", one); state != rollout.Refused || note != "server.port: in use" {
			t.Errorf("it is %d: %s", state, note)
		}
		leader.Withdraw(one)
		settle()
		again := newTarget(t, 1, map[string]string{"/": "one"})
		there.SetRefuse(nil)
		leader.Propose(again)
		settle()
		checkProgress(t, leader, "there", again, rollout.Prepared)
	})
}

func TestNodesOfAFollowerThatDiesAreAwayAndItIsNamed(t *testing.T) {
	pair(t, func(t *testing.T, leader, follower *Fleet, l *link) {
		there := &fleettest.Node{Name: "there", Mute: true}
		connectTo(follower, there)
		defer there.Close()
		settle()
		one := newTarget(t, 1, map[string]string{"/": "one"})
		leader.Propose(one)
		settle()
		l.end()
		synctest.Wait()
		if state, note := leader.Progress("there", one); state != rollout.Away || !strings.Contains(note, "the control c2, which is gone") {
			t.Errorf("it is %d: %s", state, note)
		}
		if nodes := leader.Nodes(); len(nodes) != 1 || nodes[0].Connected || nodes[0].Lost != "c2" {
			t.Errorf("the nodes are %+v", nodes)
		}
		synctest.Wait()
		if log := there.Log(); len(log) != 2 || log[1] != "abort" {
			t.Errorf("without a leader it was told %v", log)
		}
	})
}

func TestNodeThatMovesIsOneNode(t *testing.T) {
	pair(t, func(t *testing.T, leader, follower *Fleet, _ *link) {
		first, second := &fleettest.Node{Name: "a"}, &fleettest.Node{Name: "a"} // of one process: the boot id is the same
		connectTo(leader, first)
		defer first.Close()
		settle()
		connectTo(follower, second)
		settle()
		if err := first.Wait(); !errors.Is(err, ErrReplaced) {
			t.Errorf("the older stream ended by %v", err)
		}
		if nodes := leader.Nodes(); len(nodes) != 1 || !nodes[0].Connected {
			t.Errorf("the nodes are %+v", nodes)
		}
		back := &fleettest.Node{Name: "a"}
		connectTo(leader, back)
		defer back.Close()
		settle()
		if err := second.Wait(); !errors.Is(err, ErrReplaced) {
			t.Errorf("the stream at the follower ended by %v", err)
		}
		if nodes := leader.Nodes(); len(nodes) != 1 || !nodes[0].Connected {
			t.Errorf("the nodes are %+v", nodes)
		}
	})
}

func TestCopiedIdentityIsTurnedAwayAtAnotherControl(t *testing.T) {
	pair(t, func(t *testing.T, leader, follower *Fleet, _ *link) {
		first := &fleettest.Node{Name: "a"}
		connectTo(leader, first)
		defer first.Close()
		settle()
		copied := fleettest.Open(follower.server("a"))
		copied.Say(&fleetv1.FromNode{Message: &fleetv1.FromNode_Hello{Hello: &fleetv1.Hello{Name: "a", BootId: "another"}}})
		copied.Hear()
		settle()
		if err := copied.Wait(); !errors.Is(err, ErrTwice) {
			t.Errorf("its stream ended by %v", err)
		}
	})
}

// A machine that lost its power and is back: its connection to the other control stands until keepalive finds out.
func TestNodeThatComesBackIsLetInThoughItsSilentStreamStandsAtAnotherControl(t *testing.T) {
	for name, tt := range map[string]struct{ from, to int }{"follower to leader": {1, 0}, "leader to follower": {0, 1}, "follower to follower": {1, 2}} {
		t.Run(name, func(t *testing.T) {
			pair(t, func(t *testing.T, leader, follower *Fleet, _ *link) {
				third := newFleet(Options{})
				defer third.Close()
				l := attend(leader, third, "c3")
				defer l.end()
				fleets := []*Fleet{leader, follower, third}
				lost := &fleettest.Node{Name: "a"}
				connectTo(fleets[tt.from], lost)
				pass(aliveTime + 2*attendInterval)
				back := fleettest.Open(fleets[tt.to].server("a"))
				back.Say(&fleetv1.FromNode{Message: &fleetv1.FromNode_Hello{Hello: &fleetv1.Hello{Name: "a", BootId: "another"}}})
				if m := back.Hear(); m.GetWelcome() == nil {
					t.Errorf("heard %v", m)
				}
				if err := lost.Wait(); !errors.Is(err, ErrReplaced) {
					t.Errorf("the silent stream ended by %v", err)
				}
				settle()
				if !leader.Connected("a") {
					t.Error("the node is away")
				}
				select {
				case <-back.Over():
					t.Errorf("the new stream ended by %v", back.Wait())
				default:
					back.Break()
				}
			})
		})
	}
}

func TestCopiedIdentityIsTurnedAwayAtTheLeader(t *testing.T) {
	pair(t, func(t *testing.T, leader, follower *Fleet, _ *link) {
		first := &fleettest.Node{Name: "a"}
		connectTo(follower, first)
		defer first.Close()
		for range 8 { // it lives, and says so
			pass(time.Second)
			first.Say(fleettest.Status(&fleetv1.Status{}))
		}
		settle()
		copied := fleettest.Open(leader.server("a"))
		copied.Say(&fleetv1.FromNode{Message: &fleetv1.FromNode_Hello{Hello: &fleetv1.Hello{Name: "a", BootId: "another"}}})
		if err := copied.Wait(); !errors.Is(err, ErrTwice) {
			t.Errorf("the second process's stream ended by %v", err)
		}
		settle()
		if !leader.Connected("a") {
			t.Error("the first process is away")
		}
	})
}

func TestNodeThatIsForgottenAtAFollowerIsForgotten(t *testing.T) {
	pair(t, func(t *testing.T, leader, follower *Fleet, _ *link) {
		there := &fleettest.Node{Name: "there"}
		connectTo(follower, there)
		settle()
		there.Close()
		settle()
		if nodes := leader.Nodes(); len(nodes) != 1 || nodes[0].Connected {
			t.Errorf("the nodes are %+v", nodes)
		}
		follower.Forget("there")
		settle()
		if nodes := leader.Nodes(); len(nodes) != 0 {
			t.Errorf("the nodes are %+v", nodes)
		}
	})
}

func TestNodeOfAFollowerIsAsked(t *testing.T) {
	pair(t, func(t *testing.T, leader, follower *Fleet, _ *link) {
		c := fleettest.Open(follower.server("there"))
		c.Say(fleettest.Hello("there", nil))
		c.Hear()
		settle()
		answers := make(chan *fleetv1.Answer, 1)
		go func() {
			answer, err := leader.Ask(t.Context(), "there", &fleetv1.Question{Head: []byte("GET / HTTP/1.1")})
			if err != nil {
				t.Error(err)
			}
			answers <- answer
		}()
		question := c.Hear().GetQuestion()
		if string(question.GetHead()) != "GET / HTTP/1.1" {
			t.Fatalf("it is asked %v", question)
		}
		c.Say(&fleetv1.FromNode{Message: &fleetv1.FromNode_Answer{Answer: &fleetv1.Answer{Id: question.GetId(), Route: "/a"}}})
		if answer := <-answers; answer.GetRoute() != "/a" {
			t.Errorf("the answer is %v", answer)
		}
		c.Break()
		settle()
		if _, err := leader.Ask(t.Context(), "there", &fleetv1.Question{}); !errors.Is(err, ErrNotConnected) {
			t.Errorf("got %v", err)
		}
	})
}

func TestFollowerThatIsReplacedOrDismissedHearsWhy(t *testing.T) {
	pair(t, func(t *testing.T, leader, follower *Fleet, l *link) {
		settle()
		if f := leader.Followers(); len(f) != 1 || f[0].ID != "c2/1" || f[0].Applied != 9 || !f[0].Complete {
			t.Errorf("the followers are %+v", f)
		}
		newer := attend(leader, follower, "c2")
		settle()
		if cause := context.Cause(l.ctx); !errors.Is(cause, ErrSuperseded) {
			t.Errorf("the older stream ended by %v", cause)
		}
		leader.DismissFollowers()
		<-newer.done
		if cause := context.Cause(newer.ctx); !errors.Is(cause, ErrDismissed) || len(leader.Followers()) != 0 {
			t.Errorf("the stream ended by %v", cause)
		}
	})
}

func TestWhatANodeSaysFitsIntoAMessageToTheLeader(t *testing.T) {
	const most = 4 << 20 // what a control takes in one message
	pair(t, func(t *testing.T, leader, follower *Fleet, l *link) {
		long := make([]byte, 3<<20)
		huge := &fleetv1.Release{Epoch: 1, Revision: 1, Digest: long, Signature: long}
		c := fleettest.Open(follower.server("there"))
		defer c.Break()
		c.Say(&fleetv1.FromNode{Message: &fleetv1.FromNode_Hello{Hello: &fleetv1.Hello{
			BootId: strings.Repeat("b", 3<<20), Version: string(long), Applied: huge,
		}}})
		c.Hear()
		c.Say(fleettest.Status(&fleetv1.Status{Applied: huge, Authority: long, Listen: string(long), Notes: []string{string(long), "x"}}))
		settle()
		for _, report := range follower.reports(nil, 0) {
			if size := proto.Size(report); size > most/4 {
				t.Errorf("what is told of %s has %d bytes", report.GetName(), size)
			}
		}
		wait := asking(t.Context(), leader, "there", "GET / HTTP/1.1")
		id := c.Hear().GetQuestion().GetId()
		c.Say(&fleetv1.FromNode{Message: &fleetv1.FromNode_Answer{Answer: &fleetv1.Answer{Id: id, Route: string(long)}}})
		if a, err := wait(); err != nil || proto.Size(a) > most/2 || a.GetReason() == "" {
			t.Errorf("the answer has %d bytes, %v", proto.Size(a), err)
		}
	})
}
