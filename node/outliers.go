package node

import (
	"crypto/sha256"
	"log/slog"
	"sync"
	"time"

	"github.com/pyserve/pyserve/node/health"
	"github.com/pyserve/pyserve/node/outlier"
	"github.com/pyserve/pyserve/node/upstream"
	"github.com/pyserve/pyserve/node/vote"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// outliers is the passive health of all pools that ask for it. Detectors outlive generations by their pool's name. One goroutine
// ends ejections in time and takes in what other nodes say.
type outliers struct {
	prober  *health.Prober
	logger  *slog.Logger
	changed func()
	wake    chan struct{} // holds one signal

	// mu guards detectors. The locks of prober, pools and detectors are taken under it.
	mu        sync.Mutex
	detectors map[string]*guarded
	gone      outlier.Totals // of detectors that are gone

	// heardMu guards heard and unsettled, the names of pools that something was ejected from. It is taken under the prober's lock, so
	// nothing is called under it.
	heardMu   sync.Mutex
	heard     map[accusable]struct{}
	unsettled map[string]struct{}
}

// guarded is the pool of a name that is live, with its detector.
type guarded struct {
	detector *outlier.Detector
	pool     *upstream.Pool
	policy   *resourcev1.OutlierDetection
	backends map[outlier.ID]*upstream.Backend
}

// accusable is a backend in a pool: what other nodes say counts for that pool alone, since a backend may do one thing well and
// another badly.
type accusable struct {
	pool    string
	backend outlier.ID
}

func (a accusable) key() (k vote.Key) {
	h := sha256.New()
	h.Write([]byte("outlier\x00" + a.pool + "\x00"))
	h.Write(a.backend[:])
	copy(k[:], h.Sum(nil))
	return k
}

func newOutliers(p *health.Prober, logger *slog.Logger, changed func()) *outliers {
	return &outliers{
		prober: p, logger: logger, changed: changed, wake: make(chan struct{}, 1),
		detectors: make(map[string]*guarded), heard: make(map[accusable]struct{}), unsettled: make(map[string]struct{}),
	}
}

// serve brings the detectors to the pools of the generation that is live from now on. Pools that went on unchanged are left alone.
func (o *outliers) serve(g *Generation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(g.guarded) == 0 && len(o.detectors) == 0 {
		return
	}
	for name, old := range o.detectors {
		if g.guarded[name] == nil {
			o.ignore(name, old, nil)
			o.gone = sum(o.gone, old.detector.Totals())
			delete(o.detectors, name)
		}
	}
	for name, p := range g.guarded {
		if old := o.detectors[name]; old == nil || old.pool != p.Pool {
			o.guard(name, old, p)
		}
	}
	o.signal()
}

// guard gives a pool its detector, that of the pool of this name before where there was one. It is called with mu held.
func (o *outliers) guard(name string, old *guarded, p *pool) {
	next := &guarded{pool: p.Pool, policy: p.outliers, backends: make(map[outlier.ID]*upstream.Backend)}
	ids := make([]outlier.ID, 0, len(p.Members()))
	for _, m := range p.Members() {
		id := outlier.ID(m.Backend.Identity())
		ids = append(ids, id)
		next.backends[id] = m.Backend
	}
	if old != nil {
		next.detector = old.detector
		o.ignore(name, old, next)
	} else {
		next.detector = outlier.New()
	}
	next.detector.Update(policyOf(next.policy), ids)
	o.detectors[name] = next
	p.Guard(next.detector, next.policy.GetPanicPercent(), func(b *upstream.Backend) { o.ejected(name, next, b) })
	for id := range next.backends {
		if old == nil || old.backends[id] == nil {
			a := accusable{name, id}
			o.prober.Listen(a.key(), func() { o.hear(a) })
			o.hear(a) // what was said before
		}
	}
}

// ignore ends the listening for backends that next does not have. It is called with mu held.
func (o *outliers) ignore(name string, old, next *guarded) {
	for id := range old.backends {
		if next == nil || next.backends[id] == nil {
			o.prober.Ignore(accusable{name, id}.key())
		}
	}
}

func policyOf(p *resourcev1.OutlierDetection) outlier.Policy {
	return outlier.Policy{
		Consecutive: p.GetConsecutiveFailures(), FailurePercent: p.GetFailurePercent(), MinimumRequests: p.GetMinimumRequests(),
		Interval: p.GetInterval().AsDuration(), BaseEjection: p.GetBaseEjectionTime().AsDuration(),
		MaxEjection: p.GetMaxEjectionTime().AsDuration(), MaxEjectionPercent: p.GetMaxEjectionPercent(),
	}
}

// ejected is called by the request that has led to it.
func (o *outliers) ejected(name string, g *guarded, b *upstream.Backend) {
	e, stands := g.pool.Ejection(b)
	if !stands {
		return // it is over already
	}
	o.logger.Info("backend is ejected", "pool", name, "backend", b.Address(), "reason", e.Reason, "until", e.Until)
	if e.Shared {
		o.prober.Accuse(accusable{name, b.Identity()}.key(), e.Reason, time.Until(e.Until))
	}
	o.changed()
	// The request may be one of an earlier generation, whose pool alone has been told.
	o.heardMu.Lock()
	o.unsettled[name] = struct{}{}
	o.heardMu.Unlock()
	o.signal()
}

func (o *outliers) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// hear notes that something was said. It is called with the prober's lock held.
func (o *outliers) hear(a accusable) {
	o.heardMu.Lock()
	o.heard[a] = struct{}{}
	o.heardMu.Unlock()
	o.signal()
}

// run is the goroutine, until stop is closed.
func (o *outliers) run(stop <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-o.wake:
		case <-timer.C:
		}
		if next := o.settle(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(0, time.Until(next)))
		}
	}
}

// settle takes in what was heard and ends what is over. It returns when the next ejection ends; zero: there is none.
func (o *outliers) settle() (next time.Time) {
	o.heardMu.Lock()
	heard, unsettled := o.heard, o.unsettled
	o.heard, o.unsettled = make(map[accusable]struct{}), make(map[string]struct{})
	o.heardMu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	for name := range unsettled {
		if g := o.detectors[name]; g != nil {
			g.pool.Reconsider()
		}
	}
	for a := range heard {
		o.consider(a)
	}
	now := time.Now()
	for name, g := range o.detectors {
		if g.detector.Return(now) {
			o.logger.Info("ejected backends are back", "pool", name)
			g.pool.Reconsider()
			o.changed()
		}
		if at := g.detector.Next(); !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// consider takes in what other nodes say of one backend. It is called with mu held.
func (o *outliers) consider(a accusable) {
	g := o.detectors[a.pool]
	if g == nil || g.backends[a.backend] == nil {
		return
	}
	nodes, until := o.prober.Accusers(a.key())
	r := g.detector.Record(a.backend)
	if r == nil || !g.detector.Hear(r, nodes, until, time.Now()) {
		return
	}
	g.pool.Reconsider()
	o.logger.Info("backend is ejected", "pool", a.pool, "backend", g.backends[a.backend].Address(), "reason", "other nodes have ejected it",
		"nodes", nodes, "until", until)
	o.changed()
}

func sum(a, b outlier.Totals) outlier.Totals {
	return outlier.Totals{Own: a.Own + b.Own, Heard: a.Heard + b.Heard, Capped: a.Capped + b.Capped}
}

// totals are those of all detectors since the node was made.
func (o *outliers) totals() outlier.Totals {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.gone
	for _, g := range o.detectors {
		all = sum(all, g.detector.Totals())
	}
	return all
}
