package api

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

const (
	// maxUntold is how many bytes of events may wait for a caller that reads slowly; what is told on the way beyond that is
	// left out. A change of every route of the largest document is half of it.
	maxUntold = 64 << 20
	// deafTime is how long a caller may take nothing once the work is done, and tellTime how long all of it may take.
	deafTime = 10 * time.Second
	tellTime = 5 * time.Minute
)

// errDeaf ends a call whose caller does not take the answer.
var errDeaf = errors.New("the caller does not read the answer; pyservectl status and history tell what became of the call")

// teller sends what happens on the way, so that whoever does the work waits for no caller: one that reads nothing would hold
// up every other apply.
type teller struct {
	ctx  context.Context
	send func(*operatorv1.ApplyEvent) error
	wake chan struct{} // capacity 1
	took chan struct{} // capacity 1: the caller has taken something
	over chan struct{} // closed when everything is sent, or nothing can be

	mu      sync.Mutex // guards what follows
	untold  []*operatorv1.ApplyEvent
	bytes   int // of untold
	ended   bool
	failure error
}

// newTeller begins; finish must be called. Its goroutine ends with the call that ctx is of, since a Send that is under way
// cannot be ended before.
func newTeller(ctx context.Context, send func(*operatorv1.ApplyEvent) error) *teller {
	t := &teller{ctx: ctx, send: send, wake: make(chan struct{}, 1), took: make(chan struct{}, 1), over: make(chan struct{})}
	go t.run()
	return t
}

// tell has an event sent; it never waits.
func (t *teller) tell(event *operatorv1.ApplyEvent) {
	size := proto.Size(event)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failure != nil || t.bytes+size > maxUntold && event.GetResult() == nil {
		return
	}
	t.untold = append(t.untold, event)
	t.bytes += size
	signal(t.wake)
}

func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (t *teller) run() {
	defer close(t.over)
	for {
		event, ended := t.next()
		switch {
		case event == nil && ended:
			return
		case event == nil:
			select {
			case <-t.wake:
			case <-t.ctx.Done():
				return
			}
		default:
			if err := t.send(event); err != nil {
				t.fail(err)
				return
			}
			signal(t.took)
		}
	}
}

// next takes the oldest event that was not sent; nil: there is none.
func (t *teller) next() (event *operatorv1.ApplyEvent, ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.untold) == 0 {
		return nil, t.ended
	}
	event = t.untold[0]
	t.untold[0] = nil
	t.untold = t.untold[1:]
	t.bytes -= proto.Size(event)
	return event, false
}

// fail keeps why nothing more can be sent, and forgets what was to be.
func (t *teller) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failure == nil {
		t.failure = err
	}
	t.untold, t.bytes = nil, 0
}

// finish waits until the caller has everything. It fails where that cannot be, and with errDeaf for a caller that takes
// nothing any more: the end of its call ends the Send that is under way.
func (t *teller) finish() error {
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
	signal(t.wake)
	deaf, late := time.NewTimer(deafTime), time.NewTimer(tellTime)
	defer deaf.Stop()
	defer late.Stop()
	for {
		select {
		case <-t.over:
			t.mu.Lock()
			defer t.mu.Unlock()
			return t.failure
		case <-t.took:
			deaf.Reset(deafTime)
			continue
		case <-t.ctx.Done():
			t.fail(context.Cause(t.ctx))
			return context.Cause(t.ctx)
		case <-deaf.C:
			t.fail(errDeaf)
			return fmt.Errorf("%w: it took nothing for %s", errDeaf, deafTime)
		case <-late.C:
			t.fail(errDeaf)
			return fmt.Errorf("%w: it did not take all of it within %s", errDeaf, tellTime)
		}
	}
}
