package fleet

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyserve/pyserve/control/fleettest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// asking asks in a goroutine of its own; wait gives what came of it.
func asking(ctx context.Context, f *Fleet, name, head string) (wait func() (*fleetv1.Answer, error)) {
	type result struct {
		a   *fleetv1.Answer
		err error
	}
	done := make(chan result, 1)
	go func() {
		a, err := f.Ask(ctx, name, &fleetv1.Question{Head: []byte(head)})
		done <- result{a, err}
	}()
	return func() (*fleetv1.Answer, error) {
		r := <-done
		return r.a, r.err
	}
}

func answer(id uint64, reason string) *fleetv1.FromNode {
	return &fleetv1.FromNode{Message: &fleetv1.FromNode_Answer{Answer: &fleetv1.Answer{
		Id: id, Reason: reason, Backends: make([]*fleetv1.BackendStatus, maxAnswerBackends+1),
	}}}
}

func TestAQuestionIsAnsweredByItsId(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		c := open(t, f, "n1", nil)
		defer c.Break()
		first := asking(t.Context(), f, "n1", "one")
		q1 := c.Hear().GetQuestion()
		second := asking(t.Context(), f, "n1", "two")
		q2 := c.Hear().GetQuestion()
		if string(q1.GetHead()) != "one" || string(q2.GetHead()) != "two" || q1.GetId() == q2.GetId() {
			t.Fatalf("the questions are %v and %v", q1, q2)
		}
		c.Say(answer(q2.GetId()+9, "of nothing"))
		c.Say(answer(q2.GetId(), "b"))
		c.Say(answer(q2.GetId(), "b again"))
		c.Say(answer(q1.GetId(), "a"))
		for want, wait := range map[string]func() (*fleetv1.Answer, error){"a": first, "b": second} {
			if a, err := wait(); err != nil || a.GetReason() != want || len(a.GetBackends()) != maxAnswerBackends {
				t.Errorf("got %q with %d backends, %v, want %q", a.GetReason(), len(a.GetBackends()), err, want)
			}
		}
	})
}

func TestAQuestionToANodeThatGoesAway(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		if _, err := f.Ask(t.Context(), "n1", &fleetv1.Question{}); !errors.Is(err, ErrNotConnected) {
			t.Errorf("the error is %v", err)
		}
		c := open(t, f, "n1", nil)
		wait := asking(t.Context(), f, "n1", "one")
		c.Hear()
		c.Break()
		if _, err := wait(); !errors.Is(err, ErrGone) {
			t.Errorf("the error is %v", err)
		}
	})
}

func TestANodeThatDoesNotAnswerIsNotWaitedForForEver(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		c := open(t, f, "n1", nil)
		defer c.Break()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wait := asking(ctx, f, "n1", "one")
		id := c.Hear().GetQuestion().GetId()
		if _, err := wait(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the error is %v", err)
		}
		c.Say(answer(id, "too late")) // to nobody
		again := asking(t.Context(), f, "n1", "two")
		c.Say(answer(c.Hear().GetQuestion().GetId(), "in time"))
		if a, err := again(); err != nil || a.GetReason() != "in time" {
			t.Errorf("got %v, %v", a, err)
		}
	})
}

func TestANodeIsNotAskedTooMuchAtATime(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		c := open(t, f, "n1", nil)
		var waits []func() (*fleetv1.Answer, error)
		for range maxQuestions {
			waits = append(waits, asking(t.Context(), f, "n1", "q"))
		}
		synctest.Wait()
		if _, err := f.Ask(t.Context(), "n1", &fleetv1.Question{}); !errors.Is(err, ErrBusy) {
			t.Errorf("the error is %v", err)
		}
		c.Break()
		for _, wait := range waits {
			if _, err := wait(); err == nil {
				t.Error("a question was answered by nobody")
			}
		}
	})
}

// An apply is not held up by somebody who asks, and asking not by an apply.
func TestOffersComeBeforeQuestions(t *testing.T) {
	story(t, Options{}, func(t *testing.T, f *Fleet) {
		c := open(t, f, "n1", nil)
		defer c.Break()
		first := asking(t.Context(), f, "n1", "first")
		synctest.Wait() // the sender is at the first question
		second := asking(t.Context(), f, "n1", "second")
		synctest.Wait()
		f.SetTarget(newTarget(t, 1, map[string]string{"a": "1"}))
		c.Say(answer(c.Hear().GetQuestion().GetId(), ""))
		head, _ := hearOffer(t, c)
		c.Say(answer(c.Hear().GetQuestion().GetId(), ""))
		c.Say(fleettest.Prepared(head.GetNonce()))
		if m := c.Hear(); m.GetCommit().GetNonce() != head.GetNonce() {
			t.Errorf("control says %v", m)
		}
		for _, wait := range []func() (*fleetv1.Answer, error){first, second} {
			if _, err := wait(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestQuestionsEndWithTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(Options{})
		c := open(t, f, "n1", nil)
		wait := asking(t.Context(), f, "n1", "q")
		c.Hear()
		f.Close()
		if _, err := wait(); err == nil {
			t.Error("a question outlives the fleet")
		}
	})
}
