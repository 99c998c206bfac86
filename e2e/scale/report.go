package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// report is all of a run. Durations are in nanoseconds.
type report struct {
	Began     time.Time `json:"began"`
	Cores     int       `json:"cores"`
	Processor string    `json:"processor,omitempty"`
	Go        string    `json:"go"`
	// The share of the cores that programs of others used meanwhile.
	Others     float64     `json:"others"`
	Applies    []applies   `json:"applies,omitempty"`
	ApplyPeak  int64       `json:"apply_peak,omitempty"` // control's memory
	Reconnects *reconnects `json:"reconnects,omitempty"`
	Swaps      *swaps      `json:"swaps,omitempty"`
	Failovers  *failovers  `json:"failovers,omitempty"`
	Outages    *outages    `json:"outages,omitempty"`
	Leaves     *leaves     `json:"leaves,omitempty"`
}

// The targets.
const (
	applyTarget     = 250 * time.Millisecond // p99, with applyNodes nodes and one route of applyRoutes
	applyNodes      = 1000
	applyRoutes     = 10_000
	reconnectTarget = 10 * time.Second
	memoryTarget    = 300_000_000
	killedTarget    = 2 * time.Second        // p99
	handedTarget    = 200 * time.Millisecond // p99
)

// quantile is the smallest of sorted values that at least the share q of them does not pass; zero of none.
func quantile[T cmp.Ordered](sorted []T, q float64) (zero T) {
	if len(sorted) == 0 {
		return zero
	}
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// of gives one figure of every round, sorted.
func of[R any, T cmp.Ordered](rounds []R, figure func(R) T) []T {
	out := make([]T, 0, len(rounds))
	for _, r := range rounds {
		out = append(out, figure(r))
	}
	slices.Sort(out)
	return out
}

func median[R any, T cmp.Ordered](rounds []R, figure func(R) T) T {
	return quantile(of(rounds, figure), 0.5)
}

// ms is a duration in milliseconds, with about three digits.
func ms(d time.Duration) string {
	switch v := float64(d) / float64(time.Millisecond); {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

// size is a number of bytes.
func size(bytes int64) string {
	switch {
	case bytes < 10_000:
		return fmt.Sprintf("%d B", bytes)
	case bytes < 10_000_000:
		return fmt.Sprintf("%.0f kB", float64(bytes)/1e3)
	}
	return fmt.Sprintf("%.0f MB", float64(bytes)/1e6)
}

// met says whether a target was.
func met(yes bool) string {
	if yes {
		return "met"
	}
	return "**missed**"
}

// writeTables writes what docs/scale.md quotes.
func (r *report) writeTables(w io.Writer) error {
	var b bytes.Buffer
	machine := fmt.Sprintf("%d cores", r.Cores)
	if r.Processor != "" {
		machine += fmt.Sprintf(" (%s)", r.Processor)
	}
	fmt.Fprintf(&b, "%s, %s, %s. Other programs used %.0f %% of the cores meanwhile.\n",
		r.Began.Format("2 January 2006"), machine, r.Go, 100*r.Others)
	if len(r.Applies) > 0 {
		r.applyTable(&b)
	}
	if r.Reconnects != nil {
		r.Reconnects.table(&b)
	}
	if r.Swaps != nil {
		r.Swaps.table(&b)
	}
	if r.Failovers != nil {
		r.Failovers.table(&b)
	}
	if r.Outages != nil {
		r.Outages.table(&b)
	}
	if r.Leaves != nil {
		r.Leaves.table(&b)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func (f *failovers) table(b *bytes.Buffer) {
	fmt.Fprintf(b, "\nThree controls, %d nodes; until another control has accepted a write, in ms:\n\n"+
		"| the leader | rounds | p50 | p99 | longest | target, p99 | |\n|---|---:|---:|---:|---:|---:|---|\n", f.Nodes)
	for _, row := range []struct {
		name   string
		took   []time.Duration
		target time.Duration
	}{{"is killed with -9", f.Killed, killedTarget}, {"is told to stop", f.Handed, handedTarget}} {
		took := slices.Sorted(slices.Values(row.took))
		p99 := quantile(took, 0.99)
		fmt.Fprintf(b, "| %s | %d | %s | %s | %s | %s | %s |\n", row.name, len(took), ms(quantile(took, 0.5)), ms(p99), ms(quantile(took, 1)),
			ms(row.target), met(p99 <= row.target))
	}
	fmt.Fprintf(b, "\nOf %d writes that were accepted, half of them under way when the leader went and made again, the history has lost %d "+
		"and holds %d more than once: %s.\n", f.Written, f.Lost, f.Twice, met(f.Lost+f.Twice == 0))
}

func (a applies) String() string {
	committed := of(a.Rounds, func(r applyRound) time.Duration { return r.Committed })
	return fmt.Sprintf("%d nodes, one route of %d: p50 %s ms, p99 %s ms, %s, %s ms of control's CPU time", a.Nodes, a.Routes,
		ms(quantile(committed, 0.5)), ms(quantile(committed, 0.99)), size(median(a.Rounds, func(r applyRound) int64 { return r.Bytes })), ms(a.CPU))
}

func (r *report) applyTable(b *bytes.Buffer) {
	fmt.Fprintf(b, "\nOne route changed, from the call of the apply to the last node serving it, in ms; rounds: %d. The steps are medians: the "+
		"document is read and compared, all nodes have prepared, the first has committed, the last has.\n\n"+
		"| nodes | routes | document | p50 | p99 | read | prepare | store | commit | control's CPU | sent to all nodes |\n"+
		"|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n", len(r.Applies[0].Rounds))
	for _, a := range r.Applies {
		committed := of(a.Rounds, func(r applyRound) time.Duration { return r.Committed })
		step := func(f func(applyRound) time.Duration) string { return ms(median(a.Rounds, f)) }
		fmt.Fprintf(b, "| %d | %d | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", a.Nodes, a.Routes, size(int64(a.Document)),
			ms(quantile(committed, 0.5)), ms(quantile(committed, 0.99)),
			step(func(r applyRound) time.Duration { return r.Offered }),
			step(func(r applyRound) time.Duration { return r.Prepared - r.Offered }),
			step(func(r applyRound) time.Duration { return r.First - r.Prepared }),
			step(func(r applyRound) time.Duration { return r.Committed - r.First }),
			ms(a.CPU), size(median(a.Rounds, func(r applyRound) int64 { return r.Bytes })))
	}
	fmt.Fprintf(b, "\nControl held at most %s.\n", size(r.ApplyPeak))
	for _, a := range r.Applies {
		if a.Nodes == applyNodes && a.Routes == applyRoutes {
			p99 := quantile(of(a.Rounds, func(r applyRound) time.Duration { return r.Committed }), 0.99)
			fmt.Fprintf(b, "Target, %d nodes and one route of %d: p99 at most %s ms: %s.\n", applyNodes, applyRoutes, ms(applyTarget), met(p99 <= applyTarget))
		}
	}
}

func (s *reconnects) table(b *bytes.Buffer) {
	fmt.Fprintf(b, "\n%d nodes that serve %d routes come back after control was killed with -9 and started again, in ms since the start:\n\n"+
		"| round | control is ready | all connected | converged | control's CPU | and in each second afterwards | control's memory at most |\n|---:|---:|---:|---:|---:|---:|---:|\n", s.Nodes, s.Routes)
	for i, r := range s.Rounds {
		fmt.Fprintf(b, "| %d | %s | %s | %s | %s | %s | %s |\n", i+1, ms(r.Ready), ms(r.Connected), ms(r.Converged), ms(r.CPU), ms(r.Rest), size(r.Peak))
	}
	slowest := quantile(of(s.Rounds, func(r reconnectRound) time.Duration { return r.Converged }), 1)
	largest := quantile(of(s.Rounds, func(r reconnectRound) int64 { return r.Peak }), 1)
	fmt.Fprintf(b, "\nTargets: converged within %v: %s; memory at most %s: %s.\n", reconnectTarget, met(slowest <= reconnectTarget),
		size(memoryTarget), met(largest <= memoryTarget))
}

func (s *swaps) table(b *bytes.Buffer) {
	fmt.Fprintf(b, "\nOne real node takes bundles of %d routes while %d requests a second go through it. Medians, in ms:\n\n"+
		"| | rounds | read | sent, compiled, written to disk | stored and swapped | returned | node's CPU |\n|---|---:|---:|---:|---:|---:|---:|\n", s.Routes, loadRate)
	for _, kind := range []struct {
		name  string
		whole bool
	}{{"the whole bundle", true}, {"one route of it", false}} {
		rounds := slices.DeleteFunc(slices.Clone(s.Rounds), func(r swapRound) bool { return r.Whole != kind.whole })
		step := func(f func(swapRound) time.Duration) string { return ms(median(rounds, f)) }
		fmt.Fprintf(b, "| %s | %d | %s | %s | %s | %s | %s |\n", kind.name, len(rounds),
			step(func(r swapRound) time.Duration { return r.Offered }),
			step(func(r swapRound) time.Duration { return r.Prepared - r.Offered }),
			step(func(r swapRound) time.Duration { return r.FirstCommitted - r.Prepared }),
			step(func(r swapRound) time.Duration { return r.Returned }),
			step(func(r swapRound) time.Duration { return r.NodeCPU }))
	}
	fmt.Fprintf(b, "\nThe requests meanwhile, in ms:\n\n| while | requests | p50 | p99 | longest | over %v |\n|---|---:|---:|---:|---:|---:|\n", slowRequest)
	for _, row := range []struct {
		name string
		l    latencies
	}{
		{"nothing is applied", s.Quiet},
		{"the whole bundle: control reads it", s.Whole.Reading},
		{"the whole bundle: the node prepares it", s.Whole.Preparing},
		{"the whole bundle: the swap, and a second after it", s.Whole.Swapping},
		{"one route: control reads it", s.One.Reading},
		{"one route: the node prepares it", s.One.Preparing},
		{"one route: the swap, and a second after it", s.One.Swapping},
	} {
		fmt.Fprintf(b, "| %s | %d | %s | %s | %s | %d |\n", row.name, row.l.Count, ms(row.l.P50), ms(row.l.P99), ms(row.l.Max), row.l.Slow)
	}
}
