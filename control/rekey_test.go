package control

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/keyring"
)

// keyed is a node that takes keys as long as it is willing.
type keyed struct {
	*fleettest.Node
	unwilling atomic.Bool

	mu   sync.Mutex // guards what follows
	told [][][]byte
}

func newKeyed(name string) *keyed {
	f := &keyed{Node: &fleettest.Node{Name: name}}
	f.Keys = func(keys [][]byte) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.told = append(f.told, keys)
		return !f.unwilling.Load()
	}
	return f
}

// story is what the node was told, a word for each list of keys: their places in the order in which they were first seen.
func (f *keyed) story() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var seen [][]byte
	var out []string
	for _, keys := range f.told {
		word := ""
		for _, key := range keys {
			i := slices.IndexFunc(seen, func(k []byte) bool { return bytes.Equal(k, key) })
			if i < 0 {
				i, seen = len(seen), append(seen, key)
			}
			word += string(rune('a' + i))
		}
		out = append(out, word)
	}
	return out
}

func (f *keyed) is(t *testing.T, want ...string) {
	t.Helper()
	if got := f.story(); !slices.Equal(got, want) {
		t.Errorf("%s was told %q, want %q", f.Name, got, want)
	}
}

// clock is one that a test moves on.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time       { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) pass(d time.Duration) { c.ahead.Add(int64(d)) }

// peerNamed is a node that was enrolled before.
func peerNamed(t *testing.T, c *Control, name string) identity.Peer {
	t.Helper()
	registered, ok := c.store.Node(name)
	if !ok {
		t.Fatalf("%s is not registered", name)
	}
	return identity.Peer{Role: identity.RoleNode, Name: name, KeyHash: registered.KeyHash}
}

func rotateKey(t *testing.T, c *Control) GossipKeyStatus {
	t.Helper()
	status, running, err := c.RotateGossipKey(t.Context())
	if err != nil || running {
		t.Fatalf("%+v, %v, %v", status, running, err)
	}
	return status
}

func settled(c *Control) func() bool {
	return func() bool {
		s := c.GossipKeyStatus()
		return s.Stage == keyring.Settled && len(s.PendingNodes)+len(s.PendingControls) == 0
	}
}

// stays fails the test where a change goes on: two looks of the one that leads it have to pass, each of which a node's word
// brings about.
func stays(t *testing.T, c *Control, stage keyring.Stage) {
	t.Helper()
	for range 100 {
		c.rekeyOn(t.Context())
	}
	if got := c.GossipKeyStatus(); got.Stage != stage {
		t.Fatalf("the stage is %s, want %s: %+v", got.Stage, stage, got)
	}
}

func TestGossipChangesItsKeyInStepsThatEverybodyTakes(t *testing.T) {
	var mu sync.Mutex
	var own []string
	o := optionsFor(t.TempDir())
	o.GossipKeys = func(keys [][]byte) error {
		mu.Lock()
		defer mu.Unlock()
		own = append(own, string(rune('0'+len(keys)))+keyring.Name(keys[0]))
		return nil
	}
	c := start(t, o)
	before := c.GossipKeyStatus()
	if before.Stage != keyring.Settled || !before.Since.IsZero() || before.Key == "" || before.New+before.Old != "" {
		t.Errorf("before: %+v", before)
	}
	n1, n2 := newKeyed("n1"), newKeyed("n2")
	n2.unwilling.Store(true)
	join(t, c, n1.Node, n2.Node)
	eventually(t, "n1 follows", func() bool { return slices.Equal(c.GossipKeyStatus().PendingNodes, []string{"n2"}) })
	status := rotateKey(t, c)
	if status.Stage != keyring.Install || status.New == "" || status.Key != before.Key {
		t.Errorf("begun: %+v", status)
	}
	eventually(t, "n2 alone is waited for", func() bool { return slices.Equal(c.GossipKeyStatus().PendingNodes, []string{"n2"}) })
	stays(t, c, keyring.Install)
	again, running, err := c.RotateGossipKey(t.Context())
	if err != nil || !running || again.New != status.New {
		t.Errorf("a second one: %+v, %v, %v", again, running, err)
	}
	n2.unwilling.Store(false)
	n2.Close()
	n2.Connect(serving(c, peerNamed(t, c, "n2")))
	eventually(t, "the new key is alone", settled(c))
	after := c.GossipKeyStatus()
	if after.Key != status.New || after.Old+after.New != "" || after.Since.IsZero() {
		t.Errorf("after: %+v", after)
	}
	n1.is(t, "a", "ab", "ba", "b")
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"1" + before.Key, "2" + before.Key, "2" + after.Key, "1" + after.Key}; !slices.Equal(own, want) {
		t.Errorf("control's own gossip used %q, want %q", own, want)
	}
}

func TestAChangeWaitsForANodeThatHasJustGoneAndNotForEver(t *testing.T) {
	now := &clock{}
	o := optionsFor(t.TempDir())
	o.Now = now.now
	c := start(t, o)
	n1, n2, n3 := newKeyed("n1"), newKeyed("n2"), newKeyed("n3")
	join(t, c, n1.Node, n2.Node, n3.Node)
	if err := n3.Leave(); err != nil {
		t.Fatal(err)
	}
	n2.Close()
	eventually(t, "n2 is gone", func() bool { return !c.fleet.Connected("n2") })
	rotateKey(t, c)
	eventually(t, "n2 is waited for", func() bool {
		s := c.GossipKeyStatus()
		return slices.Equal(s.PendingNodes, []string{"n2"}) && slices.Equal(s.AwayNodes, []string{"n3"})
	})
	stays(t, c, keyring.Install)
	now.pass(awayTime)
	eventually(t, "nobody waits for it any more", settled(c))
	if away := c.GossipKeyStatus().AwayNodes; !slices.Equal(away, []string{"n2", "n3"}) {
		t.Errorf("away are %q", away)
	}
	n2.Connect(serving(c, peerNamed(t, c, "n2")))
	eventually(t, "n2 has the new key", func() bool { return slices.Equal(n2.story(), []string{"a", "b"}) })
}

func TestAChangeGoesOnAfterARestart(t *testing.T) {
	dir := t.TempDir()
	c, err := New(optionsFor(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n1 := newKeyed("n1")
	peer := enrol(t, c, "n1")
	n1.Connect(serving(c, peer))
	eventually(t, "n1 follows", settled(c))
	n1.unwilling.Store(true)
	begun := rotateKey(t, c)
	eventually(t, "n1 was told", func() bool { return slices.Equal(n1.story(), []string{"a", "ab"}) })
	n1.Close()
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	// A crash may have kept the identity's file from following.
	file := filepath.Join(dir, "identity", "gossip.key")
	if err := os.WriteFile(file, []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{9}, 32))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c = start(t, optionsFor(dir))
	if s := c.GossipKeyStatus(); s.Stage != keyring.Install || s.New != begun.New || len(s.PendingNodes) != 1 {
		t.Errorf("after the restart: %+v", s)
	}
	n1.unwilling.Store(false)
	connect(t, c, peer, n1.Node)
	eventually(t, "the change has ended", settled(c))
	n1.is(t, "a", "ab", "ab", "ba", "b")
	data, err := os.ReadFile(file)
	if err != nil || strings.TrimSpace(string(data)) != base64.StdEncoding.EncodeToString(c.authority.GossipKeys()[0]) {
		t.Errorf("the identity's file was left: %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
}

func TestKeysThatCannotBeUsedHereAreToldToNobody(t *testing.T) {
	var refuse atomic.Bool
	o := optionsFor(t.TempDir())
	o.GossipKeys = func([][]byte) error {
		if refuse.Load() {
			return errors.New("not now")
		}
		return nil
	}
	c := start(t, o)
	n1 := newKeyed("n1")
	join(t, c, n1.Node)
	eventually(t, "n1 follows", settled(c))
	refuse.Store(true)
	if _, _, err := c.RotateGossipKey(t.Context()); err == nil || !strings.Contains(err.Error(), "has begun and waits for this control, which tries again") || !strings.Contains(err.Error(), "not now") {
		t.Errorf("got %v", err)
	}
	stays(t, c, keyring.Install)
	n1.is(t, "a")
	if s := c.GossipKeyStatus(); !slices.Equal(s.PendingControls, []string{"c1"}) {
		t.Errorf("waiting: %+v", s)
	}
	refuse.Store(false)
	eventually(t, "it is tried again", settled(c))
	n1.is(t, "a", "ab", "ba", "b")
}

func TestAChangeOfTheKeyIsInTheTrailWithoutTheKey(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	first := c.authority.GossipKeys()[0]
	ctx, _ := audit.Begin(context.WithoutCancel(t.Context()), "alice", "admin", "", "RotateGossipKey")
	if _, _, err := c.RotateGossipKey(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has ended", settled(c))
	if got := trail(t, c, "alice"); !slices.Equal(got, []string{"RotateGossipKey new key " + keyring.Name(c.authority.GossipKeys()[0]) + " is handed out: done"}) {
		t.Errorf("alice's are %q", got)
	}
	own := slices.DeleteFunc(trail(t, c, "c1"), func(line string) bool { return !strings.HasPrefix(line, "RotateGossipKey ") })
	if !slices.Equal(own, []string{
		"RotateGossipKey key " + keyring.Name(c.authority.GossipKeys()[0]) + " is used: done",
		"RotateGossipKey key " + keyring.Name(first) + " is dropped: done",
	}) {
		t.Errorf("control's are %q", own)
	}
	_, entries := c.Audit()
	for _, e := range entries {
		for _, key := range [][]byte{first, c.authority.GossipKeys()[0]} {
			for _, text := range []string{e.What, e.Outcome} {
				if strings.Contains(text, base64.StdEncoding.EncodeToString(key)) || strings.Contains(text, string(key)) {
					t.Errorf("the trail holds a key: %q", text)
				}
			}
		}
	}
}

// A node that will not follow must not be a reason to keep the change for ever.
func TestAChangeThatIsHeldUpCanBeTakenBack(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n1, n2 := newKeyed("n1"), newKeyed("n2")
	n2.unwilling.Store(true)
	join(t, c, n1.Node, n2.Node)
	eventually(t, "n1 follows", func() bool { return slices.Equal(c.GossipKeyStatus().PendingNodes, []string{"n2"}) })
	if _, err := c.CancelGossipKey(t.Context()); !errors.Is(err, ErrGossipKey) {
		t.Errorf("without a change: %v", err)
	}
	before := c.GossipKeyStatus()
	begun := rotateKey(t, c)
	eventually(t, "n1 was told", func() bool { return slices.Equal(n1.story(), []string{"a", "ab"}) })
	ctx, _ := audit.Begin(context.WithoutCancel(t.Context()), "alice", "admin", "", "CancelGossipKey")
	back, err := c.CancelGossipKey(ctx)
	if err != nil || back.Stage != keyring.Settled || back.Key != before.Key || back.New+back.Old != "" {
		t.Errorf("%+v, %v", back, err)
	}
	eventually(t, "n1 has dropped it", func() bool { return slices.Equal(n1.story(), []string{"a", "ab", "a"}) })
	if got := trail(t, c, "alice"); !slices.Equal(got, []string{"CancelGossipKey new key " + begun.New + " is taken back: done"}) {
		t.Errorf("the trail says %q", got)
	}
	n2.unwilling.Store(false)
	n2.Close()
	n2.Connect(serving(c, peerNamed(t, c, "n2")))
	eventually(t, "all have the old key", settled(c))
	if again := rotateKey(t, c); again.New == begun.New {
		t.Error("a key that was taken back is handed out again")
	}
	eventually(t, "the next change ends", settled(c))
	n1.is(t, "a", "ab", "a", "ac", "ca", "c")
}

func TestAKeyThatIsUsedIsNotTakenBack(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n1 := newKeyed("n1")
	n1.Keys = func(keys [][]byte) bool {
		n1.mu.Lock()
		defer n1.mu.Unlock()
		n1.told = append(n1.told, keys)
		return len(n1.told) < 3 // it takes the new key, and does not use it
	}
	join(t, c, n1.Node)
	eventually(t, "n1 follows", settled(c))
	rotateKey(t, c)
	eventually(t, "it is used", func() bool { return c.GossipKeyStatus().Stage == keyring.Use })
	if _, err := c.CancelGossipKey(t.Context()); !errors.Is(err, ErrGossipKey) || !strings.Contains(err.Error(), "not used yet") {
		t.Errorf("got %v", err)
	}
	stays(t, c, keyring.Use)
}
