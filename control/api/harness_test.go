package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/identity"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every call of a test.
const patience = 20 * time.Second

// site is a control with its server on a loopback port.
type site struct {
	control *control.Control
	server  *grpc.Server
	tls     *tls.Config
	dir     string
	address string
	done    chan struct{}
	now     func() time.Time
}

func newSite(t *testing.T) *site {
	t.Helper()
	return newSiteAt(t, time.Now)
}

// newSiteAt is newSite with a clock, of control and of its callers.
func newSiteAt(t *testing.T, now func() time.Time) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: t.TempDir(), address: l.Addr().String(), done: make(chan struct{}), now: now}
	logger := slog.New(slog.DiscardHandler)
	if s.control, err = control.New(control.Options{DataDir: s.dir, Name: "c1", Endpoint: s.address, Version: "test", Logger: logger, Now: now}); err != nil {
		t.Fatal(err)
	}
	if err := s.control.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.tls, err = s.control.ServerTLS(); err != nil {
		t.Fatal(err)
	}
	s.server = NewServer(s.control, s.tls, nil, logger)
	go func() {
		defer close(s.done)
		if err := s.server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { s.close(t) })
	return s
}

func (s *site) close(t *testing.T) {
	s.control.EndStreams()
	s.server.Stop()
	<-s.done
	if err := s.control.Stop(); err != nil {
		t.Error(err)
	}
}

func dial(t *testing.T, address string, with credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(with))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (s *site) admin(t *testing.T) *tls.Config {
	t.Helper()
	admin, err := identity.LoadContext(filepath.Join(s.dir, control.AdminFile))
	if err != nil {
		t.Fatal(err)
	}
	config, err := admin.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	config.Time = s.now
	return config
}

// as dials as whoever has the certificates; none is an anonymous caller.
func (s *site) as(t *testing.T, certificates ...tls.Certificate) *grpc.ClientConn {
	t.Helper()
	config := s.admin(t)
	config.Certificates = certificates
	return dial(t, s.address, credentials.NewTLS(config))
}

func (s *site) operator(t *testing.T) *grpc.ClientConn {
	t.Helper()
	return dial(t, s.address, credentials.NewTLS(s.admin(t)))
}

// person dials as somebody of the role, whose certificate the administrator had issued over the wire.
func (s *site) person(t *testing.T, role identity.Role) *grpc.ClientConn {
	t.Helper()
	request, err := identity.NewContextRequest()
	if err != nil {
		t.Fatal(err)
	}
	m, err := operatorv1.NewAccessClient(s.operator(t)).CreateContext(deadline(t), &operatorv1.CreateContextRequest{
		Name: "a-" + role.String(), Role: role.String(), CertificateRequest: request.DER,
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
	config.Time = s.now
	return dial(t, s.address, credentials.NewTLS(config))
}

// node enrols a node over the wire and dials as that.
func (s *site) node(t *testing.T, name string) *grpc.ClientConn {
	t.Helper()
	conn, _, _ := s.enrolled(t, name)
	return conn
}

// enrolled is node with the key, and the request for its certificate.
func (s *site) enrolled(t *testing.T, name string) (conn *grpc.ClientConn, key *ecdsa.PrivateKey, request []byte) {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(s.dir, control.JoinTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		t.Fatal(err)
	}
	answer, err := fleetv1.NewEnrollmentClient(s.as(t)).Enroll(deadline(t), &fleetv1.EnrollRequest{
		Token: strings.TrimSpace(string(token)), Name: name, CertificateRequest: request,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s.as(t, tls.Certificate{Certificate: [][]byte{answer.GetIdentity().GetCertificate()}, PrivateKey: key}), key, request
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func checkCode(t *testing.T, err error, want codes.Code, text string) {
	t.Helper()
	if status.Code(err) != want || !strings.Contains(status.Convert(err).Message(), text) {
		t.Errorf("the answer is %v, want %v with %q", err, want, text)
	}
}
