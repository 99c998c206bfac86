package limit

import (
	"hash/maphash"
	"math"
	"sync"
	"time"
)

// aheadTurns is for how many turns a borrower wants to have requests in hand.
const aheadTurns = 1.5

// levelMargin is by how much more than a call before it a call may be delayed before it makes a key's owner believe that more was used.
const levelMargin = Turn

// Accounts are what a node may let through of the keys that all nodes share. A request is decided on by what the key's owner last
// answered; where that is too old, or there was no answer yet, by the node's share of the rate. It never waits. Methods may be called
// concurrently.
type Accounts struct {
	local          *Limiter // for keys that there is no room for
	emission, fill int64
	most           int // keys of a part
	seed           maphash.Seed
	parts          [shards]accounts
}

type accounts struct {
	mu   sync.Mutex
	keys map[uint64]account
	// Requests that did not pass; that passed by an owner's word; that passed by the share; and of keys that there was no room for.
	limited, borrowed, shared, beyond uint64
	_                                 [16]byte // to the next part's line
}

// account is a key. It has no pointer.
type account struct {
	// owed is the owner's theoretical arrival time of the next request, as it last said. tat is that with what has passed by the share
	// since: it goes on as if the other nodes did the same.
	owed, tat int64
	until     int64  // when the answer is too old
	allowed   uint32 // requests, until the next answer
	passed    uint32 // requests that the owner was not told of yet
	asked     uint32 // since the last turn, whether they passed or not
	demand    float32
}

// NewAccounts makes accounts for at most so many keys. Keys beyond that go by the node's share of the rate.
func NewAccounts(r Rate, keys int) *Accounts {
	r = r.lendable()
	return &Accounts{local: New(r), emission: int64(r.Emission()), fill: int64(r.Fill()), most: max(1, keys/shards), seed: maphash.MakeSeed()}
}

// Allow says whether a request passes. key is the same on every node; nodes is how many there are, this one among them. One that is
// alone lets the whole rate through.
func (a *Accounts) Allow(key uint64, nodes int, now time.Duration) (Standing, bool) {
	place := maphash.Comparable(a.seed, key) // or a client could aim at the places of others
	s := &a.parts[place%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	k, open := s.keys[key]
	if !open && len(s.keys) >= a.most {
		s.beyond++
		return a.local.AllowShare(place, nodes, now)
	}
	k.asked = min(k.asked, math.MaxUint32-1) + 1
	borrows := nodes > 1 && int64(now) < k.until
	var standing Standing
	var passes bool
	if borrows {
		standing, passes = k.borrow(a, int64(now))
	} else {
		standing, passes = k.share(a, int64(nodes), int64(now))
	}
	switch {
	case !passes:
		s.limited++
	case borrows:
		s.borrowed++
	default:
		s.shared++
	}
	if passes {
		k.passed = min(k.passed, math.MaxUint32-1) + 1
	}
	if s.keys == nil {
		s.keys = make(map[uint64]account)
	}
	s.keys[key] = k
	return standing, passes
}

// borrow goes by the owner's answer.
func (k *account) borrow(a *Accounts, now int64) (Standing, bool) {
	passes := k.allowed > 0
	if passes {
		k.allowed--
	}
	standing := Standing{Remaining: k.allowed, Full: time.Duration(max(a.emission, k.tat-now))}
	if k.allowed == 0 {
		standing.Retry = time.Duration(max(int64(Turn), k.tat-now+a.emission-a.fill))
	}
	return standing, passes
}

// share lets the node's part of the rate through, and its part of what is there at once, but one at least.
func (k *account) share(a *Accounts, nodes, now int64) (Standing, bool) {
	emission := a.emission * max(1, nodes)
	fill := max(a.fill, emission)
	tat := max(k.tat, now)
	passes := tat+emission-now <= fill
	if passes {
		tat += emission
		k.tat = tat
	}
	return standing(tat-now, emission, fill), passes
}

// Turn gives what is to be told and asked of the keys' owners now, after what asks holds already. It is called once in a Turn, and each
// ask ends in Granted, Failed or Deferred.
func (a *Accounts) Turn(nodes int, now time.Duration, asks []Ask) []Ask {
	emission := a.emission * int64(max(1, nodes))
	for i := range a.parts {
		s := &a.parts[i]
		s.mu.Lock()
		for key, k := range s.keys {
			if k.asked == 0 && k.passed == 0 {
				if max(k.tat, k.until) <= int64(now) {
					delete(s.keys, key)
				}
				continue
			}
			if k.until <= int64(now) { // what was not told for a while is over in part
				k.passed = uint32(min(int64(k.passed), max(0, k.tat-int64(now)+emission-1)/emission))
			}
			if k.demand += (float32(k.asked) - k.demand) / 4; float32(k.asked) > k.demand {
				k.demand = float32(k.asked) // up at once: what is refused for want of foresight is refused for nothing
			}
			asks = append(asks, Ask{
				Key: key, Want: uint32(min(k.demand*aheadTurns+0.9, 1<<31)), Used: k.passed, Level: time.Duration(max(0, k.owed-int64(now+levelMargin))), at: now,
			})
			k.asked, k.passed = 0, 0
			s.keys[key] = k
		}
		if len(s.keys) == 0 {
			s.keys = nil // maps do not shrink
		}
		s.mu.Unlock()
	}
	return asks
}

// change changes an account that is open still.
func (a *Accounts) change(key uint64, by func(*account)) {
	s := &a.parts[maphash.Comparable(a.seed, key)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, open := s.keys[key]; open {
		by(&k)
		s.keys[key] = k
	}
}

// Granted takes in an owner's answer. More than can be there is not believed.
func (a *Accounts) Granted(of Ask, g Grant, now time.Duration) {
	a.change(of.Key, func(k *account) {
		k.owed = int64(of.at) + min(max(int64(g.Level), 0), 2*a.fill)
		k.tat = k.owed + min(int64(k.passed), a.fill/a.emission)*a.emission
		k.until = int64(now + allowedTurns*Turn)
		k.allowed = min(g.Allowed, uint32(a.fill/a.emission))
		k.allowed -= min(k.allowed, k.passed) // which have passed since it was asked
	})
}

// Failed is that an ask has not come to an answer. What was to be told is told to the next owner.
func (a *Accounts) Failed(of Ask) {
	a.change(of.Key, func(k *account) { k.untold(of); k.until = 0 })
}

// Deferred is that an ask was not made, and is to be made in the next turn.
func (a *Accounts) Deferred(of Ask) { a.change(of.Key, func(k *account) { k.untold(of) }) }

func (k *account) untold(of Ask) { k.passed += min(of.Used, math.MaxUint32-k.passed) }

// Lending is what Accounts have done since they were made.
type Lending struct {
	// Requests that passed by the word of their key's owner, and by the node's share.
	Borrowed, Shared uint64
}

// Usage is what the accounts hold and have done. Of keys that there was no room for, each request counts as evicted.
func (a *Accounts) Usage(now time.Duration) (Usage, Lending) {
	u, lending := a.local.Usage(now), Lending{}
	for i := range a.parts {
		s := &a.parts[i]
		s.mu.Lock()
		u.Keys += len(s.keys)
		u.Limited += s.limited
		u.Evicted += s.beyond
		lending.Borrowed += s.borrowed
		lending.Shared += s.shared
		s.mu.Unlock()
	}
	return u, lending
}

// Tidy gives back the memory of idle keys that there was no room for: Turn sees to the others.
func (a *Accounts) Tidy(now time.Duration) { a.local.Tidy(now) }
