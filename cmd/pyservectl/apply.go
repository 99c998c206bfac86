package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// applyFlags are what apply and rollback know.
type applyFlags struct {
	dryRun, detach bool
	message        string
	expect         uint64
	strategy       string
}

func newApplyCommand(s *settings) *cobra.Command {
	flags := applyFlags{}
	cmd := &cobra.Command{
		Use:   "apply FILE",
		Short: "Make a configuration the whole truth, on every node",
		Long: `Make a configuration the whole truth, on every node. FILE can be - for standard input.

Every connected node first prepares it; if one cannot, it is named with its reason and nothing changes anywhere. Then
all serve it, and apply returns 0. A node whose stream is gone is named, does not hold it up, and gets it when it
returns. What already runs is "unchanged" and makes no new revision.`,
		Example: `  pyservectl apply config.yaml
  pyservectl apply --dry-run config.yaml
  pyservectl apply --message "shop to v2" --expect-revision 7 config.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.check(); err != nil {
				return err
			}
			d, err := s.checked(cmd, args[0])
			if err != nil {
				return err
			}
			return s.apply(cmd, d, flags)
		},
	}
	flags.register(cmd)
	cmd.Flags().StringVar(&flags.strategy, "strategy", "", "how it is rolled out (not supported yet)")
	return cmd
}

// register adds the flags that a rollback has too.
func (flags *applyFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&flags.dryRun, "dry-run", false, "check and prepare on every node, and change nothing")
	f.BoolVar(&flags.detach, "detach", false, "return when it is stored; nodes follow")
	f.StringVar(&flags.message, "message", "", "what history says of it")
	f.Uint64Var(&flags.expect, "expect-revision", 0, "refuse unless this revision is active")
}

func (flags *applyFlags) check() error {
	if flags.strategy == "" {
		return nil
	}
	return fmt.Errorf("--strategy %s is not supported yet: leave it out, and the apply goes to all nodes at once", flags.strategy)
}

// applyOptions are those of one wish: a call that is made again carries the same, and is done once.
func (s *settings) applyOptions(flags applyFlags) *operatorv1.ApplyOptions {
	request := make([]byte, 16)
	rand.Read(request) // never fails: crypto/rand ends the process instead
	return &operatorv1.ApplyOptions{
		Message: flags.message, DryRun: flags.dryRun, ExpectRevision: flags.expect, Detach: flags.detach,
		Timeout: durationpb.New(s.timeout), RequestId: request,
	}
}

// twoPhases bounds a call. Control waits for nodes as long as --timeout in each of its two phases; its answer, which
// names who was late, is worth waiting for.
func (s *settings) twoPhases(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, 2*s.timeout+5*time.Second)
}

// applied is what an apply did, for programs.
type applied struct {
	Outcome  string         `json:"outcome"`
	Revision uint64         `json:"revision"`
	Digest   string         `json:"digest"`
	Reason   string         `json:"reason"`
	Problems []problem      `json:"problems"`
	Changes  []change       `json:"changes"`
	Nodes    []nodeProgress `json:"nodes"`
}

type nodeProgress struct {
	Name  string `json:"name"`
	Phase string `json:"phase"`
	Note  string `json:"note"`
}

func (s *settings) apply(cmd *cobra.Command, d *document, flags applyFlags) error {
	ctx, cancel := s.twoPhases(cmd.Context())
	defer cancel()
	requests := []*operatorv1.ApplyRequest{{Message: &operatorv1.ApplyRequest_Options{Options: s.applyOptions(flags)}}}
	for _, part := range d.parts() {
		requests = append(requests, &operatorv1.ApplyRequest{Message: &operatorv1.ApplyRequest_Part{Part: part}})
	}
	v := s.newApplyView(cmd, d.name)
	return s.insist(ctx, cmd.ErrOrStderr(), func(c *client) error {
		v.again()
		stream, err := c.Apply(ctx)
		if err != nil {
			return plain(err)
		}
		if err := send(stream, requests); err != nil {
			return err
		}
		return s.follow(cmd, stream, v)
	})
}

func send(stream operatorv1.Operator_ApplyClient, requests []*operatorv1.ApplyRequest) error {
	for _, request := range requests {
		// io.EOF: control has ended the call; Recv says why.
		if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
			return plain(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		return plain(err)
	}
	return nil
}

// telling is a call that tells what it does and ends with a result.
type telling interface {
	Recv() (*operatorv1.ApplyEvent, error)
}

// follow shows what a call tells until its result, which decides the exit code.
func (s *settings) follow(cmd *cobra.Command, stream telling, v *applyView) error {
	defer v.changes.end() // also where the call breaks off
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("control ended the call without a result")
		}
		if cmd.Context().Err() != nil {
			return errors.New("interrupted; pyservectl status tells which revision is active")
		}
		if err != nil {
			return plain(err)
		}
		if result := event.GetResult(); result != nil {
			return s.applyResult(v, result)
		}
		v.take(event)
	}
}

var outcomes = map[operatorv1.ApplyOutcome]string{
	operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED:    "applied",
	operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED:  "unchanged",
	operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED:    "refused",
	operatorv1.ApplyOutcome_APPLY_OUTCOME_INCOMPLETE: "incomplete",
	operatorv1.ApplyOutcome_APPLY_OUTCOME_DRY_RUN:    "dry-run",
	operatorv1.ApplyOutcome_APPLY_OUTCOME_DETACHED:   "detached",
}

func (s *settings) applyResult(v *applyView, r *operatorv1.ApplyResult) error {
	no := r.GetOutcome() == operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED || r.GetOutcome() == operatorv1.ApplyOutcome_APPLY_OUTCOME_INCOMPLETE
	if s.structured() {
		v.result.Outcome, v.result.Revision, v.result.Digest, v.result.Reason = outcomes[r.GetOutcome()], r.GetRevision(), r.GetDigest(), r.GetReason()
		if err := s.print(v.out, v.result); err != nil {
			return err
		}
	} else {
		v.finish(r)
	}
	if no {
		return errNo
	}
	return nil
}
