package upstream

import (
	"context"
	"crypto/sha256"
	"errors"
	"syscall"
)

// Identity is a digest of what the backend is, the same on every node: of its address, how TLS is spoken and the check.
func (b *Backend) Identity() (id [16]byte) {
	h := sha256.New()
	h.Write(b.id.tls[:])
	h.Write(b.id.check[:])
	h.Write([]byte(b.id.address))
	copy(id[:], h.Sum(nil))
	return id
}

// Avoid, with true, makes every pool pass over the backend as long as another one takes traffic there; with false it takes its
// turns again. It is for what this node alone has met with, beside the verdict: a pool that has no other goes on asking the
// backend, for the verdict alone says that there is none.
func (b *Backend) Avoid(avoid bool) {
	b.mu.Lock()
	changed := b.avoided.Swap(avoid) != avoid
	var concerned []*Pool
	if changed {
		concerned = b.joined()
	}
	b.mu.Unlock()
	for _, p := range concerned {
		p.rebuild()
	}
}

// Avoided says whether Avoid was called last with true.
func (b *Backend) Avoided() bool { return b.avoided.Load() }

// joined gives the pools that the backend is in. It is called with mu held.
func (b *Backend) joined() []*Pool {
	pools := make([]*Pool, 0, len(b.pools))
	for p := range b.pools {
		pools = append(pools, p)
	}
	return pools
}

// Ours says of the error of a request that it tells nothing about the backend: the client went away, or this machine has run out of
// something.
func Ours(err error) bool {
	if errors.Is(err, context.Canceled) {
		return true
	}
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL, syscall.ENOBUFS, syscall.ENOMEM, syscall.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
