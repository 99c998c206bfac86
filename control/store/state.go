package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/keyring"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// Why a write is refused or a read finds nothing.
var (
	// ErrConflict says that another revision is active than the proposer believed.
	ErrConflict = errors.New("another revision is active")
	// ErrNotFound says that there never was a revision of that number.
	ErrNotFound = errors.New("there is no such revision")
	// ErrNotKept says that a revision is so old that only its line in the history is kept.
	ErrNotKept = errors.New("the revision is too old: only its line in the history is kept")
)

type sum = [sha256.Size]byte

// state is what the log's commands make, and nothing else: no clock, no chance, no I/O. It is not safe for concurrent
// use; the values that hang in it are never changed, only replaced.
type state struct {
	epoch  uint64
	active *version // nil: nothing was ever committed
	// past are the whole revisions before the active one, oldest first. Each holds the delta that leads back to it
	// from the revision after it.
	past      []*version
	pastBytes int
	lines     []Revision // older than past, oldest first
	bodies    map[sum]*body
	nodes     map[string]Node
	tokens    map[string]Token
	servers   map[string]Server // by id
	results   results
	trail     audit.Trail
	// The newest first; none: those that the cluster was made with.
	authorities []Authority
	contexts    map[string]Context // by key hash
	revocations map[string]Revocation
	gossip      *keyring.Ring // nil: the keys that the cluster was made with
}

// version is one whole revision.
type version struct {
	Revision
	packed []byte // the document, compressed

	// Of the active version only.
	document []byte
	bundle   *bundle.Bundle

	// Of past versions only.
	back  bundle.Delta
	bytes int // what back and packed hold
}

// body is the content of one or more resources.
type body struct {
	data []byte
	refs int // from the active bundle and from the deltas of past versions
}

func newState() *state {
	return &state{
		epoch: 1, bodies: map[sum]*body{}, nodes: map[string]Node{}, tokens: map[string]Token{}, servers: map[string]Server{},
		contexts: map[string]Context{}, revocations: map[string]Revocation{},
	}
}

// next is the number that the next revision must have.
func (s *state) next() uint64 { return s.activeNumber() + 1 }

func (s *state) activeNumber() uint64 {
	if s.active == nil {
		return 0
	}
	return s.active.Number
}

func (s *state) activeBundle() *bundle.Bundle {
	if s.active == nil {
		return nil
	}
	return s.active.bundle
}

// apply changes the state by a command of a known version. An error says that the command was refused and nothing
// changed; the outcome is the same wherever and whenever the same commands are applied in the same order. A command
// whose request id was done before changes nothing, and is not refused.
func (s *state) apply(c *storev1.Command) error {
	id, err := ParseRequestID(c.GetRequestId())
	if err != nil {
		return err
	}
	if _, done := s.results.known[id]; done {
		return nil
	}
	entry, err := auditFrom(c.GetAudit())
	if err != nil && c.GetAudit() != nil {
		return err
	}
	if err := s.act(c); err != nil {
		return err
	}
	if c.GetAudit() != nil {
		s.trail.Append(entry)
	}
	s.results.add(result{id, c.GetCommitRevision().GetRevision().GetRelease().GetRevision()})
	return nil
}

func (s *state) act(c *storev1.Command) error {
	switch action := c.GetAction().(type) {
	case *storev1.Command_CommitRevision:
		return s.commit(action.CommitRevision)
	case *storev1.Command_PutNode:
		n, err := nodeFrom(action.PutNode.GetNode())
		if err != nil {
			return err
		}
		return put(s.nodes, n.Name, n)
	case *storev1.Command_RemoveNode:
		delete(s.nodes, action.RemoveNode.GetName())
		return nil
	case *storev1.Command_PutToken:
		t, err := tokenFrom(action.PutToken.GetToken())
		if err != nil {
			return err
		}
		return s.putToken(t)
	case *storev1.Command_RemoveToken:
		return s.removeToken(action.RemoveToken)
	case *storev1.Command_UseToken:
		return s.useToken(action.UseToken)
	case *storev1.Command_SetAuthorities:
		return s.setAuthorities(action.SetAuthorities)
	case *storev1.Command_SetGossipKeys:
		return s.setGossipKeys(action.SetGossipKeys)
	case *storev1.Command_PutContext:
		return s.putContext(action.PutContext)
	case *storev1.Command_RevokeContext:
		return s.revokeContext(action.RevokeContext)
	case *storev1.Command_AppendAudit:
		return nil // apply does it
	case *storev1.Command_PutServer:
		return s.putServer(action.PutServer.GetServer())
	case *storev1.Command_RemoveServer:
		delete(s.servers, action.RemoveServer.GetId())
		return nil
	case *storev1.Command_RaiseEpoch:
		return s.raiseEpoch(action.RaiseEpoch)
	}
	return fmt.Errorf("a command of version %d has no action %T", c.GetVersion(), c.GetAction()) // decodeCommand saw to it
}

func put[V any](to map[string]V, key string, value V) error {
	if _, known := to[key]; !known && len(to) >= maxRecords {
		return fmt.Errorf("no more than %d are kept", maxRecords)
	}
	to[key] = value
	return nil
}

// commit makes the command's bundle the active one. All that can fail comes before the first change.
func (s *state) commit(c *storev1.CommitRevision) error {
	revision, err := s.admit(c.GetRevision())
	if err != nil {
		return err
	}
	upserted, err := s.resolve(c)
	if err != nil {
		return err
	}
	delta := bundle.Delta{Removed: keysFrom(c.GetRemoved()), Upserted: upserted}
	if s.active != nil {
		delta.Base = s.active.Digest
	}
	b, err := delta.Apply(s.activeBundle())
	if err != nil {
		return err
	}
	if b.Digest() != revision.Digest {
		return fmt.Errorf("the bundle's digest is %s, its release says %s", b.Digest().Short(), revision.Digest.Short())
	}
	document, err := decompress(c.GetDocument())
	if err != nil {
		return err
	}
	s.advance(&version{Revision: revision, packed: c.GetDocument(), document: document, bundle: b})
	return nil
}

// raiseEpoch begins another history from the active revision, which is signed anew for it.
func (s *state) raiseEpoch(c *storev1.RaiseEpoch) error {
	if c.GetEpoch() <= s.epoch {
		return fmt.Errorf("epoch %d does not follow epoch %d", c.GetEpoch(), s.epoch)
	}
	if s.active != nil {
		again := *s.active
		again.Release = c.GetRelease()
		if err := again.check(); err != nil {
			return err
		}
		r := c.GetRelease()
		if r.GetEpoch() != c.GetEpoch() || r.GetRevision() != again.Number || !bytes.Equal(r.GetDigest(), again.Digest[:]) {
			return fmt.Errorf("%w: revision %d, not what was signed for epoch %d", ErrConflict, again.Number, c.GetEpoch())
		}
		s.active = &again
	}
	s.epoch = c.GetEpoch()
	return nil
}

// admit checks that a revision may follow the active one.
func (s *state) admit(m *storev1.Revision) (Revision, error) {
	revision, err := revisionFrom(m)
	switch {
	case err != nil:
		return Revision{}, err
	case revision.Parent != s.activeNumber():
		return Revision{}, fmt.Errorf("%w: revision %d, not %d", ErrConflict, s.activeNumber(), revision.Parent)
	case revision.Number != s.next():
		return Revision{}, fmt.Errorf("the release is for revision %d, the next one is %d", revision.Number, s.next())
	case m.GetRelease().GetEpoch() != s.epoch:
		return Revision{}, fmt.Errorf("the release is of epoch %d, this is epoch %d", m.GetRelease().GetEpoch(), s.epoch)
	}
	return revision, nil
}

// resolve finds the bodies that the command names, among its own and those that the state holds.
func (s *state) resolve(c *storev1.CommitRevision) ([]bundle.Resource, error) {
	brought := make(map[sum][]byte, len(c.GetBodies()))
	for _, data := range c.GetBodies() {
		brought[sha256.Sum256(data)] = data
	}
	return resolve(c.GetUpserted(), func(h sum) ([]byte, bool) {
		if held, ok := s.bodies[h]; ok {
			return held.data, true
		}
		data, ok := brought[h]
		return data, ok
	})
}

func resolve(references []*storev1.ResourceReference, lookup func(sum) ([]byte, bool)) ([]bundle.Resource, error) {
	out := make([]bundle.Resource, 0, len(references))
	for _, r := range references {
		h, err := hashFrom(r.GetSha256())
		if err != nil {
			return nil, err
		}
		data, ok := lookup(h)
		if !ok {
			return nil, fmt.Errorf("the body of %s %.200q is missing", r.GetKind(), r.GetName())
		}
		out = append(out, bundle.Resource{Key: bundle.Key{Kind: config.Kind(r.GetKind()), Name: r.GetName()}, Body: data})
	}
	return out, nil
}

func keysFrom(keys []*fleetv1.ResourceKey) []bundle.Key {
	out := make([]bundle.Key, 0, len(keys))
	for _, k := range keys {
		out = append(out, bundle.Key{Kind: config.Kind(k.GetKind()), Name: k.GetName()})
	}
	return out
}

// advance makes next the active version and the active one the newest of the past. The bodies that leave the bundle
// are those that the way back needs, so their references only move.
func (s *state) advance(next *version) {
	for _, r := range bundle.Between(s.activeBundle(), next.bundle).Upserted {
		s.retain(r.Body)
	}
	if old := s.active; old != nil {
		old = &version{Revision: old.Revision, packed: old.packed, back: bundle.Between(next.bundle, old.bundle)}
		old.weigh()
		s.past = append(s.past, old)
		s.pastBytes += old.bytes
	}
	s.active = next
	for len(s.past) >= WholeRevisions || s.pastBytes > maxHistoryBytes {
		s.forgetOldest()
	}
}

func (v *version) weigh() {
	v.bytes = len(v.packed)
	for _, r := range v.back.Upserted {
		v.bytes += len(r.Body)
	}
}

// forgetOldest keeps no more than a line of the oldest whole revision.
func (s *state) forgetOldest() {
	oldest := s.past[0]
	for _, r := range oldest.back.Upserted {
		s.drop(r.Body)
	}
	s.pastBytes -= oldest.bytes
	s.past = slices.Clone(s.past[1:]) // a snapshot may still read the old slice
	s.lines = append(s.lines, oldest.line())
	if len(s.lines) > maxLines {
		s.lines = s.lines[1:]
	}
}

func (s *state) retain(data []byte) {
	h := sha256.Sum256(data)
	held, ok := s.bodies[h]
	if !ok {
		held = &body{data: data}
		s.bodies[h] = held
	}
	held.refs++
}

func (s *state) drop(data []byte) {
	h := sha256.Sum256(data)
	held := s.bodies[h]
	if held.refs--; held.refs == 0 {
		delete(s.bodies, h)
	}
}

// revisions gives the history, newest first.
func (s *state) revisions() []Revision {
	if s.active == nil {
		return nil
	}
	out := make([]Revision, 0, 1+len(s.past)+len(s.lines))
	out = append(out, s.active.Revision)
	out[0].Active = true
	for _, v := range slices.Backward(s.past) {
		out = append(out, v.Revision)
	}
	for _, r := range slices.Backward(s.lines) {
		out = append(out, r)
	}
	return out
}

// find gives the version of that number and the deltas that lead from the active bundle to its, in order.
func (s *state) find(number uint64) (*version, []bundle.Delta, error) {
	if number == 0 || number > s.activeNumber() {
		return nil, nil, fmt.Errorf("revision %d: %w", number, ErrNotFound)
	}
	if number == s.active.Number {
		return s.active, nil, nil
	}
	var way []bundle.Delta
	for _, v := range slices.Backward(s.past) {
		way = append(way, v.back)
		if v.Number == number {
			return v, way, nil
		}
	}
	return nil, nil, fmt.Errorf("revision %d: %w", number, ErrNotKept)
}

// rebuild makes an old bundle of a newer one and the deltas between.
func rebuild(from *bundle.Bundle, way []bundle.Delta, want bundle.Digest) (*bundle.Bundle, error) {
	b, err := bundle.Follow(from, way)
	if err != nil {
		return nil, err
	}
	if b.Digest() != want {
		return nil, fmt.Errorf("its digest is %s, not %s", b.Digest().Short(), want.Short())
	}
	return b, nil
}

// sorted gives the values in the order of their keys.
func sorted[V any](m map[string]V) []V {
	out := make([]V, 0, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[key])
	}
	return out
}
