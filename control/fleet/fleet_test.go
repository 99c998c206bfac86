package fleet

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/rollout"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

func TestProposalIsPreparedFirstAndCommittedWhenItBecomesTheTarget(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		a, b := &fleettest.Node{Name: "a"}, &fleettest.Node{Name: "b"}
		connect(f, a, b)
		target := newTarget(t, 1, map[string]string{"/": "x"})
		if names := f.Propose(target); !slices.Equal(names, []string{"a", "b"}) {
			t.Fatalf("proposed to %v", names)
		}
		checkProgress(t, f, "a", target, rollout.Prepared)
		checkProgress(t, f, "b", target, rollout.Prepared)
		if a.Applied() != nil {
			t.Fatal("a node serves what is only proposed")
		}
		f.SetTarget(target)
		checkProgress(t, f, "a", target, rollout.Committed)
		for _, n := range f.Nodes() {
			if !n.Serves(target.Release) || !n.Connected || n.Version != "test" {
				t.Errorf("status shows %+v", n)
			}
		}
		if want := []string{"whole", "commit"}; !slices.Equal(a.Log(), want) {
			t.Errorf("control said %v, want %v", a.Log(), want)
		}
	})
}

func TestWithdrawnProposalIsAborted(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		a := &fleettest.Node{Name: "a"}
		connect(f, a)
		target := newTarget(t, 1, map[string]string{"/": "x"})
		f.Propose(target)
		synctest.Wait()
		f.Withdraw(newTarget(t, 9, nil)) // of something else: nothing happens
		checkProgress(t, f, "a", target, rollout.Prepared)
		f.Withdraw(target)
		synctest.Wait()
		if want := []string{"whole", "abort"}; !slices.Equal(a.Log(), want) {
			t.Errorf("control said %v, want %v", a.Log(), want)
		}
		if f.Target() != nil || a.Applied() != nil {
			t.Error("something is served after a proposal was withdrawn")
		}
	})
}

func TestRefusedProposalIsKeptAndNotOfferedAgain(t *testing.T) {
	story(t, Options{RetryRefused: time.Second}, func(t *testing.T, f *Fleet) {
		a := &fleettest.Node{Name: "a", Refuse: func(*fleetv1.Release) []*fleetv1.Refusal {
			return []*fleetv1.Refusal{fleettest.Refusal("server.port", "in use"), fleettest.Refusal("", "no luck")}
		}}
		connect(f, a)
		target := newTarget(t, 3, map[string]string{"/": "x"})
		f.Propose(target)
		synctest.Wait()
		state, note := f.Progress("a", target)
		if state != rollout.Refused || note != "server.port: in use; no luck" {
			t.Fatalf("state %d, note %q", state, note)
		}
		pass(time.Minute)
		f.Withdraw(target)
		synctest.Wait()
		if want := []string{"whole"}; !slices.Equal(a.Log(), want) {
			t.Errorf("control said %v, want %v", a.Log(), want)
		}
		n := f.Nodes()[0]
		if n.Refused != 3 || n.Rejected || n.Reason() != note {
			t.Errorf("status shows %+v, want a refused revision that nobody serves", n)
		}
	})
}

func TestRefusedTargetIsOfferedAgainAfterAWhile(t *testing.T) {
	story(t, Options{RetryRefused: 15 * time.Second}, func(t *testing.T, f *Fleet) {
		var willing atomic.Bool
		a := &fleettest.Node{Name: "a", Refuse: func(*fleetv1.Release) []*fleetv1.Refusal {
			if willing.Load() {
				return nil
			}
			return []*fleetv1.Refusal{fleettest.Refusal("server.port", "in use")}
		}}
		target := newTarget(t, 1, map[string]string{"/": "x"})
		f.SetTarget(target)
		connect(f, a)
		checkProgress(t, f, "a", target, rollout.Refused)
		if n := f.Nodes()[0]; !n.Rejected || n.Refused != 1 || n.Reason() != "server.port: in use" {
			t.Errorf("status shows %+v", n)
		}
		pass(10 * time.Second)
		a.Say(fleettest.Status(&fleetv1.Status{})) // wakes the sender before the time
		synctest.Wait()
		if n := len(a.Log()); n != 1 {
			t.Errorf("offered %d times within the pause, want once", n)
		}
		willing.Store(true)
		pass(20 * time.Second)
		checkProgress(t, f, "a", target, rollout.Committed)
		if n := f.Nodes()[0]; n.Refused != 0 || n.Rejected {
			t.Errorf("status shows %+v after the node took it", n)
		}
	})
}

func TestNewestWinsWhileOneIsOutstanding(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		one, two, three := newTarget(t, 1, map[string]string{"/": "1"}), newTarget(t, 2, map[string]string{"/": "2"}), newTarget(t, 3, map[string]string{"/": "3"})
		f.SetTarget(one)
		c := open(t, f, "a", nil)
		first, _ := hearOffer(t, c)
		f.SetTarget(two) // while the node still prepares the first
		f.SetTarget(three)
		if m := c.Hear(); m.GetAbort().GetNonce() != first.GetNonce() {
			t.Fatalf("got %v, want the abort of the first", m)
		}
		head, _ := hearOffer(t, c)
		if head.GetRelease().GetRevision() != 3 || head.GetNonce() <= first.GetNonce() {
			t.Fatalf("offered %v, want revision 3: there is no queue", head)
		}
		// What the node still says of the first is about something that is over.
		c.Say(fleettest.Prepared(first.GetNonce()))
		c.Say(fleettest.NeedFull(first.GetNonce(), "stale"))
		c.Say(fleettest.Committed(first.GetNonce(), one.Release))
		checkProgress(t, f, "a", three, rollout.Offered)
		silent(t, c)
		c.Say(fleettest.Prepared(head.GetNonce()))
		if m := c.Hear(); m.GetCommit().GetNonce() != head.GetNonce() {
			t.Fatalf("got %v, want a commit", m)
		}
		c.Say(fleettest.Committed(head.GetNonce(), three.Release))
		checkProgress(t, f, "a", three, rollout.Committed)
		c.Break()
	})
}

func TestNextOfferWaitsForTheCommitThatIsUnderWay(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		one, two := newTarget(t, 1, map[string]string{"/": "1"}), newTarget(t, 2, map[string]string{"/": "2"})
		f.SetTarget(one)
		c := open(t, f, "a", nil)
		head, _ := hearOffer(t, c)
		c.Say(fleettest.Prepared(head.GetNonce()))
		if m := c.Hear(); m.GetCommit().GetNonce() != head.GetNonce() {
			t.Fatalf("got %v, want a commit", m)
		}
		f.Propose(two) // while the node commits
		silent(t, c)
		c.Say(fleettest.Committed(head.GetNonce(), one.Release))
		head, delta := hearOffer(t, c)
		if head.GetRelease().GetRevision() != 2 || delta.Base != one.Bundle.Digest() {
			t.Errorf("offered %v, want revision 2 against what the node serves now", head)
		}
		c.Break()
	})
}

func TestCommittedBeforeCommitIsIgnored(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		target := newTarget(t, 1, map[string]string{"/": "x"})
		c := open(t, f, "a", nil)
		f.Propose(target)
		head, _ := hearOffer(t, c)
		c.Say(fleettest.Committed(head.GetNonce(), target.Release))
		checkProgress(t, f, "a", target, rollout.Offered)
		c.Break()
	})
}

func TestNodeThatComesDuringAProposalIsOfferedTheTargetAlone(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		old, proposed := newTarget(t, 1, map[string]string{"/": "1"}), newTarget(t, 2, map[string]string{"/": "2"})
		f.SetTarget(old)
		f.Propose(proposed)
		late := &fleettest.Node{Name: "late"}
		connect(f, late)
		if late.Applied().GetRevision() != 1 {
			t.Fatalf("serves revision %d, want 1", late.Applied().GetRevision())
		}
		checkProgress(t, f, "late", proposed, rollout.Away)
		f.SetTarget(proposed)
		checkProgress(t, f, "late", proposed, rollout.Committed)
	})
}

func TestDeltaAgainstABundleThatIsHeldAndWholeOtherwise(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		one := newTarget(t, 1, map[string]string{"/a": "1", "/b": "1", "/c": "1"})
		two := newTarget(t, 2, map[string]string{"/a": "1", "/b": "2", "/d": "1"})
		f.SetTarget(one)
		f.SetTarget(two)
		c := open(t, f, "knows", one.Release)
		head, delta := hearOffer(t, c)
		if digest := one.Bundle.Digest(); !slices.Equal(head.GetBaseDigest(), digest[:]) {
			t.Fatal("the offer is not against what the node serves")
		}
		if len(delta.Removed) != 1 || len(delta.Upserted) != 2 {
			t.Errorf("the delta removes %v and brings %v", delta.Removed, delta.Upserted)
		}
		if got, err := delta.Apply(one.Bundle); err != nil || got.Digest() != two.Bundle.Digest() {
			t.Errorf("the delta does not lead to the target: %v", err)
		}
		c.Break()

		stranger := open(t, f, "stranger", newTarget(t, 1, map[string]string{"/z": "z"}).Release)
		if head, _ := hearOffer(t, stranger); len(head.GetBaseDigest()) > 0 {
			t.Error("a delta against a bundle that control does not have")
		}
		stranger.Break()
	})
}

func TestNodeThatIsAheadIsNotTakenBack(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		f.SetTarget(newTarget(t, 6, map[string]string{"/": "six"}))
		c := open(t, f, "a", newTarget(t, 7, map[string]string{"/": "seven"}).Release)
		silent(t, c)
		f.SetTarget(newTarget(t, 8, map[string]string{"/": "eight"}))
		if head, _ := hearOffer(t, c); head.GetRelease().GetRevision() != 8 {
			t.Errorf("it is offered %v", head)
		}
		c.Break()
	})
}

func TestOnlyTheLastBundlesAreHeld(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		first := newTarget(t, 1, map[string]string{"/": "first"})
		f.SetTarget(first)
		for i := range uint64(heldBundles) {
			f.SetTarget(newTarget(t, i+2, map[string]string{"/": string(rune('a' + i))}))
		}
		if len(f.held) != heldBundles || f.base(first.Release) != nil {
			t.Errorf("%d bundles are held, the oldest still: %t", len(f.held), f.base(first.Release) != nil)
		}
	})
}

func TestSameContentUnderANewRevisionNeedsNoBodies(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		a := &fleettest.Node{Name: "a"}
		f.SetTarget(newTarget(t, 1, map[string]string{"/": "x"}))
		connect(f, a)
		again := newTarget(t, 2, map[string]string{"/": "x"})
		f.SetTarget(again)
		checkProgress(t, f, "a", again, rollout.Committed)
		if want := []string{"whole", "commit", "delta", "commit"}; !slices.Equal(a.Log(), want) {
			t.Errorf("control said %v, want %v", a.Log(), want)
		}
	})
}

func TestNeedFullGetsTheWholeAndTheWholeOnlyOnce(t *testing.T) {
	story(t, Options{RetryRefused: 15 * time.Second}, func(t *testing.T, f *Fleet) {
		one, two := newTarget(t, 1, map[string]string{"/": "1"}), newTarget(t, 2, map[string]string{"/": "2"})
		f.SetTarget(one)
		f.SetTarget(two)
		c := open(t, f, "a", one.Release)
		head, _ := hearOffer(t, c)
		c.Say(fleettest.NeedFull(head.GetNonce(), "my disk lies"))
		head, delta := hearOffer(t, c)
		if len(head.GetBaseDigest()) > 0 || len(delta.Upserted) != 1 {
			t.Fatal("the second offer is not whole")
		}
		c.Say(fleettest.NeedFull(head.GetNonce(), "still"))
		silent(t, c)
		state, note := f.Progress("a", two)
		if state != rollout.Refused || note != "cannot read the whole bundle: still" {
			t.Fatalf("state %d, note %q: a node must not be sent whole bundles in a circle", state, note)
		}
		// After the pause it is whole again, until one was committed.
		head, _ = hearOffer(t, c)
		if len(head.GetBaseDigest()) > 0 {
			t.Error("the third offer is a delta, though a delta did not fit")
		}
		c.Say(fleettest.Prepared(head.GetNonce()))
		c.Hear()
		c.Say(fleettest.Committed(head.GetNonce(), two.Release))
		checkProgress(t, f, "a", two, rollout.Committed)
		f.SetTarget(newTarget(t, 3, map[string]string{"/": "3"}))
		if head, _ = hearOffer(t, c); len(head.GetBaseDigest()) == 0 {
			t.Error("whole bundles go on after one was committed")
		}
		c.Break()
	})
}

func TestNodeThatLiesAboutWhatItCommittedIsRejected(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		a := &fleettest.Node{Name: "a", Lie: true}
		target := newTarget(t, 1, map[string]string{"/": "x"})
		f.SetTarget(target)
		connect(f, a)
		state, note := f.Progress("a", target)
		if state != rollout.Refused || !strings.Contains(note, "another bundle") {
			t.Errorf("state %d, note %q", state, note)
		}
		if n := f.Nodes()[0]; !n.Rejected || n.Serves(target.Release) {
			t.Errorf("status shows %+v", n)
		}
	})
}

func TestNewerStreamOfANodeEndsTheOlder(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		target := newTarget(t, 1, map[string]string{"/": "x"})
		old := open(t, f, "a", nil)
		f.Propose(target)
		hearOffer(t, old)
		newer := open(t, f, "a", nil)
		if err := old.Wait(); !errors.Is(err, ErrReplaced) {
			t.Errorf("the older stream ended with %v", err)
		}
		checkProgress(t, f, "a", target, rollout.Away) // the newer stream was not asked
		if nodes := f.Nodes(); len(nodes) != 1 || !nodes[0].Connected {
			t.Errorf("status shows %+v", nodes)
		}
		newer.Break()
		newer.Wait()
		if f.Connected("a") {
			t.Error("still connected after its only stream broke")
		}
	})
}

// Two processes with one identity would take the stream from each other for ever; a process that was started anew
// takes it from its dead predecessor as soon as that has been silent for a while.
func TestSecondProcessWithTheIdentityOfALivingOneIsTurnedAway(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		first := open(t, f, "a", nil)
		second := func() error {
			hello := fleettest.Hello("a", nil)
			hello.GetHello().BootId = "another"
			c := fleettest.Open(f.server("a"))
			c.Say(hello)
			if c.Hear() != nil {
				c.Break()
			}
			return c.Wait()
		}
		if err := second(); !errors.Is(err, ErrTwice) {
			t.Errorf("while the first lives, the second ended with %v", err)
		}
		time.Sleep(aliveTime - time.Millisecond)
		first.Say(fleettest.Status(&fleetv1.Status{}))
		synctest.Wait()
		time.Sleep(aliveTime - time.Millisecond)
		if err := second(); !errors.Is(err, ErrTwice) {
			t.Errorf("soon after a message of the first, the second ended with %v", err)
		}
		time.Sleep(time.Millisecond)
		if err := second(); !errors.Is(err, fleettest.ErrBroken) {
			t.Errorf("after the first had fallen silent, the second ended with %v", err)
		}
		if err := first.Wait(); !errors.Is(err, ErrReplaced) {
			t.Errorf("the first ended with %v", err)
		}
	})
}

func TestLeavingIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(Options{})
		defer f.Close()
		lefts := make(chan bool, 2)
		serve := func(s fleettest.Stream) error {
			left, err := f.Serve("a", s)
			lefts <- left
			return err
		}
		a := &fleettest.Node{Name: "a"}
		a.Connect(serve)
		synctest.Wait()
		if err := a.Leave(); err != nil {
			t.Errorf("a stream that its node closed ends with %v", err)
		}
		if n := f.Nodes()[0]; !<-lefts || !n.Left || n.Connected {
			t.Errorf("status shows %+v after the node left", n)
		}
		a.Connect(serve)
		synctest.Wait()
		if n := f.Nodes()[0]; n.Left || !n.Connected {
			t.Errorf("status shows %+v after the node came back", n)
		}
		if err := a.Close(); !errors.Is(err, fleettest.ErrBroken) {
			t.Errorf("a broken stream ends with %v", err)
		}
		if n := f.Nodes()[0]; <-lefts || n.Left {
			t.Errorf("status shows %+v after the stream broke", n)
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(Options{})
		a, quiet := &fleettest.Node{Name: "a"}, fleettest.Open(f.server("quiet"))
		connect(f, a)
		f.Close()
		for name, err := range map[string]error{"a": a.Wait(), "quiet, which never said Hello": quiet.Wait()} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("the stream of %s ended with %v", name, err)
			}
		}
		f.Close()
		late := fleettest.Open(f.server("late"))
		if err := late.Wait(); !errors.Is(err, ErrClosed) {
			t.Errorf("a stream after Close ended with %v", err)
		}
		select {
		case <-f.Closed():
		default:
			t.Error("Closed is not closed")
		}
	})
}

func TestNodesAreSentToOtherControls(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		a, deaf := open(t, f, "a", nil), open(t, f, "deaf", nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		left := make(chan struct{})
		go func() {
			defer close(left)
			f.Redirect(ctx)
		}()
		if m := a.Hear(); m.GetRedirect().GetSpread().AsDuration() != 2*spreadPerNode {
			t.Errorf("heard %v, want to be sent elsewhere, soon", m)
		}
		if err := a.Wait(); !errors.Is(err, ErrClosed) {
			t.Errorf("the stream ended with %v", err)
		}
		late := fleettest.Open(f.server("late"))
		late.Say(fleettest.Hello("late", nil))
		if err := late.Wait(); !errors.Is(err, ErrClosed) {
			t.Errorf("a stream that came later ended with %v", err)
		}
		<-left // though one takes nothing
		f.Close()
		if err := deaf.Wait(); !errors.Is(err, ErrClosed) {
			t.Errorf("the stream of who takes nothing ended with %v", err)
		}
	})
}

func TestStreamBeginsWithHello(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		rude := fleettest.Open(f.server("a"))
		rude.Say(fleettest.Leaving())
		if err := rude.Wait(); !errors.Is(err, ErrHello) {
			t.Errorf("a stream without Hello ended with %v", err)
		}
		mute := fleettest.Open(f.server("a"))
		if err := mute.Wait(); !errors.Is(err, ErrHello) {
			t.Errorf("a stream whose node says nothing ended with %v", err)
		}
		lost := fleettest.Open(f.server("a"))
		lost.Break()
		if err := lost.Wait(); !errors.Is(err, fleettest.ErrBroken) {
			t.Errorf("a stream that broke at once ended with %v", err)
		}
		if nodes := f.Nodes(); len(nodes) != 0 {
			t.Errorf("status shows %+v", nodes)
		}
	})
}

// A node that reads nothing must hold up nobody, and for a while only what is its own.
func TestStreamWhoseSendBlocksHarmsNobodyElse(t *testing.T) {
	story(t, Options{WholeBundles: 2, Stalled: time.Minute}, func(t *testing.T, f *Fleet) {
		target := newTarget(t, 1, map[string]string{"/": strings.Repeat("x", 3*partBytes)})
		var stuck []*fleettest.Conn
		for _, name := range []string{"s1", "s2"} { // as many as there are places
			stuck = append(stuck, open(t, f, name, nil))
		}
		good := &fleettest.Node{Name: "good"}
		connect(f, good)
		f.Propose(target)
		synctest.Wait()
		if state, _ := f.Progress("good", target); state == rollout.Prepared {
			t.Log("the good node was first") // either order is right
		}
		// Everything that only looks goes on at once.
		if len(f.Nodes()) != 3 || len(f.Verdicts()) != 0 {
			t.Error("status does not answer")
		}
		pass(2 * time.Minute)
		checkProgress(t, f, "good", target, rollout.Prepared)
		for _, c := range stuck {
			if err := c.Wait(); !errors.Is(err, ErrStalled) {
				t.Errorf("a stuck stream ended with %v", err)
			}
		}
		checkProgress(t, f, "s1", target, rollout.Away)
	})
}

func TestCloseDoesNotWaitForAStreamWhoseSendBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(Options{})
		f.SetTarget(newTarget(t, 1, map[string]string{"/": "x"}))
		c := open(t, f, "a", nil) // takes nothing after the Welcome
		synctest.Wait()
		before := time.Now()
		f.Close()
		if took := time.Since(before); took > 0 {
			t.Errorf("Close took %s", took)
		}
		c.Wait()
	})
}

func TestStatusIsKept(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		target := newTarget(t, 4, nil)
		c := open(t, f, "a", nil)
		c.Say(fleettest.Status(&fleetv1.Status{
			Applied: target.Release, Listen: "127.0.0.1:8080", GossipAddress: "127.0.0.1:7946", Draining: true,
			Refusals: []*fleetv1.Refusal{fleettest.Refusal("server.port", "in use")},
		}))
		synctest.Wait()
		n := f.Nodes()[0]
		if !n.Serves(target.Release) || n.Listen != "127.0.0.1:8080" || n.Gossip != "127.0.0.1:7946" || !n.Draining || n.Reason() != "server.port: in use" {
			t.Errorf("status shows %+v", n)
		}
		since := n.Since
		pass(time.Hour)
		c.Break()
		c.Wait()
		n = f.Nodes()[0]
		if n.Connected || n.Listen != "127.0.0.1:8080" || !n.Since.Equal(since.Add(time.Hour)) {
			t.Errorf("what is remembered of a node that is gone is %+v", n)
		}
	})
}

func TestNotesOfANodeAreShownAndLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	story(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, func(t *testing.T, f *Fleet) {
		c := open(t, f, "n1", nil)
		for _, notes := range [][]string{{"one"}, {"one"}, {"one", "two"}, nil, {"two"}} {
			c.Say(fleettest.Status(&fleetv1.Status{Notes: notes}))
			synctest.Wait()
			if got := f.Nodes()[0].Notes; !slices.Equal(got, notes) {
				t.Errorf("shown: %q, said: %q", got, notes)
			}
		}
		for note, want := range map[string]int{"note=one": 1, "note=two": 2} {
			if n := strings.Count(log.String(), note); n != want {
				t.Errorf("%s is logged %d times, want %d", note, n, want)
			}
		}
	})
}

func TestVerdictsComeAsChangesOfEachOther(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		a, b := open(t, f, "a", nil), open(t, f, "b", nil)
		say := func(c *fleettest.Conn, full bool, state fleetv1.BackendState, addresses ...string) {
			m := &fleetv1.Status{BackendsFull: full}
			for _, address := range addresses {
				m.Backends = append(m.Backends, &fleetv1.BackendStatus{Route: "/", Address: address, State: state})
			}
			c.Say(fleettest.Status(m))
			synctest.Wait()
		}
		healthy, unhealthy := fleetv1.BackendState_BACKEND_STATE_HEALTHY, fleetv1.BackendState_BACKEND_STATE_UNHEALTHY
		say(a, true, healthy, "x:1", "y:1")
		say(a, false, unhealthy, "y:1")
		say(b, true, healthy, "y:1")
		got := f.Verdicts()
		if x := got[BackendKey{"/", "x:1"}]; len(x) != 1 || x[0].Node != "a" || x[0].Status.GetState() != healthy {
			t.Errorf("x: %v", x)
		}
		if y := got[BackendKey{"/", "y:1"}]; len(y) != 2 || y[0].Status.GetState() != unhealthy || y[1].Node != "b" {
			t.Errorf("y: %v", y)
		}
		say(a, true, healthy, "z:1")
		if got := f.Verdicts(); len(got) != 2 {
			t.Errorf("after a full status there are %v", got)
		}
		a.Break()
		a.Wait()
		if got := f.Verdicts(); len(got) != 1 {
			t.Errorf("after a's stream broke there are %v", got)
		}
		b.Break()
	})
}

func TestWatchersHearNewsAndNothingElse(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		changed, stop := f.Watch()
		heard := func() bool {
			synctest.Wait()
			select {
			case <-changed:
				return true
			default:
				return false
			}
		}
		c := open(t, f, "a", nil)
		if !heard() {
			t.Error("no signal when a node connects")
		}
		status := func(listen string) {
			c.Say(fleettest.Status(&fleetv1.Status{Listen: listen, Refusals: []*fleetv1.Refusal{{Reason: "r"}}}))
		}
		status("x:1")
		if !heard() {
			t.Error("no signal when a node's address changes")
		}
		// A thousand nodes say the same every second.
		status("x:1")
		if heard() {
			t.Error("a signal though nothing changed")
		}
		status("x:2")
		stop()
		if c.Break(); c.Wait() != nil && heard() {
			<-changed // the signal of x:2 may wait there; none may follow
			if heard() {
				t.Error("a signal after stop")
			}
		}
	})
}

func TestWhatANodeMakesControlRememberIsBounded(t *testing.T) {
	s := &session{backends: map[BackendKey]*fleetv1.BackendStatus{}}
	long := strings.Repeat("é", 4<<10)
	m := &fleetv1.Status{Listen: long, GossipAddress: long}
	for range 10 * maxRefusals {
		m.Refusals = append(m.Refusals, fleettest.Refusal(long, long))
		m.Notes = append(m.Notes, long)
	}
	if !s.status(m) {
		t.Error("no news")
	}
	if len(s.node.Listen) > maxText+4 || len(s.node.Gossip) > maxText+4 || len(s.node.Refusals) != maxRefusals || len(s.node.Refusals[0].GetReason()) > maxText+4 {
		t.Error("texts are not bounded")
	}
	if note := s.node.Reason(); len(note) > 3*namedRefusals*maxText || !strings.HasSuffix(note, "and 90 more") {
		t.Errorf("the note has %d bytes and ends %q", len(note), note[len(note)-20:])
	}
	if len(s.node.Notes) != maxNotes || len(s.node.Notes[0]) > maxText+4 {
		t.Errorf("%d notes are kept", len(s.node.Notes))
	}
	// Names of 60 KiB: the bytes are the limit.
	huge := strings.Repeat("n", 60<<10)
	for i := range 3000 {
		s.remember(&fleetv1.BackendStatus{Route: huge, Address: string(rune(i)), Reason: long})
	}
	if s.backendBytes > maxBackendBytes || len(s.backends) == 0 {
		t.Errorf("%d backends hold %d bytes", len(s.backends), s.backendBytes)
	}
	// Saying the same again costs nothing, and a full status begins anew.
	before := s.backendBytes
	s.remember(&fleetv1.BackendStatus{Route: huge, Address: string(rune(0)), Reason: long})
	if s.backendBytes != before {
		t.Errorf("%d bytes, were %d", s.backendBytes, before)
	}
	s.status(&fleetv1.Status{BackendsFull: true})
	if s.backendBytes != 0 || len(s.backends) != 0 {
		t.Errorf("a full status leaves %d backends of %d bytes", len(s.backends), s.backendBytes)
	}
}

func TestNoMessageOfANodeEndsControl(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		f.SetTarget(newTarget(t, 1, nil))
		c := open(t, f, "a", nil)
		head, _ := hearOffer(t, c)
		for _, m := range []*fleetv1.FromNode{
			{}, {Message: &fleetv1.FromNode_Hello{}}, {Message: &fleetv1.FromNode_Prepared{}}, {Message: &fleetv1.FromNode_Committed{}},
			{Message: &fleetv1.FromNode_NeedFull{}}, {Message: &fleetv1.FromNode_Status{}}, {Message: &fleetv1.FromNode_Leaving{}},
			fleettest.Committed(head.GetNonce(), nil), fleettest.Hello("other", nil),
		} {
			if !c.Say(m) {
				t.Fatalf("the stream ended at %v", m)
			}
		}
		c.Break()
	})
}

func TestManyNodesAtOnce(t *testing.T) {
	story(t, Options{WholeBundles: 3}, func(t *testing.T, f *Fleet) {
		var nodes []*fleettest.Node
		for i := range 50 {
			nodes = append(nodes, &fleettest.Node{Name: string(rune('A' + i))})
		}
		one := newTarget(t, 1, map[string]string{"/": strings.Repeat("1", partBytes+1)})
		f.SetTarget(one)
		connect(f, nodes...)
		ctx, cancel := context.WithCancel(t.Context())
		looking := make(chan struct{})
		go func() { // reads go on beside everything
			defer close(looking)
			for ctx.Err() == nil {
				f.Nodes()
				f.Verdicts()
				pass(time.Millisecond)
			}
		}()
		two := newTarget(t, 2, map[string]string{"/": "2"})
		f.Propose(two)
		for i, n := range nodes[:10] { // half of them lose their stream in the middle of it
			if i%2 == 0 {
				n.Close()
			}
		}
		pass(time.Second)
		f.SetTarget(two)
		pass(time.Second)
		cancel()
		<-looking
		for i, n := range nodes {
			want := uint64(2)
			if i < 10 && i%2 == 0 {
				want = 1
			}
			if got := n.Applied().GetRevision(); got != want {
				t.Errorf("node %d serves revision %d, want %d", i, got, want)
			}
		}
	})
}

func TestTargetThatIsToldLateDoesNotTakeTheFleetBack(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		a := &fleettest.Node{Name: "a"}
		connect(f, a)
		one, two := newTarget(t, 1, map[string]string{"/": "1"}), newTarget(t, 2, map[string]string{"/": "2"})
		f.SetTarget(two)
		f.SetTarget(one)
		f.SetTarget(newTarget(t, 2, map[string]string{"/": "2"})) // the same release, read anew
		synctest.Wait()
		if f.Target() != two {
			t.Errorf("the target is revision %d", f.Target().Release.GetRevision())
		}
		if want := []string{"whole", "commit"}; !slices.Equal(a.Log(), want) {
			t.Errorf("control said %v, want %v", a.Log(), want)
		}
	})
}

func TestTargetReadFromTheStoreIsTheProposalThatNodesPrepared(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		a := &fleettest.Node{Name: "a"}
		connect(f, a)
		bodies := map[string]string{"/": "x"}
		proposed := newTarget(t, 1, bodies)
		f.Propose(proposed)
		synctest.Wait()
		f.SetTarget(newTarget(t, 1, bodies))
		checkProgress(t, f, "a", proposed, rollout.Committed)
		if want := []string{"whole", "commit"}; !slices.Equal(a.Log(), want) {
			t.Errorf("control said %v, want %v", a.Log(), want)
		}
	})
}

// FuzzObserve feeds what a node says to a session that waits for answers: whatever comes, control keeps its bounds, and
// believes in no commit that it did not ask for.
func FuzzObserve(f *testing.F) {
	for _, m := range []*fleetv1.FromNode{
		fleettest.Prepared(1), fleettest.Prepared(1, fleettest.Refusal("a", "b")), fleettest.Committed(1, &fleetv1.Release{Revision: 1}),
		fleettest.NeedFull(1, "x"), fleettest.Leaving(), fleettest.Status(&fleetv1.Status{BackendsFull: true, Backends: []*fleetv1.BackendStatus{{Route: "/", Address: "x"}}}),
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &fleetv1.FromNode{}
		if proto.Unmarshal(data, m) != nil {
			t.Skip()
		}
		fleet := newFleet(Options{})
		target := newTarget(t, 1, nil)
		fleet.target = target
		s := &session{name: "a", backends: map[BackendKey]*fleetv1.BackendStatus{}, offer: &offer{nonce: 1, target: target, state: rollout.Offered}}
		if _, tell := fleet.observe(s, m); tell != nil {
			tell()
		}
		if m.GetStatus() == nil && s.applied != nil {
			t.Errorf("%v was believed to be applied without a commit", s.applied)
		}
		size := 0
		for _, b := range s.backends {
			size += proto.Size(b)
		}
		if size != s.backendBytes {
			t.Errorf("backends hold %d bytes, counted are %d", size, s.backendBytes)
		}
		if len(fleet.view(s).Reason()) > 4*namedRefusals*maxText {
			t.Error("the reason is not bounded")
		}
	})
}
