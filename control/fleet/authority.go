package fleet

import (
	"bytes"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// SetAuthority says which authority issues certificates now, by its hash: every node is told, now and when it connects,
// and one whose certificate another issued renews it.
func (f *Fleet) SetAuthority(hash []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if bytes.Equal(hash, f.authority) {
		return
	}
	f.authority = hash
	f.wakeAll()
}

// tellAuthority has a session told which authority issues, where it was not; nil: it was. The caller holds mu.
func (f *Fleet) tellAuthority(s *session) func() error {
	if bytes.Equal(s.told, f.authority) {
		return nil
	}
	s.told = f.authority
	m := &fleetv1.ToNode{Message: &fleetv1.ToNode_Authority{Authority: &fleetv1.AuthorityInUse{Sha256: f.authority}}}
	return func() error { return f.transmit(s, m) }
}
