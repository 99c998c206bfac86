package control

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
	replicav1 "github.com/pyserve/pyserve/proto/pyserve/replica/v1"
)

// Why a control does not do something.
var (
	// ErrNotLeading says that another control leads, or none does.
	ErrNotLeading = errors.New("this control does not lead")
	// ErrControlRuns says that a control of the name is there.
	ErrControlRuns = errors.New("a control of that name runs")
	// ErrNoControl says that there is no control of that name.
	ErrNoControl = errors.New("there is no control of that name")
	// ErrRemoved says that this control is none of the cluster's any more.
	ErrRemoved = errors.New("this control was removed from the cluster (pyservectl control remove), and what its --data-dir holds is of no use any more: to take it in again, move that away and start it with --join and a control token")
	// ErrUnreached says that nobody answers where another control should be.
	ErrUnreached = errors.New("the control cannot be reached")
)

// Peers is how this control speaks to the others.
type Peers interface {
	// Attend opens a follower's stream, which ends with ctx.
	Attend(ctx context.Context, endpoint string) (fleet.LeaderStream, error)
	// Write has the control there put a command into the log. What that refuses is told as [store.ErrConflict] or an
	// error of no kind; that it does not lead, as [store.ErrNotLeader]; that nobody knows, as [store.ErrUnknown].
	Write(ctx context.Context, endpoint string, command []byte) error
	// Announce tells the cluster, by any control of it, where this one is. It fails with [ErrRemoved] where the one that
	// leads does not know this control any more, and with [ErrUnreached].
	Announce(ctx context.Context, endpoint string, m *replicav1.AnnounceRequest) error
	// Verdicts gives what the nodes that are connected to the control there say of backends.
	Verdicts(ctx context.Context, endpoint string) ([]*replicav1.NodeVerdict, error)
}

// Replication is what a control needs to be one of several. Its zero value is a control that is alone for ever.
type Replication struct {
	// Address is the host:port that others reach this control's log at; empty: there can be no others.
	Address string
	// Network opens that address, and dials others', with the configurations that each side is to use.
	Network func(server, client *tls.Config) *store.Network
	// Peers speaks to the others. Required with Address.
	Peers Peers
	// Join asks a control that runs to let this one in, where its data directory is empty; nil: it is to be a new
	// cluster's only one.
	Join func(ctx context.Context, m *fleetv1.JoinRequest) (*fleetv1.JoinResponse, error)
	// Alone makes this control the only one, whatever others its log knows.
	Alone bool
	// Hung is called when the disk no longer takes writes: the process has to end.
	Hung func(error)
	// Seeds is told where the other controls' gossip is, whenever that changes; nil: nobody asks.
	Seeds func(addresses []string)
}

// joiningFile marks a data directory whose control has begun to join and whose store is not there yet: started without
// --join, it would take the identity that it was given for that of a new cluster. It holds what the join is asked for with.
const joiningFile = "joining"

// enter lets the control in where it is to join and has not yet. It gives the id that the others know its disk by.
func (c *Control) enter(ctx context.Context) (serverID string, err error) {
	o, marker := c.options, filepath.Join(c.options.DataDir, joiningFile)
	if store.Exists(c.storeDir()) {
		if o.Replication.Join != nil {
			o.Logger.Info("this control has joined before; --join and --token-file are not needed any more")
		}
		return "", os.RemoveAll(marker)
	}
	if o.Replication.Join == nil {
		if _, err := os.Stat(marker); err == nil {
			return "", errors.New("this control has begun to join others and did not finish: start it with --join and --token-file again")
		}
		return "", nil
	}
	wish, err := joiningWish(marker)
	if err != nil {
		return "", err
	}
	answer, err := o.Replication.Join(ctx, &fleetv1.JoinRequest{
		Name: o.Name, RaftAddress: o.Replication.Address, Endpoint: o.Endpoint, Version: o.Version, RequestId: wish[:],
	})
	if err != nil {
		return "", err
	}
	files := map[string][]byte{}
	for _, file := range answer.GetIdentity() {
		files[file.GetName()] = file.GetData()
	}
	if err := identity.Adopt(identity.Options{Dir: o.DataDir, Now: o.Now, Logger: o.Logger}, files); err != nil {
		return "", err
	}
	o.Logger.Info("let in as a replica", "id", answer.GetServerId())
	return answer.GetServerId(), nil
}

// joiningWish gives what a join is asked for with, the same at every attempt: a token for one is then not used up by one that
// failed half way.
func joiningWish(marker string) (store.RequestID, error) {
	data, err := os.ReadFile(marker)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return store.RequestID{}, fmt.Errorf("look for an earlier attempt to join: %w", err)
	}
	if raw, err := hex.DecodeString(strings.TrimSpace(string(data))); err == nil {
		if wish, err := store.ParseRequestID(raw); err == nil && len(raw) > 0 {
			return wish, nil
		}
	}
	wish := store.NewRequestID()
	return wish, identity.WriteSecret(marker, []byte(hex.EncodeToString(wish[:])+"\n"))
}

func (c *Control) storeDir() string { return filepath.Join(c.options.DataDir, "store") }

// network is the store's way to the other controls; nil: there can be none.
func (c *Control) network() *store.Network {
	r := c.options.Replication
	if r.Network == nil || r.Address == "" {
		return nil
	}
	// The identity is opened after this is asked for.
	open := sync.OnceValues(func() (*store.Network, error) {
		server, client, err := c.authority.PeerTLS(c.options.Name)
		if err != nil {
			return nil, err
		}
		return r.Network(server, client), nil
	})
	return &store.Network{
		Listen: func() (net.Listener, error) {
			n, err := open()
			if err != nil {
				return nil, err
			}
			return n.Listen()
		},
		Dial: func(address string, timeout time.Duration) (net.Conn, error) {
			n, err := open()
			if err != nil {
				return nil, err
			}
			return n.Dial(address, timeout)
		},
	}
}

// PeerTLS is how this control proves itself to others, and knows them.
func (c *Control) PeerTLS() (*tls.Config, error) {
	_, client, err := c.authority.PeerTLS(c.options.Name)
	return client, err
}

// Join lets a further control in, by a control token: it is given the cluster's secrets.
func (c *Control) Join(ctx context.Context, m *fleetv1.JoinRequest) (*fleetv1.JoinResponse, error) {
	if err := identity.CheckToken(m.GetToken(), identity.TokenControl, c.token); err != nil {
		return nil, err
	}
	audit.Describe(ctx, "control %.80q at %.80q, token %s", m.GetName(), m.GetEndpoint(), identity.TokenID(m.GetToken()))
	if err := identity.CheckName(m.GetName()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	// With the first of them this control stops leading for a moment, which would end an apply, or another's way in.
	done, err := c.awaitTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := c.nameIsFree(ctx, m.GetName()); err != nil {
		return nil, err
	}
	files, err := c.authority.Export()
	if err != nil {
		return nil, err
	}
	if err := c.redeemOnce(ctx, m.GetToken(), store.Node{Name: m.GetName(), Enrolled: c.options.Now()}, m.GetRequestId()); err != nil {
		return nil, err
	}
	if err := c.putOwn(ctx); err != nil {
		return nil, err
	}
	id := store.NewServerID(m.GetName())
	err = c.store.Admit(ctx, store.Server{
		ID: id, Name: m.GetName(), RaftAddress: m.GetRaftAddress(), Endpoint: m.GetEndpoint(), Version: m.GetVersion(),
	})
	if err != nil {
		return nil, fmt.Errorf("let control %q in: %w", m.GetName(), err)
	}
	c.options.Logger.Info("control joins", "control", m.GetName(), "id", id, "token", identity.TokenID(m.GetToken()))
	answer := &fleetv1.JoinResponse{ServerId: id}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		answer.Identity = append(answer.Identity, &fleetv1.SecretFile{Name: name, Data: files[name]})
	}
	return answer, nil
}

// nameIsFree refuses the name of a control that is there; one that is gone may be replaced. Shortly after an election it
// waits for a control that may not have found this one yet.
func (c *Control) nameIsFree(ctx context.Context, name string) error {
	if name == c.options.Name {
		return fmt.Errorf("%q: %w; give each control a --name of its own", name, ErrControlRuns)
	}
	if err := c.awaitWord(ctx, c.controlPatience(), func() bool { return slices.Contains(c.absent(), name) }); err != nil {
		return fmt.Errorf("wait for the control that has the name: %w", err)
	}
	for _, f := range c.fleet.Followers() {
		if server, ok := c.store.Server(f.ID); ok && server.Name == name {
			return fmt.Errorf("%q: %w; give each control a --name of its own", name, ErrControlRuns)
		}
	}
	return nil
}

// RemoveControl takes a control out for good. It has to be stopped before. It fails with [ErrNoControl],
// [ErrControlRuns] and [ErrNotLeading].
func (c *Control) RemoveControl(ctx context.Context, name string) error {
	audit.Describe(ctx, "control %.80q", name)
	if err := c.nameIsFree(ctx, name); err != nil {
		return fmt.Errorf("%w: stop it first, and, if it led, let another lead", err)
	}
	err := c.store.Remove(ctx, name)
	switch {
	case errors.Is(err, store.ErrNoServer):
		return fmt.Errorf("%q: %w; pyservectl get controls lists them", name, ErrNoControl)
	case errors.Is(err, store.ErrNotLeader):
		return fmt.Errorf("%w: %w", ErrNotLeading, err)
	case err == nil:
		c.options.Logger.Info("removed a control", "control", name)
	}
	return err
}

// own is the record that the others should have of this control.
func (c *Control) own() store.Server {
	o := c.options
	server, _ := c.store.Server(c.store.ID())
	if server.Joined.IsZero() {
		server.Joined = o.Now()
	}
	server.ID, server.Name, server.Version = c.store.ID(), o.Name, o.Version
	server.RaftAddress, server.Endpoint = o.Replication.Address, o.Endpoint
	if o.GossipAddress != nil {
		if address := o.GossipAddress(); address != "" {
			server.GossipAddress = address
		}
	}
	return server
}

// putOwn lets the others know where this control is, where that is news.
func (c *Control) putOwn(ctx context.Context) error {
	own := c.own()
	if known, ok := c.store.Server(own.ID); ok && known == own || own.RaftAddress == "" {
		return nil
	}
	return c.store.PutServer(ctx, own)
}

// announceInterval is how often this control looks whether the others know where it is.
const announceInterval = 2 * time.Second

// announce keeps this control's record true. A leader that does not know where this control is cannot reach it, and then
// this control does not know who leads: any other one is asked to tell.
func (c *Control) announce(ctx context.Context) {
	ticker := time.NewTicker(announceInterval)
	defer ticker.Stop()
	told := false
	for {
		attempt, cancel := context.WithTimeout(ctx, announceInterval)
		if err := c.putOwn(attempt); err != nil && ctx.Err() == nil {
			c.options.Logger.Debug("the others do not know yet where this control is", "error", err)
			if _, err := c.announceBy(ctx); err != nil && !told {
				c.options.Logger.Error("the others do not take this control", "error", err)
				told = true
			}
		}
		cancel()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// announceBy tells one of the others where this control is, and says how many answered. It fails with [ErrRemoved].
func (c *Control) announceBy(ctx context.Context) (reached int, err error) {
	own := c.own()
	others := c.others()
	for _, other := range others {
		attempt, cancel := context.WithTimeout(ctx, announceInterval)
		err := c.options.Replication.Peers.Announce(attempt, other.Endpoint, &replicav1.AnnounceRequest{
			ServerId: own.ID, Name: own.Name, RaftAddress: own.RaftAddress, Endpoint: own.Endpoint,
			GossipAddress: own.GossipAddress, Version: own.Version,
		})
		cancel()
		switch {
		case err == nil:
			return len(others), nil // it was written, so that enough are there
		case errors.Is(err, ErrRemoved):
			return reached, err
		case ctx.Err() != nil:
			return reached, nil
		case !errors.Is(err, ErrUnreached):
			reached++
		}
	}
	return reached, nil
}

// Announced takes in where another control is now. name is what its certificate says.
func (c *Control) Announced(ctx context.Context, name string, m *replicav1.AnnounceRequest) error {
	known, ok := c.store.Server(m.GetServerId())
	switch {
	case !ok && c.store.Leads():
		return fmt.Errorf("%q: %w", name, ErrRemoved)
	case !ok: // or it came in a moment ago
		return fmt.Errorf("%q: %w, and does not know the control", name, ErrNotLeading)
	case known.Name != name:
		return fmt.Errorf("%q: %w", name, ErrNoControl)
	}
	known.RaftAddress, known.Endpoint, known.GossipAddress, known.Version = m.GetRaftAddress(), m.GetEndpoint(), m.GetGossipAddress(), m.GetVersion()
	return c.store.PutServer(ctx, known)
}

// others gives the other controls, by name.
func (c *Control) others() []store.Server {
	servers := slices.DeleteFunc(c.store.Servers(), func(s store.Server) bool { return s.ID == c.store.ID() })
	slices.SortFunc(servers, func(a, b store.Server) int { return cmp.Compare(a.Name, b.Name) })
	return servers
}

// endpoints gives where every control is, this one first.
func (c *Control) endpoints() []string {
	out := []string{c.options.Endpoint}
	for _, other := range c.others() {
		if !slices.Contains(out, other.Endpoint) {
			out = append(out, other.Endpoint)
		}
	}
	return out
}

// attend keeps a stream to the control that leads, whichever that is.
func (c *Control) attend(ctx context.Context) {
	for ctx.Err() == nil {
		changed := c.store.Changed()
		leader, ok := c.store.Leader()
		if !ok || leader.ID == c.store.ID() || leader.Endpoint == "" {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		err := c.attendTo(ctx, leader)
		c.options.Logger.Debug("no longer attends", "control", leader.Name, "error", err)
		pause(ctx, attendPause)
	}
}

// attendPause is between two attempts to reach the leader.
const attendPause = 20 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// attendTo attends until the stream breaks or another control leads.
func (c *Control) attendTo(ctx context.Context, leader store.Server) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	stream, err := c.options.Replication.Peers.Attend(ctx, leader.Endpoint)
	if err != nil {
		return err
	}
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		for ctx.Err() == nil {
			changed := c.store.Changed()
			if now, ok := c.store.Leader(); ok && (now.ID != leader.ID || now.Endpoint != leader.Endpoint) {
				end(errors.New("another control leads"))
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}()
	err = c.fleet.Follow(ctx, c.store.ID(), func() uint64 { applied, _ := c.store.Applied(); return applied }, stream)
	end(err)
	<-watching
	return err
}

// Attend serves a follower's stream. name is what its certificate says.
func (c *Control) Attend(name string, stream fleet.FollowerStream) error {
	if !c.store.Leads() {
		return ErrNotLeading
	}
	return c.fleet.ServeFollower(name, stream)
}

// caughtUp is how many entries a control may be behind when it gets its vote.
const caughtUp = 16

// promote gives every control its vote that has joined and caught up.
func (c *Control) promote(ctx context.Context) {
	applied, _ := c.store.Applied()
	voters := c.store.Voters()
	for _, f := range c.fleet.Followers() {
		if slices.Contains(voters, f.ID) || f.Applied+caughtUp < applied {
			continue
		}
		if err := c.store.Promote(ctx, f.ID); err != nil {
			c.options.Logger.Warn("cannot give a control its vote yet", "id", f.ID, "error", err)
		}
	}
}

// preside does what falls to the control that leads, while it does.
func (c *Control) preside(ctx context.Context) {
	fleetChanged, stop := c.fleet.Watch()
	defer stop()
	leads := false
	for {
		changed := c.store.Changed()
		now := c.store.Leads()
		switch {
		case now && !leads:
			c.ledSince.Store(c.options.Now().UnixNano())
			c.options.Logger.Info("this control leads")
		case !now && leads:
			c.ledSince.Store(0)
			c.fleet.DismissFollowers()
			c.options.Logger.Info("this control no longer leads")
		}
		if leads = now; leads {
			c.promote(ctx)
		}
		select {
		case <-changed:
		case <-fleetChanged:
		case <-ctx.Done():
			return
		}
	}
}

// keepLeft keeps which nodes of other controls are away on purpose; of its own, Serve does. It has a goroutine of its own:
// without most of the controls each write waits, and preside must not.
func (c *Control) keepLeft(ctx context.Context) {
	changed, stop := c.fleet.Watch()
	defer stop()
	for {
		if c.store.Leads() && len(c.fleet.Followers()) > 0 {
			c.keepAllLeft(ctx)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// keepLeftTime bounds the writes for all nodes together, before what they are about is looked at anew.
const keepLeftTime = 2 * time.Second

// keepAllLeft gives up at the first write that fails: the next change of any node tries again.
func (c *Control) keepAllLeft(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, keepLeftTime)
	defer cancel()
	for _, n := range c.fleet.Nodes() {
		known, ok := c.store.Node(n.Name)
		if !ok || known.Left == n.Left || !n.Left && !n.Connected {
			continue
		}
		if !c.setLeft(ctx, identity.Peer{Name: n.Name, KeyHash: known.KeyHash}, n.Left) {
			return
		}
	}
}

// HandOver lets another control lead, before this one stops.
func (c *Control) HandOver(ctx context.Context) error { return c.store.HandOver(ctx) }

// Leads says whether writes are decided here.
func (c *Control) Leads() bool { return c.store.Leads() }

// Leader gives the endpoint of another control that leads; empty: there is none, or it is this one.
func (c *Control) Leader() string {
	leader, ok := c.store.Leader()
	if !ok || leader.ID == c.store.ID() {
		return ""
	}
	return leader.Endpoint
}

// Changed gives a channel that is closed when another control may lead, or anything else in the store has changed.
func (c *Control) Changed() <-chan struct{} { return c.store.Changed() }

// Replicated says whether there are other controls.
func (c *Control) Replicated() bool { return len(c.others()) > 0 }

// Trouble is why this control cannot store anything, in a sentence; empty: as far as is known, it can. Nodes are served
// all the same, and it is over by itself.
func (c *Control) Trouble() string {
	if err := c.store.Trouble(); err != nil {
		return err.Error()
	}
	return ""
}

// behind says that another control leads, and that this one cannot write down what it is sent.
func (c *Control) behind() bool { return c.store.Trouble() != nil && c.Leader() != "" }

// sendAway has this control's nodes go to others, while it is behind.
func (c *Control) sendAway() {
	if !c.behind() {
		return
	}
	c.streams.cut(func(peer identity.Peer) error {
		if peer.Role.IsPerson() {
			return nil
		}
		return ErrBehind
	})
}

// Partial says that this control follows, and knows only what its own nodes do: the one that leads knows all.
func (c *Control) Partial() bool { return c.Replicated() && !c.store.Leads() }

// Write puts a command of another control into the log. It fails with [store.ErrNotLeader].
func (c *Control) Write(ctx context.Context, command []byte) error { return c.store.Take(ctx, command) }

// forward brings a command to the leader.
func (c *Control) forward(ctx context.Context, leader store.Server, command []byte) error {
	return c.options.Replication.Peers.Write(ctx, leader.Endpoint, command)
}

// OwnVerdicts gives what the nodes that are connected here say of backends.
func (c *Control) OwnVerdicts() []*replicav1.NodeVerdict {
	var out []*replicav1.NodeVerdict
	for _, verdicts := range c.fleet.Verdicts() {
		for _, v := range verdicts {
			out = append(out, &replicav1.NodeVerdict{Node: v.Node, Status: v.Status})
		}
	}
	return out
}

// verdictTime is how long another control may take to tell what its nodes say; without it, they are not asked.
const verdictTime = 2 * time.Second

// verdicts gives what all connected nodes say of each backend, by node name.
func (c *Control) verdicts() map[fleet.BackendKey][]fleet.Verdict {
	all := c.fleet.Verdicts()
	others := c.others()
	if len(others) == 0 || c.options.Replication.Peers == nil {
		return all
	}
	ctx, cancel := context.WithTimeout(context.Background(), verdictTime)
	defer cancel()
	told := make([][]*replicav1.NodeVerdict, len(others))
	var asking sync.WaitGroup
	for i, other := range others {
		asking.Go(func() {
			var err error
			if told[i], err = c.options.Replication.Peers.Verdicts(ctx, other.Endpoint); err != nil {
				c.options.Logger.Debug("what the nodes of another control say is not known", "control", other.Name, "error", err)
			}
		})
	}
	asking.Wait()
	for _, verdicts := range told {
		for _, v := range verdicts {
			key := fleet.BackendKey{Route: v.GetStatus().GetRoute(), Address: v.GetStatus().GetAddress()}
			all[key] = append(all[key], fleet.Verdict{Node: v.GetNode(), Status: v.GetStatus()})
		}
	}
	for _, verdicts := range all {
		slices.SortStableFunc(verdicts, func(a, b fleet.Verdict) int { return cmp.Compare(a.Node, b.Node) })
	}
	return all
}

// Controls gives the controls of the cluster, by name, as this one knows them.
func (c *Control) Controls() []*operatorv1.ControlSummary {
	leader, _ := c.store.Leader()
	voters, gossip := c.store.Voters(), map[string]string{}
	for _, member := range c.controlMembers() {
		gossip[member.Name] = member.State
	}
	applied, _ := c.store.Applied()
	attending := map[string]uint64{}
	for _, f := range c.fleet.Followers() {
		attending[f.ID] = f.Applied
	}
	own := c.own()
	rows := []*operatorv1.ControlSummary{}
	for _, server := range append(c.others(), own) {
		row := &operatorv1.ControlSummary{
			Name: server.Name, Address: server.Endpoint, Role: "follower", Version: server.Version,
			Gossip: gossip[server.Name], Voter: slices.Contains(voters, server.ID),
		}
		if server.ID == leader.ID {
			row.Role = "leader"
		}
		theirs, attends := attending[server.ID]
		row.Reachable = attends || server.ID == own.ID || server.ID == leader.ID
		if attends && theirs < applied {
			row.Lag = applied - theirs
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b *operatorv1.ControlSummary) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return rows
}
