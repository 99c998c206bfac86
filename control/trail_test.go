package control

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pyserve/pyserve/control/audit"
)

// trail gives the outcomes that are kept of an actor's calls.
func trail(t *testing.T, c *Control, actor string) []string {
	t.Helper()
	anchor, entries := c.Audit()
	if err := audit.Verify(anchor, entries); err != nil {
		t.Error(err)
	}
	var out []string
	for _, e := range entries {
		if e.Actor == actor {
			out = append(out, e.Method+" "+e.What+": "+e.Outcome)
		}
	}
	return out
}

func TestFirstStartIsInTheTrail(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	if got := trail(t, c, "c1"); len(got) != 2 || !strings.HasPrefix(strings.Join(got, "\n"), "Start ") {
		t.Errorf("the trail holds %v", got)
	}
}

func TestEnrolmentIsInTheTrailAndCallersWithoutATokenAreNot(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	token, stored := createToken(t, c, TokenRequest{Pattern: "edge-*"})
	try := func(token, name string) {
		t.Helper()
		ctx, note := audit.Begin(t.Context(), "", "", "192.0.2.1:5", "Enroll")
		_, err := c.Enroll(ctx, token, name, requestFor(t, newKey(t)))
		if err != nil && note.Described() {
			c.Record(ctx, note, "", err.Error())
		}
	}
	try(token, "edge-1")
	try(token, "web-1")
	try(strings.Replace(token, "psj1", "psj2", 1), "edge-2")
	try("nonsense", "edge-3")
	if got := trail(t, c, "edge-1"); len(got) != 1 || got[0] != "Enroll token "+stored.ID+": done" {
		t.Errorf("the trail holds %v", got)
	}
	if got := trail(t, c, "web-1"); len(got) != 1 || !strings.Contains(got[0], "not for this name") {
		t.Errorf("the trail holds %v", got)
	}
	if _, entries := c.Audit(); len(entries) != 4 { // two of the start
		t.Errorf("the trail holds %v", entries)
	}
}

func TestRefusedCallsOfOneCallerDoNotFillTheTrail(t *testing.T) {
	clock := newClock()
	o := optionsFor(t.TempDir())
	o.Now = clock.Now
	c := start(t, o)
	refuse := func(who string) {
		ctx, note := audit.Begin(t.Context(), who, "viewer", "", "Apply")
		c.Record(ctx, note, who, "no")
	}
	for range 100 {
		refuse("eve")
	}
	refuse("alice")
	if got := len(trail(t, c, "eve")); got != refusalBurst {
		t.Errorf("%d are kept, want %d", got, refusalBurst)
	}
	if got := len(trail(t, c, "alice")); got != 1 {
		t.Errorf("another caller's: %d are kept", got)
	}
	clock.turn(3 * time.Minute)
	for range 100 {
		refuse("eve")
	}
	if got := len(trail(t, c, "eve")); got != refusalBurst+3 {
		t.Errorf("after three minutes %d are kept", got)
	}
}

func TestCallersWithoutNumberShareOneMeasure(t *testing.T) {
	var r refusals
	now := time.Now()
	for i := range maxRefusalKeys {
		r.take(fmt.Sprint(i), now)
	}
	kept := 0
	for i := range 100 {
		if r.take(fmt.Sprint("more", i), now) {
			kept++
		}
	}
	if kept != refusalBurst || len(r.spent) > maxRefusalKeys+1 {
		t.Errorf("%d are kept, %d are remembered", kept, len(r.spent))
	}
	if !r.take("later", now.Add(time.Hour)) || len(r.spent) > 10 {
		t.Errorf("%d are remembered for ever", len(r.spent))
	}
}
