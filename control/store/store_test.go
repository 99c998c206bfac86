package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/pyserve/pyserve/config/bundle"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

func TestMain(m *testing.M) {
	if child, ok := children[os.Getenv("STORE_TEST_CHILD")]; ok {
		child(os.Getenv("STORE_TEST_DIR"))
		return
	}
	// raft's shutdown forgets to answer some futures, and waiting for one cannot be ended; a crash in a test leaves them.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/raft.(*deferError).Error"))
}

// children are what the test binary does where it is started again, as a process that can be killed.
var children = map[string]func(dir string){
	"commits forever": commitsForever,
	"full disk":       fullDisk,
}

// child starts the test binary again; lines gives what it prints.
func child(t *testing.T, name, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+name, "STORE_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, bufio.NewScanner(out)
}

func openIn(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Dir: dir, Name: "c1", Key: testKey, Now: func() time.Time { return someTime }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func proposal(s *Store, b *bundle.Bundle, document string) Proposal {
	epoch, revision := s.Next()
	return Proposal{
		Release: releaseOf(epoch, revision, b), Parent: revision - 1, Bundle: b, Document: []byte(document),
		Author: "admin", Message: "because",
	}
}

func mustCommit(t testing.TB, s *Store, bodies map[string]string, document string) Revision {
	t.Helper()
	r, err := s.Commit(t.Context(), proposal(s, routes(t, bodies), document))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEmptyStoreHasNothingActive(t *testing.T) {
	s := openIn(t, t.TempDir())
	if s.Active() != nil || len(s.Revisions()) != 0 || len(s.Nodes()) != 0 || len(s.Tokens()) != 0 {
		t.Errorf("got %v %v %v %v", s.Active(), s.Revisions(), s.Nodes(), s.Tokens())
	}
	if epoch, revision := s.Next(); epoch != 1 || revision != 1 {
		t.Errorf("next is %d, %d", epoch, revision)
	}
	if _, err := s.Get(1); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestCommitBecomesActiveAndOldOnesAreKept(t *testing.T) {
	s := openIn(t, t.TempDir())
	first := mustCommit(t, s, map[string]string{"a": "one"}, "first")
	second := mustCommit(t, s, map[string]string{"a": "two"}, "second")
	active := s.Active()
	if !reflect.DeepEqual(active.Revision, s.Revisions()[0]) || active.Digest != second.Digest || string(active.Document) != "second" {
		t.Errorf("active is %+v", active)
	}
	if second.Number != 2 || second.Parent != 1 || !second.Active || !second.Created.Equal(someTime) || second.Author != "admin" || second.Message != "because" {
		t.Errorf("committed %+v", second)
	}
	old, err := s.Get(1)
	if err != nil || old.Bundle.Digest() != first.Digest || string(old.Document) != "first" || old.Active || old.Release.GetRevision() != 1 {
		t.Errorf("got %+v, %v", old, err)
	}
	if got, err := s.Get(2); err != nil || got.Bundle != active.Bundle || !got.Active {
		t.Errorf("got %+v, %v", got, err)
	}
	// A way back is a new revision.
	third, err := s.Commit(t.Context(), proposal(s, old.Bundle, string(old.Document)))
	if err != nil || third.Number != 3 || third.Digest != first.Digest {
		t.Errorf("got %+v, %v", third, err)
	}
}

func TestCommitOverAnotherRevisionIsAConflict(t *testing.T) {
	s := openIn(t, t.TempDir())
	stale := proposal(s, routes(t, map[string]string{"a": "stale"}), "")
	mustCommit(t, s, map[string]string{"a": "one"}, "")
	if _, err := s.Commit(t.Context(), stale); !errors.Is(err, ErrConflict) {
		t.Fatalf("got %v", err)
	}
	if s.Active().Number != 1 {
		t.Fatalf("active is %d", s.Active().Number)
	}
}

func TestOfManyCommitsAtOnceExactlyOneWins(t *testing.T) {
	s := openIn(t, t.TempDir())
	const writers = 8
	errs := make(chan error, writers)
	var ready, done sync.WaitGroup
	ready.Add(writers)
	for i := range writers {
		done.Go(func() {
			p := proposal(s, routes(t, map[string]string{"a": fmt.Sprint(i)}), "")
			ready.Done()
			ready.Wait()
			_, err := s.Commit(t.Context(), p)
			errs <- err
		})
	}
	done.Wait()
	close(errs)
	won := 0
	for err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrConflict):
			t.Error(err)
		}
	}
	if won != 1 || len(s.Revisions()) != 1 {
		t.Fatalf("%d won, %d revisions", won, len(s.Revisions()))
	}
}

func TestProposalThatDoesNotFitItselfIsRefused(t *testing.T) {
	s := openIn(t, t.TempDir())
	b, other := routes(t, map[string]string{"a": "one"}), routes(t, map[string]string{"a": "two"})
	for name, change := range map[string]func(*Proposal){
		"no release":     func(p *Proposal) { p.Release = nil },
		"no bundle":      func(p *Proposal) { p.Bundle = nil },
		"another bundle": func(p *Proposal) { p.Bundle = other },
		"another number": func(p *Proposal) { p.Release.Revision = 2 },
		"long document":  func(p *Proposal) { p.Document = make([]byte, MaxDocumentBytes+1) },
		"not UTF-8":      func(p *Proposal) { p.Message = "\xff" },
	} {
		p := proposal(s, b, "")
		change(&p)
		if _, err := s.Commit(t.Context(), p); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if s.Active() != nil {
		t.Error("something was committed")
	}
}

func TestNodesAndTokensAreRemembered(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	n1 := Node{Name: "n1", KeyHash: [32]byte{1}, Enrolled: someTime}
	n2 := Node{Name: "n2", KeyHash: [32]byte{2}, Enrolled: someTime, Left: true}
	token := Token{ID: "t1", Kind: "join", Hash: [32]byte{3}, Created: someTime}
	ctx := t.Context()
	err := errors.Join(s.PutNode(ctx, n2), s.PutNode(ctx, Node{Name: "n1"}), s.PutNode(ctx, n1), s.PutNode(ctx, Node{Name: "n3"}),
		s.RemoveNode(ctx, "n3"), s.RemoveNode(ctx, "nobody"), s.PutToken(ctx, token))
	if err != nil {
		t.Fatal(err)
	}
	check := func(s *Store) {
		t.Helper()
		if got := s.Nodes(); !reflect.DeepEqual(got, []Node{n1, n2}) {
			t.Errorf("nodes %+v", got)
		}
		if got, ok := s.Node("n2"); !ok || got != n2 {
			t.Errorf("node %+v, %v", got, ok)
		}
		if _, ok := s.Node("n3"); ok {
			t.Error("n3 is still known")
		}
		if got, ok := s.Token("t1"); !ok || got != token || !reflect.DeepEqual(s.Tokens(), []Token{token}) {
			t.Errorf("token %+v, %v, all %+v", got, ok, s.Tokens())
		}
	}
	check(s)
	if err := s.PutNode(ctx, Node{}); err == nil {
		t.Error("a node without a name was remembered")
	}
	closeStore(t, s)
	check(openIn(t, dir))
}

func TestChangedIsToldOnce(t *testing.T) {
	s := openIn(t, t.TempDir())
	changed := s.Changed()
	select {
	case <-changed:
		t.Fatal("nothing changed yet")
	default:
	}
	mustCommit(t, s, map[string]string{"a": "one"}, "")
	<-changed
	if next := s.Changed(); next == changed {
		t.Fatal("the same channel again")
	}
}

// history is everything that a store says about itself.
func history(t testing.TB, s *Store) []byte {
	t.Helper()
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return written(t, s.machine.state)
}

func TestReopenedStoreHasEverything(t *testing.T) {
	for name, snapshots := range map[string]int{"from the log": 0, "from a snapshot": 1, "from a snapshot and the log": 2} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openIn(t, dir)
			for i := range 80 {
				mustCommit(t, s, map[string]string{"same": "same", "changing": fmt.Sprint(i)}, fmt.Sprint("document ", i))
				if snapshots == 2 && (i == 30 || i == 60) || snapshots == 1 && i == 79 {
					if err := s.engine.raft.Snapshot().Error(); err != nil {
						t.Fatal(err)
					}
				}
			}
			before := history(t, s)
			closeStore(t, s)
			again := openIn(t, dir)
			if !bytes.Equal(history(t, again), before) {
				t.Fatal("the reopened store is another one")
			}
			if r := mustCommit(t, again, map[string]string{"a": "b"}, ""); r.Number != 81 {
				t.Fatalf("the next revision is %d", r.Number)
			}
		})
	}
}

// TestCopyOfAnOpenStoreHasWhatWasCommitted copies the files at a moment when nothing was closed, as a crash would
// leave them.
func TestCopyOfAnOpenStoreHasWhatWasCommitted(t *testing.T) {
	dir, copied := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	s := openIn(t, dir)
	mustCommit(t, s, map[string]string{"a": "one"}, "first")
	mustCommit(t, s, map[string]string{"a": "two"}, "second")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	again := openIn(t, copied)
	if !bytes.Equal(history(t, again), history(t, s)) {
		t.Fatal("the copy is another one")
	}
}

// commitsForever commits and tells each revision when Commit has returned.
func commitsForever(dir string) {
	s, err := Open(context.Background(), Options{Dir: dir, Name: "c1", Key: testKey})
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	for {
		_, next := s.Next()
		r, err := s.Commit(context.Background(), proposal(s, routes(fatal{}, map[string]string{"a": fmt.Sprint(next)}), fmt.Sprint(next)))
		if err != nil {
			fmt.Println("error:", err)
			return
		}
		fmt.Println(r.Number)
		if r.Number%7 == 0 {
			s.engine.raft.Snapshot()
		}
	}
}

// fatal stands for a test where there is none.
type fatal struct{}

func (fatal) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func TestKilledProcessLosesNothingThatWasCommitted(t *testing.T) {
	dir := t.TempDir()
	told := uint64(0)
	for round := range 8 {
		cmd, lines := child(t, "commits forever", dir)
		for i := 0; i <= 3*round && lines.Scan(); i++ {
			if _, err := fmt.Sscan(lines.Text(), &told); err != nil {
				t.Fatalf("the child said %q", lines.Text())
			}
		}
		if err := cmd.Process.Kill(); err != nil { // SIGKILL
			t.Fatal(err)
		}
		for lines.Scan() { // what it said before it died
			fmt.Sscan(lines.Text(), &told)
		}
		cmd.Wait()
		s := openIn(t, dir)
		active := s.Active()
		if active == nil || active.Number < told {
			t.Fatalf("revision %d was committed, now %+v is active", told, active)
		}
		if string(active.Document) != fmt.Sprint(active.Number) {
			t.Fatalf("revision %d has document %q", active.Number, active.Document)
		}
		for number := max(1, active.Number-20); number <= active.Number; number++ {
			if got, err := s.Get(number); err != nil || string(got.Document) != fmt.Sprint(number) {
				t.Fatalf("revision %d is %+v, %v", number, got, err)
			}
		}
		told = active.Number
		closeStore(t, s)
	}
}

func TestSecondOpenOfADirectoryFailsClearly(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	for range 2 {
		_, err := Open(t.Context(), Options{Dir: dir, Name: "c1", Key: testKey})
		want := fmt.Sprintf("the data directory %s is in use by another process (pid %d)", dir, os.Getpid())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("got %v, want %q", err, want)
		}
	}
	closeStore(t, s)
	openIn(t, dir)
}

func TestServerKeepsItsIDWhenTheControlIsRenamed(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	mustCommit(t, s, map[string]string{"a": "one"}, "")
	closeStore(t, s)
	s, err := Open(t.Context(), Options{Dir: dir, Name: "another", Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	servers := s.engine.raft.GetConfiguration().Configuration().Servers
	if len(servers) != 1 || servers[0].ID != "c1" || s.Active().Number != 1 {
		t.Fatalf("servers %v", servers)
	}
}

func TestOpenWithoutDirectoryOrNameIsRefused(t *testing.T) {
	for _, o := range []Options{{Name: "c1", Key: testKey}, {Dir: t.TempDir(), Key: testKey}, {Dir: t.TempDir(), Name: "c1"}} {
		if _, err := Open(t.Context(), o); err == nil {
			t.Errorf("%+v was opened", o)
		}
	}
}

func TestDirectoryThatCannotBeIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		if _, err := Open(t.Context(), Options{Dir: dir, Name: "c1", Key: testKey}); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("got %v", err)
		}
	}
}

func TestSecretsAreReadableByTheOwnerAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := openIn(t, dir)
	mustCommit(t, s, map[string]string{"a": "one"}, "")
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, logFile): 0o600, filepath.Join(dir, snapshotsDir): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func TestUnfinishedWorkOfACrashIsRemoved(t *testing.T) {
	dir := t.TempDir()
	unfinished := filepath.Join(dir, snapshotsDir, "1-2-3.tmp")
	if err := os.MkdirAll(unfinished, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, logFile+".new"), []byte("half a log"), 0o600); err != nil {
		t.Fatal(err)
	}
	openIn(t, dir)
	entries, err := os.ReadDir(dir)
	if _, gone := os.Stat(unfinished); err != nil || len(entries) != 3 || !os.IsNotExist(gone) {
		t.Fatalf("there are %v, %v", entries, err)
	}
}

// damaged makes a store with a snapshot and entries after it, lets harm come to its files, and gives Open's error.
func damaged(t *testing.T, harm func(dir string) error) error {
	t.Helper()
	dir := t.TempDir()
	s := openIn(t, dir)
	for i := range 20 {
		mustCommit(t, s, map[string]string{"a": fmt.Sprint(i)}, strings.Repeat(fmt.Sprint(i), 10_000))
		if i == 10 {
			if err := s.engine.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	closeStore(t, s)
	if err := harm(dir); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Options{Dir: dir, Name: "c1", Key: testKey})
	if err == nil {
		closeStore(t, s)
	}
	return err
}

func snapshotState(t *testing.T, dir string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, snapshotsDir, "*", "state.bin"))
	if err != nil || len(found) != 1 {
		t.Fatalf("snapshots %v, %v", found, err)
	}
	return found[0]
}

func TestDamageIsAClearErrorAndNotAPanic(t *testing.T) {
	overwrite := func(path string, offset int64, with []byte) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt(with, offset)
		return err
	}
	for name, c := range map[string]struct {
		harm func(dir string) error
		want string
	}{
		"snapshot damaged": {func(dir string) error {
			return overwrite(snapshotState(t, dir), 20, []byte{0xff, 0xff})
		}, "move it away"},
		"snapshot cut": {func(dir string) error { return os.Truncate(snapshotState(t, dir), 30) }, "move it away"},
		"log missing":  {func(dir string) error { return os.Remove(filepath.Join(dir, logFile)) }, "raft.db is missing"},
		"log empty":    {func(dir string) error { return os.Truncate(filepath.Join(dir, logFile), 0) }, "raft.db"},
		"log cut":      {func(dir string) error { return os.Truncate(filepath.Join(dir, logFile), 10_000) }, "raft.db"},
		"log garbage": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, logFile), bytes.Repeat([]byte("garbage!"), 10_000), 0o600)
		}, "raft.db"},
		"log begins too late": {func(dir string) error {
			log, err := openBolt(filepath.Join(dir, logFile))
			if err != nil {
				return err
			}
			return errors.Join(log.DeleteRange(1, 18), log.Close())
		}, "what was between is lost"},
		"entry missing": {func(dir string) error {
			log, err := openBolt(filepath.Join(dir, logFile))
			if err != nil {
				return err
			}
			return errors.Join(log.DeleteRange(18, 18), log.Close())
		}, "entry 18"},
		"entry of a newer version": {func(dir string) error {
			return appendEntry(dir, sealed(t, &storev1.Command{Version: commandVersion + 1}))
		}, "newer version"},
		"entry of garbage": {func(dir string) error { return appendEntry(dir, []byte("garbage")) }, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			err := damaged(t, c.harm)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want an error with %q", err, c.want)
			}
		})
	}
	// Where the log still holds all that the snapshot did, moving it away is all that is needed.
	err := damaged(t, func(dir string) error { return os.RemoveAll(filepath.Dir(snapshotState(t, dir))) })
	if err != nil {
		t.Fatal(err)
	}
}

func appendEntry(dir string, data []byte) error {
	log, err := openBolt(filepath.Join(dir, logFile))
	if err != nil {
		return err
	}
	defer log.Close()
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	return log.StoreLog(&raft.Log{Index: last + 1, Term: 1, Type: raft.LogCommand, Data: data})
}

// TestUnknownCommandStopsTheMachine is about a command that comes while the store runs, as from a newer control.
func TestUnknownCommandStopsTheMachine(t *testing.T) {
	s := openIn(t, t.TempDir())
	mustCommit(t, s, map[string]string{"a": "one"}, "")
	f := s.engine.raft.Apply(sealed(t, &storev1.Command{Version: commandVersion + 1}), time.Second)
	if err := s.outcome(f); !errors.Is(err, errTooNew) {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Commit(t.Context(), proposal(s, routes(t, map[string]string{"a": "two"}), "")); !errors.Is(err, errTooNew) {
		t.Fatalf("got %v", err)
	}
	if s.Active().Number != 1 {
		t.Fatalf("active is %d", s.Active().Number)
	}
	if err := s.engine.raft.Snapshot().Error(); err == nil {
		t.Fatal("a state that cannot go on was written as a snapshot")
	}
}

func TestWriteEndsWithItsContext(t *testing.T) {
	s := openIn(t, t.TempDir())
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Commit(cancelled, proposal(s, routes(t, nil), "")); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if s.Active() != nil {
		t.Fatal("it was committed all the same")
	}
	// The machine waits for this lock, as it would for a slow disk.
	p := proposal(s, routes(t, nil), "")
	reached, late := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.machine.mu.RLock()
	go func() {
		late <- s.await(ctx, func(r *raft.Raft) raft.Future {
			close(reached)
			return r.Apply(mustEncode(t, s, p), time.Second)
		})
	}()
	<-reached
	cancel()
	if err := <-late; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "may yet be kept") {
		t.Fatalf("got %v", err)
	}
	changed := s.machine.changed
	s.machine.mu.RUnlock()
	<-changed
	if s.Active().Number != 1 {
		t.Fatal("it was not kept")
	}
}

func mustEncode(t *testing.T, s *Store, p Proposal) []byte {
	data, err := testSeal.encodeCommand(commitOf(t, newState(), p.Bundle, string(p.Document)))
	if err != nil {
		t.Error(err)
	}
	return data
}

func TestOpenEndsWithItsContext(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := Open(cancelled, Options{Dir: dir, Name: "c1", Key: testKey}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	openIn(t, dir) // and leaves nothing locked
}

func TestClosedStoreRefusesWritesAndAnswersReads(t *testing.T) {
	s := openIn(t, t.TempDir())
	mustCommit(t, s, map[string]string{"a": "one"}, "")
	closeStore(t, s)
	closeStore(t, s)
	if _, err := s.Commit(t.Context(), proposal(s, routes(t, nil), "")); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if err := s.PutNode(t.Context(), Node{Name: "n1"}); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if s.Active().Number != 1 || len(s.Revisions()) != 1 {
		t.Error("reads are no longer answered")
	}
}

func TestCloseFinishesWritesUnderWay(t *testing.T) {
	s := openIn(t, t.TempDir())
	var writers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() {
			for n := 0; ; n++ {
				err := s.PutNode(t.Context(), Node{Name: fmt.Sprintf("n%d-%d", i, n)})
				if errors.Is(err, ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for len(s.Nodes()) < 20 {
		<-s.Changed()
	}
	closeStore(t, s)
	writers.Wait()
}

func TestRaftsLifeIsLoggedAtDebug(t *testing.T) {
	var out bytes.Buffer
	dir := t.TempDir()
	run := func(level slog.Level) string {
		out.Reset()
		logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}))
		s, err := Open(t.Context(), Options{Dir: dir, Name: "c1", Key: testKey, Logger: logger})
		if err != nil {
			t.Fatal(err)
		}
		mustCommit(t, s, map[string]string{"a": "one"}, "")
		if err := s.engine.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		return out.String()
	}
	if got := run(slog.LevelInfo); got != "" {
		t.Errorf("an uneventful life was logged:\n%s", got)
	}
	if got := run(slog.LevelDebug); !strings.Contains(got, "raft: election won") {
		t.Errorf("raft's log was lost:\n%s", got)
	}
}

// BenchmarkCommit is the latency of a small change, which the disk's fsync makes up.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{10, 10_000, 100_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := openIn(b, b.TempDir())
			bodies := map[string]string{}
			for i := range size {
				bodies[fmt.Sprintf("/route/%d", i)] = fmt.Sprint("the body of route ", i)
			}
			mustCommit(b, s, bodies, "")
			n := 0
			for b.Loop() {
				b.StopTimer()
				n++
				bodies["/route/1"] = fmt.Sprint("changed ", n)
				p := proposal(s, routes(b, bodies), "")
				b.StartTimer()
				if _, err := s.Commit(b.Context(), p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s := openIn(b, dir)
	mustCommit(b, s, map[string]string{"a": "one"}, "")
	closeStore(b, s)
	for b.Loop() {
		s, err := Open(b.Context(), Options{Dir: dir, Name: "c1", Key: testKey})
		if err != nil {
			b.Fatal(err)
		}
		closeStore(b, s)
	}
}
