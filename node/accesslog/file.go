package accesslog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
)

// filePermissions keep the addresses of clients from other users of the machine.
const filePermissions = 0o640

// File is a file at a path, appended to, which a Log follows when another takes its place there. It may be used
// concurrently.
type File struct {
	path string

	// mu guards file, and is not held during a write: closing does not wait for one that hangs.
	mu   sync.Mutex
	file *os.File // nil: closed
}

// OpenFile opens the file at path for a Log, or makes it, with mode 0640. The directory has to exist.
func OpenFile(path string) (*File, error) {
	file, err := openAppend(path)
	if err != nil {
		return nil, err
	}
	return &File{path: path, file: file}, nil
}

func openAppend(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, filePermissions)
	if err != nil {
		return nil, fmt.Errorf("open the access log: %w", err)
	}
	return file, nil
}

func (f *File) current() (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil, fmt.Errorf("access log %s: %w", f.path, os.ErrClosed)
	}
	return f.file, nil
}

// Write appends p to the file.
func (f *File) Write(p []byte) (int, error) {
	file, err := f.current()
	if err != nil {
		return 0, err
	}
	return file.Write(p)
}

// Close closes the file; what is written afterwards fails. A second Close does nothing.
func (f *File) Close() error {
	old := f.replace(nil)
	if old == nil {
		return nil
	}
	return old.Close()
}

// replace puts file in the place of the one that is open, which it returns.
func (f *File) replace(file *os.File) *os.File {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.file
	f.file = file
	return old
}

// follow opens the path again if the open file is not at it any more. After an error the old file stays in use.
func (f *File) follow() (reopened bool, err error) {
	open, err := f.current()
	if err != nil {
		return false, err
	}
	if same, err := isAt(open, f.path); same || err != nil {
		return false, err
	}
	file, err := openAppend(f.path)
	if err != nil {
		return false, err
	}
	if !f.swap(open, file) {
		file.Close()
		return false, fmt.Errorf("access log %s: %w", f.path, os.ErrClosed)
	}
	if err := open.Close(); err != nil {
		return true, fmt.Errorf("close the access log that was moved away: %w", err)
	}
	return true, nil
}

// swap puts next in the place of old, unless the File was closed meanwhile.
func (f *File) swap(old, next *os.File) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file != old {
		return false
	}
	f.file = next
	return true
}

// isAt says whether it is this file that path leads to.
func isAt(file *os.File, path string) (bool, error) {
	there, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for the access log: %w", err)
	}
	ours, err := file.Stat()
	if err != nil {
		return false, fmt.Errorf("look at the open access log: %w", err)
	}
	return os.SameFile(there, ours), nil
}
