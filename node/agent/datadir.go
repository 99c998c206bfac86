package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// DataDir is a node's data directory, held against other processes until Close.
type DataDir struct{ lock *os.File }

// OpenDataDir makes the directory, mode 0700, where it does not exist, and locks it. The error says so where another
// process has it, and where it cannot be written to.
func OpenDataDir(path string) (*DataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--data-dir %s cannot be written to: %w", path, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("--data-dir %s is in use by another process; give each node a --data-dir of its own", path)
		}
		return nil, fmt.Errorf("--data-dir %s cannot be locked: %w", path, err)
	}
	return &DataDir{lock}, nil
}

// Close lets go of the directory; so does the end of the process, however it ends.
func (d *DataDir) Close() error { return d.lock.Close() }
