package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestAHungNodeIsNamed stops a node without ending it: its stream stays, and it says nothing.
func TestAHungNodeIsNamed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	c.mustApply(route("/one", b.port))
	c.node("n2").signal(t, syscall.SIGSTOP)
	c.apply(route("/two", b.port), "--timeout", "1s").wants(t, 1, "node n2", "in time", "nothing was changed", "revision 1")
	client := newClient(t, nil, false)
	get(t, client, "http://"+c.node("n1").listen+"/one/x").seen(t)
	c.node("n2").signal(t, syscall.SIGCONT)
	c.converged()
	c.apply(route("/two", b.port)).must(t, 0, "served by 2 nodes")
	get(t, client, "http://"+c.node("n2").listen+"/two/x").seen(t)
}

// TestAppliesAtTheSameTime come one after the other: each is done or refused, and all nodes end with the last.
func TestAppliesAtTheSameTime(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	const many = 6
	results := make([]result, many)
	var running sync.WaitGroup
	for i := range many {
		file := c.write(fmt.Sprintf("at-once-%d.yaml", i), route(fmt.Sprintf("/r%d", i), b.port))
		running.Go(func() { results[i] = c.ctl("apply", "-o", "json", file) })
	}
	running.Wait()
	applied := uint64(0)
	for _, r := range results {
		r.wants(t, 0)
		if decode(t, r)["outcome"] == "applied" {
			applied++
		}
	}
	s := c.status()
	if s.Revision != applied || applied != many || !s.Converged {
		t.Errorf("%d of %d were applied, and the status is %+v", applied, many, s)
	}
}

// TestALargeDocument has more routes than one message carries, and a change of it is a small one.
func TestALargeDocument(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	const routes = 10_000
	var document strings.Builder
	document.WriteString("server:\n  reverse_proxy:\n")
	for i := range routes {
		fmt.Fprintf(&document, "    - {path: /shop-%05d/of-somebody-with-a-long-name, host: 127.0.0.1, port: %d}\n", i, b.port)
	}
	c.apply(document.String(), "-o", "json").must(t, 0, `"applied"`)
	client := newClient(t, nil, false)
	check := func(path string) {
		t.Helper()
		for _, n := range c.nodes {
			get(t, client, "http://"+n.listen+path).seen(t)
		}
	}
	check("/shop-00000/of-somebody-with-a-long-name/x")
	check(fmt.Sprintf("/shop-%05d/of-somebody-with-a-long-name/x", routes-1))
	var list struct {
		Routes []struct {
			Path string `json:"path"`
		} `json:"routes"`
	}
	if err := json.Unmarshal([]byte(c.ctl("get", "routes", "-o", "json").must(t, 0).stdout), &list); err != nil || len(list.Routes) != routes {
		t.Errorf("get routes gives %d routes: %v", len(list.Routes), err)
	}
	if rows := c.backends(); len(rows) != routes {
		t.Errorf("get backends gives %d rows", len(rows))
	}
	if r := c.ctl("get", "config").wants(t, 0); r.stdout != document.String() {
		t.Errorf("get config gives %d bytes, %d were applied", len(r.stdout), document.Len())
	}
	r := c.apply(document.String()+fmt.Sprintf("    - {path: /one-more, host: 127.0.0.1, port: %d}\n", b.port)).must(t, 0, "+ route /one-more created")
	if lines := strings.Count(r.stdout, "\n"); lines > 10 {
		t.Errorf("one more route is told in %d lines", lines)
	}
	check("/one-more/x")
	// From the disk, too.
	n1 := c.node("n1")
	n1.kill()
	c.start(n1)
	c.ready(n1)
	check("/one-more/x")
}
