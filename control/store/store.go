package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
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
	// electionTimeout is raft's only timer with one voter: nobody else votes, so the sooner the better.
	electionTimeout = 50 * time.Millisecond
	// A snapshot is written when so many entries came since the last, looked at every so often; as many entries stay
	// behind it. A start after a crash applies again what came since the snapshot, and a revision of 100,000 resources
	// takes 90 ms to apply.
	snapshotEntries  = 64
	snapshotInterval = 30 * time.Second
	keptSnapshots    = 2

	// openTimeout bounds the wait of Open for its turn to lead, which is over in a moment unless the disk takes no
	// writes.
	openTimeout = 10 * time.Second
	// writeTimeout bounds a write whose context has no deadline.
	writeTimeout = 30 * time.Second
	// leaderTimeout bounds the part of it during which nobody leads, as while the disk is full.
	leaderTimeout = 2 * time.Second
	leaderPause   = 20 * time.Millisecond
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
}

// Store is control's durable memory. Its methods may be called concurrently.
type Store struct {
	now     func() time.Time
	logger  *slog.Logger
	machine *machine
	storage *storage
	raft    *raft.Raft
	lock    *os.File

	mu      sync.Mutex     // guards closed, and work against being added to once closed
	closed  bool           // no further writes
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
	s := &Store{now: o.Now, logger: o.Logger}
	if err := s.open(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("open the store: %w", err), s.Close())
	}
	return s, nil
}

// open leaves what it opened in s, for Close.
func (s *Store) open(ctx context.Context, o Options) (err error) {
	if s.lock, err = lockDirectory(o.Dir); err != nil {
		return err
	}
	if err := prepareDirectory(o.Dir); err != nil {
		return err
	}
	seal, err := openSealer(o)
	if err != nil {
		return err
	}
	s.machine = newMachine(seal)
	conf := raft.DefaultConfig()
	conf.Logger = &raftLogger{to: o.Logger}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(o.Dir, keptSnapshots, conf.Logger)
	if err != nil {
		return fmt.Errorf("the data directory %s is not writable: %w", o.Dir, err)
	}
	bolt, server, err := openLog(o.Dir, o.Name, snapshots)
	if err != nil {
		return err
	}
	s.storage = &storage{BoltStore: bolt, logger: o.Logger, closing: make(chan struct{})}
	if server != o.Name {
		o.Logger.Info("the store keeps the server id that it was made with", "id", server, "name", o.Name)
	}
	index, err := restoreNewest(s.machine, snapshots)
	if err != nil {
		return err
	}
	if err := checkLog(bolt, seal, filepath.Join(o.Dir, logFile), index); err != nil {
		return err
	}
	return s.lead(ctx, conf, server, snapshots)
}

// openSealer asks for the key.
func openSealer(o Options) (*sealer, error) {
	key, err := o.Key(isUsed(o.Dir))
	if err != nil {
		return nil, err
	}
	return newSealer(key)
}

// isUsed says whether a store lies in the directory, or what is left of one.
func isUsed(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, logFile))
	snapshots, _ := os.ReadDir(filepath.Join(dir, snapshotsDir))
	return !errors.Is(err, fs.ErrNotExist) || len(snapshots) > 0
}

// lead starts raft and waits until it leads and has applied its log.
func (s *Store) lead(ctx context.Context, conf *raft.Config, server string, snapshots raft.SnapshotStore) (err error) {
	conf.LocalID = raft.ServerID(server)
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = electionTimeout, electionTimeout, electionTimeout
	conf.SnapshotThreshold, conf.TrailingLogs, conf.SnapshotInterval = snapshotEntries, snapshotEntries, snapshotInterval
	conf.NoSnapshotRestoreOnStart = true // restoreNewest did
	conf.NoLegacyTelemetry = true
	_, transport := raft.NewInmemTransport(raft.ServerAddress(server))
	if s.raft, err = raft.NewRaft(conf, s.machine, s.storage, s.storage, snapshots, transport); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	patience := time.NewTimer(openTimeout)
	defer patience.Stop()
	for leads := false; !leads; {
		select {
		case leads = <-s.raft.LeaderCh():
		case <-patience.C:
			return s.explain(errors.New("the store does not lead"))
		case <-ctx.Done():
			return s.explain(fmt.Errorf("the store does not lead: %w", ctx.Err()))
		}
	}
	if err := s.await(ctx, func() raft.Future { return s.raft.Barrier(openTimeout) }); err != nil {
		return s.explain(fmt.Errorf("apply the log: %w", err))
	}
	return s.machine.err()
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
	var problems []error
	if s.storage != nil {
		s.settle()
		close(s.storage.closing)
	}
	if s.raft != nil {
		problems = append(problems, s.raft.Shutdown().Error())
		s.settle()
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

// settle waits for writes under way, since raft forgets to answer some that its shutdown overtakes.
func (s *Store) settle() {
	settled := make(chan struct{})
	go func() {
		s.work.Wait()
		close(settled)
	}()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-settled:
	case <-timer.C:
		s.logger.Warn("closing the store over writes that do not end")
	}
}

// write puts a command into the log and returns when it is on disk and applied, or was refused.
func (s *Store) write(ctx context.Context, c *storev1.Command) error {
	data, err := s.machine.seal.encodeCommand(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	patience := time.NewTimer(leaderTimeout)
	defer patience.Stop()
	for {
		err := s.await(ctx, func() raft.Future { return s.raft.Apply(data, leaderTimeout) })
		if !errors.Is(err, raft.ErrNotLeader) {
			return s.explain(err)
		}
		// It was not taken, so it may be tried again: a single voter leads again soon.
		pause := time.NewTimer(leaderPause)
		select {
		case <-pause.C:
		case <-patience.C:
			return s.explain(errors.New("control does not lead, so nothing was changed"))
		case <-ctx.Done():
			pause.Stop()
			return s.explain(fmt.Errorf("control does not lead, so nothing was changed: %w", ctx.Err()))
		}
	}
}

// await waits for a future, or for the context: then it is not known what became of it. Where the future is a
// command's, the error is also the machine's answer.
func (s *Store) await(ctx context.Context, begin func() raft.Future) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	answer := make(chan error, 1)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.work.Go(func() { answer <- outcome(begin()) })
	s.mu.Unlock()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the disk did not answer in time; the change may yet be kept: %w", ctx.Err())
	}
}

func outcome(f raft.Future) error {
	switch err := f.Error(); {
	case errors.Is(err, raft.ErrRaftShutdown):
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
// proposal's parent. After any other error, a passed deadline for one, only [Store.Active] tells whether it was kept.
func (s *Store) Commit(ctx context.Context, p Proposal) (Revision, error) {
	c, err := s.prepare(&p)
	if err == nil {
		err = s.write(ctx, &storev1.Command{Action: &storev1.Command_CommitRevision{CommitRevision: c}})
	}
	if err != nil {
		return Revision{}, fmt.Errorf("commit revision %d: %w", p.Release.GetRevision(), err)
	}
	revision, err := revisionFrom(c.GetRevision())
	revision.Active = true
	return revision, err
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

// PutToken remembers a token, in the place of what was remembered under its id.
func (s *Store) PutToken(ctx context.Context, t Token) error {
	c := &storev1.Command{Action: &storev1.Command_PutToken{PutToken: &storev1.PutToken{Token: t.toProto()}}}
	if err := s.write(ctx, c); err != nil {
		return fmt.Errorf("remember token %.80q: %w", t.ID, err)
	}
	return nil
}

// Tokens gives every token that is remembered, in the order of their ids.
func (s *Store) Tokens() []Token {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return sorted(s.machine.state.tokens)
}

// Token gives the token of that id.
func (s *Store) Token(id string) (Token, bool) {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	t, ok := s.machine.state.tokens[id]
	return t, ok
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
