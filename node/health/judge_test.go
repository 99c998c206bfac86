package health

import (
	"strings"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"pgregory.net/rapid"
)

// Each story is a row of results, "." for a success and a letter for a failure, with the verdict after each below it:
// "?" unknown, "+" healthy, otherwise the letter of the reason.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name             string
		healthy          uint32
		unhealthy        uint32
		results, verdict string
	}{
		{"the first success decides", 2, 3, ".", "+"},
		{"the first failure decides", 2, 3, "a", "a"},
		{"failures up to the threshold", 2, 3, ".aaa", "+++a"},
		{"a success between starts the count again", 2, 3, ".aa.aaa", "++++++a"},
		{"successes up to the threshold", 2, 3, "a..", "aa+"},
		{"a failure between starts the count again", 2, 3, "a.a..", "aaaa+"},
		{"the newest reason counts", 2, 3, "aba", "aba"},
		{"the reason that crossed the threshold", 2, 3, ".abc", "+++c"},
		{"thresholds of one", 1, 1, ".a.a", "+a+a"},
		{"thresholds left out are one", 0, 0, ".a.a", "+a+a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := newJudge(&resourcev1.HealthCheck{HealthyThreshold: c.healthy, UnhealthyThreshold: c.unhealthy}, upstream.Verdict{})
			var got strings.Builder
			for i, r := range c.results {
				before := j.verdict
				changed := j.observe(strings.TrimLeft(string(r), "."), time.Unix(int64(i), 0))
				if moved := before != j.verdict; moved != changed {
					t.Errorf("result %d: changed is %v, from %v to %v", i, changed, before, j.verdict)
				}
				if stateMoved := before.State != j.verdict.State; stateMoved != j.verdict.Since.Equal(time.Unix(int64(i), 0)) {
					t.Errorf("result %d: since %v, the state changed: %v", i, j.verdict.Since, stateMoved)
				}
				got.WriteString(letter(j.verdict))
			}
			if got.String() != c.verdict {
				t.Errorf("results %s give %s, want %s", c.results, got.String(), c.verdict)
			}
		})
	}
}

func letter(v upstream.Verdict) string {
	switch v.State {
	case upstream.Unknown:
		return "?"
	case upstream.Healthy:
		return "+" + v.Reason // which must be empty
	default:
		return v.Reason
	}
}

// Whatever the results, the state is that of the last run of equal ones that was long enough.
func TestJudgeFollowsTheLastLongEnoughRun(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		up, down := rapid.Uint32Range(1, 4).Draw(t, "up"), rapid.Uint32Range(1, 4).Draw(t, "down")
		j := newJudge(&resourcev1.HealthCheck{HealthyThreshold: up, UnhealthyThreshold: down}, upstream.Verdict{})
		want, run, last := upstream.Unknown, uint32(0), false
		for i, ok := range rapid.SliceOfN(rapid.Bool(), 1, 40).Draw(t, "results") {
			if i == 0 || ok != last {
				run = 0
			}
			run, last = run+1, ok
			reason := ""
			if !ok {
				reason = "down"
			}
			switch {
			case ok && (i == 0 || run >= up):
				want = upstream.Healthy
			case !ok && (i == 0 || run >= down):
				want = upstream.Unhealthy
			}
			j.observe(reason, time.Time{})
			if j.verdict.State != want {
				t.Fatalf("result %d: %v, want %v", i, j.verdict.State, want)
			}
		}
	})
}
