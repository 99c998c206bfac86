package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pyserve/pyserve/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	o, err := parseFlags(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "pyserve-scale-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{options: o, dir: dir, ports: newPorts()}
	if b.pyserve, err = build(ctx, dir); err != nil {
		return err
	}
	r, err := b.measure(ctx)
	if err != nil {
		return err
	}
	if err := r.writeTables(os.Stdout); err != nil {
		return err
	}
	return cmp.Or(r.writeMarkdown(o.markdown), r.writeJSON(o.json))
}

// options are the flags.
type options struct {
	// How many nodes and routes, ascending.
	nodes, routes []int
	rounds        int
	only          *regexp.Regexp
	// Where every measurement is written, and where the tables are written too; empty: nowhere.
	json, markdown string
}

// maxNodes is bounded by the descriptors of this process and of control: one each for a stream.
const maxNodes = 5000

func parseFlags(args []string) (options, error) {
	f := flag.NewFlagSet("scale", flag.ContinueOnError)
	nodes := f.String("nodes", "3,100,1000", "how many nodes, a `list`")
	routes := f.String("routes", "10,10000,100000", "how many routes, a `list`")
	rounds := f.Int("rounds", 30, "how often each thing is measured; what takes long is measured less often, and says so")
	only := f.String("only", "", "run only the scenarios that match this regular `expression`: "+strings.Join(scenarioNames(), ", "))
	short := f.Bool("short", false, "a quick look: -nodes 3,100 -routes 10,10000 -rounds 5")
	file := f.String("json", "", "write every measurement to this `file`")
	markdown := f.String("markdown", "", "write the tables to this `file` as well")
	if err := f.Parse(args); err != nil {
		return options{}, err
	}
	set := map[string]bool{}
	f.Visit(func(f *flag.Flag) { set[f.Name] = true })
	if *short {
		*nodes = shortly(set["nodes"], *nodes, "3,100")
		*routes = shortly(set["routes"], *routes, "10,10000")
		*rounds = shortly(set["rounds"], *rounds, 5)
	}
	o := options{rounds: *rounds, json: *file, markdown: *markdown}
	var errNodes, errRoutes, errOnly error
	o.nodes, errNodes = parseCounts(*nodes, maxNodes)
	o.routes, errRoutes = parseCounts(*routes, config.MaxRoutes)
	o.only, errOnly = regexp.Compile(*only)
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q: there are flags only", f.Arg(0))
	case errNodes != nil:
		return o, fmt.Errorf("-nodes: %w", errNodes)
	case errRoutes != nil:
		return o, fmt.Errorf("-routes: %w", errRoutes)
	case errOnly != nil:
		return o, fmt.Errorf("-only: %w", errOnly)
	case o.rounds < 1:
		return o, fmt.Errorf("-rounds %d: at least 1", o.rounds)
	case !slices.ContainsFunc(scenarioNames(), o.only.MatchString):
		return o, fmt.Errorf("-only %s: no scenario is left; there are %s", *only, strings.Join(scenarioNames(), ", "))
	}
	return o, nil
}

// shortly is what -short makes of a flag that was not given.
func shortly[T any](given bool, value, short T) T {
	if given {
		return value
	}
	return short
}

// parseCounts reads a list of numbers and sorts it.
func parseCounts(list string, most int) ([]int, error) {
	var counts []int
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n < 1 || n > most {
			return nil, fmt.Errorf("%q is not a number from 1 to %d", text, most)
		}
		counts = append(counts, n)
	}
	slices.Sort(counts)
	return slices.Compact(counts), nil
}

// bench is one run.
type bench struct {
	options options
	dir     string
	pyserve string // the program
	ports   *ports
}

// scenarios are what can be measured, in the order in which it is.
var scenarios = []struct {
	name    string
	measure func(*bench, context.Context, *report) error
}{
	{"apply", (*bench).measureApplies},
	{"reconnect", (*bench).measureReconnects},
	{"swap", (*bench).measureSwaps},
	{"failover", (*bench).measureFailovers},
	{"outage", (*bench).measureOutages},
	{"leave", (*bench).measureLeave},
}

func scenarioNames() []string {
	var names []string
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}

// measure runs the scenarios that were asked for.
func (b *bench) measure(ctx context.Context) (*report, error) {
	r := &report{Began: time.Now().UTC(), Cores: runtime.NumCPU(), Processor: processorName(), Go: runtime.Version()}
	before, err := machineBusy()
	if err != nil {
		return nil, fmt.Errorf("CPU time is read from Linux's /proc: %w", err)
	}
	if err := enoughDescriptors(b.options.nodes[len(b.options.nodes)-1]); err != nil {
		return nil, err
	}
	for _, s := range scenarios {
		if !b.options.only.MatchString(s.name) {
			continue
		}
		if err := s.measure(b, ctx, r); err != nil {
			if ctx.Err() != nil {
				return nil, errors.New("interrupted")
			}
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	r.Others, err = othersSince(before, r.Began)
	return r, err
}

// note says how far the run is.
func note(format string, values ...any) {
	fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, values...)...)
}

func build(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "pyserve")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "github.com/pyserve/pyserve/cmd/pyserve")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build pyserve: %w\n%s", err, out)
	}
	return path, nil
}

// writeMarkdown writes the tables to a file, for the docs to quote.
func (r *report) writeMarkdown(file string) error {
	if file == "" {
		return nil
	}
	var text bytes.Buffer
	if err := r.writeTables(&text); err != nil {
		return err
	}
	return os.WriteFile(file, text.Bytes(), 0o644)
}

func (r *report) writeJSON(file string) error {
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
