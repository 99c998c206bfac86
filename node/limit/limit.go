// Package limit decides whether a request may pass: by GCRA, the generic cell rate algorithm (ITU-T I.371), which is a leaky
// bucket that needs one number for each key. It is pure: it knows hashes of keys and times that are passed in, nothing of requests,
// routes or other nodes.
//
// Order of calls: New, then Allow from as many goroutines as there are requests, and Tidy every few seconds.
//
// Shared is for a rate that several nodes share. Each key has an owner among them (Lenders), which lends what there is (Ledger) to those
// that ask for it (Accounts) once in a Turn: NewShared, then Allow as above, and in each Turn what Shared.Turn gives is carried to the
// owners, and their answers back. See DESIGN.md of package node for what it costs to be that quick.
package limit

import (
	"sync"
	"sync/atomic"
	"time"
)

// Rate is how many requests pass.
type Rate struct {
	// How many in each stretch of Per. Both are above 0, and Per is at least Requests nanoseconds.
	Requests uint32
	Per      time.Duration
	// How many may come at once after a pause. At least 1.
	Burst uint32
}

// Emission is the time from one request to the next where they come evenly.
func (r Rate) Emission() time.Duration { return max(1, r.Per/time.Duration(r.Requests)) }

// Fill is how long it takes until Burst requests may come at once again.
func (r Rate) Fill() time.Duration { return r.Emission() * time.Duration(r.Burst) }

// Standing is where a key stands after a request.
type Standing struct {
	// How many more requests would pass at this moment.
	Remaining uint32
	// How long until Burst of them would.
	Full time.Duration
	// How long until one would; 0: at once.
	Retry time.Duration
}

const (
	// shards keeps requests on different processors apart.
	shards = 32
	// ways is how many entries share a place: two lines of a processor's cache.
	ways = 8
	// leastPlaces is how many places a shard begins with.
	leastPlaces = 2
	// MaxKeys is how many keys a Limiter has room for, at most: 32 MiB. Beyond it, those that have used the least of their rate are
	// forgotten first, each among the few that share its places.
	MaxKeys = 1 << 21
	// maxPlaces is how many places a shard has at most.
	maxPlaces = MaxKeys / shards / ways
)

// entry is a key: its hash, never 0, and the theoretical arrival time of its next request. An entry whose time is past is as good
// as none, so idle keys need no record.
type entry struct {
	hash uint64
	tat  int64
}

type place [ways]entry

type shard struct {
	mu      sync.Mutex
	places  []place // a power of two of them, or none
	limited uint64
	_       [64]byte // to the next shard's line
}

// Limiter keeps one Rate for each key apart. Its methods may be called concurrently.
type Limiter struct {
	rate           Rate
	emission, fill int64
	most           int // places of a shard; a constant but for tests
	shards         [shards]shard
	evicted        atomic.Uint64
}

// New makes a limiter that has seen nothing. It takes 3 KiB.
func New(r Rate) *Limiter {
	return &Limiter{rate: r, emission: int64(r.Emission()), fill: int64(r.Fill()), most: maxPlaces}
}

// Rate is the one given to New.
func (l *Limiter) Rate() Rate { return l.rate }

// Allow says whether a request passes at now, which is any clock that does not go back, and counts it if it does. key is a hash
// over all 64 bits that nobody outside can foresee. A request that does not pass costs its key nothing.
func (l *Limiter) Allow(key uint64, now time.Duration) (Standing, bool) {
	if key == 0 {
		key = 1
	}
	return l.allow(key, int64(now), l.emission, l.fill)
}

// AllowShare is Allow for one of several nodes that share the rate evenly: it lets its part through, and its part of the burst, but one
// at least.
func (l *Limiter) AllowShare(key uint64, nodes int, now time.Duration) (Standing, bool) {
	if key == 0 {
		key = 1
	}
	emission := l.emission * int64(max(1, nodes))
	return l.allow(key, int64(now), emission, max(l.fill, emission))
}

func (l *Limiter) allow(key uint64, now, emission, fill int64) (Standing, bool) {
	s := &l.shards[key%shards]
	s.mu.Lock()
	e := s.find(l, key, now)
	tat := max(e.tat, now) + emission
	ahead := tat - now
	passes := ahead <= fill
	if passes {
		e.hash, e.tat = key, tat
	} else {
		s.limited++
		ahead -= emission
	}
	s.mu.Unlock()
	return standing(ahead, emission, fill), passes
}

// standing is that of a key whose theoretical arrival time is so far ahead.
func standing(ahead, emission, fill int64) Standing {
	out := Standing{Remaining: uint32(max(0, (fill-ahead)/emission)), Full: time.Duration(ahead)}
	if out.Remaining == 0 {
		out.Retry = time.Duration(ahead + emission - fill)
	}
	return out
}

// find is the key's entry, or one to make it of. It is called with mu held.
func (s *shard) find(l *Limiter, key uint64, now int64) *entry {
	if len(s.places) == 0 {
		s.places = make([]place, leastPlaces)
	}
	for {
		var free *entry
		oldest := &s.places[s.first(key)][0]
		for _, at := range [...]int{s.first(key), s.second(key)} {
			p := &s.places[at]
			for i := range p {
				e := &p[i]
				if e.hash == key {
					return e
				}
				if free == nil && e.tat <= now {
					free = e
				}
				if e.tat < oldest.tat {
					oldest = e
				}
			}
		}
		switch {
		case free != nil:
			*free = entry{}
			return free
		case len(s.places) == l.most:
			l.evicted.Add(1)
			*oldest = entry{}
			return oldest
		}
		s.resize(2*len(s.places), now)
	}
}

// first and second are where a key may be: with two places to choose from, nearly all entries are in use before a key finds none. The
// lowest bits have chosen the shard.
func (s *shard) first(key uint64) int  { return int(key/shards) & (len(s.places) - 1) }
func (s *shard) second(key uint64) int { return int(key>>40) & (len(s.places) - 1) }

// resize moves what is not idle to n places. Where those of one place do not all fit any more, the ones that have used the least go.
func (s *shard) resize(n int, now int64) {
	old := s.places
	s.places = make([]place, n)
	for i := range old {
		for _, e := range old[i] {
			if e.tat > now {
				s.keep(e)
			}
		}
	}
}

func (s *shard) keep(e entry) {
	least := &s.places[s.first(e.hash)][0]
	for _, at := range [...]int{s.first(e.hash), s.second(e.hash)} {
		p := &s.places[at]
		for i := range p {
			if p[i].tat < least.tat {
				least = &p[i]
			}
		}
	}
	if least.tat < e.tat {
		*least = e
	}
}

// Tidy gives back the memory of keys that are idle at now. It takes about a millisecond for 100,000 keys, and holds up those of one
// shard at a time.
func (l *Limiter) Tidy(now time.Duration) {
	for i := range l.shards {
		l.shards[i].tidy(int64(now))
	}
}

func (s *shard) tidy(now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	live := s.live(now)
	if live == 0 {
		s.places = nil
		return
	}
	n := len(s.places)
	for n > leastPlaces && live < n*ways/8 {
		n /= 2
	}
	if n < len(s.places) {
		s.resize(n, now)
	}
}

// live counts the keys that are not idle. It is called with mu held.
func (s *shard) live(now int64) (n int) {
	for i := range s.places {
		for _, e := range s.places[i] {
			if e.tat > now {
				n++
			}
		}
	}
	return n
}

// Usage is what a Limiter holds and has done.
type Usage struct {
	// Keys that are not idle, and the bytes that all keys take.
	Keys, Bytes int
	// Requests that did not pass, and keys that were forgotten for want of room, since New.
	Limited, Evicted uint64
}

// Usage is read shard by shard.
func (l *Limiter) Usage(now time.Duration) Usage {
	u := Usage{Evicted: l.evicted.Load()}
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		u.Keys += s.live(int64(now))
		u.Bytes += len(s.places) * ways * 16
		u.Limited += s.limited
		s.mu.Unlock()
	}
	return u
}
