package control

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	replicav1 "github.com/pyserve/pyserve/proto/pyserve/replica/v1"
)

// follower is the stream of a control that attends, as the one that leads sees it.
type follower struct {
	ctx  context.Context
	said chan *replicav1.FromFollower
}

func (f *follower) Context() context.Context         { return f.ctx }
func (f *follower) Send(*replicav1.FromLeader) error { return nil }
func (f *follower) Recv() (*replicav1.FromFollower, error) {
	select {
	case m := <-f.said:
		return m, nil
	case <-f.ctx.Done():
		return nil, context.Cause(f.ctx)
	}
}

// attended has a control c2 attend to c until the test's end, and gives how it speaks.
func attended(t *testing.T, c *Control) func(*replicav1.FromFollower) {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	f := &follower{ctx: ctx, said: make(chan *replicav1.FromFollower)}
	var serving sync.WaitGroup
	serving.Go(func() { c.Attend("c2", f) })
	t.Cleanup(func() {
		end()
		serving.Wait()
	})
	say := func(m *replicav1.FromFollower) {
		select {
		case f.said <- m:
		case <-ctx.Done():
		}
	}
	say(&replicav1.FromFollower{Message: &replicav1.FromFollower_Attendance{Attendance: &replicav1.Attendance{ServerId: "c2/1", Complete: true}}})
	return say
}

func leftAt(name string) *replicav1.FromFollower {
	return &replicav1.FromFollower{Message: &replicav1.FromFollower_Node{Node: &replicav1.NodeReport{Name: name, Left: true}}}
}

// lines is a log for tests.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

func TestNodesOfOtherControlsThatLeftAreKept(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	enrol(t, c, "n1")
	enrol(t, c, "n2")
	say := attended(t, c)
	say(leftAt("n1"))
	eventually(t, "n1 is kept as one that left", func() bool { n, _ := c.store.Node("n1"); return n.Left })
	if n, _ := c.store.Node("n2"); n.Left {
		t.Error("so is n2")
	}
}

// As when most of the controls are gone: what is written waits, and whoever led has to notice that it leads no more.
func TestWriteThatWaitsDoesNotKeepAControlFromSeeingThatItLeadsNoMore(t *testing.T) {
	log, o := &lines{}, optionsFor(t.TempDir())
	o.Logger = slog.New(slog.NewTextHandler(log, nil))
	c := start(t, o)
	enrol(t, c, "n1")
	eventually(t, "it leads", func() bool { return log.has("this control leads") })
	c.registry.Lock()
	defer c.registry.Unlock()
	say := attended(t, c)
	say(leftAt("n1"))
	say(leftAt("n1")) // the first is taken in
	if err := c.store.Close(); err != nil {
		t.Fatal(err)
	}
	say(leftAt("n1")) // a store that is closed wakes nobody
	eventually(t, "it knows that it leads no more", func() bool { return log.has("this control no longer leads") })
}
