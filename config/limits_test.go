package config

import (
	"fmt"
	"strings"
	"testing"
)

// simpleRoutes is a document with n routes of one backend each.
func simpleRoutes(n int) []byte {
	var document strings.Builder
	document.WriteString("server:\n  reverse_proxy:\n")
	for i := range n {
		fmt.Fprintf(&document, "    - path: /service%d/v1\n      host: service%d.internal\n      port: 8000\n", i, i)
	}
	return []byte(document.String())
}

// wantOneProblem is for documents that are too large to be printed or to count lines in.
func wantOneProblem(t *testing.T, document []byte, files map[string][]byte, ending string) {
	t.Helper()
	_, problems := parse(document, memory(files), today)
	if len(problems) != 1 || !strings.HasSuffix(problems[0].String(), ending) {
		t.Errorf("got:\n%s\nwant one that ends in:\n%s", joined(problems), ending)
	}
}

func TestRouteLimit(t *testing.T) {
	var b strings.Builder
	b.WriteString("server:\n  reverse_proxy:\n")
	for i := range MaxRoutes {
		fmt.Fprintf(&b, "    - {path: /%d}\n", i)
	}
	r, problems := Parse([]byte(b.String()), nil)
	if r == nil || len(r.Routes) != MaxRoutes || len(r.Pools) != MaxRoutes {
		t.Fatalf("%d routes were refused:\n%s", MaxRoutes, joined(problems))
	}
	b.WriteString("    - {path: /more}\n    - {path: /and/more}\n")
	wantOneProblem(t, []byte(b.String()), nil, "100003: server.reverse_proxy[100000]: a document has at most 100000 routes: this is one more")
}

func TestBackendLimit(t *testing.T) {
	var b strings.Builder
	b.WriteString("server:\n  reverse_proxy:\n    - path: /a\n      backends: &all\n")
	for i := range 1000 {
		fmt.Fprintf(&b, "        - {port: %d}\n", i+1)
	}
	for i := range 500 {
		fmt.Fprintf(&b, "    - {path: /a%d, backends: *all}\n", i)
	}
	wantOneProblem(t, []byte(b.String()), nil, "1504: server.reverse_proxy[500]: a document has at most 500000 backends: here are more")
}

func TestNamesLimit(t *testing.T) {
	var b strings.Builder
	b.WriteString("server:\n  reverse_proxy:\n    - path: /a\n      hosts: &all\n")
	for i := range maxHosts {
		fmt.Fprintf(&b, "        - %s.host%d.example.com\n", strings.Repeat("x", 60), i)
	}
	for i := range 3000 {
		fmt.Fprintf(&b, "    - {path: /a%d, hosts: *all}\n", i)
	}
	wantOneProblem(t, []byte(b.String()), nil, ": the paths and hosts up to here are longer than 32 MiB together: write less with aliases")
}

func TestExpressionsLimit(t *testing.T) {
	var b strings.Builder
	b.WriteString("server:\n  reverse_proxy:\n")
	for i := range 200 {
		fmt.Fprintf(&b, "    - {match: regex, path: 'x{999}y{999}z{999}a{999}b{999}c{999}/%d'}\n", i)
	}
	const want = ": the expressions up to here stand for more than 1000000 steps together: write fewer or smaller ones"
	wantOneProblem(t, []byte(b.String()), nil, want)
}

func TestFilesOfManyRoutesAreLimited(t *testing.T) {
	files := sslFiles(t)
	for len(files["./ca.pem"]) < maxFileBytes/2 {
		files["./ca.pem"] = append(files["./ca.pem"], files["./ca.pem"]...)
	}
	var b strings.Builder
	b.WriteString("server:\n  reverse_proxy:\n")
	for i := range 300 {
		fmt.Fprintf(&b, "    - {path: /a%d, port: 443, ssl: true, tls: {ca_file: ./ca.pem}}\n", i)
	}
	const want = ": the resources up to here have more than 128 MiB together: write less with aliases, and smaller files"
	wantOneProblem(t, []byte(b.String()), files, want)
}

func TestFaultsBeyondThoseToldCostLittle(t *testing.T) {
	const faults = 20_000
	var b strings.Builder
	b.WriteString("server:\n")
	for i := range faults {
		fmt.Fprintf(&b, "  no_such_key_%d: 1\n  no_such_key_%d: 1\n", i, i)
	}
	document := []byte(b.String())
	if allocations := testing.AllocsPerRun(1, func() { Parse(document, nil) }); allocations > 40*faults {
		t.Errorf("%.0f allocations for each of %d faults", allocations/faults, faults)
	}
}

func BenchmarkParse100000Routes(b *testing.B) {
	document := simpleRoutes(MaxRoutes)
	b.SetBytes(int64(len(document)))
	b.ReportAllocs()
	for b.Loop() {
		if r, problems := Parse(document, nil); r == nil {
			b.Fatal(joined(problems))
		}
	}
}

func BenchmarkDiff100000Routes(b *testing.B) {
	r, _ := Parse(simpleRoutes(MaxRoutes), nil)
	other, _ := Parse(append(simpleRoutes(MaxRoutes-1), "    - {path: /new}\n"...), nil)
	b.ReportAllocs()
	for b.Loop() {
		if changes := Diff(r, other); len(changes) != 2 {
			b.Fatal(told(changes))
		}
	}
}
