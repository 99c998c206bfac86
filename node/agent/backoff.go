package agent

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff grows the pauses between attempts and draws each at random from the whole range ("full jitter"), so that a
// fleet that lost its control does not come back as one burst. The zero value begins with the shortest.
type backoff struct{ limit time.Duration }

const (
	shortestPause = 250 * time.Millisecond
	longestPause  = 5 * time.Second
)

func (b *backoff) next() time.Duration {
	b.limit = min(max(2*b.limit, shortestPause), longestPause)
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
