package route

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pyserve/pyserve/config"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"pgregory.net/rapid"
)

const (
	prefix = resourcev1.PathMatch_PATH_MATCH_PREFIX
	exact  = resourcev1.PathMatch_PATH_MATCH_EXACT
	expr   = resourcev1.PathMatch_PATH_MATCH_REGEX
)

// rule is a Rule whose value says what it is.
func rule(match resourcev1.PathMatch, path string, hosts ...string) Rule[string] {
	word := map[resourcev1.PathMatch]string{prefix: "prefix ", exact: "exact ", expr: "regex "}[match]
	return Rule[string]{Path: path, Match: match, Hosts: hosts, Value: strings.Join(append([]string{word + path}, hosts...), " ")}
}

func compile(t testing.TB, rules ...Rule[string]) *Table[string] {
	t.Helper()
	table, err := Compile(rules, nil)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestLookup(t *testing.T) {
	second := rule(expr, "^/r")
	second.Order = 2
	first := rule(expr, "^/r.*x$")
	first.Order = 1
	paths := []Rule[string]{
		rule(prefix, "/api/v1"), rule(prefix, "/api"), rule(exact, "/api/v1"), rule(exact, "/only/"), rule(prefix, "/a//b"),
		second, first, rule(prefix, "/r/prefix"),
	}
	hosts := []Rule[string]{
		rule(prefix, "/"),
		rule(prefix, "/api/long"),
		rule(prefix, "/", "*.example.com"),
		rule(prefix, "/api", "*.example.com"),
		rule(prefix, "/", "*.deep.example.com"),
		rule(prefix, "/api", "api.example.com"),
		rule(expr, "^/re", "api.example.com"),
		rule(prefix, "/v6", "[2001:DB8::1]"),
		rule(prefix, "/both", "a.test", "b.test"),
	}
	for _, c := range []struct {
		name, host, path string
		rules            []Rule[string]
		want             string
	}{
		{"the prefix itself", "", "/api", paths, "prefix /api"},
		{"below the prefix", "", "/api/x", paths, "prefix /api"},
		{"the prefix with a slash", "", "/api/", paths, "prefix /api"},
		{"not past a segment boundary", "", "/apix", paths, ""},
		{"the longest prefix whatever the order", "", "/api/v1/x", paths, "prefix /api/v1"},
		{"a longer name falls to the shorter prefix", "", "/api/v12", paths, "prefix /api"},
		{"exact before prefix", "", "/api/v1", paths, "exact /api/v1"},
		{"exact with a slash", "", "/only/", paths, "exact /only/"},
		{"exact is exact", "", "/only", paths, ""},
		{"exact is exact below too", "", "/only/x", paths, ""},
		{"empty segments count", "", "/a//b/c", paths, "prefix /a//b"},
		{"empty segments are not skipped", "", "/a/b", paths, ""},
		{"regex in order", "", "/rx", paths, "regex ^/r.*x$"},
		{"the later regex", "", "/ry", paths, "regex ^/r"},
		{"prefix before regex", "", "/r/prefix/x", paths, "prefix /r/prefix"},
		{"nothing", "", "/", paths, ""},

		{"exact host before any", "api.example.com", "/api/long", hosts, "prefix /api api.example.com"},
		{"a path that the exact host lacks falls to the wildcard", "api.example.com", "/other", hosts, "prefix / *.example.com"},
		{"an exact host's regex before a wildcard's prefix", "api.example.com", "/re", hosts, "regex ^/re api.example.com"},
		{"wildcard before no host", "x.example.com", "/api/long", hosts, "prefix /api *.example.com"},
		{"longer wildcard before shorter", "x.deep.example.com", "/api", hosts, "prefix / *.deep.example.com"},
		{"wildcard is however deep", "a.b.c.example.com", "/", hosts, "prefix / *.example.com"},
		{"wildcard is not the name itself", "example.com", "/", hosts, "prefix /"},
		{"wildcard is not an end of a label", "anexample.com", "/", hosts, "prefix /"},
		{"wildcard wants a label", ".example.com", "/", hosts, "prefix /"},
		{"longer wildcard's own name is below the shorter", "deep.example.com", "/", hosts, "prefix / *.example.com"},
		{"unknown host", "other.test", "/api", hosts, "prefix /"},
		{"no host", "", "/api/long/x", hosts, "prefix /api/long"},
		{"IPv6", "2001:db8::1", "/v6", hosts, "prefix /v6 [2001:DB8::1]"},
		{"each of several hosts", "b.test", "/both", hosts, "prefix /both a.test b.test"},

		{"no rules", "a", "/", nil, ""},
		{"not a path", "", "*", hosts, ""},
		{"an empty path", "", "", hosts, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok, _ := compile(t, c.rules...).Lookup([]byte(c.host), []byte(c.path), nil)
			if got != c.want || ok != (c.want != "") {
				t.Errorf("%q on %q leads to %q, want %q", c.path, c.host, got, c.want)
			}
		})
	}
}

func TestRulesRefused(t *testing.T) {
	good := rule(prefix, "/good")
	for _, c := range []struct {
		name  string
		rule  Rule[string]
		field string
	}{
		{"no match", Rule[string]{Path: "/"}, "match"},
		{"unknown match", Rule[string]{Path: "/", Match: 9}, "match"},
		{"empty path", rule(prefix, ""), "path"},
		{"no slash", rule(exact, "a"), "path"},
		{"dot segments", rule(exact, "/a/../b"), "path"},
		{"needless encoding", rule(prefix, "/%61"), "path"},
		{"not encoded", rule(prefix, "/é"), "path"},
		{"prefix with a trailing slash", rule(prefix, "/a/"), "path"},
		{"bad expression", rule(expr, "("), "path"},
		{"a star inside", rule(prefix, "/", "a.*.com"), "hosts"},
		{"a star alone", rule(prefix, "/", "*"), "hosts"},
		{"nothing after the star", rule(prefix, "/", "*."), "hosts"},
		{"a port alone", rule(prefix, "/", ":80"), "hosts"},
		{"twice", rule(prefix, "/good"), "path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Compile([]Rule[string]{good, c.rule}, nil)
			var refused *RuleError
			if !errors.As(err, &refused) || refused.Index != 1 || refused.Field != c.field || refused.Reason == "" {
				t.Errorf("got %v, want a refusal of rule 1's %s", err, c.field)
			}
		})
	}
}

func TestSamePathTwiceIsRefusedOnlyForTheSameHostAndMatch(t *testing.T) {
	compile(t, rule(prefix, "/a"), rule(exact, "/a"), rule(expr, "/a"), rule(prefix, "/a", "x"), rule(prefix, "/a", "*.x"), rule(prefix, "/a", "y", "z"))
	for _, pair := range [][2]Rule[string]{
		{rule(prefix, "/"), rule(prefix, "/")},
		{rule(expr, "a"), rule(expr, "a")},
		{rule(exact, "/a", "x", "y"), rule(exact, "/a", "z", "Y")},
		{rule(prefix, "/a", "*.x"), rule(prefix, "/a", "*.X")},
	} {
		if _, err := Compile(pair[:], nil); err == nil {
			t.Errorf("%q was accepted twice", pair[0].Value)
		}
	}
}

// slowLookup reads the rule of precedence, route by route: all that match, the best by rank.
func slowLookup(rules []Rule[string], host, path string, a asked) (string, bool) {
	best, rank, text := -1, []int(nil), ""
	for i, r := range rules {
		if !a.fits(r.Conditions) {
			continue
		}
		for _, h := range hostsOf(r) {
			got := slices.Concat(rankHost(h, host), rankPath(rules, r, h, path), []int{r.Conditions.Count()})
			if slices.Contains(got, -1) {
				continue
			}
			order := slices.Compare(got, rank)
			if best < 0 || order > 0 || order == 0 && r.Conditions.String() < text {
				best, rank, text = i, got, r.Conditions.String()
			}
		}
	}
	if best < 0 {
		return "", false
	}
	return rules[best].Value, true
}

func hostsOf(r Rule[string]) []string {
	if len(r.Hosts) == 0 {
		return []string{""}
	}
	return r.Hosts
}

func rankHost(pattern, host string) []int {
	end, wild := strings.CutPrefix(pattern, "*")
	switch {
	case pattern == "":
		return []int{0, 0}
	case wild && strings.HasSuffix(host, end) && len(host) > len(end):
		return []int{1, len(end)}
	case !wild && pattern == host:
		return []int{2, 0}
	}
	return []int{-1, 0}
}

func rankPath(rules []Rule[string], r Rule[string], host, path string) []int {
	switch {
	case r.Match == exact && r.Path == path:
		return []int{3, 0}
	case r.Match == prefix && (path == r.Path || strings.HasPrefix(path, strings.TrimSuffix(r.Path, "/")+"/")):
		return []int{2, len(r.Path)}
	case r.Match == expr && regexp.MustCompile(r.Path).MatchString(path):
		order := r.Order // that of the first with the same expression
		for _, other := range rules {
			if other.Match == expr && other.Path == r.Path && slices.Contains(hostsOf(other), host) {
				order = min(order, other.Order)
			}
		}
		return []int{1, 1000 - int(order)}
	}
	return []int{-1, 0}
}

// somePath is made of few segments, so that paths meet.
var somePath = rapid.Custom(func(t *rapid.T) string {
	return "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"", "a", "b", "ab"}), 0, 4).Draw(t, "segments"), "/")
})

var someHost = rapid.SampledFrom([]string{"x", "a.x", "b.a.x", "c.b.a.x", "ax", "y", ""})

func someRules(t *rapid.T) []Rule[string] {
	var rules []Rule[string]
	seen := make(map[string]bool)
	for i := range rapid.IntRange(0, 30).Draw(t, "rules") {
		r := rule(rapid.SampledFrom([]resourcev1.PathMatch{prefix, prefix, exact, expr}).Draw(t, "match"), somePath.Draw(t, "path"))
		switch r.Match {
		case prefix:
			if r.Path = strings.TrimRight(r.Path, "/"); r.Path == "" {
				r.Path = "/"
			}
		case expr:
			r.Path = rapid.SampledFrom([]string{"^/a", "b$", "/", "//", "ab|^/b"}).Draw(t, "expression")
			r.Order = uint32(i + 1)
		}
		if host := rapid.SampledFrom([]string{"", "x", "a.x", "*.x", "*.a.x", "*.b.a.x"}).Draw(t, "host"); host != "" {
			r.Hosts = []string{host}
		}
		r.Conditions = someConditions.Draw(t, "conditions")
		r.Value = fmt.Sprint(r.Match, r.Path, r.Hosts, r.Conditions)
		if !seen[r.Value] {
			seen[r.Value] = true
			rules = append(rules, r)
		}
	}
	return rules
}

func TestLookupIsTheSlowTwins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules := someRules(t)
		table, err := Compile(rules, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			host, path := someHost.Draw(t, "host"), somePath.Draw(t, "path")
			request := someRequest.Draw(t, "request")
			got, ok, _ := table.Lookup([]byte(host), []byte(path), request)
			want, wantOK := slowLookup(rules, host, path, request)
			if got != want || ok != wantOK {
				t.Fatalf("%+v for %q on %q leads to %q, the slow twin says %q", request, path, host, got, want)
			}
		}
	})
}

func FuzzLookup(f *testing.F) {
	rules := []Rule[string]{
		rule(prefix, "/"), rule(prefix, "/a"), rule(exact, "/a/b"), rule(prefix, "/a/b"), rule(expr, "x+$", "*.h"),
		rule(prefix, "/a", "h"), rule(prefix, "/c//d", "*.h"), rule(exact, "/", "*.g.h"),
	}
	for _, base := range slices.Clone(rules) {
		rules = append(rules,
			with(base, config.Conditions{Methods: []string{"POST"}}),
			with(base, config.Conditions{Headers: []*resourcev1.FieldMatch{exactly("x-a", "1"), matching("x-b", "^a|b$")}}),
			with(base, config.Conditions{Query: []*resourcev1.FieldMatch{exactly("q", "a b"), present("r", true)}}))
	}
	table := compile(f, rules...)
	f.Add("h", "/a/b/c", "GET", "1", "", "")
	f.Add("g.h:80", "/c//d/..", "POST", "1", "a", "q=a+b&r")
	f.Fuzz(func(t *testing.T, host, raw, method, one, two, query string) {
		normal, err := NormalizePath(nil, []byte(raw))
		if err != nil {
			return
		}
		path := string(normal)
		host = string(CanonicalHost(nil, []byte(host)))
		if strings.HasPrefix(host, ".") {
			return // no host: the twin need not know how it is cut
		}
		a := asked{method: method, fields: [][2]string{{"x-a", one}, {"x-b", two}}, query: query}
		got, _, _ := table.Lookup([]byte(host), normal, a)
		if want, _ := slowLookup(rules, host, path, a); got != want {
			t.Errorf("%+v for %q on %q leads to %q, the slow twin says %q", a, path, host, got, want)
		}
	})
}

// manyRules are prefixes of one to four segments, a third of them without a host, a third on exact hosts and a third on
// "*." hosts, all spread over services and hosts of which there are more with more rules.
func manyRules(n int) []Rule[string] {
	services, hosts := max(n/50, 1), max(n/100, 1)
	rules := make([]Rule[string], 0, n)
	for i := range n {
		service := i % services
		path := [...]string{
			fmt.Sprintf("/app-%d", i),
			fmt.Sprintf("/service-%d/resource-%d", service, i),
			fmt.Sprintf("/service-%d/v%d/resource-%d", service, i%5, i),
			fmt.Sprintf("/service-%d/v%d/tenant-%d/resource-%d", service, i%5, i%100, i),
		}[i/3%4]
		r := Rule[string]{Path: path, Match: prefix, Value: path}
		switch host := i / 12 % hosts; i % 3 {
		case 1:
			r.Hosts = []string{fmt.Sprintf("h%d.example.com", host)}
		case 2:
			r.Hosts = []string{fmt.Sprintf("*.w%d.example.com", host)}
		}
		rules = append(rules, r)
	}
	return rules
}

// request is what a client asks for.
type request struct {
	host, path []byte
	asks       Request
}

// requestsTo are requests below rules drawn at random. They lie one after the other, so that what a benchmark waits for is
// the table and not the request, which an engine has just read.
func requestsTo(rules []Rule[string], n int) []request {
	random := rand.New(rand.NewPCG(1, 2))
	all := make([]byte, 0, n*128)
	requests := make([]request, 0, n)
	for range n {
		r := rules[random.IntN(len(rules))]
		host := "www.example.org"
		if len(r.Hosts) > 0 {
			host = strings.Replace(r.Hosts[0], "*", "api", 1)
		}
		begin := len(all)
		all = append(all, host...)
		middle := len(all)
		all = append(append(all, r.Path...), "/items/42"...)
		requests = append(requests, request{host: all[begin:middle], path: all[middle:], asks: askedBy(r.Conditions)})
	}
	return requests
}

func TestEachOfManyRulesIsFound(t *testing.T) {
	rules := manyRules(20_000)
	table := compile(t, rules...)
	for _, r := range rules {
		host := "www.example.org"
		if len(r.Hosts) > 0 {
			host = strings.Replace(r.Hosts[0], "*", "api", 1)
		}
		if got, _, _ := table.Lookup([]byte(host), []byte(r.Path), nil); got != r.Value {
			t.Fatalf("%q on %q leads to %q", r.Path, host, got)
		}
		if got, ok, _ := table.Lookup([]byte(host), []byte(r.Path+"x"), nil); ok {
			t.Fatalf("%q on %q leads to %q", r.Path+"x", host, got)
		}
	}
}

// The time only shows that the work is nowhere near quadratic: a lookup of 64 KiB is some microseconds.
func TestHostileInputIsCheap(t *testing.T) {
	deep := strings.Repeat("/a", 2000)
	table := compile(t, append(manyRules(1000), rule(prefix, "/"), rule(prefix, deep), rule(prefix, "/", "*."+strings.Repeat("h.", 100)+"x"))...)
	slashes := strings.Repeat("/", 60_000)
	for name, c := range map[string]struct{ host, path string }{
		"slashes":      {"", slashes},
		"deep":         {"", strings.Repeat("/a", 30_000)},
		"host of dots": {strings.Repeat("h.", 30_000) + "x", slashes},
	} {
		t.Run(name, func(t *testing.T) {
			host, raw := []byte(c.host), []byte(c.path)
			begin := time.Now()
			for range 100 {
				path, err := NormalizePath(nil, raw)
				if err != nil || !bytes.Equal(path, raw) {
					t.Fatal(err)
				}
				if _, ok, _ := table.Lookup(host, path, nil); !ok {
					t.Fatal("no route")
				}
			}
			if took := time.Since(begin) / 100; took > 50*time.Millisecond {
				t.Errorf("a lookup took %v", took)
			}
		})
	}
}

// checkAllocations fails if f allocates. The race detector allocates by itself, so there it is not asked.
func checkAllocations(t *testing.T, name string, f func()) {
	t.Helper()
	if raceDetector {
		return
	}
	if n := testing.AllocsPerRun(100, f); n != 0 {
		t.Errorf("%q: %v allocations", name, n)
	}
}

func TestLookupAllocatesNothing(t *testing.T) {
	long := strings.Repeat("segment-", 10) // no string of this length fits on a stack
	table := compile(t,
		rule(prefix, "/a/b", "*.example.com"), rule(exact, "/a/b", "a.example.com"), rule(expr, "^/x+$"), rule(prefix, "/"+long+"/b"),
		rule(prefix, "/c", long+".example.com"), rule(prefix, "/d", "*."+long+".example.com"))
	for _, c := range []struct{ host, path, want string }{
		{"a.example.com", "/a/b", "exact /a/b a.example.com"},
		{"b.a.example.com", "/a/b/c", "prefix /a/b *.example.com"},
		{"other", "/" + long + "/b/c", "prefix /" + long + "/b"},
		{long + ".example.com", "/c", "prefix /c " + long + ".example.com"},
		{"a." + long + ".example.com", "/d", "prefix /d *." + long + ".example.com"},
		{"other", "/xx", "regex ^/x+$"},
		{"other", "/" + long, ""},
		{long, "/none", ""},
	} {
		host, path := []byte(c.host), []byte(c.path)
		if got, _, _ := table.Lookup(host, path, nil); got != c.want {
			t.Errorf("%q on %q leads to %q, want %q", path, host, got, c.want)
		}
		checkAllocations(t, c.host+c.path, func() { table.Lookup(host, path, nil) })
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{10, 10_000, 100_000} {
		rules := manyRules(n)
		benchmarkLookup(b, fmt.Sprintf("%d-routes", n), rules)
		for i := range rules {
			rules[i].Hosts = nil
		}
		benchmarkLookup(b, fmt.Sprintf("%d-routes-no-host", n), rules)
	}
	with := withConditions(100_000)
	benchmarkLookup(b, "100000-routes-conditions", with)
	table := compile(b, manyRules(10_000)...)
	host, hostile := []byte("h1.example.com"), bytes.Repeat([]byte("/"), 60_000)
	b.Run("hostile", func(b *testing.B) {
		for b.Loop() {
			table.Lookup(host, hostile, nil)
		}
	})
}

func benchmarkLookup(b *testing.B, name string, rules []Rule[string]) {
	table, requests := compile(b, rules...), requestsTo(rules, 1<<14)
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			r := requests[i%len(requests)]
			if _, ok, _ := table.Lookup(r.host, r.path, r.asks); !ok {
				b.Fatal("no route")
			}
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	for name, rules := range map[string][]Rule[string]{"plain": manyRules(100_000), "conditions": withConditions(100_000)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Compile(rules, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
