package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFlags(t *testing.T) {
	o, err := parseFlags([]string{"-nodes", "100, 3,100", "-routes", "10", "-rounds", "7", "-only", "^apply$", "-json", "x", "-markdown", "y"})
	if err != nil || !slices.Equal(o.nodes, []int{3, 100}) || !slices.Equal(o.routes, []int{10}) || o.rounds != 7 || o.json != "x" || o.markdown != "y" {
		t.Errorf("%+v, %v", o, err)
	}
	if !o.only.MatchString("apply") || o.only.MatchString("swap") {
		t.Errorf("-only does not choose: %v", o.only)
	}
	if o, err = parseFlags([]string{"-short", "-rounds", "2"}); err != nil || !slices.Equal(o.nodes, []int{3, 100}) || o.rounds != 2 {
		t.Errorf("-short beside -rounds 2: %+v, %v", o, err)
	}
	for _, args := range [][]string{{"-nodes", "0"}, {"-nodes", "3,many"}, {"-routes", "100001"}, {"-rounds", "0"}, {"-only", "("}, {"-only", "nothing"}, {"apply"}} {
		if _, err := parseFlags(args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

// TestEveryScenario runs all there is to measure, small, with built programs, and wants every figure.
func TestEveryScenario(t *testing.T) {
	if _, err := machineBusy(); err != nil {
		t.Skip("this is no Linux:", err)
	}
	o, err := parseFlags([]string{"-nodes", "3", "-routes", "10", "-rounds", "1"})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{options: o, dir: t.TempDir(), ports: newPorts()}
	if b.pyserve, err = build(t.Context(), b.dir); err != nil {
		t.Fatal(err)
	}
	r, err := b.measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	checkApplies(t, r)
	if r.Reconnects == nil || len(r.Reconnects.Rounds) != 1 || r.Reconnects.Rounds[0].Converged == 0 || r.Reconnects.Rounds[0].Peak == 0 {
		t.Errorf("no restart was measured: %+v", r.Reconnects)
	}
	if r.Swaps == nil || len(r.Swaps.Rounds) != 2 || r.Swaps.Quiet.Count == 0 || r.Swaps.Whole.Swapping.Count == 0 {
		t.Errorf("no swap was measured: %+v", r.Swaps)
	}
	if f := r.Failovers; f == nil || len(f.Killed) != 1 || len(f.Handed) != 1 || f.Written != 4 || f.Lost+f.Twice != 0 {
		t.Errorf("no failover was measured, or it lost a write: %+v", f)
	}
	if o := r.Outages; o == nil || len(o.Rounds) != 1 || o.Rounds[0].Newer < askAfter || o.Rounds[0].Fresh == 0 {
		t.Errorf("no outage was measured: %+v", o)
	}
	if l := r.Leaves; l == nil || l.InOrder != l.Sockets || l.Sockets == 0 || l.ByApply+l.Broken+l.Refused != 0 {
		t.Errorf("WebSockets were not all closed in order: %+v", l)
	}
	file := filepath.Join(t.TempDir(), "tables.md")
	if err := r.writeMarkdown(file); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 3 | 10 |", "3 nodes that serve 10 routes", "| one route: the swap, and a second after it |"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the tables do not tell %q:\n%s", want, text)
		}
	}
}

// checkApplies wants one apply whose steps follow each other, and that cost little to send.
func checkApplies(t *testing.T, r *report) {
	t.Helper()
	if len(r.Applies) != 1 || len(r.Applies[0].Rounds) != 1 {
		t.Fatalf("no apply was measured: %+v", r.Applies)
	}
	a := r.Applies[0].Rounds[0]
	if a.Read == 0 || a.Offered < a.Read || a.Prepared < a.Offered || a.Committed < a.First || a.Returned < a.First || a.First == 0 {
		t.Errorf("the steps do not follow each other: %+v", a)
	}
	if a.Bytes == 0 || a.Bytes > 3*1000 {
		t.Errorf("three nodes were sent %d bytes for one route of %d", a.Bytes, r.Applies[0].Routes)
	}
}

// The limit of descriptors decides how many WebSockets have one each to themselves.
func TestWebSocketsForWhichThereAreDescriptors(t *testing.T) {
	for _, c := range []struct {
		descriptors    uint64
		all, overHTTP2 int
	}{
		{1 << 40, leaveSockets, 0},
		{2*leaveSockets + spareDescriptors, leaveSockets, 0},
		{2*leaveSockets + spareDescriptors - 7, leaveSockets, 7},
		{leaveSockets + spareDescriptors, leaveSockets, leaveSockets},
		{1024, 1024 - spareDescriptors, 1024 - spareDescriptors},
		{100, 0, 0},
	} {
		if all, overHTTP2 := socketsFor(c.descriptors); all != c.all || overHTTP2 != c.overHTTP2 {
			t.Errorf("%d descriptors: %d WebSockets, %d of them over HTTP/2, want %d and %d", c.descriptors, all, overHTTP2, c.all, c.overHTTP2)
		}
	}
}
