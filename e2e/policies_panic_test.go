package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// failsOpen lets two of three backends fail their health check, and then the third.
func (b bench) failsOpen(t *testing.T, n *daemon) {
	client := newClient(t, nil, false)
	sick := []*backend{b.backends["a"], b.backends["b"]}
	defer func() {
		for _, one := range b.backends {
			one.setSick(false)
		}
		for _, one := range b.backends {
			b.backendShows(one.address(), "healthy")
		}
	}()
	for _, one := range sick {
		one.setSick(true)
	}
	eventually(t, "get backends shows which unhealthy backends are used", func() string {
		rows := b.cluster.backends()
		for _, row := range rows {
			down := row.Address != b.backends["c"].address()
			if (row.State == "unhealthy") != down || row.FailOpen != (down && row.Route == "/") {
				return fmt.Sprintf("%+v", rows)
			}
		}
		return ""
	})
	b.ctl("get", "backends").wants(t, 0, "used all the same: too few are healthy")
	eventually(t, n.name+" uses all three for / and one for /strict", func() string {
		by := map[string]map[string]int{"/": {}, "/strict": {}}
		for path := range by {
			for range 30 {
				by[path][get(t, client, "http://"+n.listen+path).seen(t).Backend]++
			}
		}
		if by["/"]["a"] != 10 || by["/"]["b"] != 10 || by["/strict"]["c"] != 30 {
			return fmt.Sprint(by)
		}
		metrics := get(t, client, "http://"+n.admin+"/metrics").body
		for _, line := range []string{`pyserve_route_fails_open{route="/"} 1`, `pyserve_route_fails_open{route="/strict"} 0`} {
			if !strings.Contains(metrics, line+"\n") {
				return "the metrics have no " + line
			}
		}
		return ""
	})
	if e := b.explain(0, "GET", "/x", "--node", n.name); !strings.Contains(e.Reason, "too few of its backends are healthy, so all are used") {
		t.Errorf("explained with %q", e.Reason)
	}
	b.backends["c"].setSick(true)
	eventually(t, n.name+" has no healthy backend", func() string {
		r := get(t, client, "http://"+n.listen+"/")
		if r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "" {
			return fmt.Sprintf("%d %v", r.status, r.header)
		}
		return ""
	})
}
