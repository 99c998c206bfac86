package agent

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// crash gives a copy of the disk as it is now, and ends the process: what it does to its own disk while it ends is lost.
func (r *rig) crash(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(r.dir)); err != nil {
		t.Fatal(err)
	}
	r.stop()
	return dir
}

// marked says whether something is on trial.
func (r *rig) marked() bool {
	_, err := os.Stat(filepath.Join(r.dir, "bundles", "trial.mark"))
	return err == nil
}

// stands waits until the trial of what is served is over.
func (r *rig) stands(t *testing.T, s *script) {
	t.Helper()
	s.clock.advance(trialTime)
	eventually(t, "the trial ends", func() bool { return !r.marked() })
}

// onTrial is a node that has served revision 1 for long, and revision 2 for a moment.
func onTrial(t *testing.T, s *script) (r *rig, w *wire) {
	t.Helper()
	r = newRig(t, s, rigOptions{now: s.clock.now}).run()
	w = s.welcomed(t)
	a, b := bundleOf(t, "/1"), bundleOf(t, "/2")
	w.serve(t, 1, s.sign(1, 1, a), nil, a)
	r.stands(t, s)
	w.serve(t, 2, s.sign(1, 2, b), a, b)
	return r, w
}

// boot starts a node on what another one left.
func boot(t *testing.T, s *script, dir string) *rig {
	t.Helper()
	return newRig(t, s, rigOptions{dir: dir, now: s.clock.now})
}

// reasons are the refusals of a status as one text.
func reasons(m *fleetv1.Status) string {
	var all []string
	for _, r := range m.GetRefusals() {
		all = append(all, r.GetReason())
	}
	return strings.Join(all, "; ")
}

func TestTwoCrashesOnTrialBootThePreviousBundleAndControlIsTold(t *testing.T) {
	s := newScript(t)
	r, _ := onTrial(t, s)
	r = boot(t, s, r.crash(t))
	if r.revision() != 2 {
		t.Fatalf("after one crash it serves revision %d", r.revision())
	}
	r = boot(t, s, r.crash(t))
	if r.revision() != 1 || !r.log.has("fell back to the revision before") {
		t.Fatalf("after two crashes it serves revision %d; the log says %s", r.revision(), r.log)
	}
	r.run()
	w, hello := s.opened(t)
	if hello.GetApplied().GetRevision() != 1 || hello.GetStored().GetRevision() != 1 {
		t.Errorf("Hello is %v", hello)
	}
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Welcome{Welcome: &fleetv1.Welcome{}}})
	const reason = "ended 2 times within 30s of serving revision 2"
	w.status(t, "the reason", func(m *fleetv1.Status) bool { return strings.Contains(reasons(m), reason) })

	// It does not take it again by itself, however often it is offered, also after more crashes.
	a, b, c := bundleOf(t, "/1"), bundleOf(t, "/2"), bundleOf(t, "/3")
	for nonce := range uint64(3) {
		checkRefused(t, w.offer(t, nonce+1, s.sign(1, 2, b), a, b), nonce+1, "", reason)
	}
	r = boot(t, s, r.crash(t)).run()
	w = s.welcomed(t)
	checkRefused(t, w.offer(t, 1, s.sign(1, 2, b), a, b), 1, "", reason)
	if r.revision() != 1 {
		t.Errorf("it serves revision %d", r.revision())
	}

	// Another one is as good as any.
	w.serve(t, 2, s.sign(1, 3, c), a, c)
	w.status(t, "no refusal", func(m *fleetv1.Status) bool { return len(m.GetRefusals()) == 0 })
	r = boot(t, s, r.crash(t))
	if r.revision() != 3 {
		t.Fatalf("after one crash it serves revision %d", r.revision())
	}
	if r = boot(t, s, r.crash(t)); r.revision() != 1 {
		t.Errorf("after two crashes it serves revision %d, want the last one that stood", r.revision())
	}
}

func TestBundleThatWasServedLongEnoughIsKeptThroughCrashes(t *testing.T) {
	s := newScript(t)
	r, _ := onTrial(t, s)
	r = boot(t, s, r.crash(t)).run()
	s.clock.advance(trialTime / 4)
	s.welcomed(t)
	if !r.marked() {
		t.Error("the trial is over before its time")
	}
	r.stands(t, s)
	for range 4 {
		if r = boot(t, s, r.crash(t)); r.revision() != 2 || r.marked() {
			t.Fatalf("it serves revision %d", r.revision())
		}
	}
}

func TestStopInOrderIsNoCrash(t *testing.T) {
	s := newScript(t)
	r, _ := onTrial(t, s)
	for range 4 {
		r.stop()
		r = boot(t, s, r.dir).run()
		if r.revision() != 2 {
			t.Fatalf("it serves revision %d", r.revision())
		}
	}
	// And yet it is still on trial.
	r = boot(t, s, r.crash(t))
	if r = boot(t, s, r.crash(t)); r.revision() != 1 {
		t.Errorf("after two crashes it serves revision %d", r.revision())
	}
}

func TestEndOfAProcessThatWasToldToStopIsNoCrash(t *testing.T) {
	s := newScript(t)
	r, _ := onTrial(t, s)
	for range 3 {
		r.Stopping()
		if r = boot(t, s, r.crash(t)); r.revision() != 2 {
			t.Fatalf("it serves revision %d", r.revision())
		}
	}
}

func TestNodeThatIsStoppedAndStartedTriesAgain(t *testing.T) {
	s := newScript(t)
	r, _ := onTrial(t, s)
	r = boot(t, s, r.crash(t))
	r = boot(t, s, r.crash(t)).run()
	if r.revision() != 1 {
		t.Fatalf("after two crashes it serves revision %d", r.revision())
	}
	r.stop()
	if r = boot(t, s, r.dir); r.revision() != 2 || !r.marked() {
		t.Errorf("stopped and started, it serves revision %d", r.revision())
	}
	r = boot(t, s, r.crash(t))
	if r = boot(t, s, r.crash(t)); r.revision() != 1 {
		t.Errorf("after two more crashes it serves revision %d", r.revision())
	}
}

// The process may end between the swap and the bundle's place on disk, again and again: control offers it at each start.
func TestCrashesBeforeTheBundleIsOnDiskCount(t *testing.T) {
	s, dir := newScript(t), t.TempDir()
	a, b := bundleOf(t, "/1"), bundleOf(t, "/2")
	store(t, dir, s, a)
	crashing := s.sign(1, 2, b)
	d, err := bundle.OpenDirectory(filepath.Join(dir, "bundles"))
	if err != nil {
		t.Fatal(err)
	}
	for try := range uint64(2) {
		r := boot(t, s, dir).run()
		w := s.welcomed(t)
		checkPrepared(t, w.offer(t, 1, crashing, a, b), 1)
		if r.memory.trial.tries(crashing) != try+1 {
			t.Errorf("this is try %d, want %d", r.memory.trial.tries(crashing), try+1)
		}
		r.stop()
		if err := d.SaveTrial(bundle.Trial{Release: crashing, Tries: try + 1}); err != nil {
			t.Fatal(err)
		}
	}
	r := boot(t, s, dir).run()
	w := s.welcomed(t)
	checkRefused(t, w.offer(t, 1, crashing, a, b), 1, "", "within 30s of serving revision 2")
	if r.revision() != 1 {
		t.Errorf("it serves revision %d", r.revision())
	}
}

func TestBundleThatCrashesIsServedAllTheSameWhereThereIsNoOther(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{now: s.clock.now}).run()
	w := s.welcomed(t)
	a := bundleOf(t, "/1")
	w.serve(t, 1, s.sign(1, 1, a), nil, a)
	for range 4 {
		if r = boot(t, s, r.crash(t)); r.revision() != 1 {
			t.Fatalf("it serves revision %d; the log says %s", r.revision(), r.log)
		}
	}
	r.run()
	w = s.welcomed(t)
	m := w.status(t, "a note", func(m *fleetv1.Status) bool { return len(m.GetNotes()) > 0 })
	if !strings.Contains(m.GetNotes()[0], "there is no older one on its disk") || len(m.GetRefusals()) > 0 {
		t.Errorf("told %v", m)
	}
	r.stands(t, s)
	w.status(t, "no note", func(m *fleetv1.Status) bool { return len(m.GetNotes()) == 0 })
}

func TestFallbackSkipsWhatNeverStood(t *testing.T) {
	s := newScript(t)
	r, w := onTrial(t, s)
	b, c := bundleOf(t, "/2"), bundleOf(t, "/3")
	w.serve(t, 3, s.sign(1, 3, c), b, c)
	r = boot(t, s, r.crash(t))
	if r = boot(t, s, r.crash(t)); r.revision() != 1 {
		t.Errorf("it serves revision %d", r.revision())
	}
}

func TestNodeThatFellBackKeepsItsEpoch(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{now: s.clock.now}).run()
	w := s.welcomed(t)
	a, b := bundleOf(t, "/1"), bundleOf(t, "/2")
	w.serve(t, 1, s.sign(1, 1, a), nil, a)
	r.stands(t, s)
	w.serve(t, 2, s.sign(2, 2, b), a, b)
	r = boot(t, s, r.crash(t))
	r = boot(t, s, r.crash(t)).run()
	w = s.welcomed(t)
	checkRefused(t, w.offer(t, 1, s.sign(1, 7, b), a, b), 1, "", "of epoch 1, and the node has one of epoch 2")
	if r.revision() != 1 {
		t.Errorf("it serves revision %d", r.revision())
	}
}

func TestDamagedMarkKeepsTheNodeFromNothing(t *testing.T) {
	s := newScript(t)
	r, _ := onTrial(t, s)
	dir := r.crash(t)
	damage(t, dir, "trial.mark")
	r = boot(t, s, dir)
	if r.revision() != 2 || !r.log.has("passed over the mark of a trial") {
		t.Errorf("it serves revision %d; the log says %s", r.revision(), r.log)
	}
}

func TestDamagedBundleIsToldUntilControlHasSentItAnew(t *testing.T) {
	s, dir := newScript(t), t.TempDir()
	a, b := bundleOf(t, "/1"), bundleOf(t, "/2")
	store(t, dir, s, a, b)
	damage(t, dir, "current.bundle")
	r := boot(t, s, dir).run()
	if r.revision() != 1 || !r.log.has("passed over a bundle on disk") {
		t.Errorf("it serves revision %d; the log says %s", r.revision(), r.log)
	}
	w, hello := s.opened(t)
	if hello.GetStored().GetRevision() != 1 {
		t.Errorf("Hello is %v", hello)
	}
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Welcome{Welcome: &fleetv1.Welcome{}}})
	m := w.status(t, "a note", func(m *fleetv1.Status) bool { return len(m.GetNotes()) == 1 })
	if !strings.Contains(m.GetNotes()[0], "current.bundle: the file is damaged") || len(m.GetRefusals()) > 0 {
		t.Errorf("told %v", m)
	}
	w.serve(t, 1, s.sign(1, 2, b), a, b)
	w.status(t, "no note", func(m *fleetv1.Status) bool { return len(m.GetNotes()) == 0 })
	// The one that is good has not made room for the one that is not.
	damage(t, dir, "current.bundle")
	if r = boot(t, s, r.crash(t)); r.revision() != 1 {
		t.Errorf("damaged again, it serves revision %d", r.revision())
	}
}

func TestTwoDamagedBundlesAreTold(t *testing.T) {
	s, dir := newScript(t), t.TempDir()
	store(t, dir, s, bundleOf(t, "/1"), bundleOf(t, "/2"))
	damage(t, dir, "current.bundle")
	damage(t, dir, "previous.bundle")
	boot(t, s, dir).run()
	w := s.welcomed(t)
	m := w.status(t, "a note", func(m *fleetv1.Status) bool { return len(m.GetNotes()) == 1 })
	if !strings.Contains(m.GetNotes()[0], "no bundle on its disk can be used") {
		t.Errorf("told %v", m)
	}
}

func TestBundleThatIsNotOnDiskIsToldAndSavedLater(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{now: s.clock.now}).run()
	w := s.welcomed(t)
	b := bundleOf(t, "/a")
	release := s.sign(1, 1, b)
	checkPrepared(t, w.offer(t, 1, release, nil, b), 1)
	bundles := filepath.Join(r.dir, "bundles")
	if err := os.RemoveAll(bundles); err != nil {
		t.Fatal(err)
	}
	w.commit(t, 1)
	m := w.status(t, "a note", func(m *fleetv1.Status) bool { return len(m.GetNotes()) == 1 })
	if !strings.Contains(m.GetNotes()[0], "revision 1 is not on its disk") || !proto.Equal(m.GetApplied(), release) {
		t.Errorf("told %v", m)
	}
	s.clock.advance(savePause)
	eventually(t, "it was tried again", func() bool {
		w.any(t)
		return strings.Count(r.log.String(), "serving a revision that is not on disk") > 1
	})
	if err := os.Mkdir(bundles, 0o700); err != nil {
		t.Fatal(err)
	}
	s.clock.advance(savePause)
	w.status(t, "no note", func(m *fleetv1.Status) bool { return len(m.GetNotes()) == 0 })
	if r = boot(t, s, r.crash(t)); r.revision() != 1 {
		t.Errorf("after a restart it serves revision %d", r.revision())
	}
}

func TestNodeWhoseCertificateHasExpiredBootsAndServes(t *testing.T) {
	s, dir := newScript(t), t.TempDir()
	s.clock.advance(-400 * 24 * time.Hour)
	expired := s.identity(t)
	s.clock.advance(400 * 24 * time.Hour)
	if _, until := expired.Lifetime(); time.Now().Before(until) {
		t.Fatalf("the certificate is good until %s", until)
	}
	if err := expired.save(dir); err != nil {
		t.Fatal(err)
	}
	store(t, dir, s, bundleOf(t, "/a"))
	loaded, err := LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.failRenews.Store(true)
	r := newRig(t, s, rigOptions{dir: dir, identity: loaded}).run()
	if r.revision() != 1 || !r.node.Ready() {
		t.Fatalf("it serves revision %d", r.revision())
	}
	eventually(t, "the end of the certificate is told", func() bool { return r.log.has("the node's certificate ended on") })
	answer, err := http.Get("http://" + r.node.ListenAddress() + "/elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if answer.StatusCode != http.StatusNotFound {
		t.Errorf("status %d", answer.StatusCode)
	}
}
