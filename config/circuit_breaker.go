package config

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

const (
	// mostUnderWay is the greatest bound of what is under way at a time.
	mostUnderWay = 1_000_000
	// The bounds of the time that a request waits for a place, and how long it does unless told.
	leastPending, mostPending = time.Millisecond, time.Hour
	defaultPending            = 5 * time.Second
)

// breakerSettings are the circuit_breaker section as written.
type breakerSettings struct {
	connections, requests, pending option[uint32]
	timeout                        option[time.Duration]
}

var circuitBreakerSection = section[breakerSettings]{
	form: "a mapping such as {max_requests: 1000, max_pending: 100}",
	keys: []key[breakerSettings]{
		{name: "max_connections", form: "number, 0 to 1000000", initial: "0", about: "how many requests and upgraded connections may be with each backend at a time; who comes then goes to another. 0: no limit",
			read: func(r *reader, v value, s *breakerSettings) { take(&s.connections, v, r.underWay) }},
		{name: "max_requests", form: "number, 0 to 1000000", initial: "0", about: "the same for all backends together. 0: no limit",
			read: func(r *reader, v value, s *breakerSettings) { take(&s.requests, v, r.underWay) }},
		{name: "max_pending", form: "number, 0 to 1000000", initial: "0", about: "how many requests may wait where there is no place; one more is answered 503. 0: none waits",
			read: func(r *reader, v value, s *breakerSettings) { take(&s.pending, v, r.underWay) }},
		{name: "pending_timeout", form: "time, 1ms to 1h", initial: "5s", about: "how long a request waits for a place before it is answered 503",
			read: func(r *reader, v value, s *breakerSettings) {
				take(&s.timeout, v, func(v value) (time.Duration, bool) { return r.duration(v, leastPending, mostPending) })
			}},
	},
}

func (r *reader) underWay(v value) (uint32, bool) { return r.integer(v, 0, mostUnderWay) }

// circuitBreaker reads a circuit_breaker section; nil: it bounds nothing.
func (r *reader) circuitBreaker(v value) (*resourcev1.CircuitBreaker, bool) {
	before := r.errorCount()
	var s breakerSettings
	if !circuitBreakerSection.read(r, v, &s) || r.errorCount() != before {
		return nil, false
	}
	out := &resourcev1.CircuitBreaker{
		MaxConnections: s.connections.value, MaxRequests: s.requests.value, MaxPending: s.pending.value,
	}
	switch {
	case out.MaxConnections == 0 && out.MaxRequests == 0:
		if out.MaxPending > 0 {
			r.warnf(s.pending.at, "is not used: nothing waits where neither max_connections nor max_requests is a limit")
		}
		return nil, true
	case out.MaxPending > 0:
		out.PendingTimeout = durationpb.New(s.timeout.or(defaultPending))
	case s.timeout.isSet():
		r.warnf(s.timeout.at, "is not used: max_pending is 0, so no request waits")
	}
	return out, true
}
