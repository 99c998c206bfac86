package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// report is all of a run.
type report struct {
	Began        time.Time      `json:"began"`
	Cores        int            `json:"cores"`
	Go           string         `json:"go"`
	Rounds       int            `json:"rounds"`
	Seconds      float64        `json:"seconds"`
	Idle         int            `json:"idle_connections"`
	Peers        []peerNote     `json:"peers"`
	Missing      []string       `json:"missing,omitempty"`
	Scenarios    []scenarioNote `json:"scenarios"`
	Measurements []measurement  `json:"measurements"`
}

type peerNote struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

type scenarioNote struct {
	Name  string `json:"name"`
	About string `json:"about"`
	// Memory is measured, not work.
	Idle bool `json:"idle,omitempty"`
}

// measurement is one proxy in one scenario, once.
type measurement struct {
	Round    int    `json:"round"`
	Scenario string `json:"scenario"`
	Peer     string `json:"peer"`
	// Why there is no result.
	Failure string `json:"failure,omitempty"`
	result
}

// cost is the CPU time of a request in microseconds; 0: unknown.
func (m measurement) cost() float64 {
	if m.Requests == 0 {
		return 0
	}
	return m.CPUSeconds * 1e6 / float64(m.Requests)
}

func (m measurement) rate() float64 {
	if m.Seconds == 0 {
		return 0
	}
	return float64(m.Requests) / m.Seconds
}

func (m measurement) errorCount() (sum int) {
	for _, n := range m.Errors {
		sum += n
	}
	return sum
}

// String is a line of progress.
func (m measurement) String() string {
	text := fmt.Sprintf("%-14s %-12s ", m.Scenario, m.Peer)
	switch {
	case m.Failure != "":
		return text + "FAILED: " + m.Failure
	case m.PerIdle != 0:
		text += fmt.Sprintf("%8.1f KB each", m.PerIdle/1000)
	default:
		text += fmt.Sprintf("%8.1f µs CPU/request %8.0f requests/s  p99 %.2f ms", m.cost(), m.rate(), m.P99/1000)
	}
	for _, what := range slices.Sorted(maps.Keys(m.Errors)) {
		text += fmt.Sprintf("\n    %d × %s", m.Errors[what], what)
	}
	return text
}

// median of values; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// summary is one proxy in one scenario: the medians of its rounds, and all of their errors.
type summary struct {
	cost, rate, p50, p99, memory, perIdle float64
	errors, failures                      int
}

func (r *report) summarize(scenario, peer string) summary {
	var s summary
	var cost, rate, p50, p99, memory, perIdle []float64
	for _, m := range r.Measurements {
		if m.Scenario != scenario || m.Peer != peer {
			continue
		}
		s.errors += m.errorCount()
		if m.Failure != "" {
			s.failures++
			continue
		}
		cost, rate = append(cost, m.cost()), append(rate, m.rate())
		p50, p99 = append(p50, m.P50), append(p99, m.P99)
		memory, perIdle = append(memory, float64(m.Memory)), append(perIdle, m.PerIdle)
	}
	s.cost, s.rate, s.p50, s.p99 = median(cost), median(rate), median(p50), median(p99)
	s.memory, s.perIdle = median(memory), median(perIdle)
	return s
}

// mark says beside a figure that not all went well.
func (s summary) mark() string {
	if s.errors > 0 || s.failures > 0 {
		return " ⚠"
	}
	return ""
}

// ratio is how one figure compares with another; a dash where there is nothing to compare.
func ratio(a, b float64) string {
	if a == 0 || b == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", a/b)
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
	fmt.Fprintf(&b, "%s, %d cores, rounds: %d, %g s each, medians.\n\n", r.Began.Format("2 January 2006"), r.Cores, r.Rounds, r.Seconds)
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

// costTable has a row for each scenario and a column for each proxy, and what PyServe costs beside the better of nginx
// and HAProxy.
func (r *report) costTable(b *bytes.Buffer, scenarios []scenarioNote) {
	fmt.Fprintf(b, "\nCPU time of the proxy for each request, in µs, and its ratio to nginx:\n\n| scenario |")
	for _, p := range r.Peers {
		fmt.Fprintf(b, " %s |", p.Name)
	}
	fmt.Fprintf(b, " pyserve to the better of nginx and HAProxy |\n|---|%s---:|\n", strings.Repeat("---:|", len(r.Peers)))
	for _, sc := range scenarios {
		fmt.Fprintf(b, "| %s: %s |", sc.Name, sc.About)
		nginx := r.summarize(sc.Name, nginxPeer).cost
		for _, p := range r.Peers {
			s := r.summarize(sc.Name, p.Name)
			fmt.Fprintf(b, " %s (%s)%s |", figure(s.cost), ratio(s.cost, nginx), s.mark())
		}
		fmt.Fprintf(b, " %s |\n", ratio(r.summarize(sc.Name, pyservePeer).cost, better(nginx, r.summarize(sc.Name, haproxyPeer).cost)))
	}
}

// better is the smaller of two figures of which either may be missing.
func better(a, b float64) float64 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// workTable has a row for each scenario and proxy, with every figure.
func (r *report) workTable(b *bytes.Buffer, scenarios []scenarioNote) {
	b.WriteString("\nEach proxy in each scenario:\n\n| scenario | proxy | CPU µs/request | to nginx | requests/s | p50 ms | p99 ms | memory MB | errors |\n|---|---|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, sc := range scenarios {
		nginx := r.summarize(sc.Name, nginxPeer).cost
		for _, p := range r.Peers {
			s := r.summarize(sc.Name, p.Name)
			fmt.Fprintf(b, "| %s | %s%s | %s | %s | %.0f | %.2f | %.2f | %.1f | %s |\n", sc.Name, p.Name, s.mark(), figure(s.cost), ratio(s.cost, nginx),
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

// complaint is an error where any measurement failed or saw errors.
func (r *report) complaint() error {
	for _, m := range r.Measurements {
		if m.Failure != "" || m.errorCount() > 0 {
			return errors.New("not every exchange was answered rightly: see what went wrong")
		}
	}
	return nil
}
