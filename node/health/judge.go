package health

import (
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// judge makes verdicts of results. It is pure: one goroutine drives it, and time comes in by hand.
type judge struct {
	verdict upstream.Verdict
	// Results in a row that speak against the verdict, and how many it takes.
	against                      uint32
	healthyAfter, unhealthyAfter uint32
}

func newJudge(c *resourcev1.HealthCheck, v upstream.Verdict) *judge {
	return &judge{
		verdict:        v,
		healthyAfter:   max(1, c.GetHealthyThreshold()),
		unhealthyAfter: max(1, c.GetUnhealthyThreshold()),
	}
}

// observe takes in one result: a reason for failure, or nothing for success. It says whether the verdict changed, in its
// state or in the reason for the same state.
func (j *judge) observe(reason string, now time.Time) (changed bool) {
	state, enough := upstream.Healthy, j.healthyAfter
	if reason != "" {
		state, enough = upstream.Unhealthy, j.unhealthyAfter
	}
	if state == j.verdict.State {
		j.against = 0
		changed = reason != j.verdict.Reason
		j.verdict.Reason = reason
		return changed
	}
	j.against++
	if j.verdict.State != upstream.Unknown && j.against < enough {
		return false
	}
	j.against = 0
	j.verdict = upstream.Verdict{State: state, Reason: reason, Since: now}
	return true
}
