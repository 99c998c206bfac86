package gossip

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// logWriter turns memberlist's lines, "[WARN] memberlist: text", into records of our logger. memberlist writes while it
// holds its lock and repeats itself with every packet, and parts of a line come from the network; so lines are cut, the
// everyday ones go to debug, and of the others each kind passes once a minute.
type logWriter struct {
	logger *slog.Logger
	closed atomic.Bool

	// mu guards last and taken.
	mu sync.Mutex
	// last is when a line of that beginning passed, and held how many have not since.
	last map[string]*passed
}

type passed struct {
	at   time.Time
	held int
}

const (
	maxLine = 512
	// kindLength is how much of a line tells its kind, and maxKinds how many kinds are remembered: some kinds begin
	// with a member's name.
	kindLength = 28
	maxKinds   = 256
	logEvery   = time.Minute
)

// everyday are the beginnings of warnings and errors that come with members that stop, start or are slow. Who joins,
// dies or takes another's name is logged by package cluster, from memberlist's state.
var everyday = []string{
	"Conflicting address for",
	"Error accepting TCP connection: ",
	"Failed UDP ping",
	"Failed fallback TCP ping",
	"Failed push/pull merge",
	"Failed to read remote state",
	"Failed to push local state",
	"Failed to send",
	"Failed to forward ack",
	"Got ping for unexpected node",
	"Push/Pull with",
	"Refuting a",
	"failed to receive and remove the stream label header",
}

func newLogWriter(logger *slog.Logger) *logWriter {
	return &logWriter{logger: logger, last: make(map[string]*passed)}
}

// close drops what memberlist still says after its shutdown.
func (w *logWriter) close() { w.closed.Store(true) }

// Write takes one line. It never fails.
func (w *logWriter) Write(line []byte) (int, error) {
	if w.closed.Load() {
		return len(line), nil
	}
	level, text := parseLine(line)
	attrs := []slog.Attr{slog.String("text", text)}
	if level > slog.LevelDebug {
		held, pass := w.limit(text, time.Now())
		if !pass {
			return len(line), nil
		}
		if held > 0 {
			attrs = append(attrs, slog.Int("more_like_it", held))
		}
	}
	w.logger.LogAttrs(context.Background(), level, "gossip layer", attrs...)
	return len(line), nil
}

// limit tells whether a line may pass, and how many like it did not before it.
func (w *logWriter) limit(text string, now time.Time) (held int, pass bool) {
	kind := text[:min(len(text), kindLength)]
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.last[kind]
	if p != nil && now.Sub(p.at) < logEvery {
		p.held++
		return 0, false
	}
	if p != nil {
		held = p.held
	} else if len(w.last) >= maxKinds {
		clear(w.last)
	}
	w.last[kind] = &passed{at: now}
	return held, true
}

// parseLine takes memberlist's prefix and level off a line.
func parseLine(line []byte) (slog.Level, string) {
	line = bytes.TrimSpace(line[:min(len(line), maxLine)])
	level := slog.LevelDebug
	if rest, found := bytes.CutPrefix(line, []byte("[")); found {
		if name, after, found := bytes.Cut(rest, []byte("] ")); found {
			level, line = levelOf(string(name)), after
		}
	}
	text := strings.ToValidUTF8(strings.TrimPrefix(string(line), "memberlist: "), "?")
	for _, beginning := range everyday {
		if strings.HasPrefix(text, beginning) {
			return slog.LevelDebug, text
		}
	}
	return level, text
}

// levelOf maps memberlist's levels. Its errors are warnings to us: it goes on, and no user has lost anything.
func levelOf(name string) slog.Level {
	switch name {
	case "WARN", "ERR", "ERROR":
		return slog.LevelWarn
	}
	return slog.LevelDebug
}
