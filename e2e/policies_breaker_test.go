package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// breakerPolicies are the rows of TestPolicies about circuit breakers.
var breakerPolicies = []policy{{
	name: "circuit_breaker",
	document: `
    - {path: /few, $a, circuit_breaker: {max_requests: 1}}
    - {path: /queue, backends: [{$b}, {$c, weight: 0}], circuit_breaker: {max_connections: 1, max_pending: 1, pending_timeout: 1h}}
    - {path: /short, $a, circuit_breaker: {max_requests: 1, max_pending: 1, pending_timeout: 1ms}}
    - {path: /none, $c, circuit_breaker: {max_connections: 0, max_requests: 0, max_pending: 0}}`,
	asks: []ask{{path: "/few/x", by: "a", uri: "/x"}, {path: "/queue/x", by: "b"}, {path: "/short", by: "a"}, {path: "/none", by: "c"}},
	also: func(t *testing.T, b bench, n *daemon) {
		client := newClient(t, nil, false)
		wantOver := func(path, says string) {
			t.Helper()
			if r := get(t, client, "http://"+n.listen+path); r.status != 503 || r.header.Get("Retry-After") != "1" || !strings.Contains(r.body, says) {
				t.Errorf("%s over its limit: %d, Retry-After %q: %s", path, r.status, r.header.Get("Retry-After"), r.body)
			}
		}
		wantRoom := func(path string) {
			t.Helper()
			eventually(t, path+" has room again", func() string {
				if r := get(t, client, "http://"+n.listen+path); r.status != 200 {
					return fmt.Sprint(r.status, " ", r.body)
				}
				return ""
			})
		}
		for path, says := range map[string]string{"/few": "There are too many requests under way.", "/short": "this one has waited in vain"} {
			end := occupy(t, client, n, path)
			wantOver(path+"/x", says)
			end()
			wantRoom(path + "/x")
		}

		end := occupy(t, client, n, "/queue")
		waiting := make(chan error, 1)
		go func() {
			r, err := client.Get("http://" + n.listen + "/queue/x")
			if err == nil {
				r.Body.Close()
				if r.StatusCode != 200 {
					err = fmt.Errorf("status %d", r.StatusCode)
				}
			}
			waiting <- err
		}()
		eventually(t, "a request waits", func() string {
			metrics := get(t, client, "http://"+n.admin+"/metrics").body
			if !strings.Contains(metrics, `pyserve_circuit_breaker_requests{route="/queue",state="pending"} 1`) {
				return "none does"
			}
			return ""
		})
		wantOver("/queue/x", "There are too many requests under way.")
		end()
		if err := <-waiting; err != nil {
			t.Errorf("the request that waited: %v", err)
		}
		eventually(t, "the metrics tell", func() string {
			metrics := get(t, client, "http://"+n.admin+"/metrics").body
			for _, line := range []string{
				`pyserve_circuit_breaker_rejected_total{reason="full",route="/queue"} 1`, `pyserve_circuit_breaker_requests{route="/few",state="running"} 0`,
			} {
				if !strings.Contains(metrics, line) {
					return "there is no " + line
				}
			}
			if strings.Contains(metrics, `pyserve_circuit_breaker_requests{route="/none"`) {
				return "there are some of a breaker that bounds nothing"
			}
			return ""
		})
	},
}}

// occupy has an answer under way until the function that it returns is called.
func occupy(t *testing.T, client *http.Client, n *daemon, path string) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.listen+path+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	var response *http.Response
	eventually(t, path+" has room", func() string { // the last request's place may be given back a moment after its answer
		if response, err = client.Do(request); err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != 200 {
			io.Copy(io.Discard, response.Body)
			response.Body.Close()
			return response.Status
		}
		return ""
	})
	return func() {
		cancel()
		response.Body.Close()
	}
}
