package upstream

import (
	"sync/atomic"
	"time"
)

// cold are takers that have not their whole share yet, since they have begun to take traffic a short time ago.
type cold struct {
	since map[*Backend]time.Time
	last  time.Time     // when all of them have it
	takes time.Duration // how long it takes
	over  atomic.Bool   // that time has come
}

// untilWarm is c, and nil once all of them have their whole share: nobody has to ask for the time any more.
func (c *cold) untilWarm() *cold {
	if c == nil || c.over.Load() {
		return nil
	}
	return c
}

// coldOf gives those of the backends that take traffic for less than so long; nil: there are none.
func coldOf(backends []*Backend, takes time.Duration) *cold {
	var c *cold
	now := time.Now()
	for _, b := range backends {
		began := b.began.Load()
		if began == nil || now.Sub(*began) >= takes {
			continue
		}
		if c == nil {
			c = &cold{since: make(map[*Backend]time.Time), takes: takes}
		}
		c.since[b] = *began
		if end := began.Add(takes); end.After(c.last) {
			c.last = end
		}
	}
	return c
}

// admits says whether b gets a request that has so much luck, from 0 to 1: it does where as much of the time is over. So its share
// grows evenly, whatever the policy, and nothing has to be laid out anew meanwhile. One request has the same luck with all, or a
// backend that comes up twice would have two chances.
func (c *cold) admits(b *Backend, luck float64) bool {
	now := time.Now()
	if !now.Before(c.last) {
		c.over.Store(true)
		return true
	}
	since, is := c.since[b]
	return !is || luck < float64(now.Sub(since))/float64(c.takes)
}

// fraction makes a number from 0 up to but not including 1.
func fraction(random uint64) float64 { return float64(random>>11) / (1 << 53) }
