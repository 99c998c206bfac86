package gossip

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func logged(lines ...string) string {
	var b bytes.Buffer
	w := newLogWriter(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.MessageKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	for _, line := range lines {
		_, _ = w.Write([]byte(line))
	}
	return strings.TrimSpace(b.String())
}

func TestLogLevels(t *testing.T) {
	for line, want := range map[string]string{
		"[DEBUG] memberlist: Stream connection from=x\n": `level=DEBUG text="Stream connection from=x"`,
		"[INFO] memberlist: Suspect m1 has failed\n":     `level=DEBUG text="Suspect m1 has failed"`,
		"[WARN] memberlist: handler queue full":          `level=WARN text="handler queue full"`,
		"[ERR] memberlist: Decrypt packet failed: x":     `level=WARN text="Decrypt packet failed: x"`,
		"[ERR] memberlist: Failed to send UDP ping: x":   `level=DEBUG text="Failed to send UDP ping: x"`,
		"Err: Could not set the deadline":                `level=DEBUG text="Err: Could not set the deadline"`,
		"[":                                              `level=DEBUG text=[`,
		"":                                               `level=DEBUG text=""`,
	} {
		if got := logged(line); got != want {
			t.Errorf("%q becomes %s, want %s", line, got, want)
		}
	}
}

func TestLogCutsLongLines(t *testing.T) {
	if got := logged("[WARN] memberlist: " + strings.Repeat("x\xff", 10000)); len(got) > maxLine+100 {
		t.Errorf("a line of %d bytes", len(got))
	}
}

func TestLogTellsEachKindOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		w := newLogWriter(slog.New(slog.NewTextHandler(&b, nil)))
		write := func(line string) { _, _ = w.Write([]byte(line)) }
		for range 10 {
			write("[ERR] memberlist: Decrypt packet failed: no key from=1")
			write("[WARN] memberlist: handler queue full, dropping message")
		}
		if got := strings.Count(b.String(), "\n"); got != 2 {
			t.Errorf("%d lines, want 2:\n%s", got, b.String())
		}
		b.Reset()
		time.Sleep(logEvery)
		write("[ERR] memberlist: Decrypt packet failed: no key from=2")
		if !strings.Contains(b.String(), "more_like_it=9") {
			t.Errorf("got %s", b.String())
		}
		w.close()
		b.Reset()
		time.Sleep(logEvery)
		write("[ERR] memberlist: Decrypt packet failed: no key from=2")
		if b.Len() > 0 {
			t.Errorf("logged after the shutdown: %s", b.String())
		}
	})
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte("[WARN] memberlist: x\n"))
	f.Add([]byte("[WARN]"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if _, text := parseLine(line); len(text) > maxLine {
			t.Errorf("%d bytes", len(text))
		}
	})
}
