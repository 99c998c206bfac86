package route

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// keyOf is what stays of a rule when its value changes.
func keyOf(r Rule[string]) Rule[string] {
	r.Value = ""
	return r
}

// changesFrom leads from one set of rules to another as node does it: by name, for which here stands host, match, path and conditions.
func changesFrom(old, next []Rule[string]) []Change[string] {
	type name struct {
		match int32
		path  string
		host  string
		asks  string
	}
	nameOf := func(r *Rule[string]) name {
		n := name{match: int32(r.Match), path: r.Path, asks: r.Conditions.String()}
		if len(r.Hosts) > 0 {
			n.host = r.Hosts[0]
		}
		return n
	}
	changes := make(map[name]*Change[string])
	for i := range old {
		changes[nameOf(&old[i])] = &Change[string]{Old: &old[i]}
	}
	for i := range next {
		if c := changes[nameOf(&next[i])]; c != nil {
			c.New = &next[i]
		} else {
			changes[nameOf(&next[i])] = &Change[string]{New: &next[i]}
		}
	}
	var all []Change[string]
	for _, c := range changes {
		all = append(all, *c)
	}
	return all
}

// sameAnswers compares tables by what can be asked of them.
func sameAnswers(t *rapid.T, what string, got, want *Table[string]) {
	for range 20 {
		host, path := []byte(someHost.Draw(t, "host")), []byte(somePath.Draw(t, "path"))
		request := someRequest.Draw(t, "request")
		if g, w := got.Trace(host, path, request), want.Trace(host, path, request); !reflect.DeepEqual(g, w) {
			t.Fatalf("%s: %+v for %q on %q: %v, want %v", what, request, path, host, g, w)
		}
		g, ok, _ := got.Lookup(host, path, request)
		if w, wantOK, _ := want.Lookup(host, path, request); g != w || ok != wantOK {
			t.Fatalf("%s: %q on %q leads to %q, want %q", what, path, host, g, w)
		}
	}
}

func TestAChangedTableAnswersAsACompiledOne(t *testing.T) {
	changed := 0
	rapid.Check(t, func(t *rapid.T) {
		rules := someRules(t)
		table := mustCompile(t, rules)
		for range 4 {
			next := someRules(t)
			if rapid.Bool().Draw(t, "expressions stay") { // or hardly any could be changed
				next = slices.DeleteFunc(next, func(r Rule[string]) bool { return isRegex(&r) })
				for _, r := range rules {
					if isRegex(&r) {
						next = append(next, r)
					}
				}
			}
			for i := range next {
				next[i].Value += rapid.SampledFrom([]string{"", "'"}).Draw(t, "value")
			}
			got, ok, err := table.Change(changesFrom(rules, next))
			if err != nil {
				t.Fatal(err)
			}
			sameAnswers(t, "the old one", table, mustCompile(t, rules))
			rules = next
			want := mustCompile(t, rules)
			if !ok {
				table = want
				continue
			}
			changed++
			sameAnswers(t, "the new one", got, want)
			table = got
		}
	})
	if changed == 0 { // as a rule it is most of a hundred
		t.Error("no table was changed")
	}
}

func mustCompile(t *rapid.T, rules []Rule[string]) *Table[string] {
	table, err := Compile(rules, nil)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestAChangeIsRefusedAsCompileRefusesIt(t *testing.T) {
	table := compile(t, rule(prefix, "/a"), rule(prefix, "/b"), rule(exact, "/a", "x"))
	for _, wrong := range []Rule[string]{
		rule(prefix, "/a"), rule(prefix, "/c/"), rule(prefix, "/c/../d"), rule(exact, "/a", "y", "x"), rule(prefix, "/c", "*"), rule(9, "/c"),
	} {
		other := rule(prefix, "/other")
		_, ok, err := table.Change([]Change[string]{{New: &other}, {New: &wrong}})
		_, want := Compile([]Rule[string]{rule(prefix, "/a"), rule(exact, "/a", "x"), wrong}, nil)
		var got, compiled *RuleError
		if !ok || !errors.As(err, &got) || !errors.As(want, &compiled) || got.Index != 1 || got.Field != compiled.Field || got.Reason != compiled.Reason {
			t.Errorf("%+v: %v %v, Compile says %v", keyOf(wrong), ok, err, want)
		}
	}
	if got, _, _ := table.Lookup(nil, []byte("/other"), nil); got != "" {
		t.Error("a refused change has changed the table")
	}
}

func TestWhatCannotBeChangedIsToBeCompiled(t *testing.T) {
	table := compile(t, rule(prefix, "/a"), rule(prefix, "/b"), rule(expr, "x"), rule(expr, "y", "h"))
	x, y, later := rule(expr, "x"), rule(expr, "y", "h"), rule(expr, "x")
	later.Order = 7
	a, lost, another := rule(prefix, "/a"), rule(prefix, "/lost"), rule(prefix, "/a", "h")
	for name, change := range map[string]Change[string]{
		"an expression comes":       {New: &x},
		"an expression goes":        {Old: &y},
		"an expression moves":       {Old: &x, New: &later},
		"a prefix in its place":     {Old: &x, New: &a},
		"an expression that is not": {Old: &lost, New: &x},
		"a rule that is not":        {Old: &lost},
		"a rule of another host":    {Old: &another},
	} {
		if _, ok, err := table.Change([]Change[string]{change}); ok || err != nil {
			t.Errorf("%s: %v %v", name, ok, err)
		}
	}
	replaced := rule(expr, "y", "h")
	replaced.Value = "replaced"
	next, ok, err := table.Change([]Change[string]{{Old: &y, New: &replaced}})
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if got, _, _ := next.Lookup([]byte("h"), []byte("/y"), nil); got != "replaced" {
		t.Errorf("the value of an expression is %q", got)
	}
}

// Without an end to it, a table whose paths change with every apply would grow for ever.
func TestAWornTableIsToBeCompiled(t *testing.T) {
	rules := []Rule[string]{rule(prefix, "/0"), rule(prefix, "/kept"), rule(prefix, "/too"), rule(prefix, "/also")}
	table := compile(t, rules...)
	changes := 0
	for ok := true; ok; changes++ {
		next := rule(prefix, rules[0].Path+"1")
		var changed *Table[string]
		var err error
		if changed, ok, err = table.Change([]Change[string]{{Old: &rules[0], New: &next}}); err != nil || changes > 100 {
			t.Fatal(changes, err)
		}
		if ok {
			table, rules[0] = changed, next
		}
	}
	if changes < 2 {
		t.Error("it is worn from the first")
	}
}

func BenchmarkChangeOneOf100000(b *testing.B) {
	rules := manyRules(100_000)
	table := compile(b, rules...)
	value, moved := rules[50_000], rules[50_000]
	value.Value, moved.Path = "other", "/elsewhere"
	for name, to := range map[string]*Rule[string]{"value": &value, "path": &moved} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok, err := table.Change([]Change[string]{{Old: &rules[50_000], New: to}}); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}
