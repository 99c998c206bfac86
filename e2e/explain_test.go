package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

type explanation struct {
	Route   string `json:"route"`
	Forward *struct {
		Method string `json:"method"`
		Path   string `json:"path"`
		Host   string `json:"host"`

		Headers []string `json:"headers"`
	} `json:"forward"`
	Backends []string `json:"backends"`
	Reason   string   `json:"reason"`
	Status   int      `json:"status"`
	Node     string   `json:"node"`
}

func (c *cluster) explain(code int, args ...string) (e explanation) {
	c.t.Helper()
	r := c.ctl(append([]string{"explain", "-o", "json"}, args...)...).wants(c.t, code)
	if err := json.Unmarshal([]byte(r.stdout), &e); err != nil {
		c.t.Fatalf("explain -o json: %v\n%s%s", err, r.stdout, r.stderr)
	}
	return e
}

// TestExplainTellsWhatHappens compares what a node says that it would do with what its backend then gets.
func TestExplainTellsWhatHappens(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2")
	b := newBackend(t, "b")
	client := newClient(t, nil, false)
	c.ctl("explain", "GET", "http://a/").wants(t, 2, "no node that serves a configuration is connected")
	c.mustApply(fmt.Sprintf(`server:
  host: 127.0.0.1
  reverse_proxy:
    - {path: /api, host: 127.0.0.1, port: %[1]d}
    - {path: /kept, host: 127.0.0.1, port: %[1]d, strip_path: false, preserve_host: true}
    - {path: /named, hosts: [shop.example.com], host: 127.0.0.1, port: %[1]d}
    - {path: /dead, host: 127.0.0.1, port: %[2]d, health_check: {interval: 200ms, unhealthy_threshold: 1}}
`, b.port, freePort(t)))

	for _, path := range []string{"/api/users?x=1&y=%20", "/api/./a/../b%2Fc//", "/kept/x?", "/api"} {
		for _, n := range c.nodes {
			e := c.explain(0, "GET", "http://"+n.listen+path, "--node", n.name)
			got := get(t, client, "http://"+n.listen+path).seen(t)
			if e.Forward == nil || e.Forward.Method != "GET" || e.Forward.Path != got.URI || e.Forward.Host != got.Host || e.Node != n.name {
				t.Errorf("%s: explained as %+v, and the backend saw %+v", path, e, got)
			}
			if len(e.Backends) != 1 || e.Backends[0] != b.address() || e.Route != "/"+strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == '?' })[0] {
				t.Errorf("%s: %+v", path, e)
			}
		}
	}
	wantKeys(t, "explain", decode(t, c.ctl("explain", "GET", "/api", "-o", "json").wants(t, 0)), "route", "forward", "backends", "reason")
	if e := c.explain(0, "GET", "/named/x", "-H", "Host: shop.example.com"); e.Route != "shop.example.com /named" || !strings.Contains(e.Reason, "shop.example.com") {
		t.Errorf("by a header: %+v", e)
	}
	if e := c.explain(1, "GET", "http://shop.example.com/nope"); e.Route != "" || e.Forward != nil || e.Status != http.StatusNotFound ||
		!strings.HasPrefix(e.Reason, "no route matches /nope: there are routes for shop.example.com and every host") {
		t.Errorf("without a route: %+v", e)
	}
	eventually(t, "explain tells that no backend takes requests", func() string {
		if e := c.explain(0, "GET", "/dead/x"); e.Status != http.StatusServiceUnavailable || !strings.Contains(e.Reason, "No backend is healthy") || e.Forward.Path != "/x" {
			return fmt.Sprintf("%+v", e)
		}
		return ""
	})
	c.ctl("explain", "GET", "http://a/api/x").wants(t, 0, "route", "/api", "forward", "GET /x, Host: "+b.address(), "backends", b.address(), "node", "revision 1")
	c.ctl("explain", "GET", "http://a/../x").wants(t, 1, "400", "climbs above the root")
	c.ctl("explain", "GET", "http://a/", "--node", "n9").wants(t, 2, "node n9 is not connected, and none of that name is enrolled")
	c.ctl("explain", "GET", "ftp://a/").wants(t, 2, "neither http:// nor https://")

	// A node that hangs is said to, and one that is gone is not asked.
	c.node("n1").signal(t, syscall.SIGSTOP)
	c.ctl("explain", "GET", "http://a/api", "--node", "n1", "--timeout", "1s").wants(t, 2, "in time")
	c.node("n1").signal(t, syscall.SIGCONT)
	c.node("n1").kill()
	c.statusShows("n1 gone", func(s status) bool { return s.row("n1").State == "disconnected" })
	if e := c.explain(0, "GET", "http://a/api"); e.Node != "n2" {
		t.Errorf("asked %+v", e)
	}
}
