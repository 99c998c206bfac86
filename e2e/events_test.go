package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

type happening struct {
	Sequence uint64 `json:"sequence"`
	Time     string `json:"time"`
	Kind     string `json:"kind"`
	Subject  string `json:"subject"`
	Message  string `json:"message"`
}

// events reads what `pyservectl events -o json` has printed, a line for each.
func events(t *testing.T, text string) (all []happening) {
	t.Helper()
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") {
			break // still being written
		}
		var e happening
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("not an event: %v: %q", err, line)
		}
		all = append(all, e)
	}
	return all
}

// TestEventsTellAStory follows a cluster through a bad day.
func TestEventsTellAStory(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	follow := launch(t, command{name: "events -f", program: programs.pyservectl, args: []string{"--context", c.admin(), "events", "-f", "-o", "json"}, dir: c.dir})
	told := func(kind, subject, message string) {
		t.Helper()
		eventually(t, fmt.Sprintf("events tell of %s %s", kind, subject), func() string {
			all := events(t, follow.stdout.String())
			if slices.ContainsFunc(all, func(e happening) bool {
				return e.Kind == kind && e.Subject == subject && strings.Contains(e.Message, message)
			}) {
				return ""
			}
			return fmt.Sprintf("%+v", all)
		})
	}
	told("control-started", "control", "nothing was applied yet")
	told("node-enrolled", "n1", "")
	told("node-connected", "n1", "serving nothing yet")

	backend, closeBackend := hold(t) // its probe is a connection
	listen := freePort(t)
	probed := func(path string, listen int) string {
		return fmt.Sprintf("server:\n  host: 127.0.0.1\n  port: %d\n  reverse_proxy:\n    - {path: %s, host: 127.0.0.1, port: %d, health_check: {interval: 200ms, unhealthy_threshold: 1, healthy_threshold: 1}}\n", listen, path, port(backend))
	}
	c.apply(probed("/one", listen), "--message", "the first").must(t, 0)
	told("revision-applied", "revision 1", "by admin: the first")
	c.mustApply(probed("/two", listen))
	c.ctl("rollback").must(t, 0)
	told("revision-rolled-back", "revision 3", "rollback to revision 1")

	n2 := c.addNode("n2")
	c.start(n2)
	told("node-connected", "n2", "")
	c.converged()
	n2.kill()
	told("node-disconnected", "n2", "its stream is gone")
	c.start(n2)
	told("node-connected", "n2", "serving revision 3")
	n2.stop(t)
	told("node-left", "n2", "")

	closeBackend()
	told("backend-down", backend, "node n1: connection refused; route /one")

	// A node that takes its port from the document, where somebody has it.
	taken, release := hold(t)
	defer release()
	n3 := c.addNode("n3")
	n3.listen = ""
	c.start(n3)
	told("node-connected", "n3", "")
	c.apply(probed("/three", port(taken))).wants(t, 1)
	told("node-refused", "n3", "server.port")
	told("revision-refused", "revision 4", "node n3 refuses it")

	all := events(t, follow.stdout.String())
	for i, e := range all {
		if at, err := time.Parse(time.RFC3339, e.Time); e.Sequence != uint64(i+1) || err != nil || time.Since(at) > time.Hour {
			t.Errorf("event %d is %+v", i, e)
		}
	}
	follow.stop(t)
	c.ctl("events").wants(t, 0, "TIME", "KIND", "SUBJECT", "MESSAGE", "revision-applied", "by admin: the first")
	if got := events(t, c.ctl("events", "--limit", "2", "-o", "json").wants(t, 0).stdout); len(got) != 2 || got[1].Sequence < 10 {
		t.Errorf("the last two are %+v", got)
	}
}
