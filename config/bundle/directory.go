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
	trialFile    = "trial.mark"
	// temporary is a file that has no name of its own yet; what a crash leaves of them goes at the next start.
	temporary = "next-*.tmp"
)

// Directory keeps a node's last known good bundle, the one before it, and the mark of a trial, on disk. At every moment,
// a power cut included, current is either the old or the new one, whole. What is about bundles is not to be called
// concurrently, nor is what is about the mark; the one may be called beside the other.
type Directory struct {
	path string
	disk disk
}

// OpenDirectory makes the directory, mode 0700, where it does not exist, and removes what a crash left half written.
func OpenDirectory(path string) (*Directory, error) { return openDirectory(path, systemDisk) }

func openDirectory(path string, disk disk) (*Directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make the bundle directory: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(path, temporary))
	if err != nil {
		return nil, fmt.Errorf("look for what a crash left: %w", err)
	}
	for _, file := range left {
		if err := disk.remove(file); err != nil {
			return nil, fmt.Errorf("remove what a crash left: %w", err)
		}
	}
	return &Directory{path, disk}, nil
}

// Staged is a bundle that lies whole on the disk beside the current one, with the mark of its trial: all that takes room
// is done. It is ended by Commit or Discard.
type Staged struct {
	directory    *Directory
	bundle, mark string // files; empty: has got its name
}

// Stage writes the bundle beside the current one, and the mark of a trial that begins for the time that tries says, so
// that a full disk is found before anything depends on it. Bundles hold private keys, so files are mode 0600.
func (d *Directory) Stage(release *fleetv1.Release, b *Bundle, tries uint64) (*Staged, error) {
	data, err := Marshal(release, b)
	if err != nil {
		return nil, err
	}
	mark, err := Trial{release, tries}.marshal()
	if err != nil {
		return nil, err
	}
	s := &Staged{directory: d}
	if s.bundle, err = d.writeTemporary(data); err == nil {
		s.mark, err = d.writeTemporary(mark)
	}
	if err != nil {
		s.Discard()
		return nil, fmt.Errorf("write revision %d to disk: %w", release.GetRevision(), err)
	}
	return s, nil
}

// BeginTrial puts the mark in its place; it is there for good when BeginTrial returns without an error, so that whatever
// the bundle then does to the process is held against it.
func (s *Staged) BeginTrial() error {
	if err := s.directory.replace(s.mark, trialFile); err != nil {
		return fmt.Errorf("mark the new bundle as on trial: %w", err)
	}
	s.mark = ""
	return nil
}

// Commit makes the staged bundle current. stood says that the one that was current has proved itself: it becomes the
// previous one. Otherwise the previous one stays, which is known to be good, unless there is none. After an error, current
// is one of the two, whole.
func (s *Staged) Commit(stood bool) error {
	defer s.Discard()
	if stood || !s.directory.has(previousFile) {
		if err := s.directory.keepCurrent(); err != nil {
			return fmt.Errorf("keep the current bundle as the previous one: %w", err)
		}
	}
	if err := s.directory.replace(s.bundle, currentFile); err != nil {
		return fmt.Errorf("make the new bundle current on disk: %w", err)
	}
	s.bundle = ""
	return nil
}

// Discard removes what has not got its place.
func (s *Staged) Discard() {
	for _, file := range []string{s.bundle, s.mark} {
		if file != "" {
			s.directory.disk.remove(file) // what stays goes at the next start
		}
	}
	s.bundle, s.mark = "", ""
}

func (d *Directory) writeTemporary(data []byte) (name string, err error) {
	f, err := d.disk.create(d.path, temporary)
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		d.disk.remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// replace gives a temporary file its name, for good.
func (d *Directory) replace(temporary, name string) error {
	if err := d.disk.rename(temporary, filepath.Join(d.path, name)); err != nil {
		return err
	}
	return d.disk.sync(d.path)
}

// keepCurrent makes the current bundle the previous one as well. It is linked rather than renamed, and under another name
// first, so that there is a current file and a previous one at every moment.
func (d *Directory) keepCurrent() error {
	link := filepath.Join(d.path, "next-link.tmp")
	d.disk.remove(link) // where it could not be removed the last time
	err := d.disk.link(filepath.Join(d.path, currentFile), link)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the first bundle
	}
	if err != nil {
		return err
	}
	err = d.disk.rename(link, filepath.Join(d.path, previousFile))
	// A rename between two names of one file, which is what a crash at this place leaves, does nothing and keeps both.
	if removing := d.disk.remove(link); !errors.Is(removing, fs.ErrNotExist) {
		err = errors.Join(err, removing)
	}
	return err
}

func (d *Directory) has(name string) bool {
	_, err := os.Lstat(filepath.Join(d.path, name))
	return err == nil
}

// ErrEmpty says that nothing was ever saved.
var ErrEmpty = errors.New("no bundle on disk")

// errMissing says that there is no file, in place of the system's words, which repeat the path.
var errMissing = errors.New("the file is missing")

// Load gives the current bundle if accept takes it, otherwise the previous one, with the reason why in skipped. The error
// is [ErrEmpty] where there is neither, and says what is wrong with both where neither can be used.
func (d *Directory) Load(accept func(*fleetv1.Release, *Bundle) error) (release *fleetv1.Release, b *Bundle, skipped error, err error) {
	release, b, current := d.accepted(currentFile, accept)
	if current == nil {
		return release, b, nil, nil
	}
	release, b, previous := d.accepted(previousFile, accept)
	switch {
	case previous == nil:
		return release, b, current, nil
	case !errors.Is(previous, errMissing):
		return nil, nil, nil, errors.Join(current, previous)
	case !errors.Is(current, errMissing):
		return nil, nil, nil, current
	}
	return nil, nil, nil, ErrEmpty
}

func (d *Directory) accepted(name string, accept func(*fleetv1.Release, *Bundle) error) (*fleetv1.Release, *Bundle, error) {
	data, err := d.read(name, 2*MaxBytes)
	var release *fleetv1.Release
	var b *Bundle
	if err == nil {
		release, b, err = Unmarshal(data)
	}
	if err == nil {
		err = accept(release, b)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", filepath.Join(d.path, name), err)
	}
	return release, b, nil
}

func (d *Directory) read(name string, limit int64) ([]byte, error) {
	path := filepath.Join(d.path, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errMissing
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%d bytes are more than such a file has", info.Size())
	}
	return os.ReadFile(path)
}
