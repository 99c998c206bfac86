package store

import (
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
)

// fullDiskFor has room for a term now and then, and for entries when it is told so.
type fullDiskFor struct {
	disk
	reason error // why entries are not taken; nil: they are
}

func (d *fullDiskFor) SetUint64([]byte, uint64) error { return nil }

func (d *fullDiskFor) GetUint64([]byte) (uint64, error) { return 0, errors.New("not found") }

func (d *fullDiskFor) StoreLogs([]*raft.Log) error {
	if d.reason != nil {
		return &fs.PathError{Op: "write", Path: "store/raft.db", Err: d.reason}
	}
	return nil
}

func TestTroubleWithTheDiskIsToldOnceUntilEntriesAreWritten(t *testing.T) {
	var log strings.Builder
	d := &fullDiskFor{reason: syscall.ENOSPC}
	s := newStorage(d, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	entries := []*raft.Log{{Type: raft.LogCommand}}
	for term := range uint64(5) { // as a control does that tries to lead again and again
		if err := s.SetUint64([]byte(termKey), term+1); err != nil {
			t.Fatal(err)
		}
		var failure *DiskError
		if err := s.StoreLogs(entries); !errors.As(err, &failure) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v", err)
		}
	}
	const want = "control's disk takes no writes: write store/raft.db: no space left on device; make room there and try again"
	if err := s.trouble(); err == nil || err.Error() != want {
		t.Errorf("the trouble is %v", err)
	}
	if said := log.String(); strings.Count(said, "level=ERROR") != 1 || !strings.Contains(said, want) {
		t.Errorf("the log is\n%s", said)
	}
	d.reason = nil
	for range 2 {
		if err := s.StoreLogs(entries); err != nil || s.trouble() != nil {
			t.Errorf("%v, %v", err, s.trouble())
		}
	}
	if said := log.String(); strings.Count(said, "level=INFO") != 1 || !strings.Contains(said, "the disk takes writes again") {
		t.Errorf("the log is\n%s", said)
	}
	d.reason = syscall.EIO
	if err := s.StoreLogs(entries); err == nil || strings.Contains(err.Error(), "make room") {
		t.Errorf("of a broken disk: %v", err)
	}
	if strings.Count(log.String(), "level=ERROR") != 2 {
		t.Errorf("the log is\n%s", log.String())
	}
}
