package control

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/control/store"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// ErrNoRevision says that a revision is not there, or not kept whole.
var ErrNoRevision = errors.New("pyservectl history lists what there is")

// History gives the revisions, newest first; no more than limit, where that is not 0.
func (c *Control) History(limit int) []*operatorv1.RevisionSummary {
	revisions := c.store.Revisions()
	if limit > 0 {
		revisions = revisions[:min(limit, len(revisions))]
	}
	out := make([]*operatorv1.RevisionSummary, 0, len(revisions))
	for _, r := range revisions {
		out = append(out, &operatorv1.RevisionSummary{
			Revision: r.Number, Digest: r.Digest.String(), Parent: r.Parent, Author: r.Author, Message: r.Message,
			Created: timestamppb.New(r.Created), Active: r.Active, Whole: r.Release != nil,
		})
	}
	return out
}

// Document gives the document of a revision; of 0, that of the active one, and revision 0 where there is none.
func (c *Control) Document(number uint64) (document []byte, revision uint64, digest string, err error) {
	of := c.store.Active()
	switch {
	case number != 0:
		if of, err = c.revision(number); err != nil {
			return nil, 0, "", err
		}
	case of == nil:
		return nil, 0, "", nil
	}
	return of.Document, of.Number, of.Bundle.Digest().String(), nil
}

// revision gives a revision whole. What is not there is ErrNoRevision.
func (c *Control) revision(number uint64) (*store.Snapshot, error) {
	found, err := c.store.Get(number)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, fmt.Errorf("there is no revision %d; %w", number, ErrNoRevision)
	case errors.Is(err, store.ErrNotKept):
		return nil, fmt.Errorf("revision %d is so old that only its line in the history is kept; %w", number, ErrNoRevision)
	}
	return found, err
}

// Rollback makes what an earlier revision held a new revision, in the same two phases as [Control.Apply]. Number 0 is
// the revision before the active one. Going back to the active revision changes nothing; going back to another whose
// content is the same makes a revision all the same, since somebody wanted it in the history.
func (c *Control) Rollback(ctx context.Context, author string, number uint64, o *operatorv1.ApplyOptions, emit func(*operatorv1.ApplyEvent)) (*operatorv1.ApplyResult, error) {
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
	active := c.store.Active()
	if number == 0 && active != nil {
		number = active.Parent
	}
	switch {
	case active == nil:
		return c.refused("nothing was applied yet"), nil
	case number == 0:
		return c.refused(fmt.Sprintf("there is no revision before revision %d", active.Number)), nil
	case number == active.Number:
		result, err := c.unchanged(ctx, o, emit)
		if result.GetOutcome() == operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED {
			result.Reason = activeAlready(number)
		}
		return result, err
	}
	old, err := c.revision(number)
	if errors.Is(err, ErrNoRevision) {
		return c.refused(err.Error()), nil
	}
	if err != nil {
		return nil, err
	}
	next, err := again(old, author, o.GetMessage())
	if err != nil {
		return nil, err
	}
	next.request = request
	return c.advance(ctx, next, o, emit)
}

// again makes a candidate of an old revision.
func again(old *store.Snapshot, author, message string) (candidate, error) {
	resources, err := old.Bundle.Decode()
	if err != nil {
		return candidate{}, fmt.Errorf("decode the bundle of revision %d: %w", old.Number, err)
	}
	if message == "" {
		message = fmt.Sprintf("rollback to revision %d", old.Number)
	}
	return candidate{
		resources: resources, bundle: old.Bundle, document: old.Document, author: author, message: message, back: true,
	}, nil
}
