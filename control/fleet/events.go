package fleet

import (
	"fmt"
	"strings"
	"time"

	"github.com/pyserve/pyserve/control/journal"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// arrival says what a node that connects serves.
func arrival(s *session) string {
	serving := "serving nothing yet"
	if s.applied != nil {
		serving = fmt.Sprintf("serving revision %d", s.applied.GetRevision())
	}
	return fmt.Sprintf("version %s, %s", s.node.Version, serving)
}

// tellRefusal tells the journal, once for as long as the node says the same: it is asked again every few seconds. The
// caller holds mu.
func (f *Fleet) tellRefusal(s *session, target *Target, refusals []*fleetv1.Refusal) {
	text := fmt.Sprintf("revision %d: %s", target.Release.GetRevision(), describeRefusals(refusals))
	if s.refusal == text {
		return
	}
	s.refusal = text
	f.tell(s, journal.NodeRefused, s.name, text)
}

// What one node can have written down, lest one that says very much takes the place of everything else.
const (
	allowedEvents = 30
	allowancePer  = 10 * time.Second
)

// allowance is how much of that was used.
type allowance struct {
	since    time.Time
	used     int
	exceeded int
}

// tell writes down what a node says, or counts it where the node says too much. The caller holds mu.
func (f *Fleet) tell(s *session, kind journal.Kind, subject, message string) {
	a, now := &s.allowance, f.options.Now()
	if now.Sub(a.since) >= allowancePer {
		if a.exceeded > 0 {
			f.options.Journal.Add(journal.NodeInTrouble, s.name, fmt.Sprintf("it reported very much: %d events are left out", a.exceeded))
		}
		*a = allowance{since: now}
	}
	if a.used == allowedEvents {
		a.exceeded++
		return
	}
	a.used++
	f.options.Journal.Add(kind, subject, message)
}

// toldTurns is how many backends of one Status the journal is told of one by one, and toldRoutes how many routes of one: a
// network that breaks takes thousands down at once, and the journal is short.
const (
	toldTurns  = 10
	toldRoutes = 3
)

// turn is a backend that became unhealthy, or is healthy again.
type turn struct {
	address, reason string
	down            bool
}

// turns are those of one Status. A backend of several routes is one.
type turns struct {
	order  []turn
	routes map[turn][]string
}

// turns compares what a node says of its backends with what it said before. It is called before that is forgotten.
func (s *session) turns(m *fleetv1.Status) turns {
	t := turns{routes: map[turn][]string{}}
	for _, b := range m.GetBackends() {
		t.see(s.backends[BackendKey{b.GetRoute(), b.GetAddress()}], b)
	}
	return t
}

// see compares what a node says of a backend with what it said before; nil: nothing.
func (t *turns) see(before, now *fleetv1.BackendStatus) {
	const unhealthy, healthy = fleetv1.BackendState_BACKEND_STATE_UNHEALTHY, fleetv1.BackendState_BACKEND_STATE_HEALTHY
	one := turn{now.GetAddress(), clip(now.GetReason()), now.GetState() == unhealthy}
	if one.down == (before.GetState() == unhealthy) || !one.down && now.GetState() != healthy {
		return
	}
	if t.routes[one] == nil {
		t.order = append(t.order, one)
	}
	t.routes[one] = append(t.routes[one], now.GetRoute())
}

// tellTurns writes turns down. The caller holds mu.
func (f *Fleet) tellTurns(s *session, t turns) {
	more := map[journal.Kind]int{}
	for i, one := range t.order {
		kind := journal.BackendUp
		if one.down {
			kind = journal.BackendDown
		}
		if i >= toldTurns {
			more[kind]++
			continue
		}
		text := "node " + s.name
		if one.reason != "" {
			text += ": " + one.reason
		}
		f.tell(s, kind, one.address, text+"; "+routesText(t.routes[one]))
	}
	for _, kind := range []journal.Kind{journal.BackendDown, journal.BackendUp} {
		if more[kind] > 0 {
			f.tell(s, kind, fmt.Sprintf("%d more", more[kind]), "node "+s.name)
		}
	}
}

func routesText(routes []string) string {
	if len(routes) == 1 {
		return "route " + routes[0]
	}
	text := "routes " + strings.Join(routes[:min(len(routes), toldRoutes)], ", ")
	if more := len(routes) - toldRoutes; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
