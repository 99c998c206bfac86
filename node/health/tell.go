package health

import (
	"cmp"
	"slices"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	"github.com/pyserve/pyserve/node/vote"
)

const (
	// gather is how long news waits for more of it, where others were told of some a moment ago, and maxGather how long it waits in a
	// burst, and what is only repeated waits at all times.
	gather    = 100 * time.Millisecond
	maxGather = time.Second
	// votesInMessage is about how many votes go into a message that say the same.
	votesInMessage = 27
	// maxLooked bounds how many votes are looked at that might be repeated beside others that are told.
	maxLooked = 64
	// repeatIntervals is how soon a vote is repeated. Gossip carries some 3 KB a second of what is new for all nodes together: where
	// votes of voteSize bytes, by all probers of all backends, would take more than shareOfGossip of it, they are repeated less often.
	repeatIntervals = 2
	voteSize        = 25 // its part of the message's head and signature included
	shareOfGossip   = 2 << 10
)

// message is one for other nodes.
type message struct {
	votes []vote.Vote
	bytes []byte
}

// send tells others, and keeps what they can pass on.
func (p *Prober) send(messages []message) {
	for _, m := range messages {
		signed := p.publish(m.bytes)
		p.mu.Lock()
		p.table.Sign(m.votes, signed)
		p.mu.Unlock()
	}
}

// record notes for people what was decided on w, and makes the messages with which others are told. It is called after each
// probe and whenever anything has changed. Where this node does not speak, own is Unknown. Later is when there is more to be told,
// if it is not told before; zero: there is not.
func (p *Prober) record(w *watch, c *course, own upstream.Verdict, now time.Time) (messages []message, later time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.verdict, w.source, w.role, w.word = c.verdict, c.source, p.roleOf(c), own
	if own.State == upstream.Unknown || p.members.Len() < 2 {
		return nil, time.Time{}
	}
	p.reconsider(now)
	switch {
	case p.wouldSay(w) && w.word.State == upstream.Unhealthy && now.Before(p.heardOut()):
		later = p.heardOut()
	case p.wouldSay(w):
		p.note(w, p.soon(now))
	case now.Sub(w.said.at) > p.repeatOf(w)-w.interval/2 && w.probed.After(w.said.at):
		p.note(w, now.Add(min(maxGather, p.repeatOf(w)/8)))
	}
	switch {
	case len(p.news) == 0:
		return nil, later
	case !now.Before(p.newsBy):
		return p.tellNews(now), later
	case later.IsZero() || p.newsBy.Before(later):
		later = p.newsBy
	}
	return nil, later
}

// heardOut is when a node that has been without others has heard from them what there is to be heard, and may say that a backend is
// dead: two that have just started and reach nothing would be a majority before they could distrust themselves. It is called with
// mu held.
func (p *Prober) heardOut() time.Time { return p.sharing.Add(vote.Slack) }

// soon is when news is told that should not wait: at once, unless there was some a moment ago. In a burst the pauses grow, up to
// maxGather, so that many votes go into one message.
func (p *Prober) soon(now time.Time) time.Time {
	if now.Sub(p.hurried) >= 2*maxGather {
		p.pause = gather
	}
	p.hurry = true
	return p.told.Add(p.pause)
}

// repeatOf is how soon what is said of w is repeated. It is called with mu held.
func (p *Prober) repeatOf(w *watch) time.Duration {
	all := time.Duration(len(p.watches)) * vote.Probers * voteSize * time.Second / shareOfGossip
	return max(repeatIntervals*w.interval, all.Truncate(time.Millisecond))
}

// note puts w among those that others are to be told of, by then at the latest. What fills a message does not wait for more. It is
// called with mu held.
func (p *Prober) note(w *watch, by time.Time) {
	if len(p.news) == 0 {
		p.newsBy = by
	}
	if !w.news {
		w.news = true
		p.news = append(p.news, w)
	}
	if full := p.told.Add(gather); len(p.news) >= votesInMessage && full.Before(by) {
		by = full
	}
	if by.Before(p.newsBy) {
		p.newsBy = by
	}
}

// tellNews makes messages of the news, and fills the last with repetitions of what was told long ago. It is called with mu held.
func (p *Prober) tellNews(now time.Time) []message {
	p.told = now
	if p.hurry {
		p.hurried, p.hurry = now, false
		p.pause = min(2*p.pause, maxGather)
	}
	p.sequence = max(p.sequence+1, uint64(now.UnixMicro()))
	var votes []vote.Vote
	for _, w := range p.news {
		if w.news && w.word.State != upstream.Unknown {
			votes = append(votes, p.say(w, now))
		}
		w.news = false
	}
	p.news = nil
	if over := len(votes) % votesInMessage; over > 0 {
		votes = p.repeat(votes, votesInMessage-over, now)
	}
	p.hold(votes, now)
	slices.SortStableFunc(votes, func(a, b vote.Vote) int {
		return cmp.Or(cmp.Compare(b.State, a.State), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Repeat, b.Repeat))
	})
	var messages []message
	for len(votes) > 0 {
		bytes, n := vote.Encode(votes, MaxMessage)
		messages = append(messages, message{votes: votes[:n], bytes: bytes})
		votes = votes[n:]
	}
	return messages
}

// repeat says again up to most things that were said long ago, the oldest first. It is called with mu held.
func (p *Prober) repeat(votes []vote.Vote, most int, now time.Time) []vote.Vote {
	for e, looked := p.own.Front(), 0; e != nil && most > 0 && looked < maxLooked; looked++ {
		w := e.Value.(*watch)
		e = e.Next()
		if now.Sub(w.said.at) >= p.repeatOf(w)/2 && w.probed.After(w.said.at) {
			votes = append(votes, p.say(w, now))
			most--
		}
	}
	return votes
}

// stateOf is what this node says of a backend by its own verdict. A node that distrusts itself accuses nobody. It is called with
// mu held.
func (p *Prober) stateOf(v upstream.Verdict) (vote.State, string) {
	switch {
	case v.State == upstream.Healthy:
		return vote.Healthy, ""
	case p.distrust:
		return vote.Unsure, "all probes of this node fail: " + v.Reason
	}
	return vote.Unhealthy, v.Reason
}

// wouldSay says whether what others were told of w is not what they would be told now. It is called with mu held.
func (p *Prober) wouldSay(w *watch) bool {
	state, reason := p.stateOf(w.word)
	return w.said.vote.State != state || w.said.vote.Reason != shorten(reason, vote.MaxReason)
}

// say dates what is to be said of w. It is called with mu held.
func (p *Prober) say(w *watch, now time.Time) vote.Vote {
	state, reason := p.stateOf(w.word)
	w.said.at = now
	w.said.vote = vote.Vote{
		Key: w.key, Origin: p.self, Sequence: p.sequence, State: state, Reason: shorten(reason, vote.MaxReason),
		Since: w.word.Since.Truncate(time.Millisecond), Repeat: p.repeatOf(w).Truncate(time.Millisecond), Heard: now,
	}
	if w.place == nil {
		w.place = p.own.PushBack(w)
	} else {
		p.own.MoveToBack(w.place)
	}
	return w.said.vote
}
