package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// electionTimeout is raft's only timer with one voter: nobody else votes, so the sooner the better.
	electionTimeout = 50 * time.Millisecond
	// With several voters a leader that is not heard of for heartbeatTimeout to twice that is replaced; it has given up
	// the lead itself before, after leaseTimeout without an answer of most.
	heartbeatTimeout = 400 * time.Millisecond
	leaseTimeout     = 400 * time.Millisecond
	// commitTimeout to twice that is how long a follower may take to hear that what it holds is committed, where nothing
	// else is written.
	commitTimeout = 20 * time.Millisecond
	// rpcTimeout bounds a call to another control; a snapshot gets as much for each 256 KiB.
	rpcTimeout = 10 * time.Second
	// maxPooled is how many connections to each other control are kept.
	maxPooled = 3
)

// Network is how the store reaches the other controls. Whoever is at the other end of a connection has proved to be a
// control of this cluster.
type Network struct {
	// Listen opens the address that others reach this control's log at.
	Listen func() (net.Listener, error)
	// Dial reaches another control's.
	Dial func(address string, timeout time.Duration) (net.Conn, error)
}

// engine is raft with its transport: replaced as a whole when the first other control joins, since a single voter has
// no network, and other timers.
type engine struct {
	raft    *raft.Raft
	network bool
	conns   *raft.NetworkTransport // nil without network
	leads   atomic.Bool            // it leads, and everything that was committed before is applied
	stop    chan struct{}
	group   sync.WaitGroup
}

// stream is raft's way over a Network.
type stream struct {
	net.Listener
	dial func(address string, timeout time.Duration) (net.Conn, error)
}

// Dial implements raft.StreamLayer.
func (s stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.dial(string(address), timeout)
}

// addresses finds where a server is now: the log's configuration holds ids only.
type addresses struct{ machine *machine }

// ServerAddr implements raft.ServerAddressProvider.
func (a addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if server, ok := a.machine.server(string(id)); ok {
		return raft.ServerAddress(server.RaftAddress), nil
	}
	return "", errors.New("it is not known where it is")
}

// configuration gives raft's settings.
func (s *Store) configuration(network bool) *raft.Config {
	conf := raft.DefaultConfig()
	conf.Logger = &raftLogger{to: s.logger}
	conf.LocalID = raft.ServerID(s.id)
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = electionTimeout, electionTimeout, electionTimeout
	if network {
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = heartbeatTimeout, heartbeatTimeout, leaseTimeout
	}
	conf.CommitTimeout = commitTimeout
	conf.SnapshotThreshold, conf.TrailingLogs, conf.SnapshotInterval = snapshotEntries, snapshotEntries, snapshotInterval
	conf.NoSnapshotRestoreOnStart = true // restoreNewest did
	conf.ShutdownOnRemove = false        // the process says so, and goes on with what it can
	conf.NoLegacyTelemetry = true
	return conf
}

// start starts raft. A listener makes it one of several.
func (s *Store) start(l net.Listener) (*engine, error) {
	e := &engine{network: l != nil, stop: make(chan struct{})}
	conf := s.configuration(e.network)
	_, transport := raft.NewInmemTransport(raft.ServerAddress(s.id))
	over := raft.Transport(transport)
	if e.network {
		e.conns = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			ServerAddressProvider: addresses{s.machine}, Logger: conf.Logger, Stream: stream{l, s.options.Network.Dial},
			MaxPool: maxPooled, MaxRPCsInFlight: 1, Timeout: rpcTimeout, MsgpackUseNewTimeFormat: true,
		})
		over = e.conns
	}
	s.machine.restarted()
	var err error
	if e.raft, err = raft.NewRaft(conf, s.machine, s.storage, s.storage, s.snapshots, over); err != nil {
		if closer, ok := over.(raft.WithClose); ok {
			err = errors.Join(err, closer.Close())
		}
		return nil, fmt.Errorf("start raft: %w", err)
	}
	observed := make(chan raft.Observation, 1)
	observer := raft.NewObserver(observed, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	e.raft.RegisterObserver(observer)
	e.group.Go(func() {
		s.follow(e, observed)
		e.raft.DeregisterObserver(observer)
	})
	if e.network {
		e.group.Go(func() { s.keepCommitted(e) })
	}
	return e, nil
}

// committedPause is between two writes of how far the log is committed.
const committedPause = time.Second

// keepCommitted keeps how far the log is committed, until the engine stops: raft does not, and a start without a leader
// would show nothing of what came after the last snapshot. It is as good when it is behind.
func (s *Store) keepCommitted(e *engine) {
	ticker := time.NewTicker(committedPause)
	defer ticker.Stop()
	for kept := uint64(0); ; {
		select {
		case <-ticker.C:
		case <-e.stop:
			return
		}
		if applied := s.machine.holdsUpTo(); applied > kept && s.storage.keepCommitted(applied) == nil {
			kept = applied
		}
	}
}

// applyCommitted applies what is known to be committed after the snapshot: without a leader raft does not.
func (s *Store) applyCommitted(snapshot uint64) error {
	committed, err := s.storage.committed()
	if err != nil {
		return fmt.Errorf("read how far the log is committed: %w", err)
	}
	last, err := s.storage.LastIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	for i := snapshot + 1; i <= min(committed, last); i++ {
		var entry raft.Log
		if err := s.storage.GetLog(i, &entry); err != nil {
			return fmt.Errorf("read entry %d of the log: %w", i, err)
		}
		if entry.Type == raft.LogCommand {
			s.machine.Apply(&entry) // a refusal is as good as done
		}
	}
	return s.machine.err()
}

// follow keeps whether this server leads, and lets readers know of every change.
func (s *Store) follow(e *engine, observed <-chan raft.Observation) {
	for {
		select {
		case leads := <-e.raft.LeaderCh():
			e.leads.Store(leads && s.settled(e))
		case <-observed:
		case <-e.stop:
			return
		}
		s.machine.touch()
	}
}

// settled waits until a server that has become the leader holds everything that was ever committed.
func (s *Store) settled(e *engine) bool {
	barrier := e.raft.Barrier(0)
	done := make(chan error, 1)
	go func() { done <- barrier.Error() }()
	select {
	case err := <-done:
		return err == nil
	case <-e.stop:
		return false // raft is shut down now, which answers the barrier
	}
}

// end stops raft and waits for everything of it.
func (e *engine) end() error {
	close(e.stop)
	err := e.raft.Shutdown().Error()
	if e.conns != nil {
		e.conns.CloseStreams() // its own end leaves open what it keeps for later, and whoever reads there waits on
	}
	e.group.Wait()
	return err
}

// leading gives raft where it leads.
func (s *Store) leading() (*engine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.engine == nil {
		return nil, ErrClosed
	}
	if !s.engine.leads.Load() || s.engine.raft.State() != raft.Leader {
		return nil, ErrNotLeader
	}
	return s.engine, nil
}

// Leads says whether this control leads and holds everything that was ever committed: writes are decided here.
func (s *Store) Leads() bool {
	_, err := s.leading()
	return err == nil
}

// Leader gives the control that leads, as far as this one knows; false: none, as during an election or without a
// majority. Where no record of it has come yet, only its ID is set.
func (s *Store) Leader() (Server, bool) {
	s.mu.Lock()
	e := s.engine
	s.mu.Unlock()
	if e == nil {
		return Server{}, false
	}
	_, id := e.raft.LeaderWithID()
	if id == "" || id == raft.ServerID(s.id) && !e.leads.Load() {
		return Server{}, false
	}
	if server, ok := s.machine.server(string(id)); ok {
		return server, true
	}
	return Server{ID: string(id)}, true
}

// Current says whether somebody leads and this control has applied all that its disk holds. A control that was started beside
// others that are away is not: what its log held behind the last snapshot is not known to be kept before somebody leads.
func (s *Store) Current() bool {
	_, led := s.Leader()
	return led && s.holdsAll()
}

// ID is this control's in the log's configuration.
func (s *Store) ID() string { return s.id }

// Servers gives every control that is remembered, in the order of their ids.
func (s *Store) Servers() []Server {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return sorted(s.machine.servers())
}

// Server gives the record of the control of that id.
func (s *Store) Server(id string) (Server, bool) {
	return s.machine.server(id)
}

// Applied is the last entry of the log that this control holds, and Committed the last that it knows to be kept. Their
// distance from the leader's is how far it is behind.
func (s *Store) Applied() (applied, committed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.engine == nil {
		return 0, 0
	}
	return s.engine.raft.AppliedIndex(), s.engine.raft.CommitIndex()
}

// Sync returns when this control, which must lead, holds every write that had returned before Sync was called: what is
// read afterwards is at least as new. It fails with [ErrNotLeader].
func (s *Store) Sync(ctx context.Context) error {
	if _, err := s.leading(); err != nil {
		return err
	}
	// An entry of its own, rather than raft's cheaper check that it leads: a leader of a new term does not know at first
	// how far the one before it committed.
	return s.plainLeadership(s.await(ctx, func(r *raft.Raft) raft.Future { return r.Barrier(0) }))
}

// plainLeadership makes one error of the several that raft has for it.
func (s *Store) plainLeadership(err error) error {
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return err
}
