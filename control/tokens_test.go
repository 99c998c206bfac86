package control

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/store"
)

// testClock is a clock that a test turns by hand.
type testClock struct{ now atomic.Pointer[time.Time] }

func newClock() *testClock {
	c := &testClock{}
	now := time.Now()
	c.now.Store(&now)
	return c
}

func (c *testClock) Now() time.Time { return *c.now.Load() }

func (c *testClock) turn(by time.Duration) {
	next := c.Now().Add(by)
	c.now.Store(&next)
}

func createToken(t *testing.T, c *Control, r TokenRequest) (string, store.Token) {
	t.Helper()
	if r.Kind == 0 {
		r.Kind = identity.TokenJoin
	}
	token, stored, err := c.CreateToken(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return token, stored
}

// enrolBy tries to enrol a node with a key of its own.
func enrolBy(t *testing.T, c *Control, token, name string) error {
	t.Helper()
	_, err := c.Enroll(t.Context(), token, name, requestFor(t, newKey(t)))
	return err
}

func TestTokenLetsInAsManyAsItIsFor(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	token, stored := createToken(t, c, TokenRequest{Uses: 2})
	for _, name := range []string{"n1", "n2"} {
		if err := enrolBy(t, c, token, name); err != nil {
			t.Fatal(err)
		}
	}
	err := enrolBy(t, c, token, "n3")
	errorIs(t, err, store.ErrTokenUsedUp)
	if known, _ := c.store.Token(stored.ID); known.Uses != 2 || c.TokenIsValid(known) {
		t.Errorf("the token is %+v", known)
	}
	if len(c.store.Nodes()) != 2 {
		t.Errorf("the nodes are %v", c.store.Nodes())
	}
}

func TestTokenForOneLetsInOneOfManyThatComeAtOnce(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	token, _ := createToken(t, c, TokenRequest{Uses: 1})
	var let atomic.Int32
	var all sync.WaitGroup
	for i := range 16 {
		request := requestFor(t, newKey(t))
		all.Go(func() {
			if _, err := c.Enroll(t.Context(), token, "n"+string(rune('a'+i)), request); err == nil {
				let.Add(1)
			}
		})
	}
	all.Wait()
	if let.Load() != 1 || len(c.store.Nodes()) != 1 {
		t.Errorf("%d were let in, %d are registered", let.Load(), len(c.store.Nodes()))
	}
}

func TestAnswerThatGotLostCostsNoSecondUse(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	token, stored := createToken(t, c, TokenRequest{Uses: 1})
	request := requestFor(t, newKey(t))
	for range 3 {
		if _, err := c.Enroll(t.Context(), token, "n1", request); err != nil {
			t.Fatal(err)
		}
	}
	if known, _ := c.store.Token(stored.ID); known.Uses != 1 {
		t.Errorf("the token is %+v", known)
	}
	errorIs(t, enrolBy(t, c, token, "n1"), store.ErrTokenUsedUp) // another key
}

func TestTokenExpires(t *testing.T) {
	clock := newClock()
	o := optionsFor(t.TempDir())
	o.Now = clock.Now
	c := start(t, o)
	token, stored := createToken(t, c, TokenRequest{TTL: time.Hour})
	clock.turn(time.Hour - time.Second)
	if err := enrolBy(t, c, token, "n1"); err != nil {
		t.Fatal(err)
	}
	clock.turn(time.Second)
	err := enrolBy(t, c, token, "n2")
	errorIs(t, err, store.ErrTokenExpired)
	if !strings.Contains(err.Error(), stored.Expires.UTC().Format(time.RFC3339)) {
		t.Errorf("the error does not say when: %v", err)
	}
	clock.turn(8 * 24 * time.Hour)
	createToken(t, c, TokenRequest{})
	if _, known := c.store.Token(stored.ID); known {
		t.Error("a token that expired long ago is still remembered")
	}
	errorIs(t, enrolBy(t, c, token, "n2"), identity.ErrTokenUnknown)
	if err := enrolBy(t, c, joinToken(t, c), "n2"); err != nil {
		t.Errorf("the token of the first start: %v", err)
	}
}

func TestTokenIsForTheNamesOfItsPattern(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	token, _ := createToken(t, c, TokenRequest{Pattern: "edge-*"})
	for _, name := range []string{"n1", "edge", "xedge-1"} {
		err := enrolBy(t, c, token, name)
		errorIs(t, err, store.ErrTokenName)
		if !strings.Contains(err.Error(), "edge-*") || !strings.Contains(err.Error(), name) {
			t.Errorf("the error is %v", err)
		}
	}
	if err := enrolBy(t, c, token, "edge-1"); err != nil {
		t.Error(err)
	}
}

func TestControlTokenThatIsMadeMakesNoNode(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	token, _ := createToken(t, c, TokenRequest{Kind: identity.TokenControl, Uses: 1})
	errorIs(t, enrolBy(t, c, token, "n1"), identity.ErrTokenKind)
	if err := c.redeem(t.Context(), token, identity.TokenControl, store.Node{Name: "c2", Enrolled: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if len(c.store.Nodes()) != 0 {
		t.Error("a control became a node")
	}
	err := c.redeem(t.Context(), token, identity.TokenControl, store.Node{Name: "c3", Enrolled: time.Now()})
	errorIs(t, err, store.ErrTokenUsedUp)
}

func TestRevokedTokenLetsNobodyIn(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	token, stored := createToken(t, c, TokenRequest{})
	if err := enrolBy(t, c, token, "n1"); err != nil {
		t.Fatal(err)
	}
	if _, file, err := c.RevokeToken(t.Context(), stored.ID); err != nil || file != "" {
		t.Fatalf("%q, %v", file, err)
	}
	errorIs(t, enrolBy(t, c, token, "n2"), identity.ErrTokenUnknown)
	if _, known := c.store.Node("n1"); !known {
		t.Error("who came in by it is gone")
	}
	_, _, err := c.RevokeToken(t.Context(), stored.ID)
	errorIs(t, err, store.ErrTokenGone)
}

func TestRevokedTokenOfAFileIsReplacedAtTheNextStart(t *testing.T) {
	dir := t.TempDir()
	c, _ := New(optionsFor(dir))
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := joinToken(t, c)
	_, file, err := c.RevokeToken(t.Context(), identity.TokenID(old))
	if err != nil || file != filepath.Join(dir, JoinTokenFile) {
		t.Fatalf("%q, %v", file, err)
	}
	errorIs(t, enrolBy(t, c, old, "n1"), identity.ErrTokenUnknown)
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	c = start(t, optionsFor(dir))
	if joinToken(t, c) == old {
		t.Error("the revoked token is still in the file")
	}
	if err := enrolBy(t, c, joinToken(t, c), "n1"); err != nil {
		t.Error(err)
	}
	errorIs(t, enrolBy(t, c, old, "n2"), identity.ErrTokenUnknown)
}

func TestSecretOfATokenIsKeptNowhere(t *testing.T) {
	dir := t.TempDir()
	c := start(t, optionsFor(dir))
	token, _ := createToken(t, c, TokenRequest{})
	secret := strings.Split(token, ".")[2]
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), secret) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRevokedNodeIsCutAndForgotten(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	peer := enrol(t, c, "n1")
	n, other := &fleettest.Node{Name: "n1"}, &fleettest.Node{Name: "n2"}
	n.Connect(serving(c, peer))
	join(t, c, other)
	eventually(t, "connected", func() bool { return c.fleet.Connected("n1") && c.fleet.Connected("n2") })
	applied(t, c, document(1))
	connected, err := c.RevokeNode(t.Context(), "n1")
	if err != nil || !connected {
		t.Fatalf("%t, %v", connected, err)
	}
	errorIs(t, n.Wait(), ErrRevoked)
	if rows := c.Status().GetNodes(); len(rows) != 1 || rows[0].GetName() != "n2" || !c.Status().GetConverged() {
		t.Errorf("status shows %v", rows)
	}
	errorIs(t, fleettest.Open(serving(c, peer)).Wait(), ErrRevoked)
	_, err = c.Renew(peer, requestFor(t, newKey(t)))
	errorIs(t, err, ErrRevoked)
	if err := enrolBy(t, c, joinToken(t, c), "n1"); err != nil {
		t.Errorf("the name is not free: %v", err)
	}
	errorIs(t, fleettest.Open(serving(c, peer)).Wait(), ErrNotRegistered)
	_, err = c.RevokeNode(t.Context(), "n9")
	errorIs(t, err, ErrNoNode)
}

// A node that was killed keeps status from converging for a day, unless it is revoked.
func TestRevokingANodeThatIsAwayLetsStatusConverge(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n, killed := &fleettest.Node{Name: "n1"}, &fleettest.Node{Name: "n2"}
	join(t, c, n)
	peer := enrol(t, c, "n2")
	killed.Connect(serving(c, peer))
	eventually(t, "connected", func() bool { return c.fleet.Connected("n2") })
	applied(t, c, document(1))
	killed.Close()
	if c.Status().GetConverged() {
		t.Fatal("it converged without the node")
	}
	if connected, err := c.RevokeNode(t.Context(), "n2"); err != nil || connected {
		t.Fatalf("%t, %v", connected, err)
	}
	if !c.Status().GetConverged() {
		t.Errorf("the status is %v", c.Status())
	}
}

// Another control may have revoked it: this one sees only the store.
func TestNodeThatAnotherControlRevokedIsCut(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n := &fleettest.Node{Name: "n1"}
	n.Connect(serving(c, enrol(t, c, "n1")))
	eventually(t, "connected", func() bool { return c.fleet.Connected("n1") })
	if err := c.store.RemoveNode(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	errorIs(t, n.Wait(), ErrRevoked)
}
