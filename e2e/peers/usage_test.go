package main

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

const statLine = "4242 (nginx: w) orker (1)) S 17 17 17 0 -1 4194624 300 11 0 0 150 250 3 4 20 0 1 0 9999 12345678 1200 18446744073709551615\n"

func TestStat(t *testing.T) {
	got, err := parseStat(statLine)
	if want := (processStat{pid: 4242, parent: 17, cpu: 4070 * time.Millisecond}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, line := range []string{"", "1", "1 (a", "1 )a(", "x (a) S 1", "1 (a) S 1 2 3", "1 (a) S x 1 1 0 -1 0 0 0 0 0 1 1 1 1", "1 (a) S 1 1 1 0 -1 0 0 0 0 0 1 x 1 1"} {
		if got, err := parseStat(line); err == nil {
			t.Errorf("%q is taken as %+v", line, got)
		}
	}
}

func FuzzStat(f *testing.F) {
	f.Add(statLine)
	f.Fuzz(func(t *testing.T, line string) { parseStat(line) })
}

func TestTree(t *testing.T) {
	all := []processStat{{pid: 1}, {pid: 2, parent: 1}, {pid: 5, parent: 3}, {pid: 3, parent: 2}, {pid: 4, parent: 1}, {pid: 6, parent: 7}, {pid: 7, parent: 6}}
	for root, want := range map[int][]int{2: {2, 3, 5}, 4: {4}, 1: {1, 2, 4, 3, 5}, 6: {6, 7}, 99: nil} {
		var got []int
		for _, s := range tree(all, root) {
			got = append(got, s.pid)
		}
		if !slices.Equal(got, want) {
			t.Errorf("tree of %d: %v, want %v", root, got, want)
		}
	}
}

func TestMachineCPU(t *testing.T) {
	got, err := parseMachineCPU("cpu  100 20 30 100000 5000 4 6 9 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
	if err != nil || got != 1600*time.Millisecond {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"", "cpu 1 2 3", "cpu 1 2 3 4 5 6 x", "intr 1 2 3 4 5 6 7 8"} {
		if _, err := parseMachineCPU(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestPSS(t *testing.T) {
	got, err := parsePSS("00400000-7ffd [rollup]\nRss:    9000 kB\nPss:                1234 kB\nPss_Dirty:   7 kB\n")
	if err != nil || got != 1234<<10 {
		t.Errorf("%d, %v", got, err)
	}
	for _, text := range []string{"", "Rss: 1 kB\n", "Pss: much\n"} {
		if _, err := parsePSS(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestProcessorName(t *testing.T) {
	for text, want := range map[string]string{
		"processor\t: 0\nmodel name\t: Abacus(R)  9 @ 2 Hz \nmodel name\t: other\n": "Abacus(R) 9 @ 2 Hz",
		"processor\t: 0\nCPU implementer\t: 0x41\n":                                 "",
		"": "",
	} {
		if got := parseProcessorName(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestOwnUsage reads what this process really used.
func TestOwnUsage(t *testing.T) {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/smaps_rollup", os.Getpid())); err != nil {
		t.Skip("this is no Linux:", err)
	}
	before, err := cpuOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); time.Since(began) < 10*time.Second; {
		if now, err := cpuOf(os.Getpid()); err != nil || now > before {
			return
		}
	}
	t.Error("ten seconds of work are no CPU time")
}
