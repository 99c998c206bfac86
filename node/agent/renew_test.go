package agent

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/identity"
)

// enrolledAt is a control with a clock, and a node of it whose clock is the same.
func enrolledAt(t *testing.T) (*realControl, *clock, *rig) {
	t.Helper()
	clock := &clock{}
	c := newRealControlAt(t, t.TempDir(), "127.0.0.1:0", clock.now)
	t.Cleanup(func() { c.close(t) })
	o := enrolOptions(t, c.token(t, control.JoinTokenFile), "n1", c.address)
	id, err := Enroll(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return c, clock, newRig(t, newScript(t), rigOptions{dir: o.DataDir, identity: id, controls: o.Controls, now: clock.now})
}

func (c *realControl) shows(name, state string) bool {
	for _, row := range c.Status().GetNodes() {
		if row.GetName() == name {
			return row.GetState() == state
		}
	}
	return false
}

func TestNodeThatWasOffForAWeekendComesBackByItself(t *testing.T) {
	c, clock, r := enrolledAt(t)
	_, until := r.identity.Load().Lifetime()
	clock.advance(3 * 24 * time.Hour)
	r.run()
	eventually(t, "connected", func() bool { return c.shows("n1", "joining") })
	saved, err := LoadIdentity(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, later := saved.Lifetime(); !later.After(clock.now()) || !later.After(until) {
		t.Errorf("the certificate on disk is good until %s", later)
	}
}

// The node's clock is behind, so that it does not know that its certificate has ended.
func TestNodeBelievesControlThatItsCertificateHasEnded(t *testing.T) {
	c, clock, r := enrolledAt(t)
	clock.advance(24*time.Hour + 2*time.Minute)
	r.options.Now = func() time.Time { return clock.now().Add(-4 * time.Minute) }
	r.run()
	eventually(t, "connected", func() bool { return c.shows("n1", "joining") })
}

func TestNodeThatWasOffForTooLongIsToldWhatToDo(t *testing.T) {
	_, clock, r := enrolledAt(t)
	clock.advance(32 * 24 * time.Hour)
	r.run()
	eventually(t, "told", func() bool {
		return r.log.has("too long ago to be renewed: remove identity.json") && r.log.has("start the node with a join token to enrol anew")
	})
}

func TestRevokedNodeDoesNotComeBackWithAnExpiredCertificate(t *testing.T) {
	c, clock, r := enrolledAt(t)
	if _, err := c.RevokeNode(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	clock.advance(3 * 24 * time.Hour)
	r.run()
	eventually(t, "told", func() bool { return r.log.has("the node's registration was revoked") })
}

func TestRenewalIsSpreadOverATenthOfTheLife(t *testing.T) {
	s := newScript(t)
	seen := map[time.Duration]bool{}
	for range 20 {
		id := s.identity(t)
		from, until := id.Lifetime()
		part := id.renewAt().Sub(from)
		if life := until.Sub(from); part < life/2 || part > life*6/10 {
			t.Errorf("renewed after %s of %s", part, life)
		}
		if id.renewAt().Sub(from) != part {
			t.Error("the moment moves")
		}
		seen[part] = true
	}
	if len(seen) < 15 {
		t.Errorf("20 nodes renew at %d moments", len(seen))
	}
}

func TestUnwelcomeCertificateIsRenewedFirst(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{now: s.clock.now}).run()
	w, _ := s.opened(t)
	w.end <- status.Error(codes.Unauthenticated, "the certificate of n1 ended")
	s.opened(t)
	if n := s.renewals.Load(); n != 1 {
		t.Errorf("%d renewals before the second stream", n)
	}
	r.stop()
}

// admin is who may do everything at a control, with a certificate by the authority that issues.
func (c *realControl) admin(t *testing.T) identity.Peer {
	t.Helper()
	raw, err := hex.DecodeString(c.AuthorityStatus().Hash)
	if err != nil {
		t.Fatal(err)
	}
	return identity.Peer{Role: identity.RoleAdmin, Name: "admin", Authority: [32]byte(raw)}
}

// TestNodesFollowARotationOfTheAuthority: over the stream that is open, and for weeks afterwards.
func TestNodesFollowARotationOfTheAuthority(t *testing.T) {
	c, clock, r := enrolledAt(t)
	before := c.token(t, control.JoinTokenFile)
	defer func() {
		if t.Failed() {
			t.Log(r.log.String())
		}
	}()
	r.run()
	eventually(t, "connected", func() bool { return c.shows("n1", "joining") })
	if _, err := c.RotateAuthority(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "renewed", func() bool { return len(c.AuthorityStatus().Pending) == 0 })
	if n := strings.Count(r.identity.Load().CAPEM, "BEGIN"); n != 2 {
		t.Errorf("the node believes %d authorities", n)
	}
	// Both tokens let in, that of before and that of since, and who comes now follows the end as well.
	for name, token := range map[string]string{"n2": before, "n3": c.token(t, control.JoinTokenFile)} {
		if _, err := Enroll(t.Context(), enrolOptions(t, token, name, c.address)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.FinishRotation(t.Context(), c.admin(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := Enroll(t.Context(), enrolOptions(t, before, "n4", c.address)); err == nil || !strings.Contains(err.Error(), "its authority was replaced since the token was made") {
		t.Errorf("a token of before the rotation, after its end: %v", err)
	}
	if _, err := Enroll(t.Context(), enrolOptions(t, c.token(t, control.JoinTokenFile), "n5", c.address)); err != nil {
		t.Errorf("the token of control's file: %v", err)
	}
	// The stream's connection was made with a certificate that nobody believes any more; renewing goes on.
	first := r.identity.Load()
	clock.advance(15 * time.Hour)
	eventually(t, "renewed", func() bool { return r.identity.Load().CertificatePEM != first.CertificatePEM })
	if n := strings.Count(r.identity.Load().CAPEM, "BEGIN"); n != 1 {
		t.Errorf("the node still believes %d authorities", n)
	}
	if !c.shows("n1", "joining") {
		t.Error("its stream ended")
	}
}
