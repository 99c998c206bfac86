package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/control"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

const sample = "server:\n  reverse_proxy:\n    - {path: /api, host: 127.0.0.1, port: 3000}\n"

func options(o *operatorv1.ApplyOptions) *operatorv1.ApplyRequest {
	return &operatorv1.ApplyRequest{Message: &operatorv1.ApplyRequest_Options{Options: o}}
}

func document(parts ...*operatorv1.FilePart) []*operatorv1.ApplyRequest {
	requests := []*operatorv1.ApplyRequest{options(&operatorv1.ApplyOptions{})}
	for _, p := range parts {
		requests = append(requests, &operatorv1.ApplyRequest{Message: &operatorv1.ApplyRequest_Part{Part: p}})
	}
	return requests
}

// apply sends requests and gives the events.
func apply(t *testing.T, c operatorv1.OperatorClient, requests ...*operatorv1.ApplyRequest) ([]*operatorv1.ApplyEvent, error) {
	t.Helper()
	stream, err := c.Apply(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range requests {
		if err := stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var events []*operatorv1.ApplyEvent
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return events, nil
		}
		if err != nil {
			return events, err
		}
		events = append(events, event)
	}
}

func TestApplyEndsWithItsResult(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewOperatorClient(s.operator(t))
	events, err := apply(t, c, document(part("", sample[:10]), part("", sample[10:]))...)
	if err != nil || len(events) == 0 {
		t.Fatalf("got %v, %v", events, err)
	}
	if r := events[len(events)-1].GetResult(); r.GetOutcome() != operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED || r.GetRevision() != 1 {
		t.Errorf("the last event is %v", events[len(events)-1])
	}
	events, err = apply(t, c, document(part("", "server: ["))...)
	if err != nil || events[0].GetProblem().GetLine() == 0 || events[len(events)-1].GetResult().GetOutcome() != operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED {
		t.Errorf("of a bad document: %v, %v", events, err)
	}
}

func TestApplyRefusesWhatNoToolSends(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewOperatorClient(s.operator(t))
	large := document()
	for range maxUpload>>20 + 1 {
		large = append(large, document(part("f", strings.Repeat("x", 1<<20)))[1])
	}
	for name, tt := range map[string]struct {
		requests []*operatorv1.ApplyRequest
		code     codes.Code
		text     string
	}{
		"no options":           {document(part("", sample))[1:], codes.InvalidArgument, "the first message of Apply carries its options"},
		"a message of 2 KiB":   {[]*operatorv1.ApplyRequest{options(&operatorv1.ApplyOptions{Message: strings.Repeat("m", 2<<10)})}, codes.ResourceExhausted, "--message is at most 1024 bytes"},
		"options twice":        {append(document(part("", sample)), options(&operatorv1.ApplyOptions{})), codes.InvalidArgument, "without a part"},
		"an upload of 33 MiB":  {large, codes.ResourceExhausted, "at most 32 MiB"},
		"one message of 5 MiB": {document(part("", strings.Repeat("x", 5<<20))), codes.ResourceExhausted, "larger than max"},
		"nothing at all":       {nil, codes.Unknown, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			events, err := apply(t, c, tt.requests...)
			if len(events) > 0 {
				t.Errorf("got %v", events)
			}
			if tt.code == codes.Unknown {
				if err == nil {
					t.Error("no error")
				}
				return
			}
			checkCode(t, err, tt.code, tt.text)
		})
	}
	if n := s.control.Status().GetRevision(); n != 0 {
		t.Errorf("revision %d is active", n)
	}
}

func TestConfigComesBackByteForByte(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewOperatorClient(s.operator(t))
	read := func() (data []byte, revision uint64, messages int) {
		t.Helper()
		stream, err := c.GetConfig(deadline(t), &operatorv1.GetConfigRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return data, revision, messages
			}
			if err != nil {
				t.Fatal(err)
			}
			data, revision, messages = append(data, m.GetData()...), revision+m.GetRevision(), messages+1
		}
	}
	if data, revision, messages := read(); len(data) > 0 || revision != 0 || messages != 1 {
		t.Errorf("before the first apply: %q of revision %d", data, revision)
	}
	long := sample + "# " + strings.Repeat("c", 2*partBytes)
	var parts []*operatorv1.FilePart
	for rest := long; rest != ""; {
		n := min(len(rest), 1<<20)
		parts = append(parts, part("", rest[:n]))
		rest = rest[n:]
	}
	if _, err := apply(t, c, document(parts...)...); err != nil {
		t.Fatal(err)
	}
	if data, revision, messages := read(); string(data) != long || revision != 1 || messages != 3 {
		t.Errorf("%d bytes of revision %d in %d messages, want %d", len(data), revision, messages, len(long))
	}
}

func TestListsOfManyRoutesCome(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewOperatorClient(s.operator(t))
	var doc strings.Builder
	doc.WriteString("server:\n  reverse_proxy:\n")
	const many = 3000
	for i := range many {
		fmt.Fprintf(&doc, "    - {path: /%d/%s, host: 127.0.0.1, port: 3000}\n", i, strings.Repeat("p", 1000))
	}
	var parts []*operatorv1.FilePart
	for rest := doc.String(); rest != ""; {
		n := min(len(rest), 1<<20)
		parts = append(parts, part("", rest[:n]))
		rest = rest[n:]
	}
	if _, err := apply(t, c, document(parts...)...); err != nil {
		t.Fatal(err)
	}
	routes, err := c.ListRoutes(deadline(t), &operatorv1.ListRoutesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for m, err := routes.Recv(); !errors.Is(err, io.EOF); m, err = routes.Recv() {
		if err != nil {
			t.Fatal(err)
		}
		n += len(m.GetRoutes())
	}
	backends, err := c.ListBackends(deadline(t), &operatorv1.ListBackendsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	b := 0
	for m, err := backends.Recv(); !errors.Is(err, io.EOF); m, err = backends.Recv() {
		if err != nil {
			t.Fatal(err)
		}
		b += len(m.GetBackends())
	}
	if n != many || b != many {
		t.Errorf("%d routes and %d backends, want %d", n, b, many)
	}
	controls, err := c.ListControls(deadline(t), &operatorv1.ListControlsRequest{})
	if err != nil || len(controls.GetControls()) != 1 {
		t.Errorf("got %v, %v", controls, err)
	}
}

func TestDiffOverTheWire(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewOperatorClient(s.operator(t))
	diff := func(requests ...*operatorv1.DiffRequest) (*operatorv1.DiffResponse, error) {
		t.Helper()
		stream, err := c.Diff(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range requests {
			if err := stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		return stream.CloseAndRecv()
	}
	m, err := diff(&operatorv1.DiffRequest{Part: part("", sample)})
	if err != nil || len(m.GetChanges()) != 2 {
		t.Errorf("got %v, %v", m, err)
	}
	_, err = diff(&operatorv1.DiffRequest{})
	checkCode(t, err, codes.InvalidArgument, "without a part")
}

func TestWatchStatusTellsChangesAndEndsWithControl(t *testing.T) {
	s := newSite(t)
	c := operatorv1.NewOperatorClient(s.operator(t))
	now, err := c.GetStatus(deadline(t), &operatorv1.GetStatusRequest{})
	if err != nil || now.GetRevision() != 0 {
		t.Fatalf("got %v, %v", now, err)
	}
	stream, err := c.WatchStatus(deadline(t), &operatorv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetRevision() != 0 {
		t.Fatalf("got %v, %v", m, err)
	}
	if _, err := apply(t, c, document(part("", sample))...); err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetRevision() != 1 {
		t.Fatalf("got %v, %v", m, err)
	}
	// A graceful stop does not wait for those who only watch.
	s.control.EndStreams()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	before := time.Now()
	Stop(ctx, s.server)
	if took := time.Since(before); took > patience/2 {
		t.Errorf("the stop took %s", took)
	}
	_, err = stream.Recv()
	checkCode(t, err, codes.Unavailable, "control is stopping")
}

func TestWatchStatusEndsWithItsCaller(t *testing.T) {
	s := newSite(t)
	ctx, cancel := context.WithCancel(deadline(t))
	stream, err := operatorv1.NewOperatorClient(s.operator(t)).WatchStatus(ctx, &operatorv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestEnrolmentThatIsRefusedSaysWhy(t *testing.T) {
	s := newSite(t)
	data, err := os.ReadFile(filepath.Join(s.dir, control.JoinTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(data))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	conn := s.node(t, "n1")
	stream, err := fleetv1.NewFleetClient(conn).Connect(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&fleetv1.FromNode{Message: &fleetv1.FromNode_Hello{Hello: &fleetv1.Hello{Name: "n1"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	enroll := func(m *fleetv1.EnrollRequest) error {
		_, err := fleetv1.NewEnrollmentClient(s.as(t)).Enroll(deadline(t), m)
		return err
	}
	checkCode(t, enroll(&fleetv1.EnrollRequest{Token: token, Name: "n1", CertificateRequest: request}), codes.AlreadyExists, "the name is taken")
	checkCode(t, enroll(&fleetv1.EnrollRequest{Token: "psj1.a.b.c", Name: "n2", CertificateRequest: request}), codes.InvalidArgument, "malformed")
	checkCode(t, enroll(&fleetv1.EnrollRequest{Token: token, Name: "n/2", CertificateRequest: request}), codes.InvalidArgument, "may hold")
	flipped := strings.Replace(token, token[20:21], string('A'+(token[20]+1)%26), 1)
	if err := enroll(&fleetv1.EnrollRequest{Token: flipped, Name: "n2", CertificateRequest: request}); err == nil {
		t.Error("a changed token was taken")
	}
	_, err = fleetv1.NewFleetClient(conn).Renew(deadline(t), &fleetv1.RenewRequest{CertificateRequest: request})
	checkCode(t, err, codes.PermissionDenied, "renewed for the key that it has")
}
