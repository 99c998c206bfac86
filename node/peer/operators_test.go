package peer

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/identity"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
	peerv1 "github.com/pyserve/pyserve/proto/pyserve/peer/v1"
)

// shown answers operators.
type shown struct {
	operatorv1.UnimplementedOperatorServer
}

func (shown) GetStatus(context.Context, *operatorv1.GetStatusRequest) (*operatorv1.GetStatusResponse, error) {
	return &operatorv1.GetStatusResponse{Revision: 7}, nil
}

func (shown) WatchStatus(_ *operatorv1.GetStatusRequest, stream grpc.ServerStreamingServer[operatorv1.GetStatusResponse]) error {
	return stream.Send(&operatorv1.GetStatusResponse{Revision: 7})
}

func (shown) ListSamples(_ context.Context, m *operatorv1.ListSamplesRequest) (*operatorv1.ListSamplesResponse, error) {
	if !m.GetLocal() {
		return nil, status.Error(codes.InvalidArgument, "another node is to ask for the node's own alone")
	}
	return &operatorv1.ListSamplesResponse{Nodes: []*operatorv1.NodeSample{{Node: "n1", Sample: &fleetv1.Sample{Connections: 9}}}}, nil
}

func dialled(t *testing.T, address string, config *tls.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestWhoMayCallWhat(t *testing.T) {
	a := newAuthority(t, nil)
	b := made(t, map[string][]byte{"a": []byte("secret")})
	h := &holdings{}
	h.set(sign(a, 1, 7, b), b)
	server := NewServer(ServerOptions{
		Identity: func() Identity { return enrol(t, a, "n1") }, Holding: func() (*fleetv1.Release, *bundle.Bundle) { return h.get() },
		Operators: shown{}, Logger: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() { server.Stop(context.Background()) })
	address := accepting(t, func(c net.Conn) { server.Take(c) })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	admin, err := a.NewContext("admin", []string{address}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := admin.ReaderTLS()
	if err != nil {
		t.Fatal(err)
	}
	person := dialled(t, address, config)
	if m, err := operatorv1.NewOperatorClient(person).GetStatus(ctx, &operatorv1.GetStatusRequest{}); err != nil || m.GetRevision() != 7 {
		t.Errorf("a person is shown %v, %v", m, err)
	}
	_, err = peerv1.NewPeerClient(person).Head(ctx, &peerv1.HeadRequest{})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a person is given what nodes are: %v", err)
	}
	stream, err := peerv1.NewPeerClient(person).Resources(ctx, &peerv1.ResourcesRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a person is given resources: %v", err)
	}

	node := dialled(t, address, clientTLS(enrol(t, a, "n2"), "n1", time.Now))
	if _, err := peerv1.NewPeerClient(node).Head(ctx, &peerv1.HeadRequest{}); err != nil {
		t.Errorf("a node: %v", err)
	}
	_, err = operatorv1.NewOperatorClient(node).GetStatus(ctx, &operatorv1.GetStatusRequest{})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node is shown what people are: %v", err)
	}
	watch, err := operatorv1.NewOperatorClient(node).WatchStatus(ctx, &operatorv1.GetStatusRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node watches: %v", err)
	}
	sample, err := Sample(ctx, enrol(t, a, "n2"), Node{Name: "n1", Address: address}, 5)
	if err != nil || sample.GetConnections() != 9 {
		t.Errorf("a node's sample: %v, %v", sample, err)
	}
	// What a context is for otherwise is for controls alone.
	strict, err := admin.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := operatorv1.NewOperatorClient(dialled(t, address, strict)).GetStatus(ctx, &operatorv1.GetStatusRequest{}); err == nil {
		t.Error("a node passes for a control")
	}
	other, err := newAuthority(t, nil).NewContext("admin", []string{address}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.ReaderTLS()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := operatorv1.NewOperatorClient(dialled(t, address, foreign)).GetStatus(ctx, &operatorv1.GetStatusRequest{}); err == nil {
		t.Error("another cluster's admin is answered")
	}
}

func TestRolesAreThoseOfCertificates(t *testing.T) {
	var all []string
	for _, role := range []identity.Role{identity.RoleViewer, identity.RoleEditor, identity.RoleOperator, identity.RoleAdmin} {
		all = append(all, role.String())
	}
	if !slices.Equal(people, all) || roleNode != identity.RoleNode.String() || roleControl != identity.RoleControl.String() {
		t.Errorf("people are %v, want %v", people, all)
	}
}
