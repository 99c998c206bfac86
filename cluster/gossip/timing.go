package gossip

import (
	"time"

	"github.com/hashicorp/memberlist"
)

// Timing is how fast things go; 0 anywhere stands for the default. Members of one cluster should agree.
type Timing struct {
	// ProbeInterval is the time between two probes that we send, each to the next member in turn. Default 500 ms, half of the
	// library's: a killed member is to be known among 128 within 6 s.
	ProbeInterval time.Duration
	// ProbeTimeout is how long an answer may take before others are asked to try. Default 250 ms.
	ProbeTimeout time.Duration
	// GossipInterval is the time between two packets of news. Default 100 ms, half of the library's: what is told takes five
	// rounds among 128, and costs the same bytes.
	GossipInterval time.Duration
	// PushPullInterval is the time between two full exchanges with some member, in up to 32 members; then it grows with
	// the logarithm of their number. Default 10 s, a third of the library's: a full exchange is what mends news that got
	// lost, and takes 20 KB among 128 members.
	PushPullInterval time.Duration
	// StreamTimeout bounds dialling, and then reading and writing, of a full exchange. Default 5 s.
	StreamTimeout time.Duration
	// DeadNodeReclaim is how long a member must have been dead before its name may come back at another address.
	// Default 5 s.
	DeadNodeReclaim time.Duration
	// GossipToTheDead is how long a member that is gone is remembered, and told, so that it can object. Default 30 s.
	GossipToTheDead time.Duration
}

// The suspicion times: a suspect is dead after 3 to 9 probe intervals in a small cluster, 3 as soon as another member
// confirms; with the logarithm of its size as a factor above ten members. A fraction of the library's own times: membership
// decides nothing that a wrong verdict would hurt, and the verdict is taken back when the member objects.
const (
	suspicionMult    = 3
	suspicionMaxMult = 3
)

// gossipNodes is how many members are told at a time, three times as many as the library does. What is told is told so many times
// whatever this is; it bounds what a member can tell in a burst: 90 packets a second.
const gossipNodes = 9

func (t Timing) apply(c *memberlist.Config) {
	c.ProbeInterval = orDefault(t.ProbeInterval, 500*time.Millisecond)
	c.ProbeTimeout = orDefault(t.ProbeTimeout, 250*time.Millisecond)
	c.GossipInterval = orDefault(t.GossipInterval, 100*time.Millisecond)
	c.PushPullInterval = orDefault(t.PushPullInterval, 10*time.Second)
	c.TCPTimeout = orDefault(t.StreamTimeout, 5*time.Second)
	c.DeadNodeReclaimTime = orDefault(t.DeadNodeReclaim, 5*time.Second)
	c.GossipToTheDeadTime = orDefault(t.GossipToTheDead, c.GossipToTheDeadTime)
	c.GossipNodes = gossipNodes
	c.SuspicionMult = suspicionMult
	c.SuspicionMaxTimeoutMult = suspicionMaxMult
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}
