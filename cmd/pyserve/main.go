// Command pyserve runs the daemons of a PyServe cluster: control, nodes, or, for a first look, all of them at once.
//
// It owns flags, signals, the logger and the wiring of the lanes; what a control or a node does is in the packages of
// those names.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// version is set by the linker.
var version = "dev"

// Exit codes, the same for every command.
const (
	exitDone   = 0
	exitCannot = 2
)

func main() {
	// Whoever reads the log may go away; what forwards must not go with it. Writes to the pipe then fail, and that is all.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := untilSignalled(os.Stderr)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pyserve:", err)
		os.Exit(exitCannot)
	}
}

// untilSignalled gives a context that the first SIGINT or SIGTERM ends; the second ends the process.
func untilSignalled(to io.Writer) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		fmt.Fprintln(to, "pyserve: second signal, stopping at once")
		os.Exit(exitCannot)
	}()
	return ctx, cancel
}

// stoppedWhileStarting says that a start failed because a signal had ended ctx, which is no failure.
func stoppedWhileStarting(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Canceled)
}

// logging are the flags that every daemon has.
type logging struct{ format, level string }

func newRoot() *cobra.Command {
	logs := &logging{}
	root := &cobra.Command{
		Use:   "pyserve",
		Short: "A reverse-proxy cluster: one control, any number of nodes, one file for all",
		Long: `PyServe forwards HTTP and WebSocket through a cluster of nodes that one control keeps at one configuration.

Every flag can also be set in the environment: PYSERVE_ and the flag's name in capitals, with _ for -.`,
		Example: `  pyserve up                                    # a whole cluster on this machine, to look at
  pyserve control                               # the control of a real one
  pyserve node --control 10.0.0.1:7400 --token-file join-token
  pyservectl apply config.yaml`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return fromEnvironment(cmd.Flags(), os.LookupEnv)
		},
	}
	root.PersistentFlags().StringVar(&logs.format, "log-format", "text", "how to log to standard error: text or json")
	root.PersistentFlags().StringVar(&logs.level, "log-level", "info", "what to log: debug, info, warn or error")
	root.AddCommand(newUpCommand(logs), newControlCommand(logs), newNodeCommand(logs), newVersionCommand())
	return root
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "pyserve", version) },
	}
}

// fromEnvironment sets every flag that the command line did not set and the environment does.
func fromEnvironment(flags *pflag.FlagSet, lookup func(string) (string, bool)) error {
	var problems []error
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "help" {
			return
		}
		name := "PYSERVE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := lookup(name)
		if !ok {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
		}
	})
	return errors.Join(problems...)
}

func (l *logging) logger(to io.Writer) (*slog.Logger, error) {
	var level slog.Level
	switch strings.ToLower(l.level) {
	case "debug", "info", "warn", "error":
		if err := level.UnmarshalText([]byte(l.level)); err != nil {
			return nil, fmt.Errorf("--log-level: %w", err)
		}
	default:
		return nil, fmt.Errorf("--log-level is debug, info, warn or error, not %q", l.level)
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler
	switch l.format {
	case "text":
		handler = slog.NewTextHandler(to, options)
	case "json":
		handler = slog.NewJSONHandler(to, options)
	default:
		return nil, fmt.Errorf("--log-format is text or json, not %q", l.format)
	}
	// net/http's client says some things to the process's own logger only, and quotes what a backend sent.
	log.SetFlags(0)
	log.SetOutput(slog.NewLogLogger(handler, slog.LevelDebug).Writer())
	return slog.New(handler), nil
}

// hostName is the default of the names; empty where the system has none, which the flag's own check then tells.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}
