package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func newAuthorityCommand(s *settings) *cobra.Command {
	finish := false
	rotate := &cobra.Command{
		Use:   "rotate",
		Short: "Put another certificate authority in the place of the one that there is",
		Long: `Put another certificate authority in the place of the one that there is, in two steps. Traffic is not touched.

"ca rotate" makes the new authority, which issues certificates from then on, and waits until every connected node has one
by it. Both are believed meanwhile, for as long as you like.

"ca rotate --finish" drops the old one. Before that, bring back nodes that are away, and give people new contexts: contexts
that the old authority issued are of no use afterwards, nor are tokens that were made before the rotation began. Control
writes its own admin.yaml and token files anew by itself.`,
		Example: `  pyservectl ca rotate
  pyservectl ca status
  pyservectl ca rotate --finish`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				if finish {
					return s.finishRotation(ctx, cmd, c)
				}
				return s.rotate(ctx, cmd, c)
			})
		},
	}
	rotate.Flags().BoolVar(&finish, "finish", false, "drop the old authority")
	status := &cobra.Command{
		Use: "status", Short: "Which authority issues certificates, and who has none by it yet", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				m, err := c.GetAuthority(ctx, &operatorv1.GetAuthorityRequest{})
				if err != nil {
					return plain(err)
				}
				return s.printAuthority(cmd.OutOrStdout(), m.GetAuthority())
			})
		},
	}
	return group("ca", "Replace the cluster's certificate authority", "  pyservectl ca rotate\n  pyservectl ca rotate --finish", rotate, status)
}

// rotationPause is between two looks at how far the nodes are.
const rotationPause = 500 * time.Millisecond

// rotate begins, and waits until every connected node has a certificate by the new authority.
func (s *settings) rotate(ctx context.Context, cmd *cobra.Command, c operatorv1.AccessClient) error {
	began, err := c.RotateAuthority(ctx, &operatorv1.RotateAuthorityRequest{})
	if err != nil {
		return plain(err)
	}
	now := began.GetAuthority()
	ticker := time.NewTicker(rotationPause)
	defer ticker.Stop()
	for len(now.GetPendingNodes()) > 0 {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if err := s.printAuthority(cmd.OutOrStdout(), now); err != nil {
				return err
			}
			return errNo
		}
		m, err := c.GetAuthority(ctx, &operatorv1.GetAuthorityRequest{})
		switch {
		case ctx.Err() != nil:
		case err != nil:
			return fmt.Errorf("the rotation has begun and goes on: %w", plain(err))
		default:
			now = m.GetAuthority()
		}
	}
	return s.printAuthority(cmd.OutOrStdout(), now)
}

func (s *settings) finishRotation(ctx context.Context, cmd *cobra.Command, c operatorv1.AccessClient) error {
	m, err := c.FinishRotation(ctx, &operatorv1.FinishRotationRequest{})
	if err != nil {
		return plain(err)
	}
	return s.printAuthority(cmd.OutOrStdout(), m.GetAuthority())
}

// authorityOutput is the stable form for programs.
type authorityOutput struct {
	SHA256  string   `json:"sha256"`
	Expires string   `json:"expires"`
	Old     string   `json:"old_sha256"`
	Pending []string `json:"pending_nodes"`
	Away    []string `json:"away_nodes"`
}

func (s *settings) printAuthority(out io.Writer, m *operatorv1.AuthoritySummary) error {
	a := authorityOutput{
		m.GetSha256(), m.GetExpires().AsTime().Format(time.RFC3339), m.GetOldSha256(), orEmpty(m.GetPendingNodes()), orEmpty(m.GetAwayNodes()),
	}
	if s.structured() {
		return s.print(out, a)
	}
	if s.output == "name" {
		_, err := fmt.Fprintln(out, a.SHA256)
		return err
	}
	fmt.Fprintf(out, "authority %s issues certificates, until %s\n", short(a.SHA256), a.Expires)
	if a.Old == "" {
		return nil
	}
	fmt.Fprintf(out, "authority %s is still believed\n", short(a.Old))
	if len(a.Pending) > 0 {
		fmt.Fprintf(out, "these nodes still have certificates by it: %s\n", printable(strings.Join(a.Pending, ", ")))
	}
	if len(a.Away) > 0 {
		fmt.Fprintf(out, "these nodes are away, and would have to enrol anew after --finish: %s\n", printable(strings.Join(a.Away, ", ")))
	}
	if len(a.Pending) > 0 {
		return nil
	}
	_, err := fmt.Fprintln(out, "when contexts and tokens are replaced: pyservectl ca rotate --finish")
	return err
}
