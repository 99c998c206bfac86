package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
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

// tellsNext gives what goes into packets that have room for one message of three bytes each.
func tellsNext(o *outbox, packets int) (told []string) {
	for range packets {
		for _, m := range o.take(1, 4) {
			told = append(told, string(m))
		}
	}
	return told
}

func say(t *testing.T, put func([]byte, int) error, message string, members int) {
	t.Helper()
	if err := put([]byte(message), members); err != nil {
		t.Fatal(err)
	}
}

func TestMessagesOfOneLengthAreAllTold(t *testing.T) {
	for _, members := range []int{2, 10, 40, 128} {
		o := newOutbox()
		count := make(map[string]int)
		hear := func(messages []string) {
			for _, m := range messages {
				count[m]++
			}
		}
		for i := range 100 {
			say(t, o.tell, fmt.Sprintf("%03d", i), members)
			say(t, o.pass, fmt.Sprintf("%03d", 100+i), members)
			hear(tellsNext(o, 3))
		}
		hear(tellsNext(o, 3000))
		for i := range 200 {
			want := tellings
			switch {
			case i >= 100 && members <= gossipNodes+1:
				want = passings
			case members == 2:
				want = 1 + passings
			}
			if n := count[fmt.Sprintf("%03d", i)]; n != want {
				t.Errorf("%d members: message %d was told %d times, want %d", members, i, n, want)
			}
		}
		if len(o.messages) > 0 {
			t.Errorf("%d messages are left", len(o.messages))
		}
	}
}

// Members are told in turn: what is told so many times in a row reaches so many.
func TestAFirstRoundIsToldWithoutABreak(t *testing.T) {
	o := newOutbox()
	say(t, o.tell, "old", 5)
	got := tellsNext(o, 1)
	say(t, o.pass, "by1", 5)
	say(t, o.tell, "new", 5)
	got = append(got, tellsNext(o, 7)...)
	if want := []string{"old", "old", "old", "old", "new", "new", "new", "new"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	say(t, o.pass, "by2", 5)
	if got := tellsNext(o, 1); !slices.Equal(got, []string{"by2"}) {
		t.Errorf("then %v, want the newest", got)
	}
}

// In a large cluster those that a round has reached have rounds of their own, and where it has left few, short ones.
func TestWhatIsPassedOnHasAFirstRoundWhereOneIsNotEnough(t *testing.T) {
	for members, round := range map[int]int{gossipNodes + 1: 0, gossipNodes + 2: 1, 3 * gossipNodes: 2, 128: gossipNodes} {
		o := newOutbox()
		say(t, o.pass, "old", members)
		say(t, o.pass, "new", members)
		before := tellsNext(o, max(1, 2*round))
		n := 0
		for _, m := range before {
			if m == "new" {
				n++
			}
		}
		if round > 0 && n != round || before[0] != "new" {
			t.Errorf("%d members: told %v, want %d of each in a row", members, before, round)
		}
	}
}

func TestAMessageThatFitsIntoNoPacketIsNotTaken(t *testing.T) {
	o := newOutbox()
	if o.tell(make([]byte, MaxMessage+1), 3) == nil || o.pass(make([]byte, MaxMessage+1), 3) == nil {
		t.Error("it is taken")
	}
}

func TestTheOutboxIsBoundedAndNewsComesFirst(t *testing.T) {
	o := newOutbox()
	for i := range 2 * maxOutbox {
		say(t, o.tell, fmt.Sprintf("%04d", i), 2)
		if i%2 == 0 {
			if got := o.take(1, 5); len(got) != 1 || string(got[0]) != fmt.Sprintf("%04d", i) {
				t.Fatalf("message %d is not told first but %q", i, got)
			}
		}
	}
	if len(o.messages) > maxOutbox {
		t.Errorf("%d messages are kept", len(o.messages))
	}
	if got := o.take(1, 5); len(got) != 1 || string(got[0]) != fmt.Sprintf("%04d", 2*maxOutbox-1) {
		t.Errorf("the newest is not told next but %q", got)
	}
	if o.dropped() == 0 {
		t.Error("none is counted")
	}
}
