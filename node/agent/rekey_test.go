package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// someKeys makes a key of each byte.
func someKeys(first ...byte) (keys [][]byte) {
	for _, b := range first {
		keys = append(keys, bytes.Repeat([]byte{b}, 32))
	}
	return keys
}

func digestOf(keys [][]byte) []byte {
	sum := sha256.Sum256(slices.Concat(keys...))
	return sum[:]
}

func (w *wire) tellKeys(t *testing.T, keys [][]byte) {
	t.Helper()
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_GossipKeys{GossipKeys: &fleetv1.GossipKeys{Keys: keys}}})
}

// uses waits until the node says that it uses the keys.
func (w *wire) uses(t *testing.T, keys [][]byte) {
	t.Helper()
	w.status(t, "the digest of the keys", func(s *fleetv1.Status) bool { return bytes.Equal(s.GetGossipKeys(), digestOf(keys)) })
}

// keyed is opened with a Welcome that names keys.
func (s *script) keyed(t *testing.T, keys [][]byte) *wire {
	t.Helper()
	w, _ := s.opened(t)
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Welcome{Welcome: &fleetv1.Welcome{ControlName: "c1", GossipKeys: keys}}})
	return w
}

func TestOtherKeysWithinAStreamAreUsedKeptAndConfirmed(t *testing.T) {
	s := newScript(t)
	told := make(chan [][]byte, 8)
	r := newRig(t, s, rigOptions{welcomed: func(id *Identity) error { told <- id.GossipKeys; return nil }}).run()
	w := s.keyed(t, someKeys(1))
	w.uses(t, someKeys(1))
	for _, keys := range [][][]byte{someKeys(1, 2), someKeys(2, 1), someKeys(2)} {
		w.tellKeys(t, keys)
		w.uses(t, keys)
		saved, err := LoadIdentity(r.dir)
		if err != nil || !slices.EqualFunc(saved.GossipKeys, keys, bytes.Equal) {
			t.Errorf("%d keys are on the disk, %v", len(saved.GossipKeys), err)
		}
	}
	for _, want := range [][][]byte{someKeys(1), someKeys(1, 2), someKeys(2, 1), someKeys(2)} {
		if got := <-told; !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("gossip was told %v, want %v", got, want)
		}
	}
}

func TestWhatAreNoKeysLeavesThoseThatThereAre(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.keyed(t, someKeys(1))
	w.uses(t, someKeys(1))
	for _, keys := range [][][]byte{nil, {make([]byte, 31)}, make([][]byte, 17)} {
		w.tellKeys(t, keys)
		w.uses(t, someKeys(1))
	}
	if !r.log.has("named as the keys of gossip are none") {
		t.Error("nothing was logged")
	}
	w.tellKeys(t, someKeys(1, 2))
	w.uses(t, someKeys(1, 2))
}

func TestKeysThatAreNotOnTheDiskAreNotConfirmed(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.keyed(t, someKeys(1))
	w.uses(t, someKeys(1))
	path := filepath.Join(r.dir, identityFile)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.tellKeys(t, someKeys(1, 2))
	for range 3 {
		w.status(t, "no word of keys", func(s *fleetv1.Status) bool {
			if bytes.Equal(s.GetGossipKeys(), digestOf(someKeys(1, 2))) {
				t.Fatal("confirmed")
			}
			return len(s.GetGossipKeys()) == 0
		})
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	w.uses(t, someKeys(1, 2))
	if saved, err := LoadIdentity(r.dir); err != nil || len(saved.GossipKeys) != 2 {
		t.Errorf("%v, %v", saved, err)
	}
}

func TestKeysThatGossipDoesNotUseAreNotConfirmed(t *testing.T) {
	s := newScript(t)
	var refuse atomic.Bool
	newRig(t, s, rigOptions{welcomed: func(*Identity) error {
		if refuse.Load() {
			return errors.New("not these")
		}
		return nil
	}}).run()
	w := s.keyed(t, someKeys(1))
	w.uses(t, someKeys(1))
	refuse.Store(true)
	w.tellKeys(t, someKeys(1, 2))
	w.status(t, "no word of keys", func(s *fleetv1.Status) bool { return len(s.GetGossipKeys()) == 0 })
}

func FuzzGossipKeys(f *testing.F) {
	for _, keys := range [][][]byte{nil, someKeys(1), someKeys(1, 2), {{1}}} {
		raw, err := proto.Marshal(&fleetv1.GossipKeys{Keys: keys})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := &fleetv1.GossipKeys{}
		if proto.Unmarshal(raw, m) != nil || checkGossipKeys(m.GetKeys()) != nil {
			return
		}
		if size := len(slices.Concat(m.GetKeys()...)); size == 0 || size > 16*32 || size%32 != 0 {
			t.Fatalf("%d bytes of keys are taken", size)
		}
	})
}
