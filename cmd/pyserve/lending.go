package main

import (
	"context"

	"github.com/pyserve/pyserve/cluster"
	"github.com/pyserve/pyserve/node/peer"
	peerv1 "github.com/pyserve/pyserve/proto/pyserve/peer/v1"
)

// askLender asks another node for requests of rate limits that all nodes share.
func (m *membership) askLender(ctx context.Context, owner string, request *peerv1.LendRequest) (*peerv1.LendResponse, error) {
	return m.borrower.Ask(ctx, owner, request)
}

// lenders gives the other nodes that take part, and where they are asked.
func (m *membership) lenders(c *cluster.Cluster) (out []peer.Node) {
	for _, member := range c.Members() {
		if member.Role == cluster.RoleNode && member.Name != m.options.name && !member.State.Gone() {
			out = append(out, peer.Node{Name: member.Name, Address: member.Address})
		}
	}
	return out
}
