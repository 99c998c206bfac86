package api

import (
	"errors"
	"io"
	"path"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/identity"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// TestEveryMethodThatChangesSomethingIsAudited goes by the names: what does not begin as a method that reads, and is no
// node's, changes something.
func TestEveryMethodThatChangesSomethingIsAudited(t *testing.T) {
	reads := []string{"Get", "List", "Watch", "Find", "Diff", "Explain", "Connect", "Renew"}
	known := map[string]bool{}
	for _, m := range methods() {
		known[m.name] = true
		changes := true
		for _, word := range reads {
			changes = changes && !strings.HasPrefix(path.Base(m.name), word)
		}
		if strings.HasPrefix(m.name, "/pyserve.replica.v1.Replica/") {
			changes = false // what another control brings was kept where it was asked for
		}
		if audited[m.name] != changes {
			t.Errorf("%s: audited is %t", m.name, audited[m.name])
		}
	}
	for name := range audited {
		if !known[name] {
			t.Errorf("there is no method %s", name)
		}
	}
}

// entries gives the trail over the wire, verified.
func (s *site) entries(t *testing.T) []*operatorv1.AuditEntry {
	t.Helper()
	stream, err := operatorv1.NewAccessClient(s.operator(t)).ListAudit(deadline(t), &operatorv1.ListAuditRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var all []*operatorv1.AuditEntry
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m.GetEntries()...)
	}
	if anchor, entries := s.control.Audit(); audit.Verify(anchor, entries) != nil || len(entries) != len(all) {
		t.Fatalf("%d of %d entries", len(all), len(entries))
	}
	return all
}

// last gives the newest entry of an actor's.
func (s *site) last(t *testing.T, actor string) *operatorv1.AuditEntry {
	t.Helper()
	var found *operatorv1.AuditEntry
	for _, e := range s.entries(t) {
		if e.GetActor() == actor {
			found = e
		}
	}
	return found
}

func TestCallsAreInTheTrail(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewAccessClient(s.operator(t))
	made, err := c.CreateToken(deadline(t), &operatorv1.CreateTokenRequest{Kind: operatorv1.TokenKind_TOKEN_KIND_JOIN, Uses: 2})
	if err != nil {
		t.Fatal(err)
	}
	e := s.last(t, "admin")
	if e.GetMethod() != "CreateToken" || e.GetRole() != "admin" || !strings.HasPrefix(e.GetAddress(), "127.0.0.1:") || e.GetOutcome() != "done" ||
		!strings.Contains(e.GetWhat(), made.GetSummary().GetId()) || !strings.Contains(e.GetWhat(), "2 uses") {
		t.Errorf("the entry is %v", e)
	}
	secret := strings.Split(made.GetToken(), ".")[2]
	for _, e := range s.entries(t) {
		if strings.Contains(e.String(), secret) {
			t.Errorf("an entry holds the secret: %v", e)
		}
	}
	if _, err := c.RevokeToken(deadline(t), &operatorv1.RevokeTokenRequest{Id: "nothing"}); err == nil {
		t.Fatal("revoked nothing")
	}
	if e := s.last(t, "admin"); e.GetMethod() != "RevokeToken" || !strings.Contains(e.GetOutcome(), "there is no such token") || !strings.Contains(e.GetWhat(), "nothing") {
		t.Errorf("the entry is %v", e)
	}
	s.person(t, identity.RoleViewer)
	if e := s.last(t, "admin"); e.GetMethod() != "CreateContext" || !strings.Contains(e.GetWhat(), "context a-viewer, role viewer") {
		t.Errorf("the entry is %v", e)
	}
	s.node(t, "n1")
	if e := s.last(t, "n1"); e.GetMethod() != "Enroll" || e.GetRole() != "node" || !strings.HasPrefix(e.GetWhat(), "token ") || e.GetOutcome() != "done" {
		t.Errorf("the entry is %v", e)
	}
	applied := func(document string, o *operatorv1.ApplyOptions) {
		t.Helper()
		stream, err := operatorv1.NewOperatorClient(s.operator(t)).Apply(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []*operatorv1.ApplyRequest{
			{Message: &operatorv1.ApplyRequest_Options{Options: o}}, {Message: &operatorv1.ApplyRequest_Part{Part: part("", document)}},
		} {
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := stream.Recv(); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	const document = "server: {reverse_proxy: [{path: /, host: 127.0.0.1, port: 9}]}"
	before := len(s.entries(t))
	applied(document, &operatorv1.ApplyOptions{DryRun: true})
	if n := len(s.entries(t)); n != before {
		t.Errorf("a dry run is in the trail: %d entries", n-before)
	}
	for _, want := range []string{"done", "unchanged"} {
		applied(document, &operatorv1.ApplyOptions{})
		if e := s.last(t, "admin"); e.GetMethod() != "Apply" || e.GetOutcome() != want {
			t.Errorf("the entry is %v", e)
		}
	}
	if e := s.entries(t)[before]; !strings.HasPrefix(e.GetWhat(), "revision 1, digest ") || len(e.GetWhat()) != len("revision 1, digest ")+64 {
		t.Errorf("the entry is %v", e)
	}
	applied("server: nonsense", &operatorv1.ApplyOptions{})
	if e := s.last(t, "admin"); e.GetOutcome() != "refused: the document has errors" {
		t.Errorf("the entry is %v", e)
	}
}

func TestDeniedCallsAreInTheTrailAndAnonymousOnesAreNot(t *testing.T) {
	s := newSite(t)
	viewer := operatorv1.NewAccessClient(s.person(t, identity.RoleViewer))
	_, err := viewer.RevokeNode(deadline(t), &operatorv1.RevokeNodeRequest{Name: "n1"})
	checkCode(t, err, codes.PermissionDenied, "needs the role admin")
	if e := s.last(t, "a-viewer"); e.GetMethod() != "RevokeNode" || e.GetRole() != "viewer" || e.GetOutcome() != "a-viewer has the role viewer, and RevokeNode needs the role admin" {
		t.Errorf("the entry is %v", e)
	}
	if _, err := viewer.ListTokens(deadline(t), &operatorv1.ListTokensRequest{}); err == nil {
		t.Fatal("a viewer lists tokens")
	}
	before := len(s.entries(t))
	anonymous := s.as(t)
	for range 30 {
		if _, err := operatorv1.NewAccessClient(anonymous).CreateToken(deadline(t), &operatorv1.CreateTokenRequest{}); err == nil {
			t.Fatal("let in")
		}
		if _, err := fleetv1.NewEnrollmentClient(anonymous).Enroll(deadline(t), &fleetv1.EnrollRequest{Name: "x", Token: "y"}); err == nil {
			t.Fatal("let in")
		}
	}
	if after := len(s.entries(t)); after != before {
		t.Errorf("anonymous callers left %d entries", after-before)
	}
	for range 100 {
		viewer.RevokeNode(deadline(t), &operatorv1.RevokeNodeRequest{Name: "n1"})
	}
	if after := len(s.entries(t)); after > before+10 {
		t.Errorf("one caller left %d entries", after-before)
	}
}
