package cluster

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pyserve/pyserve/cluster/gossip"
	"github.com/pyserve/pyserve/cluster/state"
	"github.com/pyserve/pyserve/proto/voucher"
)

// Topic and Origin are package cluster/state's, under the names that users of this package need.
type (
	Topic  = state.Topic
	Origin = state.Origin
)

// The topics. A number that was in use is not used for something else.
const (
	// TopicHealth is what nodes found out about backends.
	TopicHealth Topic = 1
)

// The limits of Publish, in bytes, and of what Options.State gives.
const (
	MaxKey     = state.MaxKey
	MaxPayload = state.MaxPayload
	MaxState   = 256 << 10
)

// messages is our part in passing news on.
type messages struct {
	// mu guards what follows; nothing of package gossip is called under it.
	mu       sync.Mutex
	sequence uint64
	dropped  map[string]uint64
	ledger   *state.Ledger
}

func newMessages() *messages {
	return &messages{dropped: make(map[string]uint64), ledger: state.NewLedger()}
}

// next gives a sequence above all before it, those of an earlier process included as long as the clock is not set back.
func (m *messages) next(now time.Time) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sequence = max(m.sequence+1, uint64(max(now.UnixMicro(), 0)))
	return m.sequence
}

func (m *messages) drop(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropped[reason]++
}

func (m *messages) isNews(message state.Message) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ledger.IsNews(message)
}

func (m *messages) note(message state.Message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ledger.Note(message)
}

func (m *messages) forget(o Origin) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ledger.Forget(o)
}

// Publish tells all members of a piece of news: their Options.Receive gets it, within a second or so, from most of them
// once. It does not wait and nothing is confirmed: members that join later, and those that a packet did not reach, learn
// it only from Options.State. Of one topic and key the latest replaces the one before, also where that is still being
// told. A key of more than MaxKey bytes or a payload of more than MaxPayload is an error, and so is a cluster that was not
// started. Every member tells each message twelve times or so, and has room for 15 KB of messages a second: keep them few and small.
func (c *Cluster) Publish(topic Topic, key string, payload []byte) error {
	g := c.started()
	if g == nil {
		return errors.New("cluster: not started, so nobody can be told")
	}
	m := state.Message{Origin: c.self(), Topic: topic, Key: key, Payload: payload}
	if err := m.Check(); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	m.Sequence = c.messages.next(time.Now())
	unsigned := m.EncodeUnsigned()
	signature, err := voucher.Sign(c.options.Key, state.SignedMessage(c.options.ClusterID, unsigned))
	if err != nil {
		return err
	}
	return g.Tell(name(m), append(unsigned, signature...))
}

func (c *Cluster) self() Origin { return Origin{Role: c.options.Role, Name: c.options.Name} }

// name is that under which a message waits to be told: a later one takes its place.
func name(m state.Message) string {
	return fmt.Sprintf("%d %s %d %s", m.Origin.Role, m.Origin.Name, m.Topic, m.Key)
}

// receive takes a message off the network, passes it on and hands it over. It runs in one goroutine of package gossip.
func (c *Cluster) receive(raw []byte) {
	m, unsigned, err := state.DecodeMessage(raw)
	if err != nil {
		c.messages.drop(malformed)
		return
	}
	if m.Origin == c.self() || !c.messages.isNews(m) {
		return
	}
	if err := c.vouched.check(m.Origin, state.SignedMessage(c.options.ClusterID, unsigned), m.Signature, time.Now()); err != nil {
		c.messages.drop(reasonOf(err))
		return
	}
	c.messages.note(m)
	if g := c.started(); g != nil { // else it came while we start
		if err := g.Tell(name(m), raw); err != nil {
			c.options.Logger.Error("a message cannot be passed on", "error", err)
		}
	}
	if c.options.Receive != nil {
		c.options.Receive(m.Origin, m.Topic, m.Key, m.Payload)
	}
}

// ownState gives what a full exchange carries of us.
func (c *Cluster) ownState() []byte {
	if c.options.State == nil {
		return nil
	}
	bytes := c.options.State()
	if len(bytes) > MaxState {
		c.messages.drop("state_unsent")
		return nil
	}
	unsigned := state.Snapshot{Origin: c.self(), Sequence: c.messages.next(time.Now()), Bytes: bytes}.EncodeUnsigned()
	signature, err := voucher.Sign(c.options.Key, state.SignedSnapshot(c.options.ClusterID, unsigned))
	if err != nil {
		c.messages.drop("state_unsent")
		return nil
	}
	return append(unsigned, signature...)
}

// snapshotKey stands in the ledger for the states of an origin: no message has a key that long.
var snapshotKey = strings.Repeat("s", MaxKey+1)

// merge takes the state of another member, in the goroutine of receive.
func (c *Cluster) merge(raw []byte) {
	s, unsigned, err := state.DecodeSnapshot(raw)
	if err != nil || len(s.Bytes) > MaxState {
		c.messages.drop(malformed)
		return
	}
	// Two exchanges may overtake one another; what is not the latest may be a replay and is not needed.
	news := state.Message{Origin: s.Origin, Key: snapshotKey, Sequence: s.Sequence}
	if s.Origin == c.self() || !c.messages.isNews(news) {
		return
	}
	if err := c.vouched.check(s.Origin, state.SignedSnapshot(c.options.ClusterID, unsigned), s.Signature, time.Now()); err != nil {
		c.messages.drop(reasonOf(err))
		return
	}
	c.messages.note(news)
	if c.options.Merge != nil {
		c.options.Merge(s.Origin, s.Bytes)
	}
}

// Dropped counts by reason, since the start, what was not believed of others, each time that it came, and what got lost on
// this side: "malformed", "unvouched" (of a name that control did not vouch for), "forged" (not signed by the name's
// holder), "replayed" (facts older than those known), "oversize", "overflow" (too many messages at once; the oldest went),
// "untold" (a message told too seldom, since there were too many), "state_unsent" (ours was larger than MaxState),
// "connection" (too many that said nothing, or TLS where nobody takes it).
func (c *Cluster) Dropped() map[string]uint64 {
	counts := map[string]uint64{malformed: 0, unvouched: 0, forged: 0, replayed: 0, "state_unsent": 0}
	c.messages.mu.Lock()
	for reason, n := range c.messages.dropped {
		counts[reason] = n
	}
	c.messages.mu.Unlock()
	var drops gossip.Drops
	if g := c.started(); g != nil {
		drops = g.Dropped()
	}
	counts["oversize"], counts["overflow"], counts["untold"] = drops.Oversize, drops.Overflow, drops.Untold
	counts["connection"] = drops.Connections
	counts["state_unsent"] += drops.Unsent
	return counts
}
