package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/pyserve/pyserve/config/bundle"
)

// What lies in the directory.
const (
	lockFile     = "lock"
	logFile      = "raft.db"
	snapshotsDir = "snapshots" // raft's name
)

const (
	// boltTimeout bounds the wait for bolt's own lock, which nobody else should hold.
	boltTimeout = time.Second
	// retryPause is how long to wait after a write failed, as it does while the disk is full.
	retryPause = 200 * time.Millisecond
)

// prepareDirectory makes the directory and removes what a crash left half made in it.
func prepareDirectory(dir string) error {
	snapshots := filepath.Join(dir, snapshotsDir)
	// Made here, since raft would let others read it, and snapshots hold private keys.
	if err := os.MkdirAll(snapshots, 0o700); err != nil {
		return fmt.Errorf("the data directory %s is not writable: %w", dir, err)
	}
	entries, err := os.ReadDir(snapshots)
	if err != nil {
		return fmt.Errorf("read the snapshots' directory: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			if err := os.RemoveAll(filepath.Join(snapshots, e.Name())); err != nil {
				return fmt.Errorf("remove an unfinished snapshot: %w", err)
			}
		}
	}
	return nil
}

// Lock keeps every other process out of a directory until it is closed. It is the kernel's: it goes with the process,
// however that ends.
type Lock struct{ file *os.File }

// Close lets go of the directory.
func (l *Lock) Close() error { return l.file.Close() }

// Acquire locks the directory, which it makes where it does not exist. The error says so where another process has it.
func Acquire(dir string) (*Lock, error) {
	f, err := lockDirectory(dir)
	if err != nil {
		return nil, err
	}
	return &Lock{f}, nil
}

// Exists says whether a store lies in the directory, or what is left of one.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, logFile))
	snapshots, _ := os.ReadDir(filepath.Join(dir, snapshotsDir))
	return !errors.Is(err, fs.ErrNotExist) || len(snapshots) > 0
}

func lockDirectory(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be made: %w", dir, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s is not writable: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the data directory %s: %w", dir, err)
		}
		holder, _ := io.ReadAll(io.LimitReader(f, 20))
		return nil, fmt.Errorf("the data directory %s is in use by another process (%s)", dir, strings.TrimSpace(string(holder)))
	}
	// For the sentence above only: nothing depends on it.
	if err := f.Truncate(0); err == nil {
		fmt.Fprintf(f, "pid %d\n", os.Getpid())
	}
	return f, nil
}

// serverKey is where a log keeps the id of the server that it belongs to. An address or host name may change; a
// server's id in the replicated configuration may not.
var serverKey = []byte("PyServeServerID")

// openLog opens the log, which it makes where there is none: with name as the one voter or, where an id was given to
// others already, empty, for them to fill. It gives the id of the server that the log belongs to.
func openLog(dir, name, admitted string, snapshots raft.SnapshotStore) (log *raftboltdb.BoltStore, id string, err error) {
	path := filepath.Join(dir, logFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createLog(path, name, admitted, snapshots); err != nil {
			return nil, "", fmt.Errorf("make the log: %w", err)
		}
	}
	if log, err = openBolt(path); err != nil {
		return nil, "", err
	}
	raw, err := log.Get(serverKey)
	if err != nil {
		log.Close()
		return nil, "", fmt.Errorf("the log %s is damaged: it names no server", path)
	}
	return log, string(raw), nil
}

// createLog makes a log under another name and renames it when it is complete: raft could not go on from a log that a
// crash left between its two first entries.
func createLog(path, name, admitted string, snapshots raft.SnapshotStore) error {
	switch existing, err := snapshots.List(); {
	case err != nil:
		return err
	case len(existing) > 0:
		return fmt.Errorf("%s is missing though there are snapshots beside it; restore it from a backup", path)
	}
	unfinished := path + ".new"
	if err := os.Remove(unfinished); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	log, err := openBolt(unfinished)
	if err != nil {
		return err
	}
	if admitted != "" {
		err = log.Set(serverKey, []byte(admitted))
	} else {
		err = bootstrap(log, name, snapshots)
	}
	err = errors.Join(err, log.Close())
	if err == nil {
		err = os.Rename(unfinished, path)
	}
	if err != nil {
		os.Remove(unfinished)
		return err
	}
	dir := filepath.Dir(path)
	return errors.Join(bundle.SyncDirectory(dir), bundle.SyncDirectory(filepath.Dir(dir)))
}

func bootstrap(log *raftboltdb.BoltStore, server string, snapshots raft.SnapshotStore) error {
	if err := log.Set(serverKey, []byte(server)); err != nil {
		return err
	}
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(server)
	address, transport := raft.NewInmemTransport(raft.ServerAddress(server))
	return raft.BootstrapCluster(conf, log, log, snapshots, transport, raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: conf.LocalID, Address: address},
	}})
}

// openBolt opens bolt's file. Bolt panics on some damaged files, which becomes an error here.
func openBolt(path string) (log *raftboltdb.BoltStore, err error) {
	if err := checkSize(path); err != nil {
		return nil, err
	}
	defer recoverDamage(path, &err)()
	log, err = raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout: boltTimeout,
			// Written with every commit otherwise, and large once old entries were deleted.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
		MsgpackUseNewTimeFormat: true,
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("the log %s is in use by another process", path)
	case err != nil:
		return nil, fmt.Errorf("open the log %s: %w", path, err)
	}
	return log, nil
}

// checkSize refuses a file that is shorter than bolt believes, as half a copy is: bolt would read behind its end in a
// goroutine of its own and take the process with it. The layout is that of bbolt's common.Meta, twice, each behind the
// 16 bytes of a page's header.
func checkSize(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	page := make([]byte, 16+64)
	pageSize, pages, transaction := int64(0), int64(0), uint64(0)
	for range 2 { // the second lies one page behind the first
		if n, _ := f.ReadAt(page, pageSize); n < len(page) {
			return fmt.Errorf("the log %s is damaged: it is cut short", path)
		}
		meta, native := page[16:], binary.NativeEndian
		sum := fnv.New64a()
		sum.Write(meta[:56])
		if native.Uint64(meta[56:]) != sum.Sum64() {
			continue // the other one counts; where neither does, bolt will say so
		}
		pageSize = int64(native.Uint32(meta[8:]))
		if id := native.Uint64(meta[48:]); id >= transaction {
			pages, transaction = int64(native.Uint64(meta[40:])), id
		}
	}
	if size := info.Size(); size/max(pageSize, 1) < pages {
		return fmt.Errorf("the log %s is damaged: it is cut to %d bytes", path, size)
	}
	return nil
}

// recoverDamage turns a panic or memory fault while reading a memory-mapped file into an error. It is used as
// defer recoverDamage(path, &err)().
func recoverDamage(path string, err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = fmt.Errorf("the log %s is damaged: %v", path, p)
		}
	}
}

// findings are what the entries of a log say of the controls.
type findings struct {
	members []raft.Server // of the newest configuration; nil: there is none
	sighted []sighting
}

func (f *findings) command(seal *sealer, index uint64, data []byte) error {
	c, err := seal.decodeCommand(data)
	if err != nil {
		return err
	}
	if put := c.GetPutServer(); put != nil {
		if server, err := serverFrom(put.GetServer()); err == nil { // otherwise it will be refused
			f.sighted = append(f.sighted, sighting{index, server})
		}
	}
	return nil
}

// checkLog reads every entry after the snapshot once, since raft panics at a missing or damaged one.
func checkLog(log *raftboltdb.BoltStore, seal *sealer, path string, snapshot uint64) (found findings, err error) {
	defer recoverDamage(path, &err)()
	first, err := log.FirstIndex()
	if err != nil {
		return found, fmt.Errorf("read the log %s: %w", path, err)
	}
	last, err := log.LastIndex()
	if err != nil {
		return found, fmt.Errorf("read the log %s: %w", path, err)
	}
	if last <= snapshot && snapshot > 0 {
		return found, nil
	}
	if last == 0 && snapshot == 0 {
		return found, nil // of a control that was admitted and has not been sent anything yet
	}
	if first > snapshot+1 || first == 0 {
		return found, fmt.Errorf("the log %s begins at entry %d, but the newest readable snapshot ends at %d: what was between is lost; restore a backup", path, first, snapshot)
	}
	for i := snapshot + 1; i <= last; i++ {
		var entry raft.Log
		err := log.GetLog(i, &entry)
		if err == nil && entry.Type == raft.LogCommand {
			err = found.command(seal, i, entry.Data)
		}
		if err == nil && entry.Type == raft.LogConfiguration {
			found.members = raft.DecodeConfiguration(entry.Data).Servers
		}
		if err != nil {
			return found, fmt.Errorf("entry %d of the log %s cannot be read: %w", i, path, err)
		}
	}
	return found, nil
}

// restoreNewest loads the newest snapshot, if there is one, and gives the index of the last entry in it and
// the servers that there were then. It falls back
// on no older one: that would be right only where the log still holds all that is between, and who looks at a damaged
// disk should know that it is.
func restoreNewest(into *machine, snapshots raft.SnapshotStore) (uint64, []raft.Server, error) {
	all, err := snapshots.List()
	if err != nil {
		return 0, nil, fmt.Errorf("list the snapshots: %w", err)
	}
	if len(all) == 0 {
		return 0, nil, nil
	}
	newest := all[0]
	_, from, err := snapshots.Open(newest.ID)
	if err == nil {
		err = into.Restore(from)
		from.Close()
	}
	switch {
	case errors.Is(err, errTooNew):
		return 0, nil, fmt.Errorf("the snapshot %s cannot be read: %w", newest.ID, err)
	case err != nil:
		return 0, nil, fmt.Errorf("the snapshot %s cannot be read: %w; move it away to go on from the one before", newest.ID, err)
	}
	into.mu.Lock()
	defer into.mu.Unlock()
	into.applied = newest.Index
	return newest.Index, newest.Configuration.Servers, nil
}

// disk is what keeps the log: bolt.
type disk interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

// storage is the log as raft gets it: what fails is remembered, for the error that a write gets while there is no
// leader, and does not end the process; what hangs is told.
type storage struct {
	disk
	logger   *slog.Logger
	closing  chan struct{}
	failure  atomic.Pointer[DiskError] // why entries are not written; nil: as far as is known, they are
	began    [2]atomic.Int64           // when the write under way began, in nanoseconds; 0: none is
	watching sync.WaitGroup
}

func newStorage(d disk, o Options) *storage {
	s := &storage{disk: d, logger: o.Logger, closing: make(chan struct{})}
	if o.Hung != nil {
		s.watching.Go(func() { s.watch(o.HungAfter, o.Hung) })
	}
	return s
}

// watch tells once of a write that does not return.
func (s *storage) watch(limit time.Duration, hung func(error)) {
	ticker := time.NewTicker(max(limit/10, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-s.closing:
			return
		}
		for i := range s.began {
			if began := s.began[i].Load(); began != 0 && time.Since(time.Unix(0, began)) > limit {
				hung(fmt.Errorf("the disk has not taken a write for %s: this control can neither lead nor follow", limit))
				return
			}
		}
	}
}

// What raft writes one at a time: entries and terms, and, from another goroutine, what it cuts off.
const (
	writing = iota
	cutting
)

func (s *storage) timed(what int, write func() error) error {
	s.began[what].Store(time.Now().UnixNano())
	defer s.began[what].Store(0)
	return write()
}

// Close waits for what newStorage began, and closes the disk.
func (s *storage) Close() error {
	s.watching.Wait()
	return s.disk.Close()
}

// Set implements raft.StableStore.
func (s *storage) Set(key, value []byte) error {
	return s.timed(writing, func() error { return s.disk.Set(key, value) })
}

// DeleteRange implements raft.LogStore.
func (s *storage) DeleteRange(first, last uint64) error {
	return s.timed(cutting, func() error { return s.disk.DeleteRange(first, last) })
}

// committedKey is where the log of one of several controls keeps how far it was known to be committed.
var committedKey = []byte("PyServeCommitted")

// committed gives what keepCommitted kept; 0: nothing.
func (s *storage) committed() (uint64, error) {
	index, err := s.GetUint64(committedKey)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return 0, nil
	}
	return index, err
}

func (s *storage) keepCommitted(index uint64) error { return s.disk.SetUint64(committedKey, index) }

// DiskError says that the disk of the data directory takes no writes.
type DiskError struct{ Err error }

func (e *DiskError) Error() string {
	advice := "see what is wrong with it"
	if errors.Is(e.Err, syscall.ENOSPC) || errors.Is(e.Err, syscall.EDQUOT) {
		advice = "make room there and try again"
	}
	return fmt.Sprintf("control's disk takes no writes: %v; %s", e.Err, advice)
}

func (e *DiskError) Unwrap() error { return e.Err }

// trouble is why the disk takes no writes; nil: as far as is known, it does.
func (s *storage) trouble() error {
	if failure := s.failure.Load(); failure != nil {
		return failure
	}
	return nil
}

// failed remembers what kept an entry, or a term, from the disk, and tells it once.
func (s *storage) failed(err error) error {
	failure := &DiskError{err}
	if s.failure.Swap(failure) == nil {
		s.logger.Error("changes are refused until the disk takes writes again", "error", failure)
	}
	return failure
}

// wrote says that entries were written. A term does not count: it may find room where the entry that follows finds none,
// at every attempt to lead.
func (s *storage) wrote() {
	if s.failure.Swap(nil) != nil {
		s.logger.Info("the disk takes writes again")
	}
}

// StoreLog implements raft.LogStore.
func (s *storage) StoreLog(entry *raft.Log) error { return s.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore. A leader whose write fails steps down; with one voter it is elected again at
// once and writes the no-op that begins its term, so that is slowed down.
func (s *storage) StoreLogs(entries []*raft.Log) error {
	err := s.timed(writing, func() error { return s.disk.StoreLogs(entries) })
	if err == nil {
		s.wrote()
		return nil
	}
	err = s.failed(err)
	if len(entries) == 1 && entries[0].Type == raft.LogNoop {
		s.pause()
	}
	return err
}

// termKey is where raft keeps its current term.
const termKey = "CurrentTerm"

// SetUint64 implements raft.StableStore. Raft panics where the term cannot be kept, at every start and election; so
// what is already there is not written, and what cannot be written is tried again until it can or the store closes.
func (s *storage) SetUint64(key []byte, value uint64) error {
	if current, err := s.GetUint64(key); err == nil && current == value {
		return nil
	}
	for {
		err := s.timed(writing, func() error { return s.disk.SetUint64(key, value) })
		if err == nil {
			return nil
		}
		if err = s.failed(err); string(key) != termKey {
			return err
		}
		if !s.pause() {
			return nil // nobody votes in this term any more: raft has been told to stop
		}
	}
}

// pause says false where the store closes.
func (s *storage) pause() bool {
	timer := time.NewTimer(retryPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.closing:
		return false
	}
}

// recoverAlone makes this server the only one of its log. What was in the log and not yet committed counts from then
// on, since nobody else can say whether it was.
func (s *Store) recoverAlone() error {
	_, transport := raft.NewInmemTransport(raft.ServerAddress(s.id))
	err := raft.RecoverCluster(s.configuration(false), newMachine(s.machine.seal), s.storage, s.storage, s.snapshots, transport,
		raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(s.id), Address: raft.ServerAddress(s.id)}}})
	if err != nil {
		return fmt.Errorf("make this control the only one: %w", err)
	}
	s.logger.Warn("this control is the only one now; what only the others held is lost", "id", s.id)
	return nil
}
