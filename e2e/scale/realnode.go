package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// realNode is pyserve node as a process.
type realNode struct {
	name          string
	dir           string // the cluster's
	process       *process
	argv          []string
	listen, admin string
}

// startRealNode enrols a node and waits until control hears from it. It serves something once something is applied.
func (c *cluster) startRealNode(ctx context.Context, name string) (*realNode, error) {
	n := &realNode{name: name, dir: c.dir}
	n.argv = []string{c.bench.pyserve, "node", "--name", name, "--control", c.fleet.addresses[0],
		"--data-dir", n.data(), "--token-file", filepath.Join(c.data(), "join-token")}
	for _, flag := range []struct {
		name    string
		address *string
	}{{"--listen", &n.listen}, {"--admin", &n.admin}, {"--gossip", new(string)}} {
		address, err := c.bench.ports.take()
		if err != nil {
			return nil, err
		}
		*flag.address = address
		n.argv = append(n.argv, flag.name, address)
	}
	if err := n.start(); err != nil {
		return nil, err
	}
	// It is connected when an apply finds it; until then control says that nothing is converged.
	err := poll(ctx, 10*time.Millisecond, func() (bool, error) {
		m, err := c.operator.client.GetStatus(ctx, &operatorv1.GetStatusRequest{})
		for _, row := range m.GetNodes() {
			if row.GetName() == name && row.GetVersion() != "" && (row.GetState() == "joining" || row.GetState() == "ready") {
				return true, nil
			}
		}
		return false, err
	})
	if err != nil {
		n.process.kill()
		return nil, fmt.Errorf("the node %s does not connect: %w\n%s", name, err, n.process.said())
	}
	return n, nil
}

func (n *realNode) data() string { return filepath.Join(n.dir, n.name) }

// start starts the process, for the first time or again, and waits for nothing.
func (n *realNode) start() (err error) {
	n.process, err = start(n.dir, "node-"+n.name, n.argv...)
	return err
}

// startRealNodes starts several; what was started is killed by killAll, also after an error.
func (c *cluster) startRealNodes(ctx context.Context, prefix string, count int) (nodes []*realNode, err error) {
	for i := range count {
		n, err := c.startRealNode(ctx, fmt.Sprintf("%s%d", prefix, i+1))
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func killAll(nodes []*realNode) {
	for _, n := range nodes {
		n.process.kill()
	}
}
