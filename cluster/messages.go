package cluster

import (
	"errors"
	"fmt"
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

// The limits of Publish, in bytes, and of what a full exchange carries.
const (
	MaxPayload = state.MaxPayload
	MaxState   = 256 << 10
)

// News is a message of another member, or one of our own from before this process.
type News struct {
	From  Origin
	Topic Topic
	// Payload is the reader's own.
	Payload []byte
	// Age is how long ago it was said, at least. That of a message which came by gossip is 0 unless more is known.
	Age time.Duration
	// Signed is the message with its origin's signature, for Options.State.
	Signed string
}

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

// atLeast lets what we said before this process be older than what we say now.
func (m *messages) atLeast(sequence uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sequence = max(m.sequence, sequence)
}

func (m *messages) isNews(message state.Message) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ledger.IsNews(message.Origin, message.Sequence)
}

// note remembers a message and tells how old it is, of which another member says that it is claimed old.
func (m *messages) note(message state.Message, claimed time.Duration) time.Duration {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	age := m.ledger.Age(message.Origin, message.Sequence, now)
	m.ledger.Note(message.Origin, message.Sequence, now)
	return max(age, claimed)
}

func (m *messages) forget(o Origin) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ledger.Forget(o)
}

// Publish tells all members of a piece of news: their Options.Receive gets it, within a second or so, from most of them
// once. It does not wait and nothing is confirmed: members that join later, and those that a packet did not reach, learn
// it only from Options.State, which signed is for. A payload of more than MaxPayload bytes is an error, and so is a cluster that
// was not started. Every member tells each message twelve times or so, and has room for 120 KB a second of that: keep them
// few and small.
func (c *Cluster) Publish(topic Topic, payload []byte) (signed string, err error) {
	g := c.started()
	if g == nil {
		return "", errors.New("cluster: not started, so nobody can be told")
	}
	m := state.Message{Origin: c.self(), Topic: topic, Payload: payload}
	if err := m.Check(); err != nil {
		return "", fmt.Errorf("cluster: %w", err)
	}
	m.Sequence = c.messages.next(time.Now())
	unsigned := m.EncodeUnsigned()
	signature, err := voucher.Sign(c.options.Key, state.SignedMessage(c.options.ClusterID, unsigned))
	if err != nil {
		return "", err
	}
	c.messages.note(m, 0)
	raw := append(unsigned, signature...)
	return string(raw), g.Tell(raw)
}

func (c *Cluster) self() Origin { return Origin{Role: c.options.Role, Name: c.options.Name} }

// receive takes a message that came by gossip, and passes it on. It runs in one goroutine of package gossip, as merge does.
func (c *Cluster) receive(raw []byte) {
	news, err := c.take(state.Told{Message: raw})
	if err != nil {
		c.messages.drop(reasonOf(err))
	}
	g := c.started()
	if !news || g == nil { // none yet: it came while we start
		return
	}
	if err := g.Pass(raw); err != nil {
		c.options.Logger.Error("a message cannot be passed on", "error", err)
	}
}

// take proves that a message is its origin's and hands it over, once.
func (c *Cluster) take(t state.Told) (news bool, err error) {
	m, unsigned, err := state.DecodeMessage(t.Message)
	if err != nil {
		return false, &disbelief{malformed, err}
	}
	if !c.messages.isNews(m) {
		return false, nil
	}
	if err := c.prove(m, unsigned); err != nil {
		return false, err
	}
	age := c.messages.note(m, t.Age)
	if c.options.Receive != nil {
		c.options.Receive(News{From: m.Origin, Topic: m.Topic, Payload: m.Payload, Age: age, Signed: string(t.Message)})
	}
	return m.Origin != c.self(), nil
}

func (c *Cluster) prove(m state.Message, unsigned []byte) error {
	signed := state.SignedMessage(c.options.ClusterID, unsigned)
	if m.Origin != c.self() {
		return c.vouched.check(m.Origin, signed, m.Signature, time.Now())
	}
	// From before this process; our clock may have been ahead then.
	if !voucher.SignedBy(c.options.Key.Public(), signed, m.Signature) {
		return disbelieve(forged, "it is not signed by this member")
	}
	c.messages.atLeast(m.Sequence)
	return nil
}

// ownState gives what a full exchange carries of us: of what Options.State gives, the first that fits.
func (c *Cluster) ownState() []byte {
	if c.options.State == nil {
		return nil
	}
	var exchange []byte
	for signed, age := range c.options.State() {
		longer := state.AppendTold(exchange, state.Told{Message: []byte(signed), Age: age})
		if len(longer) > MaxState {
			break
		}
		exchange = longer
	}
	return exchange
}

// merge takes what another member passed on at a full exchange. Honest members pass on what they have proved: after a message
// that is forged the rest is not looked at, so that a lie costs the proof of one.
func (c *Cluster) merge(raw []byte) {
	told, err := state.DecodeTold(raw)
	if err != nil {
		c.messages.drop(malformed)
		return
	}
	for _, t := range told {
		if _, err := c.take(t); err != nil {
			c.messages.drop(reasonOf(err))
			if reasonOf(err) != unvouched {
				return
			}
		}
	}
}

// Dropped counts by reason, since the start, what was not believed of others, each time that it came, and what got lost on
// this side: "malformed", "unvouched" (of a name that control did not vouch for), "forged" (not signed by the name's
// holder), "replayed" (facts older than those known), "oversize", "overflow" (too many messages at once; the oldest went),
// "untold" (a message told too seldom, since there were too many),
// "connection" (too many that said nothing, or TLS where nobody takes it).
func (c *Cluster) Dropped() map[string]uint64 {
	counts := map[string]uint64{malformed: 0, unvouched: 0, forged: 0, replayed: 0}
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
	return counts
}
