package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/keyring"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// snapshotVersion is the highest that this program reads. What it writes is of oldSnapshotVersion where that has all it needs,
// as with commands.
const (
	snapshotVersion    = 4
	oldSnapshotVersion = 3
)

func (c *capture) version() uint32 {
	if c.gossip != nil {
		return snapshotVersion
	}
	return oldSnapshotVersion
}

// maxRecordBytes is above the longest record, which is a past revision that replaced a whole bundle.
const maxRecordBytes = 2 * bundle.MaxBytes

// maxSnapshotBodies is what all bodies may hold together: those of the active bundle and those of its past.
const maxSnapshotBodies = bundle.MaxBytes + maxHistoryBytes

// capture is a state at one moment, to be written while the state goes on.
type capture struct {
	seal    *sealer // set by whoever calls Persist
	epoch   uint64
	active  *version
	past    []*version
	lines   []Revision
	nodes   []Node
	tokens  []Token
	servers []Server
	results []result
	anchor  audit.Anchor
	entries []audit.Entry

	authorities []Authority
	contexts    []Context
	revocations []Revocation
	gossip      *keyring.Ring
}

// capture shares what is never changed: versions, and slices that are only appended to or replaced.
func (s *state) capture() *capture {
	c := &capture{
		epoch: s.epoch, active: s.active, past: s.past, lines: s.lines, nodes: sorted(s.nodes), tokens: sorted(s.tokens),
		servers: sorted(s.servers), results: s.results.order,
		authorities: s.authorities, contexts: sorted(s.contexts), revocations: sorted(s.revocations), gossip: s.gossip,
	}
	c.anchor, c.entries = s.trail.Entries()
	return c
}

// Persist implements raft.FSMSnapshot.
func (c *capture) Persist(sink raft.SnapshotSink) error {
	if err := c.writeSealed(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// writeSealed writes the snapshot as it lies on disk, since it holds private keys.
func (c *capture) writeSealed(to io.Writer) error {
	sealed, err := c.seal.newWriter(to)
	if err != nil {
		return fmt.Errorf("write the snapshot: %w", err)
	}
	return errors.Join(c.writeTo(sealed), sealed.Close())
}

// Release implements raft.FSMSnapshot.
func (*capture) Release() {}

// writeTo writes the snapshot: each record behind its length as a uvarint.
func (c *capture) writeTo(to io.Writer) error {
	w := &snapshotWriter{to: bufio.NewWriterSize(to, 1<<16), sum: sha256.New(), written: map[sum]bool{}}
	w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Header{
		Header: &storev1.SnapshotHeader{Version: c.version(), Epoch: c.epoch},
	}})
	w.history(c)
	for _, r := range c.lines {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Line{Line: r.toProto()}})
	}
	for _, n := range c.nodes {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Node{Node: n.toProto()}})
	}
	for _, t := range c.tokens {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Token{Token: t.toProto()}})
	}
	for _, s := range c.servers {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Server{Server: s.toProto()}})
	}
	for _, r := range c.results {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Result{Result: r.toProto()}})
	}
	w.trail(c)
	for _, a := range c.authorities {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Authority{Authority: a.toProto()}})
	}
	for _, issued := range c.contexts {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Context{Context: issued.toProto()}})
	}
	for _, revoked := range c.revocations {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Revocation{Revocation: revoked.toProto()}})
	}
	if c.gossip != nil {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_GossipKeys{GossipKeys: ringToProto(c.gossip)}})
	}
	w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_End{
		End: &storev1.SnapshotEnd{Sha256: w.sum.Sum(nil)},
	}})
	if w.err != nil {
		return fmt.Errorf("write the snapshot: %w", w.err)
	}
	return w.to.Flush()
}

// snapshotWriter writes records and remembers the first error.
type snapshotWriter struct {
	to      *bufio.Writer
	sum     hash.Hash
	written map[sum]bool // bodies
	scratch []byte
	err     error
}

func (w *snapshotWriter) record(r *storev1.SnapshotRecord) {
	if w.err != nil {
		return
	}
	w.scratch = binary.AppendUvarint(w.scratch[:0], uint64(proto.Size(r)))
	if w.scratch, w.err = (proto.MarshalOptions{Deterministic: true}).MarshalAppend(w.scratch, r); w.err != nil {
		return
	}
	w.sum.Write(w.scratch)
	_, w.err = w.to.Write(w.scratch)
}

// trail writes the audit trail, oldest entry first.
func (w *snapshotWriter) trail(c *capture) {
	if c.anchor.Sequence > 0 {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_AuditAnchor{
			AuditAnchor: &storev1.AuditAnchor{Sequence: c.anchor.Sequence, Hash: c.anchor.Hash[:]},
		}})
	}
	for i := range c.entries {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_AuditEntry{AuditEntry: auditToProto(&c.entries[i])}})
	}
}

// history writes the active version and those before it, newest first, every body before its first use.
func (w *snapshotWriter) history(c *capture) {
	if c.active == nil {
		return
	}
	for r := range c.active.bundle.All() {
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Resource{Resource: w.reference(r)}})
	}
	w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Active{
		Active: &storev1.ActiveRevision{Revision: c.active.toProto(), Document: c.active.packed},
	}})
	for _, v := range slices.Backward(c.past) {
		past := &storev1.PastRevision{Revision: v.toProto(), Document: v.packed, Removed: keysTo(v.back.Removed)}
		for _, r := range v.back.Upserted {
			past.Restored = append(past.Restored, w.reference(r))
		}
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Past{Past: past}})
	}
}

// reference names a resource, and writes its body if that was not yet done.
func (w *snapshotWriter) reference(r bundle.Resource) *storev1.ResourceReference {
	h := sha256.Sum256(r.Body)
	if !w.written[h] {
		w.written[h] = true
		w.record(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Body{Body: r.Body}})
	}
	return reference(r, h)
}

// readSnapshot makes a state of what writeTo wrote. Any flipped or missing bit is an error.
func readSnapshot(from io.Reader) (*state, error) {
	r := &snapshotReader{
		from: bufio.NewReaderSize(from, 1<<16), sum: sha256.New(), state: newState(), bodies: map[sum][]byte{},
	}
	if err := r.read(); err != nil {
		return nil, err
	}
	return r.state, nil
}

// snapshotReader builds a state record by record.
type snapshotReader struct {
	from      *bufio.Reader
	sum       hash.Hash // over every record that was taken
	state     *state
	begun     bool // the header was read
	bodies    map[sum][]byte
	bodyBytes int
	resources []bundle.Resource // of the active bundle
	anchor    audit.Anchor
	entries   []audit.Entry
}

func (r *snapshotReader) read() error {
	for {
		record, raw, err := r.next()
		if err != nil {
			return err
		}
		if end, ok := record.GetRecord().(*storev1.SnapshotRecord_End); ok {
			return r.finish(end.End)
		}
		r.sum.Write(raw)
		if err := r.take(record); err != nil {
			return err
		}
	}
}

// next reads one record; raw is the record with its length, as written.
func (r *snapshotReader) next() (record *storev1.SnapshotRecord, raw []byte, err error) {
	length, err := binary.ReadUvarint(r.from)
	if err != nil {
		return nil, nil, fmt.Errorf("it is cut short: %w", err)
	}
	if length > maxRecordBytes {
		return nil, nil, fmt.Errorf("it is damaged: a record of %d bytes", length)
	}
	// The buffer grows with what is there, not with what the length promises.
	buffer := bytes.NewBuffer(binary.AppendUvarint(nil, length))
	head := buffer.Len()
	if _, err := io.CopyN(buffer, r.from, int64(length)); err != nil {
		return nil, nil, fmt.Errorf("it is cut short: %w", err)
	}
	raw = buffer.Bytes()
	record = &storev1.SnapshotRecord{}
	if err := proto.Unmarshal(raw[head:], record); err != nil {
		return nil, nil, fmt.Errorf("it is damaged: %w", err)
	}
	return record, raw, nil
}

func (r *snapshotReader) take(record *storev1.SnapshotRecord) error {
	if header := record.GetHeader(); r.begun == (header != nil) {
		return errors.New("it is damaged: it does not begin with its one header")
	}
	switch is := record.GetRecord().(type) {
	case *storev1.SnapshotRecord_Header:
		return r.header(is.Header)
	case *storev1.SnapshotRecord_Body:
		return r.body(is.Body)
	case *storev1.SnapshotRecord_Resource:
		return r.resource(is.Resource)
	case *storev1.SnapshotRecord_Active:
		return r.active(is.Active)
	case *storev1.SnapshotRecord_Past:
		return r.past(is.Past)
	case *storev1.SnapshotRecord_Line:
		return r.line(is.Line)
	case *storev1.SnapshotRecord_Node:
		n, err := nodeFrom(is.Node)
		if err != nil {
			return err
		}
		return put(r.state.nodes, n.Name, n)
	case *storev1.SnapshotRecord_Token:
		t, err := tokenFrom(is.Token)
		if err != nil {
			return err
		}
		return put(r.state.tokens, t.ID, t)
	case *storev1.SnapshotRecord_Server:
		return r.state.putServer(is.Server)
	case *storev1.SnapshotRecord_Result:
		done, err := resultFrom(is.Result)
		if err != nil {
			return err
		}
		r.state.results.add(done)
		return nil
	case *storev1.SnapshotRecord_AuditAnchor:
		return r.auditAnchor(is.AuditAnchor)
	case *storev1.SnapshotRecord_AuditEntry:
		return r.auditEntry(is.AuditEntry)
	case *storev1.SnapshotRecord_Authority:
		return r.authority(is.Authority)
	case *storev1.SnapshotRecord_GossipKeys:
		return r.gossipKeys(is.GossipKeys)
	case *storev1.SnapshotRecord_Context:
		c, err := contextFrom(is.Context)
		if err != nil {
			return err
		}
		return put(r.state.contexts, string(c.KeyHash[:]), c)
	case *storev1.SnapshotRecord_Revocation:
		revoked, err := revocationFrom(is.Revocation)
		if err != nil {
			return err
		}
		return put(r.state.revocations, revoked.Name, revoked)
	}
	return errors.New("it is damaged: a record says nothing that this program knows")
}

func (r *snapshotReader) header(m *storev1.SnapshotHeader) error {
	if m.GetVersion() > snapshotVersion {
		return fmt.Errorf("%w: version %d, this program knows up to %d", errTooNew, m.GetVersion(), snapshotVersion)
	}
	if m.GetVersion() == 0 || m.GetEpoch() == 0 {
		return errors.New("it is damaged: its header is empty")
	}
	r.begun = true
	r.state.epoch = m.GetEpoch()
	return nil
}

func (r *snapshotReader) body(data []byte) error {
	if r.bodyBytes += len(data); r.bodyBytes > maxSnapshotBodies {
		return fmt.Errorf("it holds more than %d MiB of bodies", maxSnapshotBodies>>20)
	}
	r.bodies[sha256.Sum256(data)] = data
	return nil
}

func (r *snapshotReader) lookup(h sum) ([]byte, bool) {
	data, ok := r.bodies[h]
	return data, ok
}

func (r *snapshotReader) resource(m *storev1.ResourceReference) error {
	if r.state.active != nil || len(r.resources) >= bundle.MaxResources {
		return errors.New("it is damaged: it holds too many resources")
	}
	found, err := resolve([]*storev1.ResourceReference{m}, r.lookup)
	r.resources = append(r.resources, found...)
	return err
}

func (r *snapshotReader) active(m *storev1.ActiveRevision) error {
	if r.state.active != nil {
		return errors.New("it is damaged: it holds two active revisions")
	}
	revision, err := revisionFrom(m.GetRevision())
	if err != nil {
		return err
	}
	b, err := bundle.New(r.resources)
	if err != nil {
		return err
	}
	if b.Digest() != revision.Digest {
		return fmt.Errorf("it is damaged: the bundle of revision %d has another digest", revision.Number)
	}
	document, err := decompress(m.GetDocument())
	if err != nil {
		return err
	}
	r.state.active = &version{Revision: revision, packed: m.GetDocument(), document: document, bundle: b}
	for _, stored := range r.resources {
		r.state.retain(stored.Body)
	}
	r.resources = nil
	return nil
}

// past takes the version before the oldest that was read; read turns the order round at the end.
func (r *snapshotReader) past(m *storev1.PastRevision) error {
	revision, err := revisionFrom(m.GetRevision())
	if err != nil {
		return err
	}
	after := r.state.active
	if n := len(r.state.past); n > 0 {
		after = r.state.past[n-1]
	}
	if after == nil || revision.Number+1 != after.Number || len(r.state.past) >= WholeRevisions-1 {
		return fmt.Errorf("it is damaged: revision %d is out of order", revision.Number)
	}
	restored, err := resolve(m.GetRestored(), r.lookup)
	if err != nil {
		return err
	}
	v := &version{Revision: revision, packed: m.GetDocument()}
	v.back = bundle.Delta{Base: after.Digest, Removed: keysFrom(m.GetRemoved()), Upserted: restored}
	v.weigh()
	for _, stored := range restored {
		r.state.retain(stored.Body)
	}
	r.state.past = append(r.state.past, v)
	r.state.pastBytes += v.bytes
	return nil
}

func (r *snapshotReader) line(m *storev1.Revision) error {
	revision, err := revisionFrom(m)
	if err != nil {
		return err
	}
	if n := len(r.state.lines); n >= maxLines || n > 0 && r.state.lines[n-1].Number+1 != revision.Number {
		return fmt.Errorf("it is damaged: the line of revision %d is out of order", revision.Number)
	}
	r.state.lines = append(r.state.lines, revision.line())
	return nil
}

func (r *snapshotReader) auditAnchor(m *storev1.AuditAnchor) error {
	h, err := hashFrom(m.GetHash())
	if err != nil {
		return err
	}
	if r.anchor.Sequence > 0 || len(r.entries) > 0 || m.GetSequence() == 0 {
		return errors.New("it is damaged: the audit trail's anchor is out of order")
	}
	r.anchor = audit.Anchor{Sequence: m.GetSequence(), Hash: h}
	return nil
}

func (r *snapshotReader) auditEntry(m *storev1.AuditEntry) error {
	e, err := auditFrom(m)
	if err != nil {
		return err
	}
	if len(r.entries) >= audit.Kept {
		return errors.New("it is damaged: its audit trail is too long")
	}
	r.entries = append(r.entries, e)
	return nil
}

func (r *snapshotReader) authority(m *storev1.Authority) error {
	a := Authority{m.GetCertificate(), m.GetKey()}
	if err := a.check(); err != nil {
		return err
	}
	if len(r.state.authorities) >= maxAuthorities {
		return errors.New("it is damaged: it holds too many authorities")
	}
	r.state.authorities = append(r.state.authorities, a)
	return nil
}

func (r *snapshotReader) gossipKeys(m *storev1.GossipKeys) error {
	ring, err := ringFrom(m)
	if err != nil {
		return err
	}
	if r.state.gossip != nil {
		return errors.New("it is damaged: it holds the keys of gossip twice")
	}
	r.state.gossip = &ring
	return nil
}

// finish checks what only the whole can tell.
func (r *snapshotReader) finish(end *storev1.SnapshotEnd) error {
	if !r.begun || !bytes.Equal(end.GetSha256(), r.sum.Sum(nil)) {
		return errors.New("it is damaged: its checksum does not fit")
	}
	switch _, err := r.from.ReadByte(); {
	case err == nil:
		return errors.New("it is damaged: it goes on after its end")
	case !errors.Is(err, io.EOF):
		return err
	}
	if len(r.resources) > 0 {
		return errors.New("it is damaged: it holds resources of no revision")
	}
	slices.Reverse(r.state.past)
	r.state.trail = audit.Restore(r.anchor, r.entries)
	return r.state.checkLines()
}

// checkLines says whether the lines lead up to the oldest whole revision.
func (s *state) checkLines() error {
	if len(s.lines) == 0 {
		return nil
	}
	oldest := s.active
	if len(s.past) > 0 {
		oldest = s.past[0]
	}
	if oldest == nil || s.lines[len(s.lines)-1].Number+1 != oldest.Number {
		return errors.New("it is damaged: revisions are missing from the history")
	}
	return nil
}
