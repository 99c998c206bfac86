package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/pyserve/pyserve/node"
	"github.com/pyserve/pyserve/node/accesslog"
	"github.com/pyserve/pyserve/node/agent"
	"github.com/pyserve/pyserve/node/inspect"
	"github.com/pyserve/pyserve/node/peer"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// nodeOptions are the flags of pyserve node.
type nodeOptions struct {
	controls                                                []string
	tokenFile, name, dataDir, listen, admin, gossip, config string
	join                                                    []string
	accessLog, accessLogFormat                              string
	// token is the join token itself, which only the environment and pyserve up can give.
	token string
}

func newNodeCommand(log *logging) *cobra.Command {
	o := nodeOptions{}
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run a node: it forwards what the cluster's configuration says",
		Long: `Run a node: it forwards HTTP and WebSocket as the cluster's configuration says.

The first start needs control's join token, in a file (--token-file) or itself in PYSERVE_JOIN_TOKEN. Later starts need
neither the token nor control: the node serves the last configuration that it was given, and connects meanwhile.`,
		Example: `  pyserve node --token-file ./data/control/join-token
  pyserve node --control 10.0.0.1:7400 --token-file join-token --name edge-1 --gossip 10.0.0.11:7946
  pyserve node --config config.yaml             # alone, without control; SIGHUP reads the file again`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			o.token = os.Getenv("PYSERVE_JOIN_TOKEN")
			if o.config != "" {
				return runAlone(cmd.Context(), o, logger)
			}
			return runNode(cmd.Context(), o, logger)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.controls, "control", []string{"127.0.0.1:7400"}, "control addresses, comma separated")
	f.StringVar(&o.tokenFile, "token-file", "", "the join token, for the first start")
	f.StringVar(&o.name, "name", hostName(), "unique among the nodes")
	f.StringVar(&o.dataDir, "data-dir", "", "identity and last known good configuration (default ./data/NAME)")
	f.StringVar(&o.listen, "listen", "", "where this node takes clients, over server.host and server.port of the configuration")
	f.StringVar(&o.admin, "admin", "127.0.0.1:7410", "HTTP: metrics, health")
	f.StringVar(&o.gossip, "gossip", "127.0.0.1:7946", "gossip, UDP and TCP")
	f.StringSliceVar(&o.join, "join", nil, "gossip addresses to join, comma separated (default: learnt from control)")
	f.StringVar(&o.accessLog, "access-log", "", "write a line for every request to this file, - for standard output (default: none)")
	f.StringVar(&o.accessLogFormat, "access-log-format", "text", "text or json")
	f.StringVar(&o.config, "config", "", "run alone from this file, without control or gossip")
	return cmd
}

func (o *nodeOptions) validate() error {
	if o.name == "" {
		return errors.New("--name must not be empty")
	}
	if strings.ContainsAny(o.name, "/\\") || strings.HasPrefix(o.name, ".") {
		return fmt.Errorf("--name %q may hold a-z A-Z 0-9 . _ - and begins with a letter or digit", o.name)
	}
	if o.dataDir == "" {
		o.dataDir = filepath.Join("data", o.name)
	}
	if len(o.controls) == 0 {
		return errors.New("--control must name at least one address")
	}
	for _, address := range o.controls {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("--control: %q is not host:port", address)
		}
	}
	return o.checkPorts()
}

// checkPorts tells now of ports that are taken now: the data plane's is bound when there is a configuration, gossip's
// when there are keys.
func (o *nodeOptions) checkPorts() error {
	for flag, address := range map[string]string{"listen": o.listen, "gossip": o.gossip} {
		if address == "" {
			continue
		}
		l, err := listen(flag, address)
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

// drainTime is how long a node that was told to stop may take to finish what it has.
const drainTime = 30 * time.Second

func runNode(ctx context.Context, o nodeOptions, logger *slog.Logger) error {
	p, err := startNode(ctx, o, logger)
	if stoppedWhileStarting(ctx, err) {
		return nil
	}
	if err != nil {
		return err
	}
	<-ctx.Done()
	logger.Info("stopping: finishing what is under way; a second signal stops at once")
	draining, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	return p.undo.run(draining)
}

// nodeProcess is a node with its agent and its membership.
type nodeProcess struct {
	node         *node.Node
	adminAddress string
	undo         cleanups
}

// startNode starts all of a node or nothing. Where the node is not enrolled yet it returns only when it is, or when
// ctx ends; its admin address answers meanwhile.
func startNode(ctx context.Context, o nodeOptions, logger *slog.Logger) (_ *nodeProcess, err error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	p := &nodeProcess{}
	defer func() {
		if err != nil {
			undoing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			err = errors.Join(err, p.undo.run(undoing))
		}
	}()
	dataDir, err := agent.OpenDataDir(o.dataDir)
	if err != nil {
		return nil, err
	}
	p.undo.add(func(context.Context) error { return dataDir.Close() })
	registry := newRegistry()
	m := &membership{options: o, logger: logger}
	if err := p.openNode(o, registry, m, logger); err != nil {
		return nil, err
	}
	m.node = p.node
	id, damage, err := identify(ctx, o, logger)
	if err != nil {
		return nil, err
	}
	p.node.SetStickySecrets(id.GossipKeys)
	p.undo.add(m.stop)
	registry.MustRegister(newGossipMetrics(m.joined))
	a, err := agent.New(agent.Options{
		Node: p.node, Identity: id, Controls: o.controls, DataDir: o.dataDir, Version: version,
		Gossip: m.address, Welcomed: m.welcomed, Peers: m.peers, Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	operators := inspect.New(inspect.Options{
		Name: o.name, Version: version, Node: p.node, Serving: a.Served, Gossip: m.address, Members: m.members,
		Controls: a.Controls, Connected: a.Control,
		Sample: func(ctx context.Context, member inspect.Member, routes uint32) (*fleetv1.Sample, error) {
			return peer.Sample(ctx, a.PeerIdentity(), peer.Node{Name: member.Name, Address: member.Address}, routes)
		},
	})
	m.borrower = peer.NewBorrower(a.PeerIdentity)
	p.undo.add(m.borrower.Stop)
	server := peer.NewServer(peer.ServerOptions{
		Identity: a.PeerIdentity, Holding: a.Holding, Operators: operators, Lend: p.node.Lend, Logger: logger,
	})
	p.undo.add(server.Stop)
	m.takeTLS = server.Take
	registry.MustRegister(newPeerMetrics(a, server))
	stopping := func(context.Context) error {
		a.Stopping()
		return nil
	}
	a.Boot()
	p.undo.add(stopping) // where something else keeps the node from starting
	if damage != nil && p.node.Applied() == nil {
		return nil, damage
	}
	// A node that was enrolled before knows whom to join; a new one learns it from control's first words.
	if err := m.start(id); err != nil {
		return nil, err
	}
	run := a.Run
	if damage != nil {
		run = func(ctx context.Context) { a.Outlast(ctx, damage) }
	}
	p.undo.add(start(run))
	p.undo.add(p.node.Stop)
	p.undo.add(stopping) // before the drain, which a second signal may cut short
	return p, nil
}

// openNode makes the node and its admin address.
func (p *nodeProcess) openNode(o nodeOptions, registry *prometheus.Registry, m *membership, logger *slog.Logger) (err error) {
	adminListener, err := listen("admin", o.admin)
	if err != nil {
		return err
	}
	p.undo.add(closeListener(adminListener))
	p.adminAddress = adminListener.Addr().String()
	requests, err := p.openAccessLog(o, logger)
	if err != nil {
		return err
	}
	p.node, err = node.New(node.Options{
		Name: o.name, Listen: o.listen, Logger: logger, Registerer: registry, AccessLog: requests,
		PublishVotes: m.publishVotes, PeerRoom: m.peerRoom, AskLender: m.askLender,
	})
	if err != nil {
		return err
	}
	p.undo.add(startAdmin(adminListener, registry, notReady(p.node), nil, logger).stop)
	return nil
}

// openAccessLog gives nil where none is asked for.
func (p *nodeProcess) openAccessLog(o nodeOptions, logger *slog.Logger) (*accesslog.Log, error) {
	options := accesslog.Options{Logger: logger}
	switch o.accessLogFormat {
	case "json":
		options.Format = accesslog.JSON
	case "", "text":
	default:
		return nil, fmt.Errorf("--access-log-format is text or json, not %q", o.accessLogFormat)
	}
	switch o.accessLog {
	case "":
		return nil, nil
	case "-":
		options.Writer = os.Stdout
	default:
		file, err := accesslog.OpenFile(o.accessLog)
		if err != nil {
			return nil, fmt.Errorf("--access-log: %w", err)
		}
		p.undo.add(func(context.Context) error { return file.Close() })
		options.Writer = file
	}
	requests, err := accesslog.New(options)
	if err != nil {
		return nil, err
	}
	p.undo.add(requests.Close) // after the node has stopped, so that its last requests are there
	return requests, nil
}

func notReady(n *node.Node) func() string {
	return func() string {
		switch {
		case n.Ready():
			return ""
		case n.Draining():
			return "draining"
		}
		return "no configuration to serve yet"
	}
}

// start starts what runs until its context ends, and gives what ends it and waits.
func start(run func(context.Context)) func(context.Context) error {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx)
	}()
	return func(context.Context) error {
		cancel()
		<-done
		return nil
	}
}

// identify gives the node's identity, and enrols the node where it has none. Where it is damaged, damage says how, and what
// is given is enough to serve what lies on the disk; a damaged identity is never replaced by itself, since a token lets in
// whoever has it.
func identify(ctx context.Context, o nodeOptions, logger *slog.Logger) (id *agent.Identity, damage, err error) {
	id, err = agent.LoadIdentity(o.dataDir)
	switch {
	case err == nil && id.Name != o.name:
		return nil, nil, fmt.Errorf("--data-dir %s is that of node %q, not of %q; give each node a --data-dir of its own", o.dataDir, id.Name, o.name)
	case err == nil:
		return id, nil, nil
	case errors.Is(err, agent.ErrNotEnrolled):
		id, err = enrol(ctx, o, logger)
		return id, nil, err
	}
	witness, missing := agent.Witness(o.dataDir, o.name)
	if missing != nil {
		return nil, nil, err // of an older version, or of a node that never served anything
	}
	return witness, err, nil
}

func enrol(ctx context.Context, o nodeOptions, logger *slog.Logger) (*agent.Identity, error) {
	token := strings.TrimSpace(o.token)
	if o.tokenFile != "" {
		var err error
		if token, err = readSecret("token-file", o.tokenFile); err != nil {
			return nil, err
		}
	}
	if token == "" {
		return nil, errors.New("this node is not enrolled yet: give it control's join token with --token-file FILE (control keeps it in its --data-dir as join-token)")
	}
	return agent.Enroll(ctx, agent.EnrollOptions{Controls: o.controls, Token: token, Name: o.name, DataDir: o.dataDir, Logger: logger})
}
