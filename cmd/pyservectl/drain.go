package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// drainOutput is the stable form for programs.
type drainOutput struct {
	Node     string `json:"node"`
	Requests uint64 `json:"requests"`
	Tunnels  uint64 `json:"tunnels"`
}

func newDrainCommand(s *settings) *cobra.Command {
	var deadline time.Duration
	request := &operatorv1.DrainRequest{}
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Send a node's clients elsewhere, while it goes on",
		Long: `Send a node's clients elsewhere, while it goes on: its /readyz answers 503, so that load balancers take it out; each
answer asks the client to use another connection; and the WebSockets that it has are closed with 1001, evenly over
--deadline. Who still comes is served, and the node takes new configurations as ever. It stays so until pyservectl
undrain, or until it is started again.

The command waits until nothing is left. Exit code 1 says that something was, when --deadline was over.

At most one node in four drains at a time, and never the last one that serves: others are waited for as long as
--timeout. A node that drains counts until it is restarted or undrained, also with nothing left. One that is told to stop
(SIGTERM) counts as well, but waits for nobody: nodes that are all told to stop at once all go.`,
		Example: `  pyservectl drain n1 && ssh n1 systemctl restart pyserve
  pyservectl drain n1 --deadline 10m
  pyservectl undrain n1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if deadline < 0 {
				return fmt.Errorf("--deadline %s is less than nothing", deadline)
			}
			request.Node = args[0]
			request.Deadline, request.Patience = durationpb.New(deadline), durationpb.New(s.timeout)
			return s.drain(cmd, request)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&deadline, "deadline", time.Minute, "the time over which WebSockets are closed, and for which the rest is waited for; at most 24h")
	f.BoolVar(&request.Detach, "detach", false, "do not wait until the node has nothing left")
	f.BoolVar(&request.Force, "force", false, "whoever else drains, and though nobody else serves")
	return cmd
}

// drainSlack is what a drain takes beyond what it waits for.
const drainSlack = 15 * time.Second

func (s *settings) drain(cmd *cobra.Command, request *operatorv1.DrainRequest) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), s.timeout+request.GetDeadline().AsDuration()+drainSlack)
	defer cancel()
	c, err := s.connect(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer c.close()
	stream, err := c.Drain(ctx, request)
	if err != nil {
		return plain(err)
	}
	for shown := ""; ; {
		m, err := stream.Recv()
		switch {
		case status.Code(err) == codes.FailedPrecondition:
			fmt.Fprintf(cmd.ErrOrStderr(), "pyservectl: %v\n", plain(err))
			return errNo
		case errors.Is(err, io.EOF):
			return errors.New("control ended the call before the drain was over")
		case err != nil:
			return plain(err)
		case m.GetDone():
			return s.drained(cmd.OutOrStdout(), request, m)
		}
		if line := drainLine(request.GetNode(), m); line != shown {
			shown = line
			fmt.Fprintln(cmd.ErrOrStderr(), line)
		}
	}
}

// drainLine says how far it is.
func drainLine(node string, m *operatorv1.DrainEvent) string {
	switch others := m.GetWaitingFor(); {
	case len(others) == 1:
		return fmt.Sprintf("%s: waiting for %s, which drains already", node, others[0])
	case len(others) > 1:
		return fmt.Sprintf("%s: waiting for %s, which drain already", node, strings.Join(others, ", "))
	}
	line := fmt.Sprintf("%s: draining, %s left", node, underWay(m))
	if m.GetNoRoom() {
		line += "; the other nodes have no room for more, so that they stay until there is some, or until the deadline is near"
	}
	return line
}

func underWay(m *operatorv1.DrainEvent) string {
	return fmt.Sprintf("%s and %s", count(int(m.GetRequests()), "request"), count(int(m.GetTunnels()), "WebSocket"))
}

// drained prints the end. Of who does not wait, what is left is no failure.
func (s *settings) drained(out io.Writer, request *operatorv1.DrainRequest, m *operatorv1.DrainEvent) error {
	left := m.GetRequests() > 0 || m.GetTunnels() > 0
	if s.structured() {
		if err := s.print(out, drainOutput{request.GetNode(), m.GetRequests(), m.GetTunnels()}); err != nil {
			return err
		}
	} else {
		line := request.GetNode() + ": drained"
		switch {
		case request.GetDetach():
			line = fmt.Sprintf("%s: draining, %s left", request.GetNode(), underWay(m))
		case left:
			line = fmt.Sprintf("%s: %s left when the deadline was over", request.GetNode(), underWay(m))
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	if left && !request.GetDetach() {
		return errNo
	}
	return nil
}

func newUndrainCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "undrain NODE",
		Short:   "Have a node that was drained take clients again",
		Example: `  pyservectl undrain n1`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.connected(cmd, func(ctx context.Context, c *client) error {
				if _, err := c.Undrain(ctx, &operatorv1.UndrainRequest{Node: args[0]}); err != nil {
					return plain(err)
				}
				if s.structured() {
					return s.print(cmd.OutOrStdout(), map[string]string{"undrained": args[0]})
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: takes clients again\n", args[0])
				return err
			})
		},
	}
}
