// Package health watches backends and sets their verdicts. One goroutine for each backend connects to it in the way that
// traffic does, over the same TLS with the same verification, and counts results up to the thresholds of its check.
//
// What a probe does is said by the check's type: connect, ask for a status over HTTP, ask the gRPC health service, or open a
// WebSocket and ping.
//
// Where there are other nodes, three of all probe a backend and tell the others, and each goes by what most of the three say;
// package vote chooses and counts. A node that hears nothing, or is alone, probes for itself. What it meets with when its own
// requests cannot connect counts at once, for itself alone.
//
// It does not decide who gets traffic (the pools of package upstream do, by the verdict), nor does it see how requests
// fare once they are connected. How words come to other nodes is not its business either.
//
// Order of calls: NewProber, then Watch and Unwatch for each backend, and Failed, which fit upstream.Options' Added, Removed
// and Failed: a backend is then watched from its first Acquire to its last Release, over however many generations. SetMembers
// and Hear whenever there is news of other nodes. At the end the registry's Close, then Prober.Close.
package health

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	"github.com/pyserve/pyserve/node/vote"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Options of a Prober. The zero value works.
type Options struct {
	// Told of every change between healthy and unhealthy. Nil: nothing is logged.
	Logger *slog.Logger
	// A random duration from 0 up to but not including n, which is above 0. Called concurrently. Nil: math/rand/v2.
	Random func(n time.Duration) time.Duration
	// Self is this node's name among the members. Empty: it takes part in nothing, and probes for itself.
	Self string
	// Publish tells all other nodes, each of which gives message to its Hear, and gives the message with this node's signature, for
	// State; "": others cannot be told. A message has at most MaxMessage bytes. It is called by probing goroutines and must neither
	// wait nor call the prober. Nil: nobody is told.
	Publish func(message []byte) (signed string)
}

// Prober owns the probing goroutines. Its methods may be called concurrently.
type Prober struct {
	logger  *slog.Logger
	random  func(time.Duration) time.Duration
	self    string
	publish func(message []byte) (signed string)
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	counts  counts

	// mu guards what follows and what watch says of itself. It is not held while waiting for a goroutine, while a verdict is
	// set, or while others are told.
	mu      sync.Mutex
	watches map[*upstream.Backend]*watch
	byKey   map[vote.Key]*watch
	closed  bool
	starved time.Time // when the log told last that probes cannot be made
	shared
}

// NewProber returns a prober that watches nothing.
func NewProber(o Options) *Prober {
	p := &Prober{
		logger: o.Logger, random: o.Random, self: o.Self, publish: o.Publish,
		watches: make(map[*upstream.Backend]*watch), byKey: make(map[vote.Key]*watch), shared: newShared(),
	}
	if p.logger == nil {
		p.logger = slog.New(slog.DiscardHandler)
	}
	if p.random == nil {
		p.random = rand.N[time.Duration]
	}
	if p.publish == nil {
		p.publish = func([]byte) string { return "" }
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

// checked says whether there is anything to probe.
func checked(c *resourcev1.HealthCheck) bool {
	t := c.GetType()
	return t != resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_UNSPECIFIED && t != resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_NONE
}

// Kind says in a word or two what a check does: what tells those of one address apart.
func Kind(c *resourcev1.HealthCheck) string {
	kind := strings.ToLower(strings.TrimPrefix(c.GetType().String(), "HEALTH_CHECK_TYPE_"))
	if c.GetPath() != "" && c.GetType() != resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP {
		kind += " " + c.GetPath()
	}
	return kind
}

// Watch begins to watch b by the check of its Spec, one that Supports, until Unwatch or Close. A backend without a check, or
// with the type none, counts as healthy from now on. Watching what is watched already changes nothing, nor does watching after
// Close.
//
// Where this node is to probe, the first probe comes within a second, or within the interval if that is shorter, at a random
// moment, so that an apply with a thousand backends does not probe them all at once. As long as nothing else is known its
// result alone decides; from then on the thresholds count.
func (p *Prober) Watch(b *upstream.Backend) {
	if !checked(b.Spec().Check) {
		b.SetVerdict(upstream.Verdict{State: upstream.Healthy, Since: time.Now()})
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.watches[b] != nil {
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	w := newWatch(b, cancel)
	p.watches[b], p.byKey[w.key] = w, w
	p.table.Expect(w.key)
	go func() {
		defer close(w.done)
		w.run(ctx, p)
	}()
}

// Unwatch ends the watching of b and waits for it: no verdict is set afterwards. It must not be called by what hangs on
// upstream.Options.Changed, which the watching goroutine itself may be running.
func (p *Prober) Unwatch(b *upstream.Backend) {
	p.mu.Lock()
	w := p.watches[b]
	delete(p.watches, b)
	if w != nil && p.byKey[w.key] == w {
		delete(p.byKey, w.key)
		p.table.Forget(w.key)
	}
	p.mu.Unlock()
	if w == nil {
		return
	}
	w.cancel()
	<-w.done
}

// Close ends all watching and waits for it.
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

// Failed takes in that a connection for a request could not be opened: from now on the backend is passed over here where there
// is another, until a probe of this node's own has reached it. While the probers have given it up and no pool asks it all the same,
// nobody looks; where one does, a connection reaches it, whatever its check says. Backends that are not probed are left alone, since
// nothing would bring them back.
func (p *Prober) Failed(b *upstream.Backend, err error) {
	p.mu.Lock()
	w := p.watches[b]
	if w == nil || w.refused.reason != "" || w.verdict.State == upstream.Unhealthy && !b.FailsOpen() {
		p.mu.Unlock()
		return
	}
	now := time.Now()
	w.refused = refusal{reason: reasonFor(err, now), since: now}
	reason, level := w.refused.reason, slog.LevelInfo
	if now.Sub(w.logged) < quietFor {
		level = slog.LevelDebug
	} else {
		w.logged = now
	}
	p.mu.Unlock()
	p.counts.ownConnections.Add(1)
	p.logger.Log(p.ctx, level, "backend is passed over: a request could not connect to it", "backend", b.Address(), "reason", reason)
	w.avoid(p)
	w.wakeUp()
}

// quietFor is how long the log does not tell again that one backend is passed over.
const quietFor = time.Minute

// The check's defaults, for resources that were not made from a document.
const (
	defaultInterval = 5 * time.Second
	defaultTimeout  = 2 * time.Second
)

// jitter is interval within 10 % either way: probes of many backends that happen to fall together drift apart. It is for a node
// that probes alone; those that share have their slots.
func (p *Prober) jitter(interval time.Duration) time.Duration {
	return interval - interval/10 + p.random(interval/5+1)
}

func (p *Prober) tell(b *upstream.Backend, before, v upstream.Verdict, source Source) {
	check := Kind(b.Spec().Check)
	switch {
	case v.State == before.State:
		p.logger.Debug("backend fails for another reason", "backend", b.Address(), "check", check, "reason", v.Reason)
	case v.State == upstream.Unhealthy:
		p.logger.Warn("backend is unhealthy", "backend", b.Address(), "check", check, "reason", v.Reason, "by", source.String())
	default:
		p.logger.Info("backend is healthy", "backend", b.Address(), "check", check, "by", source.String())
	}
}
