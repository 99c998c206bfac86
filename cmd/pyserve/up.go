package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/control"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// upOptions are the flags of pyserve up.
type upOptions struct {
	nodes, port     int
	dataDir, config string
	dataDirNamed    bool
}

func newUpCommand(log *logging) *cobra.Command {
	o := upOptions{}
	cmd := &cobra.Command{
		Use:   "up [CONFIG]",
		Short: "Run a whole cluster on this machine, for a first look",
		Long: `Run a whole cluster on this machine, for a first look: one control, some nodes and, without a CONFIG, two small
backends with a configuration for them. Ctrl-C stops it all.

Without --data-dir it uses ./data, and removes it again when it stops. A --data-dir that is named is kept, and can be
used again.`,
		Example: `  pyserve up
  pyserve up --nodes 5 config.yaml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("log-level") {
				log.level = "warn" // what up prints itself is enough to follow
			}
			logger, err := log.logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				o.config = args[0]
			}
			o.dataDirNamed = cmd.Flags().Changed("data-dir")
			return runUp(cmd.Context(), o, cmd.OutOrStdout(), logger)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.nodes, "nodes", 3, "how many nodes")
	f.StringVar(&o.dataDir, "data-dir", "./data", "where control and nodes keep their state")
	f.IntVar(&o.port, "port", 8080, "the first node's port, the others count on; 0 picks free ports for everything")
	return cmd
}

func runUp(ctx context.Context, o upOptions, out io.Writer, logger *slog.Logger) error {
	u := &up{options: o, out: out, logger: logger}
	err := u.start(ctx)
	if err == nil {
		u.greet()
		<-ctx.Done()
		fmt.Fprintln(out, "\nStopping.")
	}
	switch {
	case stoppedWhileStarting(ctx, err):
		err = nil
	case errors.Is(err, syscall.EADDRINUSE):
		err = fmt.Errorf("%w; is another cluster running here? --port 0 picks free ports for everything", err)
	}
	// Connections of a first look need no long good-bye.
	stopping, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	return errors.Join(err, u.undo.run(stopping))
}

// up is a cluster in one process.
type up struct {
	options upOptions
	out     io.Writer
	logger  *slog.Logger

	control *controlProcess
	nodes   []*nodeProcess
	demo    bool
	tls     bool
	undo    cleanups
}

func (u *up) start(ctx context.Context) error {
	o := u.options
	if o.nodes < 1 || o.nodes > 50 {
		return fmt.Errorf("--nodes is 1 to 50, not %d", o.nodes)
	}
	if o.port != 0 && (o.port < 1 || o.port+o.nodes > 65536) {
		return fmt.Errorf("--port %d leaves no room for %d nodes", o.port, o.nodes)
	}
	document, files, err := u.document()
	if err != nil {
		return err
	}
	if err := u.claimDataDir(); err != nil {
		return err
	}
	if err := u.startControl(ctx); err != nil {
		return err
	}
	u.undo.add(u.stopNodes)
	for i := range o.nodes {
		if err := u.startNode(ctx, i); err != nil {
			return err
		}
	}
	if err := u.allConnected(ctx); err != nil {
		return err
	}
	return u.apply(ctx, control.Document{Data: document, Files: files})
}

// document gives the configuration: the file that was named, or one for two demo backends.
func (u *up) document() (document []byte, files map[string][]byte, err error) {
	if u.options.config == "" {
		return u.startDemo()
	}
	document, read, err := readDocument(u.options.config)
	if err != nil {
		return nil, nil, err
	}
	// Errors are told before anything starts.
	resources, problems := config.Parse(document, read)
	if resources == nil {
		return nil, nil, describeProblems(u.options.config, problems)
	}
	u.tls = resources.Listener.GetCertificate() != ""
	files = map[string][]byte{}
	for _, name := range config.NamedFiles(document) {
		if files[name], err = read(name); err != nil {
			return nil, nil, err
		}
	}
	return document, files, nil
}

// upMark lies in the data directories that up made, so that it never takes a real control's for its own.
const upMark = "made-by-pyserve-up"

// claimDataDir makes the data directory, or takes over one that an earlier up made. A directory that was not named is
// removed in the end: at once by whoever made it; otherwise only by whoever got as far as starting a control in it,
// since another up may be running there.
func (u *up) claimDataDir() error {
	dir := u.options.dataDir
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("--data-dir: %w", err)
	}
	mark := filepath.Join(dir, upMark)
	if _, missing := os.Stat(mark); missing != nil && len(entries) > 0 {
		return fmt.Errorf("--data-dir: %s holds something that pyserve up did not make; name another", dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		u.removeDataDir()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	return nil
}

func (u *up) startControl(ctx context.Context) (err error) {
	o := controlOptions{
		dataDir: filepath.Join(u.options.dataDir, "control"), name: "control",
		listen: u.address(7400), admin: u.address(7401), gossip: u.address(7402),
	}
	if u.control, err = startControl(ctx, o, u.logger.With("process", "control")); err != nil {
		return err
	}
	u.removeDataDir()
	u.undo.add(u.control.undo.run)
	return nil
}

// removeDataDir has the data directory removed in the end, unless it was named.
func (u *up) removeDataDir() {
	if !u.options.dataDirNamed {
		u.undo.add(func(context.Context) error { return os.RemoveAll(u.options.dataDir) })
	}
}

func (u *up) startNode(ctx context.Context, i int) error {
	token, err := readSecret("data-dir", filepath.Join(u.options.dataDir, "control", control.JoinTokenFile))
	if err != nil {
		return err
	}
	name := "n" + strconv.Itoa(i+1)
	o := nodeOptions{
		controls: []string{u.control.endpoint}, token: token, name: name, dataDir: filepath.Join(u.options.dataDir, name),
		listen: u.address(u.options.port + i), admin: u.address(7410 + i), gossip: u.address(7946 + i),
	}
	p, err := startNode(ctx, o, u.logger.With("process", name))
	if err != nil {
		return err
	}
	u.nodes = append(u.nodes, p)
	return nil
}

// stopNodes stops the nodes that were started, all at the same time: each may have connections that use up ctx. That some
// had to be cut is no failure of a first look.
func (u *up) stopNodes(ctx context.Context) error {
	var stopping sync.WaitGroup
	for _, p := range u.nodes {
		stopping.Go(func() {
			if err := p.undo.run(ctx); err != nil {
				u.logger.Warn("a node did not end in time", "error", err)
			}
		})
	}
	stopping.Wait()
	return nil
}

// address gives a loopback address with the port, or with any where --port is 0.
func (u *up) address(port int) string {
	if u.options.port == 0 {
		port = 0
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// allConnected waits until every node has a stream, so that the apply is for all of them.
func (u *up) allConnected(ctx context.Context) error {
	changed, stop := u.control.control.Watch()
	defer stop()
	for {
		connected := 0
		for _, n := range u.control.control.Status().GetNodes() {
			if n.GetState() != "disconnected" && n.GetState() != "left" {
				connected++
			}
		}
		if connected >= len(u.nodes) {
			return nil
		}
		select {
		case <-changed:
		case err := <-u.control.failed:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (u *up) apply(ctx context.Context, document control.Document) error {
	emit := func(e *operatorv1.ApplyEvent) {
		if p := e.GetProblem(); p != nil && p.GetWarning() && !u.demo {
			fmt.Fprintf(u.out, "warning: %s:%d: %s: %s\n", u.options.config, p.GetLine(), p.GetPath(), p.GetMessage())
		}
	}
	options := &operatorv1.ApplyOptions{Message: "pyserve up"}
	result, err := u.control.control.Apply(ctx, "pyserve-up", document, options, emit)
	if err != nil {
		return err
	}
	switch result.GetOutcome() {
	case operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED:
		return nil
	}
	return fmt.Errorf("the configuration was not taken: %s", result.GetReason())
}

// greet prints what there is and what to try.
func (u *up) greet() {
	var b strings.Builder
	nodes := "1 node"
	if len(u.nodes) > 1 {
		nodes = fmt.Sprintf("%d nodes, all of which serve the same configuration", len(u.nodes))
	}
	fmt.Fprintf(&b, "PyServe is up: 1 control, %s.\n\n", nodes)
	scheme := "http"
	if u.tls {
		scheme = "https"
	}
	first := u.nodes[0].node.ListenAddress()
	for i, p := range u.nodes {
		fmt.Fprintf(&b, "  node n%-3d   %s://%s\n", i+1, scheme, p.node.ListenAddress())
	}
	fmt.Fprintf(&b, "  dashboard   http://%s/\n\nTry, in another terminal in this folder:\n\n", u.control.adminAddress)
	if u.demo {
		fmt.Fprintf(&b, "  curl -i http://%s/api/hello\n", first)
	}
	admin := filepath.Join(u.options.dataDir, "control", control.AdminFile)
	context := ""
	if filepath.Clean(admin) != filepath.Join("data", "control", control.AdminFile) {
		context = " --context " + admin
	}
	fmt.Fprintf(&b, "  %s%s status\n", pyservectl(), context)
	if u.demo {
		fmt.Fprintf(&b, "  a WebSocket that echoes: ws://%s/ws\n", first)
	}
	b.WriteString("\nCtrl-C stops it all.\n")
	io.WriteString(u.out, b.String())
}

// pyservectl gives how to call the operator's tool: by name where the shell finds it, otherwise by its path beside
// this program.
func pyservectl() string {
	self, err := os.Executable()
	if err != nil {
		return "pyservectl"
	}
	beside := filepath.Join(filepath.Dir(self), "pyservectl")
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if info, err := os.Stat(filepath.Join(dir, "pyservectl")); err == nil && !info.IsDir() {
			return "pyservectl"
		}
	}
	if _, err := os.Stat(beside); err != nil {
		return "pyservectl"
	}
	if here, err := os.Getwd(); err == nil {
		if relative, err := filepath.Rel(here, beside); err == nil && !strings.HasPrefix(relative, "..") {
			return "./" + relative
		}
	}
	return beside
}
