package control

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// How long nodes that are not there stay in status. They are let in again whenever they come.
const (
	listLeft         = time.Hour
	listDisconnected = 24 * time.Hour
)

// Watch is signalled when something in Status may have changed; gossip's view is not part of that.
func (c *Control) Watch() (changed <-chan struct{}, stop func()) { return c.fleet.Watch() }

// Status says what the fleet should serve and what each node does. It is converged when a revision is active and
// every node that has not left is connected and serves it, which one that drains does too; without any node, nothing
// serves it.
func (c *Control) Status() *operatorv1.GetStatusResponse {
	m := &operatorv1.GetStatusResponse{}
	if trouble := c.Trouble(); trouble != "" {
		m.Notes = append(m.Notes, "control "+c.options.Name+": "+trouble)
	}
	active := c.store.Active()
	if active != nil {
		m.Revision, m.Digest = active.Number, active.Bundle.Digest().String()
	}
	gossip := map[string]Member{}
	for _, member := range c.members() {
		gossip[member.Name] = member
	}
	present, served, partial := 0, 0, c.Partial()
	for _, node := range c.nodes() {
		row := nodeStatus(node, active, gossip[node.Name].State)
		if partial && row.State == "disconnected" {
			row.Note = "not connected to this control, which does not lead and knows its own nodes alone"
		}
		m.Nodes = append(m.Nodes, row)
		if row.State == "left" {
			continue
		}
		present++
		if active != nil && (row.State == "ready" || row.State == "draining") && node.Serves(active.Release) {
			served++
		}
	}
	m.Converged = present > 0 && served == present
	return m
}

// nodes gives all nodes worth showing: those of the fleet, and, without a Since, those that are registered and had no
// stream since control started. What these serve, and since when they are away, nobody knows: to keep it would be a write
// for every stream that ends, and all end at once when a network breaks.
func (c *Control) nodes() []fleet.Node {
	byName := map[string]fleet.Node{}
	for _, registered := range c.store.Nodes() {
		byName[registered.Name] = fleet.Node{Name: registered.Name, Left: registered.Left}
	}
	for _, node := range c.fleet.Nodes() {
		if _, registered := byName[node.Name]; registered { // otherwise it was revoked, and its stream is ending
			byName[node.Name] = node
		}
	}
	now := c.options.Now()
	maps.DeleteFunc(byName, func(_ string, n fleet.Node) bool {
		since := n.Since
		if since.IsZero() {
			since = c.started
		}
		return !n.Connected && (n.Left && now.Sub(since) > listLeft || now.Sub(since) > listDisconnected)
	})
	return slices.SortedFunc(maps.Values(byName), func(a, b fleet.Node) int { return cmp.Compare(a.Name, b.Name) })
}

func nodeStatus(n fleet.Node, active *store.Snapshot, gossip string) *operatorv1.NodeStatus {
	state, note := stateOf(n, active)
	if n.Connected && len(n.Notes) > 0 {
		note = strings.TrimPrefix(note+"; "+strings.Join(n.Notes, "; "), "; ")
	}
	row := &operatorv1.NodeStatus{
		Name: n.Name, State: state, Revision: n.Applied.GetRevision(), Listen: n.Listen,
		Gossip: gossip, Note: note, Version: n.Version,
	}
	if !n.Since.IsZero() {
		row.Since = timestamppb.New(n.Since)
	}
	if digest, err := bundle.ParseDigest(n.Applied.GetDigest()); err == nil {
		row.Digest = digest.String()
	}
	if gossip == "" {
		row.Gossip, row.Note = unseen(n, note)
	}
	return row
}

// unseen is what to say of a node that gossip has not heard of: it may be on its way in, or its port may be closed.
func unseen(n fleet.Node, note string) (gossip, withNote string) {
	switch {
	case n.Connected && note == "":
		return "suspect", "gossip has not seen it yet"
	case n.Connected:
		return "suspect", note
	case n.Left:
		return "left", note
	}
	return "dead", note
}

func stateOf(n fleet.Node, active *store.Snapshot) (state, note string) {
	behind := active != nil && !n.Serves(active.Release)
	switch {
	case !n.Connected && n.Left:
		return "left", ""
	case !n.Connected && n.Since.IsZero():
		return "disconnected", "it had no stream since this control started"
	case !n.Connected:
		return "disconnected", "its stream is gone"
	case n.Rejected || behind && len(n.Refusals) > 0:
		return "rejected", n.Reason()
	case n.Draining:
		return "draining", ""
	case n.Applied == nil && active == nil:
		return "joining", "no configuration yet: pyservectl apply FILE"
	case n.Applied == nil:
		return "joining", "receiving its first configuration"
	case n.Refused != 0:
		return "ready", fmt.Sprintf("refused revision %d, which nobody serves: %s", n.Refused, n.Reason())
	case behind && n.Ahead(active.Release):
		return "ready", fmt.Sprintf("serves revision %d of epoch %d and keeps it: control has lost what came after revision %d; restore a newer backup, or apply what is to be served",
			n.Applied.GetRevision(), n.Applied.GetEpoch(), active.Number)
	case behind:
		return "ready", fmt.Sprintf("on its way to revision %d", active.Number)
	}
	return "ready", ""
}

// decoded is what a revision means.
type decoded struct {
	of        *store.Snapshot
	resources *config.Resources
}

// meaning gives what a revision means; of none, nothing. The active one is decoded once for all who look: a dashboard
// does so every two seconds, and 100,000 routes take the better part of one.
func (c *Control) meaning(of *store.Snapshot) (*config.Resources, error) {
	if of == nil {
		return &config.Resources{}, nil
	}
	if known := c.decoded.Load(); known != nil && known.of == of {
		return known.resources, nil
	}
	r, err := of.Bundle.Decode()
	if err != nil {
		return nil, fmt.Errorf("decode the bundle of revision %d: %w", of.Number, err)
	}
	if of == c.store.Active() {
		c.decoded.Store(&decoded{of, r})
	}
	return r, nil
}

// understand keeps what was made into the revision that is active now, so that nobody decodes it.
func (c *Control) understand(r *config.Resources, t *fleet.Target) {
	if active := c.store.Active(); active != nil && active.Number == t.Release.GetRevision() && active.Bundle.Digest() == t.Bundle.Digest() {
		c.decoded.Store(&decoded{active, r})
	}
}

// Routes gives the active routes, sorted by name.
func (c *Control) Routes() ([]*operatorv1.RouteSummary, error) {
	r, err := c.meaning(c.store.Active())
	if err != nil {
		return nil, err
	}
	return r.RouteSummaries(), nil
}

// Backends gives the backends of the active routes with what the connected nodes say of them.
func (c *Control) Backends() ([]*operatorv1.BackendSummary, error) {
	r, err := c.meaning(c.store.Active())
	if err != nil {
		return nil, err
	}
	verdicts := c.verdicts()
	var out []*operatorv1.BackendSummary
	for _, name := range slices.Sorted(maps.Keys(r.Routes)) {
		for part, pool := range r.PoolsOf(r.Routes[name]) {
			for _, b := range pool.GetBackends() {
				row := &operatorv1.BackendSummary{
					Route: name, Part: uint32(part), Address: config.BackendAddress(b), Weight: b.GetWeight(), State: "unknown",
				}
				judge(row, verdicts[fleet.BackendKey{Route: name, Address: row.Address}])
				out = append(out, row)
			}
		}
	}
	return out, nil
}

var backendStates = map[fleetv1.BackendState]string{
	fleetv1.BackendState_BACKEND_STATE_UNSPECIFIED: "unknown",
	fleetv1.BackendState_BACKEND_STATE_UNKNOWN:     "unknown",
	fleetv1.BackendState_BACKEND_STATE_HEALTHY:     "healthy",
	fleetv1.BackendState_BACKEND_STATE_UNHEALTHY:   "unhealthy",
	fleetv1.BackendState_BACKEND_STATE_DRAINING:    "draining",
	fleetv1.BackendState_BACKEND_STATE_EJECTED:     "ejected",
}

// judge fills a row in with what most nodes say; where two states have as many, the worse one shows. Where nodes
// differ, the row says what each says. That one node uses an unhealthy backend shows.
func judge(row *operatorv1.BackendSummary, verdicts []fleet.Verdict) {
	byState := map[string][]fleet.Verdict{}
	for _, v := range verdicts {
		state := backendStates[v.Status.GetState()]
		byState[state] = append(byState[state], v)
		row.FailOpen = row.FailOpen || v.Status.GetFailOpen()
	}
	most := 0
	for _, state := range []string{"unhealthy", "ejected", "draining", "unknown", "healthy"} {
		if said := byState[state]; len(said) > most {
			most = len(said)
			row.State, row.Reason, row.Since = state, said[0].Status.GetReason(), said[0].Status.GetSince()
		}
	}
	if len(byState) < 2 {
		return
	}
	row.Nodes = map[string]string{}
	for _, v := range verdicts {
		row.Nodes[v.Node] = strings.TrimSuffix(backendStates[v.Status.GetState()]+": "+v.Status.GetReason(), ": ")
	}
}
