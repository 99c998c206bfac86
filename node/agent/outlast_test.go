package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyserve/pyserve/config/bundle"
)

// damaged gives a data directory whose node served revision 1, of a bundle with the route /1, and whose identity can no
// longer be read.
func damaged(t *testing.T, s *script) (dir string) {
	t.Helper()
	dir = t.TempDir()
	store(t, dir, s, bundleOf(t, "/1"))
	if err := s.identity(t).save(dir); err != nil {
		t.Fatal(err)
	}
	if r := boot(t, s, dir); r.revision() != 1 {
		t.Fatalf("it serves revision %d", r.revision())
	}
	if err := os.WriteFile(filepath.Join(dir, identityFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestANodeWhoseIdentityIsDamagedServesWhatItHas(t *testing.T) {
	s := newScript(t)
	dir := damaged(t, s)
	_, why := LoadIdentity(dir)
	if why == nil {
		t.Fatal("the identity is not damaged")
	}
	witness, err := Witness(dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, s, rigOptions{dir: dir, identity: witness})
	if r.revision() != 1 {
		t.Fatalf("it serves revision %d", r.revision())
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Outlast(ctx, why)
	}()
	eventually(t, "the log says why", func() bool {
		return r.log.has("cannot speak to control") && r.log.has("remove it and start the node with a join token")
	})
	cancel()
	<-done
	select {
	case <-s.streams:
		t.Error("it opened a stream")
	default:
	}
	if r.revision() != 1 {
		t.Errorf("in the end it serves revision %d", r.revision())
	}
}

// TestADamagedIdentityIsToldAgainAndAgain, for who reads only the end of a log.
func TestADamagedIdentityIsToldAgainAndAgain(t *testing.T) {
	directory, err := bundle.OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		log := &logBuffer{}
		a := &Agent{options: Options{Logger: log.logger(), Now: time.Now}}
		a.memory = memory{directory: directory, trial: openTrial(directory, time.Now, log.logger())}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour+time.Minute)
		defer cancel()
		a.Outlast(ctx, errors.New("it is damaged"))
		if n := strings.Count(log.String(), "level=ERROR"); n != 7 {
			t.Errorf("told %d times in an hour:\n%s", n, log.String())
		}
	})
}

// TestAWitnessBelievesItsOwnControlAlone: a bundle that another one signed is not served, whoever put it there.
func TestAWitnessBelievesItsOwnControlAlone(t *testing.T) {
	s, other := newScript(t), newScript(t)
	dir := damaged(t, s)
	store(t, dir, other, bundleOf(t, "/foreign"), bundleOf(t, "/foreign-too"))
	witness, err := Witness(dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if r := newRig(t, s, rigOptions{dir: dir, identity: witness}); r.node.Applied() != nil || !r.log.has(bundle.ErrSignature.Error()) {
		t.Errorf("it serves %v and says\n%s", r.node.Applied(), r.log)
	}
}

func TestAReleaseKeyThatIsNotOne(t *testing.T) {
	s := newScript(t)
	dir := damaged(t, s)
	path := filepath.Join(dir, releaseKeyFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"empty": "", "cut": string(good[:len(good)/2]), "of another kind": strings.ReplaceAll(string(good), "PUBLIC", "PRIVATE"),
		"two": string(good) + string(good), "endless": strings.Repeat("-", 1<<20),
	} {
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Witness(dir, "n1"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The next start with a whole identity puts it right.
	newRig(t, s, rigOptions{dir: dir, identity: s.identity(t)})
	if now, err := os.ReadFile(path); err != nil || string(now) != string(good) {
		t.Errorf("%v, the file holds\n%s", err, now)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Witness(dir, "n1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without one: %v", err)
	}
}

func FuzzParseReleaseKey(f *testing.F) {
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if key, err := parseReleaseKey(data); err == nil && len(key) != 32 {
			t.Errorf("a key of %d bytes was taken", len(key))
		}
	})
}
