package control

import (
	"context"
	"sync"
	"time"

	"github.com/pyserve/pyserve/control/audit"
)

// Audit gives the audit trail, oldest first, and what its first entry follows.
func (c *Control) Audit() (audit.Anchor, []audit.Entry) { return c.store.Audit() }

// recordTime bounds the write of an entry that no other write carries.
const recordTime = 5 * time.Second

// Record keeps a call that changed nothing in the audit trail: one that was refused, failed, or found nothing to do;
// reason is why, empty where the note itself knows. Of one caller, by key, only so many are kept: nobody may fill the
// trail, and push out of it what was done, by being refused. A call whose entry went with its write is in the trail
// already.
func (c *Control) Record(ctx context.Context, n *audit.Note, key, reason string) {
	now := c.options.Now()
	entry, wanted := n.Refused(now, reason)
	if !wanted {
		return
	}
	if !c.refusals.take(key, now) {
		c.options.Logger.Warn("a refused call is not kept in the audit trail: its caller has many there already",
			"actor", entry.Actor, "role", entry.Role, "address", entry.Address, "method", entry.Method, "outcome", entry.Outcome)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	if err := c.store.AppendAudit(ctx, entry); err != nil {
		c.options.Logger.Warn("cannot keep a call in the audit trail", "actor", entry.Actor, "method", entry.Method, "outcome", entry.Outcome, "error", err)
	}
}

// What of one caller's refused calls is kept: so many at once, and then one now and then.
const (
	refusalBurst = 10
	refusalEvery = time.Minute
	// maxRefusalKeys bounds what is remembered of callers; beyond it all share one measure.
	maxRefusalKeys = 10_000
)

// refusals measures out, by caller, which refused calls are kept. The zero value is ready.
type refusals struct {
	mu    sync.Mutex // guards spent
	spent map[string]measure
}

// measure is a bucket that leaks one call every refusalEvery.
type measure struct {
	level float64
	at    time.Time
}

// take says whether another call of the caller may be kept.
func (r *refusals) take(key string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.spent == nil {
		r.spent = map[string]measure{}
	}
	if _, known := r.spent[key]; !known && len(r.spent) >= maxRefusalKeys {
		r.forget(now)
		if len(r.spent) >= maxRefusalKeys {
			key = ""
		}
	}
	m := r.spent[key].leaked(now)
	if m.level > refusalBurst-1 {
		return false
	}
	m.level++
	r.spent[key] = m
	return true
}

func (m measure) leaked(now time.Time) measure {
	level := m.level - float64(now.Sub(m.at))/float64(refusalEvery)
	return measure{max(0, level), now}
}

// forget drops the callers whose measure is empty again. The caller holds mu.
func (r *refusals) forget(now time.Time) {
	for key, m := range r.spent {
		if m.leaked(now).level == 0 {
			delete(r.spent, key)
		}
	}
}
