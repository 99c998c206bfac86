package control

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/pyserve/pyserve/control/identity"
)

// startedAnew starts a control, has change done to its files, and gives it started again, with what it logs at warn.
func startedAnew(t *testing.T, change func(dir string)) (c *Control, dir, warnings string) {
	t.Helper()
	dir = t.TempDir()
	c, _ = New(optionsFor(dir))
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	change(dir)
	var log shared
	o := optionsFor(dir)
	o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return start(t, o), dir, log.text()
}

// shared is a log that is read while it is written.
type shared struct {
	mu  sync.Mutex // guards log
	log bytes.Buffer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *shared) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func TestDamagedFilesAreMadeAnewAndSetAside(t *testing.T) {
	for name, tt := range map[string]struct {
		file   string
		damage func(content []byte) []byte
		said   string
	}{
		"half a context":        {AdminFile, func(b []byte) []byte { return b[:len(b)/2] }, "are not a whole context"},
		"an empty context":      {AdminFile, func([]byte) []byte { return nil }, "it is empty"},
		"zeros for a context":   {AdminFile, func(b []byte) []byte { return make([]byte, len(b)) }, "are not a whole context"},
		"half a token":          {JoinTokenFile, func(b []byte) []byte { return b[:len(b)/2] }, "the token is malformed"},
		"an empty token":        {ControlTokenFile, func([]byte) []byte { return nil }, "the token is malformed"},
		"another secret":        {JoinTokenFile, otherSecret, "its secret is not that of token "},
		"the other kind's file": {JoinTokenFile, func(b []byte) []byte { return []byte(strings.Replace(string(b), "psj1", "psc1", 1)) }, "a node's token never makes a control"},
	} {
		t.Run(name, func(t *testing.T) {
			var damaged []byte
			c, dir, warnings := startedAnew(t, func(dir string) {
				path := filepath.Join(dir, tt.file)
				whole, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				damaged = tt.damage(whole)
				if err := os.WriteFile(path, damaged, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(path, 0o644); err != nil { // it is nobody else's to read all the same
					t.Fatal(err)
				}
			})
			path := filepath.Join(dir, tt.file)
			for _, text := range []string{path, tt.said, "made anew", path + ".damaged"} {
				if !strings.Contains(warnings, text) {
					t.Errorf("%q is not said in\n%s", text, warnings)
				}
			}
			if strings.Count(warnings, "\n") != 1 {
				t.Errorf("the log is\n%s", warnings)
			}
			for _, secret := range []string{"PRIVATE KEY", "MIG", string(bytes.TrimSpace(damaged))} {
				if secret != "" && strings.Contains(warnings, secret) {
					t.Errorf("the log holds %q", secret)
				}
			}
			for _, file := range []string{path, path + ".damaged"} {
				if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", file, info, err)
				}
			}
			if kept, err := os.ReadFile(path + ".damaged"); err != nil || !bytes.Equal(kept, damaged) {
				t.Errorf("%v; %d bytes were kept of %d", err, len(kept), len(damaged))
			}
			enrol(t, c, "n1")
			if _, err := identity.LoadContext(filepath.Join(dir, AdminFile)); err != nil {
				t.Error(err)
			}
		})
	}
}

// otherSecret gives a token with the same id and another secret.
func otherSecret(token []byte) []byte {
	fields := strings.Split(string(token), ".")
	secret := []byte(fields[2])
	secret[0] = 'A' + (secret[0]-'A'+1)%26
	fields[2] = string(secret)
	return []byte(strings.Join(fields, "."))
}

func TestFilesThatAreMissingOrNoLongerKnownAreNoDamage(t *testing.T) {
	_, dir, warnings := startedAnew(t, func(dir string) {
		for _, file := range []string{AdminFile, ControlTokenFile} {
			if err := os.Remove(filepath.Join(dir, file)); err != nil {
				t.Fatal(err)
			}
		}
		c, _ := New(optionsFor(dir))
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.RevokeToken(t.Context(), identity.TokenID(joinToken(t, c))); err != nil {
			t.Fatal(err)
		}
		if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
	})
	if aside, _ := filepath.Glob(filepath.Join(dir, "*.damaged")); len(aside) > 0 || warnings != "" {
		t.Errorf("set aside: %v; the log is\n%s", aside, warnings)
	}
}
