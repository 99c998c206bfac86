package bundle

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

func TestMarkOfATrialIsKeptReplacedAndCleared(t *testing.T) {
	dir := t.TempDir()
	d, err := OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.ClearTrial(); err != nil {
		t.Errorf("clearing no mark: %v", err)
	}
	if mark, err := d.Trial(); mark != nil || err != nil {
		t.Errorf("without a mark: %v, %v", mark, err)
	}
	digest := sample(t, 1).Digest()
	for _, want := range []Trial{{&fleetv1.Release{Epoch: 1, Revision: 7, Digest: digest[:]}, 1}, {&fleetv1.Release{Revision: 8}, math.MaxUint64}, {&fleetv1.Release{}, 0}} {
		if err := d.SaveTrial(want); err != nil {
			t.Fatal(err)
		}
		got, err := d.Trial()
		if err != nil || !proto.Equal(got.Release, want.Release) || got.Tries != want.Tries {
			t.Errorf("saved %v, got %v, %v", want, got, err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, trialFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
	if err := d.ClearTrial(); err != nil {
		t.Fatal(err)
	}
	if mark, err := d.Trial(); mark != nil || err != nil {
		t.Errorf("cleared: %v, %v", mark, err)
	}
}

func TestEveryFlippedBitOfAMarkIsNoticed(t *testing.T) {
	data, err := Trial{&fleetv1.Release{Revision: 7}, 2}.marshal()
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		for bit := range 8 {
			data[i] ^= 1 << bit
			if _, err := unmarshalTrial(data); err == nil {
				t.Errorf("bit %d of byte %d flipped and nobody noticed", bit, i)
			}
			data[i] ^= 1 << bit
		}
		if _, err := unmarshalTrial(data[:i]); err == nil {
			t.Errorf("cut to %d bytes and nobody noticed", i)
		}
	}
}

func TestMarkThatIsDamagedIsAnErrorThatNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	d, err := OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range [][]byte{nil, []byte("x"), make([]byte, 1<<20)} {
		if err := os.WriteFile(filepath.Join(dir, trialFile), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if mark, err := d.Trial(); mark != nil || err == nil {
			t.Errorf("%d bytes: %v, %v", len(content), mark, err)
		}
	}
}

// FuzzTrial goes below the checksum, which a fuzzer cannot guess.
func FuzzTrial(f *testing.F) {
	f.Add([]byte{0, 1})
	f.Add([]byte{2, 0x10, 7, 2})
	f.Fuzz(func(t *testing.T, data []byte) {
		mark, err := unmarshalTrial(seal(append([]byte(trialMagic), data...)))
		if err != nil {
			return
		}
		again, err := mark.marshal()
		if err != nil {
			t.Fatal(err)
		}
		back, err := unmarshalTrial(again)
		if err != nil || back.Tries != mark.Tries || !proto.Equal(back.Release, mark.Release) {
			t.Fatalf("what was read could not be read again: %v", err)
		}
	})
}
