package node

import (
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyserve/pyserve/node/forward"
	"github.com/pyserve/pyserve/node/meter"
	"github.com/pyserve/pyserve/node/tunnel"
	"github.com/pyserve/pyserve/node/upstream"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// gauges report the live generation when they are asked: what is no longer served has no series left behind. Requests are
// counted by package meter.
type gauges struct {
	node                                  *Node
	tunnels, revision, backendUp          *prometheus.Desc
	tunnelBytes, webSocketMessage         *prometheus.Desc
	connections, opened, reused, unopened *prometheus.Desc
	accessLogged, accessDropped           *prometheus.Desc
	probes, votes, votesRefused           *prometheus.Desc
	decisions, ejections, announced       *prometheus.Desc
	limited, limitKeys, limitsForgotten   *prometheus.Desc
	limitPassed, limitLent, lendersAway   *prometheus.Desc
	requests, sticky                      *prometheus.Desc
	parts, failOpen                       *prometheus.Desc
	breakerRequests, breakerRejected      *prometheus.Desc
}

func newGauges(n *Node) *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("pyserve_"+name, help, labels, nil)
	}
	return &gauges{
		node:             n,
		tunnels:          desc("tunnels", "Upgraded connections, WebSockets mostly."),
		tunnelBytes:      desc("tunnel_bytes_total", "Bytes passed on by tunnels.", "direction"),
		webSocketMessage: desc("websocket_messages_total", "WebSocket messages passed on, control frames not counted.", "direction"),
		revision:         desc("revision", "The revision that is served, 0 for none."),
		backendUp:        desc("backend_up", "1 if the backend takes traffic by what is known of its health.", "route", "backend"),
		failOpen:         desc("route_fails_open", "1 if so few backends of the route, or of a part of it, are healthy that all are used. Routes of one backend have none.", "route"),
		connections:      desc("backend_connections", "Connections to the backend, tunnels included.", "backend", "state"),
		opened:           desc("backend_connections_opened_total", "Connections that were opened to the backend.", "backend"),
		reused:           desc("backend_connections_reused_total", "Requests that were sent over a connection that was kept.", "backend"),
		unopened:         desc("backend_connect_failures_total", "Connections to the backend that could not be opened.", "backend"),
		accessLogged:     desc("access_log_written_total", "Requests that were written to the access log."),
		probes:           desc("health_probes_total", "Probes of backends by this node: checks at their time, and looks at backends that its own requests could not connect to.", "kind"),
		votes:            desc("health_votes_received_total", "What other nodes' probes say, as it was received."),
		votesRefused:     desc("health_votes_refused_total", "Of these, what was malformed, in another node's name, or too much."),
		decisions:        desc("health_decisions_total", "Changes of a backend between healthy and unhealthy here, by what they rest on, and backends passed over because of own connections.", "by"),
		limited:          desc("rate_limited_requests_total", "Requests that were over the rate limit of their route.", "route"),
		limitKeys:        desc("rate_limit_keys", "Keys, clients mostly, that a rate limit remembers.", "route"),
		limitsForgotten:  desc("rate_limit_keys_forgotten_total", "Keys that a rate limit has forgotten for want of room.", "route"),
		limitPassed:      desc("rate_limit_shared_requests_total", "Requests that a rate limit of all nodes has let through here: by the word of the key's owner, or by this node's share of the rate.", "route", "by"),
		limitLent:        desc("rate_limit_lent_requests_total", "Requests that nodes, this one included, have let through by this one's word.", "route"),
		lendersAway:      desc("rate_limit_owners_away", "Other nodes that do not answer when they are asked for requests of a rate limit."),
		breakerRequests:  desc("circuit_breaker_requests", "Requests and upgraded connections under way, of routes with a circuit breaker, and requests that wait for a place.", "route", "state"),
		breakerRejected:  desc("circuit_breaker_rejected_total", "Requests that were answered 503 because a circuit breaker had no place for them: at once, or after a wait.", "route", "reason"),
		parts:            desc("part_requests_total", "Requests that have ended, of routes with a split, by part and the class of their status.", "route", "part", "code_class"),
		ejections:        desc("outlier_ejections_total", "Backends ejected by outlier detection: because of own requests, or because other nodes had; and those that would have been too many.", "by"),
		announced:        desc("proxy_protocol_connections_total", "Connections that have to begin with a PROXY protocol header: it was read, or they were closed because it was missing or malformed.", "header"),
		requests:         desc("backend_requests_total", "Requests that were sent to the backend, each attempt counted.", "backend"),
		sticky:           desc("sticky_answers_total", "Answers of sticky routes: to clients that had the cookie of the backend already, and to those that were given one.", "cookie"),
		accessDropped:    desc("access_log_dropped_total", "Requests that the access log had no room for, or could not be written."),
	}
}

// register makes the metrics known; a node without a registerer has none.
func (n *Node) register() error {
	if n.registerer == nil {
		return nil
	}
	if err := n.meter.Register(n.registerer); err != nil {
		return err
	}
	g := newGauges(n)
	if err := n.registerer.Register(g); err != nil {
		return fmt.Errorf("register node metrics: %w", err)
	}
	n.gauges = g
	return nil
}

// Describe implements prometheus.Collector.
func (g *gauges) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		g.tunnels, g.tunnelBytes, g.webSocketMessage, g.revision, g.backendUp,
		g.connections, g.opened, g.reused, g.unopened, g.accessLogged, g.accessDropped,
		g.probes, g.votes, g.votesRefused, g.decisions, g.ejections, g.announced, g.limited, g.limitKeys, g.limitsForgotten,
		g.limitPassed, g.limitLent, g.lendersAway,
		g.requests, g.sticky, g.parts, g.failOpen, g.breakerRequests, g.breakerRejected,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(out chan<- prometheus.Metric) {
	out <- level(g.tunnels, float64(g.node.tunnels.Len()))
	out <- level(g.revision, float64(g.node.Applied().GetRevision()))
	totals := g.node.tunnels.Totals()
	for direction, traffic := range map[string]tunnel.Traffic{"to_backend": totals.ToBackend, "to_client": totals.ToClient} {
		out <- total(g.tunnelBytes, traffic.Bytes, direction)
		out <- total(g.webSocketMessage, traffic.Messages, direction)
	}
	if l := g.node.accessLog; l != nil {
		out <- total(g.accessLogged, l.Written())
		out <- total(g.accessDropped, l.Dropped())
	}
	read, refused := g.node.announcers.Counts()
	out <- total(g.announced, read, "read")
	out <- total(g.announced, refused, "refused")
	kept, given := g.node.proxy.StickyAnswers()
	out <- total(g.sticky, kept, "kept")
	out <- total(g.sticky, given, "given")
	g.collectHealth(out)
	g.collectVerdicts(out)
	g.collectParts(out)
	g.collectConnections(out)
}

func (g *gauges) collectHealth(out chan<- prometheus.Metric) {
	c := g.node.prober.Counters()
	out <- total(g.probes, c.Probes, "check")
	out <- total(g.probes, c.Looks, "look")
	out <- total(g.votes, c.Received)
	out <- total(g.votesRefused, c.Refused)
	out <- total(g.decisions, c.Majority, "majority")
	out <- total(g.decisions, c.OwnProbes, "own_probes")
	out <- total(g.decisions, c.OwnConnections, "own_connections")
	g.collectLimits(g.node.live.Load(), out)
	g.collectBreakers(g.node.live.Load(), out)
	e := g.node.outliers.totals()
	out <- total(g.ejections, e.Own, "own_requests")
	out <- total(g.ejections, e.Heard, "other_nodes")
	out <- total(g.ejections, e.Capped, "too_many")
}

func level(d *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func total(d *prometheus.Desc, n uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func (g *gauges) collectVerdicts(out chan<- prometheus.Metric) {
	type key struct{ route, address string }
	up := make(map[key]float64)
	for s := range g.node.EachBackend() {
		at := key{s.Route, s.Address}
		up[at] = max(up[at], upValue(s.State))
	}
	for at, value := range up {
		out <- level(g.backendUp, value, at.route, at.address)
	}
}

func (g *gauges) collectParts(out chan<- prometheus.Metric) {
	live := g.node.live.Load()
	if live == nil {
		return
	}
	for _, r := range live.routes {
		if open, may := failsOpen(r); may {
			out <- level(g.failOpen, open, r.Name())
		}
		for number, counts := range r.EachPart {
			for class := range counts {
				out <- total(g.parts, counts[class].Load(), r.Name(), strconv.Itoa(number), meter.CodeClass(class))
			}
		}
	}
}

// failsOpen is 1 where a pool of the route does; may is false where none can.
func failsOpen(r *forward.Route) (open float64, may bool) {
	for _, p := range r.EachPool {
		may = may || len(p.Members()) > 1
		if p.FailsOpen() {
			open = 1
		}
	}
	return open, may
}

// collectConnections adds up the backends that have an address in common: they differ in their checks, or in how TLS is spoken.
func (g *gauges) collectConnections(out chan<- prometheus.Metric) {
	live := g.node.live.Load()
	if live == nil {
		return
	}
	seen := make(map[*upstream.Backend]bool)
	sums := make(map[string]upstream.Counters)
	for b := range live.backends() {
		if seen[b] {
			continue
		}
		seen[b] = true
		sum, now := sums[b.Address()], b.Counters()
		sum.Open += now.Open
		sum.Idle += now.Idle
		sum.Opened += now.Opened
		sum.Reused += now.Reused
		sum.Requests += now.Requests
		sum.ConnectFailures += now.ConnectFailures
		sums[b.Address()] = sum
	}
	for address, c := range sums {
		out <- level(g.connections, float64(c.Idle), address, "idle")
		out <- level(g.connections, float64(c.Open-c.Idle), address, "active")
		out <- total(g.opened, c.Opened, address)
		out <- total(g.reused, c.Reused, address)
		out <- total(g.requests, c.Requests, address)
		out <- total(g.unopened, c.ConnectFailures, address)
	}
}

func upValue(s fleetv1.BackendState) float64 {
	switch s {
	case fleetv1.BackendState_BACKEND_STATE_HEALTHY, fleetv1.BackendState_BACKEND_STATE_UNKNOWN:
		return 1
	}
	return 0
}
