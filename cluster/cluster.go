// Package cluster makes a process a member of the cluster: it finds the others, tells them what it serves, and knows
// who is there.
//
// It owns when and whom to join, the memory of peers across restarts, and the list of members with their states. It
// does not own identity or config: members are those that hold the cluster's gossip key and that control vouched for, and
// what they say is believed as theirs, for display, for hints and for where to ask next. The conversation itself is package cluster/gossip's.
//
// Order of calls: New, Start, then Update, Publish, SetSeeds and Members as often as wanted, Members again whenever Changed
// fires, and at the end Stop.
package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pyserve/pyserve/cluster/gossip"
	"github.com/pyserve/pyserve/cluster/state"
	"github.com/pyserve/pyserve/proto/voucher"
)

// Role, Facts, Member and Liveness are package cluster/state's, under the names that users of this package need.
type (
	Role     = state.Role
	Facts    = state.Facts
	Member   = state.Member
	Liveness = state.Liveness
	Room     = state.Room
)

// The roles of members.
const (
	RoleNode    = state.RoleNode
	RoleControl = state.RoleControl
)

// Options say who we are and where the others may be.
type Options struct {
	// Name is unique among the members of our role: 1 to 63 of a-z A-Z 0-9 . _ -, beginning with a letter or digit.
	Name string
	Role Role
	// ClusterID is what all members share, 1 to 64 bytes; others are not listened to.
	ClusterID string
	// Bind is the host:port to listen on, UDP and TCP; port 0 picks one that is free for both. Unused with a Transport.
	Bind string
	// Advertise is the host, without a port, that others dial. "": Bind's, which then has to be one that can be dialled.
	Advertise string
	// Keys are AES-256 keys, 32 bytes each, as control gave them; the first encrypts, all decrypt.
	Keys [][]byte
	// Key is the private key of our certificate, ECDSA P-256 or Ed25519: it signs what we say.
	Key crypto.Signer
	// Issuer is the key that control makes vouchers with.
	Issuer ed25519.PublicKey
	// Voucher is control's word that Name and Key belong together. Empty: other members do not believe us, and do not list
	// us, before SetVoucher. It may have ended.
	Voucher []byte
	// RememberFile is where the addresses of peers are kept, so that a start without control finds them. It is written
	// with mode 0600 and replaced as a whole; its directory has to exist. "": nowhere.
	RememberFile string
	// Seeds are addresses, host:port, to join through, beside those of SetSeeds.
	Seeds []string
	// JoinDelay is how long the first attempt to join waits for SetSeeds, which comes with newer keys where there are any; 0: not
	// at all.
	JoinDelay time.Duration
	// Receive gets what members published, each message once, one at a time from one goroutine. While it is slow the oldest that
	// waits is dropped. nil: news is passed on and not looked at.
	Receive func(News)
	// State gives the messages that another member should know that missed news, as News and Publish have them, with their ages
	// and the most important first: up to MaxState bytes are sent, and their Receive gets those that it has not heard yet. It is
	// called for every full exchange, from several goroutines: it must be quick. nil: nothing.
	State func() iter.Seq2[string, time.Duration]
	// TakeTLS gets the connections that others open to Bind's TCP port and that begin as TLS does; they are its own, and are
	// not closed by Stop. It must not block. nil: they are closed.
	TakeTLS func(net.Conn)
	// Logger takes what happens to members; nil: nobody.
	Logger *slog.Logger
	// RejoinInterval is the time between two rounds of joining members that are not seen alive, with a quarter of it as
	// jitter. 0: 15 s. A member that is alone tries more often at first.
	RejoinInterval time.Duration
	// Transport replaces the sockets on Bind, for tests; nil: UDP and TCP.
	Transport gossip.Transport
	// Timing is for tests; the zero value is right for everything else.
	Timing gossip.Timing
}

const (
	defaultRejoinInterval = 15 * time.Second
	// keepGone and maxGone bound the memory of members that are dead or left.
	keepGone = 24 * time.Hour
	maxGone  = 4096
	// leaveWait is how long Stop tries to say goodbye, within its context.
	leaveWait = 4 * time.Second
	// maxClusterID is a quarter of what memberlist takes: it is in every packet.
	maxClusterID = 64
)

// Cluster is our membership. All methods are safe for concurrent use.
type Cluster struct {
	options Options
	changed chan struct{}
	// rejoinNow and announceNow wake the loops of those names.
	rejoinNow   chan struct{}
	announceNow chan struct{}
	// cancel ends the loops, and loops waits for them; both belong to Start and Stop.
	cancel context.CancelFunc
	loops  sync.WaitGroup

	// lifecycle serialises Start and Stop, and is taken before mu.
	lifecycle sync.Mutex
	stopped   bool

	// mu guards what follows; nothing of package gossip is called under it.
	mu     sync.Mutex
	gossip *gossip.Gossip // nil until started
	facts  Facts
	// seeds are control's; the Options have their own.
	seeds []string
	keys  [][]byte
	// voucher is the one that is told, and sequence that of what was told last.
	voucher  []byte
	sequence uint64
	roster   *state.Roster
	peers    *remembered

	messages *messages
	vouched  *vouched
}

// New checks the options; an error names the field.
func New(options Options) (*Cluster, error) {
	if err := options.validate(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	options.Logger = cmp.Or(options.Logger, slog.New(slog.DiscardHandler))
	options.RejoinInterval = cmp.Or(options.RejoinInterval, defaultRejoinInterval)
	return &Cluster{
		options:     options,
		changed:     make(chan struct{}, 1),
		rejoinNow:   make(chan struct{}, 1),
		announceNow: make(chan struct{}, 1),
		roster:      state.NewRoster(keepGone, maxGone),
		peers:       newRemembered(),
		messages:    newMessages(),
		vouched:     newVouched(options.Issuer, options.ClusterID),
		voucher:     bytes.Clone(options.Voucher),
		keys:        options.Keys,
	}, nil
}

func (o Options) validate() error {
	if err := state.CheckName(o.Name); err != nil {
		return fmt.Errorf("option Name: %w", err)
	}
	if o.Role != RoleNode && o.Role != RoleControl {
		return errors.New("option Role: neither RoleNode nor RoleControl")
	}
	if o.ClusterID == "" || len(o.ClusterID) > maxClusterID {
		return fmt.Errorf("option ClusterID: has %d bytes, not 1 to %d", len(o.ClusterID), maxClusterID)
	}
	if err := checkKeys(o.Keys); err != nil {
		return err
	}
	if err := o.validateIdentity(); err != nil {
		return err
	}
	for i, seed := range o.Seeds {
		if err := checkHostPort(seed); err != nil {
			return fmt.Errorf("option Seeds[%d]: %w", i, err)
		}
	}
	if o.RejoinInterval < 0 {
		return fmt.Errorf("option RejoinInterval: %s is less than 0", o.RejoinInterval)
	}
	if o.Transport != nil {
		return nil
	}
	return checkBind(o.Bind, o.Advertise)
}

func (o Options) validateIdentity() error {
	if o.Key == nil {
		return errors.New("option Key: none, and members sign what they say")
	}
	if _, err := voucher.KeyOf(o.Key.Public()); err != nil {
		return fmt.Errorf("option Key: %w", err)
	}
	if len(o.Issuer) != ed25519.PublicKeySize {
		return fmt.Errorf("option Issuer: has %d bytes, not %d", len(o.Issuer), ed25519.PublicKeySize)
	}
	if len(o.Voucher) == 0 {
		return nil
	}
	if err := o.checkVoucher(o.Voucher); err != nil {
		return fmt.Errorf("option Voucher: %w", err)
	}
	return nil
}

// Start listens and begins to look for the others. It does not wait to find any. On an error nothing is left behind,
// and it may be called again; after a Stop it may not.
func (c *Cluster) Start() error {
	c.lifecycle.Lock()
	defer c.lifecycle.Unlock()
	if c.stopped {
		return errors.New("cluster: already stopped")
	}
	if c.cancel != nil {
		return errors.New("cluster: already started")
	}
	bind, advertise, err := resolveListen(c.options)
	if err != nil {
		return err
	}
	c.mu.Lock()
	keys := c.keys
	c.mu.Unlock()
	g, err := gossip.Start(gossip.Options{
		Name:      state.WireName(c.options.Role, c.options.Name),
		Label:     c.options.ClusterID,
		Keys:      keys,
		Bind:      bind,
		Advertise: advertise,
		Transport: c.options.Transport,
		Timing:    c.options.Timing,
		Metadata:  func(address netip.AddrPort) ([]byte, error) { return c.metadata(c.ownFacts(), address) },
		Accept:    c.accept,
		Receive:   c.receive,
		Merge:     c.merge,
		State:     c.ownState,
		TakeTLS:   c.options.TakeTLS,
		Logger:    c.options.Logger,
	})
	if err != nil {
		return err
	}
	c.run(g)
	return nil
}

// run starts the loops; nothing in it can fail.
func (c *Cluster) run(g *gossip.Gossip) {
	peers := c.loadPeers()
	c.mu.Lock()
	c.gossip, c.peers = g, peers
	c.mu.Unlock()
	c.observe(g)

	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.loops.Go(func() { c.watch(ctx, g) })
	c.loops.Go(func() { c.announce(ctx, g) })
	c.loops.Go(func() { c.remember(ctx) })
	c.loops.Go(func() { c.rejoinLoop(ctx, g, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))) })
}

// Stop tells the others that we leave, closes everything and waits for it. If nobody could be told before ctx ended, or
// within four seconds, it says so, and everything is closed all the same. Before a Start, and after another Stop, it
// does nothing.
func (c *Cluster) Stop(ctx context.Context) error {
	c.lifecycle.Lock()
	defer c.lifecycle.Unlock()
	if c.stopped || c.cancel == nil {
		c.stopped = true
		return nil
	}
	c.stopped = true
	c.cancel()
	ctx, cancel := context.WithTimeout(ctx, leaveWait)
	defer cancel()
	// memberlist tells the others alike of those that leave and those that die; our last facts tell them apart.
	facts := c.ownFacts()
	facts.Leaving = true
	err := errors.Join(c.leave(ctx, facts), c.gossip.Shutdown())
	c.loops.Wait()
	c.savePeers()
	return err
}

func (c *Cluster) leave(ctx context.Context, facts Facts) error {
	metadata, err := c.metadata(facts, c.gossip.AddrPort())
	if err != nil {
		return err
	}
	return c.gossip.Leave(ctx, metadata)
}

// Address is the host:port that others reach us by; "" before Start.
func (c *Cluster) Address() string {
	if g := c.started(); g != nil {
		return g.Address()
	}
	return ""
}

func (c *Cluster) started() *gossip.Gossip {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gossip
}

// SetSeeds replaces the addresses that control named; those of the Options stay. Whoever is alone then tries them at
// once. What is not a host:port is left out with a warning.
func (c *Cluster) SetSeeds(seeds []string) {
	var good []string
	for _, seed := range seeds {
		if err := checkHostPort(seed); err != nil {
			c.options.Logger.Warn("a seed that control named cannot be joined", "seed", seed, "reason", err)
			continue
		}
		good = append(good, seed)
	}
	c.mu.Lock()
	c.seeds = good
	g := c.gossip
	c.mu.Unlock()
	if g != nil && g.Alone() {
		wake(c.rejoinNow)
	}
}

// Update replaces what we say of ourselves. It does not block; facts that change quickly reach the others as the latest
// only, about twice a second.
func (c *Cluster) Update(facts Facts) {
	c.mu.Lock()
	same := c.facts == facts
	c.facts = facts
	c.mu.Unlock()
	if !same {
		wake(c.announceNow)
	}
}

func (c *Cluster) ownFacts() Facts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.facts
}

// Members gives everyone, us included, by name: those that take part, and for 24 hours those that no longer do. The
// list is the caller's.
func (c *Cluster) Members() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.roster.Members()
}

// Changed fires after Members changed; several changes may make one signal. It is for one reader.
func (c *Cluster) Changed() <-chan struct{} { return c.changed }

// wake makes a channel of capacity 1 readable.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// announce tells the others of our facts whenever they change.
func (c *Cluster) announce(ctx context.Context, g *gossip.Gossip) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.announceNow:
			metadata, err := c.metadata(c.ownFacts(), g.AddrPort())
			if err == nil {
				err = g.Announce(ctx, metadata)
			}
			if err != nil && ctx.Err() == nil {
				c.options.Logger.Error("cannot tell the other members what this one serves", "error", err)
			}
		}
	}
}

// alive gives the addresses of members that take part.
func (c *Cluster) alive() []string {
	var addresses []string
	for _, m := range c.Members() {
		if !m.State.Gone() {
			addresses = append(addresses, m.Address)
		}
	}
	return addresses
}
