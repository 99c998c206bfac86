package forward

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// journal is a logger and what it was told from Info upwards.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// lines are those with these words.
func (j *journal) lines(words string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []string
	for line := range strings.Lines(j.text.String()) {
		if strings.Contains(line, words) {
			found = append(found, line)
		}
	}
	return found
}

// withheld is how many failures the lines tell of that had none.
func (j *journal) withheld(t *testing.T) (sum int) {
	t.Helper()
	for _, line := range j.lines("withheld=") {
		_, number, _ := strings.Cut(line, "withheld=")
		number, _, _ = strings.Cut(strings.TrimSpace(number), " ")
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

func TestOneFailureInAWhileHasALine(t *testing.T) {
	var n notices
	start := time.Unix(1e9, 0)
	down := subject{"/", ClassUpstreamBefore}
	for i, c := range []struct {
		after    time.Duration
		about    subject
		withheld uint64
		ok       bool
	}{
		{0, down, 0, true},
		{0, down, 0, false},
		{noticeInterval - 1, down, 0, false},
		{noticeInterval - 1, subject{"/other", ClassUpstreamBefore}, 0, true},
		{noticeInterval - 1, subject{"/", ClassUpstreamAfter}, 0, true},
		{noticeInterval, down, 2, true},
		{noticeInterval, down, 0, false},
		{3 * noticeInterval, down, 1, true},
		{4 * noticeInterval, down, 0, true},
	} {
		withheld, ok := n.admit(c.about, slog.LevelWarn, start.Add(c.after))
		if withheld != c.withheld || ok != c.ok {
			t.Errorf("%d: %d withheld, %v, want %d, %v", i, withheld, ok, c.withheld, c.ok)
		}
	}
}

func TestFailuresThatNoLineHasToldOfAreSummedUp(t *testing.T) {
	var n notices
	start := time.Unix(1e9, 0)
	down := subject{"/", ClassOurs}
	for range 5 {
		n.admit(down, slog.LevelError, start)
	}
	due := start.Add(noticeInterval + noticeGrace)
	if lines := n.settle(due.Add(-1)); len(lines) != 0 {
		t.Errorf("too early: %v", lines)
	}
	if lines := n.settle(due); len(lines) != 1 || lines[0].subject != down || lines[0].withheld != 4 || lines[0].level != slog.LevelError {
		t.Errorf("%+v", lines)
	}
	// That was a line as well.
	if _, ok := n.admit(down, slog.LevelError, due.Add(noticeInterval-1)); ok {
		t.Error("a line too much")
	}
	if withheld, ok := n.admit(down, slog.LevelError, due.Add(noticeInterval)); !ok || withheld != 1 {
		t.Error(withheld, ok)
	}
}

func TestWhatWasToldOfIsForgotten(t *testing.T) {
	var n notices
	start := time.Unix(1e9, 0)
	for i := range 1000 {
		n.admit(subject{fmt.Sprint("/", i), ClassUpstreamBefore}, slog.LevelWarn, start)
	}
	if lines := n.settle(start.Add(noticeInterval + noticeGrace)); len(lines) != 0 || len(n.about) != 0 {
		t.Errorf("%d lines, %d subjects left", len(lines), len(n.about))
	}
}

func TestNoticesRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log journal
		n := notices{logger: log.logger()}
		done, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			n.run(done)
		}()
		fail := func(times int) {
			for range times {
				n.admit(subject{"/", ClassUpstreamBefore}, slog.LevelWarn, time.Now())
			}
		}
		fail(3)
		<-time.After(noticeInterval)
		if lines := log.lines(""); len(lines) != 0 {
			t.Errorf("%q", lines)
		}
		<-time.After(noticeGrace + time.Second)
		if lines := log.lines(`level=WARN msg="more requests failed" class=upstream_before_bytes route=/ withheld=2`); len(lines) != 1 {
			t.Errorf("%q", &log.text)
		}
		fail(7)
		close(done)
		<-ended
		if lines := log.lines("withheld=7"); len(lines) != 1 || len(log.lines("")) != 2 {
			t.Errorf("%q", &log.text)
		}
	})
}

// TestAStormOfFailuresIsAFewLines: with what is known of the first, and how many there were.
func TestAStormOfFailuresIsAFewLines(t *testing.T) {
	for name, c := range map[string]struct {
		site site
		want []string
	}{
		"no backend":    {whole(), []string{"status=503", `sentence="No backend is healthy`}},
		"refused":       {whole(closedPort(t)), []string{"status=502", "backend=127.0.0.1:", "error=", "refused"}},
		"no such route": {to("/other", 1), nil}, // the client's doing
	} {
		t.Run(name, func(t *testing.T) {
			var log journal
			p := startWith(t, settings{options: Options{Logger: log.logger()}}, c.site)
			var all sync.WaitGroup
			for range 10 {
				all.Go(func() {
					w := connect(t, p)
					defer w.Close()
					for range 10 {
						w.say(ask("/"))
						if _, _, err := w.answer("GET"); err != nil {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := p.front.Drain(ctx); err != nil {
				t.Error(err)
			}
			if c.want == nil {
				if lines := log.lines(""); len(lines) != 0 {
					t.Errorf("%q", lines)
				}
				return
			}
			first := log.lines(`"request failed"`)
			if len(log.lines("<nil>")) > 0 || len(first) == 0 || len(log.lines("")) >= 100 || len(first)+log.withheld(t) != 100 {
				t.Fatalf("%q", &log.text)
			}
			for _, words := range append(c.want, "level=WARN", "route=/", "class=upstream_before_bytes") {
				if !strings.Contains(first[0], words) {
					t.Errorf("%q is not in %q", words, first[0])
				}
			}
		})
	}
}
