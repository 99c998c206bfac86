package store

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// commandVersion is the highest that this program reads. What it writes is of oldCommandVersion where that has all it needs: of
// several controls, which are upgraded one after the other, those that are still to be then follow.
const (
	commandVersion    = 4
	oldCommandVersion = 3
)

func versionOf(c *storev1.Command) uint32 {
	if c.GetSetGossipKeys() != nil {
		return commandVersion
	}
	return oldCommandVersion
}

// maxCommandBytes is above the largest bundle and document together.
const maxCommandBytes = 2 * bundle.MaxBytes

// errTooNew says that a newer program wrote what is read. A program that skipped it would go on with another state
// than its peers.
var errTooNew = errors.New("it was written by a newer version of this program")

// encodeCommand writes a command, sealed: a command may hold private keys. Neither raft nor its log on disk has a
// checksum of entries, and a flipped bit must stop a control rather than be taken for a refused command; the seal tells.
func (k *sealer) encodeCommand(c *storev1.Command) ([]byte, error) {
	c.Version = versionOf(c)
	room := make([]byte, commandHead, commandHead+proto.Size(c)+tagBytes)
	room, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(room, c)
	if err != nil {
		return nil, fmt.Errorf("encode the command: %w", err)
	}
	if len(room) > maxCommandBytes {
		return nil, fmt.Errorf("the command has %d MiB, at most %d are taken", len(room)>>20, maxCommandBytes>>20)
	}
	return k.seal(room), nil
}

// decodeCommand reads what encodeCommand wrote. Every error means that the log cannot be followed any further.
func (k *sealer) decodeCommand(data []byte) (*storev1.Command, error) {
	if len(data) > maxCommandBytes+tagBytes {
		return nil, fmt.Errorf("it is damaged: %d bytes are not a command", len(data))
	}
	plain, err := k.open(data)
	if err != nil {
		return nil, err
	}
	return parseCommand(plain)
}

func parseCommand(plain []byte) (*storev1.Command, error) {
	c := &storev1.Command{}
	if err := proto.Unmarshal(plain, c); err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	if c.GetVersion() > commandVersion {
		return nil, fmt.Errorf("%w: a command of version %d, this program knows up to %d", errTooNew, c.GetVersion(), commandVersion)
	}
	if c.GetVersion() == 0 || c.GetAction() == nil {
		return nil, errors.New("it is damaged: it says nothing that this program could do")
	}
	return c, nil
}

// newCommit makes the command that turns the active bundle by delta into the next. It carries only bodies that are not
// held, so a change of one route is small and a rollback brings no bodies at all.
func newCommit(revision *storev1.Revision, document []byte, delta bundle.Delta, held func(sum) bool) (*storev1.CommitRevision, error) {
	packed, err := compress(document)
	if err != nil {
		return nil, err
	}
	c := &storev1.CommitRevision{Revision: revision, Document: packed, Removed: keysTo(delta.Removed)}
	brought := map[sum]bool{}
	for _, r := range delta.Upserted {
		h := sha256.Sum256(r.Body)
		c.Upserted = append(c.Upserted, reference(r, h))
		if !brought[h] && !held(h) {
			brought[h] = true
			c.Bodies = append(c.Bodies, r.Body)
		}
	}
	return c, nil
}

func reference(r bundle.Resource, h sum) *storev1.ResourceReference {
	return &storev1.ResourceReference{Kind: string(r.Kind), Name: r.Name, Sha256: h[:]}
}

func keysTo(keys []bundle.Key) []*fleetv1.ResourceKey {
	out := make([]*fleetv1.ResourceKey, 0, len(keys))
	for _, k := range keys {
		out = append(out, &fleetv1.ResourceKey{Kind: string(k.Kind), Name: k.Name})
	}
	return out
}

// compress makes a document a tenth of its size, since two hundred of them stay in memory.
func compress(document []byte) ([]byte, error) {
	if len(document) > MaxDocumentBytes {
		return nil, fmt.Errorf("the document has %d bytes, at most %d are kept", len(document), MaxDocumentBytes)
	}
	if len(document) == 0 {
		return nil, nil
	}
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(document); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func decompress(compressed []byte) ([]byte, error) {
	if len(compressed) == 0 {
		return nil, nil
	}
	r := flate.NewReader(bytes.NewReader(compressed))
	document, err := io.ReadAll(io.LimitReader(r, MaxDocumentBytes+1))
	if err != nil {
		return nil, fmt.Errorf("unpack the document: %w", err)
	}
	if len(document) > MaxDocumentBytes {
		return nil, fmt.Errorf("the document is longer than %d bytes", MaxDocumentBytes)
	}
	return document, nil
}
