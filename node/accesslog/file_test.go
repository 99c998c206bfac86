package accesslog

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func openFile(t *testing.T, path string) *File {
	t.Helper()
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, f *File, text string) {
	t.Helper()
	if _, err := f.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func follow(t *testing.T, f *File, want bool) {
	t.Helper()
	if reopened, err := f.follow(); reopened != want || err != nil {
		t.Fatalf("reopened %t, %v, want %t", reopened, err, want)
	}
}

func TestFileIsAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := openFile(t, path)
	write(t, f, "after\n")
	follow(t, f, false)
	// As copytruncate does it: no hole is left where the old lines were.
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	follow(t, f, false)
	write(t, f, "later\n")
	if got := read(t, path); got != "later\n" {
		t.Errorf("%q", got)
	}
}

func TestNewFileIsNotForEverybody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	openFile(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		t.Errorf("mode %v", mode)
	}
}

func TestFileThatWasMovedAwayIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	f := openFile(t, path)
	write(t, f, "1\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, f, "2\n")
	follow(t, f, true)
	follow(t, f, false)
	write(t, f, "3\n")
	if old, now := read(t, path+".1"), read(t, path); old != "1\n2\n" || now != "3\n" {
		t.Errorf("the old file has %q, the new one %q", old, now)
	}
}

func TestFileThatWasReplacedIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	f := openFile(t, path)
	if err := os.WriteFile(path+".new", []byte("new\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	follow(t, f, true)
	write(t, f, "line\n")
	if got := read(t, path); got != "new\nline\n" {
		t.Errorf("%q", got)
	}
}

func TestOldFileIsKeptWhereThereIsNoNewOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f := openFile(t, filepath.Join(dir, "access.log"))
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if reopened, err := f.follow(); reopened || err == nil {
		t.Fatalf("reopened %t, %v in a directory that is gone", reopened, err)
	}
	write(t, f, "line\n")
	if got := read(t, filepath.Join(dir+".old", "access.log")); got != "line\n" {
		t.Errorf("%q", got)
	}
}

func TestClosedFile(t *testing.T) {
	f := openFile(t, filepath.Join(t.TempDir(), "access.log"))
	for range 2 {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("written to a closed file")
	}
	if reopened, err := f.follow(); reopened || err == nil {
		t.Error("a closed file was opened again")
	}
}

func TestOpenFileSaysWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "access.log")
	if _, err := OpenFile(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("%v, want an error with the path", err)
	}
}

func TestLogFollowsItsFileWithinASecond(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	synctest.Test(t, func(t *testing.T) {
		f := openFile(t, path)
		l := newLog(t, Options{Writer: f})
		logTarget(l, "/one")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1100 * time.Millisecond) // with nothing to write: the old file's space is wanted back
		synctest.Wait()
		if got := read(t, path); got != "" {
			t.Errorf("%q", got)
		}
		logTarget(l, "/two")
		closeLog(t, l)
		if old, now := read(t, path+".1"), read(t, path); !strings.Contains(old, "/one") || !strings.Contains(now, "/two") ||
			strings.Contains(old, "/two") {
			t.Errorf("the old file has %q, the new one %q", old, now)
		}
	})
}

func TestFileThatCannotBeOpenedAgainIsReported(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var reports bytes.Buffer
		f := openFile(t, filepath.Join(dir, "access.log"))
		l := newLog(t, Options{Writer: f, Logger: slog.New(slog.NewTextHandler(&reports, nil))})
		if err := os.Rename(dir, dir+".old"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if n := strings.Count(reports.String(), "opening the access log again failed"); n != 1 {
			t.Errorf("%d reports in 30 s, want 1:\n%s", n, &reports)
		}
		logTarget(l, "/")
		closeLog(t, l)
		if l.Written() != 1 || read(t, filepath.Join(dir+".old", "access.log")) == "" {
			t.Error("the entry was lost")
		}
	})
}

// The rest of a line whose beginning is in the old file has no place in the new one.
func TestTornLineEndsWithItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	f := openFile(t, path)
	d := &disk{}
	d.fill(10, errFull)
	l := &Log{maxValue: 100}
	l.queue.init(64)
	w := newWriter(l, Options{Writer: d}.withDefaults())
	logTarget(l, "/torn")
	w.drain()
	if !w.torn {
		t.Fatal("no line is torn")
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	w.to, w.file = f, f
	w.reopen()
	logTarget(l, "/next")
	w.drain()
	if got := read(t, path); strings.Contains(got, "torn") || textLine.FindString(got) == "" {
		t.Errorf("%q", got)
	}
	if l.Written() != 1 || l.Dropped() != 1 {
		t.Errorf("%d written, %d dropped, want one each", l.Written(), l.Dropped())
	}
}
