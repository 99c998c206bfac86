package api

import (
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/identity"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// issue has a context made by the administrator, and gives how its holder dials any control.
func (s *site) issue(t *testing.T, name string, role identity.Role) func(*site) *grpc.ClientConn {
	t.Helper()
	request, err := identity.NewContextRequest()
	if err != nil {
		t.Fatal(err)
	}
	m, err := operatorv1.NewAccessClient(s.operator(t)).CreateContext(deadline(t), &operatorv1.CreateContextRequest{
		Name: name, Role: role.String(), CertificateRequest: request.DER,
	})
	if err != nil {
		t.Fatal(err)
	}
	made, err := request.Context(m.GetCluster(), m.GetEndpoints(), m.GetCertificate(), m.GetCaCertificates())
	if err != nil {
		t.Fatal(err)
	}
	config, err := made.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	return func(at *site) *grpc.ClientConn { return dial(t, at.address, credentials.NewTLS(config)) }
}

func revoke(t *testing.T, s *site, name string) *operatorv1.RevokeContextResponse {
	t.Helper()
	m, err := operatorv1.NewAccessClient(s.operator(t)).RevokeContext(deadline(t), &operatorv1.RevokeContextRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func ask(t *testing.T, conn *grpc.ClientConn) error {
	t.Helper()
	_, err := operatorv1.NewOperatorClient(conn).ListControls(deadline(t), &operatorv1.ListControlsRequest{Local: true})
	return err
}

func TestRevokedContextIsRefusedByEveryControlAndItsStreamsEnd(t *testing.T) {
	c1, c2, c3 := newCluster(t)
	alice, bob := c1.issue(t, "alice", identity.RoleViewer), c1.issue(t, "bob", identity.RoleViewer)
	var watches []operatorv1.Operator_WatchStatusClient
	members := []*member{c1, c2, c3}
	for _, m := range members {
		watch, err := operatorv1.NewOperatorClient(alice(m.site)).WatchStatus(deadline(t), &operatorv1.GetStatusRequest{})
		if err == nil {
			_, err = watch.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		watches = append(watches, watch)
	}
	if m := revoke(t, c2.site, "alice"); len(m.GetRevoked()) != 1 || m.GetRevoked()[0].GetName() != "alice" {
		t.Errorf("revoked are %v", m.GetRevoked())
	}
	for _, watch := range watches {
		var err error
		for err == nil {
			_, err = watch.Recv()
		}
		checkCode(t, err, codes.Unauthenticated, "alice: the context was revoked")
	}
	for _, m := range members {
		conn := alice(m.site)
		eventually(t, m.name+" has heard of it", func() bool { return status.Code(ask(t, conn)) == codes.Unauthenticated })
		if err := ask(t, bob(m.site)); err != nil {
			t.Errorf("bob at %s: %v", m.name, err)
		}
	}
	again := c1.issue(t, "alice", identity.RoleViewer)
	for _, m := range members {
		if err := ask(t, again(m.site)); err != nil {
			t.Errorf("another context of alice at %s: %v", m.name, err)
		}
	}
}

func TestContextsAreListedAndOneThatIsNotKnownCannotBeRevoked(t *testing.T) {
	s := newSite(t)
	s.issue(t, "alice", identity.RoleEditor)
	s.issue(t, "alice", identity.RoleViewer)
	access := operatorv1.NewAccessClient(s.operator(t))
	list := func() []*operatorv1.ContextSummary {
		m, err := access.ListContexts(deadline(t), &operatorv1.ListContextsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return m.GetContexts()
	}
	eventually(t, "control's own context is listed", func() bool { return len(list()) == 3 })
	if got := list(); got[0].GetName() != "admin" || got[0].GetAuthor() != "control c1" || got[0].GetRole() != "admin" ||
		got[1].GetName() != "alice" || got[1].GetAuthor() != "admin" || got[2].GetName() != "alice" || got[1].GetRole() == got[2].GetRole() {
		t.Errorf("listed are %v", got)
	}
	if m := revoke(t, s, "alice"); len(m.GetRevoked()) != 2 {
		t.Errorf("revoked are %v", m.GetRevoked())
	}
	if m := revoke(t, s, "alice"); len(m.GetRevoked()) != 0 {
		t.Errorf("revoked again are %v", m.GetRevoked())
	}
	if got := list(); got[0].GetRevoked() || !got[1].GetRevoked() || !got[2].GetRevoked() {
		t.Errorf("listed are %v", got)
	}
	s.issue(t, "alice", identity.RoleViewer)
	if got := list(); len(got) != 4 || got[3].GetRevoked() {
		t.Errorf("listed are %v; the last was made after it was revoked", got)
	}
	_, err := access.RevokeContext(deadline(t), &operatorv1.RevokeContextRequest{Name: "alicia"})
	checkCode(t, err, codes.NotFound, `"alicia": no context of that name is known`)
}

// Whoever has the data directory is the cluster: revoking its context makes copies of it useless and locks nobody out.
func TestControlMakesAnotherContextWhereItsOwnIsRevoked(t *testing.T) {
	s := newSite(t)
	before := dial(t, s.address, credentials.NewTLS(s.admin(t)))
	access := operatorv1.NewAccessClient(before)
	eventually(t, "it is listed", func() bool {
		m, err := access.ListContexts(deadline(t), &operatorv1.ListContextsRequest{})
		return err == nil && len(m.GetContexts()) == 1
	})
	old, err := identity.LoadContext(filepath.Join(s.dir, control.AdminFile))
	if err != nil {
		t.Fatal(err)
	}
	revoke(t, s, "admin")
	checkCode(t, ask(t, before), codes.Unauthenticated, "the context was revoked")
	eventually(t, "there is another", func() bool {
		made, err := identity.LoadContext(filepath.Join(s.dir, control.AdminFile))
		return err == nil && made.Certificate != old.Certificate
	})
	if err := ask(t, s.operator(t)); err != nil {
		t.Error(err)
	}
}

func TestCallerThatIsRevokedWhileItSendsADocumentChangesNothing(t *testing.T) {
	s := newSite(t)
	mallory := operatorv1.NewOperatorClient(s.issue(t, "mallory", identity.RoleEditor)(s))
	stream, err := mallory.Apply(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	requests := document(part("", sample))
	if err := stream.Send(requests[0]); err != nil {
		t.Fatal(err)
	}
	if err := ask(t, s.issue(t, "x", identity.RoleViewer)(s)); err != nil { // the call has begun, most likely
		t.Fatal(err)
	}
	revoke(t, s, "mallory")
	for _, m := range requests[1:] {
		stream.Send(m)
	}
	stream.CloseSend()
	for err == nil {
		_, err = stream.Recv()
	}
	checkCode(t, err, codes.Unauthenticated, "the context was revoked")
	if n := s.control.Status().GetRevision(); n != 0 {
		t.Errorf("control is at revision %d", n)
	}
}
