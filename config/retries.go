package config

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

const (
	// maxAttempts bounds how often a request is sent again: who needs more has a backend that is down.
	maxAttempts = 10
	// maxBudgetPercent is as much as maxAttempts can ask for: no bound at all.
	maxBudgetPercent = 100 * maxAttempts
	// connectFailure is the word in `on` that is no status.
	connectFailure = "connect_failure"
	// The statuses that may be tried again: those that say that something failed.
	leastRetried, mostRetried = 400, 599
)

func defaultRetries() *resourcev1.Retries {
	return &resourcev1.Retries{Attempts: 2, ConnectFailure: true, Statuses: []uint32{502, 503, 504}, BudgetPercent: 20}
}

var retriesSection = section[resourcev1.Retries]{
	form: "a mapping such as {attempts: 2, on: [connect_failure, 503]}",
	keys: []key[resourcev1.Retries]{
		{name: "attempts", form: "number, 0 to 10", initial: "2", about: "how often a request is sent again at most, each time to another backend while there is one; 0: never",
			read: func(r *reader, v value, t *resourcev1.Retries) { r.count(v, maxAttempts, &t.Attempts) }},
		{name: "on", form: "list of connect_failure and statuses, 400 to 599", initial: "[connect_failure, 502, 503, 504]", about: "after what a request is sent again",
			read: func(r *reader, v value, t *resourcev1.Retries) { r.retriedOn(v, t) }},
		{name: "per_try_timeout", form: "time, 1ms to 8784h, or 0s", initial: "0s", about: "how long one attempt may take to the head of its answer, the connect included; 0s: as long as `timeouts` say",
			read: func(r *reader, v value, t *resourcev1.Retries) { r.timeLimitInto(v, &t.PerTryTimeout) }},
		{name: "budget_percent", form: "number, 0 to 1000", initial: "20", about: "at most so many retries in a hundred requests of the route, each node for itself; ten in ten seconds are always allowed",
			read: func(r *reader, v value, t *resourcev1.Retries) { r.count(v, maxBudgetPercent, &t.BudgetPercent) }},
	},
}

// retries reads a retries section; what it does not say is the default.
func (r *reader) retries(v value) (*resourcev1.Retries, bool) {
	before := r.errorCount()
	t := defaultRetries()
	retriesSection.read(r, v, t)
	return t, r.errorCount() == before
}

// retriedOn reads what is tried again, sorted: its order means nothing.
func (r *reader) retriedOn(v value, t *resourcev1.Retries) {
	if isNull(v.node) {
		return
	}
	t.ConnectFailure, t.Statuses = false, nil
	ok := r.list(v, "a list such as [connect_failure, 503]", func(item value) {
		status, known := r.retriedStatus(item)
		switch {
		case !known:
		case status == 0:
			t.ConnectFailure = true
		case slices.Contains(t.Statuses, status):
			r.warnf(item, "%d stands here twice", status)
		default:
			t.Statuses = append(t.Statuses, status)
		}
	})
	if ok && !t.ConnectFailure && len(t.Statuses) == 0 {
		r.warnf(v, "is empty: nothing is tried again, as with attempts: 0")
	}
	slices.Sort(t.Statuses)
}

// retriedStatus gives 0 for connect_failure.
func (r *reader) retriedStatus(v value) (uint32, bool) {
	if v.node.Tag != stringTag {
		return r.integer(v, leastRetried, mostRetried)
	}
	_, ok := r.choice(v, []string{connectFailure})
	return 0, ok
}

// timeLimitInto reads a time, or 0 for none, which is as good as nothing said.
func (r *reader) timeLimitInto(v value, into **durationpb.Duration) {
	var d time.Duration
	if r.timeLimit(v, &d); d > 0 {
		*into = durationpb.New(d)
	}
}
