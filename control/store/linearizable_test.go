package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
)

// register is what the history is checked against: the number of the active revision and its document.
type register struct {
	number   uint64
	document string
}

// call is a read, or, with a document, a commit on an expected parent.
type call struct {
	parent   uint64
	document string
}

// answer is what a call returned.
type answer struct {
	register
	conflict bool
	unknown  bool
}

var registerModel = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, output any) (bool, any) {
		now, in, out := state.(register), input.(call), output.(answer)
		next := register{now.number + 1, in.document}
		switch {
		case in.document == "":
			return out.register == now, now
		case out.unknown && now.number == in.parent:
			return true, next
		case out.unknown:
			return true, now
		case out.conflict:
			return now.number != in.parent, now
		}
		return now.number == in.parent && out.register == next, next
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
}

// clients call whoever leads, and write down when they called and what they were told.
type clients struct {
	trio  *trio
	began time.Time
	count atomic.Int64 // documents

	mu      sync.Mutex // guards history
	history []porcupine.Operation
}

func (c *clients) run(ctx context.Context, id int) {
	for ctx.Err() == nil {
		seen, ok := c.do(ctx, id, call{})
		if ok && rand.IntN(3) > 0 {
			c.do(ctx, id, call{seen.number, fmt.Sprintf("document %d", c.count.Add(1))})
		}
	}
}

// do makes one call, and asks again with the same request id while its outcome is not known.
func (c *clients) do(ctx context.Context, id int, in call) (answer, bool) {
	called, request := time.Since(c.began).Nanoseconds(), NewRequestID()
	out, known := answer{unknown: true}, false
	for !known && ctx.Err() == nil {
		if s := c.leading(); s != nil {
			out, known = ask(ctx, s, in, request)
		} else {
			pause(5 * time.Millisecond)
		}
	}
	if !known && in.document == "" {
		return out, false // a read that was never answered says nothing
	}
	returned := time.Since(c.began).Nanoseconds()
	if !known {
		returned = math.MaxInt64
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.history = append(c.history, porcupine.Operation{ClientId: id, Input: in, Call: called, Output: out, Return: returned})
	return out, known
}

func (c *clients) leading() *Store {
	c.trio.mu.Lock()
	defer c.trio.mu.Unlock()
	for _, s := range c.trio.stores {
		if s.Leads() {
			return s
		}
	}
	return nil
}

// ask makes one attempt; false: it is not known what became of it.
func ask(ctx context.Context, s *Store, in call, request RequestID) (answer, bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if s.Sync(ctx) != nil {
		return answer{unknown: true}, false
	}
	if in.document == "" {
		if active := s.Active(); active != nil {
			return answer{register: register{active.Number, string(active.Document)}}, true
		}
		return answer{}, true
	}
	b, err := bundle.New([]bundle.Resource{{Key: bundle.Key{Kind: config.KindRoute, Name: "a"}, Body: []byte(in.document)}})
	if err != nil {
		panic(err)
	}
	r, err := s.Commit(ctx, Proposal{
		Release: releaseOf(1, in.parent+1, b), Parent: in.parent, Bundle: b, Document: []byte(in.document), Author: "admin", Request: request,
	})
	switch {
	case err == nil:
		return answer{register: register{r.Number, in.document}}, true
	case errors.Is(err, ErrConflict):
		return answer{conflict: true}, true
	}
	return answer{unknown: true}, false
}

func pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// crash ends a store as kill -9 would: nothing is finished, nothing handed over.
func (c *trio) crash(name string) {
	c.mu.Lock()
	s := c.stores[name]
	delete(c.stores, name)
	c.mu.Unlock()
	s.mu.Lock()
	s.closed = true
	e := s.engine
	s.mu.Unlock()
	close(s.storage.closing)
	if err := errors.Join(e.end(), s.storage.Close(), s.lock.Close()); err != nil {
		c.t.Error(err)
	}
}

// chaosTime is how long the store is tormented.
func chaosTime(t *testing.T) time.Duration {
	if wished := os.Getenv("PYSERVE_STORE_CHAOS"); wished != "" {
		d, err := time.ParseDuration(wished)
		if err != nil {
			t.Fatalf("PYSERVE_STORE_CHAOS: %v", err)
		}
		return d
	}
	return 12 * time.Second
}

// TestNoWriteIsLostOrDoneTwice kills leaders, and cuts them off, under clients that read and write, and looks for an
// order in which one register could have answered the same. PYSERVE_STORE_CHAOS says how long, 12s by default.
func TestNoWriteIsLostOrDoneTwice(t *testing.T) {
	c := newTrio(t, "c1", "c2", "c3")
	clients := &clients{trio: c, began: time.Now()}
	ctx, stop := context.WithTimeout(t.Context(), chaosTime(t))
	defer stop()
	var group sync.WaitGroup
	for id := range 4 {
		group.Go(func() { clients.run(ctx, id) })
	}
	kills, cuts := 0, 0
	for ctx.Err() == nil {
		pause(time.Duration(300+rand.IntN(500)) * time.Millisecond)
		leader := clients.leading()
		if leader == nil {
			continue
		}
		name := c.nameOf(leader)
		if rand.IntN(4) == 0 {
			cuts++
			c.fabric.isolate(name+":1", true)
			pause(time.Duration(rand.IntN(1200)) * time.Millisecond)
			c.fabric.isolate(name+":1", false)
			continue
		}
		kills++
		c.crash(name)
		pause(time.Duration(rand.IntN(300)) * time.Millisecond)
		c.open(name, "")
	}
	group.Wait()
	result, info := porcupine.CheckOperationsVerbose(registerModel, clients.history, time.Minute)
	if result != porcupine.Ok {
		f, err := os.CreateTemp("", "history-*.html")
		if err == nil {
			err = errors.Join(porcupine.Visualize(registerModel, info, f), f.Close())
		}
		t.Errorf("the history is %s; see %s (%v)", result, f.Name(), err)
	}
	clients.checkKept(t)
	t.Logf("%d calls, %d leaders killed, %d cut off", len(clients.history), kills, cuts)
	if kills == 0 || len(clients.history) < 20 {
		t.Errorf("%d kills under %d calls say nothing", kills, len(clients.history))
	}
}

// checkKept looks for every write that was answered, once each.
func (c *clients) checkKept(t *testing.T) {
	s := c.trio.leader()
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept := map[string]int{}
	for _, r := range s.Revisions() {
		found, err := s.Get(r.Number)
		if errors.Is(err, ErrNotKept) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kept[string(found.Document)]++
	}
	whole := s.Revisions()[0].Number - uint64(len(kept))
	for _, op := range c.history {
		in, out := op.Input.(call), op.Output.(answer)
		if in.document != "" && !out.unknown && !out.conflict && out.number > whole && kept[in.document] != 1 {
			t.Errorf("%q was kept as revision %d, and is there %d times", in.document, out.number, kept[in.document])
		}
	}
	for document, times := range kept {
		if times != 1 || !strings.HasPrefix(document, "document ") {
			t.Errorf("%q is there %d times", document, times)
		}
	}
}
