package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/journal"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// Why a node is not let in.
var (
	// ErrInvalid says that the name or the certificate request is not one.
	ErrInvalid = errors.New("not valid")
	// ErrNameTaken says that a connected node has the name.
	ErrNameTaken = errors.New("the name is taken by a node that is connected; give each node a --name of its own")
	// ErrNameAlike says that a registered node has a name that differs in case alone. Names become names of files and hosts,
	// where case may not count.
	ErrNameAlike = errors.New("names that differ in case alone are one name to some file systems and to DNS; give the node another --name, or have the other one forgotten first: pyservectl node revoke NAME")
	// ErrRevoked says that a certificate is this cluster's, but no node of its name is registered any more.
	ErrRevoked = errors.New("the node's registration was revoked; to let it in again, remove identity.json from its data directory and start it with a join token")
	// ErrNotRegistered says that a certificate is this cluster's, but that its node has been enrolled anew with another
	// key.
	ErrNotRegistered = errors.New("the node's name now belongs to another key: another machine was enrolled under it; remove this node's data directory and enrol it under a --name of its own")
)

// ErrBehind ends the streams of a control that cannot follow the one that leads: its nodes would wait for what it is never
// told to commit.
var ErrBehind = errors.New("this control's disk takes no writes, so that it cannot follow the one that leads; go to another control")

// Enroll lets a node in by a join token. A name whose node is not connected may be taken over by a new key, as happens
// when a machine is replaced; the old key is not believed from then on.
func (c *Control) Enroll(ctx context.Context, token, name string, request []byte) (*fleetv1.Identity, error) {
	if err := identity.CheckToken(token, identity.TokenJoin, c.token); err != nil {
		return nil, err
	}
	// From here on it is somebody with a token: the audit trail keeps also that they were refused.
	audit.Name(ctx, name, identity.RoleNode.String())
	audit.Describe(ctx, "token %s", identity.TokenID(token))
	issued, err := c.authority.IssueNode(name, request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	hash, err := identity.KeyHash(issued.GetCertificate())
	if err != nil {
		return nil, err
	}
	if known, ok := c.store.Node(name); ok && known.KeyHash != hash {
		if err := c.awaitWord(ctx, c.patience(), func() bool { return c.unheard(name) }); err != nil {
			return nil, fmt.Errorf("wait for the node that has the name: %w", err)
		}
		if c.Partial() { // another control leads by now, and knows whether the node is connected
			return nil, ErrNotLeading
		}
	}
	c.registry.Lock()
	defer c.registry.Unlock()
	if c.fleet.Connected(name) {
		return nil, fmt.Errorf("%q: %w", name, ErrNameTaken)
	}
	// Two that were let in before this was looked at both stay what they are.
	if _, known := c.store.Node(name); !known {
		if other := c.store.Alike(name); other != "" {
			return nil, fmt.Errorf("%q: there is a node %q already: %w", name, other, ErrNameAlike)
		}
	}
	if err := c.redeem(ctx, token, identity.TokenJoin, store.Node{Name: name, KeyHash: hash, Enrolled: c.options.Now()}); err != nil {
		return nil, err
	}
	c.journal.Add(journal.NodeEnrolled, name, "by the token "+identity.TokenID(token))
	c.options.Logger.Info("node enrolled", "node", name, "token", identity.TokenID(token))
	return issued, nil
}

// Renew issues a registered node a fresh certificate for its key.
func (c *Control) Renew(peer identity.Peer, request []byte) (*fleetv1.Identity, error) {
	if err := c.registered(peer); err != nil {
		return nil, err
	}
	issued, err := c.authority.IssueNode(peer.Name, request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if hash, err := identity.KeyHash(issued.GetCertificate()); err != nil || hash != peer.KeyHash {
		return nil, fmt.Errorf("%q: a certificate is renewed for the key that it has: %w", peer.Name, ErrNotRegistered)
	}
	return issued, nil
}

func (c *Control) registered(peer identity.Peer) error {
	node, ok := c.store.Node(peer.Name)
	switch {
	case !ok && !c.store.Leads() && c.Leader() == "":
		// What is stored after the last that was known to be committed is not seen here without a leader.
		return fmt.Errorf("%q: no control leads, and this one cannot tell whether the node is registered: %w", peer.Name, ErrNotLeading)
	case !ok:
		return fmt.Errorf("%q: %w", peer.Name, ErrRevoked)
	case node.KeyHash != peer.KeyHash:
		return fmt.Errorf("%q: %w", peer.Name, ErrNotRegistered)
	}
	return nil
}

// registrationTime is how long word of an enrolment may be on its way from the control that leads.
const registrationTime = 2 * time.Second

// registeredSoon is registered for a node that may have enrolled with another control a moment ago.
func (c *Control) registeredSoon(ctx context.Context, peer identity.Peer) error {
	timer := time.NewTimer(registrationTime)
	defer timer.Stop()
	for {
		changed := c.store.Changed()
		err := c.registered(peer)
		if err == nil || c.store.Leads() {
			return err
		}
		select {
		case <-changed:
		case <-timer.C:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// Serve runs a registered node's stream until it ends, or the node is no longer registered.
func (c *Control) Serve(peer identity.Peer, stream fleet.Stream) error {
	if err := c.registeredSoon(stream.Context(), peer); err != nil {
		return err
	}
	// Not before: a change of the store would cut who is not registered yet.
	live, end := c.streams.open(stream.Context(), peer)
	defer end()
	if err := c.registered(peer); err != nil { // who is revoked from here on is cut
		return err
	}
	if c.behind() {
		return ErrBehind
	}
	// The stream's context may be over; the store's own deadline bounds the write.
	ctx := context.WithoutCancel(stream.Context())
	c.setLeft(ctx, peer, false)
	left, err := c.fleet.Serve(peer.Name, &vouching{&liveStream{stream, live}, c.vouch(peer)})
	if left {
		c.setLeft(ctx, peer, true)
	}
	if errors.Is(err, ErrRevoked) {
		c.fleet.Forget(peer.Name)
	}
	return err
}

// vouch gives the voucher for the key that a node's stream was opened with; nil where it cannot be had, and the node is
// not believed in gossip.
func (c *Control) vouch(peer identity.Peer) []byte {
	raw, err := c.authority.Vouch(peer.Role, peer.Name, peer.Key, peer.Until)
	if err != nil {
		c.options.Logger.Error("a node cannot take part in gossip", "node", peer.Name, "error", err)
	}
	return raw
}

// vouching is a stream whose Welcome has the node's voucher: only here is it known which key the node showed.
type vouching struct {
	fleet.Stream
	voucher []byte
}

// Send sends a message.
func (v *vouching) Send(m *fleetv1.ToNode) error {
	if welcome := m.GetWelcome(); welcome != nil {
		welcome.Voucher = v.voucher
	}
	return v.Stream.Send(m)
}

// setLeft keeps whether a node is away on purpose, where that is news. It is for status after a restart only, so a disk
// that does not take it keeps no node out. false: it could not be kept.
func (c *Control) setLeft(ctx context.Context, peer identity.Peer, left bool) bool {
	if !c.store.Leads() {
		return false // the control that leads hears of it, and knows which key the name has now
	}
	if node, ok := c.store.Node(peer.Name); !ok || node.Left == left {
		return true
	}
	c.registry.Lock()
	defer c.registry.Unlock()
	node, ok := c.store.Node(peer.Name)
	if !ok || node.KeyHash != peer.KeyHash {
		return true // another machine was enrolled under the name
	}
	node.Left = left
	if err := c.store.PutNode(ctx, node); err != nil {
		c.options.Logger.Warn("cannot keep whether a node left; status may be wrong about it after a restart", "node", peer.Name, "left", left, "error", err)
		return false
	}
	return true
}
