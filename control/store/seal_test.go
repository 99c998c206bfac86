package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// sealedStream seals data as a snapshot.
func sealedStream(t testing.TB, k *sealer, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := k.newWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	for piece := data; len(piece) > 0; { // in odd pieces
		n := min(len(piece), 40_001)
		if _, err := w.Write(piece[:n]); err != nil {
			t.Fatal(err)
		}
		piece = piece[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func openStream(k *sealer, sealed []byte) ([]byte, error) {
	r, err := k.newReader(bytes.NewReader(sealed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func otherSealer(t testing.TB) *sealer {
	t.Helper()
	k, err := newSealer(bytes.Repeat([]byte{8}, SealKeyBytes))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealedStreamOfAnyLengthIsOpened(t *testing.T) {
	for _, length := range []int{0, 1, snapshotChunk - 1, snapshotChunk, snapshotChunk + 1, 3 * snapshotChunk, 3*snapshotChunk + 5} {
		data := bytes.Repeat([]byte("secret! "), length/8+1)[:length]
		sealed := sealedStream(t, testSeal, data)
		if got, err := openStream(testSeal, sealed); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: got %d, %v", length, len(got), err)
		}
		if length > 8 && bytes.Contains(sealed, []byte("secret!")) {
			t.Errorf("%d bytes: the plain text is in it", length)
		}
	}
}

func TestSealedStreamThatWasTamperedWithIsRefused(t *testing.T) {
	const chunk = snapshotChunk + tagBytes
	sealed := sealedStream(t, testSeal, bytes.Repeat([]byte{1}, 3*snapshotChunk+100))
	another := sealedStream(t, testSeal, bytes.Repeat([]byte{1}, 3*snapshotChunk+100))
	at := func(i int) []byte { return sealed[snapshotHead+i*chunk : min(snapshotHead+(i+1)*chunk, len(sealed))] }
	head := sealed[:snapshotHead]
	for name, bad := range map[string][]byte{
		"cut at a chunk's end": bytes.Join([][]byte{head, at(0), at(1), at(2)}, nil),
		"cut within a chunk":   sealed[:len(sealed)-50],
		"head alone":           head,
		"a chunk left out":     bytes.Join([][]byte{head, at(0), at(2), at(3)}, nil),
		"chunks swapped":       bytes.Join([][]byte{head, at(1), at(0), at(2), at(3)}, nil),
		"a chunk twice":        bytes.Join([][]byte{head, at(0), at(0), at(1), at(2), at(3)}, nil),
		"something behind":     append(bytes.Clone(sealed), 0),
		"a chunk of another":   bytes.Join([][]byte{head, another[snapshotHead : snapshotHead+chunk], at(1), at(2), at(3)}, nil),
		"nothing":              nil,
	} {
		if _, err := openStream(testSeal, bad); err == nil {
			t.Errorf("%s: nobody noticed", name)
		}
	}
	for i := range snapshotHead + 40 {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := openStream(testSeal, bad); err == nil {
			t.Errorf("byte %d flipped and nobody noticed", i)
		}
	}
}

func TestAnotherKeyIsNamedAsTheTrouble(t *testing.T) {
	other := otherSealer(t)
	_, err := openStream(other, sealedStream(t, testSeal, []byte("x")))
	if err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("got %v", err)
	}
	command, err := testSeal.encodeCommand(&storev1.Command{Action: &storev1.Command_RemoveNode{RemoveNode: &storev1.RemoveNode{Name: "n1"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.decodeCommand(command); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("got %v", err)
	}
}

func TestNewerSealSaysSo(t *testing.T) {
	command, stream := bytes.Clone(sealed(t, &storev1.Command{Version: 1})), sealedStream(t, testSeal, nil)
	command[0], stream[0] = sealVersion+1, sealVersion+1
	if _, err := testSeal.decodeCommand(command); !errors.Is(err, errTooNew) {
		t.Errorf("got %v", err)
	}
	if _, err := openStream(testSeal, stream); !errors.Is(err, errTooNew) {
		t.Errorf("got %v", err)
	}
}

func TestKeyOfAnotherLengthIsRefused(t *testing.T) {
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := newSealer(make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes was taken", n)
		}
	}
}

func TestSealedSnapshotThatCannotBeWrittenIsAnError(t *testing.T) {
	c := sampleState(t).capture()
	c.seal = testSeal
	var whole bytes.Buffer
	if err := c.writeSealed(&whole); err != nil {
		t.Fatal(err)
	}
	for _, room := range []int{0, snapshotHead, whole.Len() - 1} {
		disk := full(room)
		if err := c.writeSealed(&disk); err == nil {
			t.Errorf("%d of %d bytes were enough", room, whole.Len())
		}
	}
}

// TestNothingOnDiskCanBeReadWithoutTheKey commits a secret, has it end in the log, in snapshots and in what bolt leaves
// behind, and looks for it in every file.
func TestNothingOnDiskCanBeReadWithoutTheKey(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	const secret = "MC4CAQAwBQYDK2VwBCIEIExampleOfAKeyThatNobodyMayRead"
	for i := range 3 {
		mustCommit(t, s, map[string]string{"a": fmt.Sprint(secret, i)}, "document of "+secret)
		if err := s.engine.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	files := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(secret)) || bytes.Contains(data, []byte("document of")) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil || files < 3 {
		t.Fatalf("%d files, %v", files, err)
	}
	again := openIn(t, dir)
	if string(again.Active().Document) != "document of "+secret {
		t.Fatal("and it is lost")
	}
}

func TestStoreIsNotOpenedWithAnotherKey(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	mustCommit(t, s, map[string]string{"a": "one"}, "")
	closeStore(t, s)
	wrong := func(used bool) ([]byte, error) {
		if !used {
			t.Error("the store counts as unused")
		}
		return bytes.Repeat([]byte{9}, SealKeyBytes), nil
	}
	if _, err := Open(t.Context(), Options{Dir: dir, Name: "c1", Key: wrong}); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Fatalf("got %v", err)
	}
	lost := errors.New("the key is lost")
	if _, err := Open(t.Context(), Options{Dir: dir, Name: "c1", Key: func(bool) ([]byte, error) { return nil, lost }}); !errors.Is(err, lost) {
		t.Fatalf("got %v", err)
	}
	openIn(t, dir) // nothing was harmed, nothing stays locked
}

func FuzzSealedStream(f *testing.F) {
	f.Add(sealedStream(f, testSeal, []byte("hello")))
	f.Add(sealedStream(f, testSeal, make([]byte, snapshotChunk+1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		known := bytes.Clone(data)
		if got, err := openStream(testSeal, data); err == nil && len(got) > len(known) {
			t.Fatalf("%d bytes came out of %d", len(got), len(known))
		}
		testSeal.open(data)
	})
}

// BenchmarkSeal is what sealing adds to a command that brings a whole bundle of 100,000 routes, about 30 MB.
func BenchmarkSeal(b *testing.B) {
	room := make([]byte, commandHead+30<<20, commandHead+30<<20+tagBytes)
	b.SetBytes(int64(len(room)))
	for b.Loop() {
		testSeal.seal(room)
	}
}

func BenchmarkUnseal(b *testing.B) {
	sealed := testSeal.seal(make([]byte, commandHead+30<<20, commandHead+30<<20+tagBytes))
	b.SetBytes(int64(len(sealed)))
	for b.Loop() {
		if _, err := testSeal.open(sealed); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWholeBundle commits 100,000 new routes at once.
func BenchmarkWholeBundle(b *testing.B) {
	s := openIn(b, b.TempDir())
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		bodies := map[string]string{}
		for i := range 100_000 {
			bodies[fmt.Sprintf("/route/%d", i)] = fmt.Sprint("the body of route ", i, " of bundle ", n, strings.Repeat(".", 200))
		}
		p := proposal(s, routes(b, bodies), "")
		b.StartTimer()
		if _, err := s.Commit(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}
