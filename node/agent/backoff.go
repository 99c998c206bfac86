package agent

import (
	"cmp"
	"context"
	"math/rand/v2"
	"time"
)

// backoff grows the pauses between attempts and draws each at random from the whole range ("full jitter"), so that a
// fleet that lost its control does not come back as one burst. The zero value begins with the shortest.
type backoff struct {
	limit time.Duration
	// shortest is the range of the first; 0: shortestPause.
	shortest time.Duration
	// asked is the range of the next alone; nil: as above.
	asked *time.Duration
}

const (
	shortestPause = 250 * time.Millisecond
	longestPause  = 5 * time.Second
	// otherPause is the shortest where there is another control to go to, which is there: an apply waits for nodes whose
	// control has just gone.
	otherPause = 100 * time.Millisecond
)

// once draws the next pause, and only that, from 0 to limit: the control that the node was connected to said so, and
// another one is there.
func (b *backoff) once(limit time.Duration) {
	limit = min(max(limit, 0), longestPause)
	b.asked = &limit
}

func (b *backoff) next() time.Duration {
	if asked := b.asked; asked != nil {
		b.asked = nil
		return rand.N(*asked + 1)
	}
	b.limit = min(max(2*b.limit, cmp.Or(b.shortest, shortestPause)), longestPause)
	return rand.N(b.limit) + 10*time.Millisecond
}

func (b *backoff) reset() { b.limit = 0 }

func (b *backoff) wait(ctx context.Context) error {
	timer := time.NewTimer(b.next())
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
