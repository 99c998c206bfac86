package route

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/config"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// alike are a thousand rules for one path, none of whose conditions holds for what costly requests are, and one without.
func alike(t testing.TB, of func(i int) config.Conditions) *Table[string] {
	rules := []Rule[string]{rule(prefix, "/")}
	for i := range 1000 {
		rules = append(rules, with(rule(prefix, "/"), of(i)))
	}
	return compile(t, rules...)
}

func bySession(i int) config.Conditions {
	return headers(matching("cookie", fmt.Sprintf("session=%d;", i)))
}

func cookies(lines ...string) *still {
	s := &still{}
	for _, line := range lines {
		s.fields = append(s.fields, [2]string{"cookie", line})
	}
	return s
}

func TestALookupDoesNotTakeLong(t *testing.T) {
	byCookie, whole := alike(t, bySession), strings.Repeat("a", 8<<10)
	byQuery := alike(t, func(i int) config.Conditions { return query(present(fmt.Sprint("q", i), true)) })
	expressions := make([]Rule[string], 1000)
	for i := range expressions {
		expressions[i] = rule(expr, fmt.Sprintf("/x%d$", i))
	}
	byPath := compile(t, append(expressions, rule(expr, "^/"))...)
	many := make([]Rule[string], 10_000)
	for i := range many {
		many[i] = rule(expr, fmt.Sprintf("/x%d$", i))
	}
	byVery := compile(t, append(many, rule(expr, "^/"))...)
	for name, c := range map[string]struct {
		table   *Table[string]
		path    string
		request Request
		long    bool
	}{
		"8 KiB of cookies":             {byCookie, "/", cookies(whole), false},
		"in two lines":                 {byCookie, "/", cookies(whole[:4<<10], whole[:2<<10]), false},
		"64 KiB of cookies":            {byCookie, "/", cookies(strings.Repeat(whole, 8)), true},
		"in many lines":                {byCookie, "/", cookies(strings.Split(strings.Repeat(whole, 8), "aaa")...), true},
		"a query":                      {byQuery, "/", &still{asked: asked{query: strings.Repeat("&", 4<<10)}}, false},
		"a long query":                 {byQuery, "/", &still{asked: asked{query: strings.Repeat("&", 32<<10)}}, true},
		"a path":                       {byPath, "/" + whole, &still{}, false},
		"a long path":                  {byPath, "/" + strings.Repeat(whole, 2), &still{}, true},
		"a path and many expressions":  {byVery, "/" + whole[:1000], &still{}, false},
		"whatever is asked of no rule": {compile(t, rule(prefix, "/")), "/" + whole, cookies(strings.Repeat(whole, 8)), false},
	} {
		got, ok, err := c.table.Lookup(nil, []byte(c.path), c.request)
		if c.long && (!errors.Is(err, ErrTooLong) || ok || got != "") || !c.long && (err != nil || !ok) {
			t.Errorf("%s: %q, %t, %v", name, got, ok, err)
		}
		if steps := c.table.Trace(nil, []byte(c.path), c.request); steps[0].Found == c.long {
			t.Errorf("%s: the trace says found: %t", name, steps[0].Found)
		}
	}
}

// A request in many lines, as HTTP/2 may cut it, is put together once for all conditions.
func TestLinesAreJoinedOnce(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates by itself")
	}
	request := cookies("a=1", "b=2", "c=3")
	for name, c := range map[string]struct {
		of   func(i int) config.Conditions
		most float64
	}{
		"expressions":  {bySession, 4},
		"exact values": {func(i int) config.Conditions { return headers(exactly("cookie", fmt.Sprintf("a=1; b=2; c=3%d", i))) }, 0},
	} {
		table := alike(t, c.of)
		if n := testing.AllocsPerRun(10, func() { table.Lookup(nil, rootPath, request) }); n > c.most {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

var rootPath = []byte("/")

func TestExactValuesOfSeveralLines(t *testing.T) {
	for value, want := range map[string]bool{
		"a, b, c": true, "a, b": false, "a, b, ": false, "a, b, c, ": false, "a, b, cd": false, "a,b,c": false, "a": false, "": false, "a, bb, c": false,
	} {
		r := asked{fields: [][2]string{{"x-a", "a"}, {"x-a", "b"}, {"x-a", "c"}}}
		_, ok, _ := compile(t, with(rule(prefix, "/"), headers(exactly("x-a", value)))).Lookup(nil, rootPath, r)
		if ok != want || ok != r.fits(config.Conditions{Headers: []*resourcev1.FieldMatch{exactly("x-a", value)}}) {
			t.Errorf("%q: %t, want %t", value, ok, want)
		}
	}
}
