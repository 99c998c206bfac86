package api

import (
	"crypto/tls"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// clock is a clock that a test turns by hand.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time           { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(by time.Duration) { c.ahead.Add(int64(by)) }

// connect opens a node's stream and gives what becomes of it: nil, a Welcome.
func connect(t *testing.T, conn *grpc.ClientConn) error {
	t.Helper()
	stream, err := fleetv1.NewFleetClient(conn).Connect(deadline(t))
	if err != nil {
		return err
	}
	// The answer says more than a Send that comes too late.
	stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Hello{Hello: &fleetv1.Hello{Name: "n1"}}})
	_, err = stream.Recv()
	return err
}

func TestExpiredNodeMayRenewAndNothingElse(t *testing.T) {
	clock := &clock{}
	s := newSiteAt(t, clock.now)
	conn, key, request := s.enrolled(t, "n1")
	clock.advance(25 * time.Hour)
	checkCode(t, connect(t, conn), codes.Unauthenticated, "has to be renewed first")
	_, err := operatorv1.NewOperatorClient(conn).GetStatus(deadline(t), &operatorv1.GetStatusRequest{})
	checkCode(t, err, codes.Unauthenticated, "has to be renewed first")

	clock.advance(28 * 24 * time.Hour)
	m, err := fleetv1.NewFleetClient(conn).Renew(deadline(t), &fleetv1.RenewRequest{CertificateRequest: request})
	if err != nil {
		t.Fatal(err)
	}
	checkCode(t, connect(t, conn), codes.Unauthenticated, "has to be renewed first") // the connection is still the old one
	fresh := s.as(t, tls.Certificate{Certificate: [][]byte{m.GetIdentity().GetCertificate()}, PrivateKey: key})
	if err := connect(t, fresh); err != nil {
		t.Errorf("with its new certificate: %v", err)
	}
}

func TestExpiredNodeIsRenewedForItsOwnRegistrationAlone(t *testing.T) {
	clock := &clock{}
	s := newSiteAt(t, clock.now)
	old, _, request := s.enrolled(t, "n1")
	_, _, another := s.enrolled(t, "n2")
	clock.advance(48 * time.Hour)
	_, err := fleetv1.NewFleetClient(old).Renew(deadline(t), &fleetv1.RenewRequest{CertificateRequest: another})
	checkCode(t, err, codes.PermissionDenied, "renewed for the key that it has")
	s.node(t, "n1") // another machine takes the name over
	_, err = fleetv1.NewFleetClient(old).Renew(deadline(t), &fleetv1.RenewRequest{CertificateRequest: request})
	checkCode(t, err, codes.PermissionDenied, "now belongs to another key")
	if _, err := s.control.RevokeNode(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	_, err = fleetv1.NewFleetClient(old).Renew(deadline(t), &fleetv1.RenewRequest{CertificateRequest: request})
	checkCode(t, err, codes.PermissionDenied, "was revoked")
}

func TestNodeThatExpiredLongAgoIsNotRenewed(t *testing.T) {
	clock := &clock{}
	s := newSiteAt(t, clock.now)
	conn, _, request := s.enrolled(t, "n1")
	clock.advance(31*24*time.Hour + time.Minute)
	_, err := fleetv1.NewFleetClient(conn).Renew(deadline(t), &fleetv1.RenewRequest{CertificateRequest: request})
	checkCode(t, err, codes.Unauthenticated, "too long ago to be renewed")
}

func TestExpiredOperatorIsToldSo(t *testing.T) {
	clock := &clock{}
	s := newSiteAt(t, clock.now)
	conn := s.operator(t)
	clock.advance(3 * 365 * 24 * time.Hour)
	_, err := operatorv1.NewOperatorClient(conn).GetStatus(deadline(t), &operatorv1.GetStatusRequest{})
	checkCode(t, err, codes.Unauthenticated, "the certificate of admin ended on")
	_, err = fleetv1.NewFleetClient(conn).Renew(deadline(t), &fleetv1.RenewRequest{})
	checkCode(t, err, codes.Unauthenticated, "the certificate of admin ended on")
}

// Control's own certificate lives a day; its listener has to show a new one without a restart.
func TestControlIsReachedForWeeksWithoutARestart(t *testing.T) {
	clock := &clock{}
	s := newSiteAt(t, clock.now)
	for range 30 {
		clock.advance(23 * time.Hour)
		conn := dial(t, s.address, credentials.NewTLS(s.admin(t)))
		if _, err := operatorv1.NewOperatorClient(conn).GetStatus(deadline(t), &operatorv1.GetStatusRequest{}); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}
