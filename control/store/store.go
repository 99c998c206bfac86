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
	// unledInterval is how long to wait for word of a leader before asking for it: an election takes less. Where too few
	// others answered missedAsking times in a row, Open waits no longer: they may be away for days.
	unledInterval = 1500 * time.Millisecond
	missedAsking  = 2
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
	// told. It may read the store, and gives how many others answered; an error ends the opening. nil: nobody asks.
	Unled func(s *Store) (reached int, err error)
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
	extended, missed := false, 0
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
			missing, err := s.askUnled()
			if err != nil {
				return err
			}
			if missed++; !missing {
				missed = 0
			}
			if missed == missedAsking {
				s.warnUnled()
				return nil
			}
		case <-patience.C:
			if _, led := s.Leader(); led && !extended {
				extended = true
				patience.Reset(returnTimeout)
				continue
			}
			s.warnUnled()
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Trouble is why this control's disk takes no writes, a [*DiskError]; nil: as far as is known, it does. What can be read
// stays as it is, and it is over by itself when the disk takes writes again.
func (s *Store) Trouble() error { return s.storage.trouble() }

func (s *Store) warnUnled() {
	s.logger.Warn("no control brings this one up to date: too few of them can be reached; serving what it holds, and taking no changes")
}

// askUnled asks the others, where none leads. missing says that so few answer that none can.
func (s *Store) askUnled() (missing bool, err error) {
	if _, led := s.Leader(); led || s.options.Unled == nil {
		return false, nil
	}
	reached, err := s.options.Unled(s)
	return 1+reached < len(s.Voters())/2+1, err
}

// explain adds why the disk does not take writes, where that is known.
func (s *Store) explain(err error) error {
	if why := s.Trouble(); err != nil && why != nil && !errors.As(err, new(*DiskError)) {
		return fmt.Errorf("%w (%w)", err, why)
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
