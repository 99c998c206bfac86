package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// revisionOutput is the stable form for programs.
type revisionOutput struct {
	Revision uint64 `json:"revision"`
	Digest   string `json:"digest"`
	Parent   uint64 `json:"parent"`
	Author   string `json:"author"`
	Message  string `json:"message"`
	Created  string `json:"created"`
	Active   bool   `json:"active"`
	Whole    bool   `json:"whole"`
}

func newHistoryCommand(s *settings) *cobra.Command {
	limit := uint32(0)
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Every revision, the newest first",
		Long: `Every revision, the newest first: what was applied or gone back to, when, by whom and why. The last 200 are kept
whole and can be gone back to; of older ones only the line is kept.`,
		Example: `  pyservectl history
  pyservectl history --limit 10 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.connected(cmd, func(ctx context.Context, c *client) error { return s.history(ctx, c, limit, cmd.OutOrStdout()) })
		},
	}
	cmd.Flags().Uint32Var(&limit, "limit", 0, "how many of the newest; 0: all")
	return cmd
}

func (s *settings) history(ctx context.Context, c *client, limit uint32, out io.Writer) error {
	revisions := []revisionOutput{}
	stream, err := c.ListRevisions(ctx, &operatorv1.ListRevisionsRequest{Limit: limit})
	err = each(stream, err, func(m *operatorv1.ListRevisionsResponse) {
		for _, r := range m.GetRevisions() {
			revisions = append(revisions, revisionOutput{
				r.GetRevision(), r.GetDigest(), r.GetParent(), r.GetAuthor(), r.GetMessage(),
				r.GetCreated().AsTime().Format(time.RFC3339), r.GetActive(), r.GetWhole(),
			})
		}
	})
	if err != nil {
		return err
	}
	return s.printHistory(out, revisions)
}

func (s *settings) printHistory(out io.Writer, revisions []revisionOutput) error {
	switch s.output {
	case "json", "yaml":
		return s.print(out, map[string]any{"revisions": revisions})
	case "name":
		for _, r := range revisions {
			fmt.Fprintln(out, r.Revision)
		}
		return nil
	}
	if len(revisions) == 0 {
		_, err := fmt.Fprintln(out, "nothing was applied yet: pyservectl apply FILE")
		return err
	}
	var rows [][]string
	for _, r := range revisions {
		digest := short(r.Digest)
		if s.output == "wide" {
			digest = r.Digest
		}
		rows = append(rows, []string{r.label(), digest, r.Author, r.Created, r.Message})
	}
	return table(out, []string{"REVISION", "DIGEST", "AUTHOR", "CREATED", "MESSAGE"}, rows)
}

// label is the number, with what is particular about it.
func (r revisionOutput) label() string {
	number := strconv.FormatUint(r.Revision, 10)
	switch {
	case r.Active:
		return number + " (active)"
	case !r.Whole:
		return number + " (line only)"
	}
	return number
}

func newRollbackCommand(s *settings) *cobra.Command {
	flags := applyFlags{}
	cmd := &cobra.Command{
		Use:   "rollback [REV]",
		Short: "Make what an earlier revision held what every node serves",
		Long: `Make what an earlier revision held what every node serves; without REV, the revision before the active one.

It is a new revision with old content, brought to all nodes as an apply is: first every connected node prepares it, and
one that cannot stops it. What came in between stays in the history, so that a rollback can be rolled back.`,
		Example: `  pyservectl rollback
  pyservectl rollback 7 --message "shop v2 loses carts"
  pyservectl rollback 7 --dry-run`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			revision, err := revisionArgument(args)
			if err != nil {
				return err
			}
			return s.rollback(cmd, revision, flags)
		},
	}
	flags.register(cmd)
	cmd.Flags().Lookup("message").Usage = `what history says of it (default "rollback to revision REV")`
	return cmd
}

// revisionArgument reads REV; 0: there is none.
func revisionArgument(args []string) (uint64, error) {
	if len(args) == 0 {
		return 0, nil
	}
	revision, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil || revision == 0 {
		return 0, fmt.Errorf("%q is not a revision: write its number, as pyservectl history shows it", args[0])
	}
	return revision, nil
}

func (s *settings) rollback(cmd *cobra.Command, revision uint64, flags applyFlags) error {
	ctx, cancel := s.twoPhases(cmd.Context())
	defer cancel()
	request, v := &operatorv1.RollbackRequest{Revision: revision, Options: s.applyOptions(flags)}, s.newApplyView(cmd, "")
	return s.insist(ctx, cmd.ErrOrStderr(), func(c *client) error {
		v.again()
		stream, err := c.Rollback(ctx, request)
		if err != nil {
			return plain(err)
		}
		return s.follow(cmd, stream, v)
	})
}
