package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/keyring"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

func TestGossipKeysReplaceThoseThatTheAskerKnew(t *testing.T) {
	s := sampleState(t)
	before := written(t, s)
	current := ringOf(keyring.Install, "old", "new").Digest()
	for name, c := range map[string]*storev1.Command{
		"none":    setGossipKeys(nil, keyring.Use, "new", "old"),
		"another": setGossipKeys(ringOf(keyring.Use, "new", "old").Digest(), keyring.Use, "new", "old"),
	} {
		if err := s.apply(c); !errors.Is(err, ErrConflict) || !bytes.Equal(written(t, s), before) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.apply(setGossipKeys(current, keyring.Use)); err == nil || !bytes.Equal(written(t, s), before) {
		t.Errorf("a cluster without a key was made: %v", err)
	}
	unknown := setGossipKeys(current, keyring.Use, "new", "old")
	unknown.GetSetGossipKeys().GetKeys().Stage = 7
	if err := s.apply(unknown); err == nil || !bytes.Equal(written(t, s), before) {
		t.Errorf("a stage that nobody knows was taken: %v", err)
	}
	mustApply(t, s, setGossipKeys(current, keyring.Use, "new", "old"))
	again, err := readSnapshot(bytes.NewReader(written(t, s)))
	if err != nil || again.gossip == nil || again.gossip.Stage != keyring.Use || !again.gossip.Since.Equal(someTime) ||
		!bytes.Equal(again.gossip.Digest(), ringOf(keyring.Use, "new", "old").Digest()) {
		t.Errorf("restored: %v, %v", again, err)
	}
}

// TestOlderControlsReadWhatIsWrittenUntilAKeyIsChanged: of several controls some may not be upgraded yet.
func TestOlderControlsReadWhatIsWrittenUntilAKeyIsChanged(t *testing.T) {
	version := func(c *storev1.Command) uint32 {
		data, err := testSeal.encodeCommand(proto.Clone(c).(*storev1.Command))
		if err != nil {
			t.Fatal(err)
		}
		back, err := testSeal.decodeCommand(data)
		if err != nil {
			t.Fatal(err)
		}
		return back.GetVersion()
	}
	if got := version(putContext(9, "dora", someTime)); got != oldCommandVersion {
		t.Errorf("a command that they know is of version %d", got)
	}
	if got := version(setGossipKeys(nil, keyring.Settled, "a")); got != commandVersion {
		t.Errorf("a change of the key is of version %d", got)
	}
	s := newState()
	if got := readRecords(t, written(t, s))[0].GetHeader().GetVersion(); got != oldSnapshotVersion {
		t.Errorf("a snapshot that they know is of version %d", got)
	}
	mustApply(t, s, setGossipKeys(nil, keyring.Settled, "a"))
	if got := readRecords(t, written(t, s))[0].GetHeader().GetVersion(); got != snapshotVersion {
		t.Errorf("a snapshot with keys is of version %d", got)
	}
}

func TestGossipKeysAreKeptWithTheirEntryAndNotReadable(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	if s.GossipKeys() != nil {
		t.Fatal("there are some at the beginning")
	}
	first := ringOf(keyring.Install, "old", "new")
	ctx, _ := audit.Begin(t.Context(), "alice", "admin", "", "RotateGossipKey")
	if err := s.SetGossipKeys(ctx, first, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.SetGossipKeys(t.Context(), first, nil); !errors.Is(err, ErrConflict) {
		t.Errorf("got %v", err)
	}
	if err := s.SetGossipKeys(t.Context(), ringOf(keyring.Use, "new", "old"), s.GossipKeys()); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err == nil && bytes.Contains(data, first.Keys[0]) {
			t.Errorf("%s holds a key as it is", file)
		}
	}
	s = openIn(t, dir)
	got := s.GossipKeys()
	if got == nil || got.Stage != keyring.Use || !bytes.Equal(got.Digest(), ringOf(keyring.Use, "new", "old").Digest()) {
		t.Errorf("got %+v", got)
	}
	if _, entries := s.Audit(); len(entries) != 1 || entries[0].Actor != "alice" {
		t.Errorf("the trail is %+v", entries)
	}
}

func TestARestoreKeepsTheGossipKeysThatThereAre(t *testing.T) {
	s := openIn(t, t.TempDir())
	mustCommit(t, s, map[string]string{"a": "one"}, "one")
	if err := s.SetGossipKeys(t.Context(), ringOf(keyring.Install, "old", "new"), nil); err != nil {
		t.Fatal(err)
	}
	r, err := readBackup(s, backup(t, s))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetGossipKeys(t.Context(), ringOf(keyring.Use, "new", "old"), s.GossipKeys()); err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(t.Context(), r, signAgain); err != nil {
		t.Fatal(err)
	}
	if got := s.GossipKeys(); got == nil || got.Stage != keyring.Use || len(got.Keys) != 2 {
		t.Errorf("got %+v", got)
	}
}
