package health

import (
	"container/list"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	"github.com/pyserve/pyserve/node/vote"
)

const (
	// MaxMessage is how long a message to other nodes is at most, in bytes: what gossip takes, and more than the longest vote.
	MaxMessage = 560
	// tidyInterval is the time between two sweeps of the table.
	tidyInterval = time.Minute
	// maxAhead is how far another node's clock may be ahead: by more, its word could not be replaced for too long.
	maxAhead = 24 * time.Hour
	// distrustFor is how long the question whether this node distrusts itself is not asked again where more than maxAsked
	// backends would have to be asked about.
	distrustFor = 250 * time.Millisecond
	maxAsked    = 64
)

// role is why a node probes a backend.
type role uint8

const (
	idle role = iota
	prober
	leaving   // its duty has moved, and it goes on for a while
	standIn   // in the place of probers that are not heard
	forItself // there are too few nodes for probers
)

// String is the word that people are shown.
func (r role) String() string {
	switch r {
	case prober:
		return "on duty"
	case leaving:
		return "duty has moved"
	case standIn:
		return "stands in"
	case forItself:
		return "probes for itself"
	}
	return "listens"
}

// shared is the part of a prober that is about other nodes. It is guarded by Prober.mu.
type shared struct {
	members   vote.Members
	sharing   time.Time // since when there are enough nodes for a quorum
	table     *vote.Table
	tidied    time.Time
	sequence  uint64
	listeners map[vote.Key]func() // by Listen
	own       *list.List          // of *watch: those that others are told of, the one told longest ago first
	news      []*watch            // those that others are to be told of
	newsBy    time.Time           // when others are told of them at the latest
	told      time.Time           // when others were told of any last
	hurry     bool                // some of the news should not wait
	hurried   time.Time           // when others were told of such news last
	pause     time.Duration       // before such news is told again
	passing   int                 // how many watches have passed their newest probe
	failing   map[*watch]bool
	// Whether this node distrusts itself, and when that was asked.
	distrust      bool
	distrustAsked time.Time
}

func newShared() shared {
	return shared{table: vote.NewTable(), listeners: make(map[vote.Key]func()), own: list.New(), failing: make(map[*watch]bool)}
}

// SetMembers says which nodes there are, by their names; this one counts whether or not it is among them. Duties move at once.
// Without a name of its own the prober stays alone.
func (p *Prober) SetMembers(names []string) {
	if p.self == "" {
		return
	}
	members := vote.NewMembers(append(slices.Clone(names), p.self))
	p.mu.Lock()
	defer p.mu.Unlock()
	if members.Equal(p.members) {
		return
	}
	if p.members.Len() < vote.Probers && members.Len() >= vote.Probers {
		p.sharing = time.Now()
	}
	p.members = members
	for _, w := range p.watches {
		w.wakeUp()
	}
}

// Heard is a message of another node as it came.
type Heard struct {
	// From is who said it. Whether that is so is proved before.
	From string
	// Message is what Options.Publish was given there.
	Message []byte
	// Age is how long ago it was said, at least.
	Age time.Duration
	// Signed is the message with its origin's signature, as State gives it to others; "": it cannot be passed on.
	Signed string
}

// Hear takes in what another node has published. An error says that the message, or some of it, was refused; what could be used
// of it was.
func (p *Prober) Hear(h Heard) error {
	now := time.Now()
	votes, err := vote.Decode(h.From, h.Message, now.Add(-h.Age))
	if err != nil {
		p.counts.refused.Add(1)
		return err
	}
	p.counts.received.Add(uint64(len(votes)))
	if len(votes) > 0 && votes[0].Sequence > uint64(now.Add(maxAhead).UnixMicro()) {
		p.counts.refused.Add(uint64(len(votes)))
		return errAhead
	}
	for i := range votes {
		votes[i].Signed = h.Signed
	}
	if n := p.merge(votes, now); n > 0 {
		p.counts.refused.Add(uint64(n))
		return errNoRoom
	}
	return nil
}

var (
	errAhead  = errors.New("its clock is more than a day ahead")
	errNoRoom = errors.New("there is no room for so many checks that are not known here")
)

// merge takes in votes that are in order, and says how many there was no room for.
func (p *Prober) merge(votes []vote.Vote, now time.Time) (refused int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range votes {
		if v.Origin == p.self { // from before this process, perhaps by a clock that was ahead
			p.sequence = max(p.sequence, v.Sequence)
		}
	}
	refused = p.hold(votes, now)
	if now.Sub(p.tidied) >= tidyInterval {
		p.tidied = now
		p.table.Tidy(now)
	}
	return refused
}

// hold puts votes into the table, and wakes whom they concern: this node's own too, for they count like any other. It is called
// with mu held.
func (p *Prober) hold(votes []vote.Vote, now time.Time) (refused int) {
	changed, refused := p.table.Merge(votes, now)
	for _, key := range changed {
		if w := p.byKey[key]; w != nil {
			w.wakeUp()
		} else if heard := p.listeners[key]; heard != nil {
			heard()
		}
	}
	return refused
}

// State gives the messages, with their ages, that a node should know that has heard nothing yet: those of which any vote counts
// still. The ones with bad news go first; both kinds begin with another each time, for not all may fit.
func (p *Prober) State() iter.Seq2[string, time.Duration] {
	now := time.Now()
	p.mu.Lock()
	bad, good := p.table.Messages(now)
	p.mu.Unlock()
	all := slices.Concat(p.fromAnywhere(bad), p.fromAnywhere(good))
	return func(yield func(string, time.Duration) bool) {
		for _, m := range all {
			if !yield(m.Message, now.Sub(m.Heard)) {
				return
			}
		}
	}
}

// fromAnywhere has messages begin at a random place and end before it.
func (p *Prober) fromAnywhere(messages []vote.Told) []vote.Told {
	if len(messages) == 0 {
		return nil
	}
	start := int(p.random(time.Duration(len(messages))))
	return slices.Concat(messages[start:], messages[:start])
}

// situation is what is known of w, and what its own requests have met with.
func (p *Prober) situation(w *watch, own upstream.Verdict, now time.Time) (situation, refusal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := situation{now: now, own: own, members: max(1, p.members.Len())}
	if s.alone() {
		return s, w.refused
	}
	s.place, _ = p.members.Place(w.key, p.self)
	s.count = vote.Decide(p.table.Of(w.key), p.members, now)
	for _, v := range s.count.Counted {
		if place, _ := p.members.Place(w.key, v.Origin); place < s.place {
			s.ahead++
		}
	}
	return s, w.refused
}

// nextProbe is when w is probed after the probe that began at begin.
func (p *Prober) nextProbe(w *watch, begin time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.members.Len() < 2 {
		return begin.Add(p.jitter(w.interval))
	}
	place, _ := p.members.Place(w.key, p.self)
	return slot(begin, w.interval, w.key, place).Add(p.random(min(w.interval/20, maxJitter) + 1))
}

// observed takes in the result of a probe.
func (p *Prober) observed(w *watch, reached bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.probed = time.Now()
	r := failed
	if reached {
		r = passed
	}
	p.setLatest(w, r)
}

// stopProbing takes back what w's probes have said of this node.
func (p *Prober) stopProbing(w *watch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.setLatest(w, unprobed)
	p.silence(w)
}

// silence ends the repetition of what was said of w.
func (p *Prober) silence(w *watch) {
	w.said, w.word, w.news = said{}, upstream.Verdict{}, false
	if w.place != nil {
		p.own.Remove(w.place)
		w.place = nil
	}
}

// setLatest is called with mu held.
func (p *Prober) setLatest(w *watch, r result) {
	if w.latest == passed {
		p.passing--
	}
	delete(p.failing, w)
	switch w.latest = r; r {
	case passed:
		p.passing++
	case failed:
		p.failing[w] = true
	}
}

// reconsider asks whether this node is to distrust itself; if that has changed, what it takes back or upholds is news. It is called
// with mu held.
func (p *Prober) reconsider(now time.Time) {
	if p.passing == 0 && len(p.failing) > maxAsked && now.Sub(p.distrustAsked) < distrustFor {
		return
	}
	p.distrustAsked = now
	distrusts := p.distrusts(now)
	if distrusts == p.distrust {
		return
	}
	p.distrust = distrusts
	if distrusts {
		p.logger.Warn("all health probes of this node fail where those of others succeed: it tells them that it is unsure")
	} else {
		p.logger.Info("health probes of this node count again")
	}
	for e := p.own.Front(); e != nil; e = e.Next() {
		if w := e.Value.(*watch); p.wouldSay(w) {
			p.note(w, p.soon(now))
		}
	}
}

// distrusts says whether all that this node probes looks dead, two addresses at least, while others, one at least, say of most of
// it that it is alive. Who is unsure does not reach it either: were that not counted, a few old words of good news would keep all
// nodes unsure for as long as everything is dead. It is called with mu held.
func (p *Prober) distrusts(now time.Time) bool {
	if p.passing > 0 {
		return false
	}
	addresses := make(map[string]bool)
	heard, alive := 0, 0
	for w := range p.failing {
		addresses[w.backend.Address()] = true
		said, healthy := false, false
		for _, v := range p.table.Of(w.key) {
			if v.Origin != p.self && p.members.Has(v.Origin) && now.Before(v.FreshUntil()) {
				said, healthy = true, healthy || v.State == vote.Healthy
			}
		}
		if said {
			heard++
		}
		if healthy {
			alive++
		}
	}
	return len(addresses) >= 2 && alive > heard/2
}

// roleOf is called with mu held.
func (p *Prober) roleOf(c *course) role {
	switch {
	case c.onDuty && p.members.Len() < vote.Probers:
		return forItself
	case c.onDuty:
		return prober
	case !c.overlap.IsZero():
		return leaving
	case c.standing:
		return standIn
	}
	return idle
}

// refusedNow is what requests have met with so far.
func (p *Prober) refusedNow(w *watch) refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return w.refused
}

// forgive ends a refusal, unless there is another since.
func (p *Prober) forgive(w *watch, r refusal) {
	p.mu.Lock()
	if w.refused == r {
		w.refused = refusal{}
	}
	p.mu.Unlock()
	w.avoid(p)
}
