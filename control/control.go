// Package control is the assembly of a control node: it makes the cluster's authority and tokens at first start, keeps
// revisions in the store, lets nodes in, and brings documents to the fleet in two phases.
//
// It opens no socket and speaks no protocol (control/api and control/web do), and it does not gossip: what gossip says
// of the members is handed in.
//
// The order of calls: [New] → [Control.Start] → anything, from any goroutine → [Control.Stop].
package control

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/journal"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// Member is another process as gossip sees it.
type Member struct {
	Name    string
	Address string
	// State is alive, suspect, dead or left.
	State string
}

// Options are what a Control needs.
type Options struct {
	// DataDir holds all durable state. Required; made where it does not exist.
	DataDir string
	// Name is unique among the controls. Required.
	Name string
	// Endpoint is the host:port that nodes and operators dial. Required.
	Endpoint string
	// Members gives the cluster's nodes as gossip sees them; nil: gossip does not run.
	Members func() []Member
	// Controls gives the other controls as gossip sees them; nil: gossip does not run.
	Controls func() []Member
	// Replication makes it one of several controls.
	Replication Replication
	// GossipAddress is where others join this control's gossip; nil or empty: nowhere.
	GossipAddress func() string
	// GossipKeys is told which keys this control's own gossip is to use, the one to encrypt with first, before it starts and
	// whenever they are changed; an error: they are not used, and it is asked again. nil: gossip does not run.
	GossipKeys func(keys [][]byte) error
	// Version is shown to operators.
	Version string
	// Logger is required.
	Logger *slog.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

func (o Options) validate() error {
	switch {
	case o.DataDir == "":
		return errors.New("--data-dir must not be empty")
	case o.Name == "":
		return errors.New("--name must not be empty")
	}
	if _, _, err := net.SplitHostPort(o.Endpoint); err != nil {
		return fmt.Errorf("--listen and --advertise make %q, which is not host:port: %w", o.Endpoint, err)
	}
	return nil
}

// Control is safe for concurrent use between Start and Stop.
type Control struct {
	options   Options
	authority *identity.Authority
	store     *store.Store
	fleet     *fleet.Fleet
	started   time.Time
	applying  chan struct{} // a place for the one apply that is under way, see awaitTurn
	registry  sync.Mutex    // held from reading a node's record to writing it
	streams   streams
	drains    drains
	refusals  refusals
	rotating  sync.Mutex // held while the authorities, or the keys of gossip, are brought to what the store says
	decoded   atomic.Pointer[decoded]
	journal   *journal.Journal
	telling   telling
	ledSince  atomic.Int64 // when this control began to lead, in nanoseconds; 0: it does not, or has not noticed yet
	unsettled atomic.Bool  // the token files are to be looked after when somebody leads
	unlisted  atomic.Bool  // the operator's context is to be remembered when somebody leads
	unfollow  context.CancelFunc
	following sync.WaitGroup
}

// New checks the options.
func New(o Options) (*Control, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Control{options: o, applying: make(chan struct{}, 1), journal: journal.New(journalSize, o.Now)}, nil
}

// AdminFile is the administrator's context that the first start makes in the data directory, and adminName whose it is.
const (
	AdminFile = "admin.yaml"
	adminName = "admin"
)

// Start opens the data directory, all or nothing: after an error nothing is open.
func (c *Control) Start(ctx context.Context) (err error) {
	o := c.options
	c.started = o.Now()
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	if err := c.openStore(ctx); err != nil {
		return err
	}
	c.fleet = fleet.New(fleet.Options{Logger: o.Logger, Now: o.Now, Welcome: c.welcome, Journal: c.journal})
	changed := c.store.Changed()
	if err := errors.Join(c.takeAuthorities(), c.takeGossipKeys()); err != nil {
		return errors.Join(err, c.store.Close())
	}
	c.tellStart()
	c.target()
	following, stop := context.WithCancel(context.Background())
	c.unfollow = stop
	c.following.Go(func() { c.follow(following, changed) })
	c.following.Go(func() { c.preside(following) })
	c.following.Go(func() { c.keepLeft(following) })
	c.following.Go(func() { c.rekey(following) })
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if o.Replication.Peers != nil {
		c.following.Go(func() { c.attend(following) })
		c.following.Go(func() { c.announce(following) })
	}
	return c.settle(ctx)
}

// settle does what has to be done before others may come.
func (c *Control) settle(ctx context.Context) error {
	if err := c.store.Joined(ctx); err != nil {
		return err
	}
	if c.options.Replication.Alone {
		if err := c.beginAnew(ctx); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(c.options.DataDir, joiningFile)); err != nil {
		return err
	}
	if err := c.makeAdmin(); err != nil {
		return err
	}
	c.unlisted.Store(true)
	// Beside others that are away there may be nobody who leads for a long time, and nothing to hold the files against.
	if len(c.store.Voters()) > 1 && !c.becomesCurrent(ctx) {
		c.unsettled.Store(true)
		return nil
	}
	return c.makeTokens(ctx)
}

// currentTime is how long a control that somebody leads may take to catch up with what is written meanwhile.
const currentTime = 5 * time.Second

// becomesCurrent waits until this control holds what it has been sent, where somebody leads.
func (c *Control) becomesCurrent(ctx context.Context) bool {
	for until := time.Now().Add(currentTime); !c.store.Current(); pause(ctx, 10*time.Millisecond) {
		if _, led := c.store.Leader(); !led || ctx.Err() != nil || time.Now().After(until) {
			return false
		}
	}
	return true
}

// settleLate looks after the token files of a control that started before anybody led.
func (c *Control) settleLate(ctx context.Context) {
	if !c.store.Current() {
		return
	}
	if err := c.makeTokens(ctx); err != nil {
		c.options.Logger.Error("cannot look after the token files; trying again", "error", err)
		return
	}
	c.unsettled.Store(false)
}

// openStore locks the directory, which keeps a second process away from everything else, lets this control in where it
// is to join others, and opens the store.
func (c *Control) openStore(ctx context.Context) (err error) {
	o := c.options
	lock, err := store.Acquire(c.storeDir())
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	serverID, err := c.enter(ctx)
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	so := store.Options{
		Dir: c.storeDir(), Name: o.Name, Key: c.openIdentity, Logger: o.Logger, Now: o.Now, Lock: lock,
		Network: c.network(), Server: serverID, Alone: o.Replication.Alone, Hung: o.Replication.Hung,
	}
	if o.Replication.Peers != nil {
		so.Forward = c.forward
		so.Unled = func(s *store.Store) (int, error) {
			c.store = s // which Open returns later
			return c.announceBy(ctx)
		}
	}
	c.store, err = store.Open(ctx, so)
	return err
}

// beginAnew forgets the controls that are lost, and raises the epoch: nodes may serve what only those knew, and follow.
func (c *Control) beginAnew(ctx context.Context) error {
	for _, lost := range c.others() {
		if err := c.store.Forget(ctx, lost.ID); err != nil {
			return err
		}
	}
	return c.store.RaiseEpoch(ctx, func(epoch uint64, active *store.Snapshot) *fleetv1.Release {
		return bundle.Sign(c.authority.ReleaseKey(), epoch, active.Number, active.Bundle.Digest())
	})
}

// openIdentity opens the cluster's authority, or makes one where there is neither one nor a store, and gives the key that
// the store is sealed with.
func (c *Control) openIdentity(used bool) (seal []byte, err error) {
	o := c.options
	c.authority, err = identity.Open(identity.Options{Dir: o.DataDir, MustExist: used, Now: o.Now, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	return c.authority.SealKey(), nil
}

// follow brings the fleet to whatever the store holds: after a write whose outcome was not known, or one that another
// control made, the store alone knows.
func (c *Control) follow(ctx context.Context, changed <-chan struct{}) {
	var endpoints, seeds []string
	var keyTrouble string
	revoked := c.revokedUntil(adminName)
	again := time.NewTicker(settleInterval)
	defer again.Stop()
	for {
		if c.unsettled.Load() {
			c.settleLate(ctx)
		}
		if c.unlisted.Load() && c.store.Current() {
			c.recordAdmin(ctx)
		}
		keyTrouble = c.keepKeys(keyTrouble)
		if now := c.endpoints(); !slices.Equal(endpoints, now) {
			endpoints = now
			c.fleet.SetControls(now)
			c.tellAdmin(now)
		}
		if now := c.gossipSeeds(); c.options.Replication.Seeds != nil && !slices.Equal(seeds, now) {
			seeds = now
			c.options.Replication.Seeds(now)
		}
		select {
		case <-changed:
			changed = c.store.Changed()
			c.target()
			c.cutRefused()
			if now := c.revokedUntil(adminName); !now.Equal(revoked) {
				revoked = now
				c.remakeAdmin()
			}
			if err := c.takeAuthorities(); err != nil {
				c.options.Logger.Error("cannot take the cluster's authorities to use; trying again at the next change", "error", err)
			}
		case <-again.C:
			c.sendAway()
		case <-ctx.Done():
			return
		}
	}
}

// settleInterval is how often to look for a leader, of whose coming nobody is told, for what could not be done without one.
const settleInterval = time.Second

// target makes the active bundle the fleet's target.
func (c *Control) target() {
	if active := c.store.Active(); active != nil {
		c.fleet.SetTarget(&fleet.Target{Release: active.Release, Bundle: active.Bundle})
		c.tellRevision(active)
	}
}

// EndStreams ends every node's stream, and lets in no other: without it a graceful stop of the server would wait for
// ever. Where there are other controls, nodes are sent to them.
func (c *Control) EndStreams() {
	if len(c.endpoints()) > 1 {
		ctx, cancel := context.WithTimeout(context.Background(), redirectTime)
		defer cancel()
		c.fleet.Redirect(ctx)
	}
	c.fleet.Close()
}

// redirectTime is how long sending the nodes elsewhere may take; those that do not take it see their stream end.
const redirectTime = time.Second

// StreamsEnded gives a channel that is closed once EndStreams or Stop was called: whoever only watches ends then too.
func (c *Control) StreamsEnded() <-chan struct{} { return c.fleet.Closed() }

// Stop ends every stream and closes the store. Call it once, after a Start that succeeded.
func (c *Control) Stop() error {
	c.unfollow()
	c.following.Wait()
	c.fleet.Close()
	return c.store.Close()
}

// makeAdmin makes the operator's context where it is missing, damaged or revoked, names another endpoint, ends within 90 days,
// or is of another authority.
func (c *Control) makeAdmin() error {
	path := filepath.Join(c.options.DataDir, AdminFile)
	current, err := identity.LoadContext(path)
	if err == nil && c.adminIsGood(current) {
		return nil
	}
	admin, making := c.authority.NewContext(adminName, c.endpoints(), c.revokedUntil(adminName))
	if making != nil {
		return making
	}
	defer c.unlisted.Store(true)
	if _, missing := os.Lstat(path); err != nil && !errors.Is(missing, fs.ErrNotExist) {
		c.setAside(path, damageOf(path))
	}
	return admin.Save(path)
}

// remakeAdmin makes another operator's context in the place of one that was revoked.
func (c *Control) remakeAdmin() {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	if err := c.makeAdmin(); err != nil {
		c.options.Logger.Error("cannot make another operator's context in the place of the one that was revoked; the next start tries again", "error", err)
	}
}

// tellAdmin keeps the endpoints of the operator's context true, where there is one.
func (c *Control) tellAdmin(endpoints []string) {
	path := filepath.Join(c.options.DataDir, AdminFile)
	admin, err := identity.LoadContext(path)
	if err != nil || admin.Cluster != c.authority.ClusterID() || slices.Equal(admin.Endpoints, endpoints) {
		return
	}
	admin.Endpoints = endpoints
	if err := admin.Save(path); err != nil {
		c.options.Logger.Warn("cannot write where the controls are into the operator's context", "file", path, "error", err)
	}
}

// gossipSeeds gives where the other controls' gossip is.
func (c *Control) gossipSeeds() (seeds []string) {
	for _, other := range c.others() {
		if other.GossipAddress != "" {
			seeds = append(seeds, other.GossipAddress)
		}
	}
	return seeds
}

func (c *Control) adminIsGood(admin *identity.Context) bool {
	until, err := admin.ExpiresAt()
	issued, _, errIssued := admin.Issued()
	return err == nil && errIssued == nil && !c.revoked(adminName, issued) && c.authority.Recognizes(admin) && admin.Cluster == c.authority.ClusterID() &&
		slices.Equal(admin.Endpoints, c.endpoints()) &&
		until.Sub(c.options.Now()) > 90*24*time.Hour
}

// ServerTLS is how control proves itself to nodes and operators.
func (c *Control) ServerTLS() (*tls.Config, error) { return c.authority.ServerTLS(c.options.Name) }

// GossipIdentity is who this control is in gossip, and whom it believes there.
type GossipIdentity struct {
	ClusterID string
	// Keys encrypt, the first, and decrypt.
	Keys [][]byte
	// Signer is new with each call, and Voucher is for it.
	Signer  crypto.Signer
	Voucher []byte
	// Issuer is what vouchers are checked with.
	Issuer ed25519.PublicKey
}

// Gossip gives what this control's own gossip needs.
func (c *Control) Gossip() (GossipIdentity, error) {
	a := c.authority
	signer, raw, err := a.GossipIdentity(c.options.Name)
	return GossipIdentity{ClusterID: a.ClusterID(), Keys: a.GossipKeys(), Signer: signer, Voucher: raw, Issuer: a.VoucherKey()}, err
}

// Peer says who is at the other end of a connection. It fails with [identity.ErrAnonymous] where no certificate was
// shown.
func (c *Control) Peer(state tls.ConnectionState) (identity.Peer, error) {
	return c.authority.PeerOf(state)
}

// Now is control's clock.
func (c *Control) Now() time.Time { return c.options.Now() }

// maxSeeds is how many members a node is told to join through: one seed alone makes a large fleet converge slowly.
const maxSeeds = 5

func (c *Control) welcome() *fleetv1.Welcome {
	m := &fleetv1.Welcome{ControlName: c.options.Name, GossipKeys: c.fleet.GossipKeys(), Controls: c.endpoints()}
	if c.options.GossipAddress != nil {
		if own := c.options.GossipAddress(); own != "" {
			m.GossipSeeds = append(m.GossipSeeds, own)
		}
	}
	m.GossipSeeds = append(m.GossipSeeds, c.gossipSeeds()...)
	for _, member := range c.members() {
		if member.State == "alive" && len(m.GossipSeeds) < maxSeeds {
			m.GossipSeeds = append(m.GossipSeeds, member.Address)
		}
	}
	return m
}

func (c *Control) controlMembers() []Member {
	if c.options.Controls == nil {
		return nil
	}
	return c.options.Controls()
}

func (c *Control) members() []Member {
	if c.options.Members == nil {
		return nil
	}
	return c.options.Members()
}
