package config

import (
	"strings"
	"testing"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func outliersOf(t *testing.T, section string) (*resourcev1.OutlierDetection, string) {
	t.Helper()
	out, problems := parse([]byte(routeEntry("outlier_detection: "+section)), nil, today)
	if out == nil {
		return nil, joined(problems)
	}
	return out.Pools["/"].GetOutlierDetection(), joined(problems)
}

func TestOutlierDetection(t *testing.T) {
	want := defaultOutlierDetection()
	want.MaxEjectionTime = durationpb.New(5 * time.Minute)
	if got, problems := outliersOf(t, "{}"); !proto.Equal(got, want) || problems != "" {
		t.Errorf("an empty section is %v %s", got, problems)
	}
	want.ConsecutiveFailures, want.FailurePercent, want.MinimumRequests = 3, 20, 50
	want.Interval, want.BaseEjectionTime, want.MaxEjectionTime = durationpb.New(time.Minute), durationpb.New(10*time.Minute), durationpb.New(10*time.Minute)
	want.MaxEjectionPercent, want.PanicPercent = 30, 0
	got, problems := outliersOf(t, "{consecutive_failures: 3, failure_percent: 20, minimum_requests: 50, interval: 1m, base_ejection_time: 10m, max_ejection_percent: 30, panic_percent: 0}")
	if !proto.Equal(got, want) || problems != "" {
		t.Errorf("%v %s", got, problems)
	}
}

func TestOutlierDetectionProblems(t *testing.T) {
	for section, want := range map[string]string{
		"{max_ejection_percent: 101}":                      "101 is out of range",
		"{consecutive_failures: 0}":                        "ejects no backend",
		"{base_ejection_time: 10m, max_ejection_time: 1m}": "shorter than base_ejection_time, which is 10m",
		"{base_ejection_tim: 10m}":                         "did you mean base_ejection_time?",
		"5":                                                "write a mapping such as {consecutive_failures: 5",
		"{interval: 10ms}":                                 `"10ms" is out of range`,
	} {
		if _, problems := outliersOf(t, section); !strings.Contains(problems, want) {
			t.Errorf("%s: %q does not say %q", section, problems, want)
		}
	}
}
