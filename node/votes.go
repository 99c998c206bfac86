package node

// SetMembers says which nodes share health checks with this one, by their names; whether its own is among them does not matter.
// Nil: it is alone.
func (n *Node) SetMembers(names []string) { n.prober.SetMembers(names) }

// HearVotes takes in what the node named from has published. An error says what of it was refused.
func (n *Node) HearVotes(from string, message []byte) error { return n.prober.Hear(from, message) }

// Votes is what another node should hear that has missed what was published, for its MergeVotes; nil: nothing. It has at most
// health.MaxState bytes.
func (n *Node) Votes() []byte { return n.prober.State() }

// MergeVotes takes in another node's Votes, as often as they come. An error says what of them was refused.
func (n *Node) MergeVotes(votes []byte) error { return n.prober.Merge(votes) }
