package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/config/bundle"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// Active gives the newest revision; nil where nothing was ever committed. It never waits.
func (s *Store) Active() *Snapshot { return s.machine.active.Load() }

// Next gives the epoch and number that the release of the next revision must carry.
func (s *Store) Next() (epoch, revision uint64) {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return s.machine.state.epoch, s.machine.state.next()
}

// Commit makes the proposal the newest revision. It is on disk when Commit returns; a crash at any moment leaves
// either the old or the new one, whole. It fails with [ErrConflict] where another revision is active than the
// proposal's parent. After any other error, a passed deadline for one, it is not known whether it was kept; asking again
// with the same request id tells, and keeps it once.
func (s *Store) Commit(ctx context.Context, p Proposal) (Revision, error) {
	if p.Request == (RequestID{}) {
		p.Request = NewRequestID()
	}
	if _, done := s.Result(p.Request); !done {
		c, err := s.prepare(&p)
		if err == nil {
			err = s.writeHere(ctx, &storev1.Command{RequestId: p.Request[:], Action: &storev1.Command_CommitRevision{CommitRevision: c}})
		}
		if err != nil {
			return Revision{}, fmt.Errorf("commit revision %d: %w", p.Release.GetRevision(), err)
		}
	}
	return s.committed(p.Request)
}

// committed gives the revision that a request committed. Where another control led, word of it is still on its way.
func (s *Store) committed(request RequestID) (Revision, error) {
	timer := time.NewTimer(writeTimeout)
	defer timer.Stop()
	for {
		changed := s.Changed()
		if number, done := s.Result(request); done {
			return s.revision(number)
		}
		select {
		case <-changed:
		case <-timer.C:
			return Revision{}, errors.New("the revision is kept, and has not reached this control")
		}
	}
}

func (s *Store) revision(number uint64) (Revision, error) {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	v, _, err := s.machine.state.find(number)
	if err != nil {
		return Revision{}, err
	}
	r := v.Revision
	r.Active = v == s.machine.state.active
	return r, nil
}

// prepare makes the command, refusing early what the machine would refuse.
func (s *Store) prepare(p *Proposal) (*storev1.CommitRevision, error) {
	if p.Release == nil || p.Bundle == nil {
		return nil, errors.New("a proposal has a release and a bundle")
	}
	m := &storev1.Revision{
		Release: proto.CloneOf(p.Release), Parent: p.Parent, Author: p.Author, Message: p.Message, Created: timestamppb.New(s.now()),
	}
	s.machine.mu.RLock()
	revision, err := s.machine.state.admit(m)
	active := s.machine.state.activeBundle()
	s.machine.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	if revision.Digest != p.Bundle.Digest() {
		return nil, fmt.Errorf("the bundle's digest is %s, its release says %s", p.Bundle.Digest().Short(), revision.Digest.Short())
	}
	return newCommit(m, p.Document, bundle.Between(active, p.Bundle), s.machine.holds)
}

// Revisions gives the history, newest first: the last [WholeRevisions] whole, older ones as lines.
func (s *Store) Revisions() []Revision {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return s.machine.state.revisions()
}

// Get gives a revision with bundle and document. It fails with [ErrNotFound] or [ErrNotKept].
func (s *Store) Get(number uint64) (*Snapshot, error) {
	s.machine.mu.RLock()
	v, way, err := s.machine.state.find(number)
	from := s.machine.state.activeBundle()
	s.machine.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	if len(way) == 0 {
		found := &Snapshot{Revision: v.Revision, Bundle: v.bundle, Document: v.document}
		found.Active = true
		return found, nil
	}
	b, err := rebuild(from, way, v.Digest)
	if err != nil {
		return nil, fmt.Errorf("rebuild revision %d: %w", number, err)
	}
	document, err := decompress(v.packed)
	if err != nil {
		return nil, fmt.Errorf("rebuild revision %d: %w", number, err)
	}
	return &Snapshot{Revision: v.Revision, Bundle: b, Document: document}, nil
}
