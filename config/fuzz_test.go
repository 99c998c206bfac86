package config

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzParse: whatever the bytes, Parse ends, gives resources or an error but never both or neither, and gives the same
// the next time.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*/*.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds (%v)", err)
	}
	for _, seed := range append(seeds, "testdata/unused.yaml") {
		document, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(document)
	}
	f.Add([]byte("a: &a [*a]\n<<: *a\n"))
	f.Add([]byte("server: {reverse_proxy: [&e {path: '^/x', match: regex, hosts: ['*.a']}, {<<: *e, health_check: {type: http, expected_status: '200,3-4'}}]}"))
	files := memory(map[string][]byte{"./ssl/cert.pem": []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")})
	f.Fuzz(func(t *testing.T, document []byte) {
		if len(document) > 64<<10 {
			return // no new paths, only slower
		}
		resources, problems := parse(document, files, today)
		if (resources == nil) != problems.HasErrors() {
			t.Fatalf("resources are nil: %v, problems:\n%s", resources == nil, joined(problems))
		}
		if len(problems) > MaxProblems+1 {
			t.Fatalf("%d problems", len(problems))
		}
		for _, p := range problems {
			if p.Line < 1 || p.Message == "" {
				t.Fatalf("a problem without line or message: %+v", p)
			}
		}
		again, problemsAgain := parse(document, files, today)
		if joined(problems) != joined(problemsAgain) {
			t.Fatalf("problems differ:\n%s\nand:\n%s", joined(problems), joined(problemsAgain))
		}
		if changes := Diff(resources, again); changes != nil {
			t.Fatalf("differs from itself:\n%s", told(changes))
		}
	})
}

// FuzzPath: the normal form of a path is its own normal form, and so is accepted where it is told to be written.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"/a/../b", "/%41%2f", "//", "/a/%2e%2e/", "/é", "/%"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if path == "" || path[0] != '/' {
			return
		}
		normal, err := normalPath(path)
		if err != nil {
			return
		}
		if again, err := normalPath(normal); err != nil || again != normal {
			t.Fatalf("%q became %q and then %q (%v)", path, normal, again, err)
		}
	})
}
