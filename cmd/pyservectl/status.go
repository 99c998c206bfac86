package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// statusOutput is the stable form for programs.
type statusOutput struct {
	Revision  uint64       `json:"revision"`
	Digest    string       `json:"digest"`
	Converged bool         `json:"converged"`
	Nodes     []nodeOutput `json:"nodes"`
	// Notes are of the control that answers.
	Notes []string `json:"notes,omitempty"`
}

type nodeOutput struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Revision uint64 `json:"revision"`
	Digest   string `json:"digest"`
	Listen   string `json:"listen"`
	Gossip   string `json:"gossip"`
	Note     string `json:"note"`
	Since    string `json:"since"`
	Version  string `json:"version"`

	since time.Time
}

func statusOf(m *operatorv1.GetStatusResponse) statusOutput {
	out := statusOutput{m.GetRevision(), m.GetDigest(), m.GetConverged(), []nodeOutput{}, m.GetNotes()}
	for _, n := range m.GetNodes() {
		row := nodeOutput{
			Name: n.GetName(), State: n.GetState(), Revision: n.GetRevision(), Digest: n.GetDigest(), Listen: n.GetListen(),
			Gossip: n.GetGossip(), Note: n.GetNote(), Version: n.GetVersion(),
		}
		if n.GetSince() != nil {
			row.since = n.GetSince().AsTime()
			row.Since = row.since.Format(time.RFC3339)
		}
		out.Nodes = append(out.Nodes, row)
	}
	return out
}

func newStatusCommand(s *settings) *cobra.Command {
	watch := false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "What each node does",
		Long: `What each node does, as control and as gossip see it. Exit code 0 says that every node serves the active revision
("converged"), 1 that not every node does.`,
		Example: `  pyservectl status
  pyservectl status -w
  pyservectl status -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return s.watchStatus(cmd)
			}
			return s.status(cmd)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "follow until interrupted")
	return cmd
}

func (s *settings) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.timeout)
}

func (s *settings) status(cmd *cobra.Command) error {
	ctx, cancel := s.deadline(cmd.Context())
	defer cancel()
	c, err := s.connect(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer c.close()
	m, err := c.GetStatus(ctx, &operatorv1.GetStatusRequest{})
	if err != nil {
		return plain(err)
	}
	status := statusOf(m)
	if err := s.printStatus(cmd.OutOrStdout(), status); err != nil {
		return err
	}
	if !status.Converged {
		return errNo
	}
	return nil
}

// watchStatus follows until interrupted; then the last status decides the exit code. --timeout bounds the connecting
// alone.
func (s *settings) watchStatus(cmd *cobra.Command) error {
	converged, first := false, true
	err := s.insist(cmd.Context(), cmd.ErrOrStderr(), func(c *client) error {
		return s.followStatus(cmd, c, &converged, &first)
	})
	if err == nil && !converged {
		return errNo
	}
	return err
}

// followStatus prints every status that one control tells, until it is interrupted.
func (s *settings) followStatus(cmd *cobra.Command, c *client, converged, first *bool) error {
	stream, err := c.WatchStatus(cmd.Context(), &operatorv1.GetStatusRequest{})
	if err != nil {
		return plain(err)
	}
	for ; ; *first = false {
		m, err := stream.Recv()
		if cmd.Context().Err() != nil {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return errors.New("control ended the stream")
		}
		if err != nil {
			return plain(err)
		}
		*converged = m.GetConverged()
		out := cmd.OutOrStdout()
		if !s.structured() {
			s.nextScreen(out, *first)
		}
		if err := s.printStatus(out, statusOf(m)); err != nil {
			return err
		}
	}
}

// nextScreen parts what follows from what was printed before: on a terminal it takes its place.
func (s *settings) nextScreen(out io.Writer, first bool) {
	switch {
	case isTerminal(out):
		fmt.Fprint(out, "\x1b[H\x1b[2J")
	case !first:
		fmt.Fprintln(out)
	}
}

func (s *settings) printStatus(out io.Writer, status statusOutput) error {
	switch s.output {
	case "json", "yaml":
		return s.print(out, status)
	case "name":
		for _, n := range status.Nodes {
			fmt.Fprintln(out, n.Name)
		}
		return nil
	}
	if len(status.Nodes) > 0 {
		if err := s.nodeTable(out, status.Nodes); err != nil {
			return err
		}
		fmt.Fprintln(out)
	}
	p := newPainter(out)
	for _, note := range status.Notes {
		if _, err := fmt.Fprintln(out, p.paint(yellow, note)); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(out, sentence(status, p))
	return err
}

func (s *settings) nodeTable(out io.Writer, nodes []nodeOutput) error {
	head := []string{"NAME", "STATE", "REVISION", "LISTEN", "GOSSIP", "AGE", "NOTE"}
	if s.output == "wide" {
		head = []string{"NAME", "STATE", "REVISION", "DIGEST", "LISTEN", "GOSSIP", "AGE", "VERSION", "NOTE"}
	}
	var rows [][]string
	for _, n := range nodes {
		revision := strconv.FormatUint(n.Revision, 10)
		if n.since.IsZero() && (n.State == "disconnected" || n.State == "left") {
			revision = "" // control has not heard of it since its own start
		}
		row := []string{n.Name, n.State, revision, n.Listen, n.Gossip, age(n.since), n.Note}
		if s.output == "wide" {
			row = []string{n.Name, n.State, revision, short(n.Digest), n.Listen, n.Gossip, age(n.since), n.Version, n.Note}
		}
		rows = append(rows, row)
	}
	return table(out, head, rows)
}

func sentence(status statusOutput, p painter) string {
	switch {
	case status.Revision == 0:
		return p.paint(yellow, "nothing was applied yet: pyservectl apply FILE")
	case status.Converged:
		return fmt.Sprintf("revision %d (%s): %s", status.Revision, short(status.Digest), p.paint(green, "converged, every node serves it"))
	case !slices.ContainsFunc(status.Nodes, func(n nodeOutput) bool { return n.State != "left" }):
		return fmt.Sprintf("revision %d (%s): %s", status.Revision, short(status.Digest), p.paint(yellow, "no node is there to serve it"))
	}
	return fmt.Sprintf("revision %d (%s): %s", status.Revision, short(status.Digest), p.paint(yellow, "not converged, not every node serves it"))
}
