package gossip

import (
	"context"
	"slices"
	"sync"
)

const (
	// maxInbox is how many messages wait to be taken, and maxStates how many states: a mebibyte each.
	maxInbox  = 1024
	maxStates = 4
)

// MaxState is the most bytes of state that a full exchange carries beside the list of members.
const MaxState = 256<<10 + 512

// Drops counts what was not delivered or not told, since the start.
type Drops struct {
	// Oversize messages and states came from others and were too long.
	Oversize uint64
	// Overflow: the oldest that waited, when too much came at once.
	Overflow uint64
	// Unheard: nobody here listens to it.
	Unheard uint64
	// Untold messages gave way to others before they were told often enough.
	Untold uint64
	// Connections were closed at once: too many that said nothing, or TLS where nobody takes it.
	Connections uint64
	// Unsent states are ours, and longer than MaxState.
	Unsent uint64
}

// inbox holds what came from others until our goroutine takes it. Whoever puts never waits: the oldest gives way.
type inbox struct {
	wake chan struct{}

	// mu guards what follows; nothing is called under it.
	mu       sync.Mutex
	messages [][]byte
	states   [][]byte
	drops    Drops
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// putMessage copies a message, which memberlist goes on to write to.
func (b *inbox) putMessage(message []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.messages = b.put(b.messages, message, MaxMessage, maxInbox)
}

// putState copies a state.
func (b *inbox) putState(state []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.states = b.put(b.states, state, MaxState, maxStates)
}

// put is called with mu held.
func (b *inbox) put(waiting [][]byte, bytes []byte, maxBytes, maxWaiting int) [][]byte {
	if len(bytes) > maxBytes {
		b.drops.Oversize++
		return waiting
	}
	if len(waiting) >= maxWaiting {
		b.drops.Overflow++
		waiting = waiting[1:]
	}
	select {
	case b.wake <- struct{}{}:
	default:
	}
	return append(waiting, slices.Clone(bytes))
}

// takeAll empties the inbox.
func (b *inbox) takeAll() (messages, states [][]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	messages, states = b.messages, b.states
	b.messages, b.states = nil, nil
	return messages, states
}

// deliver hands over what comes until ctx ends.
func (b *inbox) deliver(ctx context.Context, receive, merge func([]byte)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		}
		messages, states := b.takeAll()
		for _, s := range states {
			b.hand(s, merge)
		}
		for _, m := range messages {
			if ctx.Err() != nil {
				return
			}
			b.hand(m, receive)
		}
	}
}

func (b *inbox) hand(bytes []byte, to func([]byte)) {
	if to == nil {
		b.count(func(d *Drops) { d.Unheard++ })
		return
	}
	to(bytes)
}

func (b *inbox) count(f func(*Drops)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.drops)
}

func (b *inbox) dropped() Drops {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.drops
}
