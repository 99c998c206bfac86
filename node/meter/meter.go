// Package meter owns the numbers that the data plane leaves behind: requests by route, messages that were refused,
// connections. It counts without a lock and without an allocation, and is a prometheus.Collector that adds up what was
// counted when it is asked.
//
// It does not know what a request is, which classes of failure there are or what a message can be refused for: the labels
// come in by Options, and are counted by their number. It does not serve /metrics.
//
// Every counter stands once per shard, and the caller says which shard it counts on: the number of its core, worker or
// connection. Counters of two shards share no cache line, so that counting costs a few uncontended atomic adds as long as a
// shard is mostly used by one core. Any shard is right; a bad choice costs time and nothing else.
//
// Order of calls: NewSet and Register once; Route with a route's first request, and the Route kept; Forget when the route is
// no longer served; Unregister at the end.
package meter

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	maxShards = 32
	// maxClasses makes a cell 320 bytes, five cache lines: one of 256 bytes would have room for four classes and no more.
	maxClasses = 12
	// unknown is the label of a number that Options has no name for: a defect of the caller, which should be seen and should
	// not cost a request.
	unknown = "unknown"
)

// Who sent a message that was rejected.
const (
	Client = iota
	Backend
)

var sides = [...]string{Client: "client", Backend: "backend", 2: unknown}

// Options of a Set.
type Options struct {
	// How many cores can count without meeting. Rounded up to a power of two, at most 32. 0: GOMAXPROCS.
	Shards int
	// The label "reason" of rejected messages, by the number that Rejected is given. No two are alike, and none is "unknown".
	RejectReasons []string
	// The label "class" of failures, by the number that Failed is given. At most 12, no two alike, and none is "unknown".
	Classes []string
}

func (o Options) validate() error {
	switch {
	case o.Shards < 0:
		return fmt.Errorf("meter: Options.Shards is %d, want 0 or more", o.Shards)
	case len(o.Classes) > maxClasses:
		return fmt.Errorf("meter: Options.Classes are %d, at most %d can be counted", len(o.Classes), maxClasses)
	}
	if err := checkLabels(o.Classes); err != nil {
		return fmt.Errorf("meter: Options.Classes: %w", err)
	}
	if err := checkLabels(o.RejectReasons); err != nil {
		return fmt.Errorf("meter: Options.RejectReasons: %w", err)
	}
	return nil
}

// checkLabels refuses what would make every scrape fail.
func checkLabels(labels []string) error {
	seen := map[string]bool{unknown: true}
	for _, label := range labels {
		switch {
		case !utf8.ValidString(label):
			return fmt.Errorf("%q is not UTF-8", label)
		case label == unknown:
			return fmt.Errorf("%q stands for numbers without a name", label)
		case seen[label]:
			return fmt.Errorf("%q stands there twice", label)
		}
		seen[label] = true
	}
	return nil
}

// Set counts for one node. Its methods may be called concurrently.
type Set struct {
	classes []string
	reasons []string
	mask    uint32 // shards - 1
	loads   []load // by shard
	// By reason, and one more for those without a name. Not sharded: what is refused is followed by a close.
	rejected [len(sides)][]atomic.Uint64

	// mu guards what follows; nothing else is locked under it but the registry in Register and Unregister.
	mu         sync.Mutex
	routes     map[string]*Route
	registerer prometheus.Registerer // where Register has succeeded
}

// load is what is under way on one shard, as counters that only grow: the difference is taken when they are read. The
// padding is two cache lines, since some processors fetch them in pairs.
type load struct {
	begun, ended   atomic.Uint64 // requests
	opened, closed atomic.Uint64 // connections
	_              [128 - 4*8]byte
}

// NewSet makes a Set that is registered nowhere. The error names the option that is wrong.
func NewSet(o Options) (*Set, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	shards := shardsFor(o.Shards)
	s := &Set{
		classes: append(append([]string{}, o.Classes...), unknown),
		reasons: append(append([]string{}, o.RejectReasons...), unknown),
		mask:    uint32(shards - 1), loads: make([]load, shards), routes: map[string]*Route{},
	}
	for side := range s.rejected {
		s.rejected[side] = make([]atomic.Uint64, len(s.reasons))
	}
	return s, nil
}

// shardsFor is a power of two, so that a mask makes a shard of any number.
func shardsFor(n int) int {
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return 1 << bits.Len(uint(min(n, maxShards)-1))
}

// Register makes r collect the set; nil: nothing does. It is all or nothing, and a Set can be registered once at a time.
func (s *Set) Register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.registerer != nil {
		return errors.New("register request metrics: they are registered already")
	}
	if err := r.Register(s); err != nil {
		return fmt.Errorf("register request metrics: %w", err)
	}
	s.registerer = r
	return nil
}

// Unregister undoes Register. It does nothing where Register has failed: the metrics of these names that are registered then
// are somebody else's, and a registry that knows a collector by its names would take his.
func (s *Set) Unregister() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.registerer != nil {
		s.registerer.Unregister(s)
		s.registerer = nil
	}
}

// Route is where the requests of the route of that name are counted: always the same one, until Forget. It takes a lock:
// keep the Route. Ask for it when the first request has come rather than when a configuration is prepared: one that is asked
// for before the last Forget of its name counts for nothing. A route's series come into being with the first that is
// counted.
func (s *Set) Route(name string) *Route {
	name = label(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.routes[name]
	if r == nil {
		r = &Route{name: name, classes: uint8(len(s.classes) - 1), mask: uint8(s.mask)}
		s.routes[name] = r
	}
	return r
}

// Forget drops the series of a route that is no longer served. Requests that still end on its Route are not counted any
// more; the next Route of that name begins at 0.
func (s *Set) Forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.routes, label(name))
}

// label keeps a name that is not UTF-8 from making every scrape fail.
func label(name string) string { return strings.ToValidUTF8(name, "\ufffd") }

// InFlight counts delta requests more under way, or fewer where it is negative. They may end on another shard than they
// began on.
func (s *Set) InFlight(shard uint32, delta int) {
	l := &s.loads[shard&s.mask]
	change(&l.begun, &l.ended, delta)
}

// UnderWay is how many requests are under way.
func (s *Set) UnderWay() uint64 {
	var begun, ended uint64
	// What has ended is read first: each end has a beginning before it, so that the difference is never below 0.
	for i := range s.loads {
		ended += s.loads[i].ended.Load()
	}
	for i := range s.loads {
		begun += s.loads[i].begun.Load()
	}
	return begun - ended
}

// Connections is how many connections of clients are open, and how many there were in all.
func (s *Set) Connections() (open, total uint64) {
	var closed uint64
	for i := range s.loads { // first, as in UnderWay
		closed += s.loads[i].closed.Load()
	}
	for i := range s.loads {
		total += s.loads[i].opened.Load()
	}
	return total - closed, total
}

// Connected counts delta connections of clients that were opened, or closed where it is negative.
func (s *Set) Connected(shard uint32, delta int) {
	l := &s.loads[shard&s.mask]
	change(&l.opened, &l.closed, delta)
}

func change(more, fewer *atomic.Uint64, delta int) {
	if delta < 0 {
		fewer.Add(uint64(-delta))
		return
	}
	more.Add(uint64(delta))
}

// Rejected counts a message that was refused, by its side, Client or Backend, and by the number of the reason in Options.
// One that there is no name for is "unknown".
func (s *Set) Rejected(side, reason int) {
	counts := s.rejected[named(side, len(sides)-1)]
	counts[named(reason, len(counts)-1)].Add(1)
}

// named is n where it is one of the first so many numbers, which have names; the one after them stands for all others.
func named(n, names int) int {
	if uint(n) >= uint(names) {
		return names
	}
	return n
}
