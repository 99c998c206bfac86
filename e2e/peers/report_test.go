package main

import (
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{7}, 7}, {[]float64{9, 1}, 5}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v: %v, want %v", test.values, got, test.want)
		}
	}
}

// worked is a measurement of a thousand requests.
func worked(round int, peer string, costMicroseconds float64) measurement {
	return measurement{Round: round, Scenario: "small", Peer: peer, result: result{
		Requests: 1000, Seconds: 0.5, CPUSeconds: costMicroseconds / 1000, OthersSeconds: 0.1, P50: 500, P99: 2000, Memory: 10e6,
	}}
}

func TestTables(t *testing.T) {
	broken := worked(2, haproxyPeer, 28)
	broken.Errors = map[string]int{"read the echo: EOF": 3}
	manyRouted := worked(1, pyservePeer, 40)
	manyRouted.Scenario = "routes"
	r := &report{
		Began: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), Cores: 2, Processor: "Abacus 9", Rounds: 3, Seconds: 2, Idle: 2000,
		Peers:   []peerNote{{nginxPeer, "nginx/1"}, {haproxyPeer, "HAProxy 2"}, {pyservePeer, "pyserve 3"}},
		Missing: []string{"caddy is left out"},
		Scenarios: []scenarioNote{
			{Name: "small", About: "GET"}, {Name: "routes", About: "many", Only: []string{pyservePeer}, Like: "small"},
			{Name: "idle", About: "an idle WebSocket", Idle: true},
		},
		Measurements: []measurement{
			worked(1, nginxPeer, 30), worked(2, nginxPeer, 90), worked(3, nginxPeer, 32),
			worked(1, haproxyPeer, 25), broken, worked(3, haproxyPeer, 26),
			worked(1, pyservePeer, 39), worked(2, pyservePeer, 39), {Round: 3, Scenario: "small", Peer: pyservePeer, Failure: "wrong answers: 502"},
			manyRouted, {Scenario: "idle", Peer: pyservePeer, result: result{PerIdle: 5500, Memory: 1}},
		},
	}
	var out strings.Builder
	if err := r.writeTables(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"4 March 2026, 2 cores (Abacus 9), rounds: 3, 2 s each, medians. Other programs used 10 % of the cores meanwhile.\n",
		"- haproxy: HAProxy 2\n- pyserve: pyserve 3\n- caddy is left out\n",
		"| scenario | nginx | haproxy | pyserve | pyserve to the better of nginx and HAProxy |\n|---|---:|---:|---:|---:|\n",
		"| small: GET | 32.0 (1.00) | 26.0 (0.81) ⚠ | 39.0 (0.87) ⚠ | 1.48 |\n",
		"| routes: many | | | 40.0 (–) | – |\n",
		"\nBeside small in the same round, routes costs pyserve 1.03 times as much (median).\n",
		"| routes | pyserve | 40.0 |",
		"| small | nginx | 32.0 | 30.0–90.0 | 1.00 | 2000 | 0.50 | 2.00 | 10.0 | 0 |\n",
		"| small | haproxy ⚠ | 26.0 | 25.0–28.0 | 0.81 | 2000 | 0.50 | 2.00 | 10.0 | 3 |\n",
		"| small | pyserve ⚠ | 39.0 | 39.0–39.0 | 0.87 | 2000 | 0.50 | 2.00 | 10.0 | 0, failed in 1 rounds |\n",
		"each of 2000 idle connections",
		"| pyserve | 5.5 | 0 |\n",
		"- ⚠ small, haproxy: read the echo: EOF\n- ⚠ small, pyserve: wrong answers: 502\n",
	} {
		wantsText(t, out.String(), want)
	}
	if strings.Contains(out.String(), "| routes | nginx") {
		t.Errorf("nginx was not measured with many routes:\n%s", out.String())
	}
	if r.complaint() == nil {
		t.Error("errors and a failure are no complaint")
	}
	r.Measurements = r.Measurements[:3]
	if err := r.complaint(); err != nil {
		t.Error(err)
	}
}

// TestWithoutNginx there is nothing to be compared with it, and HAProxy is the better one.
func TestWithoutNginx(t *testing.T) {
	r := &report{
		Rounds: 1, Peers: []peerNote{{haproxyPeer, ""}, {pyservePeer, ""}}, Scenarios: []scenarioNote{{Name: "small", About: "GET"}},
		Measurements: []measurement{worked(1, haproxyPeer, 20), worked(1, pyservePeer, 30)},
	}
	var out strings.Builder
	if err := r.writeTables(&out); err != nil {
		t.Fatal(err)
	}
	wantsText(t, out.String(), "| small: GET | 20.0 (–) | 30.0 (–) | 1.50 |\n")
	r.Peers, r.Measurements = append(r.Peers, peerNote{beforePeer, ""}), append(r.Measurements, worked(1, beforePeer, 24))
	out.Reset()
	if err := r.writeTables(&out); err != nil {
		t.Fatal(err)
	}
	wantsText(t, out.String(), "\nBeside the version before, in the same round, small costs 1.250 times as much (median).\n")
}

func TestProgress(t *testing.T) {
	m := worked(1, nginxPeer, 30)
	wantsText(t, m.String(), "30.0 µs CPU/request     2000 requests/s  p99 2.00 ms")
	m.Errors = map[string]int{"EOF": 2}
	wantsText(t, m.String(), "\n    2 × EOF")
	wantsText(t, measurement{Failure: "it has ended"}.String(), "FAILED: it has ended")
	wantsText(t, measurement{result: result{PerIdle: 3210}}.String(), "3.2 KB each")
}
