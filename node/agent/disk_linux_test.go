package agent

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// smallDisk mounts a file system of 256 KiB. That takes root, and a system that lets it.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("pyserve-test", dir, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
		t.Skipf("a small disk cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill leaves no room on a disk; the file that it gives holds it all.
func fill(t *testing.T, dir string) (file string) {
	t.Helper()
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for page := make([]byte, 4096); err == nil; {
		_, err = f.Write(page)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return file
}

func TestFullDiskIsARefusalAndRoomIsTakenWhenThereIsSome(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{dir: smallDisk(t), now: s.clock.now}).run()
	w := s.welcomed(t)
	a, b, c := bundleOf(t, "/1"), bundleOf(t, "/2"), bundleOf(t, "/3")
	w.serve(t, 1, s.sign(1, 1, a), nil, a)
	r.stands(t, s)
	filler := fill(t, r.dir)
	for nonce := range uint64(3) {
		checkRefused(t, w.offer(t, nonce+2, s.sign(1, 2, b), a, b), nonce+2, "--data-dir", "no space left on device; make room there")
		if r.revision() != 1 {
			t.Errorf("it serves revision %d", r.revision())
		}
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "bundles", "*.tmp")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	w.serve(t, 10, s.sign(1, 2, b), a, b)

	// What was prepared needs no more room.
	checkPrepared(t, w.offer(t, 11, s.sign(1, 3, c), b, c), 11)
	fill(t, r.dir)
	w.commit(t, 11)
	if m := w.answer(t); m.GetCommitted().GetApplied().GetRevision() != 3 {
		t.Errorf("the answer is %v", m)
	}
	if r = boot(t, s, r.crash(t)); r.revision() != 3 || !r.marked() {
		t.Errorf("after a restart it serves revision %d", r.revision())
	}
}

func TestNodeStartsOnAFullDisk(t *testing.T) {
	s := newScript(t)
	dir := smallDisk(t)
	store(t, dir, s, bundleOf(t, "/1"))
	fill(t, dir)
	if r := boot(t, s, dir); r.revision() != 1 {
		t.Errorf("it serves revision %d", r.revision())
	}
}
