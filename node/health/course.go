package health

import (
	"encoding/binary"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	"github.com/pyserve/pyserve/node/vote"
)

// Source is what a verdict rests on.
type Source uint8

const (
	// Nothing is a backend that nothing has been heard of.
	Nothing Source = iota
	// NoCheck is a backend that is not checked.
	NoCheck
	// Majority is what a quorum of the probers says.
	Majority
	// OwnProbes are those of this node: it is alone, there are too few nodes for a quorum, or none has spoken for too long.
	OwnProbes
	// Kept is the verdict of before, while no quorum is heard.
	Kept
)

// String is the word that people are shown.
func (s Source) String() string {
	switch s {
	case NoCheck:
		return "no check"
	case Majority:
		return "majority"
	case OwnProbes:
		return "own probes"
	case Kept:
		return "kept"
	}
	return "nothing"
}

const (
	// overlapIntervals is how long a prober goes on whose duty has moved.
	overlapIntervals = 2
	// standInStep keeps the nodes apart that miss a quorum at the same moment: each gives those before it the time to step in
	// and be heard. maxStandInSteps bounds that.
	standInStep     = 500 * time.Millisecond
	maxStandInSteps = 10
	// firstProbe bounds the time to the first probe, and firstWord is what its result takes to come to all.
	firstProbe = time.Second
	firstWord  = time.Second
)

// situation is what is known at one moment of what concerns one backend.
type situation struct {
	now time.Time
	// How many nodes there are, this one included, and where it comes among them for this check.
	members, place int
	count          vote.Count
	// How many of the votes that are counted come from members before this one.
	ahead int
	// What this node's own probes say; Unknown: nothing yet.
	own upstream.Verdict
}

// course is what a node does about one backend: whether it probes, and what it goes by. It is pure: one goroutine drives it,
// and time comes in by hand.
type course struct {
	interval time.Duration
	verdict  upstream.Verdict
	source   Source

	undecided time.Time // since when no quorum is heard; zero: one is
	overlap   time.Time // until when a duty that has moved is kept up
	standing  bool      // probes in the place of others
	onDuty    bool
}

// alone says that there are too few nodes for a quorum.
func (s situation) alone() bool { return s.members < vote.Probers }

// step takes in the situation. It says whether the node is to probe, and until when both answers hold if nothing is heard;
// zero: for ever.
func (c *course) step(s situation) (probing bool, until time.Time) {
	c.miss(s)
	probing, until = c.duty(s)
	c.judge(s)
	if !s.count.Until.IsZero() && (until.IsZero() || s.count.Until.Before(until)) {
		until = s.count.Until
	}
	if own := c.undecided.Add(c.grace()); !c.undecided.IsZero() && s.now.Before(own) && (until.IsZero() || own.Before(until)) {
		until = own
	}
	return probing, until
}

// miss notes since when a quorum is missed.
func (c *course) miss(s situation) {
	switch {
	case s.count.State != vote.Undecided:
		c.undecided = time.Time{}
	case c.undecided.IsZero():
		c.undecided = s.now
	}
}

// grace is how long a quorum may be missing before a node goes by its own probes. A backend that nothing is known of takes
// traffic, so it is short there.
func (c *course) grace() time.Duration {
	if c.verdict.State == upstream.Unknown {
		return min(c.interval, firstProbe) + firstWord
	}
	return c.interval + vote.Slack
}

// duty says whether the node is to probe, and until when that holds.
func (c *course) duty(s situation) (probing bool, until time.Time) {
	if s.alone() || s.place < vote.Probers {
		c.overlap, c.standing, c.onDuty = time.Time{}, false, true
		return true, time.Time{}
	}
	if c.onDuty {
		c.onDuty, c.overlap = false, s.now.Add(overlapIntervals*c.interval)
	}
	if s.now.Before(c.overlap) {
		return true, c.overlap
	}
	if !c.overlap.IsZero() { // it ends now
		c.overlap, c.standing = time.Time{}, true
	}
	if c.standing {
		c.standing = s.ahead < vote.Probers
	}
	if c.standing || c.undecided.IsZero() {
		return c.standing, time.Time{}
	}
	steps := min(s.place-vote.Probers, maxStandInSteps)
	turn := c.undecided.Add(c.grace() + time.Duration(steps)*standInStep)
	if s.now.Before(turn) {
		return false, turn
	}
	c.standing = true
	return true, time.Time{}
}

// judge makes the verdict.
func (c *course) judge(s situation) {
	before := c.verdict.State
	switch {
	case s.alone():
		c.take(s.own, OwnProbes, s.now)
	case s.count.State == vote.Healthy:
		c.take(upstream.Verdict{State: upstream.Healthy, Reason: s.count.Reason}, Majority, s.now)
	case s.count.State == vote.Unhealthy:
		c.take(upstream.Verdict{State: upstream.Unhealthy, Reason: s.count.Reason}, Majority, s.now)
	case before == upstream.Unknown, !s.now.Before(c.undecided.Add(c.grace())):
		c.take(s.own, OwnProbes, s.now)
	case c.source != Nothing:
		c.source = Kept
	}
}

// take makes v the verdict; Unknown is none, and leaves the one of before.
func (c *course) take(v upstream.Verdict, source Source, now time.Time) {
	if v.State == upstream.Unknown {
		if c.source != Nothing {
			c.source = Kept
		}
		return
	}
	v.Since = c.verdict.Since
	if v.State != c.verdict.State {
		v.Since = now
	}
	c.verdict, c.source = v, source
}

// maxJitter bounds the jitter of probes at set times, a twentieth of the interval, and with it how much later than its interval a
// probe may come: all of it is on the way from a backend's death to its being known.
const maxJitter = 250 * time.Millisecond

// slot is the moment after now at which the prober at place is to probe: all that probe one backend come at even distances, so
// that it is probed, and its death seen, three times an interval. That goes by the clock of the day; where clocks differ, the
// distances are uneven and no probe comes later for it.
func slot(now time.Time, interval time.Duration, key vote.Key, place int) time.Time {
	phase := time.Duration(binary.BigEndian.Uint64(key[:8])%uint64(interval)) + interval*time.Duration(place%vote.Probers)/vote.Probers
	since := (time.Duration(now.UnixNano()%int64(interval)) - phase%interval + interval) % interval
	return now.Add(interval - since)
}
