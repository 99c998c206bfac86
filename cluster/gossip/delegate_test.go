package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/hashicorp/memberlist"
)

func TestNotifyAliveKeepsTheUnboundedOut(t *testing.T) {
	d := newDelegate(Options{Name: "self", Accept: func(name string, _ netip.AddrPort, _ []byte) error {
		if name == "bad" {
			return errors.New("a bad name")
		}
		return nil
	}})
	good := memberlist.Node{Name: "good", Addr: net.IPv4(10, 0, 0, 1), Meta: make([]byte, MaxMetadata)}
	if err := d.NotifyAlive(&good); err != nil {
		t.Errorf("a good member: %v", err)
	}
	for what, change := range map[string]func(*memberlist.Node){
		"metadata": func(n *memberlist.Node) { n.Meta = make([]byte, MaxMetadata+1) },
		"address":  func(n *memberlist.Node) { n.Addr = make([]byte, 1000) },
		"name":     func(n *memberlist.Node) { n.Name = "bad" },
	} {
		n := good
		change(&n)
		if d.NotifyAlive(&n) == nil {
			t.Errorf("taken in spite of its %s", what)
		}
	}
}

func TestCallbacksNeverBlock(t *testing.T) {
	d := newDelegate(Options{Name: "self"})
	n := &memberlist.Node{Name: "n", Addr: net.IPv4(10, 0, 0, 1), Meta: []byte("meta")}
	for range 1000 {
		d.NotifyJoin(n)
		d.NotifyConflict(n, n)
		d.NotifyMsg([]byte("x"))
		d.MergeRemoteState([]byte("x"), true)
	}
	n.Meta[0] = 'M'
	if got := d.records(); len(got) != 1 || string(got[0].metadata) != "meta" {
		t.Errorf("kept %+v", got)
	}
}

func TestAFloodIsBoundedAndTheOldestGivesWay(t *testing.T) {
	d := newDelegate(Options{Name: "self"})
	message := make([]byte, MaxMessage)
	for i := range 5 * maxInbox {
		message[0] = byte(i)
		d.NotifyMsg(message)
		d.MergeRemoteState(message, true)
	}
	d.NotifyMsg(make([]byte, MaxMessage+1))
	d.MergeRemoteState(make([]byte, MaxState+1), true)
	drops := d.inbox.dropped()
	if want := uint64(4*maxInbox + 5*maxInbox - maxStates); drops.Overflow != want || drops.Oversize != 2 {
		t.Errorf("counted %+v, want %d over the bounds and 2 too long", drops, want)
	}
	messages, states := d.inbox.takeAll()
	if len(messages) != maxInbox || len(states) != maxStates {
		t.Fatalf("%d messages and %d states wait", len(messages), len(states))
	}
	if last := messages[maxInbox-1][0]; last != message[0] {
		t.Errorf("the newest is %d, want %d", last, message[0])
	}
}

func TestWhatNobodyListensToIsCounted(t *testing.T) {
	b := newInbox()
	b.putMessage([]byte("m"))
	b.putState([]byte("s"))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	got := make(chan string)
	go b.deliver(ctx, func(m []byte) { got <- string(m) }, nil)
	if m := <-got; m != "m" {
		t.Errorf("got %q", m)
	}
	if n := b.dropped().Unheard; n != 1 {
		t.Errorf("%d states are counted, want one", n)
	}
}

func TestMessagesOfOneLengthAreAllTold(t *testing.T) {
	o := newOutbox()
	told := make(map[string]int)
	hear := func(messages [][]byte) {
		for _, m := range messages {
			told[string(m)]++
		}
	}
	for i := range 100 {
		name := fmt.Sprintf("%03d", i)
		if err := o.put([]byte(name)); err != nil {
			t.Fatal(err)
		}
		hear(o.take(1, 2*4, 9)) // two fit
	}
	for range 1000 {
		hear(o.take(1, 2*4, 9))
	}
	for i := range 100 {
		if n := told[fmt.Sprintf("%03d", i)]; n != fewTellings {
			t.Errorf("message %d was told %d times, want %d", i, n, fewTellings)
		}
	}
	if len(o.messages) > 0 {
		t.Errorf("%d messages are left", len(o.messages))
	}
}

func TestAMessageThatFitsIntoNoPacketIsNotTaken(t *testing.T) {
	if err := newOutbox().put(make([]byte, MaxMessage+1)); err == nil {
		t.Error("it is taken")
	}
}

func TestTheOutboxIsBoundedAndNewsComesFirst(t *testing.T) {
	o := newOutbox()
	for i := range 2 * maxOutbox {
		if err := o.put([]byte(fmt.Sprintf("%04d", i))); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if got := o.take(1, 5, 9); len(got) != 1 || string(got[0]) != fmt.Sprintf("%04d", i) {
				t.Fatalf("message %d is not told first but %q", i, got)
			}
		}
	}
	if len(o.messages) > maxOutbox {
		t.Errorf("%d messages are kept", len(o.messages))
	}
	if got := o.take(1, 5, 9); len(got) != 1 || string(got[0]) != fmt.Sprintf("%04d", 2*maxOutbox-1) {
		t.Errorf("the newest is not told next but %q", got)
	}
	if o.dropped() == 0 {
		t.Error("none is counted")
	}
}
