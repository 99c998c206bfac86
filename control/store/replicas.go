package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// Why the set of controls is not changed.
var (
	// ErrNotLeader says that another control leads, or none.
	ErrNotLeader = errors.New("this control does not lead")
	// ErrNoServer says that there is no control of that name.
	ErrNoServer = errors.New("there is no control of that name")
)

// changeTimeout bounds each step of changing the set of controls.
const changeTimeout = 10 * time.Second

// Admit takes a control in, whose disk is still empty, as a replica without a vote; one of the same name is replaced.
// With the first other control the store begins to use its network. Only the leader can: it fails with [ErrNotLeader].
func (s *Store) Admit(ctx context.Context, server Server) error {
	server.Joined = s.now()
	if err := server.check(); err != nil {
		return err
	}
	s.admitting.Lock()
	defer s.admitting.Unlock()
	if err := s.openNetwork(ctx); err != nil {
		return err
	}
	for _, old := range s.Servers() {
		if old.Name == server.Name && old.ID != server.ID {
			if err := s.remove(ctx, old.ID); err != nil {
				return fmt.Errorf("replace control %q: %w", old.Name, err)
			}
		}
	}
	if err := s.PutServer(ctx, server); err != nil {
		return err
	}
	id := raft.ServerID(server.ID)
	return s.change(ctx, func(r *raft.Raft) raft.Future {
		return r.AddNonvoter(id, raft.ServerAddress(id), 0, changeTimeout)
	})
}

// Promote gives a control that was admitted its vote, when it has caught up; one that has it already, or is not known,
// is no error.
func (s *Store) Promote(ctx context.Context, id string) error {
	for _, server := range s.members() {
		if string(server.ID) == id && server.Suffrage != raft.Voter {
			return s.change(ctx, func(r *raft.Raft) raft.Future {
				return r.AddVoter(server.ID, server.Address, 0, changeTimeout)
			})
		}
	}
	return nil
}

// Remove takes the control of that name out for good: its vote no longer counts, and its disk is of no use any more.
// It fails with [ErrNoServer], and with [ErrNotLeader] where this control does not lead.
func (s *Store) Remove(ctx context.Context, name string) error {
	for _, server := range s.Servers() {
		if server.Name != name {
			continue
		}
		if server.ID == s.id {
			return errors.New("the control that leads cannot remove itself: stop it, and remove it when another leads")
		}
		return s.remove(ctx, server.ID)
	}
	return fmt.Errorf("%q: %w", name, ErrNoServer)
}

func (s *Store) remove(ctx context.Context, id string) error {
	err := s.change(ctx, func(r *raft.Raft) raft.Future { return r.RemoveServer(raft.ServerID(id), 0, changeTimeout) })
	if err != nil {
		return err
	}
	return s.Forget(ctx, id)
}

// Forget removes the record of a control whose vote no longer counts.
func (s *Store) Forget(ctx context.Context, id string) error {
	return s.write(ctx, &storev1.Command{Action: &storev1.Command_RemoveServer{RemoveServer: &storev1.RemoveServer{Id: id}}})
}

// change changes the log's configuration.
func (s *Store) change(ctx context.Context, begin func(*raft.Raft) raft.Future) error {
	if _, err := s.leading(); err != nil {
		return err
	}
	if err := s.await(ctx, begin); err != nil {
		return fmt.Errorf("change the set of controls: %w", s.plainLeadership(err))
	}
	s.machine.touch()
	return nil
}

// PutServer remembers where a control is, in the place of what was remembered of its id.
func (s *Store) PutServer(ctx context.Context, server Server) error {
	c := &storev1.Command{Action: &storev1.Command_PutServer{PutServer: &storev1.PutServer{Server: server.toProto()}}}
	if err := s.write(ctx, c); err != nil {
		return fmt.Errorf("remember where control %.80q is: %w", server.Name, err)
	}
	return nil
}

// RaiseEpoch begins another history from the active revision, which sign signs anew for it: nodes follow a higher epoch
// whatever they serve.
func (s *Store) RaiseEpoch(ctx context.Context, sign func(epoch uint64, active *Snapshot) *fleetv1.Release) error {
	epoch, _ := s.Next()
	c := &storev1.RaiseEpoch{Epoch: epoch + 1}
	if active := s.Active(); active != nil {
		c.Release = sign(epoch+1, active)
	}
	if err := s.write(ctx, &storev1.Command{Action: &storev1.Command_RaiseEpoch{RaiseEpoch: c}}); err != nil {
		return fmt.Errorf("raise the epoch: %w", err)
	}
	return nil
}

// Voters gives the ids of the controls whose votes count, in no order.
func (s *Store) Voters() []string {
	var ids []string
	for _, server := range s.members() {
		if server.Suffrage == raft.Voter {
			ids = append(ids, string(server.ID))
		}
	}
	return ids
}

func (s *Store) members() []raft.Server {
	s.mu.Lock()
	e := s.engine
	s.mu.Unlock()
	if e == nil {
		return nil
	}
	f := e.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

func (s *Store) votes() bool {
	for _, id := range s.Voters() {
		if id == s.id {
			return true
		}
	}
	return false
}

// holdsItself says whether this server's own record is applied: its vote came after that. raft tells of the vote a moment
// before it counts the entry.
func (s *Store) holdsItself() bool {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	_, ok := s.machine.state.servers[s.id]
	return ok
}

// holdsAll says whether everything that was ever brought here is applied.
func (s *Store) holdsAll() bool {
	s.mu.Lock()
	e := s.engine
	s.mu.Unlock()
	if e == nil {
		return false
	}
	last := e.raft.LastIndex()
	return e.raft.AppliedIndex() >= last && s.consumed(last)
}

// consumed says whether the machine holds what raft has handed it, up to an entry: raft counts what is on its way.
func (s *Store) consumed(index uint64) bool {
	for ; index > 0; index-- {
		var entry raft.Log
		if s.storage.GetLog(index, &entry) != nil {
			return true // it came in a snapshot, and raft waits for those
		}
		if entry.Type == raft.LogCommand {
			s.machine.mu.RLock()
			defer s.machine.mu.RUnlock()
			return s.machine.applied >= index
		}
	}
	return true
}

// Joined returns when this control, which was admitted with an empty disk, holds what the others hold and has its vote.
func (s *Store) Joined(ctx context.Context) error {
	if !s.joining && s.votes() {
		return nil // it had its vote before
	}
	for {
		changed := s.Changed()
		if s.votes() && s.holdsAll() && s.holdsItself() {
			return nil
		}
		// The configuration tells nobody when it changes.
		timer := time.NewTimer(50 * time.Millisecond)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("the other controls do not bring this one up to date: %w", context.Cause(ctx))
		}
		timer.Stop()
	}
}

// HandOver lets another control lead before this one stops, so that nobody has to notice that it is gone. Where there is
// no other, or this one does not lead, it does nothing.
func (s *Store) HandOver(ctx context.Context) error {
	if _, err := s.leading(); err != nil || len(s.Voters()) < 2 {
		return nil
	}
	err := s.transfer(ctx, func(r *raft.Raft) raft.Future { return r.LeadershipTransfer() })
	// raft asks the one that holds most, which may have gone a moment ago, or be slow: whoever else is there leads as well.
	for _, id := range s.Voters() {
		if _, leads := s.leading(); err == nil || leads != nil || ctx.Err() != nil {
			break
		}
		if id != s.id {
			err = s.transfer(ctx, func(r *raft.Raft) raft.Future {
				return r.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(id))
			})
		}
	}
	if _, leads := s.leading(); err != nil && leads == nil {
		return fmt.Errorf("hand the lead over: %w", s.plainLeadership(err))
	}
	return nil
}

// transfer asks for a transfer of the lead, once one that has just failed is over: raft tells of its end a moment before.
func (s *Store) transfer(ctx context.Context, begin func(*raft.Raft) raft.Future) error {
	for {
		err := s.await(ctx, begin)
		if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
			return err
		}
		pause := time.NewTimer(leaderPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err
		}
	}
}

// openNetwork starts raft anew, as one of several, where it runs as the only one. Writes wait meanwhile.
func (s *Store) openNetwork(ctx context.Context) error {
	e, err := s.leading()
	if err != nil || e.network {
		return err
	}
	l, err := s.listen() // before anything is stopped: the address may be taken
	if err != nil {
		return err
	}
	resume, err := s.hold(e)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	err = e.end()
	var next *engine
	if err == nil {
		next, err = s.start(l)
	}
	s.mu.Lock()
	s.engine = next
	s.mu.Unlock()
	resume()
	if err != nil {
		return fmt.Errorf("begin to replicate: %w", err) // closed from now on: only a new start helps
	}
	return s.awaitLead(ctx, changeTimeout)
}

// errHeld says that hold was asked for twice at a time.
var errHeld = errors.New("the store is closing, or already has writes wait; try again")

// hold has writes wait, those that had begun done, until resume is called. It fails where e does not run any more, and
// where what had begun does not end.
func (s *Store) hold(e *engine) (resume func(), err error) {
	s.mu.Lock()
	if s.closed || s.engine != e || s.pause != nil {
		s.mu.Unlock()
		return nil, errHeld
	}
	paused := make(chan struct{})
	s.pause = paused
	s.mu.Unlock()
	resume = func() {
		s.mu.Lock()
		s.pause = nil
		s.mu.Unlock()
		close(paused)
	}
	if !s.settle() {
		resume()
		return nil, s.explain(fmt.Errorf("writes that had begun do not end within %s; nothing was changed", closeTimeout))
	}
	return resume, nil
}
