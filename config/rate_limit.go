package config

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

const (
	// mostRequests is how many requests a rate may let through in its time, and at once.
	mostRequests = 1_000_000
	// The bounds of the time that a rate is for.
	leastPer, mostPer = 100 * time.Millisecond, 24 * time.Hour
	// mostFill is how long it may take until a full burst passes again.
	mostFill = 30 * 24 * time.Hour
)

// rateSettings are the rate_limit section as written.
type rateSettings struct {
	requests, burst option[uint32]
	per             option[time.Duration]
	key, scope      option[string]
}

var rateLimitSection = section[rateSettings]{
	form: "a mapping such as {requests: 100, per: 1s}",
	keys: []key[rateSettings]{
		{name: "requests", form: "number, 1 to 1000000", about: "how many requests pass in each `per`; has to be written",
			read: func(r *reader, v value, s *rateSettings) { take(&s.requests, v, r.rateCount) }},
		{name: "per", form: "time, 100ms to 24h", initial: "1s", about: "the time that `requests` is for",
			read: func(r *reader, v value, s *rateSettings) {
				take(&s.per, v, func(v value) (time.Duration, bool) { return r.duration(v, leastPer, mostPer) })
			}},
		{name: "burst", form: "number, 1 to 1000000", initial: "requests", about: "how many may come at once after a pause; they come back one by one, evenly over `per`",
			read: func(r *reader, v value, s *rateSettings) { take(&s.burst, v, r.rateCount) }},
		{name: "key", form: "client_ip, route or header:NAME", initial: "client_ip", about: "what is counted apart: each client's address (of IPv6 the first 64 bits), each value of a header field, or nothing",
			read: func(r *reader, v value, s *rateSettings) { take(&s.key, v, r.rateKey) }},
		{name: "scope", form: "node or cluster", initial: "node", about: "node: each node lets that much through; cluster: all nodes together do",
			read: func(r *reader, v value, s *rateSettings) {
				take(&s.scope, v, func(v value) (string, bool) { return r.choice(v, []string{"node", "cluster"}) })
			}},
	},
}

func (r *reader) rateCount(v value) (uint32, bool) { return r.integer(v, 1, mostRequests) }

const headerKey = "header:"

// rateKey reads client_ip, route or header:NAME.
func (r *reader) rateKey(v value) (string, bool) {
	word, ok := r.text(v, "client_ip, route or header:NAME")
	if !ok {
		return "", false
	}
	name, isHeader := strings.CutPrefix(word, headerKey)
	switch {
	case word == "client_ip" || word == "route":
	case isHeader && len(name) <= longestFieldName && isFieldName(name):
		return headerKey + strings.ToLower(name), true
	case isHeader:
		r.errorf(v, "%s is not the name of a header field: write %sX-Api-Key, for one", quote(name), headerKey)
		return "", false
	default:
		r.errorf(v, "%s is not known here: write client_ip, route or header:NAME", quote(word))
		return "", false
	}
	return word, true
}

// rateLimit reads a rate_limit section.
func (r *reader) rateLimit(v value) (*resourcev1.RateLimit, bool) {
	before := r.errorCount()
	var s rateSettings
	if !rateLimitSection.read(r, v, &s) || r.errorCount() != before {
		return nil, false
	}
	if !s.requests.isSet() {
		r.errorf(v, "requests is missing: write how many may pass, such as {requests: 100, per: 1s}")
		return nil, false
	}
	per, burst := s.per.or(time.Second), s.burst.or(s.requests.value)
	if per/time.Duration(s.requests.value) > mostFill/time.Duration(burst) {
		r.errorf(v, "after a burst of %d it would take more than %s until as many may pass again: write a smaller burst, or a shorter per", burst, span(mostFill))
		return nil, false
	}
	out := &resourcev1.RateLimit{
		Requests: s.requests.value, Per: durationpb.New(per), Burst: burst,
		Key: resourcev1.RateKey_RATE_KEY_CLIENT_IP, Scope: resourcev1.RateScope_RATE_SCOPE_NODE,
	}
	if s.scope.value == "cluster" {
		out.Scope = resourcev1.RateScope_RATE_SCOPE_CLUSTER
	}
	switch name, isHeader := strings.CutPrefix(s.key.value, headerKey); {
	case isHeader:
		out.Key, out.Header = resourcev1.RateKey_RATE_KEY_HEADER, name
	case s.key.value == "route":
		out.Key = resourcev1.RateKey_RATE_KEY_ROUTE
	}
	return out, true
}
