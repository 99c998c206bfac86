// Package node assembles the data plane: listeners, forwarding, backends and their probes, and the swap from one generation
// to the next. Apply is the only place where a generation is swapped. It knows nothing of where bundles come from (agent
// does), of control, or of the other nodes.
//
// Order of calls: New; then, for each bundle, Prepare and either Apply or Discard; at the end Stop, once. The other methods
// report, at any time.
package node

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node/accesslog"
	"github.com/pyserve/pyserve/node/forward"
	"github.com/pyserve/pyserve/node/health"
	"github.com/pyserve/pyserve/node/listener"
	"github.com/pyserve/pyserve/node/meter"
	"github.com/pyserve/pyserve/node/splice"
	"github.com/pyserve/pyserve/node/tunnel"
	"github.com/pyserve/pyserve/node/upstream"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// ErrPrepared is returned by Prepare while another generation is prepared: each ends with Apply or Discard first.
var ErrPrepared = errors.New("node: another generation is prepared already")

// Options of a Node. The zero value works.
type Options struct {
	// Names the node in logs, and among the others that share health checks and rate limits with it; empty: logs do not name it, and it
	// shares nothing.
	Name string
	// The host:port to listen on, whatever the listener resource says; empty: what the listener resource says.
	Listen string
	// Nil: nothing is logged.
	Logger *slog.Logger
	// Where metrics are registered, until Stop. Nil: nowhere.
	Registerer prometheus.Registerer
	// A line for every request. It stays the caller's, who closes it after Stop. Nil: requests are not logged.
	AccessLog *accesslog.Log
	// The time over which tunnels are ended whose route or backend an apply has taken away. 0: 10 s.
	TunnelRemovalTime time.Duration
	// Tells all other nodes what this one's health probes say, each of which gives message to its HearVotes, and gives the message
	// with this node's signature, for Votes; "": others cannot be told. It must neither wait nor call the node. Nil: nobody is told.
	PublishVotes func(message []byte) (signed string)
	// For how many tunnels the other nodes together have room at this moment, which a Drain goes by. It must be quick. Nil: for any
	// number.
	PeerRoom func() int
	// Asks the nodes that SetMembers names for requests of the rate limits that all share. Nil: this node is alone.
	AskLender AskLender
}

// Node is a data plane. Its methods may be called concurrently.
type Node struct {
	listen   string
	logger   *slog.Logger
	registry *upstream.Registry
	prober   *health.Prober
	outliers *outliers
	lending  *lending
	tunnels  *tunnel.Set
	proxy    *forward.Proxy
	meter    *meter.Set
	peerRoom func() int
	gauges   *gauges // nil: not registered

	announcers *listener.Proxies

	registerer prometheus.Registerer
	accessLog  *accesslog.Log

	live     atomic.Pointer[Generation] // nil: nothing is served
	stopping atomic.Bool                // Stop was called
	retired  atomic.Bool                // by Drain, and not taken back
	changed  chan struct{}

	generations sync.WaitGroup // those whose backends are not released yet
	drains      sync.WaitGroup // listeners that no generation uses any more
	passive     sync.WaitGroup // the goroutines of outliers, limits and lending
	cutting     context.Context
	cut         context.CancelFunc // ends cutting: what still drains is cut

	made            time.Time
	stopped         chan struct{} // closed when Stop is through
	lameDuck, quiet time.Duration // constants but for tests

	// mu guards prepared, and makes Prepare, Apply, Discard and the beginning of Stop one after the other. Requests and
	// reports do not take it. The locks of listener, upstream and tunnel are taken under it.
	mu       sync.Mutex
	prepared *Generation
}

// New makes a node that serves nothing yet. The error is about metrics that cannot be registered.
func New(o Options) (*Node, error) {
	logger := o.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if o.Name != "" {
		logger = logger.With("node", o.Name)
	}
	counts, err := meter.NewSet(meter.Options{Classes: forward.Classes(), RejectReasons: forward.RejectReasons()})
	if err != nil {
		return nil, err
	}
	n := &Node{
		listen: o.Listen, logger: logger, registerer: o.Registerer, meter: counts, accessLog: o.AccessLog, peerRoom: o.PeerRoom,
		tunnels: tunnel.NewSet(tunnel.Options{Spread: o.TunnelRemovalTime}),
		changed: make(chan struct{}, 1), stopped: make(chan struct{}), made: time.Now(), lameDuck: lameDuck, quiet: quiet,
	}
	n.announcers = &listener.Proxies{Networks: n.liveProxies}
	n.cutting, n.cut = context.WithCancel(context.Background())
	n.prober = health.NewProber(health.Options{Logger: logger, Self: o.Name, Publish: o.PublishVotes})
	n.outliers = newOutliers(n.prober, logger, n.signal)
	n.passive.Go(func() { n.outliers.run(n.cutting.Done()) })
	n.passive.Go(n.tidyLimits)
	n.lending = newLending(o.Name, o.AskLender)
	n.passive.Go(func() { n.lending.run(n.cutting) })
	n.registry = upstream.NewRegistry(upstream.Options{
		Logger: logger, Added: n.prober.Watch, Removed: n.prober.Unwatch, Failed: n.prober.Failed,
		Changed: n.verdictChanged,
	})
	n.proxy, err = forward.New(forward.Options{
		Source: source{&n.live}, Tunnels: n.tunnels, Meter: counts, AccessLog: o.AccessLog, Logger: logger,
	})
	if err == nil {
		err = n.register()
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// close ends what New made.
func (n *Node) close() {
	n.cut()
	n.passive.Wait()
	n.prober.Close()
	n.registry.Close()
	splice.CloseIdle() // they are the process's: another node in it opens new ones
	n.meter.Unregister()
	if n.gauges != nil {
		n.registerer.Unregister(n.gauges)
	}
}

// Prepare builds all that serving r takes and that can fail, beside the live generation and without touching it: routes,
// certificate, pools, and the bound listener where the address is new. What has not changed since the live generation is not
// built again. What it returns is served once it is given to Apply; release says what it is. The error is Refusals, or
// ErrPrepared.
func (n *Node) Prepare(release *fleetv1.Release, b *bundle.Bundle) (*Generation, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopping.Load() {
		return nil, Refusals{{Reason: "the node is stopping"}}
	}
	if n.prepared != nil {
		return nil, ErrPrepared
	}
	g, err := n.compile(release, b)
	if err != nil {
		return nil, err
	}
	n.prepared = g
	return g, nil
}

// Discard lets go of a prepared generation. Nil, and one that is not prepared any more, are ignored.
func (n *Node) Discard(g *Generation) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if g != nil && n.prepared == g {
		n.discard()
	}
}

// SetStickySecrets gives the secrets that all nodes of the cluster share, so that each knows the sticky cookies of the others: cookies
// are made by the first and taken by any. Without it, or with none, cookies are good for this process alone.
func (n *Node) SetStickySecrets(shared [][]byte) {
	if err := n.proxy.SetStickySecrets(shared); err != nil {
		n.logger.Error("sticky cookies go on with the keys of before", "error", err)
	}
}

// discard is called with mu held.
func (n *Node) discard() {
	g := n.prepared
	n.prepared = nil
	g.giveUp()
}

// Apply serves a prepared generation from now on. Requests under way end on the generation that they began with, whose
// backends are released with the last of them. Tunnels go on as long as the live generation has a route of the same name
// with the same backend; the others are ended little by little. A generation that is not prepared any more, because the
// node drains, is ignored.
func (n *Node) Apply(g *Generation) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if g == nil || n.prepared != g {
		n.logger.Warn("a generation was to be applied that is not prepared")
		return
	}
	n.prepared = nil
	n.outliers.serve(g)
	n.lending.serve(g)
	old := n.live.Swap(g)
	n.registry.Serving()
	if g.bound {
		g.listener.Start()
		n.logger.Info("listening", "address", g.listener.Address())
	}
	if old != nil {
		if old.listener != g.listener {
			n.drainBehind(old.listener)
		}
		old.drop()
	}
	if !n.retired.Load() { // or they all go already
		n.tunnels.Retain(g.keepsTunnel)
	}
	n.logger.Info("applied", "revision", g.release.GetRevision(), "routes", len(g.routes))
	n.signal()
}

// drainBehind drains a listener that the live generation does not use, for as long as its connections take. It is called
// with mu held.
func (n *Node) drainBehind(l *listener.Listener) {
	n.drains.Go(func() {
		if err := l.Drain(n.cutting); err != nil {
			n.logger.Info("connections were cut", "address", l.Address(), "error", err)
		}
	})
}

// source hands the live generation to requests.
type source struct{ live *atomic.Pointer[Generation] }

// Pin implements forward.Source.
func (s source) Pin() (table *forward.Table, unpin func()) {
	for {
		g := s.live.Load()
		if g == nil {
			return nil, func() {}
		}
		if g.hold() {
			return g.table, g.unpin
		}
		// It was swapped out, and its last request ended, since it was loaded: there is a newer one.
	}
}
