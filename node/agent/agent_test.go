package agent

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// nowhere is an address that refuses connections.
func nowhere(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// store puts bundles into a node's directory, as earlier commits did.
func store(t *testing.T, dir string, s *script, bundles ...*bundle.Bundle) {
	t.Helper()
	d, err := bundle.OpenDirectory(filepath.Join(dir, "bundles"))
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range bundles {
		staged, err := d.Stage(s.sign(1, uint64(i+1), b), b, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := staged.Commit(true); err != nil {
			t.Fatal(err)
		}
	}
}

func damage(t *testing.T, dir, file string) {
	t.Helper()
	path := filepath.Join(dir, "bundles", file)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNodeServesFromItsDiskWithoutControl(t *testing.T) {
	s, dir := newScript(t), t.TempDir()
	store(t, dir, s, bundleOf(t, "/a"), bundleOf(t, "/b"))
	r := newRig(t, s, rigOptions{dir: dir, controls: []string{nowhere(t)}})
	if r.revision() != 2 || !r.node.Ready() {
		t.Fatalf("serves revision %d", r.revision())
	}
	answer, err := http.Get("http://" + r.node.ListenAddress() + "/elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if answer.StatusCode != http.StatusNotFound {
		t.Errorf("status %d", answer.StatusCode)
	}
	r.run()
	eventually(t, "the missing control is told", func() bool { return r.log.has("no stream to control") })
	if r.revision() != 2 {
		t.Errorf("serves revision %d without control", r.revision())
	}
}

func TestDamagedBundleIsPassedOverForTheOneBefore(t *testing.T) {
	s, dir := newScript(t), t.TempDir()
	store(t, dir, s, bundleOf(t, "/a"), bundleOf(t, "/b"))
	damage(t, dir, "current.bundle")
	r := newRig(t, s, rigOptions{dir: dir})
	if r.revision() != 1 || !r.log.has("passed over a bundle on disk") {
		t.Errorf("serves revision %d; the log says %s", r.revision(), r.log)
	}
}

func TestNodeWithoutABundleThatItCanUseWaits(t *testing.T) {
	s, dir := newScript(t), t.TempDir()
	store(t, dir, s, bundleOf(t, "/a"), bundleOf(t, "/b"))
	damage(t, dir, "current.bundle")
	damage(t, dir, "previous.bundle")
	r := newRig(t, s, rigOptions{dir: dir})
	if r.node.Ready() || !r.log.has("no bundle on disk can be used") {
		t.Errorf("serves revision %d; the log says %s", r.revision(), r.log)
	}
	r.run()
	w, hello := s.opened(t)
	if hello.GetApplied() != nil || hello.GetName() != "n1" || hello.GetVersion() != "test" || hello.GetBootId() == "" {
		t.Errorf("Hello is %v", hello)
	}
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Welcome{Welcome: &fleetv1.Welcome{}}})
	b := bundleOf(t, "/c")
	w.serve(t, 1, s.sign(1, 3, b), nil, b) // it heals by itself
}

func TestBundleOnDiskThatAnotherControlSignedIsNotServed(t *testing.T) {
	s, other, dir := newScript(t), newScript(t), t.TempDir()
	store(t, dir, other, bundleOf(t, "/a"))
	r := newRig(t, s, rigOptions{dir: dir})
	if r.node.Ready() || !r.log.has(bundle.ErrSignature.Error()) {
		t.Errorf("serves revision %d; the log says %s", r.revision(), r.log)
	}
}

func TestBundleThatCouldNotBeServedAtBootIsTriedAgain(t *testing.T) {
	s, dir := newScript(t), t.TempDir()
	store(t, dir, s, bundleOf(t, "/a"))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	r := newRig(t, s, rigOptions{dir: dir, listen: taken.Addr().String(), controls: []string{nowhere(t)}})
	if r.node.Ready() || !r.log.has("cannot serve the last known good bundle") {
		t.Fatalf("serves revision %d; the log says %s", r.revision(), r.log)
	}
	r.run()
	taken.Close()
	eventually(t, "the port is free and served", r.node.Ready)
}

func TestWhatStandsInTheWayAtBootIsToldToControl(t *testing.T) {
	s, dir := newScript(t), t.TempDir()
	b := bundleOf(t, "/a")
	store(t, dir, s, b)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	r := newRig(t, s, rigOptions{dir: dir, listen: taken.Addr().String()}).run()
	w := s.welcomed(t)
	status := w.status(t, "refusals", func(m *fleetv1.Status) bool { return len(m.GetRefusals()) > 0 })
	if refusal := status.GetRefusals()[0]; refusal.GetField() != "--listen" || !strings.Contains(refusal.GetReason(), "in use") {
		t.Errorf("told %v", refusal)
	}
	checkRefused(t, w.offer(t, 1, s.sign(1, 1, b), nil, b), 1, "--listen", "in use")
	taken.Close()
	w.serve(t, 2, s.sign(1, 1, b), nil, b)
	w.status(t, "no refusals", func(m *fleetv1.Status) bool { return len(m.GetRefusals()) == 0 })
	if !r.node.Ready() {
		t.Error("not ready")
	}
}

func TestNodeTriesAllItsControls(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{controls: []string{nowhere(t), nowhere(t), s.address}}).run()
	s.welcomed(t)
	eventually(t, "connected", func() bool { return r.log.has("connected to control") })
}

func TestNodeRemembersTheControlsThatItIsToldOf(t *testing.T) {
	s := newScript(t)
	dead, dir := nowhere(t), t.TempDir()
	r := newRig(t, s, rigOptions{dir: dir}).run()
	w, _ := s.opened(t)
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Welcome{Welcome: &fleetv1.Welcome{Controls: []string{dead, s.address}}}})
	eventually(t, "Welcome is kept", func() bool {
		id, err := LoadIdentity(dir)
		return err == nil && slices.Equal(id.Controls, []string{dead, s.address})
	})
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Controls{Controls: &fleetv1.Controls{Endpoints: []string{s.address, "nonsense", "10.0.0.1:7400"}}}})
	eventually(t, "what came since is kept", func() bool {
		id, err := LoadIdentity(dir)
		return err == nil && slices.Equal(id.Controls, []string{s.address, "10.0.0.1:7400"})
	})
	if got := r.identity.Load().Controls; len(got) != 2 {
		t.Errorf("it uses %v", got)
	}
}

func TestControlsAreTriedInRounds(t *testing.T) {
	var c controls
	given, told := []string{"a:1", "b:1"}, []string{"b:1", "c:1"}
	last := ""
	firsts := map[string]bool{}
	for range 100 {
		round := map[string]bool{}
		for i := range 3 {
			next := c.next(given, told)
			if next == last {
				t.Fatalf("%s was tried twice in a row", next)
			}
			if i == 0 {
				firsts[next] = true
			}
			last = next
			round[next] = true
		}
		if len(round) != 3 {
			t.Fatalf("a round tried %v", round)
		}
	}
	if len(firsts) != 3 {
		t.Errorf("rounds begin with %v alone", firsts)
	}
}

func TestNodeComesBackAfterItsStreamBroke(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	b := bundleOf(t, "/a")
	w.serve(t, 1, s.sign(1, 1, b), nil, b)
	w.end <- status.Error(codes.Unavailable, "control is stopping")
	again, hello := s.opened(t)
	if hello.GetApplied().GetRevision() != 1 {
		t.Errorf("Hello says %v", hello.GetApplied())
	}
	// The stream is new, so everything is told anew.
	again.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Welcome{Welcome: &fleetv1.Welcome{}}})
	again.status(t, "all backends", func(m *fleetv1.Status) bool { return m.GetBackendsFull() && len(m.GetBackends()) == 1 })
	eventually(t, "the reason is told", func() bool { return r.log.has("control is stopping") })
}

func TestTroubleIsToldOnceUntilItIsOver(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{})
	down := status.Error(codes.Unavailable, "down")
	for range 3 {
		r.tellTrouble("a", down)
		r.tellTrouble("b", down)
	}
	if n := strings.Count(r.log.String(), "no stream to control"); n != 2 {
		t.Errorf("told %d times, want once for each control: %s", n, r.log)
	}
	clear(r.troubles) // as a Welcome does
	r.tellTrouble("a", down)
	if n := strings.Count(r.log.String(), "no stream to control"); n != 3 {
		t.Errorf("told %d times, want again after a stream: %s", n, r.log)
	}
}

func TestWelcomeIsKeptForAStartWithoutControl(t *testing.T) {
	s := newScript(t)
	got := make(chan *Identity, 8)
	r := newRig(t, s, rigOptions{welcomed: func(id *Identity) error { got <- id; return nil }}).run()
	w, _ := s.opened(t)
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Welcome{Welcome: &fleetv1.Welcome{
		GossipKeys: [][]byte{make([]byte, 32)}, GossipSeeds: []string{"127.0.0.1:7402"},
	}}})
	id := <-got
	if len(id.GossipKeys) != 1 || len(id.GossipSeeds) != 1 {
		t.Errorf("told %v", id)
	}
	saved, err := LoadIdentity(r.dir)
	if err != nil || saved.GossipSeeds[0] != "127.0.0.1:7402" || saved.KeyPEM != id.KeyPEM {
		t.Errorf("saved %v, %v", saved, err)
	}
}

func TestCertificateIsRenewedAtHalfOfItsLifeWithinAStream(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{now: s.clock.now}).run()
	w := s.welcomed(t)
	w.status(t, "anything", func(*fleetv1.Status) bool { return true })
	before := r.identity.Load()
	if s.renewals.Load() != 0 {
		t.Fatal("renewed at once")
	}
	s.failRenews.Store(true)
	s.clock.advance(15 * time.Hour)
	eventually(t, "a renewal was tried", func() bool {
		w.any(t)
		return r.log.has("cannot renew the node's certificate")
	})
	// Not in a circle: the next attempt comes after a while.
	for range 2 {
		w.status(t, "anything", func(*fleetv1.Status) bool { return true })
	}
	if n := s.renewals.Load(); n != 1 {
		t.Errorf("%d renewals were tried within 2 s", n)
	}
	s.failRenews.Store(false)
	s.clock.advance(renewalPause)
	eventually(t, "renewed", func() bool {
		w.any(t)
		return r.identity.Load() != before
	})
	after := r.identity.Load()
	_, until := before.Lifetime()
	if _, later := after.Lifetime(); !later.After(until) || after.KeyPEM != before.KeyPEM || after.ClusterID != before.ClusterID {
		t.Errorf("renewed until %s, was until %s", later, until)
	}
	saved, err := LoadIdentity(r.dir)
	if err != nil || saved.CertificatePEM != after.CertificatePEM {
		t.Errorf("the renewed identity is not on disk: %v", err)
	}
}

func TestNodeLeavesWhenItIsStopped(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.stop()
	}()
	if m := w.answer(t); m.GetLeaving() == nil {
		t.Errorf("got %v, want Leaving", m)
	}
	if m := w.any(t); m != nil {
		t.Errorf("got %v after Leaving", m)
	}
	select {
	case <-stopped:
	case <-time.After(patience):
		t.Error("Run does not return")
	}
}

func TestNodeStopsThoughControlHearsNothing(t *testing.T) {
	s := newScript(t)
	s.deaf = true
	r := newRig(t, s, rigOptions{}).run()
	<-s.streams
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.stop()
	}()
	select {
	case <-stopped:
	case <-time.After(patience):
		t.Error("Run does not return")
	}
}

func TestNodeStopsWhileNoControlAnswers(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{controls: []string{nowhere(t)}}).run()
	eventually(t, "tried", func() bool { return r.log.has("no stream to control") })
	r.stop()
}

func TestBackoffGrowsAndIsDrawnFromTheWholeRange(t *testing.T) {
	var b backoff
	for i := range 20 {
		limit := min(shortestPause<<i, longestPause)
		if pause := b.next(); pause <= 0 || pause > limit+10*time.Millisecond {
			t.Errorf("pause %d is %s, want at most %s", i, pause, limit)
		}
	}
	b.reset()
	if pause := b.next(); pause > shortestPause+10*time.Millisecond {
		t.Errorf("after a reset the pause is %s", pause)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.wait(ctx); err == nil {
		t.Error("the pause does not end with its context")
	}
}

func TestTextForControlIsBoundedAndUTF8(t *testing.T) {
	for text, want := range map[string]string{
		"":                        "",
		"plain":                   "plain",
		"a\xffb":                  "a\uFFFDb",
		strings.Repeat("é", 2000): strings.Repeat("é", maxText/2),
	} {
		if got := sendable(text); got != want {
			t.Errorf("%.20q became %.20q", text, got)
		}
	}
}
