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
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// The roles that this program has in its child processes: its first argument.
const (
	backendRole      = "backend"
	loadRole         = "load"
	reverseProxyRole = "reverseproxy"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case backendRole:
			return runBackend(ctx, args[1:])
		case loadRole:
			return runLoadChild(ctx, os.Stdin, os.Stdout)
		case reverseProxyRole:
			return runReverseProxy(args[1:])
		}
	}
	o, err := parseFlags(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	return compare(ctx, o)
}

// options are the flags.
type options struct {
	rounds  int
	seconds time.Duration
	// Whose names match.
	scenario, proxy *regexp.Regexp
	// Another version of PyServe that takes part; empty: none.
	before string
	// Where every measurement is written, and where the tables are written too; empty: nowhere.
	json, markdown string
}

func parseFlags(args []string) (options, error) {
	f := flag.NewFlagSet("peers", flag.ContinueOnError)
	rounds := f.Int("rounds", 3, "how often each proxy is measured in each scenario; the tables show medians")
	seconds := f.Float64("seconds", 2, "how long each measurement lasts")
	scenario := f.String("scenario", "", "measure only the scenarios that match this regular `expression`")
	proxy := f.String("proxy", "", "measure only the proxies that match this regular `expression`")
	before := f.String("before", "", "measure the pyserve in this `file`, of another version, as well, and what this one costs beside it")
	file := f.String("json", "", "write every measurement to this `file`")
	markdown := f.String("markdown", "", "write the tables to this `file` as well")
	if err := f.Parse(args); err != nil {
		return options{}, err
	}
	o := options{rounds: *rounds, seconds: time.Duration(*seconds * float64(time.Second)), before: *before, json: *file, markdown: *markdown}
	var errScenario, errProxy error
	o.scenario, errScenario = regexp.Compile(*scenario)
	o.proxy, errProxy = regexp.Compile(*proxy)
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q: there are flags only", f.Arg(0))
	case o.rounds < 1:
		return o, fmt.Errorf("-rounds %d: at least 1", o.rounds)
	case o.seconds < 50*time.Millisecond:
		return o, fmt.Errorf("-seconds %v: at least 0.05", *seconds)
	case errScenario != nil:
		return o, fmt.Errorf("-scenario: %w", errScenario)
	case errProxy != nil:
		return o, fmt.Errorf("-proxy: %w", errProxy)
	}
	return o, nil
}

// compare is the whole run. The tables go to standard output, all else to standard error.
func compare(ctx context.Context, o options) error {
	if _, err := cpuOf(os.Getpid()); err != nil {
		return fmt.Errorf("CPU time is read from Linux's /proc: %w", err)
	}
	dir, err := os.MkdirTemp("", "pyserve-peers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	peers, missing, err := findPeers(ctx, dir, o.proxy)
	if err != nil {
		return err
	}
	if o.before != "" {
		path, err := filepath.Abs(o.before) // proxies run in folders of their own
		if err != nil {
			return err
		}
		peers = append(peers, pyserve(beforePeer, path, firstLine(ctx, path, "version")))
	}
	for _, line := range missing {
		fmt.Fprintln(os.Stderr, line)
	}
	if err := enoughDescriptors(o); err != nil {
		return err
	}
	b, err := newBench(ctx, dir)
	if err != nil {
		return err
	}
	defer b.close()
	r, err := b.rounds(ctx, o, peers)
	if err != nil {
		return err
	}
	r.Missing = missing
	if err := r.writeTables(os.Stdout); err != nil {
		return err
	}
	return cmp.Or(r.writeMarkdown(o.markdown), r.writeJSON(o.json), r.complaint())
}

// enoughDescriptors is an error where a proxy could not hold the idle connections that are to be measured.
func enoughDescriptors(o options) error {
	if !slices.ContainsFunc(o.chosen(), func(s scenario) bool { return s.open != nil }) {
		return nil
	}
	const wanted = 2*idleConnections + 1000 // a proxy has two for each; some more are its own
	most, err := descriptorLimit()
	if err == nil && most < wanted {
		err = fmt.Errorf("a process may have %d descriptors, and %d idle connections take %d: raise the hard limit (ulimit -Hn), or choose by -scenario",
			most, idleConnections, wanted)
	}
	return err
}

// chosen are the scenarios whose names match.
func (o options) chosen() []scenario {
	return slices.DeleteFunc(scenarios(), func(s scenario) bool { return !o.scenario.MatchString(s.name) })
}

// rounds measures every peer in every scenario, as often as there are rounds. Who comes first changes from round to round.
func (b *bench) rounds(ctx context.Context, o options, peers []peer) (*report, error) {
	chosen := slices.DeleteFunc(o.chosen(), func(s scenario) bool { return !slices.ContainsFunc(peers, s.measures) })
	if len(chosen) == 0 {
		return nil, errors.New("no scenario or no proxy is left to measure")
	}
	const around = 900 * time.Millisecond // start, check, warm-up, end
	total := time.Duration(o.rounds*len(chosen)*len(peers)) * (o.seconds + around)
	fmt.Fprintf(os.Stderr, "%d scenarios × %d proxies × %d rounds: at most about %v\n", len(chosen), len(peers), o.rounds, total.Round(time.Second))
	r := b.newReport(o, chosen, peers)
	for round := range o.rounds {
		for _, s := range chosen {
			for i := range peers {
				p := peers[(i+round)%len(peers)]
				if !s.measures(p) {
					continue
				}
				m := b.measure(ctx, p, s, o.seconds)
				if ctx.Err() != nil {
					return nil, errors.New("interrupted")
				}
				m.Round = round + 1
				r.Measurements = append(r.Measurements, m)
				fmt.Fprintf(os.Stderr, "round %d: %s\n", m.Round, m)
			}
		}
	}
	return r, nil
}

func (b *bench) newReport(o options, chosen []scenario, peers []peer) *report {
	r := &report{
		Began: time.Now().UTC(), Cores: runtime.NumCPU(), Processor: processorName(), Go: runtime.Version(),
		Rounds: o.rounds, Seconds: o.seconds.Seconds(), Idle: b.idle,
	}
	for _, p := range peers {
		r.Peers = append(r.Peers, peerNote{p.name, p.version})
	}
	for _, s := range chosen {
		r.Scenarios = append(r.Scenarios, scenarioNote{s.name, s.about, s.open != nil, s.only, s.like})
	}
	return r
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
