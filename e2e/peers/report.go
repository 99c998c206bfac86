package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// report is all of a run.
type report struct {
	Began        time.Time      `json:"began"`
	Cores        int            `json:"cores"`
	Processor    string         `json:"processor,omitempty"`
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
	// The proxies that are measured; none: all.
	Only []string `json:"only,omitempty"`
	// The scenario that has to cost the same.
	Like string `json:"like,omitempty"`
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
	lowest, highest                       float64 // cost
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
	if len(cost) > 0 {
		s.lowest, s.highest = slices.Min(cost), slices.Max(cost)
	}
	s.cost, s.rate, s.p50, s.p99 = median(cost), median(rate), median(p50), median(p99)
	s.memory, s.perIdle = median(memory), median(perIdle)
	return s
}

// ratio is what a peer costs beside the better of some others: the median of the rounds, in each of which all of them
// had the same machine to themselves or shared it with the same others. 0: there is nothing to compare.
func (r *report) ratio(scenario, peer string, others ...string) float64 {
	var ratios []float64
	for round := range r.Rounds {
		cost := r.costIn(round+1, scenario, peer)
		best := 0.0
		for _, other := range others {
			best = better(best, r.costIn(round+1, scenario, other))
		}
		if cost > 0 && best > 0 {
			ratios = append(ratios, cost/best)
		}
	}
	return median(ratios)
}

// beside is what a scenario costs a peer beside another scenario: the median of the rounds. 0: there is nothing to compare.
func (r *report) beside(peer, scenario, other string) float64 {
	var ratios []float64
	for round := range r.Rounds {
		cost, like := r.costIn(round+1, scenario, peer), r.costIn(round+1, other, peer)
		if cost > 0 && like > 0 {
			ratios = append(ratios, cost/like)
		}
	}
	return median(ratios)
}

// costIn is the cost in one round; 0: unknown.
func (r *report) costIn(round int, scenario, peer string) float64 {
	for _, m := range r.Measurements {
		if m.Round == round && m.Scenario == scenario && m.Peer == peer && m.Failure == "" {
			return m.cost()
		}
	}
	return 0
}

// better is the smaller of two figures of which either may be missing.
func better(a, b float64) float64 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// others is the share of the machine that went to programs which have nothing to do with the measurements.
func (r *report) others() float64 {
	var used, had float64
	for _, m := range r.Measurements {
		used += m.OthersSeconds
		had += m.Seconds * float64(r.Cores)
	}
	if had == 0 {
		return 0
	}
	return used / had
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
