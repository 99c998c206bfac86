package store

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// fullDisk commits until a limit on the size of its files stands in the way, as a full disk would, then has the limit
// lifted. It prints what it sees.
func fullDisk(dir string) {
	signal.Ignore(syscall.SIGXFSZ)
	s, err := Open(context.Background(), Options{Dir: dir, Name: "c1", Key: testKey})
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	info, err := os.Stat(filepath.Join(dir, logFile))
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	var old syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old)
	limit := old
	limit.Cur = uint64(info.Size())
	syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit)
	commit := func() error {
		_, next := s.Next()
		// Random-looking, so that it does not pack well.
		var body strings.Builder
		for i := range uint64(1 << 16) {
			fmt.Fprint(&body, (i+next)*2654435761%1000003)
		}
		_, err := s.Commit(context.Background(), proposal(s, routes(fatal{}, map[string]string{"a": body.String()}), ""))
		return err
	}
	for err == nil {
		err = commit()
	}
	fmt.Println("full:", err)
	fmt.Println("again:", commit())
	kept := s.Active()
	syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old)
	if err := commit(); err != nil {
		fmt.Println("error:", err)
		return
	}
	before := uint64(0)
	if kept != nil {
		before = kept.Number
	}
	fmt.Println("resumed:", s.Active().Number == before+1, s.Trouble(), s.Close())
}

func TestFullDiskIsAnErrorAndNotTheEnd(t *testing.T) {
	dir := t.TempDir()
	cmd, lines := child(t, "full disk", dir)
	for _, want := range []string{"full:", "again:", "resumed: true <nil> <nil>"} {
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), want) {
			t.Fatalf("got %q, want %q", lines.Text(), want)
		}
		if strings.HasPrefix(want, "resumed") {
			break
		}
		if !strings.Contains(lines.Text(), "file too large") {
			t.Fatalf("%q does not say why", lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if openIn(t, dir).Active() == nil {
		t.Fatal("nothing was kept")
	}
}

// TestUnwritableDirectoryIsNamed takes root's right to write anywhere from this thread, which then ends with the test.
func TestUnwritableDirectoryIsNamed(t *testing.T) {
	dir := t.TempDir()
	for path, mode := range map[string]os.FileMode{dir: 0o555, filepath.Dir(dir): 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is not used again
		if os.Getuid() == 0 {
			if err := syscall.Setfsuid(65534); err != nil {
				failed <- err
				return
			}
		}
		_, err := lockDirectory(dir)
		failed <- err
	}()
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "the data directory "+dir+" is not writable") {
		t.Fatalf("got %v", err)
	}
}
