// Command pyservectl is the operator's tool: it checks configurations, applies them, and shows what the cluster does.
//
// It owns flags, output and exit codes; what a document means is package config's, what happens to it is control's.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

// Exit codes.
const (
	exitDone   = 0
	exitNo     = 1 // differences, not converged, refused
	exitCannot = 2 // usage, no connection
)

// errNo says that the answer is no, and that it has been printed.
var errNo = errors.New("no")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	switch {
	case err == nil:
		os.Exit(exitDone)
	case errors.Is(err, errNo):
		os.Exit(exitNo)
	}
	fmt.Fprintln(os.Stderr, "pyservectl:", err)
	os.Exit(exitCannot)
}

// settings are the global flags.
type settings struct {
	context  string
	controls []string
	output   string
	timeout  time.Duration

	reads  bool     // the command may be answered by a node
	byNode bool     // and one has answered it
	learnt []string // the controls that one has told of
	gone   string   // the control whose connection broke last
}

// readers are the commands that a node can answer as well as a control, from what it does and what it hears.
var readers = map[string]bool{
	"pyservectl status": true, "pyservectl get routes": true, "pyservectl get backends": true, "pyservectl get nodes": true,
	"pyservectl get controls": true, "pyservectl why": true, "pyservectl top": true,
}

func newRoot() *cobra.Command {
	s := &settings{}
	root := &cobra.Command{
		Use:   "pyservectl",
		Short: "Check configurations, apply them, and see what the cluster does",
		Long: `Check configurations, apply them to a PyServe cluster, and see what the cluster does.

Exit codes: 0 done; 1 no (differences found, not converged, refused); 2 could not do it (usage, no connection).`,
		Example: `  pyservectl validate config.yaml
  pyservectl apply config.yaml
  pyservectl status -w
  pyservectl get backends -o json`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			s.reads = readers[cmd.CommandPath()]
			return s.validate()
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&s.context, "context", "", "the operator's context (default $PYSERVE_CONTEXT, then ~/.pyserve/admin.yaml, then ./data/control/admin.yaml)")
	f.StringSliceVar(&s.controls, "control", nil, "control addresses, over those of the context")
	f.StringVarP(&s.output, "output", "o", "table", "table, wide, json, yaml or name")
	f.DurationVar(&s.timeout, "timeout", 60*time.Second, "how long to wait")
	root.AddCommand(newValidateCommand(s), newSchemaCommand(), newApplyCommand(s), newDiffCommand(s), newStatusCommand(s), newGetCommand(s), newControlCommand(s), newBackupCommand(s), newRestoreCommand(s), newVersionCommand(s))
	root.AddCommand(newHistoryCommand(s), newRollbackCommand(s), newExplainCommand(s), newWhyCommand(s), newEventsCommand(s))
	root.AddCommand(newDrainCommand(s), newUndrainCommand(s), newTopCommand(s))
	root.AddCommand(newTokenCommand(s), newNodeCommand(s), newContextCommand(s), newAuditCommand(s), newAuthorityCommand(s), newGossipCommand(s))
	return root
}

func (s *settings) validate() error {
	switch s.output {
	case "table", "wide", "json", "yaml", "name":
	default:
		return fmt.Errorf("--output is table, wide, json, yaml or name, not %q", s.output)
	}
	if s.timeout <= 0 {
		return fmt.Errorf("--timeout must be longer than 0, not %s", s.timeout)
	}
	return nil
}

func newVersionCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.structured() {
				return s.print(cmd.OutOrStdout(), map[string]string{"version": version})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "pyservectl", version)
			return err
		},
	}
}
