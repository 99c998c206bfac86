package listener

import (
	"context"
	"fmt"
	"time"
)

// drainAgain is how long a drain waits, after Front has seen its last connection end, for goroutines that have one more.
const drainAgain = time.Second

// Drain accepts no more, lets Front end its connections and cuts what is left when ctx ends. It returns once the goroutine
// of every connection has; one that Front handed over is its new owner's to end. A handshake under way may end in the time
// that it has, and its connection is served then. The error is that of ctx if anything had to be cut.
func (l *Listener) Drain(ctx context.Context) error {
	l.leave.Do(func() {
		close(l.leaving)
		l.front.Leave()  // first, so that no client is told to keep a connection to a port that is closed
		l.socket.Close() // an error would mean that it is closed
	})
	l.accepts.Wait()
	ended := make(chan struct{})
	go func() {
		l.conns.Wait()
		l.workers.Wait()
		l.sleepers.stop()
		close(ended)
	}()
	err := l.drainFront(ctx, ended)
	if err != nil {
		return fmt.Errorf("drain %s: %w", l.Address(), err)
	}
	return nil
}

// drainFront asks Front again for what it could not know of when it was asked: a connection whose handshake was under way,
// or whose goroutine had not begun to run.
func (l *Listener) drainFront(ctx context.Context, ended <-chan struct{}) error {
	again := time.NewTicker(drainAgain)
	defer again.Stop()
	over := ctx.Done()
	cut := l.front.Drain(ctx)
	for {
		select {
		case <-ended:
			return cut
		case <-over:
			over = nil
			if l.handshakes.cut() > 0 {
				cut = ctx.Err()
			}
		case <-again.C:
		}
		if err := l.front.Drain(ctx); err != nil {
			cut = err
		}
	}
}
