package config

import (
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Timeouts are how long the parts of a route's requests may take. The zero value sets no limit to anything; what a route
// has that says nothing comes from [TimeoutsOf].
type Timeouts struct {
	// DNS, TCP and TLS to the backend. More than 0.
	Connect time.Duration
	// From the end of the request to the head of the answer. 0: no limit.
	ResponseHeader time.Duration
	// How long a body, the request's or the answer's, may stand still without a byte. 0: no limit.
	Idle time.Duration
	// The whole request, from its head to the last byte of the answer. 0: no limit.
	Request time.Duration
	// How long an upgraded connection may be without a byte either way. 0: no limit.
	WebSocketIdle time.Duration
}

// defaultTimeouts are those of a route whose document says nothing of them.
var defaultTimeouts = Timeouts{
	Connect:        5 * time.Second,
	ResponseHeader: time.Minute,
	Idle:           time.Minute,
	WebSocketIdle:  time.Hour,
}

// The bounds of timeouts. Less than a millisecond is finer than anybody's clock ticks, and could be rounded to 0, which
// means the opposite. A connect has to end: until then a request is tied to a backend that may not be there.
const (
	leastLimit, mostLimit = time.Millisecond, 366 * 24 * time.Hour
	mostConnect           = 10 * time.Minute
)

var timeoutsSection = section[Timeouts]{
	form: "a mapping such as {connect: 5s, response_header: 60s}",
	keys: []key[Timeouts]{
		{name: "connect", form: "time, 1ms to 10m", initial: "5s", about: "DNS, TCP and TLS to the backend",
			read: func(r *reader, v value, t *Timeouts) { r.connectTimeout(v, &t.Connect) }},
		{name: "response_header", form: "time, 1ms to 8784h, or 0s", initial: "60s", about: "from the end of the request to the head of the answer; 0s: no limit",
			read: func(r *reader, v value, t *Timeouts) { r.timeLimit(v, &t.ResponseHeader) }},
		{name: "idle", form: "time, 1ms to 8784h, or 0s", initial: "60s", about: "how long a body may stand still without a byte, upload or answer; 0s: no limit",
			read: func(r *reader, v value, t *Timeouts) { r.timeLimit(v, &t.Idle) }},
		{name: "request", form: "time, 1ms to 8784h, or 0s", initial: "0s", about: "the whole request, from its head to the last byte of the answer; 0s: no limit",
			read: func(r *reader, v value, t *Timeouts) { r.timeLimit(v, &t.Request) }},
		{name: "websocket_idle", form: "time, 1ms to 8784h, or 0s", initial: "1h", about: "how long an upgraded connection may be without a byte either way; 0s: no limit",
			read: func(r *reader, v value, t *Timeouts) { r.timeLimit(v, &t.WebSocketIdle) }},
	},
}

// timeouts reads a timeouts section; what it does not say is the default.
func (r *reader) timeouts(v value) (Timeouts, bool) {
	before := r.errorCount()
	t := defaultTimeouts
	timeoutsSection.read(r, v, &t)
	return t, r.errorCount() == before
}

func (r *reader) connectTimeout(v value, into *time.Duration) {
	if d, ok := r.duration(v, leastLimit, mostConnect); ok {
		*into = d
	}
}

// timeLimit reads a time, or 0 for none.
func (r *reader) timeLimit(v value, into *time.Duration) {
	d, ok := r.duration(v, 0, mostLimit)
	switch {
	case !ok:
	case d > 0 && d < leastLimit:
		r.errorf(v, "%s is out of range: write a time from %s to %s, or 0s for no limit", quote(v.node.Value), span(leastLimit), span(mostLimit))
	default:
		*into = d
	}
}

// timeoutField is where a timeout stands in each of its forms.
type timeoutField struct {
	name     string
	value    func(*Timeouts) *time.Duration
	resource func(*resourcev1.Timeouts) **durationpb.Duration
}

var timeoutFields = []timeoutField{
	{"connect", func(t *Timeouts) *time.Duration { return &t.Connect },
		func(m *resourcev1.Timeouts) **durationpb.Duration { return &m.Connect }},
	{"response_header", func(t *Timeouts) *time.Duration { return &t.ResponseHeader },
		func(m *resourcev1.Timeouts) **durationpb.Duration { return &m.ResponseHeader }},
	{"idle", func(t *Timeouts) *time.Duration { return &t.Idle },
		func(m *resourcev1.Timeouts) **durationpb.Duration { return &m.Idle }},
	{"request", func(t *Timeouts) *time.Duration { return &t.Request },
		func(m *resourcev1.Timeouts) **durationpb.Duration { return &m.Request }},
	{"websocket_idle", func(t *Timeouts) *time.Duration { return &t.WebSocketIdle },
		func(m *resourcev1.Timeouts) **durationpb.Duration { return &m.WebsocketIdle }},
}

// TimeoutsOf gives a route's timeouts, those that it does not set by their defaults; for nil, all defaults. The bounds
// are kept by [Parse]: a resource that comes from elsewhere is taken as it is.
func TimeoutsOf(route *resourcev1.Route) Timeouts {
	message := route.GetTimeouts()
	if message == nil {
		return defaultTimeouts // most routes: without the copy that is filled in below
	}
	t := defaultTimeouts
	for _, f := range timeoutFields {
		if d := *f.resource(message); d != nil {
			*f.value(&t) = d.AsDuration()
		}
	}
	return t
}

// resource gives the timeouts that differ from their defaults, nil where none does: what means the same is the same
// resource, and a bundle made before there were timeouts keeps its digest.
func (t Timeouts) resource() *resourcev1.Timeouts {
	if t == defaultTimeouts {
		return nil
	}
	own, out := t, new(resourcev1.Timeouts)
	for _, f := range timeoutFields {
		if d := *f.value(&own); d != *f.value(&defaultTimeouts) {
			*f.resource(out) = durationpb.New(d)
		}
	}
	return out
}

// timeoutDetails tells of the timeouts that changed. Of a route that was not there before it tells those that are not
// the defaults.
func timeoutDetails(first bool, a, b Timeouts) []string {
	if a == b {
		return nil
	}
	var details []string
	before, after := a, b
	for _, f := range timeoutFields {
		from, to := *f.value(&before), *f.value(&after)
		switch {
		case from == to:
		case first:
			details = append(details, "timeouts: "+f.name+" "+limitText(to))
		default:
			details = append(details, "timeouts: "+f.name+" "+limitText(from)+" → "+limitText(to))
		}
	}
	return details
}

func limitText(d time.Duration) string {
	if d == 0 {
		return "no limit"
	}
	return span(d)
}
