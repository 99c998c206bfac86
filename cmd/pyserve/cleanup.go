package main

import (
	"context"
	"errors"
	"slices"
)

// cleanups undo what a start did, last first. Each is registered the moment there is something to undo.
type cleanups []func(context.Context) error

func (c *cleanups) add(undo func(context.Context) error) { *c = append(*c, undo) }

// run undoes everything; ctx bounds how long what is graceful may take.
func (c *cleanups) run(ctx context.Context) error {
	var problems []error
	for _, undo := range slices.Backward(*c) {
		problems = append(problems, undo(ctx))
	}
	*c = nil
	return errors.Join(problems...)
}
