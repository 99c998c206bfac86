package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// doorbell is a backend that counts who connects, and does nothing else.
type doorbell struct {
	listener net.Listener
	rung     atomic.Int64
}

func newDoorbell(t *testing.T) *doorbell {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &doorbell{listener: l}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			d.rung.Add(1)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return d
}

func (d *doorbell) port() int { return d.listener.Addr().(*net.TCPAddr).Port }

type whyRow struct {
	State     string   `json:"state"`
	Reason    string   `json:"reason"`
	DecidedBy string   `json:"decided_by"`
	Members   int      `json:"members"`
	Probers   []string `json:"probers"`
	Votes     []struct {
		Node    string `json:"node"`
		State   string `json:"state"`
		Counted bool   `json:"counted"`
	} `json:"votes"`
}

func (c *cluster) why(node, address string) whyRow {
	c.t.Helper()
	var out struct {
		Node     string   `json:"node"`
		Backends []whyRow `json:"backends"`
	}
	r := c.ctl("why", address, "--node", node, "-o", "json").wants(c.t, 0)
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || out.Node != node || len(out.Backends) != 1 {
		c.t.Fatalf("why: %v\n%s%s", err, r.stdout, r.stderr)
	}
	return out.Backends[0]
}

// counted is how many votes of a state the row's node went by.
func (w whyRow) counted(state string) (n int) {
	for _, v := range w.Votes {
		if v.Counted && v.State == state {
			n++
		}
	}
	return n
}

// TestThreeNodesProbeForFive counts a backend's probes, lets it die, and asks every node why it knows.
func TestThreeNodesProbeForFive(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3", "n4", "n5")
	bell := newDoorbell(t)
	const interval = 500 * time.Millisecond
	c.mustApply(fmt.Sprintf(`server:
  reverse_proxy:
    - path: /
      host: 127.0.0.1
      port: %d
      health_check: {type: tcp, interval: %s, timeout: 400ms, healthy_threshold: 2, unhealthy_threshold: 3}
`, bell.port(), interval))
	address := local(bell.port())
	for _, n := range c.nodes {
		eventually(t, n.name+" goes by the majority", func() string {
			if w := c.why(n.name, address); w.State != "healthy" || w.DecidedBy != "majority" || w.Members != 5 || len(w.Probers) != 3 || w.counted("healthy") < 2 {
				return fmt.Sprintf("%+v", w)
			}
			return ""
		})
	}
	t.Run("three of five probe", func(t *testing.T) { threeProbe(t, c, bell) })

	bell.listener.Close()
	for _, n := range c.nodes {
		eventually(t, n.name+" hears of the death", func() string {
			if w := c.why(n.name, address); w.State != "unhealthy" || w.DecidedBy != "majority" || w.counted("unhealthy") < 2 || w.Reason != "connection refused" {
				return fmt.Sprintf("%+v", w)
			}
			return ""
		})
		eventually(t, n.name+" sends nothing there any more", func() string {
			if r := get(t, newClient(t, nil, false), "http://"+n.listen+"/"); r.status != http.StatusServiceUnavailable {
				return fmt.Sprintf("status %d", r.status)
			}
			return ""
		})
	}
	c.backendShows(address, "unhealthy")
	c.ctl("why", address).wants(t, 0, "backend", address, "state", "unhealthy: connection refused", "decided", "by the majority", "probers", "PROBER", "COUNTED")
	c.ctl("why", "127.0.0.1:1").wants(t, 1, "no route with the backend 127.0.0.1:1")
	c.ctl("why", "nonsense").wants(t, 2, "host:port")
}

// threeProbe waits for a time in which three nodes probe, ten times or more each, and the others not at all. Where the machine is
// so busy that probers are late, others step in for them and back again, so that the first such time may have to be waited for.
func threeProbe(t *testing.T, c *cluster, bell *doorbell) {
	before := make(map[string]float64)
	var rung int64
	var begin time.Time
	restart := func() {
		for _, n := range c.nodes {
			before[n.name] = metric(t, n.admin, `pyserve_health_probes_total{kind="check"}`)
		}
		rung, begin = bell.rung.Load(), time.Now()
	}
	restart()
	eventually(t, "three nodes probe and two do not", func() string {
		grown, enough := map[string]float64{}, 0
		for _, n := range c.nodes {
			if more := metric(t, n.admin, `pyserve_health_probes_total{kind="check"}`) - before[n.name]; more > 0 {
				grown[n.name] = more
				if more >= 10 {
					enough++
				}
			}
		}
		switch {
		case len(grown) > 3:
			restart()
		case enough == 3:
			t.Logf("%.1f probes a second at a backend that is probed every 500ms, by %d nodes", float64(bell.rung.Load()-rung)/time.Since(begin).Seconds(), len(grown))
			return ""
		}
		return fmt.Sprint(grown)
	})
}
