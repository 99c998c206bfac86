package fleet

import (
	"slices"

	"github.com/pyserve/pyserve/control/keyring"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// SetGossipKeys says which keys gossip has, the one to encrypt with first: every node is told, now and when it connects. The
// control that leads is told that this one uses them.
func (f *Fleet) SetGossipKeys(keys [][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sameKeys(keys, f.keys) {
		return
	}
	f.keys = keys
	f.wakeAll()
}

// GossipKeys gives what SetGossipKeys was told; none: nothing. They are not to be changed.
func (f *Fleet) GossipKeys() [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keys
}

// tellKeys has a session told of the keys, where it was told of others; nil: it was not. The caller holds mu.
func (f *Fleet) tellKeys(s *session) func() error {
	if len(f.keys) == 0 || sameKeys(s.keys, f.keys) {
		return nil
	}
	s.keys = f.keys
	m := &fleetv1.ToNode{Message: &fleetv1.ToNode_GossipKeys{GossipKeys: &fleetv1.GossipKeys{Keys: f.keys}}}
	return func() error { return f.transmit(s, m) }
}

func sameKeys(a, b [][]byte) bool { return slices.EqualFunc(a, b, slices.Equal) }

// keysDigest gives a digest of keys as somebody told it; nil: that was none.
func keysDigest(told []byte) []byte {
	if len(told) != len(keyring.Ring{}.Digest()) {
		return nil
	}
	return told
}

// digest is that of the keys that nodes are told here; nil: none are.
func (f *Fleet) digest() []byte {
	if keys := f.GossipKeys(); len(keys) > 0 {
		return keyring.Ring{Keys: keys}.Digest()
	}
	return nil
}
