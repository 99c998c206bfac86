package cluster

import (
	"context"
	"log/slog"
	"time"

	"github.com/pyserve/pyserve/cluster/gossip"
	"github.com/pyserve/pyserve/cluster/state"
)

const (
	// tidyInterval is how often the roster forgets, and remembered peers are dated, when nothing happens.
	tidyInterval = 30 * time.Second
	// conflictEvery is how often one conflict of names is logged, and maxConflicts how many are remembered.
	conflictEvery = 10 * time.Minute
	maxConflicts  = 256
)

// watch keeps the roster and the list of peers up to date, and logs what happens to members.
func (c *Cluster) watch(ctx context.Context, g *gossip.Gossip) {
	ticker := time.NewTicker(tidyInterval)
	defer ticker.Stop()
	logged := make(map[gossip.Conflict]time.Time)
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.Changed():
			c.observe(g)
		case <-ticker.C:
			c.observe(g)
		case conflict := <-g.Conflicts():
			c.logConflict(logged, conflict, time.Now())
		}
	}
}

// observe merges what gossip knows now.
func (c *Cluster) observe(g *gossip.Gossip) {
	now := time.Now()
	seen := c.sighting(g, now)
	c.mu.Lock()
	changes, stale := c.roster.Merge(seen, now)
	for _, m := range seen {
		if !c.isSelf(m) {
			c.peers.observe(m, now)
		}
	}
	c.mu.Unlock()
	for range stale {
		c.messages.drop(replayed)
	}
	for _, change := range changes {
		c.logChange(change)
		if change.Member.State == 0 {
			gone := Origin{Role: change.Member.Role, Name: change.Member.Name}
			c.vouched.forget(gone)
			c.messages.forget(gone)
		}
	}
	if len(changes) > 0 {
		wake(c.changed)
	}
}

// sighting gives the members that gossip knows now and control vouched for.
func (c *Cluster) sighting(g *gossip.Gossip, now time.Time) []Member {
	peers := g.Peers()
	members := make([]Member, 0, len(peers))
	for _, p := range peers {
		role, name, err := state.ParseWireName(p.Name)
		if err != nil {
			continue
		}
		m := Member{Name: name, Role: role, Address: p.Address}
		if !c.isSelf(m) && !p.Gone && !c.vouched.good(Origin{Role: role, Name: name}, now) {
			continue // its voucher has ended
		}
		metadata, _, err := state.DecodeMetadata(p.Metadata)
		if err != nil {
			c.options.Logger.Debug("a member's facts cannot be read", "member", name, "role", role.String(), "reason", err)
		}
		m.State, m.Facts = liveness(p.Gone, metadata.Facts), metadata.Facts
		m.KeyMark, m.Sequence = metadata.KeyMark, metadata.Sequence
		members = append(members, m)
	}
	return members
}

// liveness tells a member that left from one that died by what it said of itself last.
func liveness(gone bool, facts Facts) Liveness {
	switch {
	case !gone:
		return state.Alive
	case facts.Leaving:
		return state.Left
	}
	return state.Dead
}

func (c *Cluster) isSelf(m Member) bool { return m.Name == c.options.Name && m.Role == c.options.Role }

// logChange says what happened to another member, in one line.
func (c *Cluster) logChange(change state.Change) {
	m := change.Member
	if c.isSelf(m) || change.Before == m.State {
		return
	}
	level, text := slog.LevelInfo, ""
	switch m.State {
	case state.Alive:
		text = "member joined"
		if change.Before.Gone() {
			text = "member is back"
		}
	case state.Dead:
		level, text = slog.LevelWarn, "member is dead: it did not answer and did not say that it leaves"
	case state.Left:
		text = "member left"
	default:
		level, text = slog.LevelDebug, "member is no longer listed"
	}
	c.options.Logger.Log(context.Background(), level, text, "member", m.Name, "role", m.Role.String(), "address", m.Address)
}

// logConflict says once in a while that two members have one name; memberlist reports it with every packet.
func (c *Cluster) logConflict(logged map[gossip.Conflict]time.Time, conflict gossip.Conflict, now time.Time) {
	if at, known := logged[conflict]; known && now.Sub(at) < conflictEvery {
		return
	}
	if len(logged) >= maxConflicts {
		clear(logged)
	}
	logged[conflict] = now
	role, name, err := state.ParseWireName(conflict.Name)
	if err != nil {
		return
	}
	text := "two members have the same name; the second is ignored until the first is gone, so give it another name"
	if name == c.options.Name && role == c.options.Role {
		text = "another member has our name; the others may not see both, so give one of the two another name"
	}
	c.options.Logger.Warn(text, "member", name, "role", role.String(), "first", conflict.Holder, "second", conflict.Claimant)
}
