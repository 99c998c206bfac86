package config

import (
	"strings"
	"testing"
)

func TestRoutesThatShareACookieAndNotTheirBackendsAreTold(t *testing.T) {
	for name, c := range map[string]struct {
		routes string
		told   bool
	}{
		"other backends":             {`{path: /a, port: 1, sticky: {}}, {path: /b, port: 2, sticky: {}}`, true},
		"the same backends":          {`{path: /a, port: 1, sticky: {}}, {path: /b, port: 1, sticky: {}}`, false},
		"more backends":              {`{path: /a, port: 1, sticky: {}}, {path: /b, backends: [{port: 1}, {port: 2}], sticky: {}}`, true},
		"in another order":           {`{path: /a, backends: [{port: 2}, {port: 1}], sticky: {}}, {path: /b, backends: [{port: 1}, {port: 2}], sticky: {}}`, false},
		"parts of a split":           {`{path: /a, backends: [{port: 2}, {port: 1}], sticky: {}}, {path: /b, split: [{backends: [{port: 1}]}, {backends: [{port: 2}]}], sticky: {}}`, false},
		"another cookie":             {`{path: /a, port: 1, sticky: {}}, {path: /b, port: 2, sticky: {cookie: b}}`, false},
		"one is not sticky":          {`{path: /a, port: 1, sticky: {}}, {path: /b, port: 2}`, false},
		"other hosts":                {`{hosts: [a.b], port: 1, sticky: {}}, {hosts: [b.b], port: 2, sticky: {}}`, false},
		"a host in common":           {`{hosts: [a.b, c.b], port: 1, sticky: {}}, {path: /b, hosts: [b.b, c.b], port: 2, sticky: {}}`, true},
		"a host and then every host": {`{hosts: [a.b], port: 1, sticky: {}}, {path: /b, port: 2, sticky: {}}`, true},
		"every host and then one":    {`{path: /b, port: 2, sticky: {}}, {hosts: [a.b], port: 1, sticky: {}}`, true},
	} {
		_, problems := parse([]byte("server: {reverse_proxy: ["+c.routes+"]}"), nil, today)
		if told := strings.Contains(joined(problems), "would lose its place"); told != c.told || len(problems) > 1 || problems.HasErrors() {
			t.Errorf("%s: %s", name, joined(problems))
		}
	}
	wantProblems(t, "server:\n  reverse_proxy:\n    - {path: /a, port: 1, sticky: {}}\n    - {path: /b, port: 2, sticky: {}}\n", nil,
		`4: server.reverse_proxy[1].sticky: warning: the route on line 3 gives clients the cookie "pyserve_backend" too, and has other backends: `+
			"a client of both would lose its place whenever it goes from one to the other. Write another cookie for each")
}
