package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func newGetCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get config|routes|backends|nodes|controls",
		Short: "What runs now",
		Example: `  pyservectl get config > running.yaml
  pyservectl get backends
  pyservectl get routes -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("get what? config, routes, backends, nodes or controls")
		},
	}
	cmd.AddCommand(newGetConfigCommand(s))
	for _, sub := range []struct {
		name, short string
		run         func(*settings, context.Context, *client, io.Writer) error
	}{
		{"routes", "The active routes", (*settings).getRoutes},
		{"backends", "The backends and what the nodes say of their health", (*settings).getBackends},
		{"nodes", "The nodes", (*settings).getNodes},
		{"controls", "The controls", (*settings).getControls},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: sub.name, Short: sub.short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return s.connected(cmd, func(ctx context.Context, c *client) error { return sub.run(s, ctx, c, cmd.OutOrStdout()) })
			},
		})
	}
	return cmd
}

func newGetConfigCommand(s *settings) *cobra.Command {
	revision := uint64(0)
	cmd := &cobra.Command{
		Use:   "config",
		Short: "The active configuration, or that of another revision, as it was applied",
		Example: `  pyservectl get config > running.yaml
  pyservectl get config --revision 7`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.connected(cmd, func(ctx context.Context, c *client) error {
				return s.getConfig(ctx, c, revision, cmd.OutOrStdout())
			})
		},
	}
	cmd.Flags().Uint64Var(&revision, "revision", 0, "which revision's; 0: the active one's")
	return cmd
}

// connected runs what asks a control, within --timeout.
func (s *settings) connected(cmd *cobra.Command, run func(context.Context, *client) error) error {
	ctx, cancel := s.deadline(cmd.Context())
	defer cancel()
	c, err := s.connect(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer c.close()
	return run(ctx, c)
}

// each receives until the stream ends.
func each[M any](stream grpc.ServerStreamingClient[M], err error, take func(*M)) error {
	if err != nil {
		return plain(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return plain(err)
		}
		take(m)
	}
}

func (s *settings) getConfig(ctx context.Context, c *client, wanted uint64, out io.Writer) error {
	var document bytes.Buffer
	var revision uint64
	var digest string
	stream, err := c.GetConfig(ctx, &operatorv1.GetConfigRequest{Revision: wanted})
	err = each(stream, err, func(m *operatorv1.GetConfigResponse) {
		if m.GetRevision() > 0 {
			revision, digest = m.GetRevision(), m.GetDigest()
		}
		document.Write(m.GetData())
	})
	switch {
	case err != nil:
		return err
	case revision == 0:
		return errors.New("nothing was applied yet")
	case s.structured():
		return s.print(out, map[string]any{"revision": revision, "digest": digest, "document": document.String()})
	case s.output == "name":
		_, err = fmt.Fprintln(out, revision)
		return err
	}
	_, err = out.Write(document.Bytes())
	return err
}

type routeOutput struct {
	Name         string   `json:"name"`
	Path         string   `json:"path"`
	Match        string   `json:"match"`
	Hosts        []string `json:"hosts"`
	StripPath    bool     `json:"strip_path"`
	PreserveHost bool     `json:"preserve_host"`
	Backends     []string `json:"backends"`
	// Answer is what the proxy answers itself; empty: the backends answer.
	Answer string `json:"answer"`
	// Conditions are what is asked beyond host and path.
	Conditions []string `json:"conditions"`
}

func (s *settings) getRoutes(ctx context.Context, c *client, out io.Writer) error {
	routes := []routeOutput{}
	stream, err := c.ListRoutes(ctx, &operatorv1.ListRoutesRequest{})
	err = each(stream, err, func(m *operatorv1.ListRoutesResponse) {
		for _, r := range m.GetRoutes() {
			routes = append(routes, routeOutput{
				r.GetName(), r.GetPath(), r.GetMatch(), orEmpty(r.GetHosts()), r.GetStripPath(), r.GetPreserveHost(), orEmpty(r.GetBackends()),
				r.GetAnswer(), orEmpty(r.GetConditions()),
			})
		}
	})
	if err != nil || s.structured() {
		return errors.Join(err, s.unless(err, out, map[string]any{"routes": routes}))
	}
	var rows [][]string
	for _, r := range routes {
		if s.output == "name" {
			fmt.Fprintln(out, r.Name)
			continue
		}
		row := []string{r.Path, r.Match, strings.Join(r.Hosts, ","), strings.Join(r.Conditions, " "), yesNo(r.StripPath), yesNo(r.PreserveHost), listed(r.Backends, s.output == "wide")}
		if r.Answer != "" {
			row[len(row)-1] = printable(r.Answer)
		}
		rows = append(rows, row)
	}
	if s.output == "name" {
		return nil
	}
	return table(out, []string{"PATH", "MATCH", "HOSTS", "CONDITIONS", "STRIPS", "KEEPS-HOST", "BACKENDS"}, rows)
}

// unless prints a value for programs where nothing went wrong before.
func (s *settings) unless(err error, out io.Writer, value any) error {
	if err != nil {
		return nil
	}
	return s.print(out, value)
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// listed joins a list, all of it or its beginning.
func listed(list []string, all bool) string {
	const few = 3
	if all || len(list) <= few {
		return strings.Join(list, ",")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:few], ","), len(list)-few)
}

type backendOutput struct {
	Route   string            `json:"route"`
	Part    uint32            `json:"part"` // of a split; 0: the route has none
	Address string            `json:"address"`
	State   string            `json:"state"`
	Reason  string            `json:"reason"`
	Since   string            `json:"since"`
	Weight  uint32            `json:"weight"`
	Nodes   map[string]string `json:"nodes,omitempty"`
	// FailOpen: it is unhealthy and used all the same, since too few are healthy.
	FailOpen bool `json:"fail_open"`

	since time.Time
}

func (s *settings) getBackends(ctx context.Context, c *client, out io.Writer) error {
	backends := []backendOutput{}
	stream, err := c.ListBackends(ctx, &operatorv1.ListBackendsRequest{})
	err = each(stream, err, func(m *operatorv1.ListBackendsResponse) {
		for _, b := range m.GetBackends() {
			row := backendOutput{
				Route: b.GetRoute(), Part: b.GetPart(), Address: b.GetAddress(), State: b.GetState(), Reason: b.GetReason(), Weight: b.GetWeight(), Nodes: b.GetNodes(),
				FailOpen: b.GetFailOpen(),
			}
			if b.GetSince() != nil {
				row.since = b.GetSince().AsTime()
				row.Since = row.since.Format(time.RFC3339)
			}
			backends = append(backends, row)
		}
	})
	if err != nil || s.structured() {
		return errors.Join(err, s.unless(err, out, map[string]any{"backends": backends}))
	}
	var rows [][]string
	for _, b := range backends {
		if s.output == "name" {
			fmt.Fprintln(out, b.Address)
			continue
		}
		reason := b.Reason
		if b.FailOpen {
			reason = strings.TrimPrefix(reason+"; used all the same: too few are healthy", "; ")
		}
		if len(b.Nodes) > 0 {
			reason = strings.TrimPrefix(reason+"; nodes differ (-o json)", "; ")
		}
		route := b.Route
		if b.Part > 0 {
			route = fmt.Sprintf("%s (part %d)", route, b.Part)
		}
		rows = append(rows, []string{route, b.Address, strconv.FormatUint(uint64(b.Weight), 10), b.State, age(b.since), reason})
	}
	if s.output == "name" {
		return nil
	}
	return table(out, []string{"ROUTE", "ADDRESS", "WEIGHT", "STATE", "AGE", "REASON"}, rows)
}

func (s *settings) getNodes(ctx context.Context, c *client, out io.Writer) error {
	m, err := c.GetStatus(ctx, &operatorv1.GetStatusRequest{})
	if err != nil {
		return plain(err)
	}
	nodes := statusOf(m).Nodes
	switch s.output {
	case "json", "yaml":
		return s.print(out, map[string]any{"nodes": nodes})
	case "name":
		for _, n := range nodes {
			fmt.Fprintln(out, n.Name)
		}
		return nil
	}
	return s.nodeTable(out, nodes)
}

func (s *settings) getControls(ctx context.Context, c *client, out io.Writer) error {
	m, err := c.ListControls(ctx, &operatorv1.ListControlsRequest{})
	if err != nil {
		return plain(err)
	}
	type controlOutput struct {
		Name    string `json:"name"`
		Address string `json:"address"`
		Role    string `json:"role"`
		Version string `json:"version"`
		// Reachable says that the control that leads hears from it, and Lag how many entries it is behind that.
		Reachable bool   `json:"reachable"`
		Lag       uint64 `json:"lag"`
		Voter     bool   `json:"voter"`
		Gossip    string `json:"gossip"`
	}
	controls := []controlOutput{}
	var rows [][]string
	for _, ctl := range m.GetControls() {
		controls = append(controls, controlOutput{
			ctl.GetName(), ctl.GetAddress(), ctl.GetRole(), ctl.GetVersion(), ctl.GetReachable(), ctl.GetLag(), ctl.GetVoter(), ctl.GetGossip(),
		})
		lag := ""
		if ctl.GetRole() != "" { // a node knows addresses alone
			lag = strconv.FormatUint(ctl.GetLag(), 10)
		}
		rows = append(rows, []string{
			ctl.GetName(), ctl.GetAddress(), ctl.GetRole(), yesNo(ctl.GetReachable()), lag, ctl.GetGossip(), ctl.GetVersion(),
		})
	}
	switch s.output {
	case "json", "yaml":
		return s.print(out, map[string]any{"controls": controls})
	case "name":
		for _, ctl := range controls {
			fmt.Fprintln(out, ctl.Name)
		}
		return nil
	}
	return table(out, []string{"NAME", "ADDRESS", "ROLE", "REACHABLE", "LAG", "GOSSIP", "VERSION"}, rows)
}
