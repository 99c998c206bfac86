package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pyserve/pyserve/config"
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
	o, err := parseFlags([]string{"-rounds", "5", "-seconds", "0.5", "-scenario", "^small$", "-proxy", "nginx|pyserve", "-json", "x", "-markdown", "y"})
	if err != nil || o.rounds != 5 || o.seconds != 500*time.Millisecond || o.json != "x" || o.markdown != "y" {
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
	all := slices.DeleteFunc(scenarios(), func(s scenario) bool { return !s.measures(peers[0]) })
	if len(r.Measurements) != len(all) {
		t.Errorf("%d measurements, want one for each of %d scenarios", len(r.Measurements), len(all))
	}
	for _, m := range r.Measurements {
		if m.Failure != "" || len(m.Errors) > 0 || m.Memory == 0 || (m.PerIdle == 0 && (m.Requests == 0 || m.P50 == 0 || m.P99 < m.P50)) {
			t.Errorf("%+v", m)
		}
	}
}

// TestAScenarioOfOneProxy is not measured without it, and one proxy takes part in it alone.
func TestAScenarioOfOneProxy(t *testing.T) {
	o, err := parseFlags([]string{"-scenario", "^routes$"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := new(bench).rounds(t.Context(), o, []peer{{name: nginxPeer}}); err == nil {
		t.Error("nginx is measured in a scenario of PyServe's")
	}
	routes := o.chosen()[0]
	if !routes.measures(peer{name: pyservePeer}) || routes.measures(peer{name: haproxyPeer}) {
		t.Errorf("%+v", routes)
	}
}

// TestManyRoutes are written into PyServe's configuration, and the small GET's is one of them.
func TestManyRoutes(t *testing.T) {
	s := setup{Dir: t.TempDir(), Backend: "127.0.0.1:1", Routes: manyRoutes - 1}
	file, err := s.configure("pyserve.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r, problems := config.Parse(text, nil)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	paths := map[string]bool{}
	for _, route := range r.Routes {
		paths[route.GetPath()] = true
	}
	if len(paths) != manyRoutes || !paths[smallPath] {
		t.Errorf("%d paths, want %d with %s among them", len(paths), manyRoutes, smallPath)
	}
}

// TestTheTablesAreAFile, too.
func TestTheTablesAreAFile(t *testing.T) {
	r := &report{Rounds: 1, Peers: []peerNote{{nginxPeer, ""}}, Scenarios: []scenarioNote{{Name: "small", About: "GET"}}}
	file := filepath.Join(t.TempDir(), "tables.md")
	if err := r.writeMarkdown(file); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	wantsText(t, string(text), "| small: GET |")
	if err := r.writeMarkdown(""); err != nil {
		t.Errorf("no file is wanted, and %v", err)
	}
	if err := r.writeMarkdown(t.TempDir()); err == nil {
		t.Error("a folder is taken for a file")
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
