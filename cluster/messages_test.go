package cluster

import (
	"fmt"
	"iter"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pyserve/pyserve/cluster/gossiptest"
	"github.com/pyserve/pyserve/cluster/state"
)

// mailbox is what a member received.
type mailbox struct {
	mu       sync.Mutex // guards what follows
	received map[string]int
	news     []News
}

func newMailbox() *mailbox { return &mailbox{received: make(map[string]int)} }

func (b *mailbox) open(o *Options) {
	o.Receive = func(n News) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.received[fmt.Sprintf("%s %s %d %s", n.From.Role, n.From.Name, n.Topic, n.Payload)]++
		b.news = append(b.news, n)
	}
	o.State = b.state
}

// state passes on all that was received.
func (b *mailbox) state() iter.Seq2[string, time.Duration] {
	b.mu.Lock()
	defer b.mu.Unlock()
	told := make(map[string]time.Duration)
	for _, n := range b.news {
		told[n.Signed] = n.Age
	}
	return maps.All(told)
}

func (b *mailbox) got(message string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.received[message]
}

// publish publishes, and fails the test if it cannot.
func publish(t *testing.T, c *Cluster, payload string) (signed string) {
	t.Helper()
	signed, err := c.Publish(TopicHealth, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestAMessageReachesEveryMemberOnce(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		boxes := make([]*mailbox, 20)
		var all []*Cluster
		for i := range boxes {
			boxes[i] = newMailbox()
			all = append(all, w.start(i+1, seeds(1), boxes[i].open))
		}
		time.Sleep(20 * time.Second)
		publish(t, all[5], "news")
		time.Sleep(20 * time.Second)
		for i, box := range boxes {
			want := 1
			if i == 5 {
				want = 0
			}
			if got := box.got("node n6 1 news"); got != want {
				t.Errorf("n%d got it %d times, want %d", i+1, got, want)
			}
		}
	})
}

func TestManyMessagesOfOneLengthAllArrive(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		w.network.SetLatency(time.Millisecond)
		box := newMailbox()
		a := w.start(1, box.open)
		var others []*Cluster
		for i := 2; i <= 6; i++ {
			others = append(others, w.start(i, seeds(1)))
		}
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive, n3 alive, n4 alive, n5 alive, n6 alive")
		for i := range 40 {
			for _, c := range others {
				publish(t, c, fmt.Sprintf("%02d", i))
			}
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		for i := range 40 {
			for n := 2; n <= 6; n++ {
				if box.got(fmt.Sprintf("node n%d 1 %02d", n, i)) != 1 {
					t.Errorf("message %d of n%d did not arrive", i, n)
				}
			}
		}
	})
}

// n2 is gone when n3 comes: n1 tells what n2 said, how long ago, and n3 believes it for n2's signature.
func TestALaterMemberLearnsFromOneThatPassesOn(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		passing, box := newMailbox(), newMailbox()
		a := w.start(1, passing.open)
		b := w.start(2, seeds(1))
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive")
		signed := publish(t, b, "news")
		await(t, 5*time.Second, "the message", func() bool { return passing.got("node n2 1 news") == 1 })
		time.Sleep(20 * time.Second) // it is told by gossip no more
		passing.mu.Lock()
		passing.news[0].Age = 20 * time.Second
		passing.mu.Unlock()
		w.start(3, seeds(1), box.open)
		await(t, 30*time.Second, "the message at n3", func() bool { return box.got("node n2 1 news") == 1 })
		time.Sleep(time.Minute)
		box.mu.Lock()
		defer box.mu.Unlock()
		if n := box.news[0]; len(box.news) != 1 || n.Age != 20*time.Second || n.Signed != signed {
			t.Errorf("it got %+v", box.news)
		}
	})
}

// A member that is back after its clock was ahead goes on above what it said then.
func TestAMemberHearsWhatItSaidBeforeItsRestart(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		passing, box := newMailbox(), newMailbox()
		a := w.start(1, passing.open)
		first := w.start(2, seeds(1))
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive")
		first.messages.atLeast(uint64(time.Now().Add(time.Hour).UnixMicro()))
		publish(t, first, "before")
		await(t, 5*time.Second, "the message", func() bool { return passing.got("node n2 1 before") == 1 })
		stop(t, first)
		again := w.start(2, seeds(1), box.open, func(o *Options) { o.Key, o.Voucher = first.options.Key, first.options.Voucher })
		await(t, time.Minute, "its own message", func() bool { return box.got("node n2 1 before") == 1 })
		publish(t, again, "after")
		await(t, 5*time.Second, "what it says now", func() bool { return passing.got("node n2 1 after") == 1 })
		passing.mu.Lock()
		defer passing.mu.Unlock()
		if age := passing.news[len(passing.news)-1].Age; age != 0 {
			t.Errorf("it counts as said %v ago", age)
		}
	})
}

func TestMessagesOverTheLimitAreErrors(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		a := newWorld(t).start(1)
		if _, err := a.Publish(TopicHealth, make([]byte, MaxPayload+1)); err == nil {
			t.Error("no error")
		}
		publish(t, a, strings.Repeat("x", MaxPayload))
	})
}

func TestOfAStateOverTheLimitTheFirstIsSent(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		a := newWorld(t).start(1, func(o *Options) {
			o.State = func() iter.Seq2[string, time.Duration] {
				return func(yield func(string, time.Duration) bool) {
					for i := 0; yield(fmt.Sprintf("%05d%500s", i, ""), 0); i++ {
					}
				}
			}
		})
		exchange := a.ownState()
		told, err := state.DecodeTold(exchange)
		if err != nil || len(exchange) > MaxState || len(exchange) < MaxState-600 {
			t.Fatalf("%d bytes, %v", len(exchange), err)
		}
		for i, m := range told {
			if string(m.Message[:5]) != fmt.Sprintf("%05d", i) {
				t.Fatalf("message %d is %s", i, m.Message[:5])
			}
		}
	})
}
