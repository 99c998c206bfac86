package config

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// balancingPolicies are the words for them.
var balancingPolicies = []string{"round_robin", "least_request", "random", "p2c_ewma", "ring_hash", "maglev"}

var balancingSection = section[resourcev1.LoadBalancing]{
	form: "a mapping such as {policy: least_request}",
	keys: []key[resourcev1.LoadBalancing]{
		{name: "policy", form: "round_robin, least_request, random, p2c_ewma, ring_hash or maglev", initial: "round_robin", about: "how a backend is picked; weights count with all of them",
			read: func(r *reader, v value, l *resourcev1.LoadBalancing) {
				if word, ok := r.choice(v, balancingPolicies); ok {
					l.Policy = resourcev1.BalancingPolicy(resourcev1.BalancingPolicy_value["BALANCING_POLICY_"+strings.ToUpper(word)])
				}
			}},
		{name: "hash", form: "section", about: "with ring_hash and maglev: what of a request the backend is picked by; without it the client's address",
			read: func(r *reader, v value, l *resourcev1.LoadBalancing) { r.hash(v, l) }},
		{name: "panic_percent", form: "number, 0 to 100", initial: "50", about: "where fewer than so many in a hundred backends are healthy, but not none, health checks do not count and all are used; 0: they always do",
			read: func(r *reader, v value, l *resourcev1.LoadBalancing) {
				l.PanicPercent = new(uint32)
				r.count(v, 100, l.PanicPercent)
			}},
	},
}

// defaultPanicPercent is half, which is what others have found (Envoy's is the same). Pools that say so have no message for it.
const defaultPanicPercent = 50

// PanicPercentOf is the share of a pool's backends, in a hundred, that has to be healthy for health checks to count.
func PanicPercentOf(l *resourcev1.LoadBalancing) uint32 {
	if l == nil || l.PanicPercent == nil {
		return defaultPanicPercent
	}
	return l.GetPanicPercent()
}

var hashSection = section[resourcev1.LoadBalancing]{
	form: "a mapping such as {on: header, name: X-User}",
	keys: []key[resourcev1.LoadBalancing]{
		{name: "on", form: "client_ip, header, cookie or path", initial: "client_ip", about: "client_ip: the address of the client, as X-Real-IP has it; header and cookie: the value of that of `name`, and the client's address where a request has none; path: without the query",
			read: func(r *reader, v value, l *resourcev1.LoadBalancing) {
				if word, ok := r.choice(v, []string{"client_ip", "header", "cookie", "path"}); ok {
					l.HashOn = resourcev1.HashOn(resourcev1.HashOn_value["HASH_ON_"+strings.ToUpper(word)])
				}
			}},
		{name: "name", form: "name of a header or cookie", about: "which header or cookie",
			read: func(r *reader, v value, l *resourcev1.LoadBalancing) {
				if name, ok := r.token(v, "a name such as X-User"); ok {
					l.HashName = name
				}
			}},
	},
}

// loadBalancing reads a load_balancing section. What is the default anyway is no message, whether it was written or not.
func (r *reader) loadBalancing(v value) (*resourcev1.LoadBalancing, bool) {
	before := r.errorCount()
	l := &resourcev1.LoadBalancing{}
	if !balancingSection.read(r, v, l) || r.errorCount() != before {
		return nil, false
	}
	if PanicPercentOf(l) == defaultPanicPercent {
		l.PanicPercent = nil
	}
	switch l.Policy {
	case resourcev1.BalancingPolicy_BALANCING_POLICY_RING_HASH, resourcev1.BalancingPolicy_BALANCING_POLICY_MAGLEV:
		if l.HashOn == resourcev1.HashOn_HASH_ON_UNSPECIFIED {
			l.HashOn = resourcev1.HashOn_HASH_ON_CLIENT_IP
		}
		return l, true
	}
	if l.HashOn != resourcev1.HashOn_HASH_ON_UNSPECIFIED {
		r.errorf(v, "hash is for the policies ring_hash and maglev: write one of them, or leave hash out")
		return nil, false
	}
	if l.Policy == resourcev1.BalancingPolicy_BALANCING_POLICY_UNSPECIFIED {
		l.Policy = resourcev1.BalancingPolicy_BALANCING_POLICY_ROUND_ROBIN
	}
	if l.Policy == resourcev1.BalancingPolicy_BALANCING_POLICY_ROUND_ROBIN && l.PanicPercent == nil {
		return nil, true
	}
	return l, true
}

// hash reads a hash section.
func (r *reader) hash(v value, l *resourcev1.LoadBalancing) {
	before := r.errorCount()
	if !hashSection.read(r, v, l) || r.errorCount() != before {
		return
	}
	switch l.HashOn {
	case resourcev1.HashOn_HASH_ON_HEADER:
		l.HashName = strings.ToLower(l.HashName)
		if l.HashName == "" {
			r.errorf(v, "on: header needs the header's name: write {on: header, name: X-User}")
		}
	case resourcev1.HashOn_HASH_ON_COOKIE:
		if l.HashName == "" {
			r.errorf(v, "on: cookie needs the cookie's name: write {on: cookie, name: session}")
		}
	default:
		if l.HashName != "" {
			r.errorf(v, "name is for on: header and on: cookie: write one of them, or leave name out")
		}
		if l.HashOn == resourcev1.HashOn_HASH_ON_UNSPECIFIED {
			l.HashOn = resourcev1.HashOn_HASH_ON_CLIENT_IP
		}
	}
}

// token reads a name as HTTP has it for header fields and cookies (RFC 9110 section 5.6.2, RFC 6265 section 4.1.1).
func (r *reader) token(v value, form string) (string, bool) {
	const longest = 256
	name, ok := r.text(v, form)
	if !ok {
		return "", false
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", c) {
			r.errorf(v, "%s cannot be the name of a header or cookie: write letters, digits, - and _", quote(name))
			return "", false
		}
	}
	if name == "" || len(name) > longest {
		r.errorf(v, "a name has 1 to %d characters: write %s", longest, form)
		return "", false
	}
	return name, true
}

// The bounds of slow starts.
const leastSlowStart, mostSlowStart = time.Second, time.Hour

// slowStart reads how long a slow start takes; none at all is no message.
func (r *reader) slowStart(v value) (*durationpb.Duration, bool) {
	d, ok := r.duration(v, 0, mostSlowStart)
	switch {
	case !ok:
		return nil, false
	case d == 0:
		return nil, true
	case d < leastSlowStart:
		r.errorf(v, "%s is too short to be of use: write 1s or more, or 0s for none", span(d))
		return nil, false
	}
	return durationpb.New(d), true
}
