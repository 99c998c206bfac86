package fleet

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	replicav1 "github.com/pyserve/pyserve/proto/pyserve/replica/v1"
)

// Why a question has no answer.
var (
	// ErrNotConnected says that the node has no stream.
	ErrNotConnected = errors.New("is not connected")
	// ErrBusy says that too many questions to the node await their answers.
	ErrBusy = errors.New("has too many questions to answer already")
	// ErrGone says that the node's stream ended before it answered.
	ErrGone = errors.New("went away before it answered")
)

const (
	// maxQuestions is how many questions one node is asked at a time: a person asks one, and a loop of somebody's must not
	// fill the memory or delay offers.
	maxQuestions = 16
	// maxThrough is the same for all nodes of a follower together.
	maxThrough = 64
	// maxAnswerBackends is how many backends of an answer are kept, and maxAnswerBytes how long the whole of it may be: it
	// may be passed on to the control that leads, in one message.
	maxAnswerBackends = 1000
	maxAnswerBytes    = 2 << 20
)

// question is one that awaits its answer. Its fields are guarded by the fleet's mu, but for the channel.
type question struct {
	m      *fleetv1.Question
	sent   bool
	answer chan *fleetv1.Answer // capacity 1
}

// Ask puts a question to a node and waits for its answer. The question's id is set here. It fails with
// [ErrNotConnected], [ErrBusy] or [ErrGone], or with the cause of ctx: an older node does not answer at all.
func (f *Fleet) Ask(ctx context.Context, name string, m *fleetv1.Question) (*fleetv1.Answer, error) {
	if fl := f.holder(name); fl != nil {
		return f.askThrough(ctx, fl, name, m)
	}
	q := &question{m: m, answer: make(chan *fleetv1.Answer, 1)}
	s, err := f.enqueue(name, q)
	if err != nil {
		return nil, fmt.Errorf("node %s %w", name, err)
	}
	defer f.forget(s, q)
	select {
	case answer := <-q.answer:
		return answer, nil
	case <-s.ctx.Done():
		return nil, fmt.Errorf("node %s %w", name, ErrGone)
	case <-f.closed:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, fmt.Errorf("node %s did not answer in time: %w", name, context.Cause(ctx))
	}
}

// holder gives the follower that a node is connected to; nil: it is connected here, or nowhere.
func (f *Fleet) holder(name string) *follower {
	f.mu.Lock()
	defer f.mu.Unlock()
	var arrived uint64
	if s := f.sessions[name]; s != nil {
		arrived = s.arrived
	}
	fl, _ := f.elsewhere(name, arrived)
	return fl
}

// askThrough has a follower ask one of its nodes.
func (f *Fleet) askThrough(ctx context.Context, fl *follower, name string, m *fleetv1.Question) (*fleetv1.Answer, error) {
	answer := make(chan *replicav1.Answered, 1)
	f.mu.Lock()
	if len(fl.questions) >= maxThrough {
		f.mu.Unlock()
		return nil, fmt.Errorf("node %s %w", name, ErrBusy)
	}
	f.questions++
	id := f.questions
	fl.questions[id] = answer
	fl.asking = append(fl.asking, &replicav1.Asked{Id: id, Node: name, Question: m})
	fl.wakeUp()
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(fl.questions, id)
	}()
	select {
	case a := <-answer:
		if failure := a.GetFailure(); failure != "" {
			return nil, fmt.Errorf("%s: %w", failure, ErrGone)
		}
		return a.GetAnswer(), nil
	case <-fl.ctx.Done():
		return nil, fmt.Errorf("node %s %w", name, ErrGone)
	case <-f.closed:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, fmt.Errorf("node %s did not answer in time: %w", name, context.Cause(ctx))
	}
}

func (f *Fleet) enqueue(name string, q *question) (*session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sessions[name]
	switch {
	case s == nil:
		return nil, ErrNotConnected
	case len(s.questions) >= maxQuestions:
		return nil, ErrBusy
	}
	f.questions++
	q.m.Id = f.questions
	s.questions[q.m.Id] = q
	s.wakeUp()
	return s, nil
}

func (f *Fleet) forget(s *session, q *question) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(s.questions, q.m.GetId())
}

// ask gives the sender a question to send; nil: there is none. Offers come first.
func (f *Fleet) ask(s *session) func() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, q := range s.questions {
		if !q.sent {
			q.sent = true
			return func() error {
				return f.transmit(s, &fleetv1.ToNode{Message: &fleetv1.ToNode_Question{Question: q.m}})
			}
		}
	}
	return nil
}

// answered hands an answer to whoever asked, where somebody still waits. The caller holds mu.
func (s *session) answered(m *fleetv1.Answer) {
	q := s.questions[m.GetId()]
	if q == nil || !q.sent {
		return
	}
	delete(s.questions, m.GetId())
	m.Backends = m.Backends[:min(len(m.Backends), maxAnswerBackends)]
	if proto.Size(m) > maxAnswerBytes {
		m = &fleetv1.Answer{Id: m.GetId(), Reason: "the node's answer is too long to be shown"}
	}
	q.answer <- m
}
