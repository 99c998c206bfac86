package gossip

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
)

// MaxMessage is the most bytes of a message. One has to fit into a packet beside memberlist's own news; memberlist drops
// without a word what does not.
const MaxMessage = 1024

const (
	// maxOutbox is how many messages are being told at a time, our own and those that are passed on: four mebibytes at most. When
	// 5,000 backends die at once there are some 600, more than the 512 that were kept before.
	maxOutbox = 4096
	// tellings is how often a member tells a message. All that got it tell it, so it comes to each member about as often, and
	// passes by one in e^12, whatever their number.
	tellings = 12
	// passings is how often a member tells it, or tells it again, where its origin can tell everybody itself: that is for what was
	// lost on the way.
	passings = 6
)

// outbox holds the messages that are being told. It takes the place of memberlist's queue, which keeps two messages of
// one length under one key at times and loses the first (hashicorp/memberlist#263, #322).
type outbox struct {
	// mu guards what follows; nothing is called under it.
	mu sync.Mutex
	// messages are in the order in which they are told: those of which a first round is under way, those that wait for theirs, and
	// the others, what was told least first; of all these the newest first.
	messages []*outgoing
	// overflowed counts messages that were told too seldom.
	overflowed uint64
}

// outgoing is one message. Its bytes are never written to.
type outgoing struct {
	bytes []byte
	// first is how often it is told still in its first round, one after the other, and then how often beside others. Members are told
	// in turn, so all of a round are different ones: the way to tell each once, where random ones hear some things five times before
	// the last has heard them once.
	first, then int
	begun       bool
}

// rank orders messages.
func (m *outgoing) rank() int {
	switch {
	case m.first > 0 && m.begun:
		return -1
	case m.first > 0:
		return 0
	}
	return tellings - m.then
}

func newOutbox() *outbox { return &outbox{} }

// tell adds a message of our own, among so many members.
func (o *outbox) tell(message []byte, members int) error {
	first := firstRound(members)
	then := tellings - first
	if everybody(members) {
		then = min(then, passings)
	}
	return o.put(&outgoing{bytes: message, first: first, then: then})
}

// pass adds a message that has come from another. Whoever said it told as many as go into a round. What is left to those is told
// by these.
func (o *outbox) pass(message []byte, members int) error {
	if everybody(members) {
		return o.put(&outgoing{bytes: message, then: passings})
	}
	first := firstRound(members)
	first = min(first, (members-1-1)/first) // those that are left, divided up, rounded up
	return o.put(&outgoing{bytes: message, first: first, then: tellings - first})
}

// firstRound is how many members are told one after the other.
func firstRound(members int) int { return min(max(0, members-1), gossipNodes) }

// everybody says whether that is all others.
func everybody(members int) bool { return firstRound(members) >= members-1 }

// put adds a message. When there are too many, one that was told most is told no more.
func (o *outbox) put(m *outgoing) error {
	if len(m.bytes) > MaxMessage {
		return fmt.Errorf("a message of %d bytes, more than %d", len(m.bytes), MaxMessage)
	}
	m.bytes = slices.Clone(m.bytes)
	o.mu.Lock()
	defer o.mu.Unlock()
	at, _ := slices.BinarySearchFunc(o.messages, m.rank(), func(have *outgoing, rank int) int { return cmp.Compare(have.rank(), rank) })
	o.messages = slices.Insert(o.messages, at, m)
	if len(o.messages) > maxOutbox {
		o.messages[maxOutbox] = nil
		o.messages = o.messages[:maxOutbox]
		o.overflowed++
	}
	return nil
}

// take gives the messages for one packet of limit bytes, in which each costs overhead.
func (o *outbox) take(overhead, limit int) (out [][]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range o.messages {
		if size := overhead + len(m.bytes); size <= limit {
			limit -= size
			out = append(out, m.bytes)
			m.tell()
		}
	}
	if out == nil {
		return nil
	}
	o.messages = slices.DeleteFunc(o.messages, func(m *outgoing) bool { return m.first+m.then == 0 })
	slices.SortStableFunc(o.messages, func(a, b *outgoing) int { return cmp.Compare(a.rank(), b.rank()) })
	return out
}

func (m *outgoing) tell() {
	m.begun = true
	if m.first > 0 {
		m.first--
	} else {
		m.then--
	}
}

func (o *outbox) dropped() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.overflowed
}
