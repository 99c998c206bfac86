package store

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/control/audit"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

func auditToProto(e *audit.Entry) *storev1.AuditEntry {
	return &storev1.AuditEntry{
		Sequence: e.Sequence, Time: timestamppb.New(e.Time), Actor: e.Actor, Role: e.Role, Address: e.Address,
		Method: e.Method, What: e.What, Outcome: e.Outcome, Previous: e.Previous[:], Hash: e.Hash[:],
	}
}

// auditFrom reads an entry. In a command its hashes do not matter: its place in the log decides them.
func auditFrom(m *storev1.AuditEntry) (e audit.Entry, err error) {
	e = audit.Entry{
		Sequence: m.GetSequence(), Actor: m.GetActor(), Role: m.GetRole(), Address: m.GetAddress(),
		Method: m.GetMethod(), What: m.GetWhat(), Outcome: m.GetOutcome(),
	}
	if e.Time, err = timeFrom(m.GetTime()); err != nil {
		return audit.Entry{}, err
	}
	if e.Previous, err = hashFrom(m.GetPrevious()); err != nil {
		return audit.Entry{}, fmt.Errorf("the audit entry: %w", err)
	}
	if e.Hash, err = hashFrom(m.GetHash()); err != nil {
		return audit.Entry{}, fmt.Errorf("the audit entry: %w", err)
	}
	return e, e.Check()
}

// attest has a command carry who asked for it, where somebody did; kept is to be called when the command was applied.
func attest(ctx context.Context, c *storev1.Command, now time.Time) (kept func()) {
	note := audit.From(ctx)
	entry, any := note.Entry(now)
	if !any || c.GetAudit() != nil {
		return func() {}
	}
	c.Audit = auditToProto(&entry)
	return note.Keep
}

// attest puts who asked for a state that is to take another's place into its trail; kept is to be called when it has.
func (s *state) attest(ctx context.Context, now time.Time) (kept func()) {
	note := audit.From(ctx)
	entry, any := note.Entry(now)
	if !any {
		return func() {}
	}
	s.trail.Append(entry)
	return note.Keep
}

// AppendAudit adds an entry to the audit trail, for what changes nothing else in the store; its sequence and hashes are
// set here.
func (s *Store) AppendAudit(ctx context.Context, e audit.Entry) error {
	c := &storev1.Command{
		Action: &storev1.Command_AppendAudit{AppendAudit: &storev1.AppendAudit{}}, Audit: auditToProto(&e),
	}
	if err := s.write(ctx, c); err != nil {
		return fmt.Errorf("write the audit trail: %w", err)
	}
	return nil
}

// Audit gives the audit trail, oldest first, and what its first entry follows. It is not to be changed.
func (s *Store) Audit() (audit.Anchor, []audit.Entry) {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return s.machine.state.trail.Entries()
}
