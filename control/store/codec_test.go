package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/keyring"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// testKey is the key of every store of these tests.
func testKey(bool) ([]byte, error) { return bytes.Repeat([]byte{7}, SealKeyBytes), nil }

var testSeal = func() *sealer {
	key, _ := testKey(false)
	seal, err := newSealer(key)
	if err != nil {
		panic(err)
	}
	return seal
}()

// sealed seals a command as it is, whatever its version.
func sealed(t testing.TB, c *storev1.Command) []byte {
	t.Helper()
	raw, err := proto.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return testSeal.seal(append(make([]byte, commandHead), raw...))
}

// sampleState has something of everything.
func sampleState(t testing.TB) *state {
	t.Helper()
	s := newState()
	for _, bodies := range []map[string]string{{"a": "one", "b": "two"}, {"a": "three", "c": "two"}, {"a": "one"}} {
		mustApply(t, s, commitOf(t, s, routes(t, bodies), "document"))
	}
	s.forgetOldest()
	for _, name := range []string{"n2", "n1"} {
		mustApply(t, s, &storev1.Command{Action: &storev1.Command_PutNode{PutNode: &storev1.PutNode{
			Node: (&Node{Name: name, KeyHash: [32]byte{1}, Enrolled: someTime, Left: name == "n2"}).toProto(),
		}}})
	}
	mustApply(t, s, &storev1.Command{Action: &storev1.Command_PutToken{PutToken: &storev1.PutToken{
		Token: (&Token{
			ID: "t1", Kind: "join", Hash: [32]byte{2}, Created: someTime, Expires: someTime.Add(time.Hour), MaxUses: 2, Pattern: "n*", Author: "admin",
		}).toProto(),
	}}})
	mustApply(t, s, setAuthorities(nil, "new", "old"))
	mustApply(t, s, putContext(1, "alice", someTime.Add(time.Hour)))
	mustApply(t, s, putContext(2, "bob", someTime.Add(time.Hour)))
	mustApply(t, s, revokeContext("alice", someTime))
	mustApply(t, s, setGossipKeys(nil, keyring.Install, "old", "new"))
	use := useToken("t1", "join", "n3", someTime)
	use.Audit = someAudit()
	mustApply(t, s, use)
	mustApply(t, s, &storev1.Command{Action: &storev1.Command_AppendAudit{AppendAudit: &storev1.AppendAudit{}}, Audit: someAudit()})
	return s
}

func setAuthorities(replaces []byte, names ...string) *storev1.Command {
	m := &storev1.SetAuthorities{Replaces: replaces}
	for _, name := range names {
		m.Authorities = append(m.Authorities, &storev1.Authority{Certificate: []byte(name), Key: []byte("key of " + name)})
	}
	return &storev1.Command{Version: 1, Action: &storev1.Command_SetAuthorities{SetAuthorities: m}}
}

func setGossipKeys(replaces []byte, stage keyring.Stage, names ...string) *storev1.Command {
	ring := ringOf(stage, names...)
	return &storev1.Command{Version: commandVersion, Action: &storev1.Command_SetGossipKeys{
		SetGossipKeys: &storev1.SetGossipKeys{Keys: ringToProto(&ring), Replaces: replaces},
	}}
}

// ringOf makes keys of names.
func ringOf(stage keyring.Stage, names ...string) keyring.Ring {
	r := keyring.Ring{Stage: stage, Since: someTime}
	for _, name := range names {
		key := sha256.Sum256([]byte(name))
		r.Keys = append(r.Keys, key[:])
	}
	return r
}

func someAudit() *storev1.AuditEntry {
	return auditToProto(&audit.Entry{Time: someTime, Actor: "admin", Role: "admin", Address: "127.0.0.1:1", Method: "Apply", What: "revision 1", Outcome: audit.Done})
}

func useToken(id, kind, name string, at time.Time) *storev1.Command {
	return &storev1.Command{Version: 1, Action: &storev1.Command_UseToken{UseToken: &storev1.UseToken{
		Id: id, Kind: kind, Name: name, KeyHash: bytes.Repeat([]byte{3}, 32), At: timestamppb.New(at),
	}}}
}

func TestEmptyStateIsRestored(t *testing.T) {
	s, err := readSnapshot(bytes.NewReader(written(t, newState())))
	if err != nil || s.active != nil || s.epoch != 1 {
		t.Fatalf("got %+v, %v", s, err)
	}
}

func TestEveryFlippedBitOfASnapshotIsRefused(t *testing.T) {
	data := written(t, sampleState(t))
	if _, err := readSnapshot(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	for i := range data {
		for bit := range 8 {
			damaged := bytes.Clone(data)
			damaged[i] ^= 1 << bit
			if _, err := readSnapshot(bytes.NewReader(damaged)); err == nil {
				t.Fatalf("bit %d of byte %d of %d flipped and nobody noticed", bit, i, len(data))
			}
		}
		if _, err := readSnapshot(bytes.NewReader(data[:i])); err == nil {
			t.Fatalf("cut to %d bytes and nobody noticed", i)
		}
	}
	if _, err := readSnapshot(bytes.NewReader(append(data, 0))); err == nil {
		t.Fatal("a byte too many and nobody noticed")
	}
}

// records writes a snapshot of any records, with the checksum that it must have.
func records(t testing.TB, all ...*storev1.SnapshotRecord) []byte {
	t.Helper()
	var out bytes.Buffer
	add := func(r *storev1.SnapshotRecord) {
		raw, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(binary.AppendUvarint(nil, uint64(len(raw))))
		out.Write(raw)
	}
	for _, r := range all {
		add(r)
	}
	sum := sha256.Sum256(out.Bytes())
	add(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_End{End: &storev1.SnapshotEnd{Sha256: sum[:]}}})
	return out.Bytes()
}

// readRecords takes a snapshot apart, without its end.
func readRecords(t testing.TB, data []byte) (all []*storev1.SnapshotRecord) {
	t.Helper()
	for len(data) > 0 {
		length, n := binary.Uvarint(data)
		r := &storev1.SnapshotRecord{}
		if err := proto.Unmarshal(data[n:n+int(length)], r); err != nil {
			t.Fatal(err)
		}
		data = data[n+int(length):]
		if r.GetEnd() == nil {
			all = append(all, r)
		}
	}
	return all
}

func TestSnapshotOfANewerVersionSaysSo(t *testing.T) {
	data := records(t, &storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_Header{
		Header: &storev1.SnapshotHeader{Version: snapshotVersion + 1, Epoch: 1},
	}})
	if _, err := readSnapshot(bytes.NewReader(data)); !errors.Is(err, errTooNew) {
		t.Fatalf("got %v", err)
	}
}

// TestSnapshotWithAWrongStoryIsRefused leaves out, doubles and moves each record of a snapshot, checksum and all: what
// is taken must hold together.
func TestSnapshotWithAWrongStoryIsRefused(t *testing.T) {
	whole := readRecords(t, written(t, sampleState(t)))
	if _, err := readSnapshot(bytes.NewReader(records(t, whole...))); err != nil {
		t.Fatal(err)
	}
	try := func(what string, i int, all []*storev1.SnapshotRecord) {
		s, err := readSnapshot(bytes.NewReader(records(t, all...)))
		if err != nil {
			return
		}
		checkBodies(t, s)
		if again, err := readSnapshot(bytes.NewReader(written(t, s))); err != nil || !bytes.Equal(written(t, again), written(t, s)) {
			t.Errorf("record %d %s was taken and could not be written again: %v", i, what, err)
		}
		switch whole[i].GetRecord().(type) {
		case *storev1.SnapshotRecord_Header, *storev1.SnapshotRecord_Active, *storev1.SnapshotRecord_Resource:
			t.Errorf("record %d %s was taken", i, what)
		}
	}
	for i := range whole {
		without := append(append([]*storev1.SnapshotRecord{}, whole[:i]...), whole[i+1:]...)
		try("left out", i, without)
		try("doubled", i, append(append([]*storev1.SnapshotRecord{}, whole[:i+1]...), whole[i:]...))
		if i < len(whole)-1 && whole[i].GetResource() == nil {
			try("moved to the end", i, append(without[:len(without):len(without)], whole[i]))
		}
	}
	try("unknown", 0, append([]*storev1.SnapshotRecord{{}}, whole...))
}

func FuzzCommand(f *testing.F) {
	s := sampleState(f)
	seed := func(c *storev1.Command) {
		raw, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	seed(commitOf(f, s, routes(f, map[string]string{"a": "four", "d": "two"}), "document"))
	seed(&storev1.Command{Version: 1, Action: &storev1.Command_RemoveNode{RemoveNode: &storev1.RemoveNode{Name: "n1"}}})
	seed(useToken("t1", "join", "n4", someTime))
	replaced := sha256.Sum256([]byte("new"))
	seed(setAuthorities(replaced[:], "newer", "new"))
	seed(setGossipKeys(ringOf(keyring.Install, "old", "new").Digest(), keyring.Use, "new", "old"))
	seed(&storev1.Command{Version: 1, Action: &storev1.Command_AppendAudit{AppendAudit: &storev1.AppendAudit{}}, Audit: someAudit()})
	seed(putContext(3, "carol", someTime.Add(2*time.Hour)))
	seed(revokeContext("bob", someTime.Add(time.Minute)))
	seed(&storev1.Command{Version: 1, Action: &storev1.Command_RemoveToken{RemoveToken: &storev1.RemoveToken{Id: "t1"}}})
	data := written(f, s)
	f.Fuzz(func(t *testing.T, raw []byte) {
		testSeal.decodeCommand(raw)
		// Below the seal, which a fuzzer cannot guess.
		c, err := parseCommand(raw)
		if err != nil {
			return
		}
		s, err := readSnapshot(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.apply(c); err != nil && !bytes.Equal(written(t, s), data) {
			t.Fatalf("a refused command changed the state: %v", err)
		}
		checkBodies(t, s)
		if _, err := readSnapshot(bytes.NewReader(written(t, s))); err != nil {
			t.Fatalf("what was applied cannot be restored: %v", err)
		}
	})
}

func FuzzSnapshot(f *testing.F) {
	data := written(f, sampleState(f))
	f.Add(data, false)
	end := len(data) - 2 - 2 - 32 - 1 // about where the end record begins
	f.Add(data[:end], true)
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		if seal {
			h := sha256.Sum256(data)
			raw, _ := proto.Marshal(&storev1.SnapshotRecord{Record: &storev1.SnapshotRecord_End{End: &storev1.SnapshotEnd{Sha256: h[:]}}})
			data = append(binary.AppendUvarint(bytes.Clone(data), uint64(len(raw))), raw...)
		}
		s, err := readSnapshot(bytes.NewReader(data))
		if err != nil {
			return
		}
		checkBodies(t, s)
		again, err := readSnapshot(bytes.NewReader(written(t, s)))
		if err != nil || !bytes.Equal(written(t, again), written(t, s)) {
			t.Fatalf("what was read could not be read again: %v", err)
		}
	})
}

// full is a disk that takes so many bytes.
type full int

func (f *full) Write(p []byte) (int, error) {
	if *f -= full(len(p)); *f < 0 {
		return 0, errors.New("no space left on device")
	}
	return len(p), nil
}

func TestSnapshotThatCannotBeWrittenIsAnError(t *testing.T) {
	s := sampleState(t)
	size := len(written(t, s))
	for _, room := range []int{0, size / 2, size - 1} {
		disk := full(room)
		if err := s.capture().writeTo(&disk); err == nil {
			t.Errorf("%d of %d bytes were enough", room, size)
		}
	}
}
