package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// What a health check does where the document says nothing else.
const (
	defaultInterval           = 5 * time.Second
	defaultTimeout            = 2 * time.Second
	defaultHealthyThreshold   = 2
	defaultUnhealthyThreshold = 3
)

// The bounds of a health check. A shorter interval would be an attack on the backends, a longer one no check at all.
const (
	leastInterval, mostInterval = 100 * time.Millisecond, time.Hour
	leastTimeout                = 10 * time.Millisecond
	mostThreshold               = 100
	// longestExpectedBody is how many bytes of a body may be asked for: every probe looks for them.
	longestExpectedBody = 1 << 10
)

// checkSettings are the health_check section as written.
type checkSettings struct {
	kind, path         option[string]
	interval, timeout  option[time.Duration]
	healthy, unhealthy option[uint32]
	statuses           option[[]*resourcev1.StatusRange]
	body               option[string]
}

var healthCheckSection = section[checkSettings]{
	form: "a mapping such as {type: http, path: /healthz}",
	keys: []key[checkSettings]{
		{name: "type", form: "tcp, http, grpc, websocket or none", initial: "tcp", about: "tcp: a connection opens (with `ssl`: the handshake succeeds); http: GET `path` gives an expected status; grpc: the gRPC health service says SERVING; websocket: a WebSocket opens at `path` and a ping is answered; none: no probes, always healthy",
			read: func(r *reader, v value, s *checkSettings) {
				take(&s.kind, v, func(v value) (string, bool) {
					return r.choice(v, []string{"tcp", "http", "grpc", "websocket", "none"})
				})
			}},
		{name: "path", form: "path, with a query if need be", initial: "/", about: "what is asked for, with type http and websocket; with type grpc `/` and the name of a service, such as `/shop.Cart`: the server as a whole without it",
			read: func(r *reader, v value, s *checkSettings) { take(&s.path, v, r.probePath) }},
		{name: "interval", form: "time, 100ms to 1h", initial: "5s", about: "from one probe of a backend to the next",
			read: func(r *reader, v value, s *checkSettings) { take(&s.interval, v, r.interval) }},
		{name: "timeout", form: "time, 10ms to `interval`", initial: "2s", about: "how long a probe may take; where `interval` is shorter than 2s, as long as that",
			read: func(r *reader, v value, s *checkSettings) { take(&s.timeout, v, r.probeTimeout) }},
		{name: "healthy_threshold", form: "number, 1 to 100", initial: "2", about: "successes in a row that make an unhealthy backend healthy",
			read: func(r *reader, v value, s *checkSettings) { take(&s.healthy, v, r.threshold) }},
		{name: "unhealthy_threshold", form: "number, 1 to 100", initial: "3", about: "failures in a row that make a healthy backend unhealthy",
			read: func(r *reader, v value, s *checkSettings) { take(&s.unhealthy, v, r.threshold) }},
		{name: "expected_status", form: "statuses and ranges", initial: `"200-399"`, about: "such as 200, \"200,204\" or \"200-299,404\"; only with type http",
			read: func(r *reader, v value, s *checkSettings) { take(&s.statuses, v, r.statuses) }},
		{name: "expected_body", form: "text, at most 1 KiB", about: "what the first 64 KiB of the answer's body have to hold, to the letter; only with type http. Without it the body does not matter",
			read: func(r *reader, v value, s *checkSettings) { take(&s.body, v, r.expectedBody) }},
	},
}

func (r *reader) interval(v value) (time.Duration, bool) {
	return r.duration(v, leastInterval, mostInterval)
}

func (r *reader) probeTimeout(v value) (time.Duration, bool) {
	return r.duration(v, leastTimeout, mostInterval)
}

func (r *reader) threshold(v value) (uint32, bool) { return r.integer(v, 1, mostThreshold) }

// defaultHealthCheck is what backends are probed by where nothing is said.
func defaultHealthCheck() *resourcev1.HealthCheck {
	return &resourcev1.HealthCheck{
		Type:               resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP,
		Interval:           durationpb.New(defaultInterval),
		Timeout:            durationpb.New(defaultTimeout),
		HealthyThreshold:   defaultHealthyThreshold,
		UnhealthyThreshold: defaultUnhealthyThreshold,
	}
}

// healthCheck reads a health_check section.
func (r *reader) healthCheck(v value) (*resourcev1.HealthCheck, bool) {
	before := r.errorCount()
	var s checkSettings
	if !healthCheckSection.read(r, v, &s) {
		return nil, false
	}
	kind := s.kind.or("tcp")
	s.refuseKeys(r, kind)
	if kind == "none" {
		s.warnOfUnused(r)
		return &resourcev1.HealthCheck{Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_NONE}, r.errorCount() == before
	}
	interval := s.interval.or(defaultInterval)
	timeout := s.timeout.or(min(defaultTimeout, interval))
	if timeout > interval {
		r.errorf(s.timeout.at, "%s is longer than the interval: write at most %s", span(timeout), span(interval))
	}
	check := &resourcev1.HealthCheck{
		Type:               resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP,
		Interval:           durationpb.New(interval),
		Timeout:            durationpb.New(timeout),
		HealthyThreshold:   s.healthy.or(defaultHealthyThreshold),
		UnhealthyThreshold: s.unhealthy.or(defaultUnhealthyThreshold),
	}
	switch kind {
	case "http":
		check.Type = resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_HTTP
		check.Path = s.path.or("/")
		check.ExpectedStatuses = s.statuses.or([]*resourcev1.StatusRange{{First: 200, Last: 399}})
		check.ExpectedBody = s.body.value
	case "grpc":
		check.Type = resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_GRPC
		if path := s.path.or("/"); path != "/" {
			check.Path = path
			r.grpcService(s.path.at, path)
		}
	case "websocket":
		check.Type = resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_WEBSOCKET
		check.Path = s.path.or("/")
		r.escapes(s.path.at, check.Path)
	}
	return check, r.errorCount() == before
}

// refuseKeys refuses what other types of check are made of.
func (s *checkSettings) refuseKeys(r *reader, kind string) {
	if s.path.isSet() && (kind == "tcp" || kind == "none") {
		r.errorf(s.path.at, "is for type: http, grpc and websocket, and the type is %s: write one of those, or leave it out", kind)
	}
	for _, at := range []place{s.statuses.at, s.body.at} {
		if at.isSet() && kind != "http" {
			r.errorf(at, "is for type: http, and the type is %s: write type: http, or leave it out", kind)
		}
	}
}

// grpcService looks at a path that names a service of gRPC. Any name may be registered there, so what is refused is what was
// meant to be something else: a method, a query, an escape that nobody would undo.
func (r *reader) grpcService(at place, path string) {
	name := path[1:]
	if service, _, method := strings.Cut(name, "/"); method && service != "" {
		r.errorf(at, `%s is more than the name of a service: write "/%s"`, quote(path), service)
	} else if strings.ContainsAny(name, "/?%") {
		r.errorf(at, `%s does not name a service of gRPC: write "/" and its name, such as "/shop.Cart"`, quote(path))
	}
}

// escapes looks at the percent-encoding of a path, which type http sends as it is and the WebSocket client takes apart.
func (r *reader) escapes(at place, path string) {
	if _, err := url.ParseRequestURI(path); err != nil {
		r.errorf(at, "%s has a %% that two hexadecimal digits do not follow: write %%25", quote(path))
	}
}

func (s *checkSettings) warnOfUnused(r *reader) {
	for _, at := range []place{s.interval.at, s.timeout.at, s.healthy.at, s.unhealthy.at} {
		if at.isSet() {
			r.warnf(at, "is not used: type none probes nothing")
		}
	}
}

// probePath reads the target of a probe's request.
func (r *reader) probePath(v value) (string, bool) {
	path, ok := r.text(v, `a path such as "/healthz"`)
	if !ok {
		return "", false
	}
	notTarget := func(c rune) bool { return c <= ' ' || c >= 0x7F || c == '#' }
	switch {
	case !strings.HasPrefix(path, "/"):
		r.errorf(v, `%s does not begin with "/": write a path such as "/healthz"`, quote(path))
	case strings.ContainsFunc(path, notTarget):
		r.errorf(v, "%s has characters that cannot stand in a request: write them percent-encoded", quote(path))
	case len(path) > longestPath:
		r.errorf(v, "the path has %d bytes: write at most %d", len(path), longestPath)
	default:
		return path, true
	}
	return "", false
}

// expectedBody reads what a body has to hold.
func (r *reader) expectedBody(v value) (string, bool) {
	text, ok := r.text(v, `a text such as "ready"`)
	switch {
	case !ok:
	case text == "":
		r.errorf(v, `nothing stands here, which every body holds: write a text such as "ready", or leave the key out`)
	case len(text) > longestExpectedBody:
		r.errorf(v, "the text has %d bytes: write at most %d", len(text), longestExpectedBody)
	default:
		return text, true
	}
	return "", false
}

// statuses reads "200-299,404" into ranges that are sorted and do not touch, so that what means the same is the same.
func (r *reader) statuses(v value) ([]*resourcev1.StatusRange, bool) {
	const form = `statuses such as 200, "200,204" or "200-399"`
	text, ok := r.text(v, form)
	if !ok {
		return nil, false
	}
	var ranges []*resourcev1.StatusRange
	for part := range strings.SplitSeq(text, ",") {
		one, err := parseStatusRange(strings.TrimSpace(part))
		if err != nil {
			r.errorf(v, "%s: write %s", err, form)
			return nil, false
		}
		ranges = append(ranges, one)
	}
	slices.SortFunc(ranges, func(a, b *resourcev1.StatusRange) int { return cmp.Compare(a.First, b.First) })
	merged := ranges[:1]
	for _, next := range ranges[1:] {
		if last := merged[len(merged)-1]; next.First <= last.Last+1 {
			last.Last = max(last.Last, next.Last)
		} else {
			merged = append(merged, next)
		}
	}
	return merged, true
}

func parseStatusRange(text string) (*resourcev1.StatusRange, error) {
	from, to, ranged := strings.Cut(text, "-")
	if !ranged {
		to = from
	}
	first, err1 := strconv.ParseUint(from, 10, 32)
	last, err2 := strconv.ParseUint(to, 10, 32)
	switch {
	case errors.Join(err1, err2) != nil:
		return nil, fmt.Errorf("%s is no status", quote(text))
	case first < 100 || last > 599:
		return nil, fmt.Errorf("%s is no status, which is from 100 to 599", quote(text))
	case first > last:
		return nil, fmt.Errorf("%s ends before it begins", quote(text))
	}
	return &resourcev1.StatusRange{First: uint32(first), Last: uint32(last)}, nil
}
