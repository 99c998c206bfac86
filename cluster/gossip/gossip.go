// Package gossip is the door to memberlist, and the only package that imports it.
//
// It owns memberlist's configuration and the guards around it: callbacks that only copy, bounded metadata, encryption
// that is always on, a log that users can read, and sockets whose errors say what was tried. It knows members by their
// wire names and carries their metadata as bytes; what those mean, who is to be joined and when, and the memory of who
// is gone belong to package cluster.
//
// Order of calls: Start; then Join, Announce, Tell, Pass and Peers as often as wanted, Peers again whenever Changed fires; at the
// end Leave, if it is on purpose, and Shutdown. All methods are safe for concurrent use.
package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// MaxMetadata is the most bytes of metadata that are announced or taken from others. memberlist panics at more of our
// own, and takes any amount from others.
const MaxMetadata = memberlist.MetaMaxSize

// ErrForeignKey means that whoever answers at an address cannot be read with our keys.
var ErrForeignKey = errors.New("it encrypts with another gossip key")

// ErrForeignCluster means that whoever answers at an address hung up at once, as members do on another cluster's label.
var ErrForeignCluster = errors.New("it closed the connection, as a member of another cluster does")

// Options say how to take part.
type Options struct {
	// Name is unique among the members.
	Name string
	// Label names the cluster; packets with another one are dropped.
	Label string
	// Keys are 32 bytes each (AES-256) and at least one; the first encrypts, all decrypt.
	Keys [][]byte
	// Bind is where UDP and TCP listen; port 0 picks one that is free for both. Unused with a Transport.
	Bind netip.AddrPort
	// Advertise is the address that others dial, on Bind's port. Unused with a Transport.
	Advertise netip.Addr
	// Transport replaces the sockets; nil: UDP and TCP.
	Transport Transport
	Timing    Timing
	// Metadata gives what is announced first, at the address that others will know us by; nil: nothing is said.
	Metadata func(address netip.AddrPort) ([]byte, error)
	// Accept tells why a member that says this of itself at that address is not to be believed in, or nil. It is called
	// under memberlist's lock: it must be quick and call nothing of this package. The metadata is its own. A nil Accept
	// takes anyone.
	Accept func(name string, address netip.AddrPort, metadata []byte) error
	// Receive and Merge take the messages and the states of others, one at a time, from a goroutine of ours; what they are
	// given is theirs. While they are slow, the oldest that waits gives way. nil: they are counted and dropped.
	Receive, Merge func([]byte)
	// TakeTLS gets the connections that others open to our TCP port and that begin as TLS does; they are its own. It must not
	// block for long. nil: they are closed. Unused with a Transport.
	TakeTLS func(net.Conn)
	// State gives what a full exchange carries beside the list of members, at most MaxState bytes; nil: nothing. It is
	// called from several goroutines, while others wait: it must be quick.
	State  func() []byte
	Logger *slog.Logger
}

// Peer is a member as memberlist has it at one moment; ours is among them.
type Peer struct {
	Name string
	// Address is host:port.
	Address  string
	Metadata []byte
	// Gone: it no longer takes part, because it left or because it died; memberlist tells both in one way.
	Gone bool
}

// Conflict is a member that goes by the name of another one.
type Conflict struct {
	Name string
	// Holder is the address of the one that the name belongs to, Claimant that of the one that is ignored.
	Holder, Claimant string
}

// Gossip is our part in the conversation.
type Gossip struct {
	options   Options
	delegate  *delegate
	transport Transport
	list      *memberlist.Memberlist
	ring      *memberlist.Keyring
	// changing is held while the keys are changed.
	changing sync.Mutex
	address  netip.AddrPort
	log      *logWriter
	// stop ends what the sockets' transport has under way.
	stop context.CancelFunc
	// announcing is a place for the one Announce that is under way: memberlist reads our own entry without its lock there.
	announcing chan struct{}
	// interval is the time between two packets of news.
	interval time.Duration
	// joins are those of Leave; Shutdown waits for them.
	joins sync.WaitGroup
	// hush ends the goroutine that delivers messages, and delivering waits for it.
	hush       context.CancelFunc
	delivering sync.WaitGroup
}

// Start listens and begins to take part, alone until a Join. On an error nothing is left behind.
func Start(options Options) (*Gossip, error) {
	ring, err := keyring(options.Keys)
	if err != nil {
		return nil, err
	}
	g := &Gossip{options: options, delegate: newDelegate(options), log: newLogWriter(options.Logger), announcing: make(chan struct{}, 1)}
	g.ring = ring
	config := g.config(ring)
	g.interval = config.GossipInterval
	if g.transport, g.stop, err = openTransport(options, config.Logger); err != nil {
		return nil, err
	}
	config.Transport = g.transport
	if err := g.introduce(config); err != nil {
		return nil, errors.Join(err, g.release())
	}
	if g.list, err = memberlist.Create(config); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot start gossip as %s: %w", options.Name, err), g.release())
	}
	ctx, hush := context.WithCancel(context.Background())
	g.hush = hush
	g.delivering.Go(func() { g.delegate.inbox.deliver(ctx, options.Receive, options.Merge) })
	return g, nil
}

// introduce settles our address and what is said of us there.
func (g *Gossip) introduce(config *memberlist.Config) (err error) {
	if g.address, err = advertise(config, g.transport, g.options); err != nil {
		return err
	}
	if g.options.Metadata == nil {
		g.delegate.metadata.Store([]byte(nil))
		return nil
	}
	metadata, err := g.options.Metadata(g.address)
	if err != nil {
		return err
	}
	if len(metadata) > MaxMetadata {
		return fmt.Errorf("metadata of %d bytes, more than %d", len(metadata), MaxMetadata)
	}
	g.delegate.metadata.Store(metadata)
	return nil
}

// release closes the sockets of a start that failed.
func (g *Gossip) release() error {
	g.log.close()
	g.stop()
	return g.transport.Shutdown()
}

// keyring copies the keys, since memberlist keeps the slices it is given.
func keyring(keys [][]byte) (*memberlist.Keyring, error) {
	if len(keys) == 0 {
		return nil, errors.New("no gossip key: members talk encrypted only")
	}
	copies := make([][]byte, len(keys))
	for i, key := range keys {
		if len(key) != 32 {
			return nil, fmt.Errorf("gossip key %d has %d bytes, not 32", i+1, len(key))
		}
		copies[i] = slices.Clone(key)
	}
	ring, err := memberlist.NewKeyring(copies, copies[0])
	if err != nil {
		return nil, fmt.Errorf("gossip keys: %w", err)
	}
	return ring, nil
}

// SetKeys replaces the keys, 32 bytes each and at least one: the first encrypts, all decrypt. A new one is there before it
// is used, and an old one as long as it is.
func (g *Gossip) SetKeys(keys [][]byte) error {
	if _, err := keyring(keys); err != nil {
		return err
	}
	g.changing.Lock()
	defer g.changing.Unlock()
	for _, key := range keys {
		if err := g.ring.AddKey(slices.Clone(key)); err != nil {
			return fmt.Errorf("cannot add a gossip key: %w", err)
		}
	}
	if err := g.ring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("cannot use the new gossip key: %w", err)
	}
	for _, old := range g.ring.GetKeys() {
		if slices.ContainsFunc(keys, func(key []byte) bool { return bytes.Equal(key, old) }) {
			continue
		}
		if err := g.ring.RemoveKey(old); err != nil {
			return fmt.Errorf("cannot remove an old gossip key: %w", err)
		}
	}
	return nil
}

// config is memberlist's LAN configuration with our departures, each with its reason.
func (g *Gossip) config(ring *memberlist.Keyring) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	g.options.Timing.apply(c)
	c.Name = g.options.Name
	c.Label = g.options.Label
	c.Keyring = ring
	c.Logger = log.New(g.log, "", 0)
	c.Delegate, c.Events, c.Conflict, c.Alive = g.delegate, g.delegate, g.delegate, g.delegate
	// Answers go to senders that say who they are, and to no others.
	c.RequireNodeNames = true
	// LZW builds tables of tens of kilobytes for every packet of a few hundred bytes.
	c.EnableCompression = false
	return c
}

// Address is the host:port that others reach us by.
func (g *Gossip) Address() string { return g.address.String() }

// AddrPort is Address as a value.
func (g *Gossip) AddrPort() netip.AddrPort { return g.address }

// Peers gives every member that takes part and, once each, those that stopped since the last call. It is for one reader.
func (g *Gossip) Peers() []Peer {
	records := g.delegate.records()
	peers := make([]Peer, 0, len(records))
	for _, r := range records {
		if r.gone {
			g.delegate.forget(r)
		}
		peers = append(peers, Peer{Name: r.name, Address: r.address, Metadata: r.metadata, Gone: r.gone})
	}
	return peers
}

// Alone tells whether no other member takes part.
func (g *Gossip) Alone() bool { return g.list.NumMembers() <= 1 }

// Changed fires after a member came, went or changed its metadata; several changes may make one signal. That a member
// came under suspicion memberlist tells nobody.
func (g *Gossip) Changed() <-chan struct{} { return g.delegate.changed }

// Conflicts carries names that two members claim, again and again while they do; what nobody takes is dropped.
func (g *Gossip) Conflicts() <-chan Conflict { return g.delegate.conflicts }

// Dropped counts the messages and states that were lost on this side.
func (g *Gossip) Dropped() Drops {
	drops := g.delegate.inbox.dropped()
	drops.Untold = g.delegate.outbox.dropped()
	if sockets, ok := g.transport.(*socketTransport); ok {
		drops.Connections = sockets.doorman.refused.Load()
	}
	return drops
}

// Tell begins to tell a message, at most MaxMessage bytes. It does not wait. Members tell one another, not all: whoever gets a
// message that is news has to Pass it on.
func (g *Gossip) Tell(message []byte) error {
	return g.delegate.outbox.tell(message, g.delegate.present())
}

// Pass is Tell for a message that has come from another member.
func (g *Gossip) Pass(message []byte) error {
	return g.delegate.outbox.pass(message, g.delegate.present())
}

// joinName stands for the name of a member that we know the address of and not the name; nobody looks at it, but
// RequireNodeNames wants one.
const joinName = "unknown"

// Join exchanges the lists of members with whoever answers at address, an IP and a port. It blocks for up to two stream
// timeouts, or until Shutdown.
func (g *Gossip) Join(address string) error {
	_, err := g.list.Join([]string{joinName + "/" + address})
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot join %s: %w", address, joinError(err))
}

// joinError finds the reason in what memberlist made of it, which keeps the text of an error and not the error.
func joinError(err error) error {
	text := err.Error()
	var many interface{ WrappedErrors() []error }
	if errors.As(err, &many) && len(many.WrappedErrors()) > 0 {
		text = many.WrappedErrors()[0].Error()
	}
	if rest, found := strings.CutPrefix(text, "failed to join "); found {
		_, text, _ = strings.Cut(rest, ": ")
	}
	switch {
	case strings.Contains(text, "no installed keys could decrypt"):
		return ErrForeignKey
	case strings.HasSuffix(text, "EOF"), strings.HasSuffix(text, "connection reset by peer"),
		strings.HasSuffix(text, "broken pipe"), strings.HasSuffix(text, "closed pipe"):
		return ErrForeignCluster
	}
	return errors.New(text)
}

const (
	// announceWait is how long the news takes to be out in a cluster of any size, and announceTries how often it is put
	// out. memberlist's queue may lose a message when others of its length come at the same time, as they do when all
	// members begin to serve a revision (hashicorp/memberlist#322); what is lost twice, the next full exchange carries.
	announceWait  = time.Second
	announceTries = 2
)

// Announce replaces our metadata and tells the others. It blocks until they were told, usually for less than a second,
// and so paces its caller; the end of ctx is noticed once a second. Metadata over MaxMetadata is refused: memberlist
// would panic.
func (g *Gossip) Announce(ctx context.Context, metadata []byte) error {
	return g.announce(ctx, metadata, announceWait, announceTries)
}

func (g *Gossip) announce(ctx context.Context, metadata []byte, wait time.Duration, tries int) error {
	if len(metadata) > MaxMetadata {
		return fmt.Errorf("metadata of %d bytes, more than %d", len(metadata), MaxMetadata)
	}
	select {
	case g.announcing <- struct{}{}:
		defer func() { <-g.announcing }()
	case <-ctx.Done():
		return fmt.Errorf("cannot tell the other members: %w", context.Cause(ctx))
	}
	g.delegate.metadata.Store(slices.Clone(metadata))
	for range tries {
		// Its only error is that the wait ran out.
		if g.list.UpdateNode(wait) == nil || ctx.Err() != nil {
			break
		}
	}
	return nil
}

const (
	// spreadRounds is how many gossip intervals our last metadata gets before the goodbye follows. memberlist's goodbye
	// carries no metadata, takes its place in the queues of those that pass it on, and makes those that it reaches first
	// refuse it. After three rounds that happens to about one in a thousand of ten or thirty members, where memberlist's
	// confirmation that the metadata is out leaves one in fifty.
	spreadRounds = 3
	// leaveRounds is how many gossip intervals the goodbye gets before members are told directly. It is out by then unless
	// memberlist's queue lost it, there are ten members or more, or one other, to whom it goes four times.
	leaveRounds = 2
	// tellAtOnce is how many members are told directly at a time.
	tellAtOnce = 3
)

// Leave replaces our metadata by what the others are to know of us afterwards, tells them that we go on purpose, and
// waits until some were told or ctx ended. It takes up to five gossip intervals, as much again where an Announce is
// under way, and none where nobody else takes part. It must not be called after Shutdown.
func (g *Gossip) Leave(ctx context.Context, metadata []byte) error {
	err := g.lastWords(ctx, metadata)
	if err == nil && g.list.Leave(leaveRounds*g.interval) != nil {
		err = g.tell(ctx)
	}
	if err != nil {
		return fmt.Errorf("cannot tell the other members that we leave: %w", err)
	}
	return nil
}

// lastWords lets our last metadata spread. Some members are told directly as well: the queue may lose it, and after the
// goodbye no member takes it any more, not even directly.
func (g *Gossip) lastWords(ctx context.Context, metadata []byte) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// Whether it is out does not matter yet: the wait comes after.
	if err := g.announce(ctx, metadata, time.Nanosecond, 1); err != nil {
		return err
	}
	if g.Alone() {
		return nil
	}
	spread, cancel := context.WithTimeout(ctx, spreadRounds*g.interval)
	defer cancel()
	if err := g.tell(spread); err != nil {
		g.options.Logger.Debug("no member could be told directly that we leave", "reason", err)
	}
	<-spread.Done()
	return ctx.Err()
}

// tell exchanges lists with others, a few at once, until one of them answers or ctx ends. It must be followed by
// Shutdown, which ends and awaits what is under way then.
func (g *Gossip) tell(ctx context.Context) (err error) {
	for some := range slices.Chunk(g.others(), tellAtOnce) {
		if err = g.joinAny(ctx, some); err == nil || ctx.Err() != nil {
			break
		}
	}
	return err
}

func (g *Gossip) joinAny(ctx context.Context, addresses []string) (err error) {
	results := make(chan error, len(addresses))
	for _, address := range addresses {
		g.joins.Go(func() { results <- g.Join(address) })
	}
	for range addresses {
		select {
		case err = <-results:
			if err == nil {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// others gives the addresses of the members that take part, but for us.
func (g *Gossip) others() []string {
	var addresses []string
	for _, n := range g.list.Members() {
		if n.Name != g.options.Name {
			addresses = append(addresses, n.Address())
		}
	}
	return addresses
}

// Shutdown closes the sockets, ends Joins under way, and waits for a Receive or Merge that runs. memberlist does not wait
// for a probe that it has under way, which ends by itself within a few probe intervals and can do nothing any more.
// Further calls do nothing.
func (g *Gossip) Shutdown() error {
	g.log.close()
	g.stop()
	g.hush()
	defer g.delivering.Wait()
	defer g.joins.Wait()
	if err := g.list.Shutdown(); err != nil {
		return fmt.Errorf("cannot shut gossip down: %w", err)
	}
	return nil
}
