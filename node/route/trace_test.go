package route

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestTrace(t *testing.T) {
	table := compile(t,
		rule(prefix, "/api", "a.example.com"), rule(prefix, "/wild", "*.example.com"), rule(exact, "/", "*.com"), rule(expr, "^/v[0-9]"),
	)
	for request, want := range map[string]string{
		"a.example.com /api/x":  "a.example.com: prefix /api a.example.com",
		"a.example.com /wild":   "a.example.com, *.example.com: prefix /wild *.example.com",
		"x.y.example.com /":     "*.example.com, *.com: exact / *.com",
		"a.example.com /v1":     "a.example.com, *.example.com, *.com, every: regex ^/v[0-9]",
		"a.example.com /nope":   "a.example.com, *.example.com, *.com, every: nothing",
		"elsewhere.org /api":    "every: nothing",
		" /v2":                  "every: regex ^/v[0-9]",
		"a.example.com nothing": ": nothing",
	} {
		host, path, _ := strings.Cut(request, " ")
		var hosts []string
		end := "nothing"
		for _, step := range table.Trace([]byte(host), []byte(path), nil) {
			if step.Host == "" {
				step.Host = "every"
			}
			hosts = append(hosts, step.Host)
			if step.Found {
				end = step.Value
			}
		}
		if got := strings.Join(hosts, ", ") + ": " + end; got != want {
			t.Errorf("%s: %s, want %s", request, got, want)
		}
	}
	if steps := compile(t).Trace([]byte("x"), []byte("/"), nil); len(steps) > 0 {
		t.Errorf("of no rules: %v", steps)
	}
}

// What people are told is what happens.
func TestTraceEndsWhereLookupDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules := someRules(t)
		table, err := Compile(rules, nil)
		if err != nil {
			t.Fatal(err)
		}
		host, path := []byte(someHost.Draw(t, "host")), []byte(somePath.Draw(t, "path"))
		request := someRequest.Draw(t, "request")
		value, found, _ := table.Lookup(host, path, request)
		steps := table.Trace(host, path, request)
		for i, step := range steps {
			if step.Found != (found && i == len(steps)-1) {
				t.Fatalf("step %d of %d found: %t, and the lookup: %t", i, len(steps), step.Found, found)
			}
		}
		if found && (len(steps) == 0 || steps[len(steps)-1].Value != value) {
			t.Fatalf("the steps are %v, the lookup finds %v", steps, value)
		}
	})
}
