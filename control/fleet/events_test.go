package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/journal"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// chronicle runs a story with a journal; told gives what is new in it, a line for each event.
func chronicle(t *testing.T, tell func(t *testing.T, f *Fleet, told func() []string)) {
	synctest.Test(t, func(t *testing.T) {
		j, last := journal.New(1000, time.Now), uint64(0)
		f := newFleet(Options{Journal: j})
		defer f.Close()
		tell(t, f, func() (lines []string) {
			synctest.Wait()
			events, _ := j.After(last)
			for _, e := range events {
				last = e.Sequence
				lines = append(lines, fmt.Sprintf("%s %s %s", e.Kind, e.Subject, e.Message))
			}
			return lines
		})
	})
}

func checkTold(t *testing.T, told []string, want ...string) {
	t.Helper()
	if !slices.Equal(told, want) {
		t.Errorf("the journal has\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
}

func TestTheJournalHasNodesThatComeAndGo(t *testing.T) {
	chronicle(t, func(t *testing.T, f *Fleet, told func() []string) {
		n1, n2 := &fleettest.Node{Name: "n1"}, &fleettest.Node{Name: "n2"}
		connect(f, n1, n2)
		got := told()
		slices.Sort(got)
		checkTold(t, got, "node-connected n1 version test, serving nothing yet", "node-connected n2 version test, serving nothing yet")
		f.SetTarget(newTarget(t, 4, map[string]string{"a": "1"}))
		checkTold(t, told())
		n1.Leave()
		checkTold(t, told(), "node-left n1 it stopped on purpose")
		n2.Close()
		checkTold(t, told(), "node-disconnected n2 its stream is gone: connection reset by peer")
		connect(f, n1)
		checkTold(t, told(), "node-connected n1 version test, serving revision 4")
		n1.Close()
	})
}

func TestTheJournalHasARefusalOnce(t *testing.T) {
	chronicle(t, func(t *testing.T, f *Fleet, told func() []string) {
		n := &fleettest.Node{Name: "n1", Refuse: func(*fleetv1.Release) []*fleetv1.Refusal {
			return []*fleetv1.Refusal{fleettest.Refusal("server.port", "in use")}
		}}
		connect(f, n)
		defer n.Close()
		told()
		f.SetTarget(newTarget(t, 1, map[string]string{"a": "1"}))
		checkTold(t, told(), "node-refused n1 revision 1: server.port: in use")
		pass(time.Minute) // it is asked again, and says the same
		checkTold(t, told())
		n.SetRefuse(nil)
		pass(time.Minute)
		n.SetRefuse(func(*fleetv1.Release) []*fleetv1.Refusal { return []*fleetv1.Refusal{fleettest.Refusal("", "no")} })
		f.SetTarget(newTarget(t, 2, map[string]string{"a": "2"}))
		checkTold(t, told(), "node-refused n1 revision 2: no")
	})
}

func backend(route, address string, state fleetv1.BackendState, reason string) *fleetv1.BackendStatus {
	return &fleetv1.BackendStatus{Route: route, Address: address, State: state, Reason: reason}
}

const (
	down    = fleetv1.BackendState_BACKEND_STATE_UNHEALTHY
	up      = fleetv1.BackendState_BACKEND_STATE_HEALTHY
	unknown = fleetv1.BackendState_BACKEND_STATE_UNKNOWN
)

func TestTheJournalHasBackendsThatGoDownAndUp(t *testing.T) {
	chronicle(t, func(t *testing.T, f *Fleet, told func() []string) {
		c := open(t, f, "n1", nil)
		defer c.Break()
		told()
		say := func(full bool, backends ...*fleetv1.BackendStatus) []string {
			c.Say(fleettest.Status(&fleetv1.Status{Backends: backends, BackendsFull: full}))
			return told()
		}
		checkTold(t, say(true, backend("/a", "x:1", unknown, ""), backend("/b", "y:1", up, "")))
		checkTold(t, say(false, backend("/a", "x:1", up, "")))
		checkTold(t, say(false, backend("/a", "x:1", down, "refused"), backend("/b", "x:1", down, "refused"), backend("/b", "y:1", down, "")),
			"backend-down x:1 node n1: refused; routes /a, /b", "backend-down y:1 node n1; route /b")
		checkTold(t, say(false, backend("/a", "x:1", down, "timeout")))
		// All are told anew when one has gone, and those that are down still are.
		checkTold(t, say(true, backend("/a", "x:1", down, "timeout")))
		checkTold(t, say(false, backend("/a", "x:1", unknown, "")))
		checkTold(t, say(false, backend("/a", "x:1", down, "timeout")), "backend-down x:1 node n1: timeout; route /a")
		checkTold(t, say(false, backend("/a", "x:1", up, "")), "backend-up x:1 node n1; route /a")
	})
}

// A network that breaks is one thing that happens, not ten thousand.
func TestManyBackendsAtOnceAreSummedUp(t *testing.T) {
	chronicle(t, func(t *testing.T, f *Fleet, told func() []string) {
		c := open(t, f, "n1", nil)
		defer c.Break()
		told()
		var all []*fleetv1.BackendStatus
		for i := range 5000 {
			all = append(all, backend("/a", fmt.Sprintf("10.0.0.1:%d", i), down, "timeout"))
		}
		for _, route := range []string{"/b", "/c", "/d", "/e"} {
			all = append(all, backend(route, "10.0.0.1:0", down, "timeout"))
		}
		c.Say(fleettest.Status(&fleetv1.Status{Backends: all}))
		got := told()
		if len(got) != toldTurns+1 || got[0] != "backend-down 10.0.0.1:0 node n1: timeout; routes /a, /b, /c and 2 more" || got[toldTurns] != "backend-down 4990 more node n1" {
			t.Errorf("the journal has\n%s", strings.Join(got, "\n"))
		}
	})
}

// One node that says very much does not take the place of what others say.
func TestANodeCannotFillTheJournal(t *testing.T) {
	chronicle(t, func(t *testing.T, f *Fleet, told func() []string) {
		c := open(t, f, "n1", nil)
		defer c.Break()
		told()
		for i := range 200 {
			state := up
			if i%2 == 0 {
				state = down
			}
			c.Say(fleettest.Status(&fleetv1.Status{Backends: []*fleetv1.BackendStatus{backend("/", "x:1", state, "")}}))
		}
		if got := told(); len(got) != allowedEvents {
			t.Errorf("the journal has %d events of it", len(got))
		}
		pass(allowancePer)
		c.Say(fleettest.Status(&fleetv1.Status{Backends: []*fleetv1.BackendStatus{backend("/", "x:1", down, "")}}))
		checkTold(t, told(), "node-in-trouble n1 it reported very much: 170 events are left out", "backend-down x:1 node n1; route /")
	})
}

func TestTheJournalHasNodesThatNeedTheWhole(t *testing.T) {
	chronicle(t, func(t *testing.T, f *Fleet, told func() []string) {
		base := newTarget(t, 1, map[string]string{"a": "1"})
		f.SetTarget(base)
		c := open(t, f, "n1", base.Release)
		defer c.Break()
		told()
		f.SetTarget(newTarget(t, 2, map[string]string{"a": "2"}))
		head, _ := hearOffer(t, c)
		c.Say(fleettest.NeedFull(head.GetNonce(), "the base is another"))
		checkTold(t, told(), "node-needs-full n1 the base is another")
	})
}
