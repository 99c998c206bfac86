package health

import (
	"time"

	"github.com/pyserve/pyserve/node/vote"
)

// Accuse tells the other nodes something bad that this node knows by other means than probes. It travels as a vote on key, which
// no check has, and counts for about as long as lasts. A node that distrusts itself accuses nobody.
func (p *Prober) Accuse(key vote.Key, reason string, lasts time.Duration) {
	now := time.Now()
	p.mu.Lock()
	p.reconsider(now)
	if p.closed || p.distrust || p.members.Len() < 2 {
		p.mu.Unlock()
		return
	}
	p.sequence = max(p.sequence+1, uint64(now.UnixMicro()))
	v := vote.Vote{
		Key: key, Origin: p.self, Sequence: p.sequence, State: vote.Unhealthy, Reason: shorten(reason, vote.MaxReason),
		Since: now.Truncate(time.Millisecond), Repeat: repeatFor(lasts), Heard: now,
	}
	votes := []vote.Vote{v}
	p.hold(votes, now)
	p.mu.Unlock()
	bytes, _ := vote.Encode(votes, MaxMessage)
	p.send([]message{{votes, bytes}})
}

// repeatFor makes a vote count for as long as lasts, or vote.Slack if that is longer.
func repeatFor(lasts time.Duration) time.Duration {
	return max((lasts-vote.Slack)*2/3, time.Millisecond).Truncate(time.Millisecond)
}

// Listen has heard called whenever something is said on key, until Ignore. It is called with the prober's lock held, and so must
// neither wait nor call the prober. What has been said before stands in Accusers.
func (p *Prober) Listen(key vote.Key, heard func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listeners[key] = heard
	p.table.Expect(key)
}

// Ignore takes Listen back, and forgets what was said.
func (p *Prober) Ignore(key vote.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.listeners, key)
	p.table.Forget(key)
}

// Accusers is how many other members accuse on key at this moment, and until when the last of them does.
func (p *Prober) Accusers(key vote.Key) (nodes int, until time.Time) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.table.Of(key) {
		u := v.FreshUntil()
		if v.Origin == p.self || v.State != vote.Unhealthy || !now.Before(u) || !p.members.Has(v.Origin) {
			continue
		}
		nodes++
		if u.After(until) {
			until = u
		}
	}
	return nodes, until
}
