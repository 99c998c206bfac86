// Package fleet knows who is connected with what, and brings every connected node to the bundle it should serve.
//
// It owns the node streams: one session per node, one sender goroutine per session, at most one offer outstanding,
// and no queue: a node that is slow, or away, is offered the newest bundle when its turn comes, never the ones in
// between. It does not decide what the fleet should serve (the control assembly does, through [Fleet.Propose] and
// [Fleet.SetTarget]) and keeps nothing on disk.
//
// The order of calls: [New] → [Fleet.SetTarget] with what was active before → [Fleet.Serve] for every stream; for a
// new bundle Propose, watch, then SetTarget or [Fleet.Withdraw]; [Fleet.Close] at the end.
package fleet

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/journal"
	"github.com/pyserve/pyserve/control/rollout"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// Target is a bundle with its release, as the fleet is to serve it.
type Target struct {
	Release *fleetv1.Release
	Bundle  *bundle.Bundle
}

// Options are what a Fleet needs.
type Options struct {
	// Logger gets connects, disconnects and refusals. Required.
	Logger *slog.Logger
	// Journal is told of nodes that come, go and refuse, and of what they say of backends; nil: nobody is told.
	Journal *journal.Journal
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Welcome makes the answer to a Hello. Required.
	Welcome func() *fleetv1.Welcome
	// RetryRefused is how long a refused bundle is left alone before it is offered again, since what stood in the way
	// (a port in use) may have gone. 0: 15 s.
	RetryRefused time.Duration
	// WholeBundles is how many whole bundles are on their way at once, so that a fleet that reconnects does not fill
	// the memory with them. 0: 8.
	WholeBundles int
	// Stalled is how long a node may take to take one message before its stream is ended; otherwise a few nodes that
	// read nothing would hold every place for a whole bundle. Above what a node takes to compile, since it reads nothing
	// meanwhile, and below the time that an apply waits, which such a node then does not hold up. 0: 30 s.
	Stalled time.Duration
}

// Fleet is safe for concurrent use.
type Fleet struct {
	options Options
	whole   chan struct{} // a place for every whole bundle under way
	closed  chan struct{}
	group   sync.WaitGroup // streams' goroutines; added to under mu, so that Close misses none

	mu        sync.Mutex // guards all below; held for memory work only, never while sending
	sessions  map[string]*session
	gone      map[string]Node // the last that was known of nodes without a session
	target    *Target
	proposed  *Target
	invited   map[string]*session // who is offered proposed
	held      []*bundle.Bundle    // bundles that deltas can be made against, newest last
	packed    []*packing          // bundles that are under way, or may be again
	nonce     uint64
	questions uint64               // the id of the last one
	proposal  uint64               // the nonce of proposed, for followers
	arrivals  uint64               // counts streams of nodes, here and at followers
	controls  []string             // what nodes know of the controls
	leaving   bool                 // nodes are sent to other controls
	spread    time.Duration        // over which they go there
	followers map[string]*follower // controls that attend, by id; none unless this one leads
	watchers  map[chan struct{}]struct{}
	// authority is the hash of the one that issues certificates; nil: nobody said.
	authority []byte
	keys      [][]byte // of gossip; none: nobody said
}

// heldBundles is how many past bundles are kept to make deltas against.
const heldBundles = 4

// New makes a fleet without a node or a target.
func New(options Options) *Fleet {
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.RetryRefused == 0 {
		options.RetryRefused = 15 * time.Second
	}
	if options.WholeBundles == 0 {
		options.WholeBundles = 8
	}
	if options.Stalled == 0 {
		options.Stalled = 30 * time.Second
	}
	return &Fleet{
		options:  options,
		whole:    make(chan struct{}, options.WholeBundles),
		closed:   make(chan struct{}),
		sessions: map[string]*session{},
		gone:     map[string]Node{},
		watchers: map[chan struct{}]struct{}{},

		followers: map[string]*follower{},
	}
}

// Close ends every session and waits for their goroutines.
func (f *Fleet) Close() {
	f.mu.Lock()
	if !f.isClosed() {
		close(f.closed)
	}
	for _, s := range f.sessions {
		s.end(ErrClosed)
	}
	for _, fl := range f.followers {
		fl.end(ErrClosed)
	}
	f.mu.Unlock()
	f.group.Wait()
}

// Redirect sends every node to another control, lets in no other, and returns when all have been told or ctx ends. What is not
// told by then, Close ends.
func (f *Fleet) Redirect(ctx context.Context) {
	changed, stop := f.Watch()
	defer stop()
	f.mu.Lock()
	f.leaving = true
	f.spread = min(time.Duration(len(f.sessions))*spreadPerNode, longestSpread)
	f.wakeAll()
	f.mu.Unlock()
	for f.connected() > 0 {
		select {
		case <-changed:
		case <-f.closed:
			return
		case <-ctx.Done():
			return
		}
	}
}

// Nodes that are sent elsewhere go within spreadPerNode for each of them, and no later than longestSpread: the control that
// leads next waits with an apply until they are back, and a thousand that came at one moment would not be served sooner.
const (
	spreadPerNode = 200 * time.Microsecond
	longestSpread = 500 * time.Millisecond
)

func (f *Fleet) connected() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sessions)
}

// Closed gives a channel that is closed when Close was called: nodes that are gone since then are not gone by
// themselves.
func (f *Fleet) Closed() <-chan struct{} { return f.closed }

func (f *Fleet) isClosed() bool {
	select {
	case <-f.closed:
		return true
	default:
		return false
	}
}

// start runs a goroutine that Close waits for. It says false after Close.
func (f *Fleet) start(run func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.isClosed() {
		return false
	}
	f.group.Go(run)
	return true
}

// Target gives what the fleet is to serve; nil: nothing yet.
func (f *Fleet) Target() *Target {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.target
}

// SetTarget says what every node is to serve from now on: whoever has prepared it commits, everybody else is offered
// it and commits at once. A target of the same release as the current one, or of an older one, changes nothing.
func (f *Fleet) SetTarget(t *Target) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.target != nil && !newer(t.Release, f.target.Release) {
		return
	}
	if f.proposed != nil && sameRelease(f.proposed.Release, t.Release) {
		t = f.proposed // what nodes have prepared
		f.proposed, f.invited = nil, nil
	}
	f.target = t
	f.hold(t.Bundle)
	f.tidy()
	f.wakeAll()
}

// Propose offers t to every connected node, those of followers included, to prepare and not yet to serve, and names them, sorted. Only one
// proposal is out at a time: a new one takes the place of the old.
func (f *Fleet) Propose(t *Target) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proposed, f.invited = t, map[string]*session{}
	f.nonce++
	f.proposal = f.nonce
	for name, s := range f.sessions {
		f.invited[name] = s
	}
	var names []string
	for name, n := range f.merged() {
		if n.Connected {
			names = append(names, name)
		}
	}
	f.wakeAll()
	slices.Sort(names)
	return names
}

// Withdraw takes a proposal back: nodes drop what they prepared. It does nothing if t is not the current proposal.
func (f *Fleet) Withdraw(t *Target) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.proposed != t {
		return
	}
	f.proposed, f.invited = nil, nil
	f.tidy()
	f.wakeAll()
}

// Progress says how far a node is with t.
func (f *Fleet) Progress(name string, t *Target) (rollout.State, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.progress(name, t)
}

// Seen is how far a node is with a target.
type Seen struct {
	Name  string
	State rollout.State
	Note  string
}

// Look says how far each of the named nodes is with t, all at one moment and in the order of the names. It appends to
// seen.
func (f *Fleet) Look(names []string, t *Target, seen []Seen) []Seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		state, note := f.progress(name, t)
		seen = append(seen, Seen{name, state, note})
	}
	return seen
}

// progress is Progress for callers that hold mu.
func (f *Fleet) progress(name string, t *Target) (rollout.State, string) {
	s, here := f.sessions[name]
	var arrived uint64
	if here {
		arrived = s.arrived
	}
	if _, r := f.elsewhere(name, arrived); r != nil {
		return f.progressElsewhere(r.report, t)
	}
	if !here {
		return rollout.Away, f.whyAway(name)
	}
	switch {
	case sameRelease(s.applied, t.Release):
		return rollout.Committed, ""
	case s.offer != nil && s.offer.target == t:
		return s.offer.state, describeRefusals(s.offer.refusals)
	case s.refused != nil && s.refused.target == t:
		return rollout.Refused, describeRefusals(s.refused.refusals)
	case f.proposed == t && f.invited[name] != s:
		return rollout.Away, "its stream was opened anew"
	}
	return rollout.Offered, ""
}

// SetControls tells every node which controls there are, host:port each.
func (f *Fleet) SetControls(endpoints []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Equal(f.controls, endpoints) {
		return
	}
	f.controls = slices.Clone(endpoints)
	for _, s := range f.sessions {
		s.wakeUp()
	}
}

// Watch gives a channel that is signalled whenever a node came, went, or did something else that [Fleet.Nodes] or
// [Fleet.Progress] shows; changes in quick succession are one signal. Verdicts on backends are not part of that. Call
// stop when done.
func (f *Fleet) Watch() (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[ch] = struct{}{}
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, ch)
	}
}

// hold keeps b to make deltas against. The caller holds mu.
func (f *Fleet) hold(b *bundle.Bundle) {
	f.held = slices.DeleteFunc(f.held, func(h *bundle.Bundle) bool { return h.Digest() == b.Digest() })
	f.held = append(f.held, b)
	if len(f.held) > heldBundles {
		f.held = slices.Delete(f.held, 0, len(f.held)-heldBundles)
	}
}

// base gives the bundle that release names if a delta can be made against it. The caller holds mu.
func (f *Fleet) base(release *fleetv1.Release) *bundle.Bundle {
	for _, b := range f.held {
		if digest := b.Digest(); bytes.Equal(digest[:], release.GetDigest()) {
			return b
		}
	}
	return nil
}

// wakeAll lets every sender look for something to do. The caller holds mu.
func (f *Fleet) wakeAll() {
	for _, s := range f.sessions {
		s.wakeUp()
	}
	for _, fl := range f.followers {
		fl.wakeUp()
	}
	f.notify()
}

// notify signals the watchers. The caller holds mu.
func (f *Fleet) notify() {
	for ch := range f.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// wanted is what a session's node should have prepared or serve. The caller holds mu.
func (f *Fleet) wanted(s *session) *Target {
	if f.proposed != nil && f.invited[s.name] == s {
		return f.proposed
	}
	return f.target
}

func sameRelease(a, b *fleetv1.Release) bool {
	return a != nil && b != nil && a.GetEpoch() == b.GetEpoch() && a.GetRevision() == b.GetRevision() &&
		bytes.Equal(a.GetDigest(), b.GetDigest())
}

// newer says whether a came after b. A rollback is a new revision, so that a release that is not newer is one that was
// read before the other and is told late.
func newer(a, b *fleetv1.Release) bool {
	return cmp.Or(cmp.Compare(a.GetEpoch(), b.GetEpoch()), cmp.Compare(a.GetRevision(), b.GetRevision())) > 0
}

// namedRefusals is how many refusals one line names.
const namedRefusals = 10

func describeRefusals(refusals []*fleetv1.Refusal) string {
	if len(refusals) == 0 {
		return "" // of most nodes, at every look at all of them
	}
	parts := make([]string, 0, namedRefusals+1)
	for i, r := range refusals {
		if i == namedRefusals {
			parts = append(parts, fmt.Sprintf("and %d more", len(refusals)-i))
			break
		}
		if r.GetField() == "" {
			parts = append(parts, r.GetReason())
		} else {
			parts = append(parts, r.GetField()+": "+r.GetReason())
		}
	}
	return strings.Join(parts, "; ")
}

// Stream is one node's conversation; generated gRPC code provides it. As in gRPC, its context ends when whoever serves
// it has returned from [Fleet.Serve], and Send and Recv fail then.
type Stream interface {
	Context() context.Context
	Send(*fleetv1.ToNode) error
	Recv() (*fleetv1.FromNode, error)
}
