package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// mark says beside a figure that not all went well.
func (s summary) mark() string {
	if s.errors > 0 || s.failures > 0 {
		return " ⚠"
	}
	return ""
}

// times is a ratio; a dash where there is nothing to compare.
func times(ratio float64) string {
	if ratio == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", ratio)
}

// figure is a number with about three digits; a dash stands for none.
func figure(v float64) string {
	switch {
	case v == 0:
		return "–"
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// writeTables writes what docs/speed.md quotes.
func (r *report) writeTables(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s, %s, rounds: %d, %g s each, medians. Other programs used %.0f %% of the cores meanwhile.\n\n",
		r.Began.Format("2 January 2006"), r.machine(), r.Rounds, r.Seconds, 100*r.others())
	for _, p := range r.Peers {
		fmt.Fprintf(&b, "- %s: %s\n", p.Name, p.Version)
	}
	for _, line := range r.Missing {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	var work, idle []scenarioNote
	for _, s := range r.Scenarios {
		if s.Idle {
			idle = append(idle, s)
		} else {
			work = append(work, s)
		}
	}
	if len(work) > 0 {
		r.costTable(&b, work)
		r.workTable(&b, work)
	}
	if len(idle) > 0 {
		r.idleTable(&b, idle)
	}
	r.troubles(&b)
	_, err := w.Write(b.Bytes())
	return err
}

// machine is what the figures were measured on.
func (r *report) machine() string {
	if r.Processor == "" {
		return fmt.Sprintf("%d cores", r.Cores)
	}
	return fmt.Sprintf("%d cores (%s)", r.Cores, r.Processor)
}

// costTable has a row for each scenario and a column for each proxy, and what PyServe costs beside the better of nginx
// and HAProxy.
func (r *report) costTable(b *bytes.Buffer, scenarios []scenarioNote) {
	fmt.Fprintf(b, "\nCPU time of the proxy for each request, in µs, and its ratio to nginx in the same round:\n\n| scenario |")
	for _, p := range r.Peers {
		fmt.Fprintf(b, " %s |", p.Name)
	}
	fmt.Fprintf(b, " pyserve to the better of nginx and HAProxy |\n|---|%s---:|\n", strings.Repeat("---:|", len(r.Peers)))
	for _, sc := range scenarios {
		fmt.Fprintf(b, "| %s: %s |", sc.Name, sc.About)
		for _, p := range r.Peers {
			if !sc.measures(p) {
				b.WriteString(" |")
				continue
			}
			s := r.summarize(sc.Name, p.Name)
			fmt.Fprintf(b, " %s (%s)%s |", figure(s.cost), times(r.ratio(sc.Name, p.Name, nginxPeer)), s.mark())
		}
		fmt.Fprintf(b, " %s |\n", times(r.ratio(sc.Name, pyservePeer, nginxPeer, haproxyPeer)))
	}
	for _, sc := range scenarios {
		if ratio := r.ratio(sc.Name, pyservePeer, beforePeer); ratio > 0 {
			fmt.Fprintf(b, "\nBeside the version before, in the same round, %s costs %.3f times as much (median).\n", sc.Name, ratio)
		}
		if ratio := r.beside(pyservePeer, sc.Name, sc.Like); ratio > 0 {
			fmt.Fprintf(b, "\nBeside %s in the same round, %s costs %s %.2f times as much (median).\n", sc.Like, sc.Name, pyservePeer, ratio)
		}
	}
}

// measures says whether a proxy takes part.
func (s scenarioNote) measures(p peerNote) bool {
	return len(s.Only) == 0 || slices.Contains(s.Only, p.Name)
}

// workTable has a row for each scenario and proxy, with every figure.
func (r *report) workTable(b *bytes.Buffer, scenarios []scenarioNote) {
	b.WriteString("\nEach proxy in each scenario:\n\n" +
		"| scenario | proxy | CPU µs/request | lowest–highest | to nginx | requests/s | p50 ms | p99 ms | memory MB | errors |\n" +
		"|---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, sc := range scenarios {
		for _, p := range r.Peers {
			if !sc.measures(p) {
				continue
			}
			s := r.summarize(sc.Name, p.Name)
			fmt.Fprintf(b, "| %s | %s%s | %s | %s–%s | %s | %.0f | %.2f | %.2f | %.1f | %s |\n",
				sc.Name, p.Name, s.mark(), figure(s.cost), figure(s.lowest), figure(s.highest), times(r.ratio(sc.Name, p.Name, nginxPeer)),
				s.rate, s.p50/1000, s.p99/1000, s.memory/1e6, s.trouble())
		}
	}
}

// trouble is the errors column.
func (s summary) trouble() string {
	if s.failures > 0 {
		return fmt.Sprintf("%d, failed in %d rounds", s.errors, s.failures)
	}
	return fmt.Sprint(s.errors)
}

// idleTable has a row for each proxy.
func (r *report) idleTable(b *bytes.Buffer, scenarios []scenarioNote) {
	fmt.Fprintf(b, "\nMemory of the proxy for each of %d idle connections, in KB:\n\n| proxy |", r.Idle)
	for _, sc := range scenarios {
		fmt.Fprintf(b, " %s | errors |", sc.About)
	}
	fmt.Fprintf(b, "\n|---|%s\n", strings.Repeat("---:|---:|", len(scenarios)))
	for _, p := range r.Peers {
		fmt.Fprintf(b, "| %s |", p.Name)
		for _, sc := range scenarios {
			s := r.summarize(sc.Name, p.Name)
			fmt.Fprintf(b, " %s%s | %s |", figure(s.perIdle/1000), s.mark(), s.trouble())
		}
		b.WriteByte('\n')
	}
}

// troubles lists what went wrong, each once.
func (r *report) troubles(b *bytes.Buffer) {
	said := map[string]bool{}
	for _, m := range r.Measurements {
		texts := slices.Sorted(maps.Keys(m.Errors))
		if m.Failure != "" {
			texts = append(texts, m.Failure)
		}
		for _, text := range texts {
			line := fmt.Sprintf("- ⚠ %s, %s: %s\n", m.Scenario, m.Peer, strings.TrimSpace(text))
			if !said[line] {
				if len(said) == 0 {
					b.WriteString("\nWhat went wrong:\n\n")
				}
				said[line] = true
				b.WriteString(line)
			}
		}
	}
}
