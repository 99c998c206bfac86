package main

import "github.com/pyserve/pyserve/cluster"

// What nodes find out about backends goes through gossip from here to there. Words of controls are not asked for, and those of
// nodes are checked by the node that hears them; what is refused is counted there, so the log tells of it for debugging alone.

// nodes gives the names of the nodes that take part, this one among them.
func (m *membership) nodes(c *cluster.Cluster) []string {
	var names []string
	for _, member := range c.Members() {
		if member.Role == cluster.RoleNode && !member.State.Gone() {
			names = append(names, member.Name)
		}
	}
	return names
}

// publishVotes tells the other nodes, as soon as there are any.
func (m *membership) publishVotes(key string, message []byte) {
	c := m.joined()
	if c == nil {
		return
	}
	if err := c.Publish(cluster.TopicHealth, key, message); err != nil {
		m.logger.Error("cannot tell the other nodes what this one's health probes say", "error", err)
	}
}

func (m *membership) hear(from cluster.Origin, topic cluster.Topic, _ string, payload []byte) {
	if topic != cluster.TopicHealth || from.Role != cluster.RoleNode {
		return
	}
	if err := m.node.HearVotes(from.Name, payload); err != nil {
		m.logger.Debug("what another node's health probes say was refused", "member", from.Name, "error", err)
	}
}

func (m *membership) merge(from cluster.Origin, state []byte) {
	if from.Role != cluster.RoleNode {
		return
	}
	if err := m.node.MergeVotes(state); err != nil {
		m.logger.Debug("what another node has heard of health probes was refused", "member", from.Name, "error", err)
	}
}
