package main

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// The test binary is also the backend, the load and the ReverseProxy of TestMeasurement.
	if len(os.Args) > 1 && slices.Contains([]string{backendRole, loadRole, reverseProxyRole}, os.Args[1]) {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

func TestFlags(t *testing.T) {
	o, err := parseFlags([]string{"-rounds", "5", "-seconds", "0.5", "-scenario", "^small$", "-proxy", "nginx|pyserve", "-json", "x"})
	if err != nil || o.rounds != 5 || o.seconds != 500*time.Millisecond || o.json != "x" {
		t.Errorf("%+v, %v", o, err)
	}
	if !o.scenario.MatchString("small") || o.scenario.MatchString("smaller") || o.proxy.MatchString(haproxyPeer) {
		t.Errorf("the expressions do not choose: %+v", o)
	}
	for _, args := range [][]string{{"-rounds", "0"}, {"-seconds", "0"}, {"-scenario", "("}, {"-proxy", "("}, {"small"}} {
		if _, err := parseFlags(args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

// TestMeasurement measures the one proxy that every machine has, in every scenario, with real processes.
func TestMeasurement(t *testing.T) {
	t.Parallel()
	if _, err := memoryOf(os.Getpid()); err != nil {
		t.Skip("this is no Linux:", err)
	}
	ctx := t.Context()
	dir := t.TempDir()
	b, err := newBench(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	b.idle = 50
	o, err := parseFlags([]string{"-rounds", "1", "-seconds", "0.2", "-proxy", "reverseproxy"})
	if err != nil {
		t.Fatal(err)
	}
	peers, _, err := findPeers(ctx, dir, o.proxy)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.rounds(ctx, o, peers)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Measurements) != len(scenarios()) {
		t.Errorf("%d measurements, want one for each of %d scenarios", len(r.Measurements), len(scenarios()))
	}
	for _, m := range r.Measurements {
		if m.Failure != "" || len(m.Errors) > 0 || m.Memory == 0 || (m.PerIdle == 0 && (m.Requests == 0 || m.P50 == 0 || m.P99 < m.P50)) {
			t.Errorf("%+v", m)
		}
	}
}

// TestAProxyThatCannotBeMeasured is a failure that says why, and leaves no process.
func TestAProxyThatCannotBeMeasured(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b, err := newBench(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	small := scenarios()[0]
	silent := peer{name: "silent", command: func(setup) ([]string, error) { return []string{"sh", "-c", "echo no; exit 3"}, nil }}
	// A backend without a proxy in front gives right answers, but nobody has told it whom they are for.
	bare := peer{name: "bare", command: func(s setup) ([]string, error) { return []string{b.self, backendRole, s.Listen}, nil }}
	for _, test := range []struct {
		peer peer
		want string
	}{{silent, "exit status 3\nno"}, {bare, `does not see "X-Forwarded-For: 127.0.0.1"`}} {
		wantsText(t, b.measure(ctx, test.peer, small, time.Second).Failure, test.want)
	}
	interrupted, cancel := context.WithCancel(ctx)
	cancel()
	wantsText(t, b.measure(interrupted, bare, small, time.Second).Failure, "canceled")
}
