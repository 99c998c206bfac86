package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// TestALimitOfTheClusterHoldsForAllNodes asks three nodes at once, over a limit that they have together. One that has not heard of a
// client yet lets its share through, so that at most 100 pass of 60; where nothing is shared 180 do. Then a node is killed.
func TestALimitOfTheClusterHoldsForAllNodes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3")
	b := newBackend(t, "b")
	const document = `server:
  reverse_proxy:
    - path: /
      port: %d
      rate_limit: {requests: 1, per: 1h, burst: 60, key: "header:X-Who", scope: cluster}
`
	c.mustApply(fmt.Sprintf(document, b.port))
	client := newClient(t, nil, false)
	metrics := func(d *daemon) string { return get(t, client, "http://"+d.admin+"/metrics").body }
	for _, n := range c.nodes {
		eventually(t, n.name+" hears two others", func() string {
			if text := metrics(n); !strings.Contains(text, `pyserve_gossip_members{role="node",state="alive"} 3`) {
				return text
			}
			return ""
		})
	}
	// passed is how many requests of so many clients pass, where each asks all of the nodes for much more than it may.
	passed := func(round string, clients int, nodes ...*daemon) int {
		t.Helper()
		var asking sync.WaitGroup
		sums := make([]int, len(nodes))
		for i, n := range nodes {
			asking.Go(func() {
				own := newClient(t, nil, false)
				for range 2 {
					for who := range clients {
						for range 60 {
							switch r := get(t, own, "http://"+n.listen+"/", "X-Who", fmt.Sprint(round, who)); r.status {
							case 200:
								sums[i]++
							case 429:
								if r.header.Get("Retry-After") == "" {
									t.Error("a refusal without Retry-After")
								}
							default:
								t.Errorf("%s answers %d", n.name, r.status)
							}
						}
					}
				}
			})
		}
		asking.Wait()
		sum := 0
		for _, n := range sums {
			sum += n
		}
		t.Logf("%s: %v of %d clients pass at %d nodes, each of which may have 60", round, sums, clients, len(nodes))
		return sum
	}
	if n := passed("all", 4, c.nodes...); n < 4*30 || n > 4*140 {
		t.Errorf("%d requests pass, want 60 to 100 for each of 4 clients", n)
	}
	for _, series := range []string{`pyserve_rate_limit_shared_requests_total{by="owner",route="/"}`, `pyserve_rate_limit_lent_requests_total{route="/"}`} {
		eventually(t, series, func() string {
			for _, n := range c.nodes {
				for line := range strings.Lines(metrics(n)) {
					if count, is := strings.CutPrefix(line, series+" "); is && count != "0\n" {
						return ""
					}
				}
			}
			return "it is 0 everywhere"
		})
	}
	c.node("n3").kill()
	if n := passed("others", 8, c.nodes[:2]...); n < 8*30 || n > 8*110 {
		t.Errorf("with one node dead %d requests pass, want 60 to 80 for each of 8 clients", n)
	}
}
