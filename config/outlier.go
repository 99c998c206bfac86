package config

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// The bounds of ejections. One that is shorter than a request helps nobody, one of a day is a broken backend that somebody
// should take out of the document.
const (
	leastEjection, mostEjection             = 100 * time.Millisecond, 24 * time.Hour
	leastOutlierWindow, mostOutlierWindow   = time.Second, time.Hour
	mostConsecutive, mostMinimumRequests    = 10_000, 1_000_000
	defaultBaseEjection, defaultMaxEjection = 30 * time.Second, 5 * time.Minute
)

func defaultOutlierDetection() *resourcev1.OutlierDetection {
	return &resourcev1.OutlierDetection{
		ConsecutiveFailures: 5, BaseEjectionTime: durationpb.New(defaultBaseEjection), MaxEjectionPercent: 50,
		MinimumRequests: 20, Interval: durationpb.New(10 * time.Second), PanicPercent: 50,
	}
}

var outlierSection = section[resourcev1.OutlierDetection]{
	form: "a mapping such as {consecutive_failures: 5, base_ejection_time: 30s}",
	keys: []key[resourcev1.OutlierDetection]{
		{name: "consecutive_failures", form: "number, 0 to 10000", initial: "5", about: "so many failures in a row eject a backend; 0: none do",
			read: func(r *reader, v value, o *resourcev1.OutlierDetection) {
				r.count(v, mostConsecutive, &o.ConsecutiveFailures)
			}},
		{name: "failure_percent", form: "number, 0 to 100", initial: "0", about: "so many failures in a hundred requests eject a backend; 0: no share does",
			read: func(r *reader, v value, o *resourcev1.OutlierDetection) { r.count(v, 100, &o.FailurePercent) }},
		{name: "minimum_requests", form: "number, 0 to 1000000", initial: "20", about: "from how many requests within `interval` on `failure_percent` counts",
			read: func(r *reader, v value, o *resourcev1.OutlierDetection) {
				r.count(v, mostMinimumRequests, &o.MinimumRequests)
			}},
		{name: "interval", form: "time, 1s to 1h", initial: "10s", about: "over how long `failure_percent` is counted; for each such time without an ejection, the next one is shorter by `base_ejection_time`",
			read: func(r *reader, v value, o *resourcev1.OutlierDetection) {
				r.durationInto(v, leastOutlierWindow, mostOutlierWindow, &o.Interval)
			}},
		{name: "base_ejection_time", form: "time, 100ms to 24h", initial: "30s", about: "how long the first ejection lasts; the second lasts twice as long, and so on",
			read: func(r *reader, v value, o *resourcev1.OutlierDetection) {
				r.durationInto(v, leastEjection, mostEjection, &o.BaseEjectionTime)
			}},
		{name: "max_ejection_time", form: "time, 100ms to 24h", initial: "5m", about: "the longest ejection; where `base_ejection_time` is longer, as long as that",
			read: func(r *reader, v value, o *resourcev1.OutlierDetection) {
				r.durationInto(v, leastEjection, mostEjection, &o.MaxEjectionTime)
			}},
		{name: "max_ejection_percent", form: "number, 0 to 100", initial: "50", about: "at most so many in a hundred backends of the route are ejected at a time, rounded down: of one none, of three one",
			read: func(r *reader, v value, o *resourcev1.OutlierDetection) { r.count(v, 100, &o.MaxEjectionPercent) }},
		{name: "panic_percent", form: "number, 0 to 100", initial: "50", about: "where health checks and ejections would leave fewer than so many in a hundred backends, ejections do not count; 0: they always do",
			read: func(r *reader, v value, o *resourcev1.OutlierDetection) { r.count(v, 100, &o.PanicPercent) }},
	},
}

// outlierDetection reads an outlier_detection section; what it does not say is the default.
func (r *reader) outlierDetection(v value) (*resourcev1.OutlierDetection, bool) {
	before := r.errorCount()
	o := defaultOutlierDetection()
	outlierSection.read(r, v, o)
	if r.errorCount() != before {
		return nil, false
	}
	switch base := o.BaseEjectionTime.AsDuration(); {
	case o.MaxEjectionTime == nil:
		o.MaxEjectionTime = durationpb.New(max(base, defaultMaxEjection))
	case o.MaxEjectionTime.AsDuration() < base:
		r.errorf(v, "max_ejection_time is shorter than base_ejection_time, which is %s: write at least that, or leave it out", span(base))
		return nil, false
	}
	if o.ConsecutiveFailures == 0 && o.FailurePercent == 0 {
		r.warnf(v, "ejects no backend: write consecutive_failures or failure_percent, or leave the section out")
	}
	return o, true
}

// count reads a number from 0 on.
func (r *reader) count(v value, most uint32, into *uint32) {
	if n, ok := r.integer(v, 0, most); ok {
		*into = n
	}
}

func (r *reader) durationInto(v value, least, most time.Duration, into **durationpb.Duration) {
	if d, ok := r.duration(v, least, most); ok {
		*into = durationpb.New(d)
	}
}
