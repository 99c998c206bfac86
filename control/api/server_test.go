package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/fleet"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// method is one method of the services, as their descriptions have it.
type method struct {
	name   string
	stream *grpc.StreamDesc // nil: unary
}

// methods are those that a server has, whatever services are registered with it.
func methods() []method {
	var out []method
	for service, info := range NewServer(nil, &tls.Config{}, nil, nil).GetServiceInfo() {
		for _, m := range info.Methods {
			found := method{name: "/" + service + "/" + m.Name}
			if m.IsClientStream || m.IsServerStream {
				found.stream = &grpc.StreamDesc{StreamName: m.Name, ClientStreams: m.IsClientStream, ServerStreams: m.IsServerStream}
			}
			out = append(out, found)
		}
	}
	slices.SortFunc(out, func(a, b method) int { return strings.Compare(a.name, b.name) })
	return out
}

func TestPermissionsNameEveryMethodAndNoOther(t *testing.T) {
	known := map[string]bool{}
	for _, m := range methods() {
		known[m.name] = true
		if _, ok := permissions[m.name]; !ok {
			t.Errorf("nobody has said who may call %s", m.name)
		}
	}
	for name := range permissions {
		if !known[name] {
			t.Errorf("there is no method %s", name)
		}
	}
}

// call calls a method with an empty message, which every message can be read from, and gives how it ended.
func call(t *testing.T, conn *grpc.ClientConn, m method) error {
	t.Helper()
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	if m.stream == nil {
		return conn.Invoke(ctx, m.name, &emptypb.Empty{}, &emptypb.Empty{})
	}
	stream, err := conn.NewStream(ctx, m.stream, m.name)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&emptypb.Empty{}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(&emptypb.Empty{}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil // an answer: it was let in
}

func TestWhoMayCallWhat(t *testing.T) {
	s := newSite(t)
	own, err := s.tls.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	callers := []struct {
		conn *grpc.ClientConn
		role identity.Role
	}{
		{s.as(t), anonymous},
		{s.node(t, "n1"), identity.RoleNode},
		{s.as(t, *own), identity.RoleControl},
		{s.person(t, identity.RoleViewer), identity.RoleViewer},
		{s.person(t, identity.RoleEditor), identity.RoleEditor},
		{s.person(t, identity.RoleOperator), identity.RoleOperator},
		{s.operator(t), identity.RoleAdmin},
	}
	for _, m := range methods() {
		for _, who := range callers {
			t.Run(who.role.String()+m.name, func(t *testing.T) {
				need := permissions[m.name]
				err := call(t, who.conn, m)
				switch code := status.Code(err); {
				case need == anonymous || who.role.Includes(need):
					if code == codes.PermissionDenied || code == codes.Unimplemented || code == codes.Unauthenticated && need != anonymous {
						t.Errorf("not let in: %v", err)
					}
				case who.role == anonymous:
					checkCode(t, err, codes.Unauthenticated, "a certificate of this cluster is needed")
				case who.role.IsPerson() && need.IsPerson():
					checkCode(t, err, codes.PermissionDenied, fmt.Sprintf("has the role %s, and %s needs the role %s", who.role, path.Base(m.name), need))
				default:
					checkCode(t, err, codes.PermissionDenied, "is not one that may call "+m.name)
				}
			})
		}
	}
}

func TestNobodyOfAnotherClusterIsLetIn(t *testing.T) {
	s, other := newSite(t), newSite(t)
	foreign := other.admin(t)
	t.Run("a foreign certificate", func(t *testing.T) {
		config := s.admin(t)
		config.Certificates = foreign.Certificates
		_, err := operatorv1.NewOperatorClient(dial(t, s.address, credentials.NewTLS(config))).GetStatus(deadline(t), &operatorv1.GetStatusRequest{})
		checkCode(t, err, codes.Unauthenticated, "a certificate of this cluster is needed") // TLS does not even show it
	})
	t.Run("a foreign certificate, insisted on", func(t *testing.T) {
		config := s.admin(t)
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &foreign.Certificates[0], nil }
		_, err := operatorv1.NewOperatorClient(dial(t, s.address, credentials.NewTLS(config))).GetStatus(deadline(t), &operatorv1.GetStatusRequest{})
		checkCode(t, err, codes.Unavailable, "")
	})
	t.Run("a client that believes another authority", func(t *testing.T) {
		_, err := operatorv1.NewOperatorClient(dial(t, s.address, credentials.NewTLS(foreign))).GetStatus(deadline(t), &operatorv1.GetStatusRequest{})
		checkCode(t, err, codes.Unavailable, "signed by unknown authority")
	})
	t.Run("plaintext", func(t *testing.T) {
		_, err := operatorv1.NewOperatorClient(dial(t, s.address, insecure.NewCredentials())).GetStatus(deadline(t), &operatorv1.GetStatusRequest{})
		checkCode(t, err, codes.Unavailable, "")
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		config := s.admin(t)
		config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		_, err := operatorv1.NewOperatorClient(dial(t, s.address, credentials.NewTLS(config))).GetStatus(deadline(t), &operatorv1.GetStatusRequest{})
		checkCode(t, err, codes.Unavailable, "")
	})
}

func TestUnknownMethodIsToldSo(t *testing.T) {
	s := newSite(t)
	err := s.operator(t).Invoke(deadline(t), "/pyserve.operator.v1.Operator/Imagine", &emptypb.Empty{}, &emptypb.Empty{})
	checkCode(t, err, codes.Unimplemented, "")
	_, err = gate{}.admit(t.Context(), "/pyserve.operator.v1.Operator/Imagine")
	checkCode(t, err, codes.Unimplemented, "is pyservectl newer than control?")
}

func TestCallerWithoutAConnectionIsNobody(t *testing.T) {
	_, err := gate{}.admit(t.Context(), operatorv1.Operator_GetStatus_FullMethodName)
	checkCode(t, err, codes.Unauthenticated, "no client certificate was shown")
	if caller(t.Context()) != (identity.Peer{}) {
		t.Error("somebody is there")
	}
}

func TestPanicOfACallIsItsOwnFailureAlone(t *testing.T) {
	var log strings.Builder
	g := gate{logger: slog.New(slog.NewTextHandler(&log, nil))}
	_, err := g.unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: fleetv1.Enrollment_Enroll_FullMethodName}, func(context.Context, any) (any, error) { panic("oops") })
	checkCode(t, err, codes.Internal, "control failed in "+fleetv1.Enrollment_Enroll_FullMethodName)
	err = g.stream(nil, stream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: fleetv1.Enrollment_Enroll_FullMethodName}, func(any, grpc.ServerStream) error { panic("oops") })
	checkCode(t, err, codes.Internal, "control failed")
	if strings.Contains(err.Error(), "oops") || strings.Count(log.String(), "oops") != 2 || !strings.Contains(log.String(), "server_test.go") {
		t.Errorf("the caller is told %v, the log %q", err, log.String())
	}
}

type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stream) Context() context.Context { return s.ctx }

func TestCodeOfAnError(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{control.ErrNameTaken, codes.AlreadyExists},
		{control.ErrNameAlike, codes.AlreadyExists},
		{control.ErrNotRegistered, codes.PermissionDenied},
		{control.ErrRevoked, codes.PermissionDenied},
		{control.ErrNoNode, codes.NotFound},
		{control.ErrRotation, codes.FailedPrecondition},
		{control.ErrGossipKey, codes.FailedPrecondition},
		{store.ErrTokenGone, codes.NotFound},
		{store.ErrTokenExpired, codes.PermissionDenied},
		{store.ErrTokenUsedUp, codes.PermissionDenied},
		{store.ErrTokenName, codes.PermissionDenied},
		{store.ErrTokenKind, codes.PermissionDenied},
		{control.ErrInvalid, codes.InvalidArgument},
		{fleet.ErrClosed, codes.Unavailable},
		{fleet.ErrStalled, codes.Unavailable},
		{fleet.ErrReplaced, codes.Aborted},
		{fleet.ErrTwice, codes.AlreadyExists},
		{fleet.ErrHello, codes.InvalidArgument},
		{store.ErrClosed, codes.Unavailable},
		{identity.ErrTokenMalformed, codes.InvalidArgument},
		{identity.ErrTokenKind, codes.PermissionDenied},
		{identity.ErrTokenUnknown, codes.Unauthenticated},
		{errTooLarge, codes.ResourceExhausted},
		{errMalformed, codes.InvalidArgument},
		{status.Error(codes.DataLoss, "as it is"), codes.DataLoss},
		{errors.New("anything else"), codes.Internal},
	} {
		err := tt.err
		if err != nil {
			err = fmt.Errorf("try: %w", err)
		}
		if got := coded(err); status.Code(got) != tt.want {
			t.Errorf("%v is %v, want %v", err, status.Code(got), tt.want)
		} else if err != nil && !strings.Contains(status.Convert(got).Message(), "try: ") {
			t.Errorf("%v lost its sentence: %v", err, got)
		}
	}
}

func part(name, data string) *operatorv1.FilePart {
	return &operatorv1.FilePart{Name: name, Data: []byte(data)}
}

func collected(parts ...*operatorv1.FilePart) (control.Document, error) {
	return collect(func() (*operatorv1.FilePart, error) {
		if len(parts) == 0 {
			return nil, io.EOF
		}
		next := parts[0]
		parts = parts[1:]
		return next, nil
	})
}

func TestCollectPutsADocumentTogether(t *testing.T) {
	d, err := collected(part("a.pem", "1"), part("", "x"), part("a.pem", "2"), part("b.pem", ""), part("", "y"))
	if err != nil || string(d.Data) != "xy" || len(d.Files) != 2 || string(d.Files["a.pem"]) != "12" {
		t.Errorf("got %q, %v", d, err)
	}
	if d, err := collected(); err != nil || d.Data != nil {
		t.Errorf("of nothing: %q, %v", d, err)
	}
}

func TestCollectTakesNoMoreThanItsLimits(t *testing.T) {
	piece := strings.Repeat("x", 1<<20)
	var large, many []*operatorv1.FilePart
	for range maxUpload>>20 + 1 {
		large = append(large, part("", piece))
	}
	for i := range maxFiles {
		many = append(many, part(fmt.Sprint(i), ""))
	}
	if _, err := collected(large...); !errors.Is(err, errTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if d, err := collected(append(many, part("0", "x"), part("", "y"))...); err != nil || len(d.Files) != maxFiles {
		t.Errorf("as many files as may be: %v", err)
	}
	if _, err := collected(append(many, part("one more", ""))...); !errors.Is(err, errTooLarge) {
		t.Errorf("too many files: %v", err)
	}
}

func TestCollectDoesNotTakeAnEmptyMessageForTheEnd(t *testing.T) {
	if _, err := collected(part("", "half"), nil, part("", "a document")); !errors.Is(err, errMalformed) {
		t.Errorf("the error is %v", err)
	}
	broken := errors.New("broken")
	if _, err := collect(func() (*operatorv1.FilePart, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("the error is %v", err)
	}
}

func TestSendRowsFillsParts(t *testing.T) {
	row := func(n int) *operatorv1.RouteSummary {
		return &operatorv1.RouteSummary{Name: strings.Repeat("r", n)}
	}
	for name, tt := range map[string]struct {
		rows []*operatorv1.RouteSummary
		want []int
	}{
		"none":                     {nil, nil},
		"one":                      {[]*operatorv1.RouteSummary{row(1)}, []int{1}},
		"two that fit":             {[]*operatorv1.RouteSummary{row(1), row(partBytes / 2)}, []int{2}},
		"two that do not":          {[]*operatorv1.RouteSummary{row(partBytes / 2), row(partBytes / 2)}, []int{1, 1}},
		"one larger than any part": {[]*operatorv1.RouteSummary{row(1), row(2 * partBytes), row(1), row(1)}, []int{1, 1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []int
			if err := sendRows(tt.rows, func(part []*operatorv1.RouteSummary) error {
				got = append(got, len(part))
				return nil
			}); err != nil || fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
	broken := errors.New("broken")
	for n := range 2 {
		rows := []*operatorv1.RouteSummary{row(partBytes), row(partBytes)}
		if err := sendRows(rows[n:], func([]*operatorv1.RouteSummary) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("the error is %v", err)
		}
	}
}

func TestStopEndsCallsThatDoNotEndByThemselves(t *testing.T) {
	s := newSite(t)
	stream, err := fleetv1.NewFleetClient(s.node(t, "n1")).Connect(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Hello{Hello: &fleetv1.Hello{Name: "n1"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	Stop(ctx, s.server)
	<-s.done
	if err := drained(stream); errors.Is(err, io.EOF) {
		t.Error("the stream ended as if by itself")
	}
}
