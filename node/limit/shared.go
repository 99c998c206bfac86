package limit

import (
	"sync/atomic"
	"time"
)

// sharedKeys is how many keys a node lends, and how many it has accounts of, for each limit.
const sharedKeys = 1 << 16

// Shared holds all nodes together to a rate: this one lends the keys that are its own, and borrows of the owners of the others. Turn,
// Granted, Failed and Deferred are those of its Accounts, and Lend that of its Ledger.
type Shared struct {
	*Accounts
	*Ledger
	id    uint64
	nodes atomic.Int32
}

// NewShared makes what a node has of a shared limit, as one that is alone. id is the same on every node that has the same limit.
func NewShared(id uint64, r Rate) *Shared {
	s := &Shared{Accounts: NewAccounts(r, sharedKeys), Ledger: NewLedger(r, sharedKeys), id: id}
	s.nodes.Store(1)
	return s
}

// ID is the one given to NewShared.
func (s *Shared) ID() uint64 { return s.id }

// SetNodes says how many nodes share the rate, this one among them.
func (s *Shared) SetNodes(n int) { s.nodes.Store(int32(n)) }

// Allow is that of Accounts, by SetNodes.
func (s *Shared) Allow(key uint64, now time.Duration) (Standing, bool) {
	return s.Accounts.Allow(key, int(s.nodes.Load()), now)
}

// Turn is that of Accounts, by SetNodes.
func (s *Shared) Turn(now time.Duration, asks []Ask) []Ask {
	return s.Accounts.Turn(int(s.nodes.Load()), now, asks)
}

// Tidy gives back the memory of idle keys.
func (s *Shared) Tidy(now time.Duration) {
	s.Accounts.Tidy(now)
	s.Ledger.Tidy(now)
}
