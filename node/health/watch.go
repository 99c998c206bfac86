package health

import (
	"cmp"
	"container/list"
	"context"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	"github.com/pyserve/pyserve/node/vote"
)

// refusal is what this node's own requests have met with.
type refusal struct {
	reason string // empty: nothing
	since  time.Time
}

// result is that of the newest probe of a backend that is being probed.
type result uint8

const (
	unprobed result = iota
	passed
	failed
)

// watch is one backend being watched.
type watch struct {
	backend  *upstream.Backend
	key      vote.Key
	interval time.Duration

	wake   chan struct{} // holds one signal: something that matters here has changed
	cancel context.CancelFunc
	done   chan struct{} // closed when its goroutine has ended

	// What follows is guarded by Prober.mu.
	verdict upstream.Verdict
	source  Source
	refused refusal
	logged  time.Time // when the log told of a refusal last
	latest  result
	probed  time.Time        // when the newest probe at its time ended
	word    upstream.Verdict // what this node's probes say; Unknown: nothing
	role    role
	said    said // what others were told last
	news    bool // others are to be told
	place   *list.Element
}

// said is a vote and when it was told last.
type said struct {
	vote vote.Vote
	at   time.Time
}

func newWatch(b *upstream.Backend, cancel context.CancelFunc) *watch {
	return &watch{
		backend: b, key: b.Identity(), interval: intervalOf(b), verdict: b.Verdict(),
		wake: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{}),
	}
}

func intervalOf(b *upstream.Backend) time.Duration {
	return max(time.Millisecond, cmp.Or(max(0, b.Spec().Check.GetInterval().AsDuration()), defaultInterval))
}

func (w *watch) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// avoid brings the backend's pools to what refused says. Of two that do so at once, the last to look has the last word: the lock
// is held over it, which Backend.Avoid allows, for it calls nobody back.
func (w *watch) avoid(p *Prober) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.backend.Avoid(w.refused.reason != "")
}

// turn is what the goroutine of a watch knows from one round to the next.
type turn struct {
	*watch
	target *target
	course course
	judge  *judge // nil: it does not probe
	spoke  bool   // the judge has seen a probe
	next   time.Time
	// After a refusal: when to see whether the backend can be reached again, and the pause before the time after that.
	look, looked time.Time
	pause        time.Duration
}

// firstLook is the pause after the first look at a backend that refused a request; it doubles up to the interval. No two looks are
// closer than that: requests may go on to fail where looks do not, by a connect timeout that is shorter than the check's for one.
const firstLook = 100 * time.Millisecond

// run is the goroutine of a watch. Probes of one backend never overlap; after one that took longer than the interval the next
// follows at once.
func (w *watch) run(ctx context.Context, p *Prober) {
	t := turn{watch: w, target: newTarget(w.backend), course: course{interval: w.interval, verdict: w.backend.Verdict()}}
	defer t.target.close()
	defer p.stopProbing(w)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-w.wake:
		}
		now := time.Now()
		if t.due(now) {
			if !t.probe(ctx, p) {
				return
			}
			now = time.Now()
		}
		until := t.settle(p, now)
		if until.IsZero() {
			timer.Stop()
			continue
		}
		timer.Reset(max(0, time.Until(until)))
	}
}

// due says whether it is time for a probe.
func (t *turn) due(now time.Time) bool {
	return !t.next.IsZero() && !now.Before(t.next) || !t.look.IsZero() && !now.Before(t.look)
}

// probe probes once. It says no when what ended was the watching, not the backend. Only a probe at its own time counts towards
// the thresholds: the others come faster than the interval that these are meant for.
func (t *turn) probe(ctx context.Context, p *Prober) bool {
	begin := time.Now()
	regular := !t.next.IsZero() && !begin.Before(t.next)
	refused := p.refusedNow(t.watch)
	if !regular {
		t.looked = begin
	}
	p.counts.probed(regular)
	try := t.target.try
	if !regular && t.asked() {
		try = t.target.reach
	}
	reason, void := try(ctx)
	if ctx.Err() != nil {
		return false
	}
	now := time.Now()
	if void {
		p.starves(reason, now)
	}
	if regular {
		t.next = p.nextProbe(t.watch, begin)
		if t.next.Before(now) {
			t.next = now
		}
	}
	if regular && !void {
		t.judge.observe(reason, now)
		t.spoke = true
		p.observed(t.watch, reason == "")
	}
	t.found(p, refused, reason == "", now)
	return true
}

// asked says whether the backend is asked though it is unhealthy.
func (t *turn) asked() bool {
	return t.course.verdict.State == upstream.Unhealthy && t.backend.FailsOpen()
}

// starves tells that probes cannot be made. What was found before stands, and is not repeated to others, so that they do without this
// node before long.
func (p *Prober) starves(reason string, now time.Time) {
	p.mu.Lock()
	quiet := now.Sub(p.starved) < quietFor
	if !quiet {
		p.starved = now
	}
	p.mu.Unlock()
	if !quiet {
		p.logger.Error("health probes cannot be made, which says nothing of the backends: this machine has run out of something", "reason", reason)
	}
}

// found takes in what a probe says about a refusal from before it.
func (t *turn) found(p *Prober, refused refusal, reached bool, now time.Time) {
	switch {
	case refused.reason == "":
	case reached:
		p.forgive(t.watch, refused)
		t.look = time.Time{}
	case !t.look.IsZero() && !now.Before(t.look):
		t.pause = min(max(firstLook, 2*t.pause), t.interval)
		t.look = now.Add(t.pause)
	}
}

// settle brings everything to what is known now: whether to probe, the verdict, and what others are told. It returns when it is
// to be done again, or the next probe is due; zero: when there is news.
func (t *turn) settle(p *Prober, now time.Time) (until time.Time) {
	s, refused := p.situation(t.watch, t.own(), now)
	before := t.course.verdict
	probing, until := t.course.step(s)
	t.begin(p, probing, now)
	again := t.watchRefusal(refused, now)
	messages, later := p.record(t.watch, &t.course, t.own(), now)
	if v := t.course.verdict; v.State != before.State || v.Reason != before.Reason {
		p.tell(t.backend, before, v, t.course.source)
		p.counts.decided(before.State != v.State, t.course.source)
		t.backend.SetVerdict(v)
	}
	p.send(messages)
	for _, at := range []time.Time{t.next, t.look, again, later} {
		if !at.IsZero() && (until.IsZero() || at.Before(until)) {
			until = at
		}
	}
	return until
}

// own is what this node's probes say; Unknown: nothing.
func (t *turn) own() upstream.Verdict {
	if !t.spoke {
		return upstream.Verdict{}
	}
	return t.judge.verdict
}

// begin starts to probe, or ends it.
func (t *turn) begin(p *Prober, probing bool, now time.Time) {
	switch {
	case probing && t.judge == nil:
		t.judge, t.spoke = newJudge(t.target.check, t.course.verdict), false
		t.next = now.Add(p.random(min(t.interval, firstProbe)))
	case !probing && t.judge != nil:
		t.judge, t.spoke, t.next = nil, false, time.Time{}
		p.stopProbing(t.watch)
	}
}

// watchRefusal begins to look after a backend that refused a request, and ends it when the refusal is over. It returns when to ask
// again whether to look, of what nobody says; zero: that is known.
func (t *turn) watchRefusal(refused refusal, now time.Time) (again time.Time) {
	switch {
	case refused.reason == "":
		t.look, t.pause = time.Time{}, 0
	case t.course.verdict.State == upstream.Unhealthy && !t.asked():
		// It is asked no more, so nobody looks. It stays avoided, lest the verdict that has a pool fail open bring it back.
		t.look, t.pause = time.Time{}, 0
		return now.Add(t.interval)
	case t.look.IsZero():
		t.look, t.pause = now, 0
		if earliest := t.looked.Add(firstLook); now.Before(earliest) {
			t.look = earliest
		}
	}
	return time.Time{}
}
