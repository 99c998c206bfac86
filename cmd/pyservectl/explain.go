package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// explainOutput is the stable form for programs.
type explainOutput struct {
	Route string `json:"route"`
	// Forward is null where nothing would be forwarded.
	Forward  *forwardOutput `json:"forward"`
	Backends []string       `json:"backends"`
	Reason   string         `json:"reason"`
	Status   uint32         `json:"status"`
	Node     string         `json:"node"`
	Revision uint64         `json:"revision"`
	// Policies are what else the route does with the request, for people.
	Policies []string `json:"policies"`
	Part     uint32   `json:"part"` // of a split; 0: the route has none

	states []string
}

type forwardOutput struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Host   string `json:"host"`
	// Headers are the header fields that the backend would be sent, "Name: value".
	Headers []string `json:"headers"`
}

func newExplainCommand(s *settings) *cobra.Command {
	request := &operatorv1.ExplainRequest{}
	cmd := &cobra.Command{
		Use:   "explain METHOD URL",
		Short: "What a node would do with a request, and why",
		Long: `What a node would do with a request, and why: which route takes it, what a backend would be sent, which backends
there are, and the route's policies. A node that serves answers by its own live table, and sends nothing to a backend. URL is the public one,
http://host/path or https://…; a path alone is a request without a host.

Exit code 1 says that no route takes the request; the reason says how near it came.`,
		Example: `  pyservectl explain GET http://shop.example.com/api/users?x=1
  pyservectl explain GET /api/users -H 'Host: shop.example.com'
  pyservectl explain GET https://shop.example.com/ --node n1 -o json`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			request.Method, request.Url = args[0], args[1]
			return s.connected(cmd, func(ctx context.Context, c *client) error {
				return s.explain(ctx, c, request, cmd.OutOrStdout())
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&request.Headers, "header", "H", nil, `a header of the request, "Name: value"; may be repeated`)
	f.StringVar(&request.Node, "node", "", "which node is asked (default any that serves)")
	return cmd
}

func (s *settings) explain(ctx context.Context, c *client, request *operatorv1.ExplainRequest, out io.Writer) error {
	m, err := c.Explain(ctx, request)
	if err != nil {
		return plain(err)
	}
	e := explainOf(m)
	if err := s.printExplain(out, e); err != nil {
		return err
	}
	if e.Route == "" {
		return errNo
	}
	return nil
}

func explainOf(m *operatorv1.ExplainResponse) explainOutput {
	e := explainOutput{
		Route: m.GetRoute(), Backends: []string{}, Reason: m.GetReason(), Status: m.GetStatus(), Node: m.GetNode(), Revision: m.GetRevision(),
		Policies: orEmpty(m.GetPolicies()), Part: m.GetPart(),
	}
	if f := m.GetForward(); f != nil {
		e.Forward = &forwardOutput{f.GetMethod(), f.GetPath(), f.GetHost(), orEmpty(f.GetHeaders())}
	}
	for _, b := range m.GetBackends() {
		e.Backends = append(e.Backends, b.GetAddress())
		state := b.GetAddress() + " " + b.GetState()
		if b.GetReason() != "" {
			state += ": " + b.GetReason()
		}
		e.states = append(e.states, state)
	}
	return e
}

func (s *settings) printExplain(out io.Writer, e explainOutput) error {
	switch {
	case s.structured():
		return s.print(out, e)
	case s.output == "name":
		if e.Route != "" {
			fmt.Fprintln(out, e.Route)
		}
		return nil
	}
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(out, "%-10s%s\n", name, printable(value))
		}
	}
	line("route", e.Route)
	line("reason", e.Reason)
	if f := e.Forward; f != nil {
		line("forward", fmt.Sprintf("%s %s, Host: %s", f.Method, f.Path, f.Host))
		if s.output == "wide" {
			for i, field := range f.Headers {
				line(strings.Repeat("headers", 1-min(i, 1)), field)
			}
		}
	}
	for i, state := range e.states {
		line(strings.Repeat("backends", 1-min(i, 1)), state)
	}
	for i, policy := range e.Policies {
		line(strings.Repeat("policies", 1-min(i, 1)), policy)
	}
	line("node", fmt.Sprintf("%s, revision %d", e.Node, e.Revision))
	return nil
}
