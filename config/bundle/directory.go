package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// The files of a Directory.
const (
	currentFile  = "current.bundle"
	previousFile = "previous.bundle"
)

// Directory keeps a node's last known good bundle, and the one before it, on disk. At every moment, a power cut
// included, current is either the old or the new one, whole. Its methods are not to be called concurrently.
type Directory struct {
	path string
}

// OpenDirectory makes the directory, mode 0700, where it does not exist, and removes what a crash left half written.
func OpenDirectory(path string) (*Directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make the bundle directory: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(path, "next-*.tmp"))
	if err != nil {
		return nil, fmt.Errorf("look for what a crash left: %w", err)
	}
	for _, file := range left {
		if err := os.Remove(file); err != nil {
			return nil, fmt.Errorf("remove what a crash left: %w", err)
		}
	}
	return &Directory{path: path}, nil
}

// Staged is a bundle that lies whole on the disk beside the current one. It is ended by Commit or Discard.
type Staged struct {
	directory *Directory
	file      string
}

// Stage writes the bundle beside the current one, so that a full disk is found before anything depends on it. Bundles
// hold private keys, so files are mode 0600.
func (d *Directory) Stage(release *fleetv1.Release, b *Bundle) (*Staged, error) {
	data, err := Marshal(release, b)
	if err != nil {
		return nil, err
	}
	file, err := d.writeTemporary(data)
	if err != nil {
		return nil, fmt.Errorf("write revision %d to disk: %w", release.GetRevision(), err)
	}
	return &Staged{d, file}, nil
}

// Commit makes the staged bundle current and the current one previous. After an error the current one is what it was.
func (s *Staged) Commit() error {
	if err := s.directory.rotate(s.file); err != nil {
		s.Discard()
		return fmt.Errorf("make the new bundle current on disk: %w", err)
	}
	return nil
}

// Discard removes the staged bundle.
func (s *Staged) Discard() { os.Remove(s.file) }

func (d *Directory) writeTemporary(data []byte) (name string, err error) {
	f, err := os.CreateTemp(d.path, "next-*.tmp") // mode 0600
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(data); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

// rotate links current to previous rather than renaming it, so that there is a current file at every moment.
func (d *Directory) rotate(next string) error {
	current, previous := filepath.Join(d.path, currentFile), filepath.Join(d.path, previousFile)
	if err := os.Remove(previous); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(current, previous); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(next, current); err != nil {
		return err
	}
	return SyncDirectory(d.path)
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

// ErrEmpty says that nothing was ever saved.
var ErrEmpty = errors.New("no bundle on disk")

// Load gives the current bundle if accept takes it, otherwise the previous one. The error is [ErrEmpty] where there
// is neither; a bundle that was passed over is told in skipped, also where Load succeeds.
func (d *Directory) Load(accept func(*fleetv1.Release, *Bundle) error) (release *fleetv1.Release, b *Bundle, skipped error, err error) {
	var problems []error
	for _, name := range []string{currentFile, previousFile} {
		release, b, err := d.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = accept(release, b)
		}
		if err == nil {
			return release, b, errors.Join(problems...), nil
		}
		problems = append(problems, fmt.Errorf("%s: %w", filepath.Join(d.path, name), err))
	}
	if len(problems) == 0 {
		return nil, nil, nil, ErrEmpty
	}
	return nil, nil, nil, errors.Join(problems...)
}

func (d *Directory) read(name string) (*fleetv1.Release, *Bundle, error) {
	path := filepath.Join(d.path, name)
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if info.Size() > 2*MaxBytes {
		return nil, nil, fmt.Errorf("%d bytes are more than a bundle file has", info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	return Unmarshal(data)
}
