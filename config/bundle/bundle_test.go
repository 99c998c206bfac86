package bundle

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/config"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func accept(*fleetv1.Release, *Bundle) error { return nil }

// save stores a bundle after one that stood its trial.
func save(d *Directory, release *fleetv1.Release, b *Bundle) error {
	staged, err := d.Stage(release, b, 1)
	if err != nil {
		return err
	}
	return staged.Commit(true)
}

func sample(t testing.TB, port uint32) *Bundle {
	t.Helper()
	b, err := Encode(&config.Resources{
		Listener: &resourcev1.Listener{Host: "0.0.0.0", Port: port},
		Routes: map[string]*resourcev1.Route{
			"/api": {Path: "/api", Match: resourcev1.PathMatch_PATH_MATCH_PREFIX, Pool: "/api"},
			"/":    {Path: "/", Match: resourcev1.PathMatch_PATH_MATCH_PREFIX, Pool: "/"},
		},
		Pools: map[string]*resourcev1.Pool{
			"/api": {Backends: []*resourcev1.Backend{{Host: "10.0.0.1", Port: 80, Weight: 1}}},
			"/":    {Backends: []*resourcev1.Backend{{Host: "10.0.0.2", Port: 80, Weight: 1}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDeltaAgainstAnotherBaseIsRefused(t *testing.T) {
	a, b, c := sample(t, 1), sample(t, 2), sample(t, 3)
	if _, err := Between(a, b).Apply(c); !errors.Is(err, ErrBase) {
		t.Fatalf("got %v, want ErrBase", err)
	}
	if _, err := Between(a, b).Apply(nil); !errors.Is(err, ErrBase) {
		t.Fatalf("got %v, want ErrBase", err)
	}
}

func TestDeltaHoldsOnlyWhatDiffers(t *testing.T) {
	d := Between(sample(t, 1), sample(t, 2))
	if len(d.Removed) != 0 || len(d.Upserted) != 1 || d.Upserted[0].Kind != config.KindListener {
		t.Fatalf("got %d removed and %v", len(d.Removed), d.Upserted)
	}
}

func TestTwoResourcesWithOneKeyAreRefused(t *testing.T) {
	_, err := New([]Resource{{Key{config.KindRoute, "/"}, []byte("a")}, {Key{config.KindRoute, "/"}, []byte("b")}})
	if err == nil {
		t.Fatal("want an error")
	}
}

func TestDecodeGivesBackTheResources(t *testing.T) {
	b := sample(t, 8080)
	r, err := b.Decode()
	if err != nil {
		t.Fatal(err)
	}
	if r.Listener.GetPort() != 8080 || len(r.Routes) != 2 || r.Pools["/api"].GetBackends()[0].GetHost() != "10.0.0.1" {
		t.Fatalf("got %v", r)
	}
}

func TestDecodeRefusesWhatItDoesNotKnow(t *testing.T) {
	for name, resources := range map[string][]Resource{
		"no listener":      nil,
		"unknown kind":     {{Key{"listener", "default"}, nil}, {Key{"mirror", "x"}, nil}},
		"second listener":  {{Key{"listener", "other"}, nil}},
		"broken body":      {{Key{"listener", "default"}, []byte{0xff}}},
		"unnamed listener": {{Key{"listener", ""}, nil}},
	} {
		b, err := New(resources)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Decode(); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

func TestReleaseIsBoundToKeyEpochRevisionAndDigest(t *testing.T) {
	public, private, _ := ed25519.GenerateKey(nil)
	otherPublic, _, _ := ed25519.GenerateKey(nil)
	b, other := sample(t, 1), sample(t, 2)
	release := Sign(private, 1, 7, b.Digest())
	if err := Verify(public, release, b); err != nil {
		t.Fatal(err)
	}
	forged := func(change func(*fleetv1.Release)) *fleetv1.Release {
		r := proto.CloneOf(release)
		change(r)
		return r
	}
	for name, err := range map[string]error{
		"another key":      Verify(otherPublic, release, b),
		"no key":           Verify(nil, release, b),
		"another bundle":   Verify(public, release, other),
		"another epoch":    Verify(public, forged(func(r *fleetv1.Release) { r.Epoch++ }), b),
		"another revision": Verify(public, forged(func(r *fleetv1.Release) { r.Revision++ }), b),
		"another digest":   Verify(public, forged(func(r *fleetv1.Release) { d := other.Digest(); r.Digest = d[:] }), other),
		"no digest":        Verify(public, forged(func(r *fleetv1.Release) { r.Digest = nil }), b),
		"no signature":     Verify(public, forged(func(r *fleetv1.Release) { r.Signature = nil }), b),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestFileRoundTripAndEveryFlippedBitIsRefused(t *testing.T) {
	b := sample(t, 80)
	digest := b.Digest()
	data, err := Marshal(&fleetv1.Release{Epoch: 1, Revision: 3, Digest: digest[:]}, b)
	if err != nil {
		t.Fatal(err)
	}
	release, back, err := Unmarshal(data)
	if err != nil || release.GetRevision() != 3 || back.Digest() != b.Digest() {
		t.Fatalf("got %v %v %v", release, back, err)
	}
	for i := range data {
		for bit := range 8 {
			damaged := bytes.Clone(data)
			damaged[i] ^= 1 << bit
			if _, _, err := Unmarshal(damaged); err == nil {
				t.Fatalf("bit %d of byte %d flipped and nobody noticed", bit, i)
			}
		}
	}
	for n := range data {
		if _, _, err := Unmarshal(data[:n]); err == nil {
			t.Fatalf("cut to %d bytes and nobody noticed", n)
		}
	}
}

func TestDirectoryKeepsCurrentAndPrevious(t *testing.T) {
	dir := t.TempDir()
	d, err := OpenDirectory(filepath.Join(dir, "bundles"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := d.Load(accept); !errors.Is(err, ErrEmpty) {
		t.Fatalf("got %v, want ErrEmpty", err)
	}
	for revision := range uint64(3) {
		if err := save(d, &fleetv1.Release{Revision: revision + 1}, sample(t, uint32(revision+1))); err != nil {
			t.Fatal(err)
		}
	}
	release, b, skipped, err := d.Load(accept)
	if err != nil || skipped != nil || release.GetRevision() != 3 || b.Digest() != sample(t, 3).Digest() {
		t.Fatalf("got %v, %v, %v", release, skipped, err)
	}
	entries, _ := os.ReadDir(filepath.Join(dir, "bundles"))
	for _, e := range entries {
		info, _ := e.Info()
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
	if len(entries) != 2 {
		t.Errorf("%d files are left, want 2", len(entries))
	}
}

func TestDamagedCurrentFallsBackToPreviousAndSaysSo(t *testing.T) {
	dir := t.TempDir()
	d, _ := OpenDirectory(dir)
	for revision := range uint64(2) {
		if err := save(d, &fleetv1.Release{Revision: revision + 1}, sample(t, uint32(revision+1))); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, currentFile)
	data, _ := os.ReadFile(path)
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	release, _, skipped, err := d.Load(accept)
	if err != nil || release.GetRevision() != 1 || skipped == nil {
		t.Fatalf("got %v, %v, %v", release, skipped, err)
	}
	refuse := errors.New("not signed by us")
	if _, _, _, err := d.Load(func(*fleetv1.Release, *Bundle) error { return refuse }); !errors.Is(err, refuse) {
		t.Fatalf("got %v", err)
	}
}

func TestFailedSaveLeavesTheCurrentBundle(t *testing.T) {
	dir := t.TempDir()
	d, _ := OpenDirectory(dir)
	if err := save(d, &fleetv1.Release{Revision: 1}, sample(t, 1)); err != nil {
		t.Fatal(err)
	}
	// A directory in the place of the previous file makes the rotation fail, for root as well.
	if err := os.MkdirAll(filepath.Join(dir, previousFile, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := save(d, &fleetv1.Release{Revision: 2}, sample(t, 2)); err == nil {
		t.Fatal("want an error")
	}
	release, _, _, err := d.Load(accept)
	if err != nil || release.GetRevision() != 1 {
		t.Fatalf("got %v, %v", release, err)
	}
	if left, _ := fs.Glob(os.DirFS(dir), "*.tmp"); len(left) > 0 {
		t.Fatalf("left over: %v", left)
	}
}

func TestWhatACrashLeftIsRemoved(t *testing.T) {
	dir := t.TempDir()
	d, _ := OpenDirectory(dir)
	if _, err := d.Stage(&fleetv1.Release{Revision: 1}, sample(t, 1), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDirectory(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Fatalf("left over: %v", left)
	}
}

func FuzzUnmarshal(f *testing.F) {
	data, _ := Marshal(&fleetv1.Release{Revision: 1}, sample(f, 80))
	f.Add(data)
	f.Add([]byte(fileMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		release, b, err := Unmarshal(data)
		if err != nil {
			return
		}
		again, err := Marshal(release, b)
		if err != nil {
			t.Fatal(err)
		}
		if _, c, err := Unmarshal(again); err != nil || c.Digest() != b.Digest() {
			t.Fatalf("what was read could not be read again: %v", err)
		}
	})
}

// FuzzFields goes below the checksum, which a fuzzer cannot guess.
func FuzzFields(f *testing.F) {
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, b, err := Unmarshal(seal(append([]byte(fileMagic), data...))); err == nil && b == nil {
			t.Fatal("neither a bundle nor an error")
		}
	})
}

func BenchmarkEncode100kRoutes(b *testing.B) {
	r := &config.Resources{Listener: &resourcev1.Listener{}, Routes: map[string]*resourcev1.Route{}, Pools: map[string]*resourcev1.Pool{}}
	for i := range 100_000 {
		name := fmt.Sprintf("/route/%d", i)
		r.Routes[name] = &resourcev1.Route{Path: name, Pool: name}
		r.Pools[name] = &resourcev1.Pool{Backends: []*resourcev1.Backend{{Host: "10.0.0.1", Port: uint32(i%65535 + 1), Weight: 1}}}
	}
	for b.Loop() {
		if _, err := Encode(r); err != nil {
			b.Fatal(err)
		}
	}
}
