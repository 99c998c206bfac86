package store

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// Limits of what is kept. A write that passes one is refused.
const (
	// WholeRevisions is how many revisions are kept with bundle and document, the active one included.
	WholeRevisions = 200
	// maxHistoryBytes is what the revisions before the active one may hold together; the oldest become lines sooner
	// where they hold more.
	maxHistoryBytes = 512 << 20
	// maxLines is how many lines of older revisions are kept.
	maxLines = 100_000

	// MaxDocumentBytes is how long a document may be.
	MaxDocumentBytes = 16 << 20
	// MaxMessageBytes is how long a revision's message may be.
	MaxMessageBytes = 4 << 10
	maxNameBytes    = 256 // an author, a node, a token's id or kind
	maxRecords      = 1_000_000
)

// Revision is one step of history.
type Revision struct {
	// Number counts from 1.
	Number uint64
	// Digest is its bundle's.
	Digest bundle.Digest
	// Parent is the revision that was active before; 0: none.
	Parent  uint64
	Author  string
	Message string
	Created time.Time
	// Release is what nodes verify; nil where the revision is kept as a line only. It is not to be changed.
	Release *fleetv1.Release
	// Active says that this was the newest revision at the moment of asking.
	Active bool
}

// Snapshot is one revision with everything that belongs to it. It is not to be changed.
type Snapshot struct {
	Revision
	Bundle *bundle.Bundle
	// Document is what the operator wrote.
	Document []byte
}

// Proposal is what shall become the next revision.
type Proposal struct {
	// Release carries the epoch and number that [Store.Next] gave, and the bundle's digest.
	Release *fleetv1.Release
	// Parent is the revision that the proposer believes to be active; 0: none.
	Parent uint64
	// Bundle is what shall be active.
	Bundle *bundle.Bundle
	// Document is what the bundle was made of; may be empty.
	Document []byte
	Author   string
	// Message says why, for people; may be empty.
	Message string
	// Request names the wish: what was committed for it before is not committed again. Zero: one at random.
	Request RequestID
}

func (r *Revision) toProto() *storev1.Revision {
	release := r.Release
	if release == nil {
		release = &fleetv1.Release{Revision: r.Number, Digest: r.Digest[:]}
	}
	return &storev1.Revision{
		Release: release, Parent: r.Parent, Author: r.Author, Message: r.Message, Created: timestamppb.New(r.Created),
	}
}

func revisionFrom(m *storev1.Revision) (Revision, error) {
	digest, err := bundle.ParseDigest(m.GetRelease().GetDigest())
	if err != nil {
		return Revision{}, err
	}
	created, err := timeFrom(m.GetCreated())
	if err != nil {
		return Revision{}, err
	}
	r := Revision{
		Number: m.GetRelease().GetRevision(), Digest: digest, Parent: m.GetParent(),
		Author: m.GetAuthor(), Message: m.GetMessage(), Created: created, Release: m.GetRelease(),
	}
	return r, r.check()
}

func (r *Revision) check() error {
	switch {
	case r.Number == 0 || r.Parent >= r.Number:
		return fmt.Errorf("revision %d cannot follow revision %d", r.Number, r.Parent)
	case len(r.Author) > maxNameBytes:
		return fmt.Errorf("the author's name is longer than %d bytes", maxNameBytes)
	case len(r.Message) > MaxMessageBytes:
		return fmt.Errorf("the message is longer than %d bytes", MaxMessageBytes)
	case proto.Size(r.Release) > 1<<10:
		return errors.New("the release is longer than 1 KiB")
	}
	return nil
}

// line is the revision as it is kept when its bundle is gone.
func (r Revision) line() Revision {
	r.Release = nil
	return r
}

func checkName(what, name string) error {
	if name == "" || len(name) > maxNameBytes {
		return fmt.Errorf("%s has 1 to %d bytes, this one has %d", what, maxNameBytes, len(name))
	}
	return nil
}

func hashFrom(raw []byte) ([32]byte, error) {
	if len(raw) != 32 {
		return [32]byte{}, fmt.Errorf("a SHA-256 has 32 bytes, got %d", len(raw))
	}
	return [32]byte(raw), nil
}

// timeFrom refuses what cannot be written again: a command that is applied must fit into a snapshot.
func timeFrom(m *timestamppb.Timestamp) (time.Time, error) {
	if err := m.CheckValid(); err != nil {
		return time.Time{}, fmt.Errorf("the time: %w", err)
	}
	return m.AsTime(), nil
}
