package node

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"sync"
	"time"

	"github.com/pyserve/pyserve/node/forward"
	"github.com/pyserve/pyserve/node/limit"
	peerv1 "github.com/pyserve/pyserve/proto/pyserve/peer/v1"
)

const (
	// mostAsks is how many keys one call is about: what is beyond that is asked for in the next turn.
	mostAsks = 4096
	// lendTimeout is how long an owner may take to answer. Nobody waits for it but the next call.
	lendTimeout = 3 * limit.Turn
	// returnTurns is in how many turns once those that are away are asked whether they are back.
	returnTurns = 10
)

// AskLender asks another node what that one's Lend answers.
type AskLender func(ctx context.Context, owner string, m *peerv1.LendRequest) (*peerv1.LendResponse, error)

// lending is what this node has of the rate limits that all nodes share: it asks the owners of keys, and answers as an owner.
type lending struct {
	self    string
	call    AskLender // nil: there are no others
	seed    maphash.Seed
	lenders *limit.Lenders
	wake    chan struct{} // capacity 1
	calls   sync.WaitGroup

	mu      sync.Mutex               // guards what follows
	limits  map[uint64]*limit.Shared // of the live generation, by their ids; never changed, but replaced
	calling map[string]bool          // owners that have not answered yet: each has one call at a time
}

func newLending(self string, call AskLender) *lending {
	return &lending{
		self: self, call: call, seed: maphash.MakeSeed(), lenders: limit.NewLenders(self), wake: make(chan struct{}, 1), calling: make(map[string]bool),
	}
}

// setMembers says who there is.
func (l *lending) setMembers(names []string) {
	if l.call == nil || !l.lenders.Set(names) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count()
}

// count tells the limits how many share them. It is called with mu held.
func (l *lending) count() {
	for _, s := range l.limits {
		s.SetNodes(l.lenders.Count())
	}
}

// serve takes over the limits of a generation that goes live.
func (l *lending) serve(g *Generation) {
	limits := make(map[uint64]*limit.Shared)
	for _, r := range g.limited {
		if s := r.Shared(); s != nil {
			limits[s.ID()] = s
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limits = limits
	l.count()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *lending) live() map[uint64]*limit.Shared {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.limits
}

// run asks in each turn until ctx ends. Without shared limits it sleeps.
func (l *lending) run(ctx context.Context) {
	defer l.calls.Wait()
	ticker := time.NewTicker(limit.Turn)
	defer ticker.Stop()
	for turns := 0; ; turns++ {
		limits := l.live()
		if len(limits) > 0 {
			l.turn(ctx, limits, turns%returnTurns == 0)
		} else {
			ticker.Stop()
		}
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
			ticker.Reset(limit.Turn)
		case <-ticker.C:
		}
	}
}

// turn asks for all keys, and, with all, whether those that are away are back.
func (l *lending) turn(ctx context.Context, limits map[uint64]*limit.Shared, all bool) {
	now := forward.Clock(time.Now())
	batches := make(map[string]*batch)
	for _, name := range l.lenders.Doubted(all) {
		batches[name] = &batch{}
	}
	var asks []limit.Ask
	for _, s := range limits {
		asks = s.Turn(now, asks[:0])
		for _, a := range asks {
			owner := l.lenders.Owner(a.Key)
			if owner == l.self {
				g, lent := s.Lend(l.borrower(l.self), a, now)
				settle(s, a, g, lent, now)
				continue
			}
			b := batches[owner]
			if b == nil {
				b = &batch{}
				batches[owner] = b
			}
			b.add(s, a)
		}
	}
	for owner, b := range batches {
		l.ask(ctx, owner, b)
	}
}

// settle ends an ask with what was granted, if it was.
func settle(s *limit.Shared, a limit.Ask, g limit.Grant, lent bool, now time.Duration) {
	if lent {
		s.Granted(a, g, now)
	} else {
		s.Failed(a)
	}
}

// borrower is a node's number in ledgers.
func (l *lending) borrower(name string) uint64 { return maphash.String(l.seed, name) }

// ask asks an owner, in a goroutine. One that has not answered yet is not asked again.
func (l *lending) ask(ctx context.Context, owner string, b *batch) {
	l.mu.Lock()
	busy := l.calling[owner]
	l.calling[owner] = true
	l.mu.Unlock()
	if busy {
		b.each(func(s *limit.Shared, a limit.Ask, _, _ int) { s.Deferred(a) })
		return
	}
	l.calls.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, lendTimeout)
		defer cancel()
		m, err := l.call(ctx, owner, b.request())
		l.lenders.Heard(owner, err == nil) // before it is asked again, or another in its place
		b.take(m, forward.Clock(time.Now()))
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.calling, owner)
	})
}

// batch is what is asked of one owner.
type batch struct {
	limits []*limit.Shared
	asks   [][]limit.Ask // of each
	n      int
}

func (b *batch) add(s *limit.Shared, a limit.Ask) {
	if b.n == mostAsks {
		s.Deferred(a)
		return
	}
	b.n++
	last := len(b.limits) - 1
	if last < 0 || b.limits[last] != s {
		b.limits, b.asks, last = append(b.limits, s), append(b.asks, nil), last+1
	}
	b.asks[last] = append(b.asks[last], a)
}

// each gives all asks, with their places: the limit's, and the ask's within it.
func (b *batch) each(do func(s *limit.Shared, a limit.Ask, i, j int)) {
	for i, s := range b.limits {
		for j, a := range b.asks[i] {
			do(s, a, i, j)
		}
	}
}

func (b *batch) request() *peerv1.LendRequest {
	m := &peerv1.LendRequest{}
	for _, s := range b.limits {
		m.Limits = append(m.Limits, &peerv1.LimitAsks{Limit: s.ID()})
	}
	b.each(func(_ *limit.Shared, a limit.Ask, i, _ int) {
		of := m.Limits[i]
		of.Keys, of.Wants, of.Used, of.Levels = append(of.Keys, a.Key), append(of.Wants, a.Want), append(of.Used, a.Used), append(of.Levels, uint64(a.Level))
	})
	return m
}

// take takes an answer in; nil: there is none.
func (b *batch) take(m *peerv1.LendResponse, now time.Duration) {
	b.each(func(s *limit.Shared, a limit.Ask, i, j int) {
		g, lent := b.granted(m, i, j)
		settle(s, a, g, lent, now)
	})
}

// granted is an answer to one ask. Of what has another shape than the question nothing is believed.
func (b *batch) granted(m *peerv1.LendResponse, i, j int) (g limit.Grant, lent bool) {
	if len(m.GetLimits()) != len(b.limits) {
		return g, false
	}
	of, n := m.GetLimits()[i], len(b.asks[i])
	if len(of.GetLent()) != n || len(of.GetAllowed()) != n || len(of.GetLevels()) != n {
		return g, false
	}
	return limit.Grant{Allowed: of.GetAllowed()[j], Level: nanoseconds(of.GetLevels()[j])}, of.GetLent()[j]
}

func nanoseconds(n uint64) time.Duration { return time.Duration(min(n, math.MaxInt64)) }

// ErrLend says that what another node asks is malformed.
var ErrLend = errors.New("what is asked to be lent is malformed")

// Lend answers what another node asks of the rate limits that all share. The error is ErrLend.
func (n *Node) Lend(from string, m *peerv1.LendRequest) (*peerv1.LendResponse, error) {
	return n.lending.answer(from, m)
}

func (l *lending) answer(from string, m *peerv1.LendRequest) (*peerv1.LendResponse, error) {
	if err := checkLend(m); err != nil {
		return nil, err
	}
	now, who, limits, out := forward.Clock(time.Now()), l.borrower(from), l.live(), &peerv1.LendResponse{}
	for _, asks := range m.GetLimits() {
		grants := &peerv1.LimitGrants{}
		out.Limits = append(out.Limits, grants)
		s := limits[asks.GetLimit()]
		if s == nil {
			continue // one of us has an older configuration
		}
		for i, key := range asks.GetKeys() {
			var g limit.Grant
			lent := l.lenders.Owns(key)
			if lent {
				a := limit.Ask{Key: key, Want: asks.GetWants()[i], Used: asks.GetUsed()[i], Level: nanoseconds(asks.GetLevels()[i])}
				g, lent = s.Lend(who, a, now)
			}
			grants.Lent, grants.Allowed, grants.Levels = append(grants.Lent, lent), append(grants.Allowed, g.Allowed), append(grants.Levels, uint64(g.Level))
		}
	}
	return out, nil
}

func checkLend(m *peerv1.LendRequest) error {
	total := 0
	for _, a := range m.GetLimits() {
		n := len(a.GetKeys())
		if n == 0 || len(a.GetWants()) != n || len(a.GetUsed()) != n || len(a.GetLevels()) != n {
			return fmt.Errorf("%w: limit %x has %d keys, with %d, %d and %d numbers to them", ErrLend, a.GetLimit(), n, len(a.GetWants()), len(a.GetUsed()), len(a.GetLevels()))
		}
		if total += n; total > mostAsks {
			return fmt.Errorf("%w: there are more than %d keys", ErrLend, mostAsks)
		}
	}
	return nil
}
