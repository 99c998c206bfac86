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
	// tellings is how often a member tells a message, to three others at a time; in small clusters fewTellings. All that
	// got it tell it, so it comes to each member about as often, and passes by one in e^12, whatever their number. With
	// few members fewer tell it, but to each other: three times in a row miss one of six members once in a million.
	tellings    = 12
	fewTellings = 9
	fewMembers  = 10
)

// outbox holds the messages that are being told. It takes the place of memberlist's queue, which keeps two messages of
// one length under one key at times and loses the first (hashicorp/memberlist#263, #322).
type outbox struct {
	// mu guards what follows; nothing is called under it.
	mu sync.Mutex
	// messages are in the order in which they are told: what was told least first, and of those the newest.
	messages []*outgoing
	// overflowed counts messages that were told too seldom.
	overflowed uint64
}

// outgoing is one message. Its bytes are never written to.
type outgoing struct {
	bytes []byte
	told  int
}

func newOutbox() *outbox { return &outbox{} }

// put adds a message. When there are too many, the one that was told most is told no more.
func (o *outbox) put(message []byte) error {
	if len(message) > MaxMessage {
		return fmt.Errorf("a message of %d bytes, more than %d", len(message), MaxMessage)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.messages = slices.Insert(o.messages, 0, &outgoing{bytes: slices.Clone(message)})
	if len(o.messages) > maxOutbox {
		o.messages[maxOutbox] = nil
		o.messages = o.messages[:maxOutbox]
		o.overflowed++
	}
	return nil
}

// take gives the messages for one packet of limit bytes, in which each costs overhead, among so many members.
func (o *outbox) take(overhead, limit, members int) (out [][]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range o.messages {
		if size := overhead + len(m.bytes); size <= limit {
			limit -= size
			out = append(out, m.bytes)
			m.told++
		}
	}
	if out == nil {
		return nil
	}
	enough := tellingsAmong(members)
	o.messages = slices.DeleteFunc(o.messages, func(m *outgoing) bool { return m.told >= enough })
	slices.SortStableFunc(o.messages, func(a, b *outgoing) int { return cmp.Compare(a.told, b.told) })
	return out
}

func tellingsAmong(members int) int {
	if members < fewMembers {
		return fewTellings
	}
	return tellings
}

func (o *outbox) dropped() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.overflowed
}
