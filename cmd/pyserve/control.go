package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/pyserve/pyserve/cluster"
	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/api"
	"github.com/pyserve/pyserve/control/store"
	"github.com/pyserve/pyserve/control/web"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// controlOptions are the flags of pyserve control.
type controlOptions struct {
	dataDir, name, listen, admin, gossip, raft, advertise, join, tokenFile string
	forceSingle                                                            bool
}

func newControlCommand(log *logging) *cobra.Command {
	o := controlOptions{}
	cmd := &cobra.Command{
		Use:   "control",
		Short: "Run the control of a cluster",
		Long: `Run the control of a cluster: it keeps the configuration, lets nodes in, and brings every apply to all of them.

The first start makes in --data-dir, readable by you alone: join-token (for nodes), control-token (for further
controls) and admin.yaml (for pyservectl).

With --join it becomes a replica of a control that runs. Three controls go on when one is lost, five when two are. A
replica that has joined once needs neither --join nor the token again.

--force-single is for when most of the controls are lost for good and changes are refused for that: it makes this one
the only one. What only the lost ones had stored is lost; they must never be started again with their old data.`,
		Example: `  pyserve control
  pyserve control --listen 10.0.0.1:7400 --gossip 10.0.0.1:7402 --raft 10.0.0.1:7403 --data-dir /var/lib/pyserve
  pyserve control --listen 10.0.0.2:7400 --gossip 10.0.0.2:7402 --raft 10.0.0.2:7403 --data-dir /var/lib/pyserve \
    --join 10.0.0.1:7400 --token-file control-token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return runControl(cmd.Context(), o, logger)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dataDir, "data-dir", "./data/control", "all durable state")
	f.StringVar(&o.name, "name", hostName(), "unique among the controls")
	f.StringVar(&o.listen, "listen", "127.0.0.1:7400", "gRPC, for nodes and operators")
	f.StringVar(&o.admin, "admin", "127.0.0.1:7401", "HTTP: dashboard, metrics, health")
	f.StringVar(&o.gossip, "gossip", "127.0.0.1:7402", "gossip, UDP and TCP")
	f.StringVar(&o.raft, "raft", "127.0.0.1:7403", "replication between controls, used only when there is more than one")
	f.StringVar(&o.advertise, "advertise", "", "what others dial (default: the address part of --listen)")
	f.StringVar(&o.join, "join", "", "a running control to join as a replica")
	f.StringVar(&o.tokenFile, "token-file", "", "the control token, with --join")
	f.BoolVar(&o.forceSingle, "force-single", false, "make this control the only one: the way out where most are lost for good")
	return cmd
}

func runControl(ctx context.Context, o controlOptions, logger *slog.Logger) error {
	p, err := startControl(ctx, o, logger)
	if stoppedWhileStarting(ctx, err) {
		return nil
	}
	if err != nil {
		return err
	}
	logger.Info("control is ready", "grpc", p.endpoint, "admin", p.adminAddress, "gossip", p.cluster.Address(),
		"join_token", filepath.Join(o.dataDir, control.JoinTokenFile), "context", filepath.Join(o.dataDir, control.AdminFile))
	select {
	case <-ctx.Done():
		logger.Info("stopping")
	case err = <-p.failed:
	}
	stopping, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(err, p.undo.run(stopping))
}

// controlProcess is a control with its sockets.
type controlProcess struct {
	control      *control.Control
	cluster      *cluster.Cluster
	endpoint     string
	adminAddress string
	failed       chan error // the gRPC server ended by itself
	undo         cleanups
}

// startControl starts all of a control or nothing. Sockets come first: whoever starts a second control by mistake is
// told so before anything is touched.
func startControl(ctx context.Context, o controlOptions, logger *slog.Logger) (_ *controlProcess, err error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	p := &controlProcess{failed: make(chan error, 1)}
	defer func() {
		if err != nil {
			undoing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			err = errors.Join(err, p.undo.run(undoing))
		}
	}()
	grpcListener, err := listen("listen", o.listen)
	if err != nil {
		return nil, err
	}
	p.undo.add(closeListener(grpcListener))
	adminListener, err := listen("admin", o.admin)
	if err != nil {
		return nil, err
	}
	p.undo.add(closeListener(adminListener))
	p.adminAddress = adminListener.Addr().String()
	host, err := advertised(o.advertise, grpcListener.Addr())
	if err != nil {
		return nil, err
	}
	p.endpoint = endpoint(host, grpcListener.Addr())

	raftAddress, err := raftAdvertise(o.raft, host)
	if err != nil {
		return nil, err
	}
	var members atomic.Pointer[cluster.Cluster]
	var seeds atomic.Pointer[[]string]
	var keying sync.Mutex // guards keys, and that gossip is told of the latest last
	var keys [][]byte
	peers := api.NewPeers(func() (*tls.Config, error) { return p.control.PeerTLS() })
	p.undo.add(func(context.Context) error { return peers.Close() })
	p.control, err = control.New(control.Options{
		DataDir: o.dataDir, Name: o.name, Endpoint: p.endpoint, Version: version, Logger: logger,
		Members:  func() []control.Member { return gossipMembers(members.Load(), cluster.RoleNode) },
		Controls: func() []control.Member { return gossipMembers(members.Load(), cluster.RoleControl) },
		GossipAddress: func() string {
			if c := members.Load(); c != nil {
				return c.Address()
			}
			return ""
		},
		GossipKeys: func(next [][]byte) error {
			keying.Lock()
			defer keying.Unlock()
			keys = next
			if c := members.Load(); c != nil {
				return c.SetKeys(next)
			}
			return nil
		},
		Replication: control.Replication{
			Address: raftAddress, Peers: peers, Join: o.joiner(), Alone: o.forceSingle,
			Network: func(server, client *tls.Config) *store.Network { return api.Network(o.raft, server, client) },
			Hung:    func(err error) { endHung(err, logger) },
			Seeds: func(addresses []string) {
				seeds.Store(&addresses)
				if c := members.Load(); c != nil {
					c.SetSeeds(addresses)
				}
			},
		},
	})
	if err != nil {
		return nil, err
	}
	if err := p.control.Start(ctx); err != nil {
		return nil, err
	}
	p.undo.add(func(context.Context) error { return p.control.Stop() })
	if err := p.startGossip(o, host, logger); err != nil {
		return nil, err
	}
	// The keys may be others since gossip was asked to start.
	keying.Lock()
	members.Store(p.cluster)
	err = p.cluster.SetKeys(keys)
	keying.Unlock()
	if err != nil {
		return nil, err
	}
	if known := seeds.Load(); known != nil {
		p.cluster.SetSeeds(*known)
	}
	if err := p.serve(grpcListener, peers, logger); err != nil {
		return nil, err
	}
	registry := newRegistry()
	registry.MustRegister(p.control.Collector(), newGossipMetrics(members.Load))
	p.undo.add(startAdmin(adminListener, registry, p.control.Trouble, web.Handler(p.control, logger), logger).stop)
	// First of all when this process is told to stop, while it still serves.
	p.undo.add(func(ctx context.Context) error {
		if err := p.control.HandOver(ctx); err != nil {
			logger.Warn("could not hand the lead over; the others will notice that this control is gone", "error", err)
		}
		return nil
	})
	return p, nil
}

func (o controlOptions) validate() error {
	switch {
	case o.join == "" && o.tokenFile != "":
		return errors.New("--token-file is the control token to --join others with")
	case o.join != "" && o.forceSingle:
		return errors.New("--force-single makes this control the only one, so it cannot --join others")
	}
	return nil
}

// joiner asks the control that --join names to let this one in; nil: it is not to join.
func (o controlOptions) joiner() func(context.Context, *fleetv1.JoinRequest) (*fleetv1.JoinResponse, error) {
	if o.join == "" {
		return nil
	}
	return func(ctx context.Context, m *fleetv1.JoinRequest) (*fleetv1.JoinResponse, error) {
		if o.tokenFile == "" {
			return nil, errors.New("--join needs the control token: --token-file FILE (every control keeps one in its --data-dir as control-token)")
		}
		token, err := readSecret("token-file", o.tokenFile)
		if err != nil {
			return nil, err
		}
		return api.Join(ctx, o.join, token, m)
	}
}

// endHung ends the process at once: a leader that cannot write would lead on, and nobody could change anything.
func endHung(err error, logger *slog.Logger) {
	logger.Error("control ends", "error", err)
	os.Exit(exitCannot)
}

// raftAdvertise gives the address that other controls reach the log at; empty: the flag names none, and there can be no
// others.
func raftAdvertise(bind, host string) (string, error) {
	if bind == "" {
		return "", nil
	}
	bound, port, err := net.SplitHostPort(bind)
	if err != nil {
		return "", fmt.Errorf("--raft: %q is not host:port", bind)
	}
	if port == "0" {
		return "", nil
	}
	if ip := net.ParseIP(bound); bound != "" && (ip == nil || !ip.IsUnspecified()) {
		host = bound
	}
	return net.JoinHostPort(host, port), nil
}

func (p *controlProcess) startGossip(o controlOptions, host string, logger *slog.Logger) (err error) {
	own, err := p.control.Gossip()
	if err != nil {
		return err
	}
	gossipHost, err := gossipAdvertise(o.gossip, host)
	if err != nil {
		return err
	}
	p.cluster, err = cluster.New(cluster.Options{
		Name: o.name, Role: cluster.RoleControl, ClusterID: own.ClusterID, Bind: o.gossip, Advertise: gossipHost, Logger: logger,
		Keys: own.Keys, Key: own.Signer, Issuer: own.Issuer, Voucher: own.Voucher,
		RememberFile: filepath.Join(o.dataDir, "peers.json"),
	})
	if err != nil {
		return err
	}
	if err := p.cluster.Start(); err != nil {
		return fmt.Errorf("--gossip: %w", err)
	}
	p.undo.add(func(context.Context) error {
		leaveGossip(p.cluster, logger)
		return nil
	})
	return nil
}

// leaveTime is how long the good-bye to the other members may take.
const leaveTime = 5 * time.Second

// leaveGossip ends membership. It has a time of its own, since a drain before it may take all there was. A good-bye that
// nobody heard is no failure: the others find out by themselves.
func leaveGossip(c *cluster.Cluster, logger *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	if err := c.Stop(ctx); err != nil {
		logger.Warn("left gossip without a good-bye", "error", err)
	}
}

func (p *controlProcess) serve(l net.Listener, peers *api.Peers, logger *slog.Logger) error {
	tlsConfig, err := p.control.ServerTLS()
	if err != nil {
		return err
	}
	server := api.NewServer(p.control, tlsConfig, peers, logger)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			p.failed <- fmt.Errorf("--listen: %w", err)
		}
	}()
	p.undo.add(func(ctx context.Context) error {
		p.control.EndStreams()
		api.Stop(ctx, server)
		<-done
		return nil
	})
	return nil
}

// gossipMembers gives the members of a role as gossip sees them, in control's terms.
func gossipMembers(c *cluster.Cluster, role cluster.Role) []control.Member {
	if c == nil {
		return nil
	}
	var out []control.Member
	for _, m := range c.Members() {
		if m.Role == role {
			out = append(out, control.Member{Name: m.Name, Address: m.Address, State: m.State.String()})
		}
	}
	return out
}

func closeListener(l net.Listener) func(context.Context) error {
	return func(context.Context) error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// advertised gives the host that others dial: the flag, or the address listened on, or, where that is every address,
// the one this machine reaches others from.
func advertised(flag string, listening net.Addr) (string, error) {
	if flag != "" {
		if host, _, err := net.SplitHostPort(flag); err == nil {
			return "", fmt.Errorf("--advertise is an address without a port: %s", host)
		}
		return flag, nil
	}
	return dialable(listening.(*net.TCPAddr).IP)
}

// dialable gives ip, or this machine's own address where ip is the unspecified one.
func dialable(ip net.IP) (string, error) {
	if !ip.IsUnspecified() {
		return ip.String(), nil
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("look for this machine's addresses: %w", err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && (n.IP.To4() != nil || ip.To4() == nil) {
			return n.IP.String(), nil
		}
	}
	return "127.0.0.1", nil
}

// gossipAdvertise gives the host that gossip is reached at: the one bound or, where every address is, the host that
// the rest of the process is reached at.
func gossipAdvertise(bind, host string) (string, error) {
	bound, _, err := net.SplitHostPort(bind)
	if err != nil {
		return "", fmt.Errorf("--gossip: %q is not host:port", bind)
	}
	if ip := net.ParseIP(bound); bound == "" || ip != nil && ip.IsUnspecified() {
		return host, nil
	}
	return "", nil
}

func endpoint(host string, listening net.Addr) string {
	return net.JoinHostPort(host, fmt.Sprint(listening.(*net.TCPAddr).Port))
}

// readSecret reads a token file.
func readSecret(flag, path string) (string, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("--%s: %s does not exist; control makes it in its --data-dir at first start", flag, path)
	case err != nil:
		return "", fmt.Errorf("--%s: %w", flag, err)
	case len(data) == 0 || len(data) > 4096:
		return "", fmt.Errorf("--%s: %s holds no token", flag, path)
	}
	return strings.TrimSpace(string(data)), nil
}
