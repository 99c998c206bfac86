package node

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
)

// pyServe is how PyServe finds a location, written as slowly as can be: exact ones, expressions, the two sorts of prefixes,
// and what is left over, each of them in the order of the file.
func pyServe(patterns []string, path string) (pattern string, ok bool) {
	rank := func(p string) int {
		return slices.IndexFunc([]bool{p[0] == '=', p[0] == '~', p[0] == '^', p[0] == '/', true}, func(is bool) bool { return is })
	}
	sorted := slices.Clone(patterns)
	slices.SortStableFunc(sorted, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	for _, p := range sorted {
		matches := false
		switch {
		case p[0] == '=':
			matches = path == p[1:]
		case strings.HasPrefix(p, "~*"):
			matches = regexp.MustCompile("(?i)" + p[2:]).MatchString(path)
		case p[0] == '~':
			matches = regexp.MustCompile(p[1:]).MatchString(path)
		case p[0] == '_':
			matches = true
		default:
			matches = strings.HasPrefix(path, strings.TrimPrefix(p, "^~"))
		}
		if matches {
			return p, true
		}
	}
	return "", false
}

// A file of PyServe's leads each path to the location that PyServe has for it.
func TestLocationsTakeWhatTheyTakeInPyServe(t *testing.T) {
	all := []string{"=/", "=/a", "=/a/b", "~^/a/", "~b", "~*^/A", `~\\.js$`, "~^/(a|b)/c", "^~/a", "^~/a/b", "^~/", "/", "/a", "/b/", "/a/b.c", "__default__"}
	path := rapid.StringMatching(`/([abcA]|[abc]\.js|\.js|b\.c)?(/[abc.]{1,3})?/?`).Filter(func(path string) bool {
		return !slices.ContainsFunc(strings.Split(path, "/"), func(s string) bool { return s == "." || s == ".." })
	})
	n := newNode(t, Options{Listen: "127.0.0.1:0"})
	revision := uint64(0)
	rapid.Check(t, func(t *rapid.T) {
		patterns := rapid.SliceOfNDistinct(rapid.SampledFrom(all), 1, 8, rapid.ID).Draw(t, "patterns")
		document := "extensions:\n- type: routing\n  config:\n    regex_locations:\n"
		for i, pattern := range patterns {
			document += fmt.Sprintf("      \"%s\": {return: 200 %d}\n", pattern, i)
		}
		resources, problems := config.Parse([]byte(document), nil)
		if resources == nil {
			t.Fatalf("%v\n%s", problems, document)
		}
		made, err := bundle.Encode(resources)
		if err != nil {
			t.Fatal(err)
		}
		revision++
		g, err := n.Prepare(release(revision), made)
		if err != nil {
			t.Fatal(err)
		}
		n.Apply(g)
		for range 20 {
			path := path.Draw(t, "path")
			want, _ := pyServe(unescaped(patterns), path)
			got := ""
			if found, ok, _ := g.table.Routes.Lookup(nil, []byte(path), nil); ok {
				body := resources.Routes[found.Name()].GetRespond().GetBody()
				got = unescaped(patterns)[int(body[0]-'0')]
			}
			if got != want {
				t.Fatalf("%s leads to %q, in PyServe to %q, of %q", path, got, want, patterns)
			}
		}
	})
}

// unescaped are patterns as YAML reads them.
func unescaped(patterns []string) []string {
	out := slices.Clone(patterns)
	for i := range out {
		out[i] = strings.ReplaceAll(out[i], `\\`, `\`)
	}
	return out
}
