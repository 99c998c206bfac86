package control

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/store"
)

func TestTokenThatLetsNobodyIn(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	other := start(t, optionsFor(t.TempDir()))
	request := requestFor(t, newKey(t))
	good := joinToken(t, c)
	for name, tt := range map[string]struct {
		token string
		want  error
	}{
		"empty":               {"", identity.ErrTokenMalformed},
		"cut":                 {good[:len(good)-1], identity.ErrTokenMalformed},
		"of another cluster":  {joinToken(t, other), identity.ErrTokenUnknown},
		"for a control":       {tokenIn(t, c, ControlTokenFile), identity.ErrTokenKind},
		"a control's as ours": {strings.Replace(tokenIn(t, c, ControlTokenFile), "psc1", "psj1", 1), identity.ErrTokenKind},
		"endless":             {strings.Repeat("a", 1<<20), identity.ErrTokenMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Enroll(t.Context(), tt.token, "n1", request)
			errorIs(t, err, tt.want)
		})
	}
	if nodes := c.Status().GetNodes(); len(nodes) != 0 {
		t.Errorf("status shows %v", nodes)
	}
}

func TestEnrolmentThatIsNotOne(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	request := requestFor(t, newKey(t))
	for name, tt := range map[string]struct {
		node    string
		request []byte
	}{
		"no name":         {"", request},
		"a path":          {"../n1", request},
		"too long":        {strings.Repeat("n", 64), request},
		"no request":      {"n1", nil},
		"broken request":  {"n1", request[:len(request)-1]},
		"another's bytes": {"n1", []byte("hello")},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Enroll(t.Context(), joinToken(t, c), tt.node, tt.request)
			errorIs(t, err, ErrInvalid)
		})
	}
	if len(c.store.Nodes()) != 0 {
		t.Error("something was registered")
	}
}

func TestNameOfAConnectedNodeIsTaken(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	n := &fleettest.Node{Name: "n1"}
	join(t, c, n)
	_, err := c.Enroll(t.Context(), joinToken(t, c), "n1", requestFor(t, newKey(t)))
	errorIs(t, err, ErrNameTaken)
	if !strings.Contains(err.Error(), `"n1"`) {
		t.Errorf("the error does not name the node: %v", err)
	}
	n.Close()
	enrol(t, c, "n1")
}

func TestANameThatDiffersInCaseAloneIsRefused(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	enrol(t, c, "Edge-1")
	token, stored := createToken(t, c, TokenRequest{Uses: 1})
	for _, name := range []string{"edge-1", "EDGE-1"} {
		err := enrolBy(t, c, token, name)
		errorIs(t, err, ErrNameAlike)
		if !strings.Contains(err.Error(), `"`+name+`": there is a node "Edge-1" already`) || !strings.Contains(err.Error(), "pyservectl node revoke") {
			t.Errorf("the error is %v", err)
		}
	}
	if now, _ := c.store.Token(stored.ID); now.Uses != 0 || len(c.store.Nodes()) != 1 {
		t.Errorf("%d uses, the nodes are %v", now.Uses, c.store.Nodes())
	}
	enrol(t, c, "Edge-1") // its own name, as of a machine that was replaced
	if _, err := c.RevokeNode(t.Context(), "Edge-1"); err != nil {
		t.Fatal(err)
	}
	if err := enrolBy(t, c, token, "edge-1"); err != nil {
		t.Error(err)
	}
}

// TestNodesWhoseNamesDifferInCaseAloneStay, where they were let in by an earlier version.
func TestNodesWhoseNamesDifferInCaseAloneStay(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	enrol(t, c, "n1")
	if err := c.store.PutNode(t.Context(), store.Node{Name: "N1", Enrolled: time.Now()}); err != nil {
		t.Fatal(err)
	}
	enrol(t, c, "N1")
	enrol(t, c, "n1")
}

// whenAsked gives a clock that stands, so that the time in which nodes return is not over however slow the machine is, and
// that runs do, once, in a goroutine of its own, when it is read after arm was called.
func whenAsked(do func()) (now func() time.Time, arm func()) {
	var armed atomic.Bool
	at := time.Now()
	return func() time.Time {
		if armed.CompareAndSwap(true, false) {
			go do()
		}
		return at
	}, func() { armed.Store(true) }
}

func TestNameOfANodeThatIsNotBackYetIsNotTakenAfterAStart(t *testing.T) {
	dir := t.TempDir()
	c, _ := New(optionsFor(dir))
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	peer, token := enrol(t, c, "n1"), joinToken(t, c)
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	n, o := &fleettest.Node{Name: "n1"}, optionsFor(dir)
	connected := make(chan struct{})
	var arm func()
	o.Now, arm = whenAsked(func() {
		defer close(connected)
		n.Connect(serving(c, peer))
	})
	c = start(t, o)
	arm()
	_, err := c.Enroll(t.Context(), token, "n1", requestFor(t, newKey(t)))
	<-connected
	defer n.Close()
	errorIs(t, err, ErrNameTaken)
	if err := c.registered(peer); err != nil {
		t.Errorf("the node that was there: %v", err)
	}
}

func TestNameIsTakenOverByANewKeyAndTheOldOneIsNotBelieved(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	key := newKey(t)
	request := requestFor(t, key)
	issued, err := c.Enroll(t.Context(), joinToken(t, c), "n1", request)
	if err != nil {
		t.Fatal(err)
	}
	old := peerOf(t, "n1", issued.GetCertificate())
	replaced := enrol(t, c, "n1")

	conn := fleettest.Open(serving(c, old))
	errorIs(t, conn.Wait(), ErrNotRegistered)
	_, err = c.Renew(old, request)
	errorIs(t, err, ErrNotRegistered)
	n := &fleettest.Node{Name: "n1"}
	connect(t, c, replaced, n)
}

func TestEnrollingAgainWithTheSameKeyIsNoTakeover(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	request := requestFor(t, newKey(t))
	first, err := c.Enroll(t.Context(), joinToken(t, c), "n1", request)
	if err != nil {
		t.Fatal(err)
	}
	// The answer got lost: the node asks again.
	if _, err := c.Enroll(t.Context(), joinToken(t, c), "n1", request); err != nil {
		t.Fatal(err)
	}
	if err := c.registered(peerOf(t, "n1", first.GetCertificate())); err != nil {
		t.Error(err)
	}
}

func TestRenewIsForTheKeyThatIsRegistered(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	key := newKey(t)
	issued, err := c.Enroll(t.Context(), joinToken(t, c), "n1", requestFor(t, key))
	if err != nil {
		t.Fatal(err)
	}
	peer := peerOf(t, "n1", issued.GetCertificate())
	fresh, err := c.Renew(peer, requestFor(t, key))
	if err != nil || peerOf(t, "n1", fresh.GetCertificate()) != peer {
		t.Fatalf("renewed for another identity (%v)", err)
	}
	_, err = c.Renew(peer, requestFor(t, newKey(t)))
	errorIs(t, err, ErrNotRegistered)
	_, err = c.Renew(peer, []byte("nonsense"))
	errorIs(t, err, ErrInvalid)
	_, err = c.Renew(identity.Peer{Role: identity.RoleNode, Name: "stranger"}, requestFor(t, key))
	errorIs(t, err, ErrRevoked)
}

func TestLeavingIsKeptOverARestart(t *testing.T) {
	dir := t.TempDir()
	c, _ := New(optionsFor(dir))
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	peer := enrol(t, c, "n1")
	n := &fleettest.Node{Name: "n1"}
	n.Connect(serving(c, peer))
	eventually(t, "connected", func() bool { return c.fleet.Connected("n1") })
	if err := n.Leave(); err != nil {
		t.Errorf("a node that leaves is told %v", err)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	c = start(t, optionsFor(dir))
	if rows := c.Status().GetNodes(); len(rows) != 1 || rows[0].GetState() != "left" {
		t.Errorf("status shows %v", rows)
	}
	connect(t, c, peer, n)
	if node, _ := c.store.Node("n1"); node.Left {
		t.Error("a node that came back counts as left")
	}
}

// A machine is replaced: the old node leaves while the new one enrols under its name. What control keeps of the old
// one's leaving must not bring back its key.
func TestLeavingDoesNotUndoATakeover(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	for range 20 {
		peer := enrol(t, c, "n1")
		n := &fleettest.Node{Name: "n1"}
		n.Connect(serving(c, peer))
		eventually(t, "connected", func() bool { return c.fleet.Connected("n1") })
		var leaving sync.WaitGroup
		leaving.Go(func() { n.Leave() })
		var replaced identity.Peer
		request := requestFor(t, newKey(t))
		eventually(t, "enrolled", func() bool {
			issued, err := c.Enroll(t.Context(), joinToken(t, c), "n1", request)
			if err == nil {
				replaced = peerOf(t, "n1", issued.GetCertificate())
			}
			return err == nil
		})
		leaving.Wait()
		if err := c.registered(replaced); err != nil {
			t.Fatalf("the new machine is not known: %v", err)
		}
	}
	c.setLeft(t.Context(), identity.Peer{Name: "n1"}, true) // of an older key
	if node, _ := c.store.Node("n1"); node.Left {
		t.Error("an older key's leaving counts for the newer")
	}
}
