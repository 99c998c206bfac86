package cluster

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pyserve/pyserve/cluster/gossiptest"
)

// mailbox is what a member received and merged.
type mailbox struct {
	mu       sync.Mutex // guards what follows
	received map[string]int
	merged   map[string]int
}

func newMailbox() *mailbox {
	return &mailbox{received: make(map[string]int), merged: make(map[string]int)}
}

func (b *mailbox) open(o *Options) {
	o.Receive = func(from Origin, topic Topic, key string, payload []byte) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.received[fmt.Sprintf("%s %s %d %s %s", from.Role, from.Name, topic, key, payload)]++
	}
	o.Merge = func(from Origin, state []byte) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.merged[from.Name+" "+string(state)]++
	}
}

func (b *mailbox) got(message string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.received[message]
}

func (b *mailbox) knows(state string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.merged[state] > 0
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
		if err := all[5].Publish(TopicHealth, "key", []byte("news")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		for i, box := range boxes {
			want := 1
			if i == 5 {
				want = 0
			}
			if got := box.got("node n6 1 key news"); got != want {
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
				if err := c.Publish(TopicHealth, fmt.Sprintf("%02d", i), []byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		for i := range 40 {
			for n := 2; n <= 6; n++ {
				if box.got(fmt.Sprintf("node n%d 1 %02d x", n, i)) != 1 {
					t.Errorf("message %d of n%d did not arrive", i, n)
				}
			}
		}
	})
}

func TestALaterMemberLearnsFromStates(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		box := newMailbox()
		w.start(1, func(o *Options) { o.State = func() []byte { return []byte("all that n1 knows") } })
		w.start(2, seeds(1), box.open)
		await(t, 30*time.Second, "the state", func() bool { return box.knows("n1 all that n1 knows") })
	})
}

func TestMessagesOverTheLimitAreErrors(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		a := newWorld(t).start(1)
		if err := a.Publish(TopicHealth, "key", make([]byte, MaxPayload+1)); err == nil {
			t.Error("no error")
		}
		if err := a.Publish(TopicHealth, "key", make([]byte, MaxPayload)); err != nil {
			t.Error(err)
		}
	})
}

func TestAStateOverTheLimitIsNotSentAndCounted(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		box := newMailbox()
		a := w.start(1, func(o *Options) { o.State = func() []byte { return make([]byte, MaxState+1) } })
		b := w.start(2, seeds(1), box.open)
		awaitView(t, 5*time.Second, b, "n1 alive, n2 alive")
		time.Sleep(time.Minute)
		if a.Dropped()["state_unsent"] == 0 || len(box.merged) > 0 {
			t.Errorf("counted %v, arrived %d", a.Dropped(), len(box.merged))
		}
	})
}
