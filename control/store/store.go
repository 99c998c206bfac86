package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/config/bundle"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

const (
	// A snapshot is written when so many entries came since the last, looked at every so often; as many entries stay
	// behind it. A start after a crash applies again what came since the snapshot, and a revision of 100,000 resources
	// takes 90 ms to apply.
	snapshotEntries  = 64
	snapshotInterval = 30 * time.Second
	keptSnapshots    = 2

	// openTimeout bounds the wait of Open for its turn to lead, which is over in a moment unless the disk takes no
	// writes.
	openTimeout = 10 * time.Second
	// returnTimeout is how much longer that is where somebody leads: raft's leader tries a follower that was away for some
	// time only every ten seconds.
	returnTimeout = 12 * time.Second
	// unledInterval is how long to wait for word of a leader before asking for it: an election takes less.
	unledInterval = 1500 * time.Millisecond
	// writeTimeout bounds a write whose context has no deadline.
	writeTimeout = 30 * time.Second
	// leaderTimeout bounds the part of it during which nobody leads, as while the disk is full, and electedTimeout where
	// others may be elected.
	leaderTimeout  = 2 * time.Second
	electedTimeout = 5 * time.Second
	leaderPause    = 20 * time.Millisecond
	// closeTimeout bounds the wait of Close for writes under way before it cuts them off.
	closeTimeout = 5 * time.Second
)

// ErrClosed says that the store was closed.
var ErrClosed = errors.New("the store is closed")

// Options say where a store lies.
type Options struct {
	// Dir is the directory that the store has for itself; made, mode 0700, where it does not exist. Required.
	Dir string
	// Name is this control's, and names its server in the log that a first start makes. Later starts keep the id that
	// the log has. Required.
	Name string
	// Key gives the key, of [SealKeyBytes], that everything in the directory is sealed with. It is called once, when
	// no other process can have the directory any more; used says that something lies there already, which another key
	// does not open. Required.
	Key func(used bool) ([]byte, error)
	// Logger is told what goes wrong, and at debug what raft does; nil: silence.
	Logger *slog.Logger
	// Now is the clock of what is written; nil: time.Now.
	Now func() time.Time
	// Lock is the directory's, where the caller has it already; nil: Open takes it. The store closes it.
	Lock *Lock
	// Network reaches other controls; nil: there can be none.
	Network *Network
	// Server is the id that this control was admitted with to those that run already, where the directory is still empty:
	// it begins as their replica. Empty: the only control of a new cluster.
	Server string
	// Forward brings a command to the control that leads, whose [Store.Take] is its other end; nil: writes fail where
	// another leads.
	Forward func(ctx context.Context, leader Server, command []byte) error
	// Unled is called by Open, now and then, while no leader is heard of: where this control has moved, somebody has to be
	// told. It may read the store. nil: nobody asks.
	Unled func(s *Store)
	// Alone makes this control the only one, whatever others the log knows: the way out where most are lost for good.
	Alone bool
	// Hung is called, once, when the disk has not taken a write for HungAfter: a leader whose disk hangs would lead for
	// ever, and do nothing. nil: nobody is told.
	Hung func(error)
	// HungAfter is how long a write may take. 0: 10 s.
	HungAfter time.Duration
}

// Store is control's durable memory. Its methods may be called concurrently.
type Store struct {
	options   Options
	now       func() time.Time
	logger    *slog.Logger
	machine   *machine
	storage   *storage
	snapshots raft.SnapshotStore
	lock      *Lock
	id        string // in the log's configuration
	joining   bool   // its log was empty, for others to fill

	admitting sync.Mutex // held while a control comes in, which may replace engine, and while that is closed; before mu

	mu      sync.Mutex     // guards closed, engine, pause, and work against being added to once closed
	closed  bool           // no further writes
	engine  *engine        // nil: not started, or it could not be started anew
	pause   chan struct{}  // closed when writes may go on; nil: they may
	work    sync.WaitGroup // writes under way
	closing sync.Once
	done    error // what Close found
}

// Open opens the store in the directory, making it where there is none, and returns when everything that was ever
// committed is applied and the store can take writes. The context bounds only the opening. A directory that another
// process uses or that cannot be written to, a damaged log or snapshot, and one that a newer version wrote are errors
// that say so.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Dir == "" || o.Name == "" || o.Key == nil {
		return nil, errors.New("store: Options.Dir, Options.Name and Options.Key are required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.HungAfter == 0 {
		o.HungAfter = 10 * time.Second
	}
	s := &Store{options: o, now: o.Now, logger: o.Logger, lock: o.Lock}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the store: %w", err), s.Close())
	}
	return s, nil
}

// open leaves what it opened in s, for Close.
func (s *Store) open(ctx context.Context) (err error) {
	o := s.options
	if s.lock == nil {
		if s.lock, err = Acquire(o.Dir); err != nil {
			return err
		}
	}
	if err := prepareDirectory(o.Dir); err != nil {
		return err
	}
	seal, err := openSealer(o)
	if err != nil {
		return err
	}
	s.machine = newMachine(seal)
	s.snapshots, err = raft.NewFileSnapshotStoreWithLogger(o.Dir, keptSnapshots, &raftLogger{to: o.Logger})
	if err != nil {
		return fmt.Errorf("the data directory %s is not writable: %w", o.Dir, err)
	}
	bolt, server, err := openLog(o.Dir, o.Name, o.Server, s.snapshots)
	if err != nil {
		return err
	}
	s.id = server
	s.storage = newStorage(bolt, o)
	if server != o.Name && o.Server == "" {
		o.Logger.Debug("the store keeps the server id that it was made with", "id", server, "name", o.Name)
	}
	if o.Alone {
		if err := s.recoverAlone(); err != nil {
			return err
		}
	}
	index, members, err := restoreNewest(s.machine, s.snapshots)
	if err != nil {
		return err
	}
	found, err := checkLog(bolt, seal, filepath.Join(o.Dir, logFile), index)
	if err != nil {
		return err
	}
	if found.members != nil {
		members = found.members
	}
	s.machine.sighted = found.sighted
	if err := s.applyCommitted(index); err != nil {
		return err
	}
	return s.begin(ctx, members)
}

// openSealer asks for the key.
func openSealer(o Options) (*sealer, error) {
	key, err := o.Key(Exists(o.Dir))
	if err != nil {
		return nil, err
	}
	return newSealer(key)
}

// begin starts raft, alone or with the network, and waits until what was committed is applied.
func (s *Store) begin(ctx context.Context, members []raft.Server) error {
	s.joining = len(members) == 0
	alone := len(members) == 1 && string(members[0].ID) == s.id
	var l net.Listener
	if !alone {
		var err error
		if l, err = s.listen(); err != nil {
			return err
		}
	}
	e, err := s.start(l)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.engine = e
	s.mu.Unlock()
	switch {
	case alone:
		return s.awaitLead(ctx, openTimeout)
	case s.joining:
		return nil // empty: see Joined
	}
	return s.awaitOthers(ctx)
}

func (s *Store) listen() (net.Listener, error) {
	if s.options.Network == nil {
		return nil, errors.New("there are several controls, and this one has no network to reach them")
	}
	return s.options.Network.Listen()
}

// awaitLead waits until this server leads and has applied its log.
func (s *Store) awaitLead(ctx context.Context, limit time.Duration) error {
	patience := time.NewTimer(limit)
	defer patience.Stop()
	for {
		changed := s.Changed()
		if s.Leads() {
			return s.machine.err()
		}
		if err := s.machine.err(); err != nil {
			return fmt.Errorf("apply the log: %w", err)
		}
		select {
		case <-changed:
		case <-patience.C:
			return s.explain(errors.New("the store does not lead"))
		case <-ctx.Done():
			return s.explain(fmt.Errorf("the store does not lead: %w", ctx.Err()))
		}
	}
}

// awaitOthers waits until this control is as far as the one that leads. Without a leader it does not wait for ever:
// what it holds can be read, and served to nodes.
func (s *Store) awaitOthers(ctx context.Context) error {
	patience := time.NewTimer(openTimeout)
	defer patience.Stop()
	look, unled := time.NewTicker(10*time.Millisecond), time.NewTicker(unledInterval)
	defer look.Stop()
	defer unled.Stop()
	extended := false
	for {
		applied, committed := s.Applied()
		if _, led := s.Leader(); led && committed > 0 && applied >= committed && s.consumed(committed) || s.Leads() {
			return s.machine.err()
		}
		if err := s.machine.err(); err != nil {
			return fmt.Errorf("apply the log: %w", err)
		}
		select {
		case <-look.C:
		case <-unled.C:
			if _, led := s.Leader(); !led && s.options.Unled != nil {
				s.options.Unled(s)
			}
		case <-patience.C:
			if _, led := s.Leader(); led && !extended {
				extended = true
				patience.Reset(returnTimeout)
				continue
			}
			s.logger.Warn("no control brings this one up to date: too few of them can be reached; serving what it holds, and taking no changes")
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// explain adds why the disk does not take writes, where that is known.
func (s *Store) explain(err error) error {
	if why := s.storage.lastError(); err != nil && why != nil && !errors.Is(err, why) {
		return fmt.Errorf("%w (the disk does not take writes: %w)", err, why)
	}
	return err
}

// Close stops the store and waits for everything that it started; writes under way are finished first. Further calls
// return what the first did.
func (s *Store) Close() error {
	s.closing.Do(func() { s.done = s.close() })
	return s.done
}

func (s *Store) close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.admitting.Lock()
	defer s.admitting.Unlock()
	var problems []error
	if s.storage != nil {
		s.settleOrWarn()
		close(s.storage.closing)
	}
	if e := s.engine; e != nil {
		problems = append(problems, e.end())
		s.settleOrWarn()
		if e.network {
			if err := s.storage.keepCommitted(s.machine.holdsUpTo()); err != nil {
				s.logger.Debug("cannot keep how far the log is committed", "error", err)
			}
		}
	}
	if s.storage != nil {
		problems = append(problems, s.storage.Close())
	}
	if s.lock != nil {
		problems = append(problems, s.lock.Close()) // only now may another process come
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("close the store: %w", err)
	}
	return nil
}

// settle waits for writes under way, since raft forgets to answer some that its shutdown overtakes. It says whether all of
// them ended.
func (s *Store) settle() bool {
	settled := make(chan struct{})
	go func() {
		s.work.Wait()
		close(settled)
	}()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-settled:
		return true
	case <-timer.C:
		return false
	}
}

func (s *Store) settleOrWarn() {
	if !s.settle() {
		s.logger.Warn("closing the store over writes that do not end")
	}
}

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
	if s.patience() == leaderTimeout {
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
	if !elsewhere(err) || errors.Is(err, ErrNotLeader) {
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
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.engine != nil && s.engine.network {
		return electedTimeout
	}
	return leaderTimeout
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
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		return fmt.Errorf("%w: %w", ErrNotLeader, raft.ErrNotLeader)
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

// PutNode remembers a node, in the place of what was remembered under its name.
func (s *Store) PutNode(ctx context.Context, n Node) error {
	c := &storev1.Command{Action: &storev1.Command_PutNode{PutNode: &storev1.PutNode{Node: n.toProto()}}}
	if err := s.write(ctx, c); err != nil {
		return fmt.Errorf("remember node %.80q: %w", n.Name, err)
	}
	return nil
}

// RemoveNode forgets a node; one that is not known is no error.
func (s *Store) RemoveNode(ctx context.Context, name string) error {
	c := &storev1.Command{Action: &storev1.Command_RemoveNode{RemoveNode: &storev1.RemoveNode{Name: name}}}
	if err := s.write(ctx, c); err != nil {
		return fmt.Errorf("forget node %.80q: %w", name, err)
	}
	return nil
}

// Nodes gives every node that is remembered, in the order of their names.
func (s *Store) Nodes() []Node {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return sorted(s.machine.state.nodes)
}

// Node gives the node of that name.
func (s *Store) Node(name string) (Node, bool) {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	n, ok := s.machine.state.nodes[name]
	return n, ok
}

// Changed gives a channel that is closed at the next change of anything. Who asks for it before reading misses
// nothing:
//
//	for {
//		changed := s.Changed()
//		use(s.Active())
//		<-changed
//	}
func (s *Store) Changed() <-chan struct{} {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return s.machine.changed
}
