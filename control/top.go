package control

import (
	"context"
	"sync"
	"time"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

const (
	// topTime is how long a node may take to say what it has counted: a slow one is left out rather than waited for.
	topTime = 3 * time.Second
	// maxTopRoutes bounds how many routes each node names, and topBudget how many all of them together do: at 1,000 nodes
	// an answer has to fit a message.
	maxTopRoutes = 1000
	topBudget    = 10000
)

// Top asks every connected node what it has counted, all at once.
func (c *Control) Top(ctx context.Context, m *operatorv1.ListSamplesRequest) *operatorv1.ListSamplesResponse {
	ctx, cancel := context.WithTimeout(ctx, topTime)
	defer cancel()
	var names []string
	for _, n := range c.fleet.Nodes() {
		if n.Connected {
			names = append(names, n.Name)
		}
	}
	routes := min(m.GetRoutes(), maxTopRoutes, uint32(topBudget/max(len(names), 1)))
	answers := make([]*operatorv1.NodeSample, len(names))
	var asking sync.WaitGroup
	for i, name := range names {
		asking.Go(func() { answers[i] = c.sample(ctx, name, routes) })
	}
	asking.Wait()
	return &operatorv1.ListSamplesResponse{Nodes: answers}
}

func (c *Control) sample(ctx context.Context, name string, routes uint32) *operatorv1.NodeSample {
	answer, err := c.fleet.Ask(ctx, name, &fleetv1.Question{Take: &fleetv1.TakeSample{Routes: routes}})
	switch {
	case err != nil:
		return &operatorv1.NodeSample{Node: name, Failure: err.Error()}
	case answer.GetSample() == nil:
		return &operatorv1.NodeSample{Node: name, Failure: "node " + name + " is of a version that does not tell"}
	}
	return &operatorv1.NodeSample{Node: name, Sample: answer.GetSample()}
}
