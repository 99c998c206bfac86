package bundle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// trialMagic begins the mark of a trial. What follows: the release behind its length, the tries as a uvarint, and the
// SHA-256 of all that.
const trialMagic = "pyserve trial 1\n"

// maxReleaseBytes bounds a release within a file.
const maxReleaseBytes = 1 << 10

// Trial is the mark of a release that was swapped in and has not proved itself yet.
type Trial struct {
	Release *fleetv1.Release
	// Tries is how often it was swapped in since the node was last stopped in order. While it is served, that is one more
	// than the times that the process ended under it.
	Tries uint64
}

func (t Trial) marshal() ([]byte, error) {
	head, err := proto.Marshal(t.Release)
	if err != nil {
		return nil, fmt.Errorf("encode the release: %w", err)
	}
	return seal(binary.AppendUvarint(appendField([]byte(trialMagic), head), t.Tries)), nil
}

func unmarshalTrial(data []byte) (*Trial, error) {
	r, err := unseal(trialMagic, data)
	if err != nil {
		return nil, err
	}
	t := &Trial{Release: &fleetv1.Release{}}
	if err := proto.Unmarshal(r.bytes(maxReleaseBytes), t.Release); err != nil {
		return nil, fmt.Errorf("decode the release: %w", err)
	}
	t.Tries = r.uvarint(math.MaxUint64)
	return t, r.end()
}

// Trial reads the mark; nil: there is none.
func (d *Directory) Trial() (*Trial, error) {
	data, err := d.read(trialFile, 2*maxReleaseBytes)
	if errors.Is(err, errMissing) {
		return nil, nil
	}
	var t *Trial
	if err == nil {
		t, err = unmarshalTrial(data)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(d.path, trialFile), err)
	}
	return t, nil
}

// SaveTrial puts a mark in the place of the one that is there. After an error it is one of the two, whole.
func (d *Directory) SaveTrial(t Trial) error {
	data, err := t.marshal()
	if err != nil {
		return err
	}
	file, err := d.writeTemporary(data)
	if err != nil {
		return fmt.Errorf("write the mark of a trial: %w", err)
	}
	if err := d.replace(file, trialFile); err != nil {
		d.disk.remove(file)
		return fmt.Errorf("write the mark of a trial: %w", err)
	}
	return nil
}

// ClearTrial removes the mark, if there is one.
func (d *Directory) ClearTrial() error {
	err := d.disk.remove(filepath.Join(d.path, trialFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = d.disk.sync(d.path)
	}
	if err != nil {
		return fmt.Errorf("remove the mark of a trial: %w", err)
	}
	return nil
}
