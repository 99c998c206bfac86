package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// What a process may have more of afterwards than before. Goroutines and sockets come and go with gossip, control's stream
// and probes; connections to backends that are kept for the next request are counted apart. A node keeps up to 32 pipes for
// splice, two descriptors each, for as long as it lives.
const (
	goroutineSlack = 8
	socketSlack    = 8
	pipeSlack      = 64
	otherSlack     = 4
)

// keptFor is how long a node keeps a connection to a backend that nobody needs, and some time to notice.
const keptFor = 90 * time.Second

// memoryBound is what no node may use, in bytes, and memoryGrowth by what factor, and by how much beside it, the second half
// of a run may be above the first.
const (
	memoryBound  = 512 << 20
	memoryGrowth = 1.25
	memoryRoom   = 24 << 20
)

// level is what a process uses.
type level struct {
	goroutines, memory    int
	sockets, pipes, other int // descriptors; all 0 where there is no /proc
	kept, busy            int // connections to backends, those that are kept for the next request and those in use
	tunnels, inFlight     int
	places                int // of circuit breakers
}

func (l level) String() string {
	return fmt.Sprintf("%d goroutines, %d sockets (to backends: %d kept, %d in use), %d pipes, %d other descriptors, %d tunnels, %d requests, %d places, %d MiB",
		l.goroutines, l.sockets, l.kept, l.busy, l.pipes, l.other, l.tunnels, l.inFlight, l.places, l.memory>>20)
}

// daemons are the processes that are weighed.
func (s *soak) daemons() []*daemon { return append(slices.Clone(s.cluster.nodes), s.cluster.control) }

func (s *soak) levels() map[string]level {
	levels := map[string]level{}
	for _, d := range s.daemons() {
		l, err := levelOf(d)
		if err != nil {
			s.t.Fatal(err)
		}
		levels[d.name] = l
		s.t.Logf("%s before: %s", d.name, l)
	}
	return levels
}

// levelOf asks a process's /metrics, over a connection that is closed afterwards, and the kernel.
func levelOf(d *daemon) (level, error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + d.admin + "/metrics")
	if err != nil {
		return level{}, err
	}
	defer response.Body.Close()
	var l level
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		series, text, _ := strings.Cut(lines.Text(), " ") // the labels that count here hold no spaces
		if into := l.series(series); into != nil {
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return l, fmt.Errorf("%s of %s: %w", series, d.name, err)
			}
			*into += int(value)
		}
	}
	l.describe(d.cmd.Process.Pid)
	return l, lines.Err()
}

// series is where a metric belongs; nil: nowhere.
func (l *level) series(name string) *int {
	switch name {
	case "go_goroutines":
		return &l.goroutines
	case "process_resident_memory_bytes":
		return &l.memory
	case "pyserve_tunnels":
		return &l.tunnels
	case "pyserve_requests_in_flight":
		return &l.inFlight
	}
	switch {
	case strings.HasPrefix(name, "pyserve_circuit_breaker_requests{"):
		return &l.places
	case !strings.HasPrefix(name, "pyserve_backend_connections{"):
		return nil
	case strings.Contains(name, `state="idle"`):
		return &l.kept
	}
	return &l.busy
}

// describe counts descriptors, where there is a /proc.
func (l *level) describe(pid int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, file := range files {
		switch what, err := os.Readlink(file); {
		case err != nil: // closed meanwhile
		case strings.HasPrefix(what, "socket:"):
			l.sockets++
		case strings.HasPrefix(what, "pipe:"):
			l.pipes++
		default:
			l.other++
		}
	}
}

// settles wants everything to be given back, when all clients have gone.
func (s *soak) settles(before map[string]level) {
	eventually(s.t, "the backends are told that their clients have gone", func() string {
		if n := s.serving.Load(); n > 0 {
			return fmt.Sprintf("%d requests and WebSockets go on", n)
		}
		return ""
	})
	for _, d := range s.daemons() {
		var now level
		eventually(s.t, d.name+" gives back what it used", func() string {
			var err error
			if now, err = levelOf(d); err != nil {
				return err.Error()
			}
			return now.above(before[d.name])
		})
		s.t.Logf("%s after: %s", d.name, now)
	}
	if s.length > soakTaste {
		s.lettingGo()
	}
}

// above says what there is too much of.
func (l level) above(before level) string {
	switch {
	case l.tunnels > 0, l.inFlight > 0, l.busy > 0, l.places > 0,
		l.goroutines > before.goroutines+goroutineSlack,
		l.sockets-l.kept > before.sockets-before.kept+socketSlack,
		l.pipes > before.pipes+pipeSlack,
		l.other > before.other+otherSlack:
		return fmt.Sprintf("%s; before: %s", l, before)
	}
	return ""
}

// lettingGo waits until kept connections to backends are closed, too.
func (s *soak) lettingGo() {
	ctx, cancel := context.WithTimeout(s.t.Context(), keptFor)
	defer cancel()
	for _, n := range s.cluster.nodes {
		for {
			l, err := levelOf(n)
			if err == nil && l.kept == 0 {
				s.t.Logf("%s in the end: %s", n.name, l)
				break
			}
			if !pause(ctx, time.Second) {
				s.t.Errorf("%s keeps connections to backends that nobody has needed for %s: %s, %v", n.name, keptFor, l, err)
				return
			}
		}
	}
}

// weights are the memory of each node, every second.
type weights struct {
	mu    sync.Mutex // guards nodes
	nodes map[string][]int
}

// weigh weighs the nodes until ctx ends.
func (s *soak) weigh(ctx context.Context, running *sync.WaitGroup) *weights {
	w := &weights{nodes: map[string][]int{}}
	running.Go(func() {
		for pause(ctx, time.Second) {
			for _, n := range s.cluster.nodes {
				l, err := levelOf(n)
				if err != nil {
					s.mistake("weigh %s: %v", n.name, err)
					return
				}
				w.mu.Lock()
				w.nodes[n.name] = append(w.nodes[n.name], l.memory)
				w.mu.Unlock()
			}
		}
	})
	return w
}

// check wants memory to be bounded, and, where there was time to tell, not to grow any more.
func (w *weights) check(t *testing.T, length time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, all := range w.nodes {
		if len(all) < 4 {
			continue
		}
		most := slices.Max(all)
		quarter := len(all) / 4
		second, last := mean(all[quarter:2*quarter]), mean(all[3*quarter:])
		t.Logf("%s: %d MiB at most, %d MiB in the second quarter, %d MiB in the last", name, most>>20, second>>20, last>>20)
		if most > memoryBound {
			t.Errorf("%s used %d MiB", name, most>>20)
		}
		if length > soakTaste && float64(last) > memoryGrowth*float64(second)+memoryRoom {
			t.Errorf("%s grows: %d MiB in the second quarter, %d MiB in the last", name, second>>20, last>>20)
		}
	}
}

func mean(values []int) int {
	sum := 0
	for _, v := range values {
		sum += v
	}
	return sum / max(len(values), 1)
}
