// Package agent is the node's side of the conversation with control: it enrols the node, keeps one stream open to
// whichever control answers, takes bundles off it, has the node prepare and serve them, and reports what the node
// does. It keeps the last known good bundle on disk and lets the node serve from it before any control was reached; one
// that ends the process again and again is given up for the one before.
//
// It does not forward requests and does not know what gossip is: it hands over what control says about gossip.
//
// The order of calls: [LoadIdentity] or [Enroll] → [New] → [Agent.Boot] → [Agent.Run] until its context ends;
// [Agent.Stopping] as soon as it is known that it will. Where the identity is damaged: [Witness] → [New] → [Agent.Boot] →
// [Agent.Outlast].
package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// Options are what an Agent needs.
type Options struct {
	// Node is driven by the agent alone. Required.
	Node *node.Node
	// Identity is who the node is. Required.
	Identity *Identity
	// Controls are the addresses to connect to, beside those that control tells of. At least one.
	Controls []string
	// DataDir holds the identity and the bundles. Required.
	DataDir string
	// Version is told to control.
	Version string
	// Gossip gives the node's gossip address for Status; nil: none.
	Gossip func() string
	// Welcomed is called with what control says about gossip, whenever a stream begins and when it gave another voucher or other
	// keys; an error: the keys are not used. nil: nobody asks.
	Welcomed func(*Identity) error
	// Peers gives the members of the cluster that serve something, for when control is away; nil: none are asked.
	Peers func() []Peer
	// Logger is required.
	Logger *slog.Logger
	// Now is the clock for certificate renewal and trials; nil: time.Now.
	Now func() time.Time
}

// Agent is driven by one goroutine, which calls Boot and then Run or Outlast; only Stopping, Holding, PeerIdentity and
// FromPeers may be called beside it.
type Agent struct {
	options  Options
	identity atomic.Pointer[Identity]
	bootID   string
	pause    backoff
	held     atomic.Pointer[holding]
	peers    peerCounts
	attended atomic.Bool            // a control is there; as gone says
	control  atomic.Pointer[string] // its address; nil: none is there

	// mu is held by whoever drives the node: for each event of control's stream, and while a bundle of a peer is taken in.
	// It guards what follows, apart from pause and troubles, which belong to Run's goroutine.
	mu     sync.Mutex
	memory memory
	// gone is since when no control has said anything; zero: one is there.
	gone time.Time
	// giver is the peer that what is served came from; empty: it came from control, or from the disk.
	giver string

	applied  *bundle.Bundle // what the node serves; nil: nothing
	waiting  bool           // there is a bundle on disk that could not be served yet
	refusals []*fleetv1.Refusal
	troubles map[string]string // what was last logged about a control, by address
	// keys is the digest of the keys of gossip that are used, which is told while the disk has them too; nil: there are none.
	keys []byte
	// unkept says that the identity on the disk is an older one.
	unkept bool
	// unwelcome says that a control refused the certificate; only renewing it can help.
	unwelcome bool
}

// New opens the node's bundle directory, which nobody else has open.
func New(o Options) (*Agent, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	directory, err := bundle.OpenDirectory(filepath.Join(o.DataDir, "bundles"))
	if err != nil {
		return nil, err
	}
	if err := keepReleaseKey(o.DataDir, o.Identity.ReleaseKey); err != nil {
		o.Logger.Warn("a damaged identity would keep this node from serving what is on its disk", "error", err)
	}
	boot := make([]byte, 8)
	rand.Read(boot)
	a := &Agent{options: o, bootID: hex.EncodeToString(boot), troubles: map[string]string{}}
	a.memory = memory{directory: directory, trial: openTrial(directory, o.Now, o.Logger)}
	if mark := a.memory.trial.mark; mark != nil {
		a.memory.epoch = mark.Release.GetEpoch() // it was served
	}
	a.identity.Store(o.Identity)
	a.gone = o.Now()
	return a, nil
}

// driving does something while nobody else drives the node.
func (a *Agent) driving(act func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return act()
}

// controlIsGone is called with mu held.
func (a *Agent) controlIsGone() {
	if a.gone.IsZero() {
		a.gone = a.options.Now()
		a.attended.Store(false)
		a.control.Store(nil)
	}
}

// Control is the address of the control that the node is connected to; empty: none. It may be called from any goroutine.
func (a *Agent) Control() string {
	if address := a.control.Load(); address != nil {
		return *address
	}
	return ""
}

// Controls are the addresses of all that the node knows. It may be called from any goroutine.
func (a *Agent) Controls() []string {
	all := slices.Concat(a.options.Controls, a.identity.Load().Controls)
	slices.Sort(all)
	return slices.Compact(all)
}

// Stopping says that the process was told to end: however it ends from now on, that is not held against the bundle that is
// served. The end of Run's context says so as well, where nobody did before the node was drained.
func (a *Agent) Stopping() { a.memory.trial.pause() }

// tellRefusals keeps refusals for Status and logs them when they are news.
func (a *Agent) tellRefusals(release *fleetv1.Release, what string, refusals []*fleetv1.Refusal) {
	for i, r := range refusals {
		if i >= len(a.refusals) || a.refusals[i].GetReason() != r.GetReason() {
			a.options.Logger.Error(what, "revision", release.GetRevision(), "field", r.GetField(), "reason", r.GetReason())
		}
	}
	a.refusals = refusals
}

// Run keeps a stream to a control until ctx ends, then says that the node leaves. Everything it started has ended
// when it returns.
func (a *Agent) Run(ctx context.Context) {
	var watching sync.WaitGroup
	watching.Go(func() { a.memory.trial.watch(ctx) })
	if a.options.Peers != nil {
		watching.Go(func() { a.follow(ctx) })
	}
	defer watching.Wait()
	var round controls
	for ctx.Err() == nil {
		address := round.next(a.options.Controls, a.identity.Load().Controls)
		a.pause.shortest = 0
		if round.several {
			a.pause.shortest = otherPause
		}
		err := a.converse(ctx, address)
		if ctx.Err() != nil {
			return
		}
		var moved *redirected
		if errors.As(err, &moved) {
			a.options.Logger.Info("control is stopping; going to another one", "control", address)
			if round.several && moved.spread != nil {
				a.pause.once(moved.spread.AsDuration())
			}
		} else {
			a.tellTrouble(address, err)
		}
		a.mu.Lock()
		if a.waiting && a.applied == nil {
			a.boot()
		}
		a.saveWhenDue()
		a.mu.Unlock()
		if a.pause.wait(ctx) != nil {
			return
		}
	}
}

// tellTrouble logs a line for each new trouble with a control, not one for each attempt.
func (a *Agent) tellTrouble(address string, err error) {
	if _, until := a.identity.Load().Lifetime(); a.options.Now().After(until) {
		err = fmt.Errorf("%w; the node's certificate ended on %s, and is renewed once a control takes it", err, until.Format(time.DateOnly))
	}
	if a.troubles[address] != err.Error() {
		a.troubles[address] = err.Error()
		a.options.Logger.Warn("no stream to control; trying on and serving what there is", "control", address, "error", err)
	}
}

// maxMessage is how large one message of control may be. A resource travels whole, and one pool may fill a bundle; what a
// stream may bring altogether is bounded by the same figure.
const maxMessage = bundle.MaxBytes + 1<<20

// streamWindow is how many bytes control may send before the node has read them: some parts of a bundle, so that a far
// control is not waited for after each. It is fixed, since gRPC would find a size by a ping for nearly every message.
const streamWindow = 4 << 20

// converse opens one stream and serves it until it breaks or ctx ends.
func (a *Agent) converse(ctx context.Context, address string) error {
	conn, err := a.dial(address)
	if err != nil {
		return err
	}
	defer func() { conn.Close() }()
	if a.expired() {
		if err := a.revive(ctx, conn); err != nil {
			return err
		}
		conn.Close()
		if conn, err = a.dial(address); err != nil {
			return err
		}
	}
	// The stream outlives ctx by the moment that it takes to say good-bye.
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	opened := context.AfterFunc(ctx, cancel)
	stream, err := fleetv1.NewFleetClient(conn).Connect(streamCtx)
	if err != nil {
		return plain(err)
	}
	if !opened() {
		return context.Cause(ctx)
	}
	c := newConversation(a, address, conn, stream, cancel)
	defer c.wait()
	err = c.run(ctx)
	// Control's clock may be ahead of ours: then its word counts.
	a.unwelcome = status.Code(err) == codes.Unauthenticated
	return plain(err)
}

// dial makes a connection with the identity that there is now.
func (a *Agent) dial(address string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(a.identity.Load().tls(a.options.Now))),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(streamWindow),
	)
	if err != nil {
		return nil, fmt.Errorf("--control: %q is not an address: %w", address, err)
	}
	return conn, nil
}

// plain takes gRPC's dress off an error; what is left of `connection error: desc = "transport: Error while dialing: …"` is
// what the network said.
func plain(err error) error {
	s, ok := status.FromError(err)
	if !ok || err == nil {
		return err
	}
	text := s.Message()
	if quoted, ok := strings.CutPrefix(text, "connection error: desc = "); ok {
		if inner, err := strconv.Unquote(quoted); err == nil {
			text = inner
		}
	}
	return errors.New(strings.TrimPrefix(strings.TrimPrefix(text, "transport: "), "Error while dialing: "))
}

// compile makes what the node could serve of a bundle. Refusals are nil if it could.
func (a *Agent) compile(release *fleetv1.Release, b *bundle.Bundle) (*node.Generation, []*fleetv1.Refusal) {
	generation, err := a.options.Node.Prepare(release, b)
	if err == nil {
		return generation, nil
	}
	var refused node.Refusals
	if !errors.As(err, &refused) || len(refused) == 0 {
		return nil, refusal("", err)
	}
	out := make([]*fleetv1.Refusal, 0, len(refused))
	for _, r := range refused {
		out = append(out, &fleetv1.Refusal{Field: sendable(r.Field), Reason: sendable(r.Reason)})
	}
	return nil, out
}

func refusal(field string, err error) []*fleetv1.Refusal {
	return []*fleetv1.Refusal{{Field: field, Reason: sendable(err.Error())}}
}

// maxText bounds a text that is told to control, in bytes.
const maxText = 1 << 10

// sendable makes a text one that a message can carry: it may quote what somebody else sent, and a message with a string
// that is not UTF-8 ends the stream.
func sendable(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxText)], "\uFFFD")
}
