package identity

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/pyserve/pyserve/config/bundle"
)

// WriteSecret puts data into the file at path, mode 0600. At every moment, a power cut included, the file is either
// what it was or the new one, whole. The directory must exist.
func WriteSecret(path string, data []byte) error {
	if err := writeSecret(path, data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func writeSecret(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*.tmp") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return bundle.SyncDirectory(filepath.Dir(path))
}
