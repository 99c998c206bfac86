package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/control/identity"
)

// cluster is a control as a process of its own, the light nodes, and an operator.
type cluster struct {
	bench    *bench
	dir      string
	args     []string // what control is started with
	admin    string   // control's admin address
	control  *process
	operator *operator
	fleet    *lightFleet
}

// startCluster starts a control without nodes. close must be called.
func (b *bench) startCluster(ctx context.Context, name string) (*cluster, error) {
	return b.startClusterBy(ctx, name)
}

// startClusterBy starts control by another program, as nice is one.
func (b *bench) startClusterBy(ctx context.Context, name string, by ...string) (_ *cluster, err error) {
	c := &cluster{bench: b, dir: filepath.Join(b.dir, name)}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return nil, err
	}
	var addresses []string
	c.args = append(by, b.pyserve, "control", "--data-dir", c.data(), "--name", "c1")
	for _, flag := range []string{"--listen", "--admin", "--gossip", "--raft"} {
		address, err := b.ports.take()
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, address)
		c.args = append(c.args, flag, address)
	}
	c.admin = addresses[1]
	c.fleet = &lightFleet{addresses: addresses[:1], shelf: &shelf{}}
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	admin, err := c.context()
	if err != nil {
		return nil, err
	}
	c.operator, err = newOperator(admin, addresses[0])
	return c, err
}

func (c *cluster) data() string { return filepath.Join(c.dir, "control") }

func (c *cluster) context() (*identity.Context, error) {
	return identity.LoadContext(filepath.Join(c.data(), "admin.yaml"))
}

// start starts control, for the first time or again, and waits until it is ready.
func (c *cluster) start(ctx context.Context) (err error) {
	if c.control, err = start(c.dir, "control", c.args...); err != nil {
		return err
	}
	return c.control.ready(ctx, c.admin)
}

// close ends all that runs.
func (c *cluster) close() {
	if c.fleet != nil {
		c.fleet.close()
	}
	if c.operator != nil {
		c.operator.close()
	}
	if c.control != nil {
		c.control.kill()
	}
}

// grow enrols nodes until there are so many.
func (c *cluster) grow(ctx context.Context, nodes int) error {
	token, err := os.ReadFile(filepath.Join(c.data(), "join-token"))
	if err != nil {
		return err
	}
	admin, err := c.context()
	if err != nil {
		return err
	}
	believed, err := admin.ClientTLS()
	if err != nil {
		return err
	}
	believed.Certificates = nil // a node has none yet
	return c.fleet.grow(ctx, nodes, strings.TrimSpace(string(token)), believed)
}

// settle has all nodes serve a document that was never served before. Only the first is sent it: a thousand whole bundles
// are no part of what is measured, and take long. The others come with it, as from their disks.
func (c *cluster) settle(ctx context.Context, document []byte) error {
	if len(c.fleet.nodes) == 0 {
		return errors.New("no node is enrolled")
	}
	first, others := c.fleet.nodes[0], c.fleet.nodes[1:]
	c.fleet.each(others, (*lightNode).disconnect)
	if first.cut == nil {
		first.connect()
	}
	if err := poll(ctx, 5*time.Millisecond, func() (bool, error) { return c.fleet.connected.Load() == 1, nil }); err != nil {
		return fmt.Errorf("one node alone is to be connected: %w", err)
	}
	err := poll(ctx, 100*time.Millisecond, func() (bool, error) {
		_, _, err := c.operator.apply(ctx, document, time.Now())
		if status.Code(err) == codes.Unavailable { // on a busy machine another control may have to lead first
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("apply what is measured from: %w", err)
	}
	release, bundle := first.serving()
	for _, n := range others {
		n.serve(release, bundle)
	}
	return c.converge(ctx)
}

// converge has all nodes connect, and waits until control says that they serve what is active.
func (c *cluster) converge(ctx context.Context) error {
	if err := c.fleet.connect(ctx); err != nil {
		return err
	}
	return poll(ctx, 20*time.Millisecond, func() (bool, error) { return c.operator.converged(ctx) })
}
