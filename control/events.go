package control

import (
	"fmt"
	"sync"

	"github.com/pyserve/pyserve/control/journal"
	"github.com/pyserve/pyserve/control/store"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// journalSize is how many events are kept: some hours of an ordinary day, in two megabytes at most.
const journalSize = 1000

// Journal is what happened lately, as far as this control has seen it.
func (c *Control) Journal() *journal.Journal { return c.journal }

// telling is what the journal was told of revisions.
type telling struct {
	mu    sync.Mutex // guards what follows
	epoch uint64     // of told
	told  uint64     // the newest revision that it knows of
	back  uint64     // the revision that is, or would be, a rollback
}

// tellStart writes down with what control starts.
func (c *Control) tellStart() {
	text := "nothing was applied yet"
	if active := c.store.Active(); active != nil {
		c.telling.epoch, c.telling.told = active.Release.GetEpoch(), active.Number
		text = fmt.Sprintf("revision %d is active", active.Number)
	}
	c.journal.Add(journal.ControlStarted, c.options.Name, text)
}

// tellRevision writes down that a revision is active now, once, whoever sees it first: who made it, or who follows the
// store. A new epoch begins with a revision of any number.
func (c *Control) tellRevision(active *store.Snapshot) {
	c.telling.mu.Lock()
	defer c.telling.mu.Unlock()
	epoch, before := active.Release.GetEpoch(), c.telling.epoch
	if epoch < before || epoch == before && active.Number <= c.telling.told {
		return
	}
	c.telling.epoch, c.telling.told = epoch, active.Number
	if before > 0 && epoch > before {
		c.journal.Add(journal.RevisionRestored, revisionName(active.Number),
			fmt.Sprintf("it begins epoch %d: a backup was restored, or one control was made the only one", epoch))
		return
	}
	kind := journal.RevisionApplied
	if c.telling.back == active.Number {
		kind = journal.RevisionRolledBack
	}
	text := "by " + active.Author
	if active.Message != "" {
		text += ": " + active.Message
	}
	c.journal.Add(kind, revisionName(active.Number), text)
}

// expectRollback says that a revision, if it comes to be, is a rollback: the store does not tell.
func (c *Control) expectRollback(revision uint64) {
	c.telling.mu.Lock()
	defer c.telling.mu.Unlock()
	c.telling.back = revision
}

// tellOutcome writes down that a revision did not come to be, or not everywhere in time.
func (c *Control) tellOutcome(revision uint64, author string, r *operatorv1.ApplyResult) {
	kinds := map[operatorv1.ApplyOutcome]journal.Kind{
		operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED:    journal.RevisionRefused,
		operatorv1.ApplyOutcome_APPLY_OUTCOME_INCOMPLETE: journal.RevisionIncomplete,
	}
	if kind, ok := kinds[r.GetOutcome()]; ok {
		c.journal.Add(kind, revisionName(revision), fmt.Sprintf("by %s: %s", author, r.GetReason()))
	}
}

func revisionName(number uint64) string { return fmt.Sprintf("revision %d", number) }
