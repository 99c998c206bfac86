package agent

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/api"
	"github.com/pyserve/pyserve/control/identity"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// realControl is a control as pyserve runs it, without gossip.
type realControl struct {
	*control.Control
	dir, address string
	server       *grpc.Server
	done         chan struct{}
}

func newRealControl(t *testing.T, dir, address string) *realControl {
	t.Helper()
	return newRealControlAt(t, dir, address, nil)
}

// newRealControlAt is newRealControl with a clock.
func newRealControlAt(t *testing.T, dir, address string, now func() time.Time) *realControl {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c := &realControl{dir: dir, address: l.Addr().String(), done: make(chan struct{})}
	logger := (&logBuffer{}).logger()
	if c.Control, err = control.New(control.Options{DataDir: dir, Name: "c1", Endpoint: c.address, Logger: logger, Now: now}); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	config, err := c.ServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	c.server = api.NewServer(c.Control, config, nil, logger)
	go func() {
		defer close(c.done)
		if err := c.server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	}()
	return c
}

func (c *realControl) close(t *testing.T) {
	t.Helper()
	c.EndStreams()
	c.server.Stop()
	<-c.done
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
}

func (c *realControl) token(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func (c *realControl) apply(t *testing.T, document string) *operatorv1.ApplyResult {
	t.Helper()
	result, err := c.Apply(t.Context(), "admin", control.Document{Data: []byte(document)}, nil, func(*operatorv1.ApplyEvent) {})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func enrolOptions(t *testing.T, token, name string, controls ...string) EnrollOptions {
	return EnrollOptions{Controls: controls, Token: token, Name: name, DataDir: t.TempDir(), Logger: (&logBuffer{}).logger()}
}

func TestNodeEnrolsOnceAndKeepsItsIdentity(t *testing.T) {
	c := newRealControl(t, t.TempDir(), "127.0.0.1:0")
	defer c.close(t)
	o := enrolOptions(t, c.token(t, control.JoinTokenFile)+"\n", "n1", c.address)
	id, err := Enroll(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := LoadIdentity(o.DataDir)
	if err != nil || saved.CertificatePEM != id.CertificatePEM || saved.Name != "n1" {
		t.Errorf("saved %v, %v", saved, err)
	}
}

func TestEnrolmentThatIsRefusedIsNotTriedAgain(t *testing.T) {
	c, other := newRealControl(t, t.TempDir(), "127.0.0.1:0"), newRealControl(t, t.TempDir(), "127.0.0.1:0")
	defer c.close(t)
	defer other.close(t)
	good := c.token(t, control.JoinTokenFile)
	fields := strings.Split(good, ".")
	s := newScript(t) // for its identities alone
	first := enrolOptions(t, good, "taken", c.address)
	id, err := Enroll(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	newRig(t, s, rigOptions{identity: id, controls: []string{c.address}}).run()
	eventually(t, "connected", func() bool { return c.Status().GetNodes()[0].GetState() == "joining" })
	for name, tt := range map[string]struct{ token, node, want string }{
		"no token":             {"", "n1", "the join token is not one"},
		"a control token":      {c.token(t, control.ControlTokenFile), "n1", "this is a control token"},
		"another cluster's":    {other.token(t, control.JoinTokenFile), "n1", "is not the one that made this join token"},
		"a wrong secret":       {strings.Join([]string{fields[0], fields[1], strings.Repeat("A", 43), fields[3]}, "."), "n1", "the token is not one of this cluster"},
		"a token that is cut":  {strings.Join([]string{fields[0], fields[1], "AAAA", fields[3]}, "."), "n1", "malformed"},
		"a name that is taken": {good, "taken", "the name is taken by a node that is connected"},
		"a name that is none":  {good, "n/1", "may hold"},
	} {
		t.Run(name, func(t *testing.T) {
			o := enrolOptions(t, tt.token, tt.node, c.address)
			_, err := Enroll(t.Context(), o)
			var refused *RefusedError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error is %v, want one sentence with %q", err, tt.want)
			}
			if _, err := LoadIdentity(o.DataDir); !errors.Is(err, ErrNotEnrolled) {
				t.Errorf("something was kept: %v", err)
			}
		})
	}
}

func TestEnrolmentWaitsForControl(t *testing.T) {
	dir, address := t.TempDir(), nowhere(t)
	// The token must exist before control can be reached.
	c := newRealControl(t, dir, address)
	token := c.token(t, control.JoinTokenFile)
	c.close(t)
	log := &logBuffer{}
	o := enrolOptions(t, token, "n1", nowhere(t), address)
	o.Logger = log.logger()
	type result struct {
		id  *Identity
		err error
	}
	enrolled := make(chan result, 1)
	go func() {
		id, err := Enroll(t.Context(), o)
		enrolled <- result{id, err}
	}()
	eventually(t, "tried", func() bool { return log.has("cannot enrol yet") })
	c = newRealControl(t, dir, address)
	defer c.close(t)
	select {
	case got := <-enrolled:
		if got.err != nil || got.id.Name != "n1" {
			t.Errorf("got %v, %v", got.id, got.err)
		}
	case <-time.After(patience):
		t.Error("not enrolled")
	}
}

func TestEnrolmentEndsWithItsContext(t *testing.T) {
	s := newScript(t)
	log := &logBuffer{}
	o := enrolOptions(t, joinToken(t, s.authority, identity.TokenJoin), "n1", nowhere(t))
	o.Logger = log.logger()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := Enroll(ctx, o)
		ended <- err
	}()
	eventually(t, "tried", func() bool { return log.has("cannot enrol yet") })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}

func TestIdentityThatCannotBeKeptIsTriedAgain(t *testing.T) {
	c := newRealControl(t, t.TempDir(), "127.0.0.1:0")
	defer c.close(t)
	log := &logBuffer{}
	o := enrolOptions(t, c.token(t, control.JoinTokenFile), "n1", c.address)
	o.DataDir, o.Logger = filepath.Join(o.DataDir, "later"), log.logger()
	enrolled := make(chan error, 1)
	go func() {
		_, err := Enroll(t.Context(), o)
		enrolled <- err
	}()
	eventually(t, "tried", func() bool { return log.has("write the node's identity") })
	if err := os.Mkdir(o.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := <-enrolled; err != nil {
		t.Error(err)
	}
}

const route = "server:\n  host: 127.0.0.1\n  reverse_proxy:\n    - {path: %, host: 127.0.0.1, port: 1, health_check: {type: none}}\n"

func routeTo(path string) string { return strings.Replace(route, "%", path, 1) }

// The whole way: enrol, connect, apply, restart of control, apply again, and a restart of the node.
func TestNodeAndControlTogether(t *testing.T) {
	dir := t.TempDir()
	c := newRealControl(t, dir, "127.0.0.1:0")
	o := enrolOptions(t, c.token(t, control.JoinTokenFile), "n1", c.address)
	id, err := Enroll(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, newScript(t), rigOptions{dir: o.DataDir, identity: id, controls: o.Controls}).run()
	eventually(t, "connected", func() bool { return c.Status().GetNodes()[0].GetState() == "joining" })
	if result := c.apply(t, routeTo("/a")); result.GetOutcome() != operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED || r.revision() != 1 {
		t.Fatalf("got %v, and the node serves %d", result, r.revision())
	}
	c.close(t)
	if !r.node.Ready() {
		t.Error("without control it is not ready")
	}
	c = newRealControl(t, dir, c.address)
	defer func() { c.close(t) }()
	eventually(t, "converged", func() bool { return c.Status().GetConverged() })
	if result := c.apply(t, routeTo("/b")); result.GetRevision() != 2 || r.revision() != 2 {
		t.Fatalf("got %v, and the node serves %d", result, r.revision())
	}
	r.stop()
	eventually(t, "left", func() bool { return c.Status().GetNodes()[0].GetState() == "left" })
	if id, err = LoadIdentity(o.DataDir); err != nil {
		t.Fatal(err)
	}
	again := newRig(t, newScript(t), rigOptions{dir: o.DataDir, identity: id, controls: o.Controls})
	if again.revision() != 2 {
		t.Errorf("after its restart the node serves %d", again.revision())
	}
	again.run()
	eventually(t, "converged", func() bool { return c.Status().GetConverged() })
}

func TestNodeWhoseNameWasTakenOverIsToldSo(t *testing.T) {
	c := newRealControl(t, t.TempDir(), "127.0.0.1:0")
	defer c.close(t)
	token := c.token(t, control.JoinTokenFile)
	old, err := Enroll(t.Context(), enrolOptions(t, token, "n1", c.address))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Enroll(t.Context(), enrolOptions(t, token, "n1", c.address)); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, newScript(t), rigOptions{identity: old, controls: []string{c.address}}).run()
	eventually(t, "told", func() bool { return r.log.has("the node's name now belongs to another key") })
}
