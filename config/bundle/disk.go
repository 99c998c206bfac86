package bundle

import (
	"io"
	"os"
)

// disk are the calls that change a directory, one for each step, so that a test can end every one of them in every way
// that a real one can end. Reading needs none: what was read proves itself by its checksum.
type disk struct {
	// create makes a file that nobody else has, mode 0600, as os.CreateTemp does.
	create func(directory, pattern string) (file, error)
	link   func(from, to string) error
	rename func(from, to string) error
	remove func(path string) error
	// sync makes the names in a directory durable.
	sync func(directory string) error
}

// file is one that is being written.
type file interface {
	io.WriteCloser
	Name() string
	Sync() error
}

var systemDisk = disk{
	create: func(directory, pattern string) (file, error) {
		f, err := os.CreateTemp(directory, pattern)
		if err != nil {
			return nil, err // not f: a nil *os.File would be a file
		}
		return f, nil
	},
	link: os.Link, rename: os.Rename, remove: os.Remove, sync: SyncDirectory,
}

// SyncDirectory makes the names in a directory durable: after a rename, a power cut may otherwise take the new name back.
func SyncDirectory(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
