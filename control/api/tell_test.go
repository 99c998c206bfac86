package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func changeOf(name string) *operatorv1.ApplyEvent {
	return &operatorv1.ApplyEvent{Event: &operatorv1.ApplyEvent_Change{Change: &operatorv1.Change{Kind: "route", Name: name}}}
}

var theResult = &operatorv1.ApplyEvent{Event: &operatorv1.ApplyEvent_Result{Result: &operatorv1.ApplyResult{Revision: 7}}}

func TestEverythingIsToldInOrderAndThenItIsOver(t *testing.T) {
	var got []string
	to := newTeller(t.Context(), func(e *operatorv1.ApplyEvent) error {
		got = append(got, e.GetChange().GetName())
		return nil
	})
	for i := range 1000 {
		to.tell(changeOf(fmt.Sprint(i)))
	}
	to.tell(theResult)
	if err := to.finish(); err != nil || len(got) != 1001 || got[0] != "0" || got[999] != "999" || got[1000] != "" {
		t.Errorf("%d were sent, %v", len(got), err)
	}
}

func TestCallerThatTakesNothingIsCutAndHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		to := newTeller(ctx, func(*operatorv1.ApplyEvent) error {
			<-ctx.Done()
			return ctx.Err()
		})
		for i := range 1000 {
			to.tell(changeOf(fmt.Sprint(i))) // would not return
		}
		if err := to.finish(); !errors.Is(err, errDeaf) {
			t.Errorf("got %v", err)
		}
		end() // as the end of the call does
		<-to.over
	})
}

func TestCallerThatTakesSomethingNowAndThenIsCutInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		defer end()
		sent := 0
		to := newTeller(ctx, func(*operatorv1.ApplyEvent) error {
			pass(deafTime / 2)
			sent++
			return ctx.Err()
		})
		for i := range 1000 {
			to.tell(changeOf(fmt.Sprint(i)))
		}
		err := to.finish()
		<-to.over
		if !errors.Is(err, errDeaf) || sent < int(tellTime/deafTime) {
			t.Errorf("%d were sent, %v", sent, err)
		}
	})
}

func TestWhatWaitsForASlowCallerIsBoundedAndItsResultIsNotLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		let := make(chan struct{})
		var last *operatorv1.ApplyEvent
		sent := 0
		to := newTeller(t.Context(), func(e *operatorv1.ApplyEvent) error {
			<-let
			sent++
			last = e
			return nil
		})
		const all, size = 100, maxUntold / 50
		for range all {
			to.tell(changeOf(strings.Repeat("x", size)))
		}
		to.tell(theResult)
		to.mu.Lock()
		if to.bytes > maxUntold+100 {
			t.Errorf("%d bytes wait", to.bytes)
		}
		to.mu.Unlock()
		close(let)
		if err := to.finish(); err != nil || last != theResult || sent >= all || sent < all/4 {
			t.Errorf("%d were sent, the last is a result: %t, %v", sent, last == theResult, err)
		}
	})
}

func TestApplyWhoseCallerReadsNothingHoldsUpNoOther(t *testing.T) {
	s := newSite(t)
	client := operatorv1.NewOperatorClient(s.operator(t))
	var large strings.Builder
	large.WriteString("server:\n  reverse_proxy:\n")
	for i := range 3000 { // far more changes than a connection takes that nobody reads from
		fmt.Fprintf(&large, "    - {path: /%s-%d, host: 127.0.0.1, port: 3000}\n", strings.Repeat("x", 100), i)
	}
	deaf, err := client.Apply(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range document(part("", large.String())) {
		if err := deaf.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := deaf.CloseSend(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the apply that nobody listens to is stored", func() bool { return s.control.Status().GetRevision() == 1 })
	events, err := apply(t, operatorv1.NewOperatorClient(s.operator(t)), document(part("", sample))...)
	if err != nil || events[len(events)-1].GetResult().GetRevision() != 2 {
		t.Fatalf("another one: %v", err)
	}
}
