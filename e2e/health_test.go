package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestABackendIsKilledUnderLoad kills one of two backends with -9: clients see nothing of it, the operator does.
func TestABackendIsKilledUnderLoad(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	portA, portB := freePort(t), freePort(t)
	a := backendProcess(t, "a", portA)
	backendProcess(t, "b", portB)
	c.mustApply(fmt.Sprintf(`
server:
  reverse_proxy:
    - path: /
      backends:
        - {host: 127.0.0.1, port: %d}
        - {host: 127.0.0.1, port: %d}
      health_check: {type: http, path: /healthz, interval: 200ms, timeout: 150ms, healthy_threshold: 2, unhealthy_threshold: 2}
`, portA, portB))
	c.backendShows(local(portA), "healthy")
	c.backendShows(local(portB), "healthy")

	l := startLoad(t, c.listens(), "/x", 4, 0)
	l.reaches(t, 500)
	for round := range 2 {
		before := l.answeredBy("a")
		l.reaches(t, 500)
		if l.answeredBy("a") == before {
			t.Errorf("round %d: a got nothing while it was healthy", round)
		}
		a.kill()
		dead := c.backendShows(local(portA), "unhealthy")
		if dead.Route != "/" || !strings.Contains(dead.Reason, "refused") || dead.Since == "" {
			t.Errorf("the row of a dead backend: %+v", dead)
		}
		c.ctl("get", "backends").wants(t, 0, "unhealthy", dead.Reason)
		c.backendShows(local(portB), "healthy")
		after := l.answeredBy("a")
		l.reaches(t, 500)
		if l.answeredBy("a") != after {
			t.Error("a dead backend answered")
		}
		a = backendProcess(t, "a", portA)
		if back := c.backendShows(local(portA), "healthy"); back.Reason != "" {
			t.Errorf("a healthy backend has a reason: %+v", back)
		}
	}
	l.reaches(t, 500)
	l.finish(t)
}

// TestASickBackendLeavesAndReturns answers probes with 500: it is alive, and not healthy.
func TestASickBackendLeavesAndReturns(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	b := newBackend(t, "b")
	client := newClient(t, nil, false)
	url := "http://" + c.nodes[0].listen + "/x"
	c.mustApply(fmt.Sprintf(`
server:
  reverse_proxy:
    - path: /
      host: 127.0.0.1
      port: %d
      health_check: {type: http, path: /healthz, interval: 100ms, timeout: 100ms, healthy_threshold: 2, unhealthy_threshold: 2}
`, b.port))
	c.backendShows(b.address(), "healthy")
	get(t, client, url).seen(t)

	b.setSick(true)
	if sick := c.backendShows(b.address(), "unhealthy"); !strings.Contains(sick.Reason, "500") {
		t.Errorf("the reason is %q", sick.Reason)
	}
	r := get(t, client, url, "Accept", "application/json")
	if r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "" || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("without a healthy backend: %d %v %s", r.status, r.header, r.body)
	}
	if strings.Contains(r.body, b.address()) {
		t.Errorf("the client is told of the backend: %s", r.body)
	}
	if code := probe(c.nodes[0].admin, "/readyz"); code != http.StatusOK {
		t.Errorf("a node whose backends are sick is ready all the same; /readyz says %d", code)
	}

	b.setSick(false)
	c.backendShows(b.address(), "healthy")
	get(t, client, url).seen(t)
}

// TestHealthOutlivesAnApply: a backend that is known to be dead stays so when another route changes.
func TestHealthOutlivesAnApply(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	b, gone := newBackend(t, "b"), freePort(t)
	client := newClient(t, nil, false)
	document := func(extra string) string {
		return fmt.Sprintf(`
server:
  reverse_proxy:
    - path: /api
      backends:
        - {host: 127.0.0.1, port: %d}
        - {host: 127.0.0.1, port: %d}
      health_check: {type: tcp, interval: 200ms, timeout: 150ms, unhealthy_threshold: 2}
%s`, b.port, gone, extra)
	}
	c.mustApply(document(""))
	dead := c.backendShows(local(gone), "unhealthy")
	socket := dialWebSocket(t, "ws://"+c.nodes[0].listen+"/api/ws", nil)
	for i := range 3 {
		c.mustApply(document(fmt.Sprintf("    - {path: /other%d, host: 127.0.0.1, port: %d}\n", i, b.port)))
		for _, row := range c.backends() {
			if row.Address == local(gone) && (row.State != "unhealthy" || row.Since != dead.Since) {
				t.Errorf("after an apply that did not concern it: %+v, before: %+v", row, dead)
			}
		}
		get(t, client, "http://"+c.nodes[0].listen+"/api/x").seen(t)
		exchange(t, socket, 1, []byte("still here"))
	}
}
