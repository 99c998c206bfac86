// Package outlier is passive health: it ejects backends of a pool by how their requests end, for a time that grows with each
// ejection, and never more of them than the policy allows. It is pure: it knows identities and outcomes, nothing of backends,
// connections or other nodes, and time is passed in.
//
// Order of calls: New for a pool, Update whenever its backends or its policy change, Observe for each request, Hear where other
// nodes have something to say, Return when Next has come. The methods of a Detector may be called concurrently.
package outlier

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// ID is what a backend is, the same on every node.
type ID [16]byte

// Policy says when a backend is ejected. The zero value ejects none.
type Policy struct {
	// So many failures in a row eject. 0: none do.
	Consecutive uint32
	// So many failures in a hundred requests eject, once MinimumRequests have ended within Interval. 0: no share does.
	FailurePercent  uint32
	MinimumRequests uint32
	// Over how long shares are counted; also the time without an ejection that takes one of those before back.
	Interval time.Duration
	// How long the first ejection lasts; the n-th lasts n times as long, at most MaxEjection.
	BaseEjection, MaxEjection time.Duration
	// At most so many in a hundred of the pool's backends are ejected at a time, rounded down.
	MaxEjectionPercent uint32
}

// Outcome is how a request ended at a backend.
type Outcome uint8

const (
	// Fine is any answer that is not a failure.
	Fine Outcome = iota
	// Answered is a failure by the backend's own word, a status such as 503.
	Answered
	// Unanswered is a failure on the way: no connection, no answer, or half of one. It may be this node's own trouble, so it
	// is no news for others.
	Unanswered
)

// Quorum is how many other nodes have to say that they have ejected a backend for this one to do so unseen. The word of one
// makes a single failure of this node's own enough.
const Quorum = 2

// Ejection is one that stands.
type Ejection struct {
	// For people, in a few words.
	Reason       string
	Since, Until time.Time
	// This node's own requests led to it, and the backend's answers did: other nodes may be told.
	Shared bool
}

// Record is one backend in a Detector.
type Record struct {
	run           atomic.Uint32 // failures in a row
	total, failed atomic.Uint32 // in the window

	// What follows is guarded by Detector.mu.
	window   time.Time // its beginning
	ejection Ejection  // the zero value: none
	times    uint32    // ejections, those taken back not counted
	over     time.Time // when the last one ended
	suspect  time.Time // until when one other node says that it has ejected the backend
	gone     bool      // the backend has left the pool; requests to it may still end
}

// Detector watches the backends of one pool.
type Detector struct {
	mu      sync.Mutex
	policy  Policy
	records map[ID]*Record
	ejected int
	totals  Totals
}

// Totals are counts since New.
type Totals struct {
	// Ejections by this node's own requests, and by the word of others.
	Own, Heard uint64
	// Those that MaxEjectionPercent has prevented.
	Capped uint64
}

// New makes a detector without backends.
func New() *Detector { return &Detector{records: make(map[ID]*Record)} }

// Update brings policy and backends to what they are now. What is known of backends that stay is kept, ejections too, but for
// those that the new policy has no room for.
func (d *Detector) Update(p Policy, backends []ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.policy = p
	before := d.records
	d.records, d.ejected = make(map[ID]*Record, len(backends)), 0
	for _, id := range backends {
		r := before[id]
		if r == nil {
			r = &Record{}
		}
		if d.records[id] == r {
			continue
		}
		d.records[id] = r
		if !r.ejection.Until.IsZero() {
			d.ejected++
		}
	}
	for id, r := range before {
		r.gone = d.records[id] != r
	}
	for _, id := range backends {
		if r := d.records[id]; d.ejected > d.most() && !r.ejection.Until.IsZero() {
			d.end(r, r.ejection.Since)
		}
	}
}

// most is how many may be ejected. It is called with mu held.
func (d *Detector) most() int {
	return int(uint64(len(d.records)) * uint64(d.policy.MaxEjectionPercent) / 100)
}

// Record is that of a backend; nil: it is not in the pool.
func (d *Detector) Record(id ID) *Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.records[id]
}

// Observe takes in how a request ended. It says whether that has ejected the backend. After a request that is fine it costs
// three atomic operations and needs no time, so now is called for failures alone.
func (d *Detector) Observe(r *Record, o Outcome, now func() time.Time) (ejected bool) {
	r.total.Add(1)
	if o == Fine {
		if r.run.Load() != 0 {
			r.run.Store(0)
		}
		return false
	}
	return d.fail(r, o, now())
}

func (d *Detector) fail(r *Record, o Outcome, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.gone {
		return false // nothing would end its ejection, which would take the room of another's
	}
	run := r.run.Add(1)
	if now.Sub(r.window) >= d.policy.Interval {
		r.window = now
		r.total.Store(1)
		r.failed.Store(0)
	}
	failed, total := r.failed.Add(1), r.total.Load()
	var reason string
	switch p := d.policy; {
	case !r.ejection.Until.IsZero(): // a request that was under way, or one for which no other backend was left
		return false
	case p.Consecutive > 0 && run >= p.Consecutive:
		reason = fmt.Sprintf("%d failures in a row", run)
	case p.FailurePercent > 0 && total >= p.MinimumRequests && uint64(failed)*100 >= uint64(total)*uint64(p.FailurePercent):
		reason = fmt.Sprintf("%d of %d requests failed", min(failed, total), total)
	case o == Answered && now.Before(r.suspect):
		reason = "a failure, after another node had ejected it"
	default:
		return false
	}
	return d.eject(r, Ejection{Reason: reason, Since: now, Shared: o == Answered}, now)
}

// eject is called with mu held.
func (d *Detector) eject(r *Record, e Ejection, now time.Time) bool {
	r.run.Store(0)
	if d.ejected >= d.most() {
		d.totals.Capped++
		return false
	}
	if d.policy.Interval > 0 && r.times > 0 {
		r.times -= uint32(min(int64(r.times), int64(now.Sub(r.over)/d.policy.Interval)))
	}
	r.times++
	if e.Until.IsZero() {
		e.Until = now.Add(min(d.policy.BaseEjection*time.Duration(r.times), d.policy.MaxEjection))
		d.totals.Own++
	} else {
		d.totals.Heard++
	}
	r.ejection = e
	d.ejected++
	return true
}

// end ends an ejection. It is called with mu held.
func (d *Detector) end(r *Record, now time.Time) {
	r.ejection, r.over = Ejection{}, now
	r.run.Store(0)
	r.total.Store(0)
	r.failed.Store(0)
	d.ejected--
}

// Hear takes in how many other nodes say that they have ejected the backend, and until when all of what they say holds. It says
// whether that has ejected it here.
func (d *Detector) Hear(r *Record, nodes int, until, now time.Time) (ejected bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r.suspect = time.Time{}
	if r.gone || nodes == 0 || !now.Before(until) {
		return false
	}
	if latest := now.Add(d.policy.MaxEjection); until.After(latest) {
		until = latest
	}
	r.suspect = until
	if nodes < Quorum || !r.ejection.Until.IsZero() {
		return false
	}
	return d.eject(r, Ejection{Reason: fmt.Sprintf("ejected by %d other nodes", nodes), Since: now, Until: until}, now)
}

// Return ends the ejections whose time is over, and says whether there were any.
func (d *Detector) Return(now time.Time) (any bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.records {
		if u := r.ejection.Until; !u.IsZero() && !now.Before(u) {
			d.end(r, now)
			any = true
		}
	}
	return any
}

// Next is when the first ejection ends; zero: there is none.
func (d *Detector) Next() (at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.records {
		if u := r.ejection.Until; !u.IsZero() && (at.IsZero() || u.Before(at)) {
			at = u
		}
	}
	return at
}

// Ejection is the one that stands for a backend.
func (d *Detector) Ejection(r *Record) (e Ejection, stands bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return r.ejection, !r.ejection.Until.IsZero()
}

// Totals are read together.
func (d *Detector) Totals() Totals {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.totals
}
