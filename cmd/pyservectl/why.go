package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// whyOutput is the stable form for programs.
type whyOutput struct {
	Node     string       `json:"node"`
	Revision uint64       `json:"revision"`
	Backends []whyBackend `json:"backends"`
}

type whyBackend struct {
	Address   string   `json:"address"`
	Routes    []string `json:"routes"`
	Check     string   `json:"check"`
	State     string   `json:"state"`
	Reason    string   `json:"reason"`
	Since     string   `json:"since"`
	DecidedBy string   `json:"decided_by"`
	// Members is how many nodes the one that was asked knows, and Probers those whose duty it is.
	Members uint32    `json:"members"`
	Probers []string  `json:"probers"`
	Votes   []whyVote `json:"votes"`
	// Role is what the node that was asked does itself. Own is what its probes say, null if it does not probe.
	Role string  `json:"role"`
	Own  *whyOwn `json:"own"`
	// Refused is what its own requests have met with; empty: it uses the backend by the verdict.
	Refused string `json:"refused"`
}

type whyVote struct {
	Node    string `json:"node"`
	State   string `json:"state"`
	Reason  string `json:"reason"`
	Since   string `json:"since"`
	Age     string `json:"age"`
	Counted bool   `json:"counted"`
}

type whyOwn struct {
	State  string `json:"state"`
	Reason string `json:"reason"`
}

func newWhyCommand(s *settings) *cobra.Command {
	request := &operatorv1.ExplainBackendRequest{}
	cmd := &cobra.Command{
		Use:   "why BACKEND",
		Short: "What a node thinks of a backend's health, since when, and by whose word",
		Long: `What a node thinks of a backend's health, since when, and by whose word: which nodes probe it, what each of them said last,
and which of that was counted. BACKEND is host:port, as get backends shows it; one that is checked in several ways is several.

Exit code 1 says that no route has such a backend.`,
		Example: `  pyservectl why 10.0.0.1:8000
  pyservectl why api.internal:443 --node n1 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			request.Address = args[0]
			return s.connected(cmd, func(ctx context.Context, c *client) error {
				return s.why(ctx, c, request, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	cmd.Flags().StringVar(&request.Node, "node", "", "which node is asked (default any that serves)")
	return cmd
}

func (s *settings) why(ctx context.Context, c *client, request *operatorv1.ExplainBackendRequest, out, notes io.Writer) error {
	m, err := c.ExplainBackend(ctx, request)
	if err != nil {
		return plain(err)
	}
	w := whyOf(m)
	if err := s.printWhy(out, w); err != nil {
		return err
	}
	if len(w.Backends) == 0 {
		fmt.Fprintf(notes, "node %s has no route with the backend %s; get backends lists those that there are\n", printable(w.Node), printable(request.GetAddress()))
		return errNo
	}
	return nil
}

func whyOf(m *operatorv1.ExplainBackendResponse) whyOutput {
	w := whyOutput{Node: m.GetNode(), Revision: m.GetRevision(), Backends: []whyBackend{}}
	for _, e := range m.GetBackends() {
		b := whyBackend{
			Address: e.GetStatus().GetAddress(), Routes: append([]string{}, e.GetRoutes()...), Check: e.GetCheck(), State: stateWord(e.GetStatus().GetState()),
			Reason: e.GetStatus().GetReason(), Since: rfc3339(e.GetStatus().GetSince()), DecidedBy: e.GetDecidedBy(), Members: e.GetMembers(),
			Probers: append([]string{}, e.GetProbers()...), Role: e.GetRole(), Refused: e.GetRefused(), Votes: []whyVote{},
		}
		if own := e.GetOwn(); own != nil {
			b.Own = &whyOwn{stateWord(own.GetState()), own.GetReason()}
		}
		for _, v := range e.GetVotes() {
			b.Votes = append(b.Votes, whyVote{
				Node: v.GetNode(), State: v.GetState(), Reason: v.GetReason(), Since: rfc3339(v.GetSince()),
				Age: v.GetAge().AsDuration().Round(100 * time.Millisecond).String(), Counted: v.GetCounted(),
			})
		}
		w.Backends = append(w.Backends, b)
	}
	return w
}

// stateWord is the word of get backends.
func stateWord(s fleetv1.BackendState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "BACKEND_STATE_"))
}

func rfc3339(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

func (s *settings) printWhy(out io.Writer, w whyOutput) error {
	switch {
	case s.structured():
		return s.print(out, w)
	case s.output == "name":
		for _, b := range w.Backends {
			fmt.Fprintln(out, b.Address)
		}
		return nil
	}
	for i, b := range w.Backends {
		if i > 0 {
			fmt.Fprintln(out)
		}
		if err := printWhyBackend(out, w, b); err != nil {
			return err
		}
	}
	return nil
}

func printWhyBackend(out io.Writer, w whyOutput, b whyBackend) error {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(out, "%-10s%s\n", name, printable(value))
		}
	}
	line("backend", b.Address)
	line("routes", strings.Join(b.Routes, ", "))
	line("check", b.Check)
	line("state", strings.TrimSuffix(b.State+": "+b.Reason, ": "))
	line("since", b.Since)
	line("decided", decided(b))
	line("probers", strings.Join(b.Probers, ", "))
	if b.Refused != "" {
		line("avoided", "by this node, whose requests could not connect: "+b.Refused)
	}
	line("node", fmt.Sprintf("%s, revision %d, knows %d nodes, %s", w.Node, w.Revision, b.Members, b.Role))
	if b.Own != nil {
		line("own", strings.TrimSuffix(b.Own.State+": "+b.Own.Reason, ": "))
	}
	if len(b.Votes) == 0 {
		return nil
	}
	var rows [][]string
	for _, v := range b.Votes {
		counts := "no"
		if v.Counted {
			counts = "yes"
		}
		rows = append(rows, []string{v.Node, v.State, v.Since, v.Age, counts, v.Reason})
	}
	fmt.Fprintln(out)
	return table(out, []string{"PROBER", "SAYS", "SINCE", "AGE", "COUNTED", "REASON"}, rows)
}

// decided says in a few words by what the node came to its verdict.
func decided(b whyBackend) string {
	counted, agree := 0, 0
	for _, v := range b.Votes {
		if v.Counted {
			counted++
			if v.State == b.State {
				agree++
			}
		}
	}
	switch b.DecidedBy {
	case "majority":
		return fmt.Sprintf("by the majority, %d of %d", agree, counted)
	case "own probes":
		return "by this node's own probes"
	case "kept":
		return "not anew: too few probers are heard, and the state of before is kept"
	case "no check":
		return "by nobody: it is not checked"
	}
	return "not yet"
}
