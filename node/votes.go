package node

import (
	"iter"
	"time"

	"github.com/pyserve/pyserve/node/health"
)

// SetMembers says which nodes share health checks and rate limits with this one, by their names; whether its own is among them does
// not matter. Nil: it is alone.
func (n *Node) SetMembers(names []string) {
	n.prober.SetMembers(names)
	n.lending.setMembers(names)
}

// HearVotes takes in what another node has published, as often as it comes. An error says what of it was refused.
func (n *Node) HearVotes(h health.Heard) error { return n.prober.Hear(h) }

// Votes gives what another node should hear that has missed what was published: messages as they were signed, and their ages.
func (n *Node) Votes() iter.Seq2[string, time.Duration] { return n.prober.State() }
