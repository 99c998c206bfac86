package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// outages are what a fleet of real nodes does while no control is there.
type outages struct {
	Routes int           `json:"routes"`
	Rounds []outageRound `json:"rounds"`
}

type outageRound struct {
	// Newer is from the start of nodes that missed a revision until the last of them serves it, which one node alone has.
	Newer time.Duration `json:"newer"`
	// Fresh is from the start of enrolled nodes with nothing on their disks until the last of them is ready.
	Fresh time.Duration `json:"fresh"`
}

const (
	outageNodes  = 5
	freshNodes   = 5
	outageRounds = 5
	// askAfter is how long a node that serves something waits for a control before it asks its peers.
	askAfter = 5 * time.Second
	// outageTarget is for both, counted from when a node may ask.
	outageTarget = 5 * time.Second
	// outagePatience is for a node that never gets there.
	outagePatience = time.Minute
)

// measureOutages lets nodes get what they miss from each other.
func (b *bench) measureOutages(ctx context.Context, r *report) error {
	o := &outages{Routes: b.options.routes[min(1, len(b.options.routes)-1)]}
	for i := range min(b.options.rounds, outageRounds) {
		round, err := b.outage(ctx, fmt.Sprintf("outage%d", i), o.Routes)
		if err != nil {
			return err
		}
		note("without a control: %+v", round)
		o.Rounds = append(o.Rounds, round)
	}
	r.Outages = o
	return nil
}

func (b *bench) outage(ctx context.Context, name string, routes int) (round outageRound, err error) {
	c, err := b.startCluster(ctx, name)
	if err != nil {
		return round, err
	}
	defer c.close()
	backend, err := b.startBackend()
	if err != nil {
		return round, err
	}
	defer backend.close()
	nodes, err := c.startRealNodes(ctx, "n", outageNodes)
	defer func() { killAll(nodes) }()
	if err != nil {
		return round, err
	}
	fresh, err := c.startRealNodes(ctx, "fresh", freshNodes)
	defer func() { killAll(fresh) }()
	if err != nil {
		return round, err
	}
	if _, _, err := c.operator.apply(ctx, document(routes, backend.port, "127.0.0.1", backend.port), time.Now()); err != nil {
		return round, err
	}
	killAll(fresh)
	late := nodes[1:]
	killAll(late)
	if _, _, err := c.operator.apply(ctx, document(routes, 33_000, "127.0.0.1", backend.port), time.Now()); err != nil {
		return round, err
	}
	c.control.kill()
	if round.Newer, err = startAll(ctx, late, "2"); err != nil {
		return round, err
	}
	for _, n := range fresh {
		if err := os.RemoveAll(filepath.Join(n.data(), "bundles")); err != nil {
			return round, err
		}
	}
	round.Fresh, err = startAll(ctx, fresh, "2")
	return round, err
}

// startAll starts nodes at once and waits until all serve a revision and are ready.
func startAll(ctx context.Context, nodes []*realNode, revision string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, outagePatience)
	defer cancel()
	began := time.Now()
	for _, n := range nodes {
		if err := n.start(); err != nil {
			return 0, err
		}
	}
	for _, n := range nodes {
		err := poll(ctx, 10*time.Millisecond, func() (bool, error) {
			return n.revision(ctx) == revision && answersOK(ctx, "http://"+n.admin+"/readyz"), nil
		})
		if err != nil {
			return 0, fmt.Errorf("the node %s does not come to serve revision %s: %w\n%s", n.name, revision, err, n.process.said())
		}
	}
	return time.Since(began), nil
}

// revision is what the node's metrics say that it serves; empty: they do not answer.
func (n *realNode) revision(ctx context.Context) string {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.admin+"/metrics", nil)
	if err != nil {
		return ""
	}
	request.Close = true
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "pyserve_revision "); ok {
			if n, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
				return strconv.Itoa(int(n))
			}
		}
	}
	return ""
}

func (o *outages) table(b *bytes.Buffer) {
	fmt.Fprintf(b, "\nNo control; nodes that serve %d routes, in s since their start, until the last is there:\n\n"+
		"| round | %d nodes that missed a revision serve it, which one node has | %d nodes with empty disks are ready |\n|---:|---:|---:|\n",
		o.Routes, outageNodes-1, freshNodes)
	var newer, fresh time.Duration
	for i, r := range o.Rounds {
		fmt.Fprintf(b, "| %d | %.2f | %.2f |\n", i+1, r.Newer.Seconds(), r.Fresh.Seconds())
		newer, fresh = max(newer, r.Newer), max(fresh, r.Fresh)
	}
	fmt.Fprintf(b, "\nA node that serves something waits %v for a control before it asks others. Targets: all have it within %v of that: %s; ready within %v: %s.\n",
		askAfter, outageTarget, met(newer-askAfter <= outageTarget), outageTarget, met(fresh <= outageTarget))
}
