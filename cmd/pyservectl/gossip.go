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

func newGossipCommand(s *settings) *cobra.Command {
	cancel := false
	rotate := &cobra.Command{
		Use:   "rotate",
		Short: "Put another key in the place of the one that gossip is encrypted with",
		Long: `Put another key in the place of the one that gossip is encrypted with. Traffic is not touched, and nobody is lost.

Control makes the key, and leads everybody to it by itself: all understand it, then all use it, then the old one is dropped.
Each step waits for every control and every connected node, and half a minute for a node that was connected before. A node
that is away gets the key from control when it comes back.

The command returns when the old key is gone. What it began goes on without it; called again, it looks on. --cancel takes the new
key back where somebody has not got it yet and is not going to: as long as it is handed out, nobody uses it.`,
		Example: `  pyservectl gossip rotate
  pyservectl gossip status
  pyservectl gossip rotate --cancel`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				if cancel {
					return s.cancelGossipKey(ctx, cmd, c)
				}
				return s.rotateGossipKey(ctx, cmd, c)
			})
		},
	}
	rotate.Flags().BoolVar(&cancel, "cancel", false, "take the new key back, as long as it is handed out and nobody uses it")
	status := &cobra.Command{
		Use: "status", Short: "Which key gossip is encrypted with, and who has not followed yet", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				m, err := c.GetGossipKey(ctx, &operatorv1.GetGossipKeyRequest{})
				if err != nil {
					return plain(err)
				}
				return s.printGossipKey(cmd.OutOrStdout(), m.GetKey())
			})
		},
	}
	return group("gossip", "Replace the key that gossip is encrypted with", "  pyservectl gossip rotate\n  pyservectl gossip status", rotate, status)
}

// rotateGossipKey begins, and waits until nobody has the old key any more.
func (s *settings) rotateGossipKey(ctx context.Context, cmd *cobra.Command, c operatorv1.AccessClient) error {
	began, err := c.RotateGossipKey(ctx, &operatorv1.RotateGossipKeyRequest{})
	if err != nil {
		return plain(err)
	}
	if began.GetRunning() {
		fmt.Fprintln(cmd.ErrOrStderr(), "a change of the key is under way already; looking on")
	}
	now := began.GetKey()
	ticker := time.NewTicker(rotationPause)
	defer ticker.Stop()
	for !keyIsAlone(now) {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if err := s.printGossipKey(cmd.OutOrStdout(), now); err != nil {
				return err
			}
			return errNo
		}
		m, err := c.GetGossipKey(ctx, &operatorv1.GetGossipKeyRequest{})
		switch {
		case ctx.Err() != nil:
		case err != nil:
			return fmt.Errorf("the change of the key has begun and goes on: %w", plain(err))
		default:
			now = m.GetKey()
		}
	}
	return s.printGossipKey(cmd.OutOrStdout(), now)
}

// cancelGossipKey does not wait until all have dropped the new key: who holds it up would hold this up too, and nobody uses it.
func (s *settings) cancelGossipKey(ctx context.Context, cmd *cobra.Command, c operatorv1.AccessClient) error {
	m, err := c.CancelGossipKey(ctx, &operatorv1.CancelGossipKeyRequest{})
	if err != nil {
		return plain(err)
	}
	return s.printGossipKey(cmd.OutOrStdout(), m.GetKey())
}

// keyIsAlone says whether everybody who is there has one key.
func keyIsAlone(m *operatorv1.GossipKeySummary) bool {
	return m.GetStage() == "settled" && len(m.GetPendingNodes())+len(m.GetPendingControls()) == 0
}

// gossipKeyOutput is the stable form for programs.
type gossipKeyOutput struct {
	Key             string   `json:"key"`
	Old             string   `json:"old_key"`
	New             string   `json:"new_key"`
	Stage           string   `json:"stage"`
	Since           string   `json:"since"`
	PendingNodes    []string `json:"pending_nodes"`
	PendingControls []string `json:"pending_controls"`
	Away            []string `json:"away_nodes"`
}

func (s *settings) printGossipKey(out io.Writer, m *operatorv1.GossipKeySummary) error {
	k := gossipKeyOutput{
		Key: m.GetKey(), Old: m.GetOldKey(), New: m.GetNewKey(), Stage: m.GetStage(),
		PendingNodes: orEmpty(m.GetPendingNodes()), PendingControls: orEmpty(m.GetPendingControls()), Away: orEmpty(m.GetAwayNodes()),
	}
	if m.GetSince() != nil {
		k.Since = m.GetSince().AsTime().Format(time.RFC3339)
	}
	if s.structured() {
		return s.print(out, k)
	}
	if s.output == "name" {
		_, err := fmt.Fprintln(out, k.Key)
		return err
	}
	return k.table(out)
}

func (k gossipKeyOutput) table(out io.Writer) (err error) {
	line := func(format string, args ...any) {
		if err == nil {
			_, err = fmt.Fprintf(out, format+"\n", args...)
		}
	}
	since := ""
	if k.Since != "" {
		since = " since " + k.Since
	}
	switch k.Stage {
	case "install":
		line("gossip is encrypted with key %s; key %s is handed out%s", k.Key, k.New, since)
	case "use":
		line("key %s takes the place of key %s in gossip%s", k.Key, k.Old, since)
	default:
		line("gossip is encrypted with key %s%s", k.Key, since)
	}
	if len(k.PendingControls) > 0 {
		line("these controls have not followed yet; one that is away has to be started, or taken out with pyservectl control remove: %s", printable(strings.Join(k.PendingControls, ", ")))
	}
	if len(k.PendingNodes) > 0 {
		line("these nodes have not followed yet; one that has gone is waited for 30 s, and one that is there and does not by itself has a full disk or an older version: %s", printable(strings.Join(k.PendingNodes, ", ")))
	}
	if len(k.Away) > 0 {
		line("these nodes are away, and get the key when they are back: %s", printable(strings.Join(k.Away, ", ")))
	}
	return err
}
