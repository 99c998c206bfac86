package route

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/pyserve/pyserve/config"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// asked is a Request made of parts.
type asked struct {
	method string
	fields [][2]string
	query  string
}

func (a asked) MethodName() []byte    { return []byte(a.method) }
func (a asked) Value(i int) []byte    { return []byte(a.fields[i][1]) }
func (a asked) Query() ([]byte, bool) { return []byte(a.query), a.query != "" }

func (a asked) Lookup(name string, i int) int {
	for ; i < len(a.fields); i++ {
		if strings.EqualFold(a.fields[i][0], name) {
			return i
		}
	}
	return -1
}

var percentEncoded = regexp.MustCompile("%[0-9A-Fa-f]{2}")

// fits is the slow twin of conditions.
func (a asked) fits(c config.Conditions) bool {
	if len(c.Methods) > 0 && !slices.Contains(c.Methods, a.method) {
		return false
	}
	fields := make(map[string][]string)
	for _, f := range a.fields {
		name := strings.ToLower(f[0])
		fields[name] = append(fields[name], f[1])
	}
	for _, m := range c.Headers {
		values, separator := fields[m.Name], ", "
		if m.Name == "cookie" {
			separator = "; "
		}
		if !fits(m, strings.Join(values, separator), len(values) > 0) {
			return false
		}
	}
	parameters := make(map[string]string)
	for _, pair := range slices.Backward(strings.Split(a.query, "&")) {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		parameters[slowlyDecoded(name)] = slowlyDecoded(value)
	}
	for _, m := range c.Query {
		if value, there := parameters[m.Name]; !fits(m, value, there) {
			return false
		}
	}
	return true
}

func slowlyDecoded(text string) string {
	return percentEncoded.ReplaceAllStringFunc(strings.ReplaceAll(text, "+", " "), func(code string) string {
		var c byte
		fmt.Sscanf(code, "%%%02x", &c)
		return string([]byte{c})
	})
}

func fits(m *resourcev1.FieldMatch, value string, there bool) bool {
	switch c := m.Condition.(type) {
	case *resourcev1.FieldMatch_Exact:
		return there && value == c.Exact
	case *resourcev1.FieldMatch_Regex:
		return there && regexp.MustCompile(c.Regex).MatchString(value)
	case *resourcev1.FieldMatch_Present:
		return there == c.Present
	}
	return false
}

func exactly(name, value string) *resourcev1.FieldMatch {
	return &resourcev1.FieldMatch{Name: name, Condition: &resourcev1.FieldMatch_Exact{Exact: value}}
}

func matching(name, expression string) *resourcev1.FieldMatch {
	return &resourcev1.FieldMatch{Name: name, Condition: &resourcev1.FieldMatch_Regex{Regex: expression}}
}

func present(name string, is bool) *resourcev1.FieldMatch {
	return &resourcev1.FieldMatch{Name: name, Condition: &resourcev1.FieldMatch_Present{Present: is}}
}

// with is a rule with conditions.
func with(r Rule[string], c config.Conditions) Rule[string] {
	r.Conditions = c
	r.Value += " [" + c.String() + "]"
	return r
}

func methods(names ...string) config.Conditions { return config.Conditions{Methods: names} }

func headers(all ...*resourcev1.FieldMatch) config.Conditions { return config.Conditions{Headers: all} }

func query(all ...*resourcev1.FieldMatch) config.Conditions { return config.Conditions{Query: all} }

func someMatch(values ...string) *rapid.Generator[*resourcev1.FieldMatch] {
	return rapid.Custom(func(t *rapid.T) *resourcev1.FieldMatch {
		switch name := ""; rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			return matching(name, rapid.SampledFrom([]string{"^1", "2$", "1.*2"}).Draw(t, "expression"))
		case 1:
			return present(name, rapid.Bool().Draw(t, "present"))
		}
		return exactly("", rapid.SampledFrom(values).Draw(t, "value"))
	})
}

// someConditions are none as often as not, and of few names and values, so that requests fit.
var someConditions = rapid.Custom(func(t *rapid.T) (c config.Conditions) {
	if rapid.Bool().Draw(t, "none") {
		return c
	}
	c.Methods = rapid.SampledFrom([][]string{nil, nil, {"GET"}, {"GET", "POST"}, {"POST"}}).Draw(t, "methods")
	take := func(names []string, values ...string) (all []*resourcev1.FieldMatch) {
		for _, name := range names {
			if rapid.IntRange(0, 3).Draw(t, name) == 0 {
				m := someMatch(values...).Draw(t, "match")
				m.Name = name
				all = append(all, m)
			}
		}
		return all
	}
	c.Headers = take([]string{"cookie", "x-a", "x-b"}, "1", "2", "", "1, 2", "1; 2")
	c.Query = take([]string{"a b", "q"}, "1", "2", "", "1 2")
	return c
})

var someRequest = rapid.Custom(func(t *rapid.T) asked {
	a := asked{method: rapid.SampledFrom([]string{"GET", "POST", "get", "PUT"}).Draw(t, "method")}
	for range rapid.IntRange(0, 4).Draw(t, "fields") {
		a.fields = append(a.fields, [2]string{
			rapid.SampledFrom([]string{"X-A", "x-b", "Cookie", "other"}).Draw(t, "name"),
			rapid.SampledFrom([]string{"1", "2", "", "1, 2"}).Draw(t, "value"),
		})
	}
	a.query = rapid.SampledFrom([]string{
		"", "q=1", "q=2&q=1", "q", "q=", "&&q=1%202", "q=1+2", "a+b=1", "a%20b=2&q=1", "%71=%31", "q=%", "q=%3", "=1", "=", "Q=1", "q=1=2", "a b&q=1;2",
	}).Draw(t, "query")
	return a
})

func TestConditions(t *testing.T) {
	root := rule(prefix, "/")
	cookies := asked{fields: [][2]string{{"Cookie", "a=1"}, {"cookie", "b=2"}}}
	for name, c := range map[string]struct {
		asks config.Conditions
		of   asked
		want bool
	}{
		"a method":                                {methods("GET", "PUT"), asked{method: "PUT"}, true},
		"another method":                          {methods("GET"), asked{method: "HEAD"}, false},
		"a method in another case":                {methods("GET"), asked{method: "get"}, false},
		"a header in another case":                {headers(exactly("x-a", "1")), asked{fields: [][2]string{{"X-A", "1"}}}, true},
		"a value in another case":                 {headers(exactly("x-a", "v")), asked{fields: [][2]string{{"X-A", "V"}}}, false},
		"a header that is not there":              {headers(exactly("x-a", "")), asked{}, false},
		"an empty header":                         {headers(exactly("x-a", "")), asked{fields: [][2]string{{"x-a", ""}}}, true},
		"two lines are one value":                 {headers(exactly("x-a", "1, 2")), asked{fields: [][2]string{{"x-a", "1"}, {"y", "3"}, {"x-a", "2"}}}, true},
		"one of two lines":                        {headers(exactly("x-a", "1")), asked{fields: [][2]string{{"x-a", "1"}, {"x-a", "1"}}}, false},
		"an expression over two lines":            {headers(matching("x-a", "^1, 2$")), asked{fields: [][2]string{{"x-a", "1"}, {"x-a", "2"}}}, true},
		"cookies in two lines":                    {headers(exactly("cookie", "a=1; b=2")), cookies, true},
		"an expression for what is not there":     {headers(matching("x-a", "^$")), asked{}, false},
		"a header that is to be there":            {headers(present("x-a", true)), asked{fields: [][2]string{{"x-a", "v"}}}, true},
		"a header that is not to be there":        {headers(present("x-a", false)), asked{fields: [][2]string{{"x-a", "v"}}}, false},
		"one of two conditions":                   {headers(exactly("x-a", "1"), exactly("x-b", "1")), asked{fields: [][2]string{{"x-a", "1"}}}, false},
		"a parameter":                             {query(exactly("q", "1")), asked{query: "p=2&q=1"}, true},
		"a parameter in another case":             {query(exactly("q", "1")), asked{query: "Q=1"}, false},
		"the first of two":                        {query(exactly("q", "1")), asked{query: "q=1&q=2"}, true},
		"the second of two":                       {query(exactly("q", "2")), asked{query: "q=1&q=2"}, false},
		"an encoded parameter":                    {query(exactly("a b", "c&d")), asked{query: "a%20b=c%26d"}, true},
		"a plus is a space":                       {query(exactly("q", "a b")), asked{query: "q=a+b"}, true},
		"an encoded plus is a plus":               {query(exactly("q", "a+b")), asked{query: "q=a%2Bb"}, true},
		"an expression for an encoded parameter":  {query(matching("q", "^a b$")), asked{query: "q=a+b"}, true},
		"a parameter without a value":             {query(exactly("q", "")), asked{query: "p&q"}, true},
		"a parameter that is not there":           {query(exactly("q", "")), asked{query: "p"}, false},
		"a parameter that is to be there":         {query(present("q", true)), asked{query: "q"}, true},
		"a parameter that is not to be there":     {query(present("q", false)), asked{query: "q=1"}, false},
		"the beginning of a parameter":            {query(exactly("q", "1")), asked{query: "q=12"}, false},
		"a percent sign that is no encoding":      {query(exactly("q", "5%")), asked{query: "q=5%"}, true},
		"a semicolon is part of the value":        {query(exactly("q", "1;r=2")), asked{query: "q=1;r=2"}, true},
		"an empty query":                          {query(present("q", false)), asked{}, true},
		"an empty name is not that of empty text": {query(exactly("q", "")), asked{query: "&&="}, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, ok, _ := compile(t, with(root, c.asks)).Lookup(nil, []byte("/x"), c.of)
			if ok != c.want || ok != c.of.fits(c.asks) {
				t.Errorf("%s for %+v: %t, want %t; the slow twin says %t", c.asks, c.of, ok, c.want, c.of.fits(c.asks))
			}
		})
	}
}

func TestConditionsDecideWithinOnePath(t *testing.T) {
	first, second := rule(expr, "^/r"), rule(expr, "^/r.")
	first.Order, second.Order = 2, 1
	third := with(rule(expr, "^/r"), methods("PUT"))
	third.Order = 3
	rules := []Rule[string]{
		rule(prefix, "/"), with(rule(prefix, "/"), methods("POST")),
		with(rule(prefix, "/a"), methods("GET", "POST")), with(rule(prefix, "/a"), methods("GET")),
		with(rule(prefix, "/a"), config.Conditions{Methods: []string{"GET"}, Headers: []*resourcev1.FieldMatch{exactly("x-a", "1")}}),
		with(rule(prefix, "/a/b"), methods("PUT")), with(rule(exact, "/a/b"), methods("DELETE")),
		with(rule(prefix, "/a"), headers(exactly("x-a", "2"))), with(rule(prefix, "/a"), query(exactly("q", "1"))),
		with(rule(prefix, "/a", "h"), methods("TRACE")),
		first, second, third,
	}
	one, two := [][2]string{{"x-a", "1"}}, [][2]string{{"x-a", "2"}}
	for name, c := range map[string]struct {
		host, path string
		of         asked
		want       string
	}{
		"more conditions win":                    {"", "/a", asked{method: "GET", fields: one}, `prefix /a [GET x-a="1"]`},
		"of as many the first as text":           {"", "/a", asked{method: "GET"}, "prefix /a [GET]"},
		"the next where that does not hold":      {"", "/a", asked{method: "POST"}, "prefix /a [GET,POST]"},
		"of as many kinds the first as text":     {"", "/a", asked{method: "PUT", fields: two, query: "q=1"}, `prefix /a [?q="1"]`},
		"a header against a method":              {"", "/a", asked{method: "GET", fields: two}, "prefix /a [GET]"},
		"a shorter prefix where none holds":      {"", "/a/b", asked{method: "POST"}, "prefix /a [GET,POST]"},
		"an exact path before the prefix":        {"", "/a/b", asked{method: "DELETE"}, "exact /a/b [DELETE]"},
		"the prefix where the exact path misses": {"", "/a/b", asked{method: "PUT"}, "prefix /a/b [PUT]"},
		"the root where nothing holds":           {"", "/a/b", asked{method: "OPTIONS"}, "prefix /"},
		"every host where the host's misses":     {"h", "/a", asked{method: "GET"}, "prefix /a [GET]"},
		"the exact host where its rule holds":    {"h", "/a", asked{method: "TRACE"}, "prefix /a h [TRACE]"},
		"conditions at the root":                 {"", "/z", asked{method: "POST"}, "prefix / [POST]"},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, _ := compile(t, rules...).Lookup([]byte(c.host), []byte(c.path), c.of)
			if slow, _ := slowLookup(rules, c.host, c.path, c.of); got != c.want || got != slow {
				t.Errorf("%q, want %q; the slow twin says %q", got, c.want, slow)
			}
		})
	}
	expressions := compile(t, first, second, third)
	for request, want := range map[string]string{"PUT /rx": "regex ^/r.", "PUT /r": "regex ^/r [PUT]", "GET /r": "regex ^/r"} {
		method, path, _ := strings.Cut(request, " ")
		if got, _, _ := expressions.Lookup(nil, []byte(path), asked{method: method}); got != want {
			t.Errorf("%s: %q, want %q", request, got, want)
		}
	}
}

func TestWrongConditionsAreRefused(t *testing.T) {
	for field, wrong := range map[string]config.Conditions{
		"headers": headers(matching("x-a", "(")),
		"query":   query(&resourcev1.FieldMatch{Name: "q"}),
		"path":    methods("GET"), // twice
	} {
		_, err := Compile([]Rule[string]{with(rule(prefix, "/"), methods("GET")), with(rule(prefix, "/"), wrong)}, nil)
		var refused *RuleError
		if !errors.As(err, &refused) || refused.Index != 1 || refused.Field != field || refused.Reason == "" {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}

func TestTraceNamesWhatMissed(t *testing.T) {
	table := compile(t, rule(prefix, "/"), with(rule(prefix, "/a"), methods("GET", "HEAD")), with(rule(exact, "/a"), headers(exactly("x-a", "1"))),
		with(rule(prefix, "/a"), query(present("q", true))), with(rule(expr, "^/b"), headers(matching("x-b", "^2"))))
	steps := table.Trace(nil, []byte("/a"), asked{method: "PUT"})
	var got []string
	for _, m := range steps[0].Missed {
		got = append(got, m.Value+": "+m.Reason)
	}
	want := []string{
		`exact /a [x-a="1"]: the header x-a is not "1"`, "prefix /a [?q=present]: the query's q is not there", "prefix /a [GET,HEAD]: the method is not GET or HEAD",
	}
	if !slices.Equal(got, want) || !steps[0].Found || steps[0].Value != "prefix /" {
		t.Errorf("%q, then %q", got, steps[0].Value)
	}
}

func TestConditionsAllocateNothing(t *testing.T) {
	c := config.Conditions{
		Methods: []string{"GET"}, Headers: []*resourcev1.FieldMatch{exactly("x-a", "1"), matching("x-b", "^2")}, Query: []*resourcev1.FieldMatch{exactly("a b", "c d")},
	}
	table := compile(t, with(rule(prefix, "/a"), c), with(rule(prefix, "/a"), methods("PUT")), rule(prefix, "/"))
	var r Request = &still{asked: asked{method: "GET", fields: [][2]string{{"X-A", "1"}, {"X-B", "2"}}, query: "a+b=c%20d"}}
	path := []byte("/a/b")
	if got, _, _ := table.Lookup(nil, path, r); !strings.Contains(got, "GET") {
		t.Fatal(got)
	}
	checkAllocations(t, "conditions", func() { table.Lookup(nil, path, r) })
}

// still is a request that has its bytes already, as one that was parsed does.
type still struct {
	asked
	method, query []byte
	values        [][]byte
}

func (s *still) MethodName() []byte {
	if s.method == nil {
		s.method = []byte(s.asked.method)
	}
	return s.method
}

func (s *still) Query() ([]byte, bool) {
	if s.query == nil {
		s.query = []byte(s.asked.query)
	}
	return s.query, true
}

func (s *still) Value(i int) []byte {
	for len(s.values) < len(s.fields) {
		s.values = append(s.values, []byte(s.fields[len(s.values)][1]))
	}
	return s.values[i]
}

// withConditions are rules as manyRules makes them, in pairs for one path: one for a method and a header, one for every other
// request. So each request comes by conditions.
func withConditions(n int) []Rule[string] {
	rules := manyRules(n / 2)
	for _, r := range rules[: n/2 : n/2] {
		rules = append(rules, with(r, config.Conditions{Methods: []string{"GET", "HEAD"}, Headers: []*resourcev1.FieldMatch{exactly("x-version", "2")}}))
	}
	return rules
}

// askedBy is a request with a browser's fields: one that fits conditions as withConditions makes them, or one that fits none.
// There are but two, so that what a benchmark waits for is the table.
func askedBy(c config.Conditions) Request {
	if c.Count() > 0 {
		return fitting
	}
	return plain
}

var plain, fitting = browsers(), browsers([2]string{"x-version", "2"})

func browsers(more ...[2]string) *still {
	s := &still{asked: asked{method: "GET"}}
	for _, name := range []string{"accept", "accept-language", "accept-encoding", "user-agent", "cookie", "referer"} {
		s.fields = append(s.fields, [2]string{name, "something"})
	}
	s.fields = append(s.fields, more...)
	return s
}
