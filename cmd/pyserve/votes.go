package main

import (
	"github.com/pyserve/pyserve/cluster"
	"github.com/pyserve/pyserve/node/health"
)

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
func (m *membership) publishVotes(message []byte) (signed string) {
	c := m.joined()
	if c == nil {
		return ""
	}
	signed, err := c.Publish(cluster.TopicHealth, message)
	if err != nil {
		m.logger.Error("cannot tell the other nodes what this one's health probes say", "error", err)
	}
	return signed
}

func (m *membership) hear(news cluster.News) {
	if news.Topic != cluster.TopicHealth || news.From.Role != cluster.RoleNode {
		return
	}
	heard := health.Heard{From: news.From.Name, Message: news.Payload, Age: news.Age, Signed: news.Signed}
	if err := m.node.HearVotes(heard); err != nil {
		m.logger.Debug("what another node's health probes say was refused", "member", news.From.Name, "error", err)
	}
}
