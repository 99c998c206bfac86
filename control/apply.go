package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/rollout"
	"github.com/pyserve/pyserve/control/store"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// Document is a document with the files that it names.
type Document struct {
	Data  []byte
	Files map[string][]byte
}

// Apply makes a document what the whole fleet serves. emit is told, from the calling goroutine, what happens on the
// way. What is refused is no error: the result says so, and nothing has changed. An error means that control could
// not do it, and it says whether the revision was stored.
func (c *Control) Apply(ctx context.Context, author string, document Document, o *operatorv1.ApplyOptions, emit func(*operatorv1.ApplyEvent)) (*operatorv1.ApplyResult, error) {
	resources, problems := config.Parse(document.Data, c.filesOf(document))
	for _, p := range problems {
		emit(&operatorv1.ApplyEvent{Event: &operatorv1.ApplyEvent_Problem{Problem: problemMessage(p)}})
	}
	if resources == nil {
		return c.refused("the document has errors"), nil
	}
	next, err := bundle.Encode(resources)
	if err != nil {
		return nil, fmt.Errorf("make a bundle of the document: %w", err)
	}
	done, err := c.awaitTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	request, err := requestID(o)
	if err != nil {
		return nil, err
	}
	if result, err := c.repeated(ctx, request, o, emit); result != nil || err != nil {
		return result, err
	}
	if reason := c.unexpected(o); reason != "" {
		return c.refused(reason), nil
	}
	if active := c.store.Active(); active != nil {
		if active.Bundle.Digest() == next.Digest() {
			return c.unchanged(ctx, o, emit)
		}
		next = next.Sharing(active.Bundle) // the fleet keeps some of them, to make deltas against
	}
	return c.advance(ctx, candidate{resources, next, document.Data, author, o.GetMessage(), false, request}, o, emit)
}

// awaitTurn waits until no other apply is under way, no backup is being restored and no control comes in. Until done is
// called, what is active does not change under the caller.
func (c *Control) awaitTurn(ctx context.Context) (done func(), err error) {
	select {
	case c.applying <- struct{}{}:
		done = func() { <-c.applying }
		if ctx.Err() != nil { // the caller is gone, or was revoked: a select draws by chance
			done()
			return nil, fmt.Errorf("nothing was changed: %w", context.Cause(ctx))
		}
		if err := c.current(ctx); err != nil {
			done()
			return nil, fmt.Errorf("nothing was changed: %w", err)
		}
		return done, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another apply to end: %w", context.Cause(ctx))
	}
}

// current returns when what this control reads is as new as anything that was ever stored.
func (c *Control) current(ctx context.Context) error {
	switch {
	case !c.store.Leads():
		return c.notLeading()
	case !c.Replicated():
		return nil // nobody else can have stored anything
	}
	if err := c.store.Sync(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrNotLeading, err)
	}
	return nil
}

// notLeading says why nothing is decided here: where there is no other control, only the disk can be the reason.
func (c *Control) notLeading() error {
	if trouble := c.store.Trouble(); trouble != nil && !c.Replicated() {
		return trouble
	}
	return ErrNotLeading
}

func requestID(o *operatorv1.ApplyOptions) (store.RequestID, error) {
	id, err := store.ParseRequestID(o.GetRequestId())
	if err != nil {
		return id, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return id, nil
}

// repeated answers a call that was made before and whose revision was stored: it makes no other one, and waits for the
// nodes as the first call would have. nil: it was not made before, or came to nothing.
func (c *Control) repeated(ctx context.Context, request store.RequestID, o *operatorv1.ApplyOptions, emit func(*operatorv1.ApplyEvent)) (*operatorv1.ApplyResult, error) {
	number, done := c.store.Result(request)
	if !done || request == (store.RequestID{}) {
		return nil, nil
	}
	if number != c.activeNumber() {
		reason := fmt.Sprintf("it was stored as revision %d, and revision %d has followed since", number, c.activeNumber())
		return c.result(operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, reason), nil
	}
	if err := c.awaitReturning(ctx); err != nil {
		return nil, fmt.Errorf("revision %d is stored and nodes follow: %w", number, err)
	}
	result, err := c.unchanged(ctx, o, emit)
	switch {
	case err != nil:
	case o.GetDetach():
		result.Outcome = operatorv1.ApplyOutcome_APPLY_OUTCOME_DETACHED
	case result.GetOutcome() == operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED:
		result.Outcome = operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED
	}
	return result, err
}

// unexpected says why the active revision is not the one that the caller expects, or nothing.
func (c *Control) unexpected(o *operatorv1.ApplyOptions) string {
	expected, active := o.GetExpectRevision(), c.activeNumber()
	if expected == 0 || expected == active {
		return ""
	}
	return fmt.Sprintf("revision %d is active, not %d as expected", active, expected)
}

func (c *Control) activeNumber() uint64 {
	if active := c.store.Active(); active != nil {
		return active.Number
	}
	return 0
}

// candidate is what shall become the next revision.
type candidate struct {
	resources       *config.Resources
	bundle          *bundle.Bundle
	document        []byte
	author, message string
	back            bool            // it is a rollback
	request         store.RequestID // zero: it is not repeated
}

// advance brings a candidate to the fleet and makes it the next revision, whatever the active one is. The caller has its
// turn.
func (c *Control) advance(ctx context.Context, next candidate, o *operatorv1.ApplyOptions, emit func(*operatorv1.ApplyEvent)) (*operatorv1.ApplyResult, error) {
	changes, err := c.changes(c.store.Active(), next.resources)
	if err != nil {
		return nil, err
	}
	for _, change := range changes {
		emit(&operatorv1.ApplyEvent{Event: &operatorv1.ApplyEvent_Change{Change: change}})
	}
	epoch, revision := c.store.Next()
	digest := next.bundle.Digest()
	target := &fleet.Target{Release: bundle.Sign(c.authority.ReleaseKey(), epoch, revision, digest), Bundle: next.bundle}

	audit.Describe(ctx, "revision %d, digest %s", revision, digest)
	plan, err := c.prepare(ctx, target, o, emit)
	if err != nil {
		return nil, err
	}
	if plan.Next() == rollout.Abort {
		c.fleet.Withdraw(target)
		result := c.refused(plan.Reason())
		if !o.GetDryRun() {
			c.tellOutcome(revision, next.author, result)
		}
		return result, nil
	}
	if o.GetDryRun() {
		c.fleet.Withdraw(target)
		return c.result(operatorv1.ApplyOutcome_APPLY_OUTCOME_DRY_RUN, ""), nil
	}
	if next.back {
		c.expectRollback(revision)
	}
	// A client that goes away now must not leave it open whether the revision was stored.
	_, err = c.store.Commit(context.WithoutCancel(ctx), store.Proposal{
		Release: target.Release, Parent: c.activeNumber(), Bundle: next.bundle, Document: next.document,
		Author: next.author, Message: next.message, Request: next.request,
	})
	if err != nil {
		c.fleet.Withdraw(target)
		if errors.Is(err, store.ErrConflict) {
			return c.refused("another apply came in between"), nil
		}
		return nil, fmt.Errorf("store revision %d (pyservectl status tells whether it was kept): %w", revision, err)
	}
	c.fleet.SetTarget(target)
	c.understand(next.resources, target)
	c.tellRevision(c.store.Active())
	c.options.Logger.Info("new revision", "revision", revision, "digest", digest.Short(), "author", next.author, "changes", len(changes))
	if o.GetDetach() {
		return c.result(operatorv1.ApplyOutcome_APPLY_OUTCOME_DETACHED, ""), nil
	}
	result, err := c.commit(ctx, plan, target, o, emit)
	c.tellOutcome(revision, next.author, result)
	return result, err
}

// prepare offers the target to every connected node and waits until each could serve it, one could not, or the time
// is up.
func (c *Control) prepare(ctx context.Context, target *fleet.Target, o *operatorv1.ApplyOptions, emit func(*operatorv1.ApplyEvent)) (*rollout.Rollout, error) {
	if err := c.awaitReturning(ctx); err != nil {
		return nil, fmt.Errorf("nothing was changed: %w", err)
	}
	changed, stop := c.fleet.Watch()
	defer stop()
	plan := rollout.New(c.fleet.Propose(target))
	for _, name := range plan.Names() {
		emit(progress(name, rollout.Offered, ""))
	}
	c.tellAway(plan, emit)
	// A node that commits cannot be seen before the target is set, so only what ends this phase can come.
	if err := c.drive(ctx, plan, target, changed, timeout(o), emit); err != nil {
		c.fleet.Withdraw(target)
		return nil, fmt.Errorf("nothing was changed: %w", err)
	}
	return plan, nil
}

// returnTime is how long after its own start control waits with an apply for nodes that it knows and that have not
// connected yet: they come back within their longest pause, 5 s, and an apply that went ahead would ask only some of
// them whether they can serve it. Where it begins to lead later, the nodes of the control that led before find another
// within their first pauses, and handOverTime is enough.
const (
	returnTime   = 6 * time.Second
	handOverTime = 1500 * time.Millisecond
)

// patience is how long to wait for nodes that may still come.
func (c *Control) patience() time.Duration {
	return max(returnTime-c.options.Now().Sub(c.started), c.controlPatience())
}

// controlPatience is how long to wait for controls, which look for the one that leads without long pauses.
func (c *Control) controlPatience() time.Duration {
	return handOverTime - c.options.Now().Sub(c.leading())
}

// leading gives since when this control, which leads, does: just now, where it has not noticed yet.
func (c *Control) leading() time.Time {
	if since := c.ledSince.Load(); since != 0 {
		return time.Unix(0, since)
	}
	return c.options.Now()
}

// awaitReturning waits, shortly after a start or an election, for the nodes that were there before it.
func (c *Control) awaitReturning(ctx context.Context) error {
	return c.awaitWord(ctx, c.patience(), func() bool { return len(c.away()) > 0 })
}

// awaitWord waits, no longer than limit, while somebody is missing who may be there and has not found this control yet.
func (c *Control) awaitWord(ctx context.Context, limit time.Duration, missing func() bool) error {
	changed, stop := c.fleet.Watch()
	defer stop()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for missing() {
		select {
		case <-changed:
		case <-timer.C:
			return nil
		case <-c.fleet.Closed():
			return fleet.ErrClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// unheard says whether a registered node may be connected to a control of which word has not come yet: since this one
// decides, it was neither enrolled nor seen to come or go.
func (c *Control) unheard(name string) bool {
	decides := c.started
	if c.Replicated() {
		decides = c.leading()
	}
	known, ok := c.store.Node(name)
	if !ok || known.Left || !known.Enrolled.Before(decides) {
		return false
	}
	node, seen := c.fleet.Node(name)
	return !seen || !node.Connected && node.Since.Before(decides)
}

// away gives the nodes that are known, have not left, and have no stream.
func (c *Control) away() []string {
	var names []string
	for _, node := range c.nodes() {
		if !node.Connected && !node.Left {
			names = append(names, node.Name)
		}
	}
	return names
}

// tellAway names the nodes that are not asked because they are not there.
func (c *Control) tellAway(plan *rollout.Rollout, emit func(*operatorv1.ApplyEvent)) {
	for _, name := range c.away() {
		if !slices.Contains(plan.Names(), name) {
			emit(progress(name, rollout.Away, c.fleet.WhyAway(name)))
		}
	}
}

// commit waits until every node of the plan serves the target.
func (c *Control) commit(ctx context.Context, plan *rollout.Rollout, target *fleet.Target, o *operatorv1.ApplyOptions, emit func(*operatorv1.ApplyEvent)) (*operatorv1.ApplyResult, error) {
	changed, stop := c.fleet.Watch()
	defer stop()
	plan.BeginCommit()
	if err := c.drive(ctx, plan, target, changed, timeout(o), emit); err != nil {
		return nil, fmt.Errorf("revision %d is stored and nodes follow: %w", target.Release.GetRevision(), err)
	}
	if !plan.Complete() {
		return c.result(operatorv1.ApplyOutcome_APPLY_OUTCOME_INCOMPLETE, plan.Reason()), nil
	}
	return c.result(operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, ""), nil
}

// gatherPerNode is how long answers are gathered, for each node that was asked, before they are looked at.
const gatherPerNode = 2 * time.Microsecond

// drive feeds the plan with what the fleet shows until it asks for more than waiting.
func (c *Control) drive(ctx context.Context, plan *rollout.Rollout, target *fleet.Target, changed <-chan struct{}, limit time.Duration, emit func(*operatorv1.ApplyEvent)) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	names := plan.Names()
	var seen []fleet.Seen
	for {
		seen = c.fleet.Look(names, target, seen[:0])
		for _, n := range seen {
			if plan.Observe(n.Name, n.State, n.Note) {
				emit(progress(n.Name, n.State, n.Note))
			}
		}
		select {
		case <-c.fleet.Closed():
			return fleet.ErrClosed // nodes are not away, control sent them away
		default:
		}
		if !c.store.Leads() {
			return c.notLeading() // nor those of other controls, which attend to another one now
		}
		if plan.Next() != rollout.Wait {
			return nil
		}
		select {
		case <-changed:
			// Not a look at all nodes for every node that answers: with 1,000 of them those looks alone would fill a core.
			pause(ctx, time.Duration(len(names))*gatherPerNode)
		case <-timer.C:
			for _, name := range plan.Expire() {
				_, note := plan.State(name)
				emit(progress(name, rollout.TimedOut, note))
			}
		case <-c.fleet.Closed():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// unchanged makes no revision, and yet tells the truth: it waits until the connected nodes serve what is active.
func (c *Control) unchanged(ctx context.Context, o *operatorv1.ApplyOptions, emit func(*operatorv1.ApplyEvent)) (*operatorv1.ApplyResult, error) {
	if o.GetDetach() || o.GetDryRun() { // nobody is asked, so that nothing is said of nodes
		result := c.result(operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED, "")
		result.Reason = activeAlready(result.GetRevision())
		return result, nil
	}
	c.target() // what another control stored may not have come to the fleet yet
	target := c.fleet.Target()
	var names []string
	for _, node := range c.fleet.Nodes() {
		if node.Connected {
			names = append(names, node.Name)
		}
	}
	plan := rollout.New(names)
	c.tellAway(plan, emit)
	result, err := c.commit(ctx, plan, target, o, emit)
	if err == nil && result.GetOutcome() == operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED {
		result.Outcome = operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED
	}
	return result, err
}

func activeAlready(revision uint64) string {
	return fmt.Sprintf("revision %d is active already", revision)
}

// Diff compares a document with a revision, 0 being the active one, and changes nothing.
func (c *Control) Diff(document Document, revision uint64) (*operatorv1.DiffResponse, error) {
	old := c.store.Active()
	if revision != 0 {
		var err error
		if old, err = c.revision(revision); err != nil {
			return nil, err
		}
	}
	resources, problems := config.Parse(document.Data, c.filesOf(document))
	m := &operatorv1.DiffResponse{}
	for _, p := range problems {
		m.Problems = append(m.Problems, problemMessage(p))
	}
	if old != nil {
		m.Revision = old.Number
	}
	if resources == nil {
		return m, nil
	}
	var err error
	m.Changes, err = c.changes(old, resources)
	return m, err
}

// changes is what a document would change of what is active.
func (c *Control) changes(active *store.Snapshot, next *config.Resources) ([]*operatorv1.Change, error) {
	current, err := c.meaning(active)
	if err != nil {
		return nil, err
	}
	var out []*operatorv1.Change
	for _, change := range config.Diff(current, next) {
		out = append(out, &operatorv1.Change{
			Action: changeActions[change.Action], Kind: string(change.Kind), Name: change.Name, Details: change.Details,
		})
	}
	return out, nil
}

var changeActions = map[config.Action]operatorv1.ChangeAction{
	config.Created: operatorv1.ChangeAction_CHANGE_ACTION_CREATED,
	config.Changed: operatorv1.ChangeAction_CHANGE_ACTION_CHANGED,
	config.Removed: operatorv1.ChangeAction_CHANGE_ACTION_REMOVED,
}

func (c *Control) refused(reason string) *operatorv1.ApplyResult {
	return c.result(operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED, reason)
}

// result is what a call ends with: its outcome, and what is active now.
func (c *Control) result(outcome operatorv1.ApplyOutcome, reason string) *operatorv1.ApplyResult {
	r := &operatorv1.ApplyResult{Outcome: outcome, Reason: reason}
	if active := c.store.Active(); active != nil {
		r.Revision, r.Digest = active.Number, active.Bundle.Digest().String()
	}
	return r
}

var nodePhases = map[rollout.State]operatorv1.NodePhase{
	rollout.Offered:   operatorv1.NodePhase_NODE_PHASE_OFFERED,
	rollout.Prepared:  operatorv1.NodePhase_NODE_PHASE_PREPARED,
	rollout.Committed: operatorv1.NodePhase_NODE_PHASE_COMMITTED,
	rollout.Refused:   operatorv1.NodePhase_NODE_PHASE_REFUSED,
	rollout.Away:      operatorv1.NodePhase_NODE_PHASE_AWAY,
	rollout.TimedOut:  operatorv1.NodePhase_NODE_PHASE_TIMED_OUT,
}

func progress(name string, state rollout.State, note string) *operatorv1.ApplyEvent {
	return &operatorv1.ApplyEvent{Event: &operatorv1.ApplyEvent_Node{
		Node: &operatorv1.NodeProgress{Name: name, Phase: nodePhases[state], Note: note},
	}}
}

func problemMessage(p config.Problem) *operatorv1.Problem {
	// Messages can quote a document's bytes, and a gRPC string is UTF-8.
	return &operatorv1.Problem{
		Line: uint32(max(p.Line, 0)), Path: strings.ToValidUTF8(p.Path, "\uFFFD"),
		Message: strings.ToValidUTF8(p.Message, "\uFFFD"), Warning: p.Warning,
	}
}

// defaultTimeout bounds each of the two phases of an apply.
const defaultTimeout = 60 * time.Second

func timeout(o *operatorv1.ApplyOptions) time.Duration {
	if d := o.GetTimeout().AsDuration(); d > 0 {
		return d
	}
	return defaultTimeout
}
