package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

const (
	// writeTimeout bounds a write whose context has no deadline.
	writeTimeout = 30 * time.Second
	// leaderTimeout bounds the part of it during which nobody leads, as while the disk is full, and electedTimeout where
	// others may be elected.
	leaderTimeout  = 2 * time.Second
	electedTimeout = 5 * time.Second
	leaderPause    = 20 * time.Millisecond
)

// write puts a command into the log, here or where the leader is, and returns when it is on disk and applied, or was
// refused. It may ask more than once: the command has a request id.
func (s *Store) write(ctx context.Context, c *storev1.Command) (err error) {
	kept := attest(ctx, c, s.now())
	defer func() {
		if err == nil {
			kept()
		}
	}()
	if len(c.GetRequestId()) == 0 {
		id := NewRequestID()
		c.RequestId = id[:]
	}
	data, err := s.machine.seal.encodeCommand(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	patience := time.NewTimer(s.patience())
	defer patience.Stop()
	begun, led := false, true // an attempt may have been kept; the last one found no leader
	for {
		if !led && ctx.Err() != nil {
			return s.explain(unled(ctx.Err(), begun))
		}
		err := s.attempt(ctx, data)
		if !elsewhere(err) {
			return s.explain(err)
		}
		led = false
		begun = begun || !errors.Is(err, raft.ErrNotLeader) && !errors.Is(err, ErrNotLeader)
		pause := time.NewTimer(leaderPause)
		select {
		case <-pause.C:
			continue
		case <-patience.C:
			err = ErrNotLeader
		case <-ctx.Done():
			err = ctx.Err()
		}
		pause.Stop()
		return s.explain(unled(err, begun))
	}
}

// writeHere puts a command into the log of a leader, once: who proposes a revision has brought nodes to prepare it, which
// another leader has not.
func (s *Store) writeHere(ctx context.Context, c *storev1.Command) (err error) {
	if !s.several() {
		return s.write(ctx, c) // no other can lead
	}
	kept := attest(ctx, c, s.now())
	defer func() {
		if err == nil {
			kept()
		}
	}()
	data, err := s.machine.seal.encodeCommand(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err = s.Take(ctx, data)
	if !elsewhere(err) || errors.Is(err, ErrNotLeader) || errors.Is(err, ErrUnknown) {
		return s.explain(err)
	}
	return s.explain(fmt.Errorf("%w: %w", ErrUnknown, err))
}

func unled(err error, begun bool) error {
	if begun {
		return fmt.Errorf("the control that led is gone; the change may yet be kept: %w", err)
	}
	return fmt.Errorf("no control leads, so nothing was changed: %w", err)
}

// patience is how long to wait for a leader.
func (s *Store) patience() time.Duration {
	if s.several() {
		return electedTimeout
	}
	return leaderTimeout
}

// several says whether another control may lead.
func (s *Store) several() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.engine != nil && s.engine.network
}

// attempt tries a command here, or brings it to the leader.
func (s *Store) attempt(ctx context.Context, data []byte) error {
	err := s.Take(ctx, data)
	if !errors.Is(err, raft.ErrNotLeader) || s.options.Forward == nil {
		return err
	}
	leader, ok := s.Leader()
	if !ok || leader.ID == s.id || leader.Endpoint == "" {
		return err
	}
	return s.options.Forward(ctx, leader, data)
}

// Take puts a command that another control brought into the log, where this one leads; otherwise it fails with
// [ErrNotLeader].
func (s *Store) Take(ctx context.Context, command []byte) error {
	if _, err := s.machine.seal.decodeCommand(command); err != nil {
		return fmt.Errorf("the command cannot be read: %w", err)
	}
	err := s.await(ctx, func(r *raft.Raft) raft.Future { return r.Apply(command, leaderTimeout) })
	switch {
	case errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotLeader, raft.ErrNotLeader)
	case errors.As(err, new(*DiskError)) && s.several():
		return fmt.Errorf("%w: %w", ErrUnknown, err) // another one, whose disk takes writes, will lead
	}
	return err
}

// ErrUnknown says that a write was begun and its outcome is not known: asking again with the same request id is safe.
var ErrUnknown = errors.New("it is not known whether the change was kept")

// elsewhere says whether asking again may help: the lead moved, before or after the command was taken.
func elsewhere(err error) bool {
	for _, moved := range []error{ErrNotLeader, raft.ErrNotLeader, raft.ErrLeadershipLost, raft.ErrAbortedByRestore, raft.ErrEnqueueTimeout, ErrUnknown} {
		if errors.Is(err, moved) {
			return true
		}
	}
	return false
}

// await waits for a future, or for the context: then it is not known what became of it. Where the future is a
// command's, the error is also the machine's answer.
func (s *Store) await(ctx context.Context, begin func(*raft.Raft) raft.Future) error {
	answer := make(chan error, 1)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.mu.Lock()
		resume, e := s.pause, s.engine
		if s.closed || e == nil && resume == nil {
			s.mu.Unlock()
			return ErrClosed
		}
		if resume == nil {
			s.work.Go(func() { answer <- s.outcome(begin(e.raft)) })
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
		select {
		case <-resume:
		case <-ctx.Done():
		}
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the disk, or most of the controls, did not answer in time; the change may yet be kept: %w", ctx.Err())
	}
}

func (s *Store) outcome(f raft.Future) error {
	switch err := f.Error(); {
	case errors.Is(err, raft.ErrRaftShutdown):
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.closed {
			return fmt.Errorf("%w: %w", ErrUnknown, err) // it is being started anew
		}
		return ErrClosed
	case err != nil:
		return err
	}
	if applied, ok := f.(raft.ApplyFuture); ok {
		if err, ok := applied.Response().(error); ok {
			return err
		}
	}
	return nil
}
