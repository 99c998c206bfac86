package main

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/cluster"
	"github.com/pyserve/pyserve/node"
	"github.com/pyserve/pyserve/node/agent"
	"github.com/pyserve/pyserve/node/inspect"
	"github.com/pyserve/pyserve/node/peer"
)

// membership joins the node to gossip as soon as it has the keys, and tells the others what it serves.
type membership struct {
	options nodeOptions
	logger  *slog.Logger
	node    *node.Node
	takeTLS func(net.Conn) // of other members, on the port of gossip
	// borrower asks the other nodes for requests of shared rate limits. It is set before start, and nobody is asked before there are members.
	borrower *peer.Borrower

	elsewhere atomic.Int64 // what peerRoom gives

	mu      sync.Mutex // guards what follows
	cluster *cluster.Cluster
	failure string // the last reason why gossip could not start, to log it once
	cancel  context.CancelFunc
	telling sync.WaitGroup
}

// keyPatience is how long a node waits for control's word before it joins others with the keys and seeds that it had: there may
// be another key since, and with the old one it would be taken for a member that hears nobody. A node whose control is away has
// to go on by itself, and soon: below the second after which one that serves nothing asks peers.
const keyPatience = 500 * time.Millisecond

// start joins gossip if id has what that needs. A gossip address that cannot be bound is an error.
func (m *membership) start(id *agent.Identity) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cluster != nil || len(id.GossipKeys) == 0 {
		return nil
	}
	host, err := gossipAdvertise(m.options.gossip, towards(m.options.controls[0]))
	if err != nil {
		return err
	}
	c, err := cluster.New(cluster.Options{
		Name: id.Name, Role: cluster.RoleNode, ClusterID: id.ClusterID, Bind: m.options.gossip, Advertise: host,
		Keys: id.GossipKeys, Key: id.Signer(), Issuer: id.ReleaseKey, Seeds: append(m.options.join, id.GossipSeeds...), Logger: m.logger,
		RememberFile: filepath.Join(m.options.dataDir, "peers.json"), TakeTLS: m.takeTLS,
		Receive: m.hear, State: m.node.Votes, JoinDelay: keyPatience,
	})
	if err != nil {
		return err
	}
	m.vouch(c, id)
	if err := c.Start(); err != nil {
		return fmt.Errorf("--gossip: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cluster, m.cancel = c, cancel
	m.elsewhere.Store(math.MaxInt64)
	m.telling.Go(func() { m.tell(ctx, c) })
	return nil
}

// towards gives the address that this machine reaches a control from; nothing is sent.
func towards(control string) string {
	conn, err := net.Dial("udp", control)
	if err != nil {
		return "127.0.0.1"
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}

// welcomed takes in what control said: the first time gossip can start, later there may be others to join.
func (m *membership) welcomed(id *agent.Identity) error {
	m.node.SetStickySecrets(id.GossipKeys)
	if err := m.start(id); err != nil {
		m.mu.Lock()
		news := m.failure != err.Error()
		m.failure = err.Error()
		m.mu.Unlock()
		if news {
			m.logger.Error("cannot take part in gossip; trying again with the next stream", "error", err)
		}
		return nil // who takes no part uses no key
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cluster == nil {
		return nil
	}
	if err := m.cluster.SetKeys(id.GossipKeys); err != nil {
		return err
	}
	m.cluster.SetSeeds(id.GossipSeeds)
	m.vouch(m.cluster, id)
	return nil
}

// vouch tells the others control's word for this node. A node that has none, or one that is not good, serves all the same.
func (m *membership) vouch(c *cluster.Cluster, id *agent.Identity) {
	if len(id.Voucher) == 0 {
		return // from a control of an older version
	}
	if err := c.SetVoucher(id.Voucher); err != nil {
		m.logger.Error("other members will not believe this one", "error", err)
	}
}

// tell keeps what the others know of us up to date.
func (m *membership) tell(ctx context.Context, c *cluster.Cluster) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var room cluster.Room
	for {
		room = room.Next(m.node.Room())
		facts := cluster.Facts{Draining: m.node.Draining(), Room: room}
		if applied := m.node.Applied(); applied != nil {
			facts.Epoch, facts.Revision = applied.GetEpoch(), applied.GetRevision()
			copy(facts.DigestPrefix[:], applied.GetDigest())
		}
		c.Update(facts)
		m.borrower.SetNodes(m.lenders(c))
		m.node.SetMembers(m.nodes(c))
		m.elsewhere.Store(int64(roomAmong(c.Members(), m.options.name)))
		select {
		case <-ticker.C:
		case <-c.Changed():
		case <-ctx.Done():
			return
		}
	}
}

// peerRoom is for how many more tunnels the other nodes say that they have room.
func (m *membership) peerRoom() int {
	if m.joined() == nil {
		return math.MaxInt
	}
	return int(m.elsewhere.Load())
}

// roomAmong is the share of the room of the nodes that go on which each that drains has, self among these. Where one does not
// say, or where there is none that gossip knows of, clients may have anywhere to go, and there is no limit.
func roomAmong(members []cluster.Member, self string) int {
	all, stay, drain := 0, 0, 1
	for _, member := range members {
		switch {
		case member.Role != cluster.RoleNode || member.Name == self || member.State.Gone():
		case member.Facts.Draining:
			drain++
		default:
			room, told := member.Facts.Room.AtLeast()
			if !told {
				return math.MaxInt
			}
			stay++
			all += room
		}
	}
	if stay == 0 {
		return math.MaxInt
	}
	return all / drain
}

// peers gives the other nodes that take part and say that they serve something.
func (m *membership) peers() []agent.Peer {
	c := m.joined()
	if c == nil {
		return nil
	}
	var out []agent.Peer
	for _, member := range c.Members() {
		if member.Role != cluster.RoleNode || member.Name == m.options.name || member.State.Gone() || member.Facts.Revision == 0 {
			continue
		}
		out = append(out, agent.Peer{Name: member.Name, Address: member.Address, Epoch: member.Facts.Epoch, Revision: member.Facts.Revision})
	}
	return out
}

// members gives everybody that gossip knows, for operators who ask this node.
func (m *membership) members() []inspect.Member {
	c := m.joined()
	if c == nil {
		return nil
	}
	var out []inspect.Member
	for _, member := range c.Members() {
		out = append(out, inspect.Member{
			Name: member.Name, Node: member.Role == cluster.RoleNode, Address: member.Address, Gossip: member.State.String(),
			Draining: member.Facts.Draining, Epoch: member.Facts.Epoch, Revision: member.Facts.Revision,
			DigestPrefix: member.Facts.DigestPrefix[:], Since: member.Since,
		})
	}
	return out
}

// joined is nil before start had what it needs.
func (m *membership) joined() *cluster.Cluster {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cluster
}

func (m *membership) address() string {
	if c := m.joined(); c != nil {
		return c.Address()
	}
	return ""
}

func (m *membership) stop(context.Context) error {
	c := m.joined()
	if c == nil {
		return nil
	}
	m.cancel()
	m.telling.Wait()
	leaveGossip(c, m.logger)
	return nil
}
