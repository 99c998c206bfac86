package upstream

import (
	"time"

	"github.com/pyserve/pyserve/node/outlier"
)

// guard is a pool's passive health.
type guard struct {
	detector *outlier.Detector
	records  map[*Backend]*outlier.Record
	panics   uint32
	ejected  func(*Backend)
}

// Guard makes the pool pass over the backends that d ejects, unless fewer than panicPercent in a hundred of its members would be
// left. d knows the members already, by their Identity. ejected is called after a request has led to an ejection, by the
// goroutine of that request; it must not wait. The pool picks by what d says when Guard returns.
func (p *Pool) Guard(d *outlier.Detector, panicPercent uint32, ejected func(*Backend)) {
	g := &guard{detector: d, records: make(map[*Backend]*outlier.Record, len(p.members)), panics: panicPercent, ejected: ejected}
	for _, m := range p.members {
		if r := d.Record(m.Backend.Identity()); r != nil {
			g.records[m.Backend] = r
		}
	}
	p.guard.Store(g)
	p.rebuild()
}

// Observe takes in how a request to one of the members has ended. Without Guard it does nothing.
func (p *Pool) Observe(b *Backend, o outlier.Outcome) {
	g := p.guard.Load()
	if g == nil {
		return
	}
	if r := g.records[b]; r != nil && g.detector.Observe(r, o, time.Now) {
		p.rebuild()
		g.ejected(b)
	}
}

// Reconsider makes the pool pick by what its detector says now.
func (p *Pool) Reconsider() { p.rebuild() }

// Ejection is the one that stands for a member.
func (p *Pool) Ejection(b *Backend) (e outlier.Ejection, stands bool) {
	g := p.guard.Load()
	if g == nil {
		return outlier.Ejection{}, false
	}
	if r := g.records[b]; r != nil {
		return g.detector.Ejection(r)
	}
	return outlier.Ejection{}, false
}

// passedOver are the members that are ejected, those of weight 0 with them; nil where ejections do not count, since too few would
// be left.
func (p *Pool) passedOver() map[*Backend]bool {
	g := p.guard.Load()
	if g == nil {
		return nil
	}
	ejected := make(map[*Backend]bool)
	able, left := 0, 0
	for _, m := range p.members {
		_, stands := p.Ejection(m.Backend)
		if stands {
			ejected[m.Backend] = true
		}
		if m.Weight > 0 {
			able++
			if m.Backend.takes() && !stands {
				left++
			}
		}
	}
	if left == 0 || uint64(left)*100 < uint64(able)*uint64(g.panics) {
		return nil
	}
	return ejected
}
