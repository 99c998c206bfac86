package limit

import (
	"math"
	"slices"
	"sync"
	"time"
)

// Turn is how often borrowers ask, once for all their keys of an owner.
const Turn = 50 * time.Millisecond

const (
	// leastTurns is for how many turns what is there at once has to last: what passes until the next answer is allowed before.
	leastTurns = 4
	// allowedTurns is for how many turns a borrower goes by an answer, and claimTurns for how many its owner reckons with that. Between
	// them is the time that the answer takes.
	allowedTurns, claimTurns = 4, 5
	// claimants is how many borrowers of a key an owner tells apart. Of more, those that have not asked for longest are forgotten.
	claimants = 64
)

// lendable is r with a burst that lasts until borrowers ask again.
func (r Rate) lendable() Rate {
	r.Burst = max(r.Burst, uint32((leastTurns*Turn+r.Emission()-1)/r.Emission()))
	return r
}

// Ask is what a borrower tells a key's owner, and wants of it.
type Ask struct {
	Key uint64
	// How many requests it wants to let through until it asks again.
	Want uint32
	// How many it has let through since it last asked.
	Used uint32
	// How long it takes until the key's whole burst is there, by what its owner last answered: for an owner that has not lent the key
	// until now.
	Level time.Duration

	at time.Duration // when it was made
}

// Grant is what an owner answers.
type Grant struct {
	// How many requests the borrower may let through until it asks again, which is to be soon: an answer is good for four turns.
	Allowed uint32
	// How long it takes until the key's whole burst is there.
	Level time.Duration
}

// claim is what an owner knows of a borrower.
type claim struct {
	who     uint64
	at      int64
	want    float64
	allowed int64
	credit  float64 // what it may have of its share, and was not allowed yet
}

// loan is a key of an owner's.
type loan struct {
	tat    int64 // the theoretical arrival time of the next request, if all is used that is allowed
	claims []claim
}

// Ledger is what the owner of keys lends: together no more than a Rate lets through for each of them. What is allowed to a borrower is
// kept for it until it tells what it has used, or until its claim lapses; so nothing has to be given back. Where more is wanted than
// there is, everybody has an equal share, and what one does not want of his is shared by the others. Its methods may be called
// concurrently.
type Ledger struct {
	emission, fill int64
	most           int

	mu    sync.Mutex // guards what follows
	loans map[uint64]*loan
	swept int64
	used  uint64
}

// NewLedger makes a ledger of at most so many keys, that has lent nothing.
func NewLedger(r Rate, keys int) *Ledger {
	r = r.lendable()
	return &Ledger{emission: int64(r.Emission()), fill: int64(r.Fill()), most: keys, loans: make(map[uint64]*loan)}
}

// Lend answers what a borrower asks; who is not 0. False: there is no room for another key, whose borrowers have to go by their share of
// the rate.
func (l *Ledger) Lend(who uint64, a Ask, now time.Duration) (Grant, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.loans[a.Key]
	if o == nil {
		if len(l.loans) >= l.most && !l.sweep(int64(now)) {
			return Grant{}, false
		}
		o = &loan{}
		l.loans[a.Key] = o
	}
	l.used += uint64(a.Used)
	o.use(l, who, a, int64(now))
	allowed := o.allow(l, who, a, int64(now))
	_, kept := o.sum()
	return Grant{Allowed: uint32(allowed), Level: time.Duration(max(0, o.tat-int64(now)-kept*l.emission))}, true
}

// use counts what a borrower tells, and gives back what it was allowed beyond that.
func (o *loan) use(l *Ledger, who uint64, a Ask, now int64) {
	told := min(int64(a.Used), 2*l.fill/l.emission)
	for i, c := range o.claims {
		if c.who == who || !c.live(now) {
			o.tat -= c.allowed * l.emission
			o.claims[i].allowed = 0
		}
	}
	o.claims = slices.DeleteFunc(o.claims, func(c claim) bool { return !c.live(now) })
	_, kept := o.sum()
	// Somebody else may have lent the key meanwhile.
	o.tat = max(o.tat, now, now+min(max(int64(a.Level), 0), l.fill)+kept*l.emission)
	// It is bounded: nobody can lock a key for long by what he tells.
	o.tat = min(o.tat+told*l.emission, max(o.tat, now+2*l.fill))
}

// allow finds out how much a borrower may let through, and keeps it for him.
func (o *loan) allow(l *Ledger, who uint64, a Ask, now int64) int64 {
	c := o.claim(l, who, now)
	elapsed := float64(max(0, now-c.at)) / float64(Turn) // an ask may be answered behind the next one
	c.at, c.want = max(c.at, now), float64(min(int64(a.Want), l.fill/l.emission))
	wanted, kept := o.sum()
	there := max(0, now+l.fill-o.tat) / l.emission
	spare := float64(there + kept)
	if wanted <= spare {
		// What nobody has asked for is for bursts, wherever they come.
		c.allowed = min(there, int64(c.want+(spare-wanted)/float64(len(o.claims))))
		c.credit = 0
	} else {
		// Of what comes back in a turn everybody has a share. Two turns' may lie about, since they do not all ask at the same time; what is
		// there beyond that is a burst, or more than others have used, and is shared, too.
		turn := float64(Turn) / float64(l.emission)
		share := o.level(turn + max(0, spare-2*math.Floor(turn)))
		c.credit = min(c.credit+min(share, c.want)*elapsed, max(c.want, 1))
		c.allowed = min(there, int64(min(c.want, c.credit)))
		c.credit = max(0, c.credit-float64(c.allowed))
	}
	o.tat += c.allowed * l.emission
	return c.allowed
}

// sweep forgets keys that nobody wants and that have their burst back. It is tried once in a turn: a full ledger must not cost a
// search for each key. It is called with mu held.
func (l *Ledger) sweep(now int64) bool {
	if now-l.swept < int64(Turn) {
		return false
	}
	l.swept = now
	for key, o := range l.loans {
		if o.tat <= now && !slices.ContainsFunc(o.claims, func(c claim) bool { return c.live(now) }) {
			delete(l.loans, key)
		}
	}
	if len(l.loans) == 0 {
		l.loans = make(map[uint64]*loan) // maps do not shrink
	}
	return len(l.loans) < l.most
}

// Tidy forgets what is idle. It gives how many keys are lent.
func (l *Ledger) Tidy(now time.Duration) (keys int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep(int64(now))
	return len(l.loans)
}

// Used is how many requests the borrowers have told of, those of this node among them.
func (l *Ledger) Used() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used
}

func (c claim) live(now int64) bool { return now-c.at <= claimTurns*int64(Turn) }

// claim is that of a borrower, or the one that is given up for it.
func (o *loan) claim(l *Ledger, who uint64, now int64) *claim {
	if i := slices.IndexFunc(o.claims, func(c claim) bool { return c.who == who }); i >= 0 {
		return &o.claims[i]
	}
	fresh, at := claim{who: who, at: now - int64(Turn)}, len(o.claims)
	if at < claimants {
		o.claims = append(o.claims, fresh)
		return &o.claims[at]
	}
	at = 0
	for i, c := range o.claims {
		if c.at < o.claims[at].at {
			at = i
		}
	}
	o.tat -= o.claims[at].allowed * l.emission
	o.claims[at] = fresh
	return &o.claims[at]
}

// sum is how many requests are wanted, and how many kept for those who were allowed them.
func (o *loan) sum() (wanted float64, kept int64) {
	for _, c := range o.claims {
		wanted += c.want
		kept += c.allowed
	}
	return wanted, kept
}

// level is the share of each where so much is there: those that want less have that, and the others what is left in equal parts.
func (o *loan) level(there float64) float64 {
	var room [claimants]float64
	wants := room[:0]
	for _, c := range o.claims {
		wants = append(wants, c.want)
	}
	slices.Sort(wants)
	for i, want := range wants {
		if each := there / float64(len(wants)-i); want > each {
			return each
		}
		there -= want
	}
	return math.Inf(1)
}
