package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/control/identity"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// withAccess connects, and has run ask control who may do what, all within --timeout.
func (s *settings) withAccess(cmd *cobra.Command, run func(context.Context, operatorv1.AccessClient) error) error {
	ctx, cancel := s.deadline(cmd.Context())
	defer cancel()
	return s.withAccessUntil(ctx, cmd, func(c operatorv1.AccessClient) error { return run(ctx, c) })
}

// withAccessUntil is withAccess for who has a context of its own.
func (s *settings) withAccessUntil(ctx context.Context, cmd *cobra.Command, run func(operatorv1.AccessClient) error) error {
	c, err := s.connect(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer c.close()
	return run(operatorv1.NewAccessClient(c.conn))
}

// group makes a command that only holds others.
func group(use, short, example string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fmt.Errorf("%s what? See pyservectl %s --help", cmd.Name(), cmd.Name())
		},
	}
	cmd.AddCommand(commands...)
	return cmd
}

func newTokenCommand(s *settings) *cobra.Command {
	return group("token", "Make, list and revoke the tokens that let nodes and controls in",
		`  pyservectl token create --ttl 1h --uses 3 --node-pattern 'edge-*' > join-token
  pyservectl token list
  pyservectl token revoke 3f2a9c01b7de`,
		newTokenCreateCommand(s), newTokenListCommand(s), newTokenRevokeCommand(s))
}

// tokenOutput is a token for programs, never with its secret but where it was just made.
type tokenOutput struct {
	Token   string `json:"token,omitempty"`
	ID      string `json:"id"`
	Kind    string `json:"kind"`
	Created string `json:"created"`
	Expires string `json:"expires"`
	Uses    uint64 `json:"uses"`
	MaxUses uint64 `json:"max_uses"`
	Pattern string `json:"pattern"`
	Author  string `json:"author"`
	Valid   bool   `json:"valid"`

	expires time.Time
}

var tokenKindNames = map[operatorv1.TokenKind]string{
	operatorv1.TokenKind_TOKEN_KIND_JOIN: "join", operatorv1.TokenKind_TOKEN_KIND_CONTROL: "control",
}

func tokenOf(m *operatorv1.TokenSummary) tokenOutput {
	t := tokenOutput{
		ID: m.GetId(), Kind: tokenKindNames[m.GetKind()], Created: m.GetCreated().AsTime().Format(time.RFC3339),
		Uses: m.GetUses(), MaxUses: m.GetMaxUses(), Pattern: m.GetNodePattern(), Author: m.GetAuthor(), Valid: m.GetValid(),
	}
	if m.GetExpires() != nil {
		t.expires = m.GetExpires().AsTime()
		t.Expires = t.expires.Format(time.RFC3339)
	}
	return t
}

// describe says in a few words whom the token lets in, and how long.
func (t tokenOutput) describe() string {
	text := "lets in nodes"
	if t.Kind == "control" {
		text = "lets in controls"
	}
	if t.Pattern != "" {
		text += " named " + t.Pattern
	}
	switch {
	case t.MaxUses == 1:
		text += ", one of them"
	case t.MaxUses > 1:
		text += fmt.Sprintf(", %d of them", t.MaxUses)
	}
	if t.expires.IsZero() {
		return text + ", and does not expire"
	}
	return text + ", until " + t.Expires
}

func newTokenCreateCommand(s *settings) *cobra.Command {
	var ttl time.Duration
	var uses uint64
	var pattern string
	var forControl bool
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token that lets nodes in, and print it once",
		Long: `Make a token that lets nodes in, and print it, alone on one line, on standard output. It is shown this once: control
keeps no more than a hash of it.`,
		Example: `  pyservectl token create > join-token
  pyservectl token create --ttl 1h --uses 1 --node-pattern edge-7
  pyservectl token create --for-control --uses 1 > control-token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			request := &operatorv1.CreateTokenRequest{
				Kind: operatorv1.TokenKind_TOKEN_KIND_JOIN, Ttl: durationpb.New(ttl), Uses: uses, NodePattern: pattern,
			}
			if forControl {
				request.Kind = operatorv1.TokenKind_TOKEN_KIND_CONTROL
			}
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				m, err := c.CreateToken(ctx, request)
				if err != nil {
					return plain(err)
				}
				return s.printNewToken(cmd, m)
			})
		},
	}
	f := cmd.Flags()
	f.DurationVar(&ttl, "ttl", 24*time.Hour, "how long it is good; 0: for ever")
	f.Uint64Var(&uses, "uses", 0, "how often it lets somebody in; 0: without limit")
	f.StringVar(&pattern, "node-pattern", "", "which names it lets in, with * and ? (default any)")
	// Not --control: that is where control is, for every command.
	f.BoolVar(&forControl, "for-control", false, "for a further control instead of nodes")
	return cmd
}

func (s *settings) printNewToken(cmd *cobra.Command, m *operatorv1.CreateTokenResponse) error {
	out := cmd.OutOrStdout()
	if err := forOwnerAlone(out); err != nil {
		return err
	}
	t := tokenOf(m.GetSummary())
	if s.structured() {
		t.Token = m.GetToken()
		return s.print(out, t)
	}
	if _, err := fmt.Fprintln(out, m.GetToken()); err != nil {
		return err
	}
	_, err := fmt.Fprintf(cmd.ErrOrStderr(), "token %s %s\n", t.ID, printable(t.describe()))
	return err
}

// forOwnerAlone takes from others the right to read the file that standard output was sent into: a shell makes it
// readable by all, and a secret is about to be in it.
func forOwnerAlone(out io.Writer) error {
	f, ok := out.(*os.File)
	if !ok {
		return nil
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 == 0 {
		return nil // a terminal, a pipe, or as it must be
	}
	if err := f.Chmod(0o600); err != nil {
		return fmt.Errorf("the output is a secret, and the file that it goes to can be read by others: %w", err)
	}
	return nil
}

func newTokenListCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tokens, without their secrets", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				m, err := c.ListTokens(ctx, &operatorv1.ListTokensRequest{})
				if err != nil {
					return plain(err)
				}
				tokens := []tokenOutput{}
				for _, t := range m.GetTokens() {
					tokens = append(tokens, tokenOf(t))
				}
				return s.printTokens(cmd.OutOrStdout(), tokens)
			})
		},
	}
}

func (s *settings) printTokens(out io.Writer, tokens []tokenOutput) error {
	switch s.output {
	case "json", "yaml":
		return s.print(out, map[string]any{"tokens": tokens})
	case "name":
		for _, t := range tokens {
			fmt.Fprintln(out, t.ID)
		}
		return nil
	}
	head := []string{"ID", "KIND", "CREATED", "EXPIRES", "USES", "PATTERN"}
	if s.output == "wide" {
		head = []string{"ID", "KIND", "CREATED", "EXPIRES", "USES", "AUTHOR", "PATTERN"}
	}
	var rows [][]string
	for _, t := range tokens {
		expires, uses, pattern := t.Expires, strconv.FormatUint(t.Uses, 10), t.Pattern
		switch {
		case expires == "":
			expires = "never"
		case time.Now().After(t.expires):
			expires = "expired"
		}
		if t.MaxUses > 0 {
			uses += "/" + strconv.FormatUint(t.MaxUses, 10)
		}
		if pattern == "" {
			pattern = "*"
		}
		row := []string{t.ID, t.Kind, t.Created, expires, uses, pattern}
		if s.output == "wide" {
			row = []string{t.ID, t.Kind, t.Created, expires, uses, t.Author, pattern}
		}
		rows = append(rows, row)
	}
	return table(out, head, rows)
}

func newTokenRevokeCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Have a token let nobody in from now on",
		Long: `Have a token let nobody in from now on. Who came in by it stays; "pyservectl node revoke" is for those.

The token of control's join-token or control-token file may be revoked too. Control puts another one there at its next
start.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				m, err := c.RevokeToken(ctx, &operatorv1.RevokeTokenRequest{Id: args[0]})
				if err != nil {
					return plain(err)
				}
				if file := m.GetFile(); file != "" {
					fmt.Fprintf(cmd.ErrOrStderr(), "it was the one in control's file %s; control puts another one there at its next start\n", printable(file))
				}
				return s.done(cmd, "token", m.GetSummary().GetId(), "revoked")
			})
		},
	}
}

// done says what was done with what.
func (s *settings) done(cmd *cobra.Command, kind, name, what string) error {
	out := cmd.OutOrStdout()
	if s.structured() {
		return s.print(out, map[string]any{"kind": kind, "name": name, "done": what})
	}
	if s.output == "name" {
		_, err := fmt.Fprintln(out, name)
		return err
	}
	_, err := fmt.Fprintf(out, "%s %s %s\n", kind, printable(name), what)
	return err
}

func newNodeCommand(s *settings) *cobra.Command {
	revoke := &cobra.Command{
		Use:     "revoke NAME",
		Aliases: []string{"forget"},
		Short:   "Forget a node, and let it in no more",
		Long: `Forget a node, and let it in no more: its stream ends at once, its certificate is not believed any more, and status does
not show it. Use it for a node that was stolen, and for one that is gone and keeps status from converging.

The node itself serves on what it has until it is stopped; and it still knows the keys of gossip. Its name may be
enrolled anew with a join token.`,
		Example: `  pyservectl node revoke edge-7`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				m, err := c.RevokeNode(ctx, &operatorv1.RevokeNodeRequest{Name: args[0]})
				if err != nil {
					return plain(err)
				}
				what := "revoked"
				if m.GetConnected() {
					what = "revoked, and its stream was ended"
				}
				return s.done(cmd, "node", args[0], what)
			})
		},
	}
	return group("node", "Revoke nodes", `  pyservectl node revoke edge-7`, revoke)
}

func newContextCommand(s *settings) *cobra.Command {
	var role string
	var ttl time.Duration
	create := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a context for another person or program, and print it",
		Long: `Make a context for another person or program, and print it: a file for --context. Its private key is made here and does
not go to control. "pyservectl context revoke" takes it back before it expires.

Roles, each with all that the one before it may:
  viewer    reads: status, get, history, explain, why
  editor    changes the configuration: apply, diff, rollback
  operator  steers nodes: drain, undrain
  admin     says who may do what: tokens, contexts, node revoke, ca, audit`,
		Example: `  pyservectl context create alice --role editor > alice.yaml
  pyservectl context create dashboard --role viewer --ttl 8760h > dashboard.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := identity.ParsePersonRole(role); err != nil {
				return fmt.Errorf("--role: %w", err)
			}
			request, err := identity.NewContextRequest()
			if err != nil {
				return err
			}
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				m, err := c.CreateContext(ctx, &operatorv1.CreateContextRequest{
					Name: args[0], Role: role, Ttl: durationpb.New(ttl), CertificateRequest: request.DER,
				})
				if err != nil {
					return plain(err)
				}
				made, err := request.Context(m.GetCluster(), m.GetEndpoints(), m.GetCertificate(), m.GetCaCertificates())
				if err != nil {
					return fmt.Errorf("control issued a context that cannot be used: %w", err)
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "context of %s, role %s, until %s\n", args[0], role, m.GetExpires().AsTime().Format(time.RFC3339))
				return s.printContext(cmd.OutOrStdout(), made)
			})
		},
	}
	create.Flags().StringVar(&role, "role", "", "viewer, editor, operator or admin; required")
	create.Flags().DurationVar(&ttl, "ttl", 90*24*time.Hour, "how long it is good, at most two years")
	return group("context", "Make, list and revoke the contexts of people and programs",
		`  pyservectl context create alice --role editor > alice.yaml
  pyservectl context list
  pyservectl context revoke alice`, create, newContextListCommand(s), newContextRevokeCommand(s))
}

// contextOutput is a context for programs, without anything that lets its reader in.
type contextOutput struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	Issued  string `json:"issued"`
	Expires string `json:"expires"`
	Author  string `json:"author"`
	Revoked bool   `json:"revoked"`
}

func newContextListCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the contexts that have not expired, without their keys", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				m, err := c.ListContexts(ctx, &operatorv1.ListContextsRequest{})
				if err != nil {
					return plain(err)
				}
				contexts := []contextOutput{}
				for _, c := range m.GetContexts() {
					contexts = append(contexts, contextOutput{
						Name: c.GetName(), Role: c.GetRole(), Issued: c.GetIssued().AsTime().Format(time.RFC3339),
						Expires: c.GetExpires().AsTime().Format(time.RFC3339), Author: c.GetAuthor(), Revoked: c.GetRevoked(),
					})
				}
				return s.printContexts(cmd.OutOrStdout(), contexts)
			})
		},
	}
}

func (s *settings) printContexts(out io.Writer, contexts []contextOutput) error {
	switch s.output {
	case "json", "yaml":
		return s.print(out, map[string]any{"contexts": contexts})
	case "name":
		for _, c := range contexts {
			fmt.Fprintln(out, c.Name)
		}
		return nil
	}
	var rows [][]string
	for _, c := range contexts {
		state := "good"
		if c.Revoked {
			state = "revoked"
		}
		rows = append(rows, []string{c.Name, c.Role, c.Issued, c.Expires, state, c.Author})
	}
	return table(out, []string{"NAME", "ROLE", "ISSUED", "EXPIRES", "STATE", "AUTHOR"}, rows)
}

func newContextRevokeCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NAME",
		Short: "Take back every context of a name that was made until now",
		Long: `Take back every context of a name that was made until now: no control believes them any more, and what their holders are
doing ends. Another context of the same name can be made at once.

"admin" is the name of the contexts that lie in the data directories of the controls. When it is revoked, each control
puts another admin.yaml there at once, or at its next start: whoever reads that directory is the cluster, and you are not
locked out. Copies of the old ones are of no use any more.`,
		Example: `  pyservectl context revoke alice`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.withAccess(cmd, func(ctx context.Context, c operatorv1.AccessClient) error {
				m, err := c.RevokeContext(ctx, &operatorv1.RevokeContextRequest{Name: args[0]})
				if err != nil {
					return plain(err)
				}
				what := "revoked"
				if n := len(m.GetRevoked()); n != 1 {
					what = fmt.Sprintf("revoked (%d that were good)", n)
				}
				return s.done(cmd, "context", args[0], what)
			})
		},
	}
}

// printContext prints a context as its file holds it; as JSON, which is YAML too, where that is asked for.
func (s *settings) printContext(out io.Writer, c *identity.Context) error {
	if err := forOwnerAlone(out); err != nil {
		return err
	}
	if s.output == "name" {
		return errors.New("a context has no -o name: it is printed whole")
	}
	if s.output == "json" {
		return s.print(out, map[string]any{
			"cluster": c.Cluster, "endpoints": c.Endpoints, "ca": c.CA, "certificate": c.Certificate, "key": c.Key,
		})
	}
	data, err := c.Encode()
	if err != nil {
		return err
	}
	_, err = out.Write(data)
	return err
}
