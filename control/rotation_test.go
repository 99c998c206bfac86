package control

import (
	"context"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/identity"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// says has a node tell which authority issued its certificate.
func says(n *fleettest.Node, hash []byte) {
	n.Say(fleettest.Status(&fleetv1.Status{Authority: hash}))
}

func TestRotationIsFinishedWhenNobodyNeedsTheOldAuthority(t *testing.T) {
	dir := t.TempDir()
	o := optionsFor(dir)
	var ahead atomic.Int64 // of the clock
	o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	c := start(t, o)
	ahead.Store(int64(returnTime)) // nobody is waited for any more
	old := c.authority.AuthorityHash()
	me := func() identity.Peer {
		return identity.Peer{Role: identity.RoleAdmin, Name: "admin", Authority: c.authority.AuthorityHash()}
	}
	n := &fleettest.Node{Name: "n1"}
	join(t, c, n)
	enrol(t, c, "n2")
	eventually(t, "connected", func() bool { return c.fleet.Connected("n1") })
	says(n, old[:])
	eventually(t, "told", func() bool { return len(c.AuthorityStatus().Pending) == 0 })
	_, err := c.FinishRotation(t.Context(), me())
	errorIs(t, err, ErrRotation)

	before := readAll(t, dir, JoinTokenFile, ControlTokenFile, AdminFile)
	status, err := c.RotateAuthority(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	hash := c.authority.AuthorityHash()
	if hash == old || status.Old == "" || status.Hash == status.Old || len(status.Pending) != 1 || len(status.Away) != 1 {
		t.Errorf("the status is %+v", status)
	}
	for file, text := range readAll(t, dir, JoinTokenFile, ControlTokenFile, AdminFile) {
		if text == before[file] {
			t.Errorf("%s is still the old authority's", file)
		}
		if file != AdminFile && strings.Split(text, ".")[2] != strings.Split(before[file], ".")[2] {
			t.Errorf("%s holds another token", file)
		}
	}
	again, err := c.RotateAuthority(t.Context())
	if err != nil || again.Hash != status.Hash {
		t.Errorf("a second rotation: %+v, %v", again, err)
	}
	_, err = c.FinishRotation(t.Context(), me())
	errorIs(t, err, ErrRotation)
	if !strings.Contains(err.Error(), "n1") {
		t.Errorf("the error names no node: %v", err)
	}
	says(n, hash[:])
	eventually(t, "renewed", func() bool { return len(c.AuthorityStatus().Pending) == 0 })
	_, err = c.FinishRotation(t.Context(), identity.Peer{Role: identity.RoleAdmin, Name: "admin", Authority: old})
	errorIs(t, err, ErrRotation)
	if !strings.Contains(err.Error(), AdminFile) {
		t.Errorf("the error does not say what to do: %v", err)
	}
	status, err = c.FinishRotation(t.Context(), me())
	if err != nil || status.Old != "" || len(c.authority.CACertificates()) != 1 {
		t.Errorf("%+v, %v", status, err)
	}
	if err := enrolBy(t, c, joinToken(t, c), "n3"); err != nil {
		t.Errorf("the token of the file: %v", err)
	}
	admin, err := identity.LoadContext(filepath.Join(dir, AdminFile))
	if err != nil || !c.authority.Recognizes(admin) {
		t.Errorf("admin.yaml: %v", err)
	}
}

func TestRotationIsNotFinishedUnderANodeThatIsNotBackYetAfterAStart(t *testing.T) {
	dir := t.TempDir()
	c, _ := New(optionsFor(dir))
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	peer := enrol(t, c, "n1")
	if _, err := c.RotateAuthority(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	n, o := &fleettest.Node{Name: "n1"}, optionsFor(dir)
	connected := make(chan struct{})
	var arm func()
	o.Now, arm = whenAsked(func() {
		defer close(connected)
		n.Connect(serving(c, peer)) // and has not said yet by whom its certificate is
	})
	c = start(t, o)
	arm()
	_, err := c.FinishRotation(t.Context(), identity.Peer{Role: identity.RoleAdmin, Name: "admin", Authority: c.authority.AuthorityHash()})
	<-connected
	defer n.Close()
	errorIs(t, err, ErrRotation)
	if err == nil || !strings.Contains(err.Error(), "n1") || len(c.authority.CACertificates()) != 2 {
		t.Errorf("%d authorities, %v", len(c.authority.CACertificates()), err)
	}
}

func TestRotationOutlivesARestartAndALostIdentityFile(t *testing.T) {
	dir := t.TempDir()
	c, _ := New(optionsFor(dir))
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	old, err := c.authority.Issuers()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.RotateAuthority(t.Context()); err != nil {
		t.Fatal(err)
	}
	hash := c.authority.AuthorityHash()
	// As after a crash between the store's write and the files.
	if err := c.authority.Install(old); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	c = start(t, optionsFor(dir))
	if c.authority.AuthorityHash() != hash || len(c.authority.CACertificates()) != 2 {
		t.Error("the store's authorities are not in use")
	}
}

// Another control may have begun it: this one sees only the store.
func TestRotationByAnotherControlIsFollowed(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	next, err := c.authority.NewIssuer()
	if err != nil {
		t.Fatal(err)
	}
	own, err := c.authority.Issuers()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.store.SetAuthorities(t.Context(), storeAuthorities(next, own[0]), nil); err != nil {
		t.Fatal(err)
	}
	want := identity.CertificateHash(next.Certificate)
	eventually(t, "followed", func() bool { return c.authority.AuthorityHash() == want })
}

func TestNodesAreToldWhichAuthorityIssues(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	conn := fleettest.Open(serving(c, enrol(t, c, "n1")))
	t.Cleanup(conn.Break)
	conn.Say(fleettest.Hello("n1", nil))
	heard := func() []byte {
		t.Helper()
		for {
			m := conn.Hear()
			if m == nil {
				t.Fatal("the stream ended")
			}
			if a := m.GetAuthority(); a != nil {
				return a.GetSha256()
			}
		}
	}
	if hash := c.authority.AuthorityHash(); string(heard()) != string(hash[:]) {
		t.Error("told of another one")
	}
	if _, err := c.RotateAuthority(t.Context()); err != nil {
		t.Fatal(err)
	}
	if hash := c.authority.AuthorityHash(); string(heard()) != string(hash[:]) {
		t.Error("not told of the new one")
	}
}

func TestRotationIsInTheTrailWithoutItsKey(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	ctx, _ := audit.Begin(context.WithoutCancel(t.Context()), "alice", "admin", "", "RotateAuthority")
	status, err := c.RotateAuthority(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := trail(t, c, "alice"); len(got) != 1 || got[0] != "RotateAuthority new authority "+status.Hash+": done" {
		t.Errorf("the trail holds %v", got)
	}
}
