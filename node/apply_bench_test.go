package node

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
)

// manyRoutes is the bundle of a document of 100,000 routes that lead to one port, but for the one in the middle, and /live.
type manyRoutes struct{ port, middle, live uint32 }

func (m manyRoutes) bundle(b *testing.B) *bundle.Bundle {
	b.Helper()
	const routes = 100_000 - 1
	var document bytes.Buffer
	document.WriteString("server:\n  host: 127.0.0.1\n  port: 1\n  reverse_proxy:\n")
	line := "    - {path: %s, host: 127.0.0.1, port: %d, health_check: {type: none}}\n"
	fmt.Fprintf(&document, line, "/live", m.live)
	for i := range routes {
		port := m.port
		if i == routes/2 {
			port = m.middle
		}
		fmt.Fprintf(&document, line, fmt.Sprintf("/service/%06d", i), port)
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
	whole := bundle.Between(nil, manyRoutes{30_000, 30_001, 30_000}.bundle(b))
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
	one, other := manyRoutes{30_000, 30_001, 30_000}.bundle(b), manyRoutes{30_000, 30_002, 30_000}.bundle(b)
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
	serve(b, n, nil, bundle.Between(nil, manyRoutes{30_000, 30_001, 30_000}.bundle(b)))
	b.ReportAllocs()
	for b.Loop() {
		for s := range n.EachBackend() {
			_ = s
		}
	}
}

// BenchmarkRequestsDuringApply reports how long requests take, a thousand of them a second over one connection, while the
// node is given one bundle of 100,000 routes after the other, and while it is not. The client, which has the same
// processors, and whatever else runs on the machine are in it.
func BenchmarkRequestsDuringApply(b *testing.B) {
	live := saying(b, "x")
	from := manyRoutes{30_000, 30_001, live}
	base := from.bundle(b)
	for what, to := range map[string]manyRoutes{
		"nothing": from, "one": {30_000, 30_002, live}, "whole": {30_003, 30_004, live},
	} {
		b.Run(what, func(b *testing.B) {
			other := base
			if to != from {
				other = to.bundle(b)
			}
			requestsDuring(b, base, other)
		})
	}
}

func requestsDuring(b *testing.B, one, other *bundle.Bundle) {
	n, err := New(Options{Listen: "127.0.0.1:0"})
	if err != nil {
		b.Fatal(err)
	}
	defer stop(n, 0)
	serve(b, n, nil, bundle.Between(nil, one))
	there, back := bundle.Between(one, other), bundle.Between(other, one)
	done := make(chan struct{})
	took := make(chan []time.Duration)
	go func() { took <- requests(b, n.ListenAddress(), done) }()
	pause := time.NewTicker(time.Second / 10) // what an apply takes, about
	defer pause.Stop()
	for b.Loop() {
		if one == other {
			<-pause.C
			continue
		}
		one = serve(b, n, one, there)
		there, back = back, there
	}
	close(done)
	all := <-took
	if len(all) == 0 {
		return
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)*99/100])/1e6, "p99-ms")
	b.ReportMetric(float64(all[len(all)-1])/1e6, "longest-ms")
}

// requests sends one every millisecond until done is closed, and gives how long each took since it was due.
func requests(b *testing.B, address string, done <-chan struct{}) (took []time.Duration) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		b.Error(err)
		return nil
	}
	defer c.Close()
	request, answer := []byte("GET /live/x HTTP/1.1\r\nHost: x\r\n\r\n"), make([]byte, 4<<10)
	took = make([]time.Duration, 0, 1<<16)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case due := <-tick.C:
			if _, err := c.Write(request); err != nil {
				b.Error(err)
				return took
			}
			n, err := c.Read(answer)
			if err != nil || !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 200 ")) || !bytes.HasSuffix(answer[:n], []byte("x /x")) {
				b.Errorf("%v %q", err, answer[:n])
				return took
			}
			took = append(took, time.Since(due))
		case <-done:
			return took
		}
	}
}
