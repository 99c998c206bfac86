package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// TestAnEjectionIsKnownEverywhere lets one backend fail what it is asked. Two of three nodes find out, and the third goes by what they
// say: it sends the backend nothing.
func TestAnEjectionIsKnownEverywhere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3")
	var asked atomic.Int64
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(bad.Close)
	address, good := bad.Listener.Addr().String(), newBackend(t, "good")
	c.mustApply(fmt.Sprintf(`server:
  reverse_proxy:
    - path: /
      backends: [{host: 127.0.0.1, port: %d}, {host: 127.0.0.1, port: %d}]
      health_check: {type: none}
      outlier_detection: {consecutive_failures: 5, base_ejection_time: 1h, max_ejection_time: 1h}
`, bad.Listener.Addr().(*net.TCPAddr).Port, good.port))
	for _, n := range c.nodes[:2] {
		client := newClient(t, nil, false)
		before := asked.Load()
		eventually(t, n.name+" ejects the backend", func() string {
			for range 12 {
				get(t, client, "http://"+n.listen+"/")
			}
			at := asked.Load()
			if get(t, client, "http://"+n.listen+"/"); asked.Load() != at {
				return "it is still asked"
			}
			if get(t, client, "http://"+n.listen+"/"); asked.Load() != at {
				return "it is still asked"
			}
			return ""
		})
		if lost := asked.Load() - before; lost > 5 {
			t.Errorf("%s has lost %d requests, want no more than 5", n.name, lost)
		}
	}
	if row := c.backendShows(address, "ejected"); row.Since == "" || row.Reason == "" {
		t.Errorf("%+v", row)
	}
	eventually(t, "all three nodes say so", func() string {
		r := c.ctl("get", "backends", "-o", "json").must(t, 0)
		if !strings.Contains(r.stdout, `"ejected"`) || strings.Contains(r.stdout, `"nodes"`) { // which tells where they differ
			return r.stdout
		}
		return ""
	})
	before, client := asked.Load(), newClient(t, nil, false)
	for range 20 {
		if r := get(t, client, "http://"+c.nodes[2].listen+"/"); r.status != http.StatusOK {
			t.Fatalf("n3 answers %d", r.status)
		}
	}
	if lost := asked.Load() - before; lost != 0 {
		t.Errorf("n3 has lost %d requests", lost)
	}
}
