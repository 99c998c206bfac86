package health

import (
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	"github.com/pyserve/pyserve/node/vote"
)

// Evidence is what a verdict rests on.
type Evidence struct {
	Verdict upstream.Verdict
	Source  Source
	// Members is how many nodes this one knows, itself included; Probers are those that are to probe, the foremost first.
	Members int
	Probers []string
	// Role is what this node does about the backend, in a few words, and Own what its own probes say; Unknown: it does not probe.
	Role string
	Own  upstream.Verdict
	// Votes are what was heard of probers, this node among them, those that are counted first.
	Votes []Word
	// Refused is why this node passes the backend over though it would be asked by its verdict and its pools; empty: it does not.
	Refused      string
	RefusedSince time.Time
}

// Word is one prober's vote.
type Word struct {
	vote.Vote
	Counted bool
}

// Evidence gives what the verdict on b rests on now.
func (p *Prober) Evidence(b *upstream.Backend) Evidence {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.watches[b]
	if w == nil {
		e := Evidence{Verdict: b.Verdict(), Members: max(1, p.members.Len()), Role: idle.String()}
		if !checked(b.Spec().Check) {
			e.Source, e.Role = NoCheck, NoCheck.String()
		}
		return e
	}
	e := Evidence{
		Verdict: b.Verdict(), Source: w.source, Members: max(1, p.members.Len()), Role: w.role.String(), Own: w.word,
		Probers: p.members.First(w.key, vote.Probers),
	}
	if e.Verdict.State != upstream.Unhealthy || b.FailsOpen() {
		e.Refused, e.RefusedSince = w.refused.reason, w.refused.since
	}
	count := vote.Decide(p.table.Of(w.key), p.members, now)
	counted := make(map[string]bool)
	for _, v := range count.Counted {
		counted[v.Origin] = true
		e.Votes = append(e.Votes, Word{v, w.source == Majority})
	}
	for _, v := range p.table.Of(w.key) {
		if !counted[v.Origin] {
			e.Votes = append(e.Votes, Word{v, false})
		}
	}
	return e
}

// Counters are totals since NewProber.
type Counters struct {
	// Probes at their time, and Looks at backends that refused a request.
	Probes, Looks uint64
	// Votes of others: those that came, and those of them that were refused. A message that cannot be read is one.
	Received, Refused uint64
	// Decisions are changes between healthy and unhealthy, by what they rest on.
	Majority, OwnProbes uint64
	// OwnConnections are backends passed over because a request could not connect.
	OwnConnections uint64
}

type counts struct {
	probes, looks, received, refused, majority, ownProbes, ownConnections atomic.Uint64
}

func (c *counts) probed(regular bool) {
	if regular {
		c.probes.Add(1)
		return
	}
	c.looks.Add(1)
}

func (c *counts) decided(changed bool, by Source) {
	switch {
	case !changed:
	case by == Majority:
		c.majority.Add(1)
	default:
		c.ownProbes.Add(1)
	}
}

// Counters are read one by one.
func (p *Prober) Counters() Counters {
	c := &p.counts
	return Counters{
		Probes: c.probes.Load(), Looks: c.looks.Load(), Received: c.received.Load(), Refused: c.refused.Load(),
		Majority: c.majority.Load(), OwnProbes: c.ownProbes.Load(), OwnConnections: c.ownConnections.Load(),
	}
}
