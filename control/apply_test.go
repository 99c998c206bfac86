package control

import (
	"context"
	"crypto/ed25519"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

const (
	appliedOutcome = operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED
	unchanged      = operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED
	refused        = operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED
	incomplete     = operatorv1.ApplyOutcome_APPLY_OUTCOME_INCOMPLETE
	dryRun         = operatorv1.ApplyOutcome_APPLY_OUTCOME_DRY_RUN
	detached       = operatorv1.ApplyOutcome_APPLY_OUTCOME_DETACHED
)

// soon is a phase's time where a test waits for it to be up.
func soon() *operatorv1.ApplyOptions {
	return &operatorv1.ApplyOptions{Timeout: durationpb.New(100 * time.Millisecond)}
}

func refusing(reason string) func(*fleetv1.Release) []*fleetv1.Refusal {
	return func(*fleetv1.Release) []*fleetv1.Refusal {
		return []*fleetv1.Refusal{fleettest.Refusal("server.port", reason)}
	}
}

func TestApplyReachesEveryNode(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	nodes := []*fleettest.Node{{Name: "n1"}, {Name: "n2"}, {Name: "n3"}}
	join(t, c, nodes...)
	result, s := apply(t, c, document(1, 2), &operatorv1.ApplyOptions{Message: "first"})
	checkOutcome(t, result, appliedOutcome, 1, "")
	untouched(t, c, 1, nodes...)
	if got := s.of("created"); !slices.Equal(got, []string{"listener default", "route /p1", "route /p2"}) {
		t.Errorf("created %v", got)
	}
	for _, n := range nodes {
		// Prepared may be passed between two looks; serving is always told.
		if got := s.of(n.Name); got[0] != "offered" || got[len(got)-1] != "committed" {
			t.Errorf("of %s was told %v", n.Name, got)
		}
	}
	revision := c.store.Revisions()[0]
	if revision.Author != "admin" || revision.Message != "first" || revision.Digest.String() != result.GetDigest() {
		t.Errorf("history has %+v", revision)
	}
	if !c.Status().GetConverged() {
		t.Errorf("not converged after the apply returned: %v", c.Status())
	}
	if err := bundle.Verify(c.authority.ReleaseKey().Public().(ed25519.PublicKey), nodes[0].Applied(), c.store.Active().Bundle); err != nil {
		t.Errorf("what the node was given is not signed: %v", err)
	}
}

func TestApplyOfABadDocument(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n := &fleettest.Node{Name: "n1"}
	join(t, c, n)
	applied(t, c, document(1))
	for name, d := range map[string]Document{
		"not YAML":          {Data: []byte("server: [")},
		"empty":             {},
		"binary":            {Data: []byte{0, 0xff, 0xfe, '\n'}},
		"two errors":        {Data: []byte("server:\n  port: high\n  reverse_proxy:\n    - {path: /, port: 0}\n")},
		"file not sent":     {Data: []byte("server: {port: 8080, reverse_proxy: [{path: /}]}\nssl: {enabled: true, cert_file: c.pem, key_file: k.pem}\n")},
		"file is not a key": {Data: []byte("server: {port: 8080, reverse_proxy: [{path: /}]}\nssl: {enabled: true, cert_file: c.pem, key_file: k.pem}\n"), Files: map[string][]byte{"c.pem": []byte("x"), "k.pem": []byte("y")}},
	} {
		t.Run(name, func(t *testing.T) {
			result, s := apply(t, c, d, nil)
			checkOutcome(t, result, refused, 1, "the document has errors")
			if len(s.of("problem")) == 0 || len(s.of("created")) > 0 || len(s.of("n1")) > 0 {
				t.Errorf("told %v", s)
			}
			untouched(t, c, 1, n)
		})
	}
}

func TestApplyOfWhatRunsMakesNoRevision(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n := &fleettest.Node{Name: "n1"}
	join(t, c, n)
	applied(t, c, document(1))
	result, s := apply(t, c, document(1), nil)
	checkOutcome(t, result, unchanged, 1, "")
	if !slices.Equal(s, story{"n1 committed"}) {
		t.Errorf("told %v", s)
	}
	same := document(1)
	same.Data = append([]byte("# a comment\n"), same.Data...)
	result, _ = apply(t, c, same, nil)
	checkOutcome(t, result, unchanged, 1, "")
	for _, o := range []*operatorv1.ApplyOptions{{DryRun: true}, {Detach: true}} {
		result, _ = apply(t, c, document(1), o)
		checkOutcome(t, result, unchanged, 1, "")
	}
	untouched(t, c, 1, n)
}

// "Unchanged" must not hide that a node does not serve it.
func TestApplyOfWhatRunsTellsWhoDoesNotServeIt(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	applied(t, c, document(1))
	n := &fleettest.Node{Name: "n1", Refuse: refusing("in use")}
	join(t, c, n)
	eventually(t, "refused", func() bool { return c.Status().GetNodes()[0].GetState() == "rejected" })
	result, _ := apply(t, c, document(1), nil)
	checkOutcome(t, result, incomplete, 1, "node n1 refuses it: server.port: in use")
}

func TestApplyExpectsARevision(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n := &fleettest.Node{Name: "n1"}
	join(t, c, n)
	result, _ := apply(t, c, document(1), &operatorv1.ApplyOptions{ExpectRevision: 1})
	checkOutcome(t, result, refused, 0, "revision 0 is active, not 1 as expected")
	untouched(t, c, 0, n)
	applied(t, c, document(1))
	result, s := apply(t, c, document(2), &operatorv1.ApplyOptions{ExpectRevision: 7})
	checkOutcome(t, result, refused, 1, "revision 1 is active, not 7 as expected")
	if len(s) > 0 {
		t.Errorf("told %v", s)
	}
	result, _ = apply(t, c, document(1), &operatorv1.ApplyOptions{ExpectRevision: 7}) // also where nothing would change
	checkOutcome(t, result, refused, 1, "")
	result, _ = apply(t, c, document(2), &operatorv1.ApplyOptions{ExpectRevision: 1})
	checkOutcome(t, result, appliedOutcome, 2, "")
}

func TestDryRunPreparesEverywhereAndChangesNothing(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	good, bad := &fleettest.Node{Name: "good"}, &fleettest.Node{Name: "bad"}
	join(t, c, good)
	applied(t, c, document(1))
	result, s := apply(t, c, document(2), &operatorv1.ApplyOptions{DryRun: true})
	checkOutcome(t, result, dryRun, 1, "")
	if got := s.of("good"); !slices.Equal(got, []string{"offered", "prepared"}) {
		t.Errorf("told %v", got)
	}
	if len(s.of("created")) != 1 || len(s.of("removed")) != 1 {
		t.Errorf("told %v", s)
	}
	untouched(t, c, 1, good)
	released(t, good)
	join(t, c, bad)
	eventually(t, "serving", func() bool { return bad.Applied() != nil })
	bad.SetRefuse(refusing("in use"))
	result, _ = apply(t, c, document(2), &operatorv1.ApplyOptions{DryRun: true})
	checkOutcome(t, result, refused, 1, "node bad refuses it: server.port: in use")
	untouched(t, c, 1, good, bad)
}

func TestRefusalByOneNodeLeavesEverythingAsItWas(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	good, bad := &fleettest.Node{Name: "good"}, &fleettest.Node{Name: "bad"}
	join(t, c, good, bad)
	applied(t, c, document(1))
	bad.SetRefuse(refusing("in use"))
	result, s := apply(t, c, document(2), nil)
	checkOutcome(t, result, refused, 1, "node bad refuses it: server.port: in use")
	if got := s.of("bad"); !slices.Equal(got, []string{"offered", "refused: server.port: in use"}) {
		t.Errorf("of bad was told %v", got)
	}
	untouched(t, c, 1, good, bad)
	released(t, good)
	// Everybody serves what is active, and status remembers the refusal.
	status := c.Status()
	if !status.GetConverged() || !strings.HasPrefix(status.GetNodes()[0].GetNote(), "refused revision 2, which nobody serves") {
		t.Errorf("the status is %v", status)
	}
	bad.SetRefuse(nil)
	result, _ = apply(t, c, document(3), nil)
	checkOutcome(t, result, appliedOutcome, 2, "")
	untouched(t, c, 2, good, bad)
}

func TestDetachedApplyDoesNotWaitForCommits(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	slow := &fleettest.Node{Name: "slow", MuteCommits: true}
	join(t, c, slow)
	result, s := apply(t, c, document(1), &operatorv1.ApplyOptions{Detach: true})
	checkOutcome(t, result, detached, 1, "")
	if got := s.of("slow"); got[len(got)-1] != "prepared" {
		t.Errorf("told %v", got)
	}
	if c.Status().GetConverged() {
		t.Error("converged though the node serves nothing")
	}
}

func TestNodeThatIsAwayDoesNotHoldUpAnApply(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	here, goes := &fleettest.Node{Name: "here"}, &fleettest.Node{Name: "goes", Mute: true}
	join(t, c, here, goes)
	var s story
	result, err := c.Apply(t.Context(), "admin", document(1), nil, func(e *operatorv1.ApplyEvent) {
		if s.emit(e); e.GetNode().GetName() == "here" && e.GetNode().GetPhase() == operatorv1.NodePhase_NODE_PHASE_PREPARED {
			goes.Close()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	checkOutcome(t, result, appliedOutcome, 1, "")
	if got := s.of("goes"); !slices.Equal(got, []string{"offered", "away: its stream is gone"}) {
		t.Errorf("told %v", got)
	}
}

func TestApplyWithoutANode(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	result, _ := apply(t, c, document(1), nil)
	checkOutcome(t, result, appliedOutcome, 1, "")
	n := &fleettest.Node{Name: "late"}
	join(t, c, n)
	eventually(t, "converged", func() bool { return c.Status().GetConverged() })
}

func TestTimeoutOfThePreparePhaseNamesTheNodeAndChangesNothing(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	good, slow := &fleettest.Node{Name: "good"}, &fleettest.Node{Name: "slow", Mute: true}
	join(t, c, good, slow)
	result, s := apply(t, c, document(1), soon())
	checkOutcome(t, result, refused, 0, "node slow did not say in time whether it can serve the revision")
	if got := s.of("slow"); got[len(got)-1] != "timed_out: did not say in time whether it can serve the revision" {
		t.Errorf("told %v", got)
	}
	untouched(t, c, 0, good, slow)
	released(t, good, slow)
}

func TestTimeoutOfTheCommitPhaseNamesTheNodeAndKeepsTheRevision(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	good, slow := &fleettest.Node{Name: "good"}, &fleettest.Node{Name: "slow", MuteCommits: true}
	join(t, c, good, slow)
	result, _ := apply(t, c, document(1), soon())
	checkOutcome(t, result, incomplete, 1, "node slow did not confirm in time that it serves the revision")
	untouched(t, c, 1, good)
	if row := c.Status().GetNodes()[1]; row.GetName() != "slow" || row.GetState() != "joining" {
		t.Errorf("status shows %v", row)
	}
}

func TestNodeThatLiesMakesTheApplyIncomplete(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	join(t, c, &fleettest.Node{Name: "liar", Lie: true})
	result, _ := apply(t, c, document(1), nil)
	checkOutcome(t, result, incomplete, 1, "node liar refuses it: says that it serves another bundle")
}

func TestClientThatGoesAwayWhileNodesPrepareLeavesNothing(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	good, slow := &fleettest.Node{Name: "good"}, &fleettest.Node{Name: "slow", Mute: true}
	join(t, c, good, slow)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Apply(ctx, "admin", document(1), nil, func(e *operatorv1.ApplyEvent) {
		if e.GetNode().GetPhase() == operatorv1.NodePhase_NODE_PHASE_PREPARED {
			cancel()
		}
	})
	errorIs(t, err, context.Canceled)
	if err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("the error is %v", err)
	}
	untouched(t, c, 0, good, slow)
	released(t, good, slow)
	// The place is free for the next.
	slow.Close()
	applied(t, c, document(2))
}

func TestClientThatGoesAwayWhileNodesCommitIsToldThatItIsStored(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n := &fleettest.Node{Name: "n1", MuteCommits: true}
	join(t, c, n)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := c.Apply(ctx, "admin", document(1), nil, func(*operatorv1.ApplyEvent) {})
		ended <- err
	}()
	eventually(t, "commit", func() bool { return contains(n.Log(), "commit") })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "revision 1 is stored") {
		t.Errorf("the error is %v", err)
	}
	if c.store.Active().Number != 1 || c.fleet.Target().Release.GetRevision() != 1 {
		t.Error("the revision is not active")
	}
}

// An apply that was waiting for its turn can be given up too.
func TestClientThatGoesAwayWhileAnotherApplyRuns(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	slow := &fleettest.Node{Name: "slow", Mute: true}
	join(t, c, slow)
	var running sync.WaitGroup
	running.Go(func() { c.Apply(t.Context(), "admin", document(1), nil, func(*operatorv1.ApplyEvent) {}) })
	eventually(t, "offered", func() bool { return len(slow.Log()) > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := c.Apply(ctx, "admin", document(2), nil, func(*operatorv1.ApplyEvent) {})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "wait for another apply") {
		t.Errorf("the error is %v", err)
	}
	slow.Close()
	running.Wait()
	untouched(t, c, 0) // its only node went away before it had said that it can serve it
}

// Nodes whose streams control itself ends are not away: without this, a control that is told to stop would take the
// silence of all nodes for their consent.
func TestApplyDuringTheStopOfControlChangesNothing(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n := &fleettest.Node{Name: "n1", Mute: true}
	join(t, c, n)
	_, err := c.Apply(t.Context(), "admin", document(1), nil, func(e *operatorv1.ApplyEvent) {
		if e.GetNode() != nil {
			c.EndStreams()
		}
	})
	errorIs(t, err, fleet.ErrClosed)
	_, err = c.Apply(t.Context(), "admin", document(2), nil, func(*operatorv1.ApplyEvent) {})
	errorIs(t, err, fleet.ErrClosed)
	untouched(t, c, 0, n)
	select {
	case <-c.StreamsEnded():
	default:
		t.Error("StreamsEnded is not closed")
	}
}

func TestAppliesAtOnceAreOneAfterAnother(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	nodes := []*fleettest.Node{{Name: "n1"}, {Name: "n2"}}
	join(t, c, nodes...)
	const many = 8
	results := make([]*operatorv1.ApplyResult, many)
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() {
			var err error
			results[i], err = c.Apply(t.Context(), "admin", document(1000+i), nil, func(*operatorv1.ApplyEvent) {})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	seen := map[uint64]bool{}
	for _, r := range results {
		if r.GetOutcome() != appliedOutcome || seen[r.GetRevision()] {
			t.Errorf("got %v", r)
		}
		seen[r.GetRevision()] = true
	}
	untouched(t, c, many, nodes...)
}

func TestDiffComparesByMeaningAndChangesNothing(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	m, err := c.Diff(document(1), 0)
	if err != nil || m.GetRevision() != 0 || len(m.GetChanges()) != 2 {
		t.Errorf("against nothing: %v, %v", m, err)
	}
	applied(t, c, document(1))
	if m, err = c.Diff(document(1), 0); err != nil || m.GetRevision() != 1 || len(m.GetChanges()) != 0 {
		t.Errorf("against itself: %v, %v", m, err)
	}
	m, err = c.Diff(document(2), 0)
	if err != nil || len(m.GetChanges()) != 2 || m.GetChanges()[0].GetKind() != "route" {
		t.Errorf("against another: %v, %v", m, err)
	}
	m, err = c.Diff(Document{Data: []byte("server: {prot: 1}")}, 0)
	if err != nil || len(m.GetProblems()) == 0 || len(m.GetChanges()) != 0 || m.GetRevision() != 1 {
		t.Errorf("of a bad document: %v, %v", m, err)
	}
	untouched(t, c, 1)
}

func TestProblemsQuoteNoBytesThatAMessageCannotCarry(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	var problems []*operatorv1.Problem
	_, err := c.Apply(t.Context(), "admin", Document{Data: []byte("server: {\"\xff\": 1}")}, nil, func(e *operatorv1.ApplyEvent) {
		problems = append(problems, e.GetProblem())
	})
	if err != nil || len(problems) == 0 {
		t.Fatalf("got %v, %v", problems, err)
	}
	for _, p := range problems {
		if strings.ToValidUTF8(p.GetMessage()+p.GetPath(), "") != p.GetMessage()+p.GetPath() {
			t.Errorf("%q is not UTF-8", p.GetMessage())
		}
	}
}

func TestNodesThatAreAwayAreNamedAndNotWaitedFor(t *testing.T) {
	var later atomic.Bool // the time in which nodes return after a start is over
	options := optionsFor(t.TempDir())
	options.Now = func() time.Time {
		if later.Load() {
			return time.Now().Add(returnTime)
		}
		return time.Now()
	}
	c := start(t, options)
	here, gone := &fleettest.Node{Name: "here"}, &fleettest.Node{Name: "gone"}
	join(t, c, here)
	join(t, c, gone)
	gone.Close()
	eventually(t, "gone", func() bool { return !c.fleet.Connected("gone") })
	later.Store(true)
	for _, outcome := range []operatorv1.ApplyOutcome{operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED} {
		phases := map[string]operatorv1.NodePhase{}
		result, err := c.Apply(t.Context(), "admin", document(1), nil, func(e *operatorv1.ApplyEvent) {
			if n := e.GetNode(); n != nil {
				phases[n.GetName()] = n.GetPhase()
			}
		})
		if err != nil || result.GetOutcome() != outcome {
			t.Fatalf("got %v, %v", result, err)
		}
		if phases["here"] != operatorv1.NodePhase_NODE_PHASE_COMMITTED || phases["gone"] != operatorv1.NodePhase_NODE_PHASE_AWAY {
			t.Errorf("%v: the nodes are told as %v", outcome, phases)
		}
	}
}

// An apply right after a start asks the nodes that were there before, once they are back.
func TestApplyAfterAStartWaitsForNodesToReturn(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n := &fleettest.Node{Name: "n1"}
	join(t, c, n)
	n.Close()
	eventually(t, "gone", func() bool { return !c.fleet.Connected("n1") })
	ended := make(chan *operatorv1.ApplyResult, 1)
	go func() {
		result, _ := c.Apply(t.Context(), "admin", document(1), nil, func(*operatorv1.ApplyEvent) {})
		ended <- result
	}()
	back := &fleettest.Node{Name: "n1"}
	join(t, c, back)
	if result := <-ended; result.GetOutcome() != operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED {
		t.Fatalf("got %v", result)
	}
	if !contains(back.Log(), "commit") {
		t.Errorf("the node that came back was told %v", back.Log())
	}
}

func TestApplyOfWhatAnotherControlHasJustStoredWaitsForIt(t *testing.T) {
	o := optionsFor(t.TempDir())
	held, free := make(chan struct{}), make(chan struct{})
	defer close(free)
	o.Replication.Seeds = func([]string) { // by whoever brings what is stored to the fleet
		close(held)
		<-free
	}
	c := start(t, o)
	n1 := &fleettest.Node{Name: "n1"}
	join(t, c, n1)
	applied(t, c, document(1))
	first := c.store.Active()
	applied(t, c, document(2))
	err := c.store.PutServer(t.Context(), store.Server{
		ID: "c2", Name: "c2", RaftAddress: "127.0.0.1:1", Endpoint: "127.0.0.1:2", GossipAddress: "127.0.0.1:3", Joined: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	<-held
	epoch, revision := c.store.Next()
	_, err = c.store.Commit(t.Context(), store.Proposal{
		Release: bundle.Sign(c.authority.ReleaseKey(), epoch, revision, first.Digest), Parent: 2, Bundle: first.Bundle, Document: first.Document,
	})
	if err != nil {
		t.Fatal(err)
	}
	result, _ := apply(t, c, document(1), nil)
	checkOutcome(t, result, unchanged, 3, "")
	if got := n1.Applied().GetRevision(); got != 3 {
		t.Errorf("the node serves revision %d", got)
	}
}

func TestSameRequestMakesOneRevision(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n := &fleettest.Node{Name: "n1"}
	join(t, c, n)
	request := store.NewRequestID()
	once := &operatorv1.ApplyOptions{RequestId: request[:]}
	result, _ := apply(t, c, document(1), once)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, 1, "")
	result, s := apply(t, c, document(1), once)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, 1, "")
	if got := s.of("n1"); !slices.Equal(got, []string{"committed"}) {
		t.Errorf("the second time n1 is told to be %v", got)
	}
	// Another revision has followed: what was asked for is not made again over it.
	applied(t, c, document(2))
	result, _ = apply(t, c, document(1), once)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, 2, "it was stored as revision 1, and revision 2 has followed since")
	untouched(t, c, 2, n)
	if _, err := c.Apply(t.Context(), "admin", document(3), &operatorv1.ApplyOptions{RequestId: []byte("short")}, s.emit); !errors.Is(err, ErrInvalid) {
		t.Errorf("a request id of 5 bytes: %v", err)
	}
}
