package upstream

import (
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/outlier"
)

func TestClientsStayWithTheEjectedWhereEjectionsDoNotCount(t *testing.T) {
	p, backends := poolOf(t, 1, 1, 1, 0)
	d := outlier.New()
	var ids []outlier.ID
	for _, b := range backends {
		ids = append(ids, outlier.ID(b.Identity()))
	}
	d.Update(outlier.Policy{Consecutive: 1, BaseEjection: time.Hour, MaxEjection: time.Hour, MaxEjectionPercent: 100}, ids)
	p.Guard(d, 50, func(*Backend) {})
	eject := func(b *Backend) { p.Observe(b, outlier.Answered) }

	eject(backends[0])
	eject(backends[3])
	if p.TakesBack(backends[0]) || !p.TakesBack(backends[1]) || p.TakesBack(backends[3]) {
		t.Error("one of three is ejected, and one of weight 0: want the other two alone")
	}
	eject(backends[1])
	for i, b := range backends {
		if !p.TakesBack(b) {
			t.Errorf("a third would be left, so ejections do not count: backend %d does not take its clients", i)
		}
	}
}
