// Package health probes backends and sets their verdicts. One goroutine for each backend connects to it in the way that
// traffic does, over the same TLS with the same verification, and counts results up to the thresholds of its check.
//
// What a probe does is said by the check's type: connect, ask for a status over HTTP, ask the gRPC health service, or open a
// WebSocket and ping.
//
// It does not decide who gets traffic (the pools of package upstream do, by the verdict), nor does it see how requests
// fare.
//
// Order of calls: NewProber, then Watch and Unwatch for each backend, which fit upstream.Options' Added and Removed: a
// backend is then probed from its first Acquire to its last Release, over however many generations. At the end the
// registry's Close, then Prober.Close.
package health

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Options of a Prober. The zero value works.
type Options struct {
	// Told of every change between healthy and unhealthy. Nil: nothing is logged.
	Logger *slog.Logger
	// A random duration from 0 up to but not including n, which is above 0. Called concurrently. Nil: math/rand/v2.
	Random func(n time.Duration) time.Duration
}

// Prober owns the probing goroutines. Its methods may be called concurrently.
type Prober struct {
	logger *slog.Logger
	random func(time.Duration) time.Duration
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	// mu guards what follows. It is not held while waiting for a goroutine.
	mu      sync.Mutex
	watches map[*upstream.Backend]*watch
	closed  bool
}

// watch is one backend being probed.
type watch struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when its goroutine has ended
}

// NewProber returns a prober that watches nothing.
func NewProber(o Options) *Prober {
	p := &Prober{logger: o.Logger, random: o.Random, watches: make(map[*upstream.Backend]*watch)}
	if p.logger == nil {
		p.logger = slog.New(slog.DiscardHandler)
	}
	if p.random == nil {
		p.random = rand.N[time.Duration]
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Supports says, as an error, that c is of a type this package does not know: one that a newer control has. Probing by another
// than was asked for would pass for health.
func Supports(c *resourcev1.HealthCheck) error {
	if _, known := resourcev1.HealthCheckType_name[int32(c.GetType())]; !known {
		return fmt.Errorf("type %d is not known here: bring this node to the version of control", c.GetType())
	}
	return nil
}

// Watch begins to probe b by the check of its Spec, one that Supports, until Unwatch or Close. A backend without a check, or with the type
// none, counts as healthy from now on. Watching what is watched already changes nothing, nor does watching after Close.
//
// The first probe comes within a second, or within the interval if that is shorter, at a random moment, so that an apply
// with a thousand backends does not probe them all at once. Its result alone decides, since nothing is known that it could
// be weighed against; from then on the thresholds count.
func (p *Prober) Watch(b *upstream.Backend) {
	c := b.Spec().Check
	if t := c.GetType(); t == resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_UNSPECIFIED || t == resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_NONE {
		b.SetVerdict(upstream.Verdict{State: upstream.Healthy, Since: time.Now()})
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.watches[b] != nil {
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	w := &watch{cancel: cancel, done: make(chan struct{})}
	p.watches[b] = w
	go func() {
		defer close(w.done)
		t := newTarget(b)
		defer t.close()
		p.probe(ctx, t)
	}()
}

// Unwatch ends the probing of b and waits for it: no verdict is set afterwards. It must not be called by what hangs on
// upstream.Options.Changed, which the probing goroutine itself may be running.
func (p *Prober) Unwatch(b *upstream.Backend) {
	p.mu.Lock()
	w := p.watches[b]
	delete(p.watches, b)
	p.mu.Unlock()
	if w != nil {
		w.cancel()
		<-w.done
	}
}

// Close ends all probing and waits for it.
func (p *Prober) Close() {
	p.mu.Lock()
	p.closed = true
	watches := p.watches
	p.watches = nil
	p.mu.Unlock()
	p.cancel()
	for _, w := range watches {
		<-w.done
	}
}

// The check's defaults, for resources that were not made from a document.
const (
	defaultInterval = 5 * time.Second
	defaultTimeout  = 2 * time.Second
)

// probe is the goroutine of one backend: probes until ctx ends. Two probes of one backend never overlap; after one that
// took longer than the interval the next follows at once.
func (p *Prober) probe(ctx context.Context, t *target) {
	interval := cmp.Or(max(0, t.check.GetInterval().AsDuration()), defaultInterval)
	j := newJudge(t.check, t.backend.Verdict())
	next := time.NewTimer(p.random(min(interval, time.Second)))
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		begin := time.Now()
		reason := t.try(ctx)
		if ctx.Err() != nil {
			return // what ended then was the watching, not the backend
		}
		if before := j.verdict; j.observe(reason, time.Now()) {
			p.tell(t.backend, before.State, j.verdict)
			t.backend.SetVerdict(j.verdict)
		}
		next.Reset(p.jitter(interval) - time.Since(begin))
	}
}

// jitter is interval within 10 % either way: probes of many nodes and backends that happen to fall together drift apart.
func (p *Prober) jitter(interval time.Duration) time.Duration {
	return interval - interval/10 + p.random(interval/5+1)
}

func (p *Prober) tell(b *upstream.Backend, before upstream.State, v upstream.Verdict) {
	switch {
	case v.State == before:
		p.logger.Debug("backend fails for another reason", "backend", b.Address(), "reason", v.Reason)
	case v.State == upstream.Unhealthy:
		p.logger.Warn("backend is unhealthy", "backend", b.Address(), "reason", v.Reason)
	default:
		p.logger.Info("backend is healthy", "backend", b.Address())
	}
}
