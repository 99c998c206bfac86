package forward

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// noticeInterval is between two lines about the same thing: a backend that is down fails thousands of requests a second,
	// and the metrics count them.
	noticeInterval = 10 * time.Second
	// noticeGrace is for the next failure to come and have the line, since it can say more than that there were some.
	noticeGrace = time.Second
)

// subject is what lines are about.
type subject struct {
	route string
	class Class
}

// notice is what was told of a subject.
type notice struct {
	level    slog.Level
	next     time.Time // before that there is no line
	withheld uint64    // failures without one since the last
}

// notices decides which failed requests the log tells of: the first of its route and class at once, and after that one in
// noticeInterval, with the number of those between. It holds subjects of which a line was written lately, and so forgets
// routes that are gone. Its methods may be called concurrently.
type notices struct {
	logger *slog.Logger

	// mu guards what follows. Nothing is logged under it.
	mu    sync.Mutex
	about map[subject]*notice
}

// admit says whether a failure has a line, and how many had none since the last. Now is of any clock, the same for all calls.
func (n *notices) admit(s subject, level slog.Level, now time.Time) (withheld uint64, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	known := n.about[s]
	switch {
	case known == nil:
		if n.about == nil {
			n.about = make(map[subject]*notice)
		}
		n.about[s] = &notice{level: level, next: now.Add(noticeInterval)}
		return 0, true
	case now.Before(known.next):
		known.withheld++
		return 0, false
	}
	withheld = known.withheld
	*known = notice{level: level, next: now.Add(noticeInterval)}
	return withheld, true
}

// owed is a line about failures that no later one has told of.
type owed struct {
	subject
	notice
}

// settle gives the lines that are owed now, and forgets subjects of which there is nothing to tell any more.
func (n *notices) settle(now time.Time) []owed {
	n.mu.Lock()
	defer n.mu.Unlock()
	var lines []owed
	for s, known := range n.about {
		switch {
		case now.Before(known.next.Add(noticeGrace)):
		case known.withheld == 0:
			delete(n.about, s)
		default:
			lines = append(lines, owed{s, *known})
			known.next, known.withheld = now.Add(noticeInterval), 0
		}
	}
	return lines
}

// tell writes the lines that are owed.
func (n *notices) tell(now time.Time) {
	for _, line := range n.settle(now) {
		n.logger.Log(context.Background(), line.level, "more requests failed", "class", string(line.class), "route", line.route,
			"withheld", line.withheld)
	}
}

// run tells until done is closed, and at the end everything.
func (n *notices) run(done <-chan struct{}) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			n.tell(time.Now().Add(noticeInterval + noticeGrace))
			return
		case now := <-ticker.C:
			n.tell(now)
		}
	}
}
