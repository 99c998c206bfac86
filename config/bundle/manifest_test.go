package bundle

import (
	"errors"
	"slices"
	"testing"
)

func resourcesOf(bodies ...string) (out []Resource) {
	for i := 0; i < len(bodies); i += 2 {
		out = append(out, Resource{Key{"pool", bodies[i]}, []byte(bodies[i+1])})
	}
	return out
}

func mustNew(t *testing.T, bodies ...string) *Bundle {
	t.Helper()
	b, err := New(resourcesOf(bodies...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAManifestIsProvedByItsDigest(t *testing.T) {
	b := mustNew(t, "a", "1", "b", "2")
	entries := slices.Collect(b.Manifest())
	if _, err := NewManifest(b.Digest(), entries); err != nil {
		t.Fatal(err)
	}
	swapped := []Entry{entries[1], entries[0]}
	for what, other := range map[string][]Entry{"swapped": swapped, "shorter": entries[:1], "none": nil, "twice": append(swapped, entries...)} {
		if _, err := NewManifest(b.Digest(), other); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestABundleIsAssembledOfWhatIsThereAndWhatWasMissing(t *testing.T) {
	base, target := mustNew(t, "a", "1", "b", "2", "gone", "3"), mustNew(t, "a", "1", "b", "4", "c", "3", "d", "4")
	m, err := NewManifest(target.Digest(), slices.Collect(target.Manifest()))
	if err != nil {
		t.Fatal(err)
	}
	missing := m.Missing(base)
	if len(missing) != 1 || len(m.Missing(nil)) != 3 || len(m.Missing(target)) != 0 {
		t.Errorf("missing: %d of base, %d of nothing, %d of all", len(missing), len(m.Missing(nil)), len(m.Missing(target)))
	}
	bodies := target.Bodies(missing)
	if len(bodies) != 1 || string(bodies[missing[0]]) != "4" {
		t.Errorf("bodies: %q", bodies)
	}
	got, err := m.Assemble(base, bodies)
	if err != nil || got.Digest() != target.Digest() {
		t.Errorf("assembled %v, %v", got, err)
	}
	if _, err := m.Assemble(base, nil); err == nil {
		t.Error("a bundle without a body is assembled")
	}
	if _, err := m.Assemble(base, map[Sum][]byte{missing[0]: []byte("5")}); !errors.Is(err, ErrManifest) {
		t.Errorf("with another body: %v", err)
	}
}
