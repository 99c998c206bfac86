package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// eventOutput is the stable form for programs. Of events that were missed there is one of the kind "missed", which says
// how many.
type eventOutput struct {
	Sequence uint64 `json:"sequence"`
	Time     string `json:"time"`
	Kind     string `json:"kind"`
	Subject  string `json:"subject"`
	Message  string `json:"message"`
	Missed   uint64 `json:"missed,omitempty"`
}

func newEventsCommand(s *settings) *cobra.Command {
	request := &operatorv1.WatchEventsRequest{}
	cmd := &cobra.Command{
		Use:   "events",
		Short: "What happened lately, and what happens",
		Long: `What happened lately: nodes that came, went or refused, revisions and rollbacks, backends that went down or up by the
word of one node. Control keeps about the last thousand events in memory, since its own start and as it has seen them.
With -f it goes on with what happens until interrupted; events that came faster than they were read are counted.

With -o json and -o yaml each event is a document of its own, JSON on a line of its own.`,
		Example: `  pyservectl events
  pyservectl events -f
  pyservectl events -f -o json | jq 'select(.kind == "backend-down")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.events(cmd, request) },
	}
	f := cmd.Flags()
	f.BoolVarP(&request.Follow, "follow", "f", false, "go on until interrupted")
	f.Uint32Var(&request.Limit, "limit", 100, "how many of the newest; 0: all that are kept")
	return cmd
}

// events prints what comes. Of who follows, --timeout bounds the connecting alone.
func (s *settings) events(cmd *cobra.Command, request *operatorv1.WatchEventsRequest) error {
	connecting, cancel := s.deadline(cmd.Context())
	defer cancel()
	c, err := s.connect(connecting, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer c.close()
	ctx := connecting
	if request.GetFollow() {
		ctx = cmd.Context()
	}
	stream, err := c.WatchEvents(ctx, request)
	if err != nil {
		return plain(err)
	}
	p := &eventPrinter{settings: s, out: cmd.OutOrStdout()}
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF), cmd.Context().Err() != nil: // interrupted, as is meant
			return nil
		case err != nil:
			return plain(err)
		}
		if err := p.print(m); err != nil {
			return err
		}
	}
}

// eventPrinter prints events as they come.
type eventPrinter struct {
	*settings
	out   io.Writer
	begun bool
}

func (p *eventPrinter) print(m *operatorv1.WatchEventsResponse) error {
	events := make([]eventOutput, 0, len(m.GetEvents())+1)
	if n := m.GetMissed(); n > 0 {
		events = append(events, eventOutput{Kind: "missed", Message: count(int(n), "event") + " came faster than they were read", Missed: n})
	}
	for _, e := range m.GetEvents() {
		events = append(events, eventOutput{
			Sequence: e.GetSequence(), Time: e.GetTime().AsTime().Format(time.RFC3339), Kind: e.GetKind(), Subject: e.GetSubject(), Message: e.GetMessage(),
		})
	}
	for _, e := range events {
		if err := p.event(e); err != nil {
			return err
		}
	}
	return nil
}

// event prints one. Rows of people have fixed columns, since nobody knows what comes next.
func (p *eventPrinter) event(e eventOutput) error {
	const row = "%-20s  %-20s  %-21s  %s\n"
	switch p.output {
	case "json":
		return json.NewEncoder(p.out).Encode(e)
	case "yaml":
		if _, err := fmt.Fprintln(p.out, "---"); err != nil {
			return err
		}
		return p.settings.print(p.out, e)
	case "name":
		_, err := fmt.Fprintln(p.out, e.Kind)
		return err
	}
	if !p.begun {
		p.begun = true
		fmt.Fprintf(p.out, row, "TIME", "KIND", "SUBJECT", "MESSAGE")
	}
	_, err := fmt.Fprintf(p.out, row, e.Time, e.Kind, printable(e.Subject), printable(e.Message))
	return err
}
