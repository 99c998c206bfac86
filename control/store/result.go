package store

import (
	"crypto/rand"
	"fmt"

	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// maxResults is how many results are remembered: far more than there are writes while anybody may still ask again.
const maxResults = 4096

// RequestID names a wish, so that what it asks for is done once however often it is asked. The zero value is none.
type RequestID [16]byte

// NewRequestID makes one at random.
func NewRequestID() (id RequestID) {
	rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	return id
}

// ParseRequestID reads the 16 bytes of one; no bytes are the zero value.
func ParseRequestID(raw []byte) (id RequestID, err error) {
	if len(raw) != 0 && len(raw) != len(id) {
		return id, fmt.Errorf("a request id has %d bytes, this one %d", len(id), len(raw))
	}
	copy(id[:], raw)
	return id, nil
}

// result is what became of a command: the revision that it committed, or 0.
type result struct {
	id       RequestID
	revision uint64
}

// results are the last that there were. The slice is only appended to and cut, so that a snapshot may share it.
type results struct {
	order []result // oldest first
	known map[RequestID]uint64
}

func (r *results) add(next result) {
	if _, again := r.known[next.id]; again || next.id == (RequestID{}) {
		return
	}
	if r.known == nil {
		r.known = map[RequestID]uint64{}
	}
	r.known[next.id] = next.revision
	r.order = append(r.order, next)
	if len(r.order) > maxResults {
		delete(r.known, r.order[0].id)
		r.order = r.order[1:]
	}
}

func (r result) toProto() *storev1.Result {
	return &storev1.Result{RequestId: r.id[:], Revision: r.revision}
}

func resultFrom(m *storev1.Result) (result, error) {
	id, err := ParseRequestID(m.GetRequestId())
	return result{id, m.GetRevision()}, err
}

// Result says whether the wish of that id was done, and which revision it committed; 0: none.
func (s *Store) Result(id RequestID) (revision uint64, done bool) {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	revision, done = s.machine.state.results.known[id]
	return revision, done
}
