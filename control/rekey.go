package control

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/keyring"
	"github.com/pyserve/pyserve/control/store"
)

// ErrGossipKey says that the key of gossip cannot be changed as things stand.
var ErrGossipKey = errors.New("the key of gossip was not changed")

// awayTime is how long a node whose stream has ended is waited for before the next step: it may talk to the others still, with
// the keys that it has, and come back by itself. A broken connection takes up to 15 s to be noticed, and a node up to 5 s to
// try again.
const awayTime = 30 * time.Second

// GossipKeyStatus says how far a change of the key of gossip is. Keys are named, see [keyring.Name].
type GossipKeyStatus struct {
	// Key is what everybody is to encrypt with. Old is what it takes the place of, and New what is to take its place; empty:
	// nothing.
	Key, Old, New string
	Stage         keyring.Stage
	// Since is zero for the cluster's first key.
	Since time.Time
	// Pending are those whom the next step waits for, or, where none is to come, who have not dropped the old key. Away are
	// the nodes that get the keys when they come back.
	PendingNodes, PendingControls, AwayNodes []string
}

// ring is what everybody is to have.
func (c *Control) ring() keyring.Ring {
	if stored := c.store.GossipKeys(); stored != nil {
		return *stored
	}
	return keyring.Ring{Keys: c.authority.GossipKeys()}
}

// GossipKeyStatus says which key gossip has and who has not followed yet.
func (c *Control) GossipKeyStatus() GossipKeyStatus {
	ring := c.ring()
	s := GossipKeyStatus{Key: keyring.Name(ring.Keys[0]), Stage: ring.Stage, Since: ring.Since}
	switch last := len(ring.Keys) - 1; ring.Stage {
	case keyring.Install:
		s.New = keyring.Name(ring.Keys[last])
	case keyring.Use:
		s.Old = keyring.Name(ring.Keys[1])
	}
	pending, away := ring.Waiting(c.gossiping())
	for _, m := range pending {
		if m.Control {
			s.PendingControls = append(s.PendingControls, m.Name)
		} else {
			s.PendingNodes = append(s.PendingNodes, m.Name)
		}
	}
	for _, m := range away {
		s.AwayNodes = append(s.AwayNodes, m.Name)
	}
	for _, names := range [][]string{s.PendingNodes, s.PendingControls, s.AwayNodes} {
		slices.Sort(names)
	}
	return s
}

// gossiping gives everybody who takes part in gossip, or may.
func (c *Control) gossiping() []keyring.Member {
	members := []keyring.Member{{Name: c.options.Name, Control: true, Here: true, Digest: keyring.Ring{Keys: c.fleet.GossipKeys()}.Digest()}}
	for _, other := range c.others() {
		m := keyring.Member{Name: other.Name, Control: true}
		for _, f := range c.fleet.Followers() {
			if f.ID == other.ID {
				m.Here, m.Digest = f.Complete, f.GossipKeys
			}
		}
		members = append(members, m)
	}
	known := map[string]fleet.Node{}
	for _, node := range c.fleet.Nodes() {
		known[node.Name] = node
	}
	now := c.options.Now()
	for _, registered := range c.store.Nodes() {
		node, seen := known[registered.Name]
		since := node.Since
		if !seen {
			since = c.leading()
		}
		members = append(members, keyring.Member{
			Name: registered.Name, Here: node.Connected, Digest: node.GossipKeys,
			Awaited: !node.Left && !registered.Left && now.Sub(since) < awayTime,
		})
	}
	return members
}

// RotateGossipKey makes a new key of gossip and begins to lead everybody to it; running says that this had begun before, and
// nothing was changed. It fails with [ErrGossipKey] where a control is away, or of a version that knows nothing of it.
func (c *Control) RotateGossipKey(ctx context.Context) (status GossipKeyStatus, running bool, err error) {
	if err := c.awaitWord(ctx, c.controlPatience(), func() bool { return len(c.strangers()) > 0 }); err != nil {
		return status, false, fmt.Errorf("nothing was changed: %w", err)
	}
	if err := c.current(ctx); err != nil {
		return status, false, fmt.Errorf("nothing was changed: %w", err)
	}
	stored, fresh := c.store.GossipKeys(), make([]byte, keyring.KeyBytes)
	rand.Read(fresh)
	next, err := c.ring().Begin(fresh, c.options.Now())
	if errors.Is(err, keyring.ErrRunning) {
		audit.Conclude(ctx, "a change is under way already")
		return c.GossipKeyStatus(), true, nil
	}
	if err != nil {
		return status, false, fmt.Errorf("%w: %w", ErrGossipKey, err)
	}
	audit.Describe(ctx, "new key %s is handed out", keyring.Name(fresh))
	if strangers := c.strangers(); len(strangers) > 0 {
		return status, false, fmt.Errorf("%w: these controls are away, or of a version that cannot follow: %s; start or upgrade them, or take them out with pyservectl control remove",
			ErrGossipKey, strings.Join(strangers, ", "))
	}
	err = c.store.SetGossipKeys(ctx, next, stored)
	if errors.Is(err, store.ErrConflict) {
		audit.Conclude(ctx, "a change is under way already")
		return c.GossipKeyStatus(), true, nil
	}
	if err != nil {
		return status, false, err
	}
	if err := c.takeGossipKeys(); err != nil {
		return c.GossipKeyStatus(), false, fmt.Errorf("the change of the key has begun and waits for this control, which tries again: %w", err)
	}
	return c.GossipKeyStatus(), false, nil
}

// CancelGossipKey takes back a key that is handed out and not used yet: whom the change waits for may not come round, as a node
// that has to keep an older version. Everybody drops the key as soon as it hears of it. It fails with [ErrGossipKey] where there is
// none.
func (c *Control) CancelGossipKey(ctx context.Context) (GossipKeyStatus, error) {
	if err := c.current(ctx); err != nil {
		return GossipKeyStatus{}, fmt.Errorf("nothing was changed: %w", err)
	}
	stored, ring := c.store.GossipKeys(), c.ring()
	next, err := ring.Cancel(c.options.Now())
	if err != nil {
		return GossipKeyStatus{}, fmt.Errorf("%w: %w", ErrGossipKey, err)
	}
	audit.Describe(ctx, "new key %s is taken back", keyring.Name(ring.Keys[len(ring.Keys)-1]))
	err = c.store.SetGossipKeys(ctx, next, stored)
	if errors.Is(err, store.ErrConflict) {
		return GossipKeyStatus{}, fmt.Errorf("%w: everybody had the new key just now, and begins to use it", ErrGossipKey)
	}
	if err != nil {
		return GossipKeyStatus{}, err
	}
	if err := c.takeGossipKeys(); err != nil {
		return c.GossipKeyStatus(), fmt.Errorf("the key is taken back, but for this control, which tries again: %w", err)
	}
	return c.GossipKeyStatus(), nil
}

// strangers are the controls that have not said which keys they use: a change cannot begin without them.
func (c *Control) strangers() (names []string) {
	for _, m := range c.gossiping() {
		if m.Control && (!m.Here || m.Digest == nil) {
			names = append(names, m.Name)
		}
	}
	return names
}

// takeGossipKeys brings this control to the keys that the store says: its own gossip first, then its disk, and then what
// nodes are told and what the leader hears of this control. So nobody is told of what is not used here.
func (c *Control) takeGossipKeys() error {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	ring := c.ring()
	if told := c.fleet.GossipKeys(); bytes.Equal(ring.Digest(), keyring.Ring{Keys: told}.Digest()) {
		return nil
	}
	if use := c.options.GossipKeys; use != nil {
		if err := use(ring.Keys); err != nil {
			return fmt.Errorf("have gossip use other keys: %w", err)
		}
	}
	if err := c.authority.SetGossipKeys(ring.Keys); err != nil {
		return err
	}
	c.fleet.SetGossipKeys(ring.Keys)
	return nil
}

// keepKeys is takeGossipKeys for who asks again and again; trouble is what it gave before, which is not told twice.
func (c *Control) keepKeys(trouble string) string {
	err := c.takeGossipKeys()
	if err == nil {
		return ""
	}
	if err.Error() != trouble {
		c.options.Logger.Error("cannot take the keys of gossip to use; trying again", "error", err)
	}
	return err.Error()
}

const (
	// rekeyInterval is how often to look whether a node is away for long enough.
	rekeyInterval = time.Second
	// rekeyTime bounds the write of a step.
	rekeyTime = 5 * time.Second
)

// rekey takes the steps of a change of the key of gossip, while this control leads: whichever does goes on where the store
// says. It has a goroutine of its own, as keepLeft has.
func (c *Control) rekey(ctx context.Context) {
	fleetChanged, stop := c.fleet.Watch()
	defer stop()
	again := time.NewTicker(rekeyInterval)
	defer again.Stop()
	for {
		changed := c.store.Changed()
		c.rekeyOn(ctx)
		select {
		case <-changed:
		case <-fleetChanged:
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

// rekeyOn takes the next step where everybody has taken the last.
func (c *Control) rekeyOn(ctx context.Context) {
	stored := c.store.GossipKeys()
	if stored == nil || stored.Stage == keyring.Settled || !c.store.Leads() {
		return
	}
	if pending, _ := stored.Waiting(c.gossiping()); len(pending) > 0 {
		return
	}
	next, _ := stored.Next(c.options.Now())
	what := fmt.Sprintf("key %s is used", keyring.Name(next.Keys[0]))
	if next.Stage == keyring.Settled {
		what = fmt.Sprintf("key %s is dropped", keyring.Name(stored.Keys[1]))
	}
	attempt, cancel := context.WithTimeout(ctx, rekeyTime)
	defer cancel()
	attempt, _ = audit.Begin(attempt, c.options.Name, "control", "", "RotateGossipKey")
	audit.Describe(attempt, "%s", what)
	switch err := c.store.SetGossipKeys(attempt, next, stored); {
	case err == nil:
		c.options.Logger.Info("gossip changes its key", "step", what)
	case errors.Is(err, store.ErrConflict) || ctx.Err() != nil:
	default:
		c.options.Logger.Warn("cannot take the next step of changing the key of gossip; trying again", "error", err)
	}
}
