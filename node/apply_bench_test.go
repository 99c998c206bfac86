package node

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
)

// manyRoutes is the bundle of a document of 100,000 routes to one backend, but for the one in the middle, which leads to a
// port of its own.
func manyRoutes(b *testing.B, middle int) *bundle.Bundle {
	b.Helper()
	const routes = 100_000
	var document bytes.Buffer
	document.WriteString("server:\n  host: 127.0.0.1\n  port: 1\n  reverse_proxy:\n")
	for i := range routes {
		port := 30_000
		if i == routes/2 {
			port = middle
		}
		fmt.Fprintf(&document, "    - {path: /service/%06d, host: 127.0.0.1, port: %d, health_check: {type: none}}\n", i, port)
	}
	resources, problems := config.Parse(document.Bytes(), nil)
	if resources == nil {
		b.Fatal(problems)
	}
	made, err := bundle.Encode(resources)
	if err != nil {
		b.Fatal(err)
	}
	return made
}

// BenchmarkApply100000 is what a node does with the first bundle that comes, between its last byte and the swap, but for
// the disk.
func BenchmarkApply100000(b *testing.B) {
	whole := bundle.Between(nil, manyRoutes(b, 30_001))
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		n, err := New(Options{Listen: "127.0.0.1:0"})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		serve(b, n, nil, whole)
		b.StopTimer()
		stop(n, 0)
		b.StartTimer()
	}
}

// BenchmarkApplyOneOf100000 is the same where one route of them leads to another backend.
func BenchmarkApplyOneOf100000(b *testing.B) {
	one, other := manyRoutes(b, 30_001), manyRoutes(b, 30_002)
	n, err := New(Options{Listen: "127.0.0.1:0"})
	if err != nil {
		b.Fatal(err)
	}
	defer stop(n, 0)
	live := serve(b, n, nil, bundle.Between(nil, one))
	there, back := bundle.Between(one, other), bundle.Between(other, one)
	b.ReportAllocs()
	for b.Loop() {
		live = serve(b, n, live, there)
		there, back = back, there
	}
}

// serve is an agent's way from a delta to the swap.
func serve(b *testing.B, n *Node, base *bundle.Bundle, d bundle.Delta) *bundle.Bundle {
	made, err := d.Apply(base)
	if err != nil {
		b.Fatal(err)
	}
	g, err := n.Prepare(release(1), made)
	if err != nil {
		b.Fatal(err)
	}
	n.Apply(g)
	return made
}

// BenchmarkEachBackendOf100000 is what a node looks through for its status after an apply.
func BenchmarkEachBackendOf100000(b *testing.B) {
	n, err := New(Options{Listen: "127.0.0.1:0"})
	if err != nil {
		b.Fatal(err)
	}
	defer stop(n, 0)
	serve(b, n, nil, bundle.Between(nil, manyRoutes(b, 30_001)))
	b.ReportAllocs()
	for b.Loop() {
		for s := range n.EachBackend() {
			_ = s
		}
	}
}
