package main

import (
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, test := range []struct {
		values []int
		q      float64
		want   int
	}{{nil, 0.5, 0}, {[]int{7}, 0.99, 7}, {[]int{1, 2, 3}, 0.5, 2}, {hundred, 0.99, 99}, {hundred[:30], 0.99, 30}, {hundred, 1, 100}} {
		if got := quantile(test.values, test.q); got != test.want {
			t.Errorf("the %v quantile of %v is %d, want %d", test.q, test.values, got, test.want)
		}
	}
}

func TestParsing(t *testing.T) {
	if cpu, err := parseCPU("7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 150 25 9 9 20 0"); err != nil || cpu != 1750*time.Millisecond {
		t.Errorf("CPU time %v, %v", cpu, err)
	}
	if peak, err := parsePeak("Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t 2048 kB\nVmRSS:\t 1 kB\n"); err != nil || peak != 2<<20 {
		t.Errorf("memory %d, %v", peak, err)
	}
	if busy, err := parseBusy("cpu  100 0 50 9999 9999 0 50 0 0 0\ncpu0 1 1 1 1 1 1 1\n"); err != nil || busy != 2*time.Second {
		t.Errorf("busy for %v, %v", busy, err)
	}
	if _, err := parseCPU("7 (a) S 1"); err == nil {
		t.Error("a short line is taken for CPU time")
	}
	if _, err := parsePeak("VmRSS: 1 kB"); err == nil {
		t.Error("memory is told without a peak")
	}
	if _, err := parseBusy("intr 1 2 3"); err == nil {
		t.Error("something else is taken for the machine's CPU time")
	}
}

// TestRequestsCountToWhatWentOnMeanwhile, also where they began before it.
func TestRequestsCountToWhatWentOnMeanwhile(t *testing.T) {
	began := time.Unix(1000, 0)
	at := func(from, until time.Duration) sample { return sample{began.Add(from), began.Add(until)} }
	s := &swaps{Rounds: []swapRound{{Whole: true, Began: began, phases: phases{Offered: time.Second, Prepared: 2 * time.Second, Returned: 3 * time.Second}}}}
	s.sort([]sample{
		at(-time.Second, -999*time.Millisecond),
		at(500*time.Millisecond, 502*time.Millisecond),
		at(1900*time.Millisecond, 2100*time.Millisecond), // while the node prepared, and swapped
		at(9*time.Second, 10*time.Second),
	})
	for _, test := range []struct {
		name string
		l    latencies
		want latencies
	}{
		{"quiet", s.Quiet, latencies{Count: 1, Max: time.Millisecond}},
		{"reading", s.Whole.Reading, latencies{Count: 1, Max: 2 * time.Millisecond}},
		{"preparing", s.Whole.Preparing, latencies{Count: 1, Max: 200 * time.Millisecond, Slow: 1}},
		{"swapping", s.Whole.Swapping, latencies{Count: 1, Max: 200 * time.Millisecond, Slow: 1}},
		{"one route", s.One.Swapping, latencies{}},
	} {
		if test.l.Count != test.want.Count || test.l.Max != test.want.Max || test.l.Slow != test.want.Slow {
			t.Errorf("%s: %+v, want %+v", test.name, test.l, test.want)
		}
	}
}
