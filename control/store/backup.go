package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/control/audit"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// A backup is: backupMagic; the header behind its length, four bytes; a sealed snapshot; the SHA-256 of all before it.
const (
	backupMagic   = "pyserve backup\n"
	backupVersion = 1
	maxHeader     = 4 << 10
)

// Why a backup is not restored. Nothing was changed.
var (
	// ErrNoBackup says that a file is not a backup, or a damaged one.
	ErrNoBackup = errors.New("it is not a whole backup")
	// ErrForeignBackup says that a backup is of another cluster.
	ErrForeignBackup = errors.New("it is the backup of another cluster")
)

// BackupInfo is what a backup says of itself.
type BackupInfo struct {
	// Cluster is the cluster's id.
	Cluster string
	Created time.Time
	// Epoch, Revision and Digest are those of the active revision; Revision 0: there was none.
	Epoch, Revision uint64
	Digest          string
	// Nodes is how many were registered.
	Nodes int
}

// Backup writes everything that the store holds, sealed, as it is at one moment. cluster names the cluster.
func (s *Store) Backup(cluster string, to io.Writer) (BackupInfo, error) {
	s.machine.mu.RLock()
	c := s.machine.state.capture()
	s.machine.mu.RUnlock()
	c.seal = s.machine.seal
	header := &storev1.BackupHeader{
		Version: backupVersion, Cluster: cluster, Created: timestamppb.New(s.now()), Epoch: c.epoch, Nodes: uint32(len(c.nodes)),
	}
	if c.active != nil {
		header.Revision, header.Digest = c.active.Number, c.active.Digest[:]
	}
	w := &summing{to: to, sum: sha256.New()}
	if err := writeBackupHeader(w, header); err != nil {
		return BackupInfo{}, err
	}
	if err := c.writeSealed(w); err != nil {
		return BackupInfo{}, err
	}
	if _, err := to.Write(w.sum.Sum(nil)); err != nil {
		return BackupInfo{}, fmt.Errorf("write the backup: %w", err)
	}
	return infoOf(header), nil
}

// summing hashes what goes through it.
type summing struct {
	to  io.Writer
	sum hash.Hash
}

func (s *summing) Write(p []byte) (int, error) {
	s.sum.Write(p)
	return s.to.Write(p)
}

func writeBackupHeader(w io.Writer, header *storev1.BackupHeader) error {
	raw, err := proto.Marshal(header)
	if err != nil {
		return fmt.Errorf("encode the backup's header: %w", err)
	}
	head := binary.BigEndian.AppendUint32([]byte(backupMagic), uint32(len(raw)))
	if _, err := w.Write(append(head, raw...)); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	return nil
}

func infoOf(h *storev1.BackupHeader) BackupInfo {
	return BackupInfo{
		Cluster: h.GetCluster(), Created: h.GetCreated().AsTime(), Epoch: h.GetEpoch(), Revision: h.GetRevision(),
		Digest: fmt.Sprintf("%x", h.GetDigest()), Nodes: int(h.GetNodes()),
	}
}

// CheckBackup reads a backup of a known size through once, without its key, and gives what it says of itself. Its errors
// are [ErrNoBackup], and that a newer program wrote it.
func CheckBackup(from io.Reader, size int64) (BackupInfo, error) {
	if size < int64(len(backupMagic)+sha256.Size) {
		return BackupInfo{}, fmt.Errorf("%w: it has %d bytes", ErrNoBackup, size)
	}
	sum := sha256.New()
	r := bufio.NewReader(io.TeeReader(io.LimitReader(from, size-sha256.Size), sum))
	header, err := readBackupHeader(r)
	if err != nil {
		return BackupInfo{}, err
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return BackupInfo{}, fmt.Errorf("read the backup: %w", err)
	}
	trailer := make([]byte, sha256.Size)
	if _, err := io.ReadFull(from, trailer); err != nil || !bytes.Equal(trailer, sum.Sum(nil)) {
		return BackupInfo{}, fmt.Errorf("%w: its checksum does not fit", ErrNoBackup)
	}
	return infoOf(header), nil
}

func readBackupHeader(r io.Reader) (*storev1.BackupHeader, error) {
	head := make([]byte, len(backupMagic)+4)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:len(backupMagic)]) != backupMagic {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrNoBackup)
	}
	length := binary.BigEndian.Uint32(head[len(backupMagic):])
	if length > maxHeader {
		return nil, fmt.Errorf("%w: its header has %d bytes", ErrNoBackup, length)
	}
	raw := make([]byte, length)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, fmt.Errorf("%w: it is cut short", ErrNoBackup)
	}
	header := &storev1.BackupHeader{}
	if err := proto.Unmarshal(raw, header); err != nil {
		return nil, fmt.Errorf("%w: its header cannot be read", ErrNoBackup)
	}
	if header.GetVersion() > backupVersion {
		return nil, fmt.Errorf("the backup: %w", errTooNew)
	}
	if header.GetVersion() == 0 || header.GetCreated().CheckValid() != nil {
		return nil, fmt.Errorf("%w: its header says nothing", ErrNoBackup)
	}
	return header, nil
}

// Restoration is a backup that was read whole and can take the place of what the store holds.
type Restoration struct {
	Info BackupInfo
	// Returning are the nodes that are registered in the backup and no longer in the store: they were revoked since, or
	// the store is new.
	Returning []string
	state     *state
}

// ReadBackup reads a backup of the cluster whole. Nothing is changed.
func (s *Store) ReadBackup(cluster string, from io.ReadSeeker, size int64) (*Restoration, error) {
	info, err := CheckBackup(from, size)
	if err != nil {
		return nil, err
	}
	if info.Cluster != cluster {
		return nil, fmt.Errorf("%w, %s, and this is %s", ErrForeignBackup, info.Cluster, cluster)
	}
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	r := bufio.NewReader(io.LimitReader(from, size-sha256.Size))
	if _, err := readBackupHeader(r); err != nil {
		return nil, err
	}
	sealed, err := s.machine.seal.newReader(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBackup, err)
	}
	restored, err := readSnapshot(sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBackup, err)
	}
	out := &Restoration{Info: info, state: restored}
	for _, name := range slices.Sorted(maps.Keys(restored.nodes)) {
		if _, known := s.Node(name); !known {
			out.Returning = append(out.Returning, name)
		}
	}
	return out, nil
}

// Restore puts a backup in the place of revisions and nodes, as the history of an epoch that is higher than both; sign
// signs the active revision anew for it, so that nodes follow whatever they serve. Tokens, the authorities, the keys of gossip, contexts and their revocations, the audit trail,
// the set of controls and what is remembered of requests stay, and a node that is known by another key now keeps that. Who
// asked for it, as the context's [audit.Note] says, is the last entry of the trail that stays: both come, or neither. It fails
// with [ErrNotLeader] where this control does not lead. After another error [Store.Active] tells whether it was done.
func (s *Store) Restore(ctx context.Context, r *Restoration, sign func(epoch uint64, active *Snapshot) *fleetv1.Release) error {
	if err := s.Sync(ctx); err != nil {
		return err
	}
	e, err := s.leading()
	if err != nil {
		return err
	}
	// What is written from here on until the end would be lost with what is replaced.
	resume, err := s.hold(e)
	if err != nil {
		return fmt.Errorf("restore the backup: %w", err)
	}
	defer resume()
	next := r.state
	s.machine.mu.RLock()
	s.machine.state.handOn(next)
	s.machine.mu.RUnlock()
	kept := next.attest(ctx, s.now())
	if v := next.active; v != nil {
		again := *v
		again.Release = sign(next.epoch, &Snapshot{Revision: v.Revision, Bundle: v.bundle})
		next.active = &again
	}
	c := next.capture()
	c.seal = s.machine.seal
	file, size, err := spool(s.options.Dir, c)
	if err != nil {
		return err
	}
	defer file.Close()
	err = e.raft.Restore(&raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Size: size}, file, restoreTime)
	if err != nil {
		return fmt.Errorf("restore the backup: %w", s.plainLeadership(err))
	}
	kept()
	return nil
}

// restoreTime bounds the wait until a majority holds what was restored.
const restoreTime = 2 * time.Minute

// handOn gives a state that takes this one's place what a backup does not bring back.
func (s *state) handOn(next *state) {
	next.epoch = max(s.epoch, next.epoch) + 1
	for name, node := range s.nodes {
		next.nodes[name] = node
	}
	next.tokens, next.servers = maps.Clone(s.tokens), maps.Clone(s.servers)
	next.results = results{order: s.results.order, known: maps.Clone(s.results.known)}
	anchor, entries := s.trail.Entries()
	next.trail = audit.Restore(anchor, slices.Clip(entries)) // what one of the two appends is not the other's
	next.authorities, next.gossip = s.authorities, s.gossip
	next.contexts, next.revocations = maps.Clone(s.contexts), maps.Clone(s.revocations)
}

// spool writes a snapshot into a file that has no name any more.
func spool(dir string, c *capture) (*os.File, int64, error) {
	file, err := Unnamed(dir)
	if err != nil {
		return nil, 0, err
	}
	err = c.writeSealed(file)
	var size int64
	if err == nil {
		size, err = file.Seek(0, io.SeekCurrent)
	}
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("write what is restored: %w", err), file.Close())
	}
	return file, size, nil
}

// Unnamed opens a file, mode 0600, that is gone when it is closed, however the process ends.
func Unnamed(dir string) (*os.File, error) {
	file, err := os.CreateTemp(dir, ".unnamed-*.tmp")
	if err != nil {
		return nil, fmt.Errorf("make a file for a backup: %w", err)
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("make a file for a backup: %w", err), file.Close())
	}
	return file, nil
}
