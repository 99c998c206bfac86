package api

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/control/identity"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestTokensOverTheWire(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewAccessClient(s.operator(t))
	made, err := c.CreateToken(deadline(t), &operatorv1.CreateTokenRequest{
		Kind: operatorv1.TokenKind_TOKEN_KIND_JOIN, Ttl: durationpb.New(time.Hour), Uses: 3, NodePattern: "edge-*",
	})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetSummary().GetId()
	secret := strings.Split(made.GetToken(), ".")[2]
	list, err := c.ListTokens(deadline(t), &operatorv1.ListTokensRequest{})
	if err != nil || strings.Contains(list.String(), secret) {
		t.Fatalf("the list is %v, %v", list, err)
	}
	found := false
	for _, row := range list.GetTokens() {
		if row.GetId() != id {
			continue
		}
		found = row.GetAuthor() == "admin" && row.GetMaxUses() == 3 && row.GetUses() == 0 && row.GetNodePattern() == "edge-*" && row.GetValid() &&
			row.GetExpires().AsTime().Sub(row.GetCreated().AsTime()) == time.Hour && row.GetKind() == operatorv1.TokenKind_TOKEN_KIND_JOIN
	}
	if !found || len(list.GetTokens()) != 3 {
		t.Errorf("the list is %v", list)
	}
	if m, err := c.RevokeToken(deadline(t), &operatorv1.RevokeTokenRequest{Id: id}); err != nil || m.GetFile() != "" || m.GetSummary().GetId() != id {
		t.Errorf("revoked: %v, %v", m, err)
	}
	_, err = c.RevokeToken(deadline(t), &operatorv1.RevokeTokenRequest{Id: id})
	checkCode(t, err, codes.NotFound, "there is no such token")
	for what, request := range map[string]*operatorv1.CreateTokenRequest{
		"no kind":         {},
		"a negative time": {Kind: operatorv1.TokenKind_TOKEN_KIND_JOIN, Ttl: durationpb.New(-time.Second)},
		"a bad pattern":   {Kind: operatorv1.TokenKind_TOKEN_KIND_JOIN, NodePattern: "[a"},
	} {
		_, err := c.CreateToken(deadline(t), request)
		if checkCode(t, err, codes.InvalidArgument, ""); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
}

func TestContextIsIssuedForAKeyThatStaysWithItsOwner(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewAccessClient(s.operator(t))
	request, err := identity.NewContextRequest()
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.CreateContext(deadline(t), &operatorv1.CreateContextRequest{Name: "bob", Role: "viewer", CertificateRequest: request.DER, Ttl: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(m.GetExpires().AsTime()); left > time.Hour || left < 50*time.Minute {
		t.Errorf("it is good for %s", left)
	}
	if len(m.GetEndpoints()) != 1 || m.GetEndpoints()[0] != s.address {
		t.Errorf("the endpoints are %v", m.GetEndpoints())
	}
	for what, bad := range map[string]*operatorv1.CreateContextRequest{
		"a machine's role": {Name: "bob", Role: "node", CertificateRequest: request.DER},
		"no role":          {Name: "bob", CertificateRequest: request.DER},
		"no name":          {Role: "viewer", CertificateRequest: request.DER},
		"a path":           {Name: "../bob", Role: "viewer", CertificateRequest: request.DER},
		"no request":       {Name: "bob", Role: "viewer"},
		"ten years":        {Name: "bob", Role: "viewer", CertificateRequest: request.DER, Ttl: durationpb.New(10 * 365 * 24 * time.Hour)},
	} {
		_, err := c.CreateContext(deadline(t), bad)
		if checkCode(t, err, codes.InvalidArgument, ""); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
}

// drained takes everything off a stream and gives how it ended.
func drained(stream grpc.BidiStreamingClient[fleetv1.FromNode, fleetv1.ToNode]) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
}

func TestRevokingANodeCutsItsStreamAndItsCertificate(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewAccessClient(s.operator(t))
	_, err := c.RevokeNode(deadline(t), &operatorv1.RevokeNodeRequest{Name: "n1"})
	checkCode(t, err, codes.NotFound, "no node of that name")

	node := fleetv1.NewFleetClient(s.node(t, "n1"))
	stream, err := node.Connect(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Hello{Hello: &fleetv1.Hello{Name: "n1"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	m, err := c.RevokeNode(deadline(t), &operatorv1.RevokeNodeRequest{Name: "n1"})
	if err != nil || !m.GetConnected() {
		t.Fatalf("got %v, %v", m, err)
	}
	checkCode(t, drained(stream), codes.PermissionDenied, "revoked")
	_, err = node.Renew(deadline(t), &fleetv1.RenewRequest{})
	checkCode(t, err, codes.PermissionDenied, "revoked")
	again, err := node.Connect(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = again.Recv()
	checkCode(t, err, codes.PermissionDenied, "revoked")
	if status := s.control.Status(); len(status.GetNodes()) != 0 {
		t.Errorf("status shows %v", status)
	}
	s.node(t, "n1") // the name is free
}
